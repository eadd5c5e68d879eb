"""The encryption of one account: what a session, the sync and the outbox see of it.

Everything that comes is taken in without the network, in transactions that nothing can cut in two; what needs the
network is done by `run`, or before a message is sent.
"""

from __future__ import annotations

import json
from collections import Counter, OrderedDict
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio
from mautrix.errors import MatrixError
from mautrix.types import DeviceID

from armorclaw.clock import Surroundings
from armorclaw.errors import one_error
from armorclaw.log import get_logger
from armorclaw.matrix.answer import Answer, Raw, is_id
from armorclaw.matrix.client import MatrixClient
from armorclaw.matrix.crypto.channels import PASSPHRASE, Channels
from armorclaw.matrix.crypto.database import CryptoDatabase
from armorclaw.matrix.crypto.device_lists import DeviceLists
from armorclaw.matrix.crypto.failures import KeysLost, Undecryptable
from armorclaw.matrix.crypto.inbox import Inbox
from armorclaw.matrix.crypto.machine import Machine
from armorclaw.matrix.crypto.policy import DevicePolicy, Trust, is_enough
from armorclaw.matrix.crypto.pruning import Pruning
from armorclaw.matrix.crypto.publishing import Publisher
from armorclaw.matrix.crypto.requests import KeyRequests
from armorclaw.matrix.crypto.room_keys import Opened, RoomKeys
from armorclaw.matrix.crypto.roster import Roster
from armorclaw.matrix.crypto.sharing import Sharing
from armorclaw.matrix.crypto.standing import Standing
from armorclaw.matrix.crypto.tables import MIGRATIONS
from armorclaw.matrix.crypto.upkeep import Upkeep
from armorclaw.matrix.crypto.upstream import OlmAccount, PgCryptoStore
from armorclaw.matrix.crypto.vault import Vault
from armorclaw.store.migrate import migrate

__all__ = ["Decrypted", "DevicePolicy", "Encryption", "KeysLost", "Undecryptable", "open_encryption"]

log = get_logger(__name__)

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")

MEETING = 2.0
"""Seconds that a sync waits for the devices of people who wrote for the first time."""

KEEP_ROOM_KEYS_DAYS = 365
"""Days for which a room key is kept that opens nothing."""

CLOSING = 5.0
"""Seconds that closing the file may take."""

_DOUBTED = 1000  # keys whose owner's devices are being asked for; what waits with older ones is tried again after a
# restart, or when it has waited too long: the table of those undecrypted has them all


@attrs.frozen
class Decrypted:
    """What an encrypted event says. `trust` is a word of `Trust`, of the device that said it."""

    type: str
    content: dict[str, Any]
    session_id: str
    trust: str


