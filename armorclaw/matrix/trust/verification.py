"""One verification with short authentication strings, without I/O: messages in, messages out, and what was proven.

It begins when both sides know that it is wanted: with a request (`m.key.verification.request`, sent or received by
who drives this), or with a start that came without one, as old clients send it. Anything that does not fit ends it
with a cancel that says why; what merely comes twice changes nothing. Nothing is proven before a person on our side
has said that both show the same.
"""

from __future__ import annotations

import enum
import secrets
from collections import deque
from collections.abc import Mapping
from typing import Any

import attrs

from armorclaw.matrix.trust.sas import (
    MAC_V1,
    MAC_V2,
    End,
    KeyAgreement,
    SasError,
    SharedSecret,
    ShortAuth,
    commitment,
)

METHOD = "m.sas.v1"
PREFIX = "m.key.verification."

_AGREEMENT = "curve25519-hkdf-sha256"
_HASH = "sha256"
_STRINGS = ("decimal", "emoji")  # the one that every client must have comes first
_MACS = (MAC_V2, MAC_V1)
_KEYS_LIMIT = 100  # keys one side may want proven; people have a dozen devices


class Phase(enum.StrEnum):
    """How far a verification is. `done` and `cancelled` are the ends."""

    REQUESTED = "requested"  # one side asks, the other has not answered
    READY = "ready"  # both want it
    STARTED = "started"  # one side has proposed how
    ACCEPTED = "accepted"  # agreed how; keys are exchanged
    SHOWN = "shown"  # both people can compare
    CONFIRMED = "confirmed"  # ours says it is the same; the other side has not proven its keys yet
    DONE = "done"
    CANCELLED = "cancelled"

    @property
    def over(self) -> bool:
        return self in (Phase.DONE, Phase.CANCELLED)


@attrs.frozen
class Message:
    """One to send: an event type and a content that names the verification it belongs to."""

    type: str
    content: dict[str, Any]


class _Stop(Exception):  # noqa: N818 - an end that is said, not a failure
    """This verification ends, for the reason that its cancel message gives."""

    def __init__(self, code: str, reason: str) -> None:
        self.code = code
        self.reason = reason


