"""The asyncio driver: keeps the session with the bridge up, in one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from typing import Any, Optional

from armorclaw.agent.base import say
from armorclaw.agent.callbacks import Callback
from armorclaw.agent.connection import Connection, retry_after
from armorclaw.agent.errors import AgentError, timed_out
from armorclaw.agent.events import Key
from armorclaw.agent.session import CALL_TIMEOUT, Session, Waiter
from armorclaw.agent.streams import OnProgress, Progress, piece


class _Answer:
    """Where a task waits for the answer to its call; a task that was cancelled does not care any more."""

    def __init__(self, future: asyncio.Future[Any]) -> None:
        self._future = future

    def set_result(self, result: Any) -> None:
        if not self._future.done():
            self._future.set_result(result)

    def set_exception(self, error: AgentError) -> None:
        if not self._future.done():
            self._future.set_exception(error)


class AsyncLink:
    """Pumps a session over a socket, by the event loop's readiness callbacks: asyncio's streams lose descriptors."""

    def __init__(
        self,
        path: str,
        session: Session,
        deliver: Callable[[dict[str, Any]], None],
        answer: Callable[[Callback], None],
        stop: Callable[[], None],
    ) -> None:
        self._path = path
        self.session = session
        self._deliver = deliver
        self._answer = answer
        self._stop = stop
        self._loop = asyncio.get_running_loop()
        self._connection: Optional[Connection] = None
        self._gone: asyncio.Future[None] = self._loop.create_future()
        self._ticking: Optional[asyncio.TimerHandle] = None
        self._changed = asyncio.Event()  # set for a moment, when something came, went out or ended
        self._served_at = time.monotonic()
        self._complained = False

    async def pump(self) -> None:
        """Connect and connect again, until cancelled. Raises AgentError when going on makes no sense."""
        while True:
            try:
                connection = Connection.open(self._path)
            except OSError as error:
                self._complain(f"waiting for the bridge at {self._path}: {error.strerror or error}")
            else:
                await self._converse(connection)
            await asyncio.sleep(retry_after(time.monotonic() - self._served_at))

    async def call(
        self, method: str, params: dict[str, Any], *, resend: bool = False, timeout: float = CALL_TIMEOUT
    ) -> Any:
        """As `Link.call`."""
        future: asyncio.Future[Any] = self._loop.create_future()
        answer = _Answer(future)
        self.session.call(method, params, answer, resend=resend)
        self.flush()
        try:
            return await asyncio.wait_for(future, timeout)
        except asyncio.TimeoutError:
            raise timed_out(method, timeout) from None
        finally:
            self.forget(answer)

    def finished(self, key: Key, *, retry_ms: Optional[int] = None) -> None:
        self.session.finished(key, retry_ms=retry_ms)
        self.flush()

    def forget(self, waiter: Waiter) -> None:
        """As `Link.forget`."""
        self.session.forget(waiter)
        self.flush()
        self._pulse()

    def abandon(self, error: AgentError) -> None:
        """As `Session.abandon`."""
        self.session.abandon(error)
        self._pulse()

    def quiet(self) -> bool:
        return self.session.quiet and (self._connection is None or not self._connection.wants_write)

    async def until(self, ready: Callable[[], object]) -> None:
        """Wait until it is so: looked at whenever something came, went out or ended."""
        while not ready():
            await self._changed.wait()

    def has_room(self) -> bool:
        """Whether more may be sent that could as well wait: for `until`."""
        return self._connection is None or self._connection.has_room

    async def _converse(self, connection: Connection) -> None:
        self._connection = connection
        self._gone = self._loop.create_future()
        self._loop.add_reader(connection, self._readable)
        try:
            self.session.connected()
            self.flush()
            await self._gone
        finally:
            self._loop.remove_reader(connection)
            self._loop.remove_writer(connection)
            self._connection = None
            connection.close()
            if self._ticking is not None:
                self._ticking.cancel()
                self._ticking = None
            if self.session.serving:  # to this moment, however long ago it last said something
                self._served_at = time.monotonic()
            self.session.disconnected()
            self._pulse()

    def _readable(self) -> None:
        assert self._connection is not None
        if self._gone.done():
            return
        try:
            came = self._connection.read()
            if came is None:
                return
            data, fds = came
            if not data:
                raise ConnectionResetError("the bridge closed the connection")
            self.session.received(data, fds)
        except OSError as error:
            self._complain(f"lost the bridge: {error.strerror or error}")
            self._gone.set_result(None)
            return
        except Exception as error:  # noqa: BLE001 - pump() raises it
            self._gone.set_exception(error)
            return
        self.flush()
        for wire in self.session.take_events():
            self._deliver(wire)
        for callback in self.session.callbacks.take():
            self._answer(callback)
        if self.session.stopping:
            self._stop()
        if self.session.serving:
            self._served_at = time.monotonic()
            if self._complained:
                self._complained = False
                say("the bridge is back")
        self._schedule()
        self._pulse()

    def _pulse(self) -> None:
        self._changed.set()
        self._changed.clear()

    def _schedule(self) -> None:
        due = self.session.due
        if self._ticking is not None:
            self._ticking.cancel()
            self._ticking = None
        if due is not None:
            self._ticking = self._loop.call_later(due - time.monotonic(), self._tick)

    def _tick(self) -> None:
        self.session.tick()
        self.flush()
        self._schedule()

    def flush(self) -> None:
        """Send what the session says."""
        data = self.session.take_bytes(room=self.has_room())
        if self._connection is None or not data:
            return
        with contextlib.suppress(OSError):  # whoever reads next finds out, and says so once
            self._connection.write(data)
        if self._connection.wants_write:
            self._loop.add_writer(self._connection, self._writable)

    def _writable(self) -> None:
        assert self._connection is not None
        with contextlib.suppress(OSError):
            self._connection.flush()
        self.flush()
        if not self._connection.wants_write:
            self._loop.remove_writer(self._connection)
        self._pulse()

    def _complain(self, text: str) -> None:
        if not self._complained:
            say(text)
        self._complained = True


class AsyncStream:
    """As `Stream`, awaited. A task that is cancelled while it waits for the next piece loses none."""

    def __init__(
        self, link: AsyncLink, method: str, params: dict[str, Any], on_progress: Optional[OnProgress] = None
    ) -> None:
        self._link = link
        self._on_progress = on_progress
        self._state = link.session.stream(method, params)
        link.flush()

    def __aiter__(self) -> AsyncStream:
        return self

    async def __anext__(self) -> Any:
        state = self._state
        while True:
            await self._link.until(lambda: state.chunks or state.progress or state.over)
            news, state.progress = state.progress, None
            if news is not None:
                if self._on_progress is not None:
                    self._on_progress(*news)
            elif state.chunks:
                chunk = self._link.session.take_chunk(state)
                self._link.flush()
                return chunk
            elif state.error is not None:
                raise state.error
            else:
                raise StopAsyncIteration

    async def result(self) -> Any:
        """As `Stream.result`."""
        async for _ in self:
            pass
        return self._state.result

    async def send(self, value: Any) -> None:
        """As `Stream.send`."""
        text = piece(value)
        state = self._state
        await self._link.until(lambda: state.over or (state.may_send and self._link.has_room()))
        if state.error is not None:
            raise state.error
        self._link.session.upload(state, text)
        self._link.flush()

    async def end(self) -> None:
        """As `Stream.end`."""
        state = self._state
        await self._link.until(lambda: state.number is not None or state.over)
        self._link.session.end_upload(state)
        self._link.flush()

    def close(self) -> None:
        """As `Stream.close`."""
        self._link.forget(self._state)


class AsyncCallLine:
    """To the caller of the agent, for one call."""

    def __init__(self, link: AsyncLink, callback: Callback) -> None:
        self._link = link
        self._callback = callback

    @property
    def cancelled(self) -> bool:
        return self._callback.request is None

    def progress(self, progress: Progress) -> None:
        self._link.session.callbacks.progress(self._callback, progress)
        self._link.flush()

    async def send(self, chunk: Any) -> None:
        text = piece(chunk)
        callback = self._callback
        await self._link.until(lambda: callback.request is None or (callback.may_send and self._link.has_room()))
        self._link.session.callbacks.send_chunk(callback, text)
        self._link.flush()