class Encryption:
    """One device's. Made by `open_encryption`.

    `on_keys` is called with room and session of keys that came, or of whom one may be believed now; `on_verification`
    with type, sender and content of a to-device m.key.verification.*, and whether it came encrypted; `on_secret` with
    type, sender, content and the Curve25519 key of the channel ('' if none) of an m.secret.*; `on_devices` with each
    user of whose devices something was heard.
    """

    def __init__(
        self,
        account: str,
        client: MatrixClient,
        db: CryptoDatabase,
        store: PgCryptoStore,
        olm: OlmAccount,
        devices: DevicePolicy,
        around: Surroundings,
        counts: Counter[str],
        keep_room_keys_days: int,
    ) -> None:
        clock = around.clock
        self.account = account
        self.policy = devices
        self.on_keys: Callable[[Sequence[tuple[str, str]]], object] = lambda keys: None
        self.on_verification: Callable[[str, str, dict[str, Any], bool], object] = lambda *told: None
        self.on_secret: Callable[[str, str, dict[str, Any], str], object] = lambda *told: None
        self.on_devices: Callable[[str], object] = lambda user: None
        self.current = False
        """Whether it has heard, since it was opened, who came and went meanwhile: who left must get no more keys."""
        self.counts = counts
        """decrypted, encrypted, failed:<reason>, keys_pruned, keys_received, messages_refused, unwedged, withheld."""
        self.db = db
        self._client = client
        self._clock = clock
        self.channels = Channels(client, db, store, olm)
        self.machine = Machine(client, db, store, self._heard_of)
        self.machine.account = olm
        self.standing: Standing = self.machine.standing
        self._roster = Roster(client, db)
        self.devices = DeviceLists(db, self.machine, clock, touched=self._roster.touch, known=self._try_again)
        self._keys = RoomKeys(db, clock)
        self._sharing = Sharing(
            client,
            db,
            channels=self.channels,
            devices=self.devices,
            standing=self.standing,
            roster=self._roster,
            keys=self._keys,
            policy=devices,
            clock=clock,
            counts=counts,
        )
        self._requests = KeyRequests(
            client,
            db,
            channels=self.channels,
            devices=self.devices,
            standing=self.standing,
            keys=self._keys,
            sharing=self._sharing,
            clock=clock,
        )
        self._publisher = Publisher(client, db, store, self.channels, clock)
        self._upkeep = Upkeep(
            account,
            db,
            channels=self.channels,
            devices=self.devices,
            standing=self.standing,
            requests=self._requests,
            publisher=self._publisher,
            pruning=Pruning(account, db, self._keys, clock, days=keep_room_keys_days, counts=counts),
            around=around,
            counts=self.counts,
        )
        self._inbox = Inbox(
            account,
            db,
            channels=self.channels,
            devices=self.devices,
            standing=self.standing,
            keys=self._keys,
            sharing=self._sharing,
            requests=self._requests,
            upkeep=self._upkeep,
            clock=clock,
            counts=self.counts,
            listener=self,
        )
        self._stands: tuple[str | None, str] | None = None
        self._doubted: OrderedDict[tuple[str, tuple[str, str]], None] = OrderedDict()

    @property
    def identity_key(self) -> str:
        """The device's Curve25519 key."""
        return str(self.channels.account.identity_key)

    @property
    def fingerprint(self) -> str:
        """The device's Ed25519 key, in groups of four as people compare it."""
        return str(self.channels.account.fingerprint)

    @property
    def device_made_ms(self) -> int:
        """Since when we are this device."""
        row = self.db.one("SELECT value FROM facts WHERE name = 'made_ms'")
        assert row is not None
        return int(row[0])

    async def resume(self, since: str | None) -> None:
        """The sync will go on from `since`; to be called before anything else.

        If that is not where this file was left, then encryption was switched off meanwhile, or one of the two stores
        comes out of a backup. Nobody can tell who left rooms since, nor which steps of a key were taken.
        """
        row = self.db.one("SELECT value FROM facts WHERE name = 'synced'")
        if since is not None:
            if row is not None and since in json.loads(row[0]):
                return
            if row is not None:
                log.warning("the sync is not where the keys were left: all is asked for anew", account=self.account)
        with self.db.transaction():
            await self.start_over()
            self.db.run("DELETE FROM outbound")

    def stands(self, since: str | None, next_batch: str) -> None:
        """Note that all of the answer to the sync from `since` was taken in. The next one is from either of both."""
        self.current = True
        if self._stands != (since, next_batch):
            sql = "INSERT INTO facts VALUES ('synced', ?) ON CONFLICT DO UPDATE SET value = excluded.value"
            self.db.run(sql, json.dumps([since, next_batch]))
            self._stands = since, next_batch

    def knows(self, room_id: str) -> bool:
        """Whether the room is known to be encrypted, which it then is for good."""
        return self._roster.rules(room_id) is not None

    async def run(self) -> None:
        """Publish, ask, answer, repair and tidy until cancelled.

        A homeserver that does not answer, or knows nothing of encryption, is waited out. Raises KeysLost.
        """
        with one_error():
            await self._upkeep.run()

    async def absorb(self, answer: Answer) -> None:
        """Take in what one answer to /sync says of keys. The same answer twice is as once.

        When it returns, all of it outlasts a power cut: the homeserver forgets it with the next question. Raises
        KeysLost, and what the disk raises (retryable).
        """
        self._upkeep.heard()
        strangers = await self._inbox.take_in(answer.to_device)
        if answer.device_lists:
            with self.db.transaction():
                self.devices.changed(answer.device_lists.changed)
                self.devices.left(answer.device_lists.left)
        self._publisher.told(answer.one_time_keys, answer.fallback_keys)
        if answer.to_device:
            await self.db.sync()
        if strangers:
            await self._meet(strangers)
        if answer.to_device or answer.device_lists:
            self._upkeep.wake()

    async def room_state(self, room_id: str, raw: Raw) -> None:
        """Follow a state event of a room, in the order of the room."""
        self._roster.note(room_id, raw)

    async def start_over(self) -> None:
        """The next sync begins from nothing: what it does not tell of devices and members is asked for anew."""
        with self.db.transaction():
            self.devices.left_all()
            self._roster.forget_all()
        self._requests.own_devices_changed()

    async def forget_members(self, room_id: str) -> None:
        """Events of the room may be missing: before the next key is shared it is asked who is there."""
        self._roster.forget(room_id)

    async def decrypt(self, room_id: str, raw: Raw) -> Decrypted:
        """Raises Undecryptable; the same event again gives the same."""
        try:
            decrypted = self._decrypt(room_id, raw)
        except Undecryptable as error:
            self._count_failure(room_id, raw, error)
            raise
        self.counts["decrypted"] += 1
        return decrypted

    async def encrypt(self, room_id: str, type: str, content: Mapping[str, Any]) -> dict[str, Any]:  # noqa: A002
        """The content of an m.room.encrypted. Whoever may read the room has its key by then, or was told why not.

        Raises MatrixError, Delayed or Refused: then nothing was said to anybody.
        """
        await self._publisher.ensure_device()
        encrypted = await self._sharing.encrypt(room_id, type, content)
        self.counts["encrypted"] += 1
        return encrypted

    async def ensure_device(self) -> None:
        """Until the device's keys are published. Raises MatrixError, and KeysLost if they are another program's."""
        await self._publisher.ensure_device()

    def device_missed(self) -> bool:
        """The homeserver does not tell of our device. Whether it has lost it: then `ensure_device` publishes it."""
        return self._publisher.missed()

    def trust_changed(self, user_id: str) -> None:
        """Somebody verified or blacklisted something of this user: who gets keys is looked at anew."""
        self._heard_of(user_id)

    # -- inside --

    async def _meet(self, users: Collection[str]) -> None:
        """Ask for the devices of people who brought keys: what they say most likely stands in the same answer.

        Whoever is not known by then is asked for later, and what they say waits.
        """
        try:
            with trio.move_on_after(MEETING):
                await self.devices.refresh(sorted(users))
        except MatrixError as error:
            log.info("devices are asked for later", account=self.account, why=str(error))

    def _decrypt(self, room_id: str, raw: Raw) -> Decrypted:
        event_id, sender = raw.get("event_id"), raw.get("sender")
        if not is_id(event_id) or not is_id(sender):
            raise Undecryptable("malformed")
        opened = self._keys.open(room_id, raw)
        trust = self._judge(room_id, sender, opened)
        self._keys.heard(opened, event_id)
        return Decrypted(opened.type, opened.content, opened.key.session_id, trust)

    def _judge(self, room_id: str, sender: str, opened: Opened) -> Trust:
        """Whether the sender is who made the key, and how far the device is trusted. Raises Undecryptable."""
        key = opened.key
        if key.owner not in (sender, None):
            # whoever has a key can say that it is theirs; the sender's own word may be on its way
            raise Undecryptable("mismatch", key.session_id, later=True)
        own = self.channels.account
        if sender == self._client.mxid and key.sender_key == own.identity_key:
            if key.signing_key != own.signing_key:
                raise Undecryptable("mismatch", key.session_id)
            return Trust.VERIFIED
        device = self.standing.device_of_key(sender, key.sender_key)
        if device is None:
            trust, identity = Trust.UNKNOWN_DEVICE, self.standing.has_identity(sender)
        elif device.signing_key != key.signing_key:
            raise Undecryptable("mismatch", key.session_id)
        else:
            trust, identity = device.trust, True
        policy = self.policy.for_room(room_id)
        pending = self.devices.is_pending(sender)  # the device may be there, or signed, by now
        if not is_enough(trust, policy, identity=identity or pending):
            raise Undecryptable("unverified_device", key.session_id, later=pending)
        if key.owner is None:  # nobody has proved that it is this device's key
            trust = Trust.FORWARDED
            if not is_enough(trust, policy):
                raise Undecryptable("unverified_device", key.session_id)
        return trust

    def _count_failure(self, room_id: str, raw: Raw, error: Undecryptable) -> None:
        self.counts[f"failed:{error.reason.partition(':')[0]}"] += 1  # the rest is anybody's word
        if not error.later:
            return
        self._keys.waited_with(room_id, error.session_id)
        if error.reason == "unverified_device":
            sender = str(raw.get("sender"))
            self._doubted[sender, (room_id, error.session_id)] = None
            if len(self._doubted) > _DOUBTED:
                self._doubted.popitem(last=False)
            self.devices.follow([sender])
        else:
            self._requests.want(room_id, error.session_id, raw["content"].get("sender_key"))
        self._upkeep.wake()

    def _heard_of(self, user_id: str) -> None:
        self._roster.touch(user_id)
        self.on_devices(user_id)
        if user_id == str(self._client.mxid):
            self._requests.own_devices_changed()
            self._upkeep.wake()
        self._try_again(user_id)

    def _try_again(self, user_id: str) -> None:
        """Whose devices were not known well enough may be believed now."""
        keys = [key for user, key in self._doubted if user == user_id]
        for key in keys:
            del self._doubted[user_id, key]
        if keys:
            self.on_keys(keys)


