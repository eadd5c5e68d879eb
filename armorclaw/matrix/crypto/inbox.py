"""To-device messages: each is taken in once, whole, and without the network."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import attrs
import trio

from armorclaw.clock import Clock
from armorclaw.log import get_logger
from armorclaw.matrix.answer import Raw, is_id
from armorclaw.matrix.crypto.channels import Channels, Letter, WedgedError
from armorclaw.matrix.crypto.database import CryptoDatabase
from armorclaw.matrix.crypto.device_lists import DeviceLists
from armorclaw.matrix.crypto.olm import OlmError
from armorclaw.matrix.crypto.requests import KeyRequests
from armorclaw.matrix.crypto.room_keys import RoomKeys
from armorclaw.matrix.crypto.sharing import Sharing
from armorclaw.matrix.crypto.standing import Standing
from armorclaw.matrix.crypto.upkeep import Upkeep

log = get_logger(__name__)

_REQUEST = "m.room_key_request"
_VERIFICATION = "m.key.verification."
_SECRET = "m.secret."  # noqa: S105
_TURN = 20  # messages handled before other tasks have their turn


class Listener(Protocol):
    """Who hears of what came, after it is written down. As `Encryption` says."""

    on_keys: Callable[[Sequence[tuple[str, str]]], object]
    on_verification: Callable[[str, str, dict[str, Any], bool], object]
    on_secret: Callable[[str, str, dict[str, Any], str], object]


@attrs.define
class _News:
    """What messages brought: `keys` by room and session, and `calls` to make of the rest."""

    keys: list[tuple[str, str]] = attrs.field(factory=list)
    calls: list[Callable[[], object]] = attrs.field(factory=list)


class Inbox:
    """One device's. `counts` gets `keys_received` and `messages_refused`."""

    def __init__(
        self,
        account: str,
        db: CryptoDatabase,
        *,
        channels: Channels,
        devices: DeviceLists,
        standing: Standing,
        keys: RoomKeys,
        sharing: Sharing,
        requests: KeyRequests,
        upkeep: Upkeep,
        clock: Clock,
        counts: Counter[str],
        listener: Listener,
    ) -> None:
        self._account = account
        self._db = db
        self._channels = channels
        self._devices = devices
        self._standing = standing
        self._keys = keys
        self._sharing = sharing
        self._requests = requests
        self._upkeep = upkeep
        self._clock = clock
        self._counts = counts
        self._listener = listener

    async def take_in(self, messages: Sequence[Raw]) -> set[str]:
        """Take in messages in order; the same again are passed over.

        Returns who brought keys and has devices that are not known as they are now. Raises what the file raises.
        """
        news, strangers = _News(), set()
        try:
            for number, raw in enumerate(messages, 1):
                brought = await self.take_in_one(raw)
                news.keys += brought.keys
                news.calls += brought.calls
                if brought.keys and self._devices.is_pending(raw["sender"]):
                    strangers.add(raw["sender"])
                if number % _TURN == 0:
                    await trio.lowlevel.checkpoint()
        finally:  # what is written down was seen, and does not come again
            if news.keys:
                self._listener.on_keys(news.keys)
            for call in news.calls:
                call()
        return strangers

    async def take_in_one(self, raw: Raw) -> _News:
        """Whatever it changes, and that it was seen, is written down together or not at all; nothing here waits."""
        mark, news = _hash(raw), _News()
        with self._db.transaction():
            if raw.get("type") == _REQUEST:  # may be said again in the same words, and is asked twice without harm
                await self._handle(raw, news)
            elif self._db.one("SELECT 1 FROM seen WHERE hash = ?", mark) is None:
                self._db.run("INSERT INTO seen VALUES (?, ?)", mark, self._clock.now_ms())
                await self._handle(raw, news)
        return news

    async def _handle(self, raw: Raw, news: _News) -> None:
        type_, sender, content = raw.get("type"), raw.get("sender"), raw.get("content")
        if not (is_id(type_) and is_id(sender) and isinstance(content, dict)):
            self._counts["messages_refused"] += 1
        elif type_ == "m.room.encrypted":
            await self._open(sender, content, news)
        elif type_ == _REQUEST:
            news.calls.append(lambda: self._requests.asked(sender, content))
        elif type_ in ("m.room_key.withheld", "org.matrix.room_key.withheld"):
            self._keys.withhold(sender, content)
            if content.get("code") == "m.no_olm" and is_id(key := content.get("sender_key")):
                self._upkeep.repair(sender, key)
        elif type_.startswith(_VERIFICATION):
            news.calls.append(lambda: self._listener.on_verification(type_, sender, dict(content), False))
        elif type_.startswith(_SECRET):
            news.calls.append(lambda: self._listener.on_secret(type_, sender, dict(content), ""))

    async def _open(self, sender: str, content: Mapping[str, Any], news: _News) -> None:
        try:
            letter = await self._channels.open(sender, content)
            key = self._read(letter, news)
        except OlmError as error:
            self._counts["messages_refused"] += 1
            log.warning("a message of a device is refused", account=self._account, sender=sender, why=str(error))
            if isinstance(error, WedgedError):
                self._upkeep.repair(sender, str(content.get("sender_key")))
            return
        if key is not None:
            self._counts["keys_received"] += 1
            news.keys.append(key)

    def _read(self, letter: Letter, news: _News) -> tuple[str, str] | None:
        """The key in a letter, if it brings one. Raises OlmError."""
        device = self._standing.device_of_key(letter.sender, letter.sender_key)
        if device is not None and device.signing_key != letter.signing_key:
            raise OlmError("it names another key than its device has")
        self._devices.follow([letter.sender])  # what it brings is judged by who its device is
        type_, sender, content = letter.type, letter.sender, dict(letter.content)
        if type_ == "m.room_key":
            return self._keys.receive(letter)
        if type_ == "m.forwarded_room_key":
            return self._requests.accept(letter)
        if type_ == "m.dummy" and device is not None:
            self._sharing.share_again(sender, device.device_id)  # it could not read something of ours
        elif type_.startswith(_VERIFICATION):
            news.calls.append(lambda: self._listener.on_verification(type_, sender, content, True))
        elif type_.startswith(_SECRET):
            news.calls.append(lambda: self._listener.on_secret(type_, sender, content, letter.sender_key))
        return None


def _hash(raw: Raw) -> bytes:
    text = json.dumps(raw, sort_keys=True)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
