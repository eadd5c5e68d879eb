"""What happened in a room, as a handler gets it, and what it may answer."""

from __future__ import annotations

from typing import Any, NamedTuple, Optional, Protocol

Key = tuple[int, str]
"""An event: its place in the journal, and its id, in case the journal was begun anew."""


class Delivery(NamedTuple):
    """What became of a message so far. `status` is `sent` (then `event_id` is set) or `queued`: it will be sent."""

    status: str
    event_id: Optional[str]
    delivery_id: Any
    room_id: str

    @classmethod
    def from_result(cls, result: Any) -> Delivery:
        result = result if isinstance(result, dict) else {}
        return cls(
            str(result.get("status", "")),
            result.get("event_id"),
            result.get("delivery_id"),
            str(result.get("room_id", "")),
        )


class Receipt(NamedTuple):
    """What has become of a message that was sent before; handlers of `on_delivery` get it.

    `state` is `sent` (it has its `event_id`), `delivered` (it is in the room), `read` (by `by`), `failed` (`reason`
    says why, `retryable` whether certainly nobody has seen it), `cancelled`, or `unknown` (an attempt may have
    arrived; the bridge finds out). `at_ms` is when, in milliseconds since the epoch. `idempotency_key` is the one it
    was sent with, if any.
    """

    delivery_id: str
    state: str
    room_id: str
    event_id: Optional[str]
    reason: Optional[str]
    retryable: bool
    idempotency_key: Optional[str]
    by: Optional[str]
    at_ms: int

    @classmethod
    def of(cls, event: Event) -> Receipt:
        """From an event of type `delivery`."""
        told = event.content
        return cls(
            str(told.get("delivery_id", "")),
            str(told.get("state", "")),
            str(told.get("room_id") or ""),
            told.get("event_id"),
            told.get("reason"),
            told.get("retryable") is True,
            told.get("idempotency_key"),
            told.get("by"),
            int(told.get("at_ms") or event.at_ms),
        )


class Event:
    """An event the bridge pushed.

    `type` is a Matrix event type (`m.room.message`) or one of the bridge's own; `content` its content as Matrix has
    it. `at_ms` is when it happened, in milliseconds since the epoch. `redelivered` says how many times it was handed
    out before without being acknowledged: 0 at first. `room_id`, `sender`, `event_id` and `severity` (info, warning,
    error, critical) are empty where an event has none. `erased` says that its content was deleted since.
    """

    def __init__(self, wire: dict[str, Any]) -> None:
        self.seq: int = wire["seq"]
        self.id = str(wire.get("id", ""))
        self.type = str(wire.get("type", ""))
        self.at_ms = int(wire.get("at_ms", 0))
        self.room_id = str(wire.get("room_id") or "")
        self.sender = str(wire.get("sender") or "")
        self.event_id = str(wire.get("event_id") or "")
        self.severity = str(wire.get("severity") or "")
        self.erased = wire.get("erased") is True
        content = wire.get("content")
        self.content: dict[str, Any] = content if isinstance(content, dict) else {}
        self.redelivered = int(wire.get("redelivered", 0))
        self._replies = 0

    @property
    def key(self) -> Key:
        """What tells this event from any other: its place in the bridge's journal, and its id there."""
        return self.seq, self.id

    @property
    def body(self) -> str:
        """The text of a message; empty when it has none."""
        body = self.content.get("body")
        return body if isinstance(body, str) else ""

    @property
    def msgtype(self) -> str:
        """`m.text`, `m.image` and so on; empty for what is no message."""
        msgtype = self.content.get("msgtype")
        return msgtype if isinstance(msgtype, str) else ""

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.type} {self.event_id or self.id} in {self.room_id or 'no room'}>"

    def next_reply(self, text: str, msgtype: str) -> dict[str, Any]:
        """The parameters of matrix.send for one more reply to this event.

        The idempotency key is the event and the number of the reply, so a handler that runs again, because the
        event came again, makes no second visible answer. A reply to a message in a thread stays in the thread.
        """
        self._replies += 1
        relation: dict[str, Any] = {}
        source = self.content.get("m.relates_to")
        if isinstance(source, dict) and source.get("rel_type") == "m.thread":
            relation = {"rel_type": "m.thread", "event_id": source.get("event_id"), "is_falling_back": False}
        if self.event_id:
            relation["m.in_reply_to"] = {"event_id": self.event_id}
        return {
            "room_id": self.room_id,
            "message": text,
            "msgtype": msgtype,
            "content": {"m.relates_to": relation} if relation else {},
            "idempotency_key": f"{self.event_id or self.id}:{self._replies}",
        }


class Sender(Protocol):
    """What a message needs in order to answer: the agent that received it."""

    def send_params(self, params: dict[str, Any]) -> Delivery: ...
    def working(self, key: Key) -> None: ...


class AsyncSender(Protocol):
    async def send_params(self, params: dict[str, Any]) -> Delivery: ...
    async def working(self, key: Key) -> None: ...


class Message(Event):
    """An event that can be answered. Handlers of a blocking `Agent` get these."""

    def __init__(self, wire: dict[str, Any], sender: Sender) -> None:
        super().__init__(wire)
        self._agent = sender

    def reply(self, text: str, msgtype: str = "m.text") -> Delivery:
        """Answer in the room. Returns once the bridge holds the message safely, with its event id if already sent.

        Raises AgentError when the bridge refuses it.
        """
        return self._agent.send_params(self.next_reply(text, msgtype))

    def working(self) -> None:
        """Say that the handler is still at it: the time after which the event comes again begins anew.

        For what takes minutes (`redeliver_after_s` of the bridge, 15 minutes by default): call it now and then.
        """
        self._agent.working(self.key)


class AsyncMessage(Event):
    """An event that can be answered. Handlers of an `AsyncAgent` get these."""

    def __init__(self, wire: dict[str, Any], sender: AsyncSender) -> None:
        super().__init__(wire)
        self._agent = sender

    async def reply(self, text: str, msgtype: str = "m.text") -> Delivery:
        """As `Message.reply`."""
        return await self._agent.send_params(self.next_reply(text, msgtype))

    async def working(self) -> None:
        """As `Message.working`."""
        await self._agent.working(self.key)
