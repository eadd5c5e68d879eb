"""Outbound Megolm: the key to what we say in a room, who has it, and when another one is due.

Before each message those who have the key are compared with those who may have it: whoever is new gets it, from that
message on; if somebody has it who may not, there is a new one. A device that cannot be reached does not keep the
others from getting it, and is tried again.
"""

from __future__ import annotations

import json
from collections import Counter, OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs
import trio
from mautrix.errors import MatrixError

from armorclaw.clock import Clock
from armorclaw.delivery.transport import Refused
from armorclaw.log import get_logger
from armorclaw.matrix.client import MatrixClient
from armorclaw.matrix.crypto.channels import BATCH, PASSPHRASE, Channels
from armorclaw.matrix.crypto.database import CryptoDatabase
from armorclaw.matrix.crypto.device_lists import DeviceLists
from armorclaw.matrix.crypto.olm import OutboundGroupSession
from armorclaw.matrix.crypto.policy import DevicePolicy, Trust, is_enough
from armorclaw.matrix.crypto.room_keys import ALGORITHM, VISIBLE, RoomKeys
from armorclaw.matrix.crypto.roster import Roster
from armorclaw.matrix.crypto.standing import Device, Standing

log = get_logger(__name__)

NO_CHANNEL = "m.no_olm"
_DOUBT = "?"  # stands where a code would: it may have the key, and is to be given it
AGAIN_MS = 10 * 60 * 1000
"""After this a device to which no channel could be made is tried again."""

SETTLINGS = 3
"""How often we look again if somebody leaves or comes while a key is shared, or while devices are asked for; in a
restless room it must end."""

AT_HAND = 64
"""Rooms whose key is kept unpacked."""

_REASONS = {
    "m.blacklisted": "the device is blacklisted",
    "m.unverified": "the device is not verified",
    NO_CHANNEL: "no one-time key of the device could be had",
}


@attrs.define
class _Outbound:
    """A room's key at hand. `settled`: for which state of the world all were found to have it, but those `again`."""

    session: OutboundGroupSession
    created_ms: int
    messages: int
    settled: tuple[int, str] | None = None
    again_ms: int | None = None


@attrs.frozen
class _Recipient:
    device_key: str
    withheld: str
    at_ms: int


