"""An answer that people watch as it is written: one message, changed by edits until it is whole."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Optional, TypeVar

from armorclaw.agent.errors import AgentError
from armorclaw.agent.events import Delivery
from armorclaw.agent.saying import AsyncSender, Params, Sender, about

T = TypeVar("T")

PACE = 1.0
"""Seconds between two edits, at least."""

GATHER = 0.5
"""Seconds from the first words to the message with what there is by then: an answer that is whole by then needs no
edit, and nobody is notified of half a word."""

MORE = " …"
"""Behind what is not the end."""

SHOWN_MS = 120_000
"""How long an agent is shown to be typing, unless it says so again: longer than most take, and not for ever if it
dies."""

_INTERIM_TIMEOUT = 5.0
_FIRST = 1_000  # characters of the first message of an answer that may have been given before


class Typing:
    """People in a room see that somebody is typing, for the length of the block: `with` and `async with` both do."""

    def __init__(self, post: Callable[[str, Params], None], room_id: str) -> None:
        self._post = post
        self._room_id = room_id

    def start(self) -> None:
        """Show it, for two minutes at most. Waits for no answer; while the bridge is away nothing is shown."""
        self._post("matrix.typing", {"room_id": self._room_id, "timeout_ms": SHOWN_MS})

    def stop(self) -> None:
        """Show it no more."""
        self._post("matrix.typing", {"room_id": self._room_id, "typing": False})

    async def until(self, done: Awaitable[T]) -> T:
        """Await something, and stop."""
        try:
            return await done
        finally:
            self.stop()

    def __enter__(self) -> Typing:  # noqa: PYI034 - Self came with 3.11
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    async def __aenter__(self) -> Typing:  # noqa: PYI034
        self.start()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.stop()


class Draft:
    """What to say when, without saying it. `params` are those of matrix.send but for the message.

    With `again` the same answer may have been given before, wholly or in part: what of it is in the room is not
    known, so it is brought to its end by one edit, and nothing is shown in between.
    """

    def __init__(self, params: Params, *, pace: float, again: bool) -> None:
        self.text = ""
        self.delivery: Optional[Delivery] = None
        self._params = params
        self._pace = max(pace, PACE)
        self._again = again
        self._shown: Optional[str] = None  # as far as it is known
        self._next: Optional[float] = None
        self._typing_until = 0.0

    def add(self, text: str, now: float) -> Optional[tuple[str, Params]]:
        """More of the text; returns the call to make now, if there is one."""
        self.text += text
        if self._next is None:
            self._next = now + GATHER
        if now < self._next or not self.text.strip():
            return None
        self._next = now + self._pace
        if self.delivery is None:
            return self._first(self.text.rstrip() + MORE)
        if self._again:
            return None
        return self._edit(self.text.rstrip() + MORE, interim=True, wait_ms=0)

    def last(self) -> Optional[tuple[str, Params]]:
        """The call that makes it whole; None if it is. To be made again until then."""
        if not self.text.strip() and self.delivery is None:
            return None
        if self.delivery is None:
            self._shown = None if self._again else self.text
            return self._first(self.text[:_FIRST] if self._again else self.text, wait_ms=None)
        if self._shown == self.text:
            return None
        self._shown = self.text
        return self._edit(self.text, idempotency_key=f"{self._params['idempotency_key']}:last")

    def so_far(self) -> Optional[tuple[str, Params]]:
        """The call that shows what there is when there will be no more, for now."""
        if self.delivery is None or self._again:
            return None
        return self._edit(self.text.rstrip() + MORE, interim=True, wait_ms=0)

    def is_time_to_type(self, now: float) -> bool:
        """Whether to say again that it is being written."""
        if now < self._typing_until:
            return False
        self._typing_until = now + SHOWN_MS / 2000
        return True

    def _first(self, text: str, *, wait_ms: Optional[int] = 0) -> tuple[str, Params]:
        wait = {} if wait_ms is None else {"wait_ms": wait_ms}
        return "matrix.send", {**self._params, "message": text, **wait}

    def _edit(self, text: str, **more: Any) -> tuple[str, Params]:
        assert self.delivery is not None
        kept = ("room_id", "msgtype", "format", "thread")
        params = {name: self._params[name] for name in kept if name in self._params}
        return "matrix.edit", {**params, **about(self.delivery), "message": text, **more}


class _AnyAnswer:
    def __init__(self, draft: Draft) -> None:
        self._draft = draft

    @property
    def text(self) -> str:
        """What was written so far."""
        return self._draft.text

    @property
    def delivery(self) -> Optional[Delivery]:
        """The message, once there is one."""
        return self._draft.delivery


class Answer(_AnyAnswer):
    """An answer of a blocking agent; use it as a context manager.

    People see the first words after half a second, and what was added once a second at most; all of it when the block
    is left. If nothing was written there is no message. When the block is left by an error, what there is stays.
    """

    def __init__(self, agent: Sender, draft: Draft, room_id: str) -> None:
        super().__init__(draft)
        self._agent = agent
        self._typing = Typing(agent.post, room_id)

    def write(self, text: str) -> None:
        """Add to it. Mostly returns at once; raises AgentError when the bridge refuses the message."""
        now = self._agent.now()
        if self._draft.is_time_to_type(now):
            self._typing.start()
        self._show(self._draft.add(text, now))

    def _show(self, call: Optional[tuple[str, Params]]) -> None:
        if call is None:
            return
        method, params = call
        if method == "matrix.send":
            self._draft.delivery = self._agent.deliver(method, params)
            return
        try:
            self._agent.deliver(method, params, timeout=_INTERIM_TIMEOUT)
        except AgentError:
            pass  # the next edit has all of this, and the last one tells what is wrong

    def __enter__(self) -> Answer:  # noqa: PYI034 - Self came with 3.11
        if self._draft.is_time_to_type(self._agent.now()):
            self._typing.start()
        return self

    def __exit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        try:
            if kind is None:
                while (call := self._draft.last()) is not None:
                    delivery = self._agent.deliver(*call)
                    self._draft.delivery = self._draft.delivery or delivery
            elif issubclass(kind, Exception):
                self._show(self._draft.so_far())
        finally:
            self._typing.stop()


class AsyncAnswer(_AnyAnswer):
    """As `Answer`, with `async with` and `await`."""

    def __init__(self, agent: AsyncSender, draft: Draft, room_id: str) -> None:
        super().__init__(draft)
        self._agent = agent
        self._typing = Typing(agent.post, room_id)

    async def write(self, text: str) -> None:
        """As `Answer.write`."""
        now = self._agent.now()
        if self._draft.is_time_to_type(now):
            self._typing.start()
        await self._show(self._draft.add(text, now))

    async def _show(self, call: Optional[tuple[str, Params]]) -> None:
        if call is None:
            return
        method, params = call
        if method == "matrix.send":
            self._draft.delivery = await self._agent.deliver(method, params)
            return
        try:
            await self._agent.deliver(method, params, timeout=_INTERIM_TIMEOUT)
        except AgentError:
            pass  # as in `Answer`

    async def __aenter__(self) -> AsyncAnswer:  # noqa: PYI034
        if self._draft.is_time_to_type(self._agent.now()):
            self._typing.start()
        return self

    async def __aexit__(
        self, kind: Optional[type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        try:
            if kind is None:
                while (call := self._draft.last()) is not None:
                    delivery = await self._agent.deliver(*call)
                    self._draft.delivery = self._draft.delivery or delivery
            elif issubclass(kind, Exception):
                await self._show(self._draft.so_far())
        finally:
            self._typing.stop()