@asynccontextmanager
async def open_encryption(
    account: str,
    client: MatrixClient,
    vault: Vault,
    *,
    identity_key: str | None,
    around: Surroundings,
    devices: DevicePolicy | None = None,
    counts: Counter[str] | None = None,
    keep_room_keys_days: int = KEEP_ROOM_KEYS_DAYS,
) -> AsyncIterator[Encryption]:
    """The encryption of the login that `client` has; no network. `identity_key` is what this login had before, and
    `counts` is gone on with. Room keys that open nothing are kept for `keep_room_keys_days`, with 0 for ever.

    Raises KeysLost, and what the store raises for troubles that pass.
    """
    db = await trio.to_thread.run_sync(lambda: vault.open(account, expected=identity_key is not None))
    try:
        await PgCryptoStore.upgrade_table.upgrade(db)
        await trio.to_thread.run_sync(lambda: migrate(db.connection, MIGRATIONS, db.path))
        olm, store = await _load(db, client, identity_key, around.clock.now_ms())
        await db.sync()
        counts = Counter() if counts is None else counts
        policy = devices or DevicePolicy()
        yield Encryption(account, client, db, store, olm, policy, around, counts, keep_room_keys_days)
    finally:
        with trio.move_on_after(CLOSING, shield=True):
            await trio.to_thread.run_sync(db.close, abandon_on_cancel=True)


