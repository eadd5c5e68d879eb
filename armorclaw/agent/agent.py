"""The blocking agent: plain functions, called from a few threads.

Ten lines make one:

    from armorclaw.agent import Agent

    agent = Agent()

    @agent.on_message
    def reply(msg):
        msg.reply("echo: " + msg.body)

    agent.run()
"""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Optional

from armorclaw.agent.base import (
    STOP_GRACE,
    call_params,
    open_way_out,
    retry_ms,
    say,
    socket_from_environment,
)
from armorclaw.agent.callbacks import Callback
from armorclaw.agent.calls import Call
from armorclaw.agent.errors import AgentError, CallCancelledError
from armorclaw.agent.events import Delivery, Key, Keys
from armorclaw.agent.files import Filing
from armorclaw.agent.lanes import Lanes
from armorclaw.agent.link import CallLine, Link, Stream
from armorclaw.agent.messages import Message
from armorclaw.agent.reports import Reporting, Unheeded
from armorclaw.agent.rooms import Room
from armorclaw.agent.secrets import harden_process
from armorclaw.agent.session import CALL_TIMEOUT, Session
from armorclaw.agent.streams import OnProgress


class Agent(Reporting, Filing):
    """An agent whose handlers are plain functions.

    Messages of one room are handled in order, those of different rooms at the same time, by at most `workers`
    threads. `socket` is the bridge's socket; left out, it is what ARMORCLAW_SOCKET names.
    """

    def __init__(self, socket: Optional[str] = None, *, workers: int = 8) -> None:
        super().__init__(socket)
        if workers < 1:
            raise ValueError("an agent needs at least one worker")
        open_way_out()
        self._max_workers = workers
        self._link: Optional[Link] = None
        self._changed = threading.Condition()  # over the four below
        self._lanes: Lanes[Message] = Lanes()
        self._workers: list[threading.Thread] = []
        self._idle = 0
        self._closed = False
        self._stop_asked = False

    def run(self) -> None:
        """Serve until the bridge, SIGTERM, SIGINT or `stop` asks for the end; then return.

        Handlers that run at that moment get 4 seconds to finish. In the main thread of a program the bridge started
        (no `socket` given), the process is first sealed off: no core files, no debugger. Raises AgentError when the
        bridge refuses this agent for good; a bridge that is away is waited for. Ends the program with status 3 when
        there is no bridge to talk to.
        """
        path = self._socket or socket_from_environment()
        in_main = threading.current_thread() is threading.main_thread()
        if in_main and self._socket is None:
            harden_process()
        self._session = Session(answers=self._answers, say=say)
        with Link(path, self._session) as link:
            self._link = link
            with stop_signals(self.stop, link) if in_main else contextlib.nullcontext():
                try:
                    self._serve(link)
                finally:
                    self._dismiss()

    def stop(self) -> None:
        """Ask `run` to end. From any thread, a handler or a signal handler."""
        self._stop_asked = True
        if self._link is not None:
            self._link.wake()

    def send(
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
        """Write to a room, as `Room.send`. Two calls with the same `idempotency_key` make one message; without it,
        each makes one."""
        send = Room(self, room_id, Keys()).send
        return send(
            text,
            msgtype,
            markdown=markdown,
            reply_to=reply_to,
            thread=thread,
            mentions=mentions,
            content=content,
            idempotency_key=idempotency_key,
        )

    def in_room(self, room_id: str = "") -> Room:
        """A room to act in, of one's own accord: by default the first that is granted."""
        return Room(self, room_id or self.room, Keys())

    def deliver(self, method: str, params: dict[str, Any], *, timeout: float = CALL_TIMEOUT) -> Delivery:
        """Call a method that answers as matrix.send does. With an idempotency key it is called again when the bridge
        went away meanwhile."""
        resend = "idempotency_key" in params
        return Delivery.from_result(self._running().call(method, params, resend=resend, timeout=timeout))

    def now(self) -> float:
        """Seconds of a clock that never goes back."""
        return time.monotonic()

    def working(self, key: Key) -> None:
        """For messages, whose handlers take their time."""
        self._running().working(key)

    def call(self, method: str, /, *, timeout: float = CALL_TIMEOUT, **params: Any) -> Any:
        """Any method of the bridge (docs/protocol.md). Returns its result; raises AgentError for an error.

        `timeout` is in seconds, waiting for a bridge that restarts included. A trailing underscore is dropped from
        the name of a param: `from_=5`, and `timeout_=` for one of that name.
        """
        return self._running().call(method, call_params(params), timeout=timeout)

    @contextlib.contextmanager
    def stream(self, method: str, /, *, on_progress: Optional[OnProgress] = None, **params: Any) -> Iterator[Stream]:
        """A streaming method of the bridge, for the length of the block; leaving early cancels it.

            with agent.stream("…") as stream:
                for piece in stream: …
                print(stream.result())

        `on_progress(done, total, message)` is called by whoever waits for the next piece. Params as for `call`.
        """
        stream = Stream(self._running(), method, call_params(params), on_progress)
        try:
            yield stream
        finally:
            stream.close()

    def post(self, method: str, params: dict[str, Any]) -> None:
        """Make a call whose answer nobody waits for; left out while there is no bridge."""
        with self._running().session_when() as session:
            if session.serving:
                session.call(method, params, Unheeded())

    def _running(self) -> Link:
        if self._link is None:
            raise AgentError(-32002, "unavailable", "the agent does not run yet", "call agent.run() first")
        return self._link

    # the thread of run()

    def _serve(self, link: Link) -> None:
        while True:
            wires = link.turn()
            if self._ending(link):
                break
            for wire in wires:
                self._accept(Message(wire, self))
            for callback in link.take_calls():
                # at most MAX_CALLS of them at once; daemons, for the same reason as the workers
                threading.Thread(
                    target=self._serve_call, args=(callback,), name="armorclaw-call", daemon=True
                ).start()
        until = time.monotonic() + STOP_GRACE
        with link.session_when() as session:
            session.stop()
        with self._changed:
            self._lanes.clear()  # not begun: the bridge has them still
        while self._lanes.out or not link.quiet():
            left = until - time.monotonic()
            if left <= 0:
                unfinished = self._lanes.out + len(link.session.callbacks.running)
                say(f"{unfinished} handlers did not finish within {STOP_GRACE:g} s")
                return
            link.turn(left)

    def _ending(self, link: Link) -> bool:
        return self._stop_asked or link.session.stopping

    def _accept(self, message: Message) -> None:
        with self._changed:
            self._lanes.put(message.room_id, message)
            if self._idle:
                self._idle -= 1  # counted here, not when it wakes: the next message must not rely on it as well
                self._changed.notify()
            elif len(self._workers) < self._max_workers:
                # a handler that never ends must not keep the process from ending, hence daemon
                worker = threading.Thread(target=self._work, name="armorclaw-worker", daemon=True)
                self._workers.append(worker)
                worker.start()

    def _dismiss(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    # the threads of the handlers

    def _work(self) -> None:
        while True:
            with self._changed:
                message = self._lanes.take()
                while message is None:
                    if self._closed:
                        return
                    self._idle += 1
                    self._changed.wait()
                    message = self._lanes.take()
            self._handle(message)

    def _handle(self, message: Message) -> None:
        link = self._running()
        handler = self._handlers.get(message.type)
        retry: Optional[int] = None
        try:
            if handler is not None:
                handler(message)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the bridge must learn of it
            self._failed(message, error)
            retry = retry_ms(message.redelivered)
        link.finished(message.key, retry_ms=retry)
        with self._changed:
            self._lanes.done(message.room_id)
        if self._ending(link):
            link.wake()

    def _serve_call(self, callback: Callback) -> None:
        link = self._running()
        result: Any = None
        failed: Optional[AgentError] = None
        try:
            result = self._answers[callback.method](Call(callback.method, callback.params, CallLine(link, callback)))
        except CallCancelledError as error:
            failed = error  # nobody is there to be told
        except BaseException as error:  # noqa: BLE001 - whatever it is, the caller must learn of it
            failed = self._call_failed(callback.method, error)
        with link.session_when() as session:
            session.callbacks.answer(callback, result, failed)
        if self._ending(link):
            link.wake()


@contextlib.contextmanager
def stop_signals(stop: Callable[[], object], link: Link) -> Iterator[None]:
    """SIGTERM and SIGINT call `stop` for the time of the block.

    A second one changes nothing: the end is bounded anyway, and a wrapper and a terminal often both send one.
    """
    before: dict[int, Any] = {}
    old_wakeup = signal.set_wakeup_fd(link.wake_fd, warn_on_full_buffer=False)
    for term in (signal.SIGTERM, signal.SIGINT):
        before[term] = signal.signal(term, lambda number, frame: stop())
    try:
        yield
    finally:
        for number, former in before.items():
            signal.signal(number, former)
        signal.set_wakeup_fd(old_wakeup)
