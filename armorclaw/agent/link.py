"""The blocking driver: one thread keeps the session with the bridge up, any thread may call."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from typing import Any, Optional

from armorclaw.agent.connection import Connection, retry_after
from armorclaw.agent.errors import AgentError, stopped, timed_out
from armorclaw.agent.session import CALL_TIMEOUT, TICK, Key, Session


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
        self._connection: Optional[Connection] = None
        self._served_at = self._retry_at = self._tick_at = time.monotonic()
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
            elif self.session.owes and time.monotonic() >= self._tick_at:
                self._tick_at = time.monotonic() + TICK
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
        with self._lock:
            self.session.call(method, params, answer, resend=resend)
            self._send()
        if not answer.given.wait(timeout):
            with self._lock:
                self.session.forget(answer)
            if not answer.given.is_set():
                raise timed_out(method, timeout)
        if answer.error is not None:
            raise answer.error
        return answer.result

    def finished(self, key: Key, *, retry_ms: Optional[int] = None) -> None:
        """A handler is through with an event: acknowledge it, or have it again after `retry_ms` milliseconds."""
        with self._lock:
            self.session.finished(key, retry_ms=retry_ms)
            self._send()

    def quiet(self) -> bool:
        """Whether nothing is under way that a good-bye should wait for."""
        with self._lock:
            return self.session.quiet and (self._connection is None or not self._connection.wants_write)

    def _due(self) -> Optional[float]:
        if self._connection is None:
            return self._retry_at
        return self._tick_at if self.session.owes else None

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
        if self.session.serving:
            self._served_at = time.monotonic()
            if self._complained:
                self._complained = False
                self.session.say("the bridge is back")

    def _send(self) -> None:
        data = self.session.take_bytes()
        if self._connection is None or not data:
            return
        with contextlib.suppress(OSError):  # whoever reads next finds out, and says so once
            self._connection.write(data)
        if self._connection.wants_write:
            self.wake()

    def _lose(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None
            self.session.disconnected()
            now = time.monotonic()
            self._retry_at = now + retry_after(now - self._served_at)
            self._complained = True