class Sharing:
    """All rooms of one account. `counts` gets `withheld`: devices that get no key."""

    def __init__(
        self,
        client: MatrixClient,
        db: CryptoDatabase,
        *,
        channels: Channels,
        devices: DeviceLists,
        standing: Standing,
        roster: Roster,
        keys: RoomKeys,
        policy: DevicePolicy,
        clock: Clock,
        counts: Counter[str],
    ) -> None:
        self._client = client
        self._db = db
        self._channels = channels
        self._devices = devices
        self._standing = standing
        self._roster = roster
        self._keys = keys
        self._policy = policy
        self._clock = clock
        self._at_hand: OrderedDict[str, _Outbound] = OrderedDict()
        self._locks: dict[str, trio.Lock] = {}  # one for each room we ever spoke in
        # by room: to whom the key is on its way, and what is noted of them when it was sent
        self._on_its_way: dict[str, dict[tuple[str, str], str]] = {}
        self._counts = counts
        db.on_rollback.append(self._at_hand.clear)

    async def encrypt(self, room_id: str, type_: str, content: Mapping[str, Any]) -> dict[str, Any]:
        """The content of an m.room.encrypted, once everybody who may read it has the key.

        Raises MatrixError, Delayed where nobody can tell who is in the room, Refused for a room that wants what we
        cannot do.
        """
        async with self._locks.setdefault(room_id, trio.Lock()):
            outbound = self._find(room_id)
            for _ in range(SETTLINGS):
                if outbound is not None and self._is_settled(room_id, outbound):
                    break
                outbound = await self._settle(room_id)
            assert outbound is not None
            return self._encrypt(room_id, outbound, type_, content)

    def share_again(self, user_id: str, device_id: str) -> None:
        """The device may have lost what we sent it: give it the keys in use once more, with the next message."""
        place = (user_id, device_id)
        on_its_way = [outcomes for outcomes in self._on_its_way.values() if place in outcomes]
        for outcomes in on_its_way:
            outcomes[place] = _DOUBT
        sql = "UPDATE recipients SET withheld = ? WHERE user_id = ? AND device_id = ? AND withheld = ''"
        if self._db.run(sql, _DOUBT, user_id, device_id).rowcount or on_its_way:
            self._roster.touch(user_id)

    def serves(self, room_id: str, session_id: str, user_id: str, device_id: str) -> bool:
        """Whether this is the key in use in a room, and the device was given it, or may have been."""
        sql = (
            "SELECT 1 FROM outbound JOIN recipients USING (room_id) "
            "WHERE room_id = ? AND session_id = ? AND user_id = ? AND device_id = ? AND withheld IN ('', ?)"
        )
        return self._db.one(sql, room_id, session_id, user_id, device_id, _DOUBT) is not None

    def _encrypt(self, room_id: str, outbound: _Outbound, type_: str, content: Mapping[str, Any]) -> dict[str, Any]:
        session_id = outbound.session.id
        try:
            ciphertext = outbound.session.encrypt(
                json.dumps({"room_id": room_id, "type": type_, "content": content}, separators=(",", ":"))
            )
            outbound.messages += 1
            # before anybody can see it: the same step twice would show what two messages have in common
            self._db.run(
                "UPDATE outbound SET pickle = ?, messages = ? WHERE room_id = ? AND session_id = ?",
                outbound.session.pickle(PASSPHRASE),
                outbound.messages,
                room_id,
                session_id,
            )
        except BaseException:
            self._at_hand.pop(room_id, None)
            raise
        encrypted: dict[str, Any] = {
            "algorithm": ALGORITHM,
            "ciphertext": ciphertext,
            "session_id": session_id,
            "sender_key": self._channels.account.identity_key,
            "device_id": str(self._client.device_id),
        }
        if isinstance(relation := content.get("m.relates_to"), dict):
            encrypted["m.relates_to"] = {name: relation[name] for name in VISIBLE if name in relation}
        return encrypted

    def _find(self, room_id: str) -> _Outbound | None:
        found = self._at_hand.get(room_id)
        if found is None:
            row = self._db.one("SELECT pickle, created_ms, messages FROM outbound WHERE room_id = ?", room_id)
            if row is None:
                return None
            session = OutboundGroupSession.from_pickle(row["pickle"], PASSPHRASE)
            found = self._remember(room_id, _Outbound(session, row["created_ms"], row["messages"]))
        self._at_hand.move_to_end(room_id)
        return found

    def _remember(self, room_id: str, outbound: _Outbound) -> _Outbound:
        self._at_hand[room_id] = outbound
        if len(self._at_hand) > AT_HAND:
            self._at_hand.popitem(last=False)
        return outbound

    def _world(self, room_id: str) -> tuple[int, str]:
        return self._roster.version(room_id), self._policy.for_room(room_id)

    def _is_settled(self, room_id: str, outbound: _Outbound) -> bool:
        again = outbound.again_ms is not None and self._clock.now_ms() >= outbound.again_ms
        return outbound.settled == self._world(room_id) and not again and not self._is_used_up(room_id, outbound)

    def _is_used_up(self, room_id: str, outbound: _Outbound) -> bool:
        rules = self._roster.rules(room_id)
        age = self._clock.now_ms() - outbound.created_ms
        # a clock that was set back must not make a key last for ever
        return rules is None or outbound.messages >= rules.messages or not 0 <= age < rules.period_ms

    async def _settle(self, room_id: str) -> _Outbound:
        """Have everybody who may read the room have its key, and nobody else. Raises as `encrypt`."""
        readers, known = await self._readers(room_id), False
        for _ in range(SETTLINGS):
            asked = readers
            await self._devices.refresh(asked)
            readers = await self._readers(room_id)
            if known := readers == asked and not self._devices.are_due(readers):
                break
        # with no wait since the last look: what happens from here on makes another world of it
        world = self._world(room_id)
        wanted = await self._entitled(readers, world[1])
        outbound, having = self._find(room_id), self._recipients(room_id)
        if outbound is None or self._is_used_up(room_id, outbound) or _too_many(having, wanted):
            outbound, having = self._begin(room_id), {}
        now = self._clock.now_ms()
        missing = [device for device, code in wanted if not code and _lacks(having, device, now)]
        for begin in range(0, len(missing), BATCH):
            await self._share(room_id, outbound, missing[begin : begin + BATCH])
        refused = [(device, code) for device, code in wanted if code and _untold(having, device, code)]
        for begin in range(0, len(refused), BATCH):
            await self._withhold(room_id, outbound.session.id, refused[begin : begin + BATCH])
        outbound.settled, outbound.again_ms = world if known else None, self._next_try(room_id)
        return outbound

    async def _readers(self, room_id: str) -> list[str]:
        """Who may read the room when this returns. Raises as `encrypt`."""
        await self._roster.complete(room_id)
        rules = self._roster.rules(room_id)
        if rules is None or rules.algorithm != ALGORITHM:
            why = "it is encrypted in a way that is not known here"
            raise Refused(f"room_encrypted, unknown_algorithm: {why}", sure=False)
        return self._roster.readers(room_id)

    async def _entitled(self, readers: Iterable[str], policy: str) -> list[tuple[Device, str]]:
        """Every device of the readers but this one, and why it gets no key: '' if it gets it."""
        own = self._channels.account.identity_key
        found: list[tuple[Device, str]] = []
        for user in readers:
            devices = self._standing.devices(user)
            found += [(device, _refusal(device, policy)) for device in devices if device.key != own]
            await trio.lowlevel.checkpoint()
        return found

    def _recipients(self, room_id: str) -> dict[tuple[str, str], _Recipient]:
        rows = self._db.all("SELECT * FROM recipients WHERE room_id = ?", room_id)
        return {
            (row["user_id"], row["device_id"]): _Recipient(row["device_key"], row["withheld"], row["at_ms"])
            for row in rows
        }

    def _begin(self, room_id: str) -> _Outbound:
        session, account = OutboundGroupSession(), self._channels.account
        now = self._clock.now_ms()
        with self._db.transaction():
            self._db.run("DELETE FROM outbound WHERE room_id = ?", room_id)
            pickle = session.pickle(PASSPHRASE)
            self._db.run("INSERT INTO outbound VALUES (?, ?, ?, ?, 0)", room_id, session.id, pickle, now)
            owner = str(self._client.mxid)
            self._keys.add_own(room_id, session.session_key, account.identity_key, account.signing_key, owner)
        return self._remember(room_id, _Outbound(session, now, 0))

    async def _share(self, room_id: str, outbound: _Outbound, devices: Sequence[Device]) -> None:
        session = outbound.session
        content = {
            "algorithm": ALGORITHM,
            "room_id": room_id,
            "session_id": session.id,
            "session_key": session.session_key,
        }
        # before it is sent: whoever may have it counts as having it, should we never hear what became of it
        self._note(room_id, [(each, _DOUBT) for each in devices])
        outcomes = self._on_its_way[room_id] = {(each.user_id, each.device_id): "" for each in devices}
        try:
            without = await self._channels.send(devices, "m.room_key", content)
        finally:
            del self._on_its_way[room_id]
        for each in without:
            del outcomes[each.user_id, each.device_id]
        given = [each for each in devices if (each.user_id, each.device_id) in outcomes]
        self._note(room_id, [(each, outcomes[each.user_id, each.device_id]) for each in given])
        if without:
            names = [f"{each.user_id}/{each.device_id}" for each in without]
            log.warning("devices get no key: no channel to them", room=room_id, devices=names[:10], number=len(names))
            await self._withhold(room_id, session.id, [(each, NO_CHANNEL) for each in without])

    async def _withhold(self, room_id: str, session_id: str, refused: Sequence[tuple[Device, str]]) -> None:
        """Tell devices that they get no key. That they cannot be told keeps nobody from being written to."""
        told: dict[str, dict[str, Any]] = {}
        for device, code in refused:
            content = {
                "algorithm": ALGORITHM,
                "sender_key": self._channels.account.identity_key,
                "code": code,
                "reason": _REASONS[code],
            }
            if code != NO_CHANNEL:  # which is about all rooms, says the specification
                content |= {"room_id": room_id, "session_id": session_id}
            told.setdefault(device.user_id, {})[device.device_id] = content
        try:
            await self._channels.put("m.room_key.withheld", told)
        except MatrixError as error:
            log.warning("devices cannot be told that they get no key", room=room_id, why=str(error))
        self._counts["withheld"] += len(refused)
        self._note(room_id, refused)

    def _note(self, room_id: str, outcomes: Sequence[tuple[Device, str]]) -> None:
        now = self._clock.now_ms()
        with self._db.transaction():
            self._db.run_many(
                "INSERT INTO recipients VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET "
                "device_key = excluded.device_key, withheld = excluded.withheld, at_ms = excluded.at_ms",
                ((room_id, each.user_id, each.device_id, each.key, code, now) for each, code in outcomes),
            )

    def _next_try(self, room_id: str) -> int | None:
        sql = "SELECT min(at_ms) FROM recipients WHERE room_id = ? AND withheld = ?"
        row = self._db.one(sql, room_id, NO_CHANNEL)
        return None if row is None or row[0] is None else int(row[0]) + AGAIN_MS


def _refusal(device: Device, policy: str) -> str:
    if is_enough(device.trust, policy):
        return ""
    return "m.blacklisted" if device.trust is Trust.BLACKLISTED else "m.unverified"


def _too_many(having: Mapping[tuple[str, str], _Recipient], wanted: Iterable[tuple[Device, str]]) -> bool:
    """Whether somebody has the key who may not have it."""
    may = {(device.user_id, device.device_id): device.key for device, code in wanted if not code}
    return any(each.withheld in ("", _DOUBT) and may.get(place) != each.device_key for place, each in having.items())


def _lacks(having: Mapping[tuple[str, str], _Recipient], device: Device, now: int) -> bool:
    known = having.get((device.user_id, device.device_id))
    if known is None or known.withheld not in ("", NO_CHANNEL):
        return True
    return known.withheld == NO_CHANNEL and not known.at_ms <= now < known.at_ms + AGAIN_MS


def _untold(having: Mapping[tuple[str, str], _Recipient], device: Device, code: str) -> bool:
    known = having.get((device.user_id, device.device_id))
    return known is None or known.withheld != code
