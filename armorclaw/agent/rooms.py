"""A room, as an agent acts in it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Generic, Optional, TypeVar, Union

from armorclaw.agent.answers import PACE, Answer, AsyncAnswer, Draft, Typing
from armorclaw.agent.events import Delivery, Keys
from armorclaw.agent.files import File, Path, Source
from armorclaw.agent.saying import AsyncSender, Params, Said, Sender, about, id_of, message_params

S = TypeVar("S", bound=Union[Sender, AsyncSender])


class _AnyRoom(Generic[S]):
    def __init__(self, agent: S, room_id: str, keys: Keys, *, again: bool = False) -> None:
        self.room_id = room_id
        self._agent = agent
        self._keys = keys
        self._again = again

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.room_id}>"

    def typing(self) -> Typing:
        """Show people that the agent is typing, for the length of a block: `with room.typing():`, or
        `async with`."""
        return Typing(self._agent.post, self.room_id)

    def _message(self, text: str, msgtype: str, key: Optional[str], more: dict[str, Any]) -> tuple[str, Params]:
        key = self._keys.next() if key is None else key
        return "matrix.send", message_params(self.room_id, text, msgtype, **more, key=key)

    def _edit(self, message: Said, text: str, msgtype: str, more: dict[str, Any]) -> tuple[str, Params]:
        key = self._keys.next("edit", id_of(message))
        return "matrix.edit", {**message_params(self.room_id, text, msgtype, **more, key=key), **about(message)}

    def _reaction(self, message: Said, emoji: str) -> tuple[str, Params]:
        key = self._keys.next("react", id_of(message), emoji)
        params = {"room_id": self.room_id, "key": emoji, **about(message), "idempotency_key": key}
        return "matrix.react", params

    def _redaction(self, message: Said, reason: Optional[str]) -> tuple[str, Params]:
        key = self._keys.next("redact", id_of(message))
        params = {"room_id": self.room_id, **about(message), "idempotency_key": key}
        return "matrix.redact", params if reason is None else {**params, "reason": reason}

    def _file(self, content: dict[str, Any], reply_to: Optional[str], thread: Optional[str]) -> tuple[str, Params]:
        more = {"content": content, "reply_to": reply_to, "thread": thread}
        body, msgtype = str(content.get("body", "")), str(content.get("msgtype", "m.file"))
        return self._message(body, msgtype, None, more)

    def _draft(self, msgtype: str, pace: float, markdown: bool, more: dict[str, Any]) -> Draft:
        params = message_params(self.room_id, "", msgtype, **more, key=self._keys.next())
        if markdown:
            params["format"] = "markdown"
        return Draft(params, pace=pace, again=self._again)


class Room(_AnyRoom[Sender]):
    """A room of a blocking agent: `msg.room`, or `agent.in_room(…)`. All raise AgentError when the bridge refuses.

    What is said through `msg.room` has the event and a number as idempotency key, so that a handler that runs again
    says nothing twice; through `agent.in_room` each call says something new.
    """

    def send(
        self,
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
        """Write to the room: `text` as it is, or `markdown`. What is too long for one message becomes several.

        `reply_to` and `thread` are event ids; that of a thread is its first event. `mentions` are user ids, or
        "@room". `content` adds members to the content of the Matrix event.
        """
        more: dict[str, Any] = {"reply_to": reply_to, "thread": thread, "mentions": mentions, "content": content}
        more["markdown"] = markdown
        return self._agent.deliver(*self._message(text, msgtype, idempotency_key, more))

    def edit(
        self,
        message: Said,
        text: str = "",
        msgtype: str = "m.text",
        *,
        markdown: Optional[str] = None,
        thread: Optional[str] = None,
        mentions: Sequence[str] = (),
    ) -> Delivery:
        """Make one of this agent's messages another: by what was returned when it was sent, or by its event id."""
        more = {"markdown": markdown, "thread": thread, "mentions": mentions}
        return self._agent.deliver(*self._edit(message, text, msgtype, more))

    def react(self, message: Said, key: str) -> Delivery:
        """React to a message, anybody's, with an emoji or a word. To take it back, `redact` what this returns."""
        return self._agent.deliver(*self._reaction(message, key))

    def redact(self, message: Said, reason: Optional[str] = None) -> Delivery:
        """Remove one of this agent's messages or reactions, for everybody and for good."""
        return self._agent.deliver(*self._redaction(message, reason))

    def send_file(
        self, source: Source, *, reply_to: Optional[str] = None, thread: Optional[str] = None, **more: Any
    ) -> Delivery:
        """Send a file: by its path, its bytes, or as an open file.

        More are `name`, `mimetype`, `kind` ("image", "video", "audio", "voice", "file"), `caption`, `width`,
        `height`, `duration_ms` and `waveform`, as of matrix.upload.
        """
        content = self._agent.upload(self.room_id, source, **more)
        return self._agent.deliver(*self._file(content, reply_to, thread))

    def download(self, event_id: str, to: Optional[Path] = None, *, part: str = "file") -> File:
        """The file that a message is about: written to the path `to`, or else returned, up to 64 MiB."""
        return self._agent.download(self.room_id, event_id, to, part=part)

    def mark_read(self, event_id: str) -> None:
        """Show people that everything up to an event is read. What is acknowledged is so by itself."""
        self._agent.call("matrix.read", room_id=self.room_id, event_id=event_id)

    def stream(
        self,
        msgtype: str = "m.text",
        *,
        markdown: bool = True,
        reply_to: Optional[str] = None,
        thread: Optional[str] = None,
        mentions: Sequence[str] = (),
        pace: float = PACE,
    ) -> Answer:
        """A message that people watch as it is written: `with room.stream() as answer: answer.write(…)`

        `pace` is how many seconds there are at least between two edits, and no less than 1.
        """
        more = {"reply_to": reply_to, "thread": thread, "mentions": mentions}
        return Answer(self._agent, self._draft(msgtype, pace, markdown, more), self.room_id)