async def _load(
    db: CryptoDatabase, client: MatrixClient, identity_key: str | None, now_ms: int
) -> tuple[OlmAccount, PgCryptoStore]:
    own, device = str(client.mxid), str(client.device_id)
    boot = await trio.to_thread.run_sync(_boot_id)
    store = PgCryptoStore(own, PASSPHRASE, db)
    store._device_id = DeviceID(device)
    with db.transaction():
        facts = {row["name"]: row["value"] for row in db.all("SELECT name, value FROM facts")}
        if (facts.get("user_id", own), facts.get("device_id", device)) != (own, device):
            raise KeysLost(f"the file is of {facts.get('user_id')}, device {facts.get('device_id')}")
        found: OlmAccount | None = await store.get_account()
        olm = found or OlmAccount()
        if found is None:
            if identity_key is not None:
                raise KeysLost("the file holds no keys")
            await store.put_account(olm)
        if identity_key not in (None, olm.identity_key):
            raise KeysLost("the file holds other keys than this login had")
        if not boot or facts.get("boot_id") != boot:
            # the last steps of a key may have been lost with the power, and must not be taken twice
            db.run("DELETE FROM outbound")
        db.run("INSERT INTO facts VALUES ('made_ms', ?) ON CONFLICT DO NOTHING", str(now_ms))
        for name, value in (("user_id", own), ("device_id", device), ("boot_id", boot)):
            db.run("INSERT INTO facts VALUES (?, ?) ON CONFLICT DO UPDATE SET value = excluded.value", name, value)
    return olm, store


def _boot_id() -> str:
    try:
        return BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return ""