class Verification:
    """One side of one verification.

    `transaction_id` is that of the request to a device, or the event id of the one in a room (`in_room`). `known` has
    the keys of the other side by id, "ed25519:DEVICE" and "ed25519:MASTER KEY"; whoever drives this keeps it full
    before each `receive`. `own_keys` are those that we want proven, likewise.
    """

    def __init__(
        self,
        transaction_id: str,
        own: End,
        their_user: str,
        *,
        own_keys: Mapping[str, str],
        their_device: str | None = None,
        in_room: bool = False,
        we_asked: bool = False,
    ) -> None:
        self.transaction_id = transaction_id
        self.own = own
        self.their_user = their_user
        self.their_device = their_device
        self.in_room = in_room
        self.we_asked = we_asked
        self.own_keys = dict(own_keys)
        self.known: dict[str, str] = {}
        self.phase = Phase.REQUESTED
        self.shown: ShortAuth | None = None
        self.proven: dict[str, str] = {}
        """Keys of the other side that are theirs beyond doubt, by id; empty before the end."""
        self.code = ""
        self.reason = ""
        self.pending: deque[tuple[str, Message]] = deque()
        """What is to be sent, in order, each with the transaction id of its sending. Whoever has sent it takes it
        away."""
        self._wanted = we_asked  # by a person on our side
        self._we_started = False
        self._handled: dict[str, Mapping[str, Any]] = {}
        self._agreement = KeyAgreement()
        self._start: dict[str, Any] = {}
        self._commitment = ""
        self._mac = MAC_V2
        self._secret: SharedSecret | None = None
        self._theirs_proven: dict[str, str] | None = None

    @property
    def asks_us(self) -> bool:
        """Whether it waits for somebody on our side to say that it is wanted."""
        return not self._wanted and self.phase in (Phase.REQUESTED, Phase.STARTED)

    # -- what our side wants

    def accept(self) -> None:
        """A person on our side wants it."""
        if self._wanted or self.phase.over:
            return
        self._wanted = True
        if self.phase is Phase.STARTED:
            self._guard(self._agree_how)
        else:
            self._send("ready", from_device=self.own.device_id, methods=[METHOD])
            self.phase = Phase.READY

    def start(self) -> None:
        """Propose the one method there is: once both are ready, or at once to a device that knows no requests."""
        if self.phase is not Phase.READY and not (self.we_asked and self.phase is Phase.REQUESTED):
            return
        self._we_started = True
        self._start = self._send(
            "start",
            from_device=self.own.device_id,
            method=METHOD,
            key_agreement_protocols=[_AGREEMENT],
            hashes=[_HASH],
            message_authentication_codes=list(_MACS),
            short_authentication_string=list(_STRINGS),
        )
        self.phase = Phase.STARTED

    def confirm(self, same: bool) -> None:
        """What the person says after comparing. Only once there is something to compare."""
        if self.phase is not Phase.SHOWN:
            return
        if not same:
            self.cancel("m.mismatched_sas", "the short authentication strings are not the same")
            return
        assert self._secret is not None
        macs = self._secret.macs(self._mac, self.own_keys, self.own, self._them(), self.transaction_id)
        self._send("mac", **macs)
        self.phase = Phase.CONFIRMED
        self._finish()

    def cancel(self, code: str = "m.user", reason: str = "the person here cancelled it") -> None:
        """End it, and tell the other side. Does nothing when it has ended."""
        if self.phase.over:
            return
        self._send("cancel", code=code, reason=reason)
        self._end(code, reason)

    def expire(self) -> None:
        """It has taken too long."""
        self.cancel("m.timeout", "it took too long")

    # -- what the other side says

    def receive(self, type_: str, content: Mapping[str, Any]) -> None:
        """An event of the other user that names this verification; never raises for what is in it."""
        kind = type_.removeprefix(PREFIX)
        if self.phase.over or kind not in _HANDLERS:
            return
        if self.in_room and not self.we_asked and self.phase is Phase.REQUESTED and kind != "cancel":
            # everybody in the room sees it: this is for another device of ours, which has accepted
            self._end("m.accepted", "another device has accepted")
            return
        known = self._handled.get(kind)
        if known is not None and known == content:
            return  # the same again: servers repeat themselves
        if known is not None and kind in ("ready", "start") and content.get("from_device") != self.their_device:
            return  # another device of theirs, too late
        if kind == "start" and self._we_started and self.phase is not Phase.STARTED:
            return  # crossed ours, which was chosen
        handler = _HANDLERS[kind]

        def handle() -> None:
            if known is not None:
                raise _Stop("m.unexpected_message", f"a second {kind} that differs")
            handler(self, content)
            self._handled[kind] = content

        self._guard(handle)

    def _on_ready(self, content: Mapping[str, Any]) -> None:
        if not self.we_asked or self.phase is not Phase.REQUESTED:
            raise _unexpected("ready")
        if METHOD not in _texts(content, "methods"):
            raise _Stop("m.unknown_method", f"the other side has no {METHOD}")
        self._meet(content)
        self.phase = Phase.READY
        self.start()  # there is no other method to choose

    def _on_start(self, content: Mapping[str, Any]) -> None:
        unasked = self.phase is Phase.REQUESTED and not self.we_asked and not self.in_room
        crossed = self.phase is Phase.STARTED and self._we_started
        if self.phase is not Phase.READY and not unasked and not crossed:
            raise _unexpected("start")
        self._meet(content)
        if _text(content, "method") != METHOD:
            code = "m.unexpected_message" if crossed else "m.unknown_method"
            raise _Stop(code, f"only {METHOD} is known here")
        if crossed and (self.own.user_id, self.own.device_id) < (self.their_user, self.their_device):
            return  # ours is the one that counts, as both sides know
        macs = _texts(content, "message_authentication_codes")
        usable = (
            _AGREEMENT in _texts(content, "key_agreement_protocols")
            and _HASH in _texts(content, "hashes")
            and any(mac in macs for mac in _MACS)
            and any(each in _texts(content, "short_authentication_string") for each in _STRINGS)
        )
        if not usable:
            raise _Stop("m.unknown_method", "no common way to verify")
        self._mac = next(mac for mac in _MACS if mac in macs)
        self._we_started = False
        self._start = dict(content)
        self.phase = Phase.STARTED
        if self._wanted:
            self._agree_how()

    def _agree_how(self) -> None:
        offered = _texts(self._start, "short_authentication_string")
        self._send(
            "accept",
            key_agreement_protocol=_AGREEMENT,
            hash=_HASH,
            message_authentication_code=self._mac,
            short_authentication_string=[each for each in _STRINGS if each in offered],
            commitment=commitment(self._agreement.public_key, self._start),
        )
        self.phase = Phase.ACCEPTED

    def _on_accept(self, content: Mapping[str, Any]) -> None:
        if not self._we_started or self.phase is not Phase.STARTED:
            raise _unexpected("accept")
        self._mac = _text(content, "message_authentication_code")
        usable = (
            _text(content, "key_agreement_protocol") == _AGREEMENT
            and _text(content, "hash") == _HASH
            and self._mac in _MACS
            and any(each in _texts(content, "short_authentication_string") for each in _STRINGS)
        )
        if not usable:
            raise _Stop("m.unknown_method", "what was chosen was not offered")
        self._commitment = _text(content, "commitment")
        self.phase = Phase.ACCEPTED
        self._send("key", key=self._agreement.public_key)

    def _on_key(self, content: Mapping[str, Any]) -> None:
        if self.phase is not Phase.ACCEPTED:
            raise _unexpected("key")
        key = _text(content, "key")
        if self._we_started and commitment(key, self._start) != self._commitment:
            raise _Stop("m.mismatched_commitment", "the key is not the one that was committed to")
        self._secret = self._agreement.agree(key)
        self.shown = self._secret.short_auth(self.own, self._them(), self.transaction_id, we_started=self._we_started)
        if not self._we_started:
            self._send("key", key=self._agreement.public_key)
        self.phase = Phase.SHOWN

    def _on_mac(self, content: Mapping[str, Any]) -> None:
        if self.phase not in (Phase.SHOWN, Phase.CONFIRMED):
            raise _unexpected("mac")
        assert self._secret is not None
        said, listed = content.get("mac"), _text(content, "keys")
        if not isinstance(said, dict) or not all(isinstance(each, str) for each in said.values()):
            raise _Stop("m.invalid_message", "mac is not usable")
        if len(said) > _KEYS_LIMIT:
            raise _Stop("m.invalid_message", "more keys than anybody has")
        proven = self._secret.proves(self._mac, said, listed, self.known, self._them(), self.own, self.transaction_id)
        if not proven:  # nothing that we know, or something else than we know
            raise _Stop("m.key_mismatch", "the keys are not those that the homeserver gave")
        self._theirs_proven = proven
        self._finish()

    def _on_done(self, content: Mapping[str, Any]) -> None:
        if self.phase not in (Phase.CONFIRMED, Phase.SHOWN):
            raise _unexpected("done")

    def _on_cancel(self, content: Mapping[str, Any]) -> None:
        code, reason = content.get("code"), content.get("reason")
        self._end(_printable(code) or "m.user", _printable(reason) or "the other side cancelled it")

    # -- in common

    def _meet(self, content: Mapping[str, Any]) -> None:
        """The device of the other side shows itself. Raises _Stop if it is not the one that this is with."""
        device = _text(content, "from_device")
        if self.their_device not in (None, device):
            raise _Stop("m.key_mismatch", "another device answers")
        if (self.their_user, device) == (self.own.user_id, self.own.device_id):
            raise _Stop("m.invalid_message", "it names this very device")
        self.their_device = device

    def _them(self) -> End:
        assert self.their_device is not None
        return End(self.their_user, self.their_device)

    def _finish(self) -> None:
        if self.phase is Phase.CONFIRMED and self._theirs_proven is not None:
            self.proven = self._theirs_proven
            self._send("done")
            self.phase = Phase.DONE

    def _guard(self, work: Any) -> None:
        try:
            work()
        except _Stop as stop:
            self.cancel(stop.code, stop.reason)
        except SasError as error:
            self.cancel("m.invalid_message", str(error))

    def _send(self, kind: str, **content: Any) -> dict[str, Any]:
        if self.in_room:
            content["m.relates_to"] = {"rel_type": "m.reference", "event_id": self.transaction_id}
        else:
            content["transaction_id"] = self.transaction_id
        self.pending.append((secrets.token_hex(16), Message(PREFIX + kind, content)))
        return content

    def _end(self, code: str, reason: str) -> None:
        self.phase, self.code, self.reason = Phase.CANCELLED, code, reason


_HANDLERS = {
    "ready": Verification._on_ready,
    "start": Verification._on_start,
    "accept": Verification._on_accept,
    "key": Verification._on_key,
    "mac": Verification._on_mac,
    "done": Verification._on_done,
    "cancel": Verification._on_cancel,
}


def _unexpected(kind: str) -> _Stop:
    return _Stop("m.unexpected_message", f"a {kind} came out of turn")


def _text(content: Mapping[str, Any], name: str) -> str:
    value = content.get(name)
    if not isinstance(value, str) or not value:
        raise _Stop("m.invalid_message", f"{name} is missing")
    return value


def _texts(content: Mapping[str, Any], name: str) -> list[str]:
    value = content.get(name)
    if not isinstance(value, list) or not all(isinstance(each, str) for each in value):
        raise _Stop("m.invalid_message", f"{name} is missing")
    return value


def _printable(value: object) -> str:
    return "".join(c if c.isprintable() else " " for c in value[:200]) if isinstance(value, str) else ""