class AsyncRoom(_AnyRoom[AsyncSender]):
    """As `Room`, awaited."""

    async def send(
        self,
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
        """As `Room.send`."""
        more: dict[str, Any] = {"reply_to": reply_to, "thread": thread, "mentions": mentions, "content": content}
        more["markdown"] = markdown
        return await self._agent.deliver(*self._message(text, msgtype, idempotency_key, more))

    async def edit(
        self,
        message: Said,
        text: str = "",
        msgtype: str = "m.text",
        *,
        markdown: Optional[str] = None,
        thread: Optional[str] = None,
        mentions: Sequence[str] = (),
    ) -> Delivery:
        """As `Room.edit`."""
        more = {"markdown": markdown, "thread": thread, "mentions": mentions}
        return await self._agent.deliver(*self._edit(message, text, msgtype, more))

    async def react(self, message: Said, key: str) -> Delivery:
        """As `Room.react`."""
        return await self._agent.deliver(*self._reaction(message, key))

    async def redact(self, message: Said, reason: Optional[str] = None) -> Delivery:
        """As `Room.redact`."""
        return await self._agent.deliver(*self._redaction(message, reason))

    async def send_file(
        self, source: Source, *, reply_to: Optional[str] = None, thread: Optional[str] = None, **more: Any
    ) -> Delivery:
        """As `Room.send_file`."""
        content = await self._agent.upload(self.room_id, source, **more)
        return await self._agent.deliver(*self._file(content, reply_to, thread))

    async def download(self, event_id: str, to: Optional[Path] = None, *, part: str = "file") -> File:
        """As `Room.download`."""
        return await self._agent.download(self.room_id, event_id, to, part=part)

    async def mark_read(self, event_id: str) -> None:
        """As `Room.mark_read`."""
        await self._agent.call("matrix.read", room_id=self.room_id, event_id=event_id)

    def stream(
        self,
        msgtype: str = "m.text",
        *,
        markdown: bool = True,
        reply_to: Optional[str] = None,
        thread: Optional[str] = None,
        mentions: Sequence[str] = (),
        pace: float = PACE,
    ) -> AsyncAnswer:
        """As `Room.stream`: `async with room.stream() as answer: await answer.write(…)`"""
        more = {"reply_to": reply_to, "thread": thread, "mentions": mentions}
        return AsyncAnswer(self._agent, self._draft(msgtype, pace, markdown, more), self.room_id)
