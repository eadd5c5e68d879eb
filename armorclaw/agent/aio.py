"""The asyncio agent: the same names as the blocking one, handlers are `async def`.

Ten lines make one:

    from armorclaw.agent import AsyncAgent

    agent = AsyncAgent()

    @agent.on_message
    async def reply(msg):
        await msg.reply("echo: " + msg.body)

    agent.run()
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import signal
import threading
import time
from collections.abc import Callable
from typing import Any, Optional

from armorclaw.agent.base import STOP_GRACE, BaseAgent, retry_ms, say, send_params, socket_from_environment
from armorclaw.agent.connection import Connection, retry_after
from armorclaw.agent.errors import AgentError, stopped, timed_out
from armorclaw.agent.lanes import Lanes
from armorclaw.agent.messages import AsyncMessage, Delivery
from armorclaw.agent.secrets import harden_process
from armorclaw.agent.session import CALL_TIMEOUT, TICK, Key, Session


class AsyncAgent(BaseAgent):
    """An agent whose handlers are coroutine functions.

    Messages of one room are handled in order, those of different rooms at the same time, by at most `workers` tasks.
    `socket` is the bridge's socket; left out, it is what ARMORCLAW_SOCKET names.
    """

    def __init__(self, socket: Optional[str] = None, *, workers: int = 64) -> None:
        super().__init__(socket)
        if workers < 1:
            raise ValueError("an agent needs at least one worker")
        self._max_workers = workers
        self._link: Optional[_AsyncLink] = None
        self._loop: Optional[asyncio.AbstractEventLoop] = None
        self._lanes: Lanes[AsyncMessage] = Lanes()
        self._workers: set[asyncio.Task[None]] = set()
        self._stop_asked = False
        self._stopping: Optional[asyncio.Event] = None

    def run(self) -> None:
        """As `Agent.run`: an event loop of its own, until the bridge, SIGTERM, SIGINT or `stop` asks for the end."""
        path = self._socket or socket_from_environment()
        in_main = threading.current_thread() is threading.main_thread()
        if in_main and self._socket is None:
            harden_process()
        asyncio.run(self._serve(path, signals=in_main))

    async def serve(self) -> None:
        """The same in the event loop of a program that has one: touches neither signals nor the process.

        Cancelling it ends the handlers that run; what they were at comes again.
        """
        await self._serve(self._socket or socket_from_environment(), signals=False)

    def stop(self) -> None:
        """Ask `run` or `serve` to end. From any thread, a handler or a signal handler."""
        self._stop_asked = True
        if self._loop is not None and self._stopping is not None:
            self._loop.call_soon_threadsafe(self._stopping.set)

    async def send(
        self,
        room_id: str,
        text: str,
        msgtype: str = "m.text",
        *,
        content: Optional[dict[str, Any]] = None,
        idempotency_key: Optional[str] = None,
    ) -> Delivery:
        """As `Agent.send`."""
        return await self.send_params(send_params(room_id, text, msgtype, content, idempotency_key))

    async def send_params(self, params: dict[str, Any]) -> Delivery:
        """As `Agent.send_params`."""
        result = await self._running().call("matrix.send", params, resend="idempotency_key" in params)
        return Delivery.from_result(result)

    async def call(self, method: str, /, **params: Any) -> Any:
        """As `Agent.call`."""
        return await self._running().call(method, params)

    def _running(self) -> _AsyncLink:
        if self._link is None:
            raise AgentError(-32002, "unavailable", "the agent does not run yet", "call agent.run() first")
        return self._link

    async def _serve(self, path: str, *, signals: bool) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        if self._stop_asked:
            self._stopping.set()
        self._session = Session(say=say)
        self._link = link = _AsyncLink(path, self._session, self._accept, self._stopping.set)
        if signals:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._loop.add_signal_handler(number, self.stop)
        pump = self._loop.create_task(link.pump())
        stopping = self._loop.create_task(self._stopping.wait())
        try:
            await asyncio.wait({pump, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if pump.done():
                pump.result()
            self._lanes.clear()  # not begun: the bridge has them still
            try:
                await asyncio.wait_for(self._finish(link), STOP_GRACE)
            except asyncio.TimeoutError:
                say(f"{self._lanes.out} handlers did not finish within {STOP_GRACE:g} s")
        finally:
            tasks = [pump, stopping, *self._workers]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._session.abandon(stopped())
            self._loop = None

    async def _finish(self, link: _AsyncLink) -> None:
        if self._workers:
            await asyncio.wait(set(self._workers))
        while not link.quiet():
            await link.progress()

    def _accept(self, wire: dict[str, Any]) -> None:
        assert self._loop is not None
        assert self._stopping is not None
        if self._stopping.is_set():
            return  # the bridge has it still
        message = AsyncMessage(wire, self)
        self._lanes.put(message.room_id, message)
        if len(self._workers) < self._max_workers:
            worker = self._loop.create_task(self._work())
            self._workers.add(worker)

    async def _work(self) -> None:
        try:
            while True:
                message = self._lanes.take()
                if message is None:
                    return
                try:
                    await self._handle(message)
                finally:
                    self._lanes.done(message.room_id)
        finally:
            # here rather than in a callback that runs later: until then a new message would count on this worker
            task = asyncio.current_task()
            assert task is not None
            self._workers.discard(task)

    async def _handle(self, message: AsyncMessage) -> None:
        link = self._running()
        handler = self._handlers.get(message.type)
        retry: Optional[int] = None
        try:
            if handler is not None:
                result = handler(message)
                if inspect.isawaitable(result):
                    await result
        except asyncio.CancelledError:
            raise  # serve() ends; without an acknowledgement it comes again
        except BaseException as error:  # noqa: BLE001 - whatever it is, the bridge must learn of it
            self._failed(message, error)
            retry = retry_ms(message.redelivered)
        link.finished(message.key, retry_ms=retry)


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


class _AsyncLink:
    """Pumps a session over a socket, by the event loop's readiness callbacks: asyncio's streams lose descriptors."""

    def __init__(
        self,
        path: str,
        session: Session,
        deliver: Callable[[dict[str, Any]], None],
        stop: Callable[[], None],
    ) -> None:
        self._path = path
        self._session = session
        self._deliver = deliver
        self._stop = stop
        self._loop = asyncio.get_running_loop()
        self._connection: Optional[Connection] = None
        self._gone: asyncio.Future[None] = self._loop.create_future()
        self._ticking: Optional[asyncio.TimerHandle] = None
        self._progress = asyncio.Event()
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

    async def call(self, method: str, params: dict[str, Any], *, resend: bool = False) -> Any:
        """As `Link.call`."""
        future: asyncio.Future[Any] = self._loop.create_future()
        answer = _Answer(future)
        self._session.call(method, params, answer, resend=resend)
        self._send()
        try:
            return await asyncio.wait_for(future, CALL_TIMEOUT)
        except asyncio.TimeoutError:
            raise timed_out(method, CALL_TIMEOUT) from None
        finally:
            self._session.forget(answer)

    def finished(self, key: Key, *, retry_ms: Optional[int] = None) -> None:
        self._session.finished(key, retry_ms=retry_ms)
        self._send()

    def quiet(self) -> bool:
        return self._session.quiet and (self._connection is None or not self._connection.wants_write)

    async def progress(self) -> None:
        """Wait until something came from the bridge, or it went away."""
        self._progress.clear()
        await self._progress.wait()

    async def _converse(self, connection: Connection) -> None:
        self._connection = connection
        self._gone = self._loop.create_future()
        self._loop.add_reader(connection, self._readable)
        try:
            self._session.connected()
            self._send()
            await self._gone
        finally:
            self._loop.remove_reader(connection)
            self._loop.remove_writer(connection)
            self._connection = None
            connection.close()
            if self._ticking is not None:
                self._ticking.cancel()
                self._ticking = None
            self._session.disconnected()
            self._progress.set()

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
            self._session.received(data, fds)
        except OSError as error:
            self._complain(f"lost the bridge: {error.strerror or error}")
            self._gone.set_result(None)
            return
        except Exception as error:  # noqa: BLE001 - pump() raises it
            self._gone.set_exception(error)
            return
        self._send()
        for wire in self._session.take_events():
            self._deliver(wire)
        if self._session.stopping:
            self._stop()
        if self._session.serving:
            self._served_at = time.monotonic()
            if self._complained:
                self._complained = False
                say("the bridge is back")
        if self._session.owes and self._ticking is None:
            self._ticking = self._loop.call_later(TICK, self._tick)
        self._progress.set()

    def _tick(self) -> None:
        self._ticking = None
        self._session.tick()
        self._send()

    def _send(self) -> None:
        data = self._session.take_bytes()
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
        if not self._connection.wants_write:
            self._loop.remove_writer(self._connection)
            self._progress.set()

    def _complain(self, text: str) -> None:
        if not self._complained:
            say(text)
        self._complained = True
