"""The blocking driver: one thread keeps the session with the bridge up, any thread may call."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Optional

from armorclaw.agent.callbacks import Callback
from armorclaw.agent.connection import Connection, retry_after
from armorclaw.agent.errors import AgentError, stopped, timed_out
from armorclaw.agent.events import Key
from armorclaw.agent.session import CALL_TIMEOUT, Session, Waiter
from armorclaw.agent.streams import OnProgress, Progress, piece


class _Answer:
    """Where a thread waits for the answer to its call."""

    def __init__(self) -> None:
        self.given = threading.Event()
        self.result: Any = None
        self.error: Optional[AgentError] = None

    def set_result(self, result: Any) -> None:
        self.result = result
        self.given.set()

    def set_exception(self, error: AgentError) -> None:
        self.error = error
        self.given.set()


class Link:
    """Pumps a session over a socket. `turn` is for the one thread that owns it, the other methods for any thread.

    Used as a context manager: leaving closes the connection and fails the calls that still wait.
    """

    def __init__(self, path: str, session: Session) -> None:
        self.session = session
        self._path = path
        self._lock = threading.Lock()  # over the session, the connection and what goes out on it
        self._changed = threading.Condition(self._lock)  # something came, went out, or ended
        self._connection: Optional[Connection] = None
        self._served_at = self._retry_at = time.monotonic()
        self._complained = False
        self._wake_in, self._wake_out = socket.socketpair()
        self._wake_in.setblocking(False)
        self._wake_out.setblocking(False)

    def __enter__(self) -> Link:  # noqa: PYI034 - Self came with 3.11
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._lose()
            self.session.abandon(stopped())
            self._changed.notify_all()
        self._wake_in.close()
        self._wake_out.close()

    @property
    def wake_fd(self) -> int:
        """For signal.set_wakeup_fd: a signal ends the wait of `turn`."""
        return self._wake_out.fileno()

    def wake(self) -> None:
        """End the wait of `turn`. May be called from a signal handler: takes no lock."""
        with contextlib.suppress(OSError):  # full: it is awake already; closed: it needs no waking
            self._wake_out.send(b"\0")

    def turn(self, patience: Optional[float] = None) -> list[dict[str, Any]]:
        """Wait until something happens, at most `patience` seconds, deal with it, and return the events to handle.

        Raises AgentError when going on makes no sense.
        """
        now = time.monotonic()
        poll = select.poll()
        poll.register(self._wake_in, select.POLLIN)
        with self._lock:
            if self._connection is None and now >= self._retry_at:
                self._connect(now)
            due = self._due()
            if self._connection is not None:
                interest = select.POLLIN | (select.POLLOUT if self._connection.wants_write else 0)
                poll.register(self._connection, interest)
        waits = [seconds for seconds in (patience, None if due is None else due - now) if seconds is not None]
        ready = poll.poll(max(0.0, min(waits)) * 1000 if waits else None)
        with contextlib.suppress(BlockingIOError):
            self._wake_in.recv(4096)
        with self._lock:
            if any(fd != self._wake_in.fileno() for fd, _ in ready):
                self._exchange()
            elif self.session.due is not None:
                self.session.tick()
                self._send()
            return self.session.take_events()

    def call(
        self, method: str, params: dict[str, Any], *, resend: bool = False, timeout: float = CALL_TIMEOUT
    ) -> Any:
        """Ask the bridge and wait for its answer, in seconds. Must not be called by the thread that turns.

        A call made while the bridge is away waits for its return. One that was on the wire when it went away is
        sent again if `resend`, else fails.
        """
        answer = _Answer()
        with self.session_when() as session:
            session.call(method, params, answer, resend=resend)
        try:
            answer.given.wait(timeout)
        finally:
            if not answer.given.is_set():
                self.forget(answer)
        if not answer.given.is_set():
            raise timed_out(method, timeout)
        if answer.error is not None:
            raise answer.error
        return answer.result

    @contextlib.contextmanager
    def session_when(self, ready: Callable[[], object] = lambda: True) -> Iterator[Session]:
        """Be alone with the session for the length of the block, once `ready`; then what it says goes out."""
        with self._changed:
            self._changed.wait_for(ready)
            try:
                yield self.session
            finally:
                self._send()

    def forget(self, waiter: Waiter) -> None:
        """As `Session.forget`; whoever waits in a stream that is over by it goes on."""
        with self.session_when() as session:
            session.forget(waiter)
            self._changed.notify_all()

    def has_room(self) -> bool:
        """Whether more may be sent that could as well wait: for `ready` of `session_when`."""
        return self._connection is None or self._connection.has_room

    def finished(self, key: Key, *, retry_ms: Optional[int] = None) -> None:
        """A handler is through with an event: acknowledge it, or have it again after `retry_ms` milliseconds."""
        with self.session_when() as session:
            session.finished(key, retry_ms=retry_ms)

    def working(self, key: Key) -> None:
        """A handler is still at it."""
        with self.session_when() as session:
            session.working(key)

    def take_calls(self) -> list[Callback]:
        """Calls of the bridge to handle."""
        with self._lock:
            return self.session.callbacks.take()

    def quiet(self) -> bool:
        """Whether nothing is under way that a good-bye should wait for."""
        with self._lock:
            return self.session.quiet and (self._connection is None or not self._connection.wants_write)

    def _due(self) -> Optional[float]:
        if self._connection is None:
            return self._retry_at
        return self.session.due

    def _connect(self, now: float) -> None:
        try:
            self._connection = Connection.open(self._path)
        except OSError as error:
            self._retry_at = now + retry_after(now - self._served_at)
            if not self._complained:
                self._complained = True
                self.session.say(f"waiting for the bridge at {self._path}: {error.strerror or error}")
            return
        self.session.connected()
        self._send()

    def _exchange(self) -> None:
        assert self._connection is not None
        try:
            self._connection.flush()
            came = self._connection.read()
            if came is not None:
                data, fds = came
                if not data:
                    raise ConnectionResetError("the bridge closed the connection")
                self.session.received(data, fds)
        except OSError as error:
            self.session.say(f"lost the bridge: {error.strerror or error}")
            self._lose()
            return
        self._send()
        self._changed.notify_all()
        if self.session.serving:
            self._served_at = time.monotonic()
            if self._complained:
                self._complained = False
                self.session.say("the bridge is back")

    def _send(self) -> None:
        data = self.session.take_bytes(room=self.has_room())
        if self._connection is None or not data:
            return
        with contextlib.suppress(OSError):  # whoever reads next finds out, and says so once
            self._connection.write(data)
        if self._connection.wants_write:
            self.wake()

    def _lose(self) -> None:
        if self._connection is not None:
            now = time.monotonic()
            if self.session.serving:  # to this moment, however long ago it last said something
                self._served_at = now
            self._connection.close()
            self._connection = None
            self.session.disconnected()
            self._changed.notify_all()
            self._retry_at = now + retry_after(now - self._served_at)
            self._complained = True


class Stream:
    """A streaming call of the bridge, from `Agent.stream`: an iterator over the pieces of its result.

    The bridge sends as they are taken, so whoever does not take them costs a few pieces, not memory. The iterator
    raises what the bridge answers as AgentError; when the connection ends first it is `unavailable`, and nothing is
    sent again.
    """

    def __init__(
        self, link: Link, method: str, params: dict[str, Any], on_progress: Optional[OnProgress] = None
    ) -> None:
        self._link = link
        self._on_progress = on_progress
        with link.session_when() as session:
            self._state = session.stream(method, params)

    def __iter__(self) -> Stream:
        return self

    def __next__(self) -> Any:
        state = self._state
        while True:
            with self._link.session_when(lambda: state.chunks or state.progress or state.over) as session:
                news, state.progress = state.progress, None
                if news is None and state.chunks:
                    return session.take_chunk(state)
            if news is None:
                break
            if self._on_progress is not None:
                self._on_progress(*news)
        if state.error is not None:
            raise state.error
        raise StopIteration

    def result(self) -> Any:
        """What is answered last; pieces that nobody took are dropped. Raises the error answered."""
        for _ in self:
            pass
        return self._state.result

    def send(self, value: Any) -> None:
        """Send a piece of the params: any JSON, or up to 192 KiB of bytes. Waits until the bridge can take it.

        Raises AgentError: too_large, invalid_params for what is no JSON, and what the bridge answers when it does not
        want them all. What comes after another answer is dropped.
        """
        text = piece(value)
        state = self._state
        with self._link.session_when(lambda: state.over or (state.may_send and self._link.has_room())) as session:
            if state.error is not None:
                raise state.error
            session.upload(state, text)

    def end(self) -> None:
        """Say that the params are complete."""
        with self._link.session_when(lambda: self._state.number is not None or self._state.over) as session:
            session.end_upload(self._state)

    def close(self) -> None:
        """Want no more of it: the bridge need not go on. Whoever waits in it, or uses it later, gets `cancelled`."""
        self._link.forget(self._state)


class CallLine:
    """To the caller of the agent, for one call."""

    def __init__(self, link: Link, callback: Callback) -> None:
        self._link = link
        self._callback = callback

    @property
    def cancelled(self) -> bool:
        return self._callback.request is None

    def progress(self, progress: Progress) -> None:
        with self._link.session_when() as session:
            session.callbacks.progress(self._callback, progress)

    def send(self, chunk: Any) -> None:
        text = piece(chunk)
        callback = self._callback

        def ready() -> bool:
            return callback.request is None or (callback.may_send and self._link.has_room())

        with self._link.session_when(ready) as session:
            session.callbacks.send_chunk(callback, text)
