"""A message, as a handler gets it, and what it may answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional

from armorclaw.agent.answers import PACE, Answer, AsyncAnswer, Typing
from armorclaw.agent.events import Delivery, Event
from armorclaw.agent.files import File, Path
from armorclaw.agent.rooms import AsyncRoom, Room
from armorclaw.agent.saying import AsyncSender, Sender


class _AnyMessage(Event):
    def _place(self, thread: bool) -> dict[str, Any]:
        """Where an answer goes: in the thread that this is in, or, if one is to be begun, in that."""
        root = self.thread or (self.event_id if thread else None) or None
        # where a thread begins, the first message in it answers nothing else
        return {"thread": root, "reply_to": None if root == self.event_id else self.event_id or None}


class Message(_AnyMessage):
    """An event that can be answered. Handlers of a blocking `Agent` get these."""

    def __init__(self, wire: dict[str, Any], sender: Sender) -> None:
        super().__init__(wire)
        self._agent = sender

    @property
    def room(self) -> Room:
        """The room it was said in; what is said there through this belongs to the message."""
        return Room(self._agent, self.room_id, self.keys, again=self.redelivered > 0)

    def reply(
        self,
        text: str = "",
        msgtype: str = "m.text",
        *,
        markdown: Optional[str] = None,
        thread: bool = False,
        mentions: Sequence[str] = (),
        content: Optional[dict[str, Any]] = None,
    ) -> Delivery:
        """Answer in the room, and in the thread if it was in one: `text` as it is, or `markdown`.

        `thread` begins one. Returns once the bridge holds the message safely, with its event id if already sent.
        Raises AgentError when the bridge refuses it.
        """
        more = self._place(thread)
        return self.room.send(text, msgtype, markdown=markdown, mentions=mentions, content=content, **more)

    def stream(
        self,
        msgtype: str = "m.text",
        *,
        markdown: bool = True,
        thread: bool = False,
        mentions: Sequence[str] = (),
        pace: float = PACE,
    ) -> Answer:
        """Answer by a message that people watch as it is written; see `Room.stream`."""
        return self.room.stream(msgtype, markdown=markdown, mentions=mentions, pace=pace, **self._place(thread))

    def react(self, key: str) -> Delivery:
        """React to it, with an emoji or a word."""
        return self.room.react(self.event_id, key)

    def download(self, to: Optional[Path] = None, *, part: str = "file") -> File:
        """The file that it is about: written to the path `to`, or else returned, up to 64 MiB; `part` may be
        "thumbnail"."""
        return self.room.download(self.event_id, to, part=part)

    def typing(self) -> Typing:
        """Show people that the agent is typing, for the length of a block."""
        return self.room.typing()

    def mark_read(self) -> None:
        """Show people that it is read, before it is acknowledged."""
        self.room.mark_read(self.event_id)

    def working(self) -> None:
        """Say that the handler is still at it: the time after which the event comes again begins anew.

        For what takes minutes (`redeliver_after_s` of the bridge, 15 minutes by default): call it now and then.
        """
        self._agent.working(self.key)


class AsyncMessage(_AnyMessage):
    """An event that can be answered. Handlers of an `AsyncAgent` get these."""

    def __init__(self, wire: dict[str, Any], sender: AsyncSender) -> None:
        super().__init__(wire)
        self._agent = sender

    @property
    def room(self) -> AsyncRoom:
        """As `Message.room`."""
        return AsyncRoom(self._agent, self.room_id, self.keys, again=self.redelivered > 0)

    async def reply(
        self,
        text: str = "",
        msgtype: str = "m.text",
        *,
        markdown: Optional[str] = None,
        thread: bool = False,
        mentions: Sequence[str] = (),
        content: Optional[dict[str, Any]] = None,
    ) -> Delivery:
        """As `Message.reply`."""
        more = self._place(thread)
        return await self.room.send(text, msgtype, markdown=markdown, mentions=mentions, content=content, **more)

    def stream(
        self,
        msgtype: str = "m.text",
        *,
        markdown: bool = True,
        thread: bool = False,
        mentions: Sequence[str] = (),
        pace: float = PACE,
    ) -> AsyncAnswer:
        """As `Message.stream`."""
        return self.room.stream(msgtype, markdown=markdown, mentions=mentions, pace=pace, **self._place(thread))

    async def react(self, key: str) -> Delivery:
        """As `Message.react`."""
        return await self.room.react(self.event_id, key)

    async def download(self, to: Optional[Path] = None, *, part: str = "file") -> File:
        """As `Message.download`."""
        return await self.room.download(self.event_id, to, part=part)

    def typing(self) -> Typing:
        """As `Message.typing`."""
        return self.room.typing()

    async def mark_read(self) -> None:
        """As `Message.mark_read`."""
        await self.room.mark_read(self.event_id)

    async def working(self) -> None:
        """As `Message.working`."""
        await self._agent.working(self.key)
