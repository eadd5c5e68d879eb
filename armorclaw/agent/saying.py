"""How an agent says something in a room: the parameters of the bridge's methods, and who makes the calls."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Optional, Protocol, Union

from armorclaw.agent.events import Delivery, Key
from armorclaw.agent.files import File, Path, Source
from armorclaw.agent.session import CALL_TIMEOUT

Params = dict[str, Any]

Said = Union[str, Delivery]
"""A message: its event id, or what was returned when it was sent."""


class Sender(Protocol):
    """An agent whose calls block."""

    def deliver(self, method: str, params: Params, *, timeout: float = CALL_TIMEOUT) -> Delivery: ...
    def call(self, method: str, /, **params: Any) -> Any: ...
    def upload(self, room_id: str, source: Source, **more: Any) -> dict[str, Any]: ...
    def download(self, room_id: str, event_id: str, to: Optional[Path] = None, *, part: str = "file") -> File: ...
    def post(self, method: str, params: Params) -> None: ...
    def working(self, key: Key) -> None: ...
    def now(self) -> float: ...


class AsyncSender(Protocol):
    """One whose calls are awaited."""

    async def deliver(self, method: str, params: Params, *, timeout: float = CALL_TIMEOUT) -> Delivery: ...
    async def call(self, method: str, /, **params: Any) -> Any: ...
    async def upload(self, room_id: str, source: Source, **more: Any) -> dict[str, Any]: ...
    async def download(
        self, room_id: str, event_id: str, to: Optional[Path] = None, *, part: str = "file"
    ) -> File: ...
    def post(self, method: str, params: Params) -> None: ...
    async def working(self, key: Key) -> None: ...
    def now(self) -> float: ...


def message_params(
    room_id: str,
    text: str = "",
    msgtype: str = "m.text",
    *,
    markdown: Optional[str] = None,
    content: Optional[dict[str, Any]] = None,
    reply_to: Optional[str] = None,
    thread: Optional[str] = None,
    mentions: Sequence[str] = (),
    key: Optional[str] = None,
) -> Params:
    """Those of matrix.send; what is not given is left out. Raises ValueError for two texts."""
    if markdown is not None and text:
        raise ValueError("a message is either text or markdown")
    optional = {
        "format": None if markdown is None else "markdown",
        "content": content or None,
        "reply_to": reply_to,
        "thread": thread,
        "mentions": list(mentions) or None,
        "idempotency_key": key,
    }
    params = {"room_id": room_id, "message": text if markdown is None else markdown, "msgtype": msgtype}
    return {**params, **{name: value for name, value in optional.items() if value is not None}}


def about(message: Said) -> Params:
    """The parameter that names a message. One that has no event id yet goes by its delivery."""
    if isinstance(message, str):
        return {"event_id": message}
    if message.event_id is not None:
        return {"event_id": message.event_id}
    return {"delivery_id": message.delivery_id}


def id_of(message: Said) -> str:
    """The same for a message however often it is said."""
    return message if isinstance(message, str) else str(message.delivery_id)
