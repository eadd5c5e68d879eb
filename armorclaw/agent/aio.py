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
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any, Optional

from armorclaw.agent.aio_link import AsyncCallLine, AsyncLink, AsyncStream
from armorclaw.agent.base import (
    STOP_GRACE,
    call_params,
    open_way_out,
    retry_ms,
    say,
    socket_from_environment,
)
from armorclaw.agent.callbacks import Callback
from armorclaw.agent.calls import AsyncCall
from armorclaw.agent.errors import AgentError, CallCancelledError, stopped
from armorclaw.agent.events import Delivery, Key, Keys
from armorclaw.agent.files import AsyncFiling
from armorclaw.agent.lanes import Lanes
from armorclaw.agent.messages import AsyncMessage
from armorclaw.agent.reports import AsyncReporting, Unheeded
from armorclaw.agent.rooms import AsyncRoom
from armorclaw.agent.secrets import harden_process
from armorclaw.agent.session import CALL_TIMEOUT, Session
from armorclaw.agent.streams import OnProgress


class AsyncAgent(AsyncReporting, AsyncFiling):
    """An agent whose handlers are coroutine functions.

    Messages of one room are handled in order, those of different rooms at the same time, by at most `workers` tasks.
    `socket` is the bridge's socket; left out, it is what ARMORCLAW_SOCKET names.
    """

    def __init__(self, socket: Optional[str] = None, *, workers: int = 64) -> None:
        super().__init__(socket)
        if workers < 1:
            raise ValueError("an agent needs at least one worker")
        open_way_out()
        self._max_workers = workers
        self._link: Optional[AsyncLink] = None
        self._loop: Optional[asyncio.AbstractEventLoop] = None
        self._lanes: Lanes[AsyncMessage] = Lanes()
        self._workers: set[asyncio.Task[None]] = set()
        self._answering: set[asyncio.Task[None]] = set()
        self._stop_asked = False
        self._dismissed = False  # our tasks are cancelled: who is, before, has the handler to thank
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
        text: str = "",
        msgtype: str = "m.text",
        *,
        markdown: Optional[str] = None,
        reply_to: Optional[str] = None,
        thread: Optional[str] = None,
        mentions: Sequence[str] = (),
        content: Optional[dict[str, Any]] = None,
        idempotency_key: Optional[str] = None,
    ) -> Delivery:
        """As `Agent.send`."""
        send = AsyncRoom(self, room_id, Keys()).send
        return await send(
            text,
            msgtype,
            markdown=markdown,
            reply_to=reply_to,
            thread=thread,
            mentions=mentions,
            content=content,
            idempotency_key=idempotency_key,
        )

    def in_room(self, room_id: str = "") -> AsyncRoom:
        """As `Agent.in_room`."""
        return AsyncRoom(self, room_id or self.room, Keys())

    async def deliver(self, method: str, params: dict[str, Any], *, timeout: float = CALL_TIMEOUT) -> Delivery:
        """As `Agent.deliver`."""
        resend = "idempotency_key" in params
        return Delivery.from_result(await self._running().call(method, params, resend=resend, timeout=timeout))

    async def in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call what may take a while, such as a disk."""
        return await asyncio.get_running_loop().run_in_executor(None, function, *arguments)

    def now(self) -> float:
        """As `Agent.now`."""
        return time.monotonic()

    async def working(self, key: Key) -> None:
        """As `Agent.working`."""
        link = self._running()
        link.session.working(key)
        link.flush()

    async def call(self, method: str, /, *, timeout: float = CALL_TIMEOUT, **params: Any) -> Any:
        """As `Agent.call`. A task that is cancelled meanwhile cancels the call."""
        return await self._running().call(method, call_params(params), timeout=timeout)

    @contextlib.asynccontextmanager
    async def stream(
        self, method: str, /, *, on_progress: Optional[OnProgress] = None, **params: Any
    ) -> AsyncIterator[AsyncStream]:
        """As `Agent.stream`, with `async with`, `async for` and `await`."""
        stream = AsyncStream(self._running(), method, call_params(params), on_progress)
        try:
            yield stream
        finally:
            stream.close()

    def post(self, method: str, params: dict[str, Any]) -> None:
        """As `Agent.post`."""
        link = self._running()
        if link.session.serving:
            link.session.call(method, params, Unheeded())
            link.flush()

    def _running(self) -> AsyncLink:
        if self._link is None:
            raise AgentError(-32002, "unavailable", "the agent does not run yet", "call agent.run() first")
        return self._link

    async def _serve(self, path: str, *, signals: bool) -> None:
        self._loop = asyncio.get_running_loop()
        self._stopping = asyncio.Event()
        if self._stop_asked:
            self._stopping.set()
        self._session = Session(answers=self._answers, say=say)
        self._link = link = AsyncLink(path, self._session, self._accept, self._answer, self._stopping.set)
        if signals:
            for number in (signal.SIGTERM, signal.SIGINT):
                self._loop.add_signal_handler(number, self.stop)
        pump = self._loop.create_task(link.pump())
        stopping = self._loop.create_task(self._stopping.wait())
        try:
            await asyncio.wait({pump, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if pump.done():
                pump.result()
            self._session.stop()
            link.flush()
            self._lanes.clear()  # not begun: the bridge has them still
            try:
                await asyncio.wait_for(self._finish(link), STOP_GRACE)
            except asyncio.TimeoutError:
                unfinished = self._lanes.out + len(self._answering)
                say(f"{unfinished} handlers did not finish within {STOP_GRACE:g} s")
        finally:
            self._dismissed = True
            tasks = [pump, stopping, *self._workers, *self._answering]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            link.abandon(stopped())
            self._loop = None

    async def _finish(self, link: AsyncLink) -> None:
        while self._workers or self._answering:
            await asyncio.wait({*self._workers, *self._answering})
        await link.until(link.quiet)

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
        except BaseException as error:  # whatever it is, the bridge must learn of it
            if self._dismissed and isinstance(error, asyncio.CancelledError):
                raise  # serve() ends; without an acknowledgement it comes again
            self._failed(message, error)
            retry = retry_ms(message.redelivered)
        link.finished(message.key, retry_ms=retry)

    def _answer(self, callback: Callback) -> None:
        assert self._loop is not None
        task = self._loop.create_task(self._serve_call(callback))
        self._answering.add(task)
        callback.on_cancel = task.cancel

    async def _serve_call(self, callback: Callback) -> None:
        link = self._running()
        call = AsyncCall(callback.method, callback.params, AsyncCallLine(link, callback))
        result: Any = None
        failed: Optional[AgentError] = stopped()  # unless it comes to an end of its own
        try:
            result = self._answers[callback.method](call)
            if inspect.isawaitable(result):
                result = await result
            failed = None
        except CallCancelledError as error:
            failed = error  # nobody is there to be told
        except BaseException as error:  # whatever it is, the caller must learn of it
            if isinstance(error, asyncio.CancelledError) and (self._dismissed or call.cancelled):
                raise
            failed = self._call_failed(callback.method, error)
        finally:
            task = asyncio.current_task()
            assert task is not None
            self._answering.discard(task)
            link.session.callbacks.answer(callback, result, failed)
            link.flush()
