"""Olm: a channel to each device, over which keys and secrets go. Two devices may have several; the last heard from is
used.

Specification: Client-Server API, "m.olm.v1.curve25519-aes-sha2". What a stranger sends ends in an OlmError at worst.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import attrs
import trio
from mautrix.api import Method, Path

from armorclaw.log import get_logger
from armorclaw.matrix.client import MatrixClient
from armorclaw.matrix.crypto.database import CryptoDatabase
from armorclaw.matrix.crypto.olm import MESSAGE, PREKEY, OlmError, OlmSessionError, Session
from armorclaw.matrix.crypto.signatures import is_signed
from armorclaw.matrix.crypto.standing import Device
from armorclaw.matrix.crypto.upstream import OlmAccount, PgCryptoStore

log = get_logger(__name__)

ALGORITHM = "m.olm.v1.curve25519-aes-sha2"

PASSPHRASE = "armorclaw"  # noqa: S105
"""Of pickles. They are kept in SQLCipher, whose key is the secret."""

CHANNELS = 5
"""Kept for each device; the oldest goes. The specification asks for four at least."""

BATCH = 50
"""Devices in one request, for keys or with messages: some 100 kB."""

_TURN = 10  # messages encrypted before other tasks have their turn; 2 ms


@attrs.frozen
class Letter:
    """What came over a channel, from whom: `sender` is the user who holds `sender_key` and claims `signing_key`."""

    type: str
    content: Mapping[str, Any]
    sender: str
    sender_key: str
    signing_key: str


class WedgedError(OlmError):
    """A message that no channel opens: something was lost on either side, and only a new channel helps."""


class Channels:
    """All channels of this device. `own` is our user id, `device_id` our device."""

    def __init__(self, client: MatrixClient, db: CryptoDatabase, store: PgCryptoStore, account: OlmAccount) -> None:
        self._client = client
        self._db = db
        self._store = store
        self._account = account
        self._ahead = False
        db.on_rollback.append(self._note_rollback)

    @property
    def account(self) -> OlmAccount:
        """The keys of this device, for what never changes of them."""
        return self._account

    async def current(self) -> OlmAccount:
        """The same, for what changes: after a transaction that came to nothing memory may be ahead of the file, and
        what it says must not be written down. Does not wait; good until the next wait."""
        if self._ahead:
            self._store._account = None
            account = await self._store.get_account()
            assert account is not None
            self._account, self._ahead = account, False
        return self._account

    def _note_rollback(self) -> None:
        self._ahead = True

    async def open(self, sender: str, content: Mapping[str, Any]) -> Letter:
        """The letter in a to-device m.room.encrypted; within a transaction. Raises OlmError, WedgedError."""
        if content.get("algorithm") != ALGORITHM:
            raise OlmError("unknown algorithm")
        sender_key, ciphertexts = content.get("sender_key"), content.get("ciphertext")
        mine = ciphertexts.get(self._account.identity_key) if isinstance(ciphertexts, dict) else None
        if not isinstance(mine, dict) or not isinstance(sender_key, str):
            raise OlmError("it is not for this device")
        kind, body = mine.get("type"), mine.get("body")
        if kind not in (PREKEY, MESSAGE) or isinstance(kind, bool) or not isinstance(body, str):
            raise OlmError("it is no Olm message")
        return self._checked(sender, sender_key, await self._plaintext(sender_key, int(kind), body))

    async def _plaintext(self, sender_key: str, kind: int, body: str) -> bytes:
        for session in self._sessions(sender_key):
            if kind == PREKEY and not session.matches(body):
                continue
            try:
                plaintext = session.decrypt(kind, body)
            except OlmSessionError as error:
                if kind == PREKEY:
                    raise WedgedError("its channel does not open it") from error
                continue
            self._put(sender_key, session, heard=True)
            return plaintext
        if kind != PREKEY:
            raise WedgedError("no channel opens it")
        account = await self.current()
        try:
            made: tuple[Session, bytes] = account.inbound_session(sender_key, body)
        except OlmSessionError as error:
            raise WedgedError("no channel can be made from it") from error
        session, plaintext = made
        await self._store.put_account(account)  # without the one-time key that this used up
        self._put(sender_key, session, heard=True)
        return plaintext

    def _checked(self, sender: str, sender_key: str, plaintext: bytes) -> Letter:
        try:
            told = json.loads(plaintext)
            facts = (told["sender"], told["recipient"], told["recipient_keys"]["ed25519"])
            type_, content, signing_key = told["type"], told["content"], told["keys"]["ed25519"]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise OlmError("what is in it cannot be read") from error
        if facts != (sender, str(self._client.mxid), self._account.signing_key):
            raise OlmError("it says that it is from or for somebody else")
        if not isinstance(type_, str) or not isinstance(content, dict) or not isinstance(signing_key, str):
            raise OlmError("what is in it cannot be read")
        return Letter(type_, content, sender, sender_key, signing_key)

    async def establish(self, devices: Sequence[Device], *, anew: bool = False) -> None:
        """A channel to each of up to `BATCH` devices that have none, or `anew` to all; who gives no valid key is left
        out. Raises MatrixError."""
        missing = [each for each in devices if anew or not self._has(each.key)]
        if not missing:
            return
        wanted: dict[str, dict[str, str]] = {}
        for each in missing:
            wanted.setdefault(each.user_id, {})[each.device_id] = "signed_curve25519"
        body = {"timeout": 10_000, "one_time_keys": wanted}
        answer = await self._client.api.request(Method.POST, Path.v3.keys.claim, body)
        failures, given = answer.get("failures"), answer.get("one_time_keys")
        if failures:
            log.warning("homeservers did not answer for one-time keys", servers=sorted(map(str, failures))[:10])
        for each in missing:
            key = _one_time_key(given, each)
            if key is None:
                continue
            try:
                session = self._account.outbound_session(each.key, key)
            except OlmSessionError as error:
                log.warning("a one-time key is no good", user=each.user_id, device=each.device_id, why=str(error))
                continue
            self._put(each.key, session, heard=True)  # else an older, broken one would be used on

    def _seal(self, device: Device, type_: str, content: Mapping[str, Any]) -> dict[str, Any] | None:
        """The content of a to-device m.room.encrypted; None without a channel."""
        session = next(iter(self._sessions(device.key)), None)
        if session is None:
            return None
        letter = {
            "sender": str(self._client.mxid),
            "sender_device": str(self._client.device_id),
            "keys": {"ed25519": self._account.signing_key},
            "recipient": device.user_id,
            "recipient_keys": {"ed25519": device.signing_key},
            "type": type_,
            "content": content,
        }
        kind, body = session.encrypt(json.dumps(letter))
        self._put(device.key, session, heard=False)
        return {
            "algorithm": ALGORITHM,
            "sender_key": self._account.identity_key,
            "ciphertext": {device.key: {"type": kind, "body": body}},
        }

    async def send(
        self, devices: Sequence[Device], type_: str, content: Mapping[str, Any], *, anew: bool = False
    ) -> list[Device]:
        """Send the same to up to `BATCH` devices, over channels that are made where there are none.

        Returns those for which no channel can be made. Raises MatrixError: then nobody may have it, or everybody.
        """
        await self.establish(devices, anew=anew)
        sealed: dict[str, dict[str, Any]] = {}
        without = []
        for begin in range(0, len(devices), _TURN):
            with self._db.transaction():
                for device in devices[begin : begin + _TURN]:
                    message = self._seal(device, type_, content)
                    if message is None:
                        without.append(device)
                    else:
                        sealed.setdefault(device.user_id, {})[device.device_id] = message
            await trio.lowlevel.checkpoint()
        if sealed:
            await self._db.sync()  # a channel that forgets a step after a power cut would be a wedged one
            await self.put("m.room.encrypted", sealed)
        return without

    async def put(self, type_: str, messages: Mapping[str, Mapping[str, Any]]) -> None:
        """Send to-device messages in the clear, by user and device. Raises MatrixError."""
        path = Path.v3.sendToDevice[type_][self._client.api.get_txn_id()]
        await self._client.api.request(Method.PUT, path, {"messages": messages})

    def _has(self, key: str) -> bool:
        return self._db.one("SELECT 1 FROM channels WHERE device_key = ?", key) is not None

    def _sessions(self, key: str) -> Iterable[Session]:
        rows = self._db.all("SELECT pickle FROM channels WHERE device_key = ? ORDER BY used DESC", key)
        return (Session.from_pickle(row[0], PASSPHRASE) for row in rows)

    def _put(self, key: str, session: Session, *, heard: bool) -> None:
        pickle = session.pickle(PASSPHRASE)
        with self._db.transaction():
            if not heard:
                sql = "UPDATE channels SET pickle = ? WHERE device_key = ? AND session_id = ?"
                self._db.run(sql, pickle, key, session.id)
                return
            self._db.run(
                "INSERT INTO channels (device_key, session_id, pickle, used) "
                "VALUES (?1, ?2, ?3, (SELECT coalesce(max(used), 0) + 1 FROM channels WHERE device_key = ?1)) "
                "ON CONFLICT DO UPDATE SET pickle = excluded.pickle, used = excluded.used",
                key,
                session.id,
                pickle,
            )
            self._db.run(
                "DELETE FROM channels WHERE device_key = ?1 AND session_id NOT IN "
                "(SELECT session_id FROM channels WHERE device_key = ?1 ORDER BY used DESC LIMIT ?2)",
                key,
                CHANNELS,
            )


def _one_time_key(given: Any, device: Device) -> str | None:
    """The device's key in the answer to a claim, if there is one and the device has signed it."""
    devices = given.get(device.user_id) if isinstance(given, dict) else None
    keys = devices.get(device.device_id) if isinstance(devices, dict) else None
    for name, value in keys.items() if isinstance(keys, dict) else ():
        if not name.startswith("signed_curve25519:") or not isinstance(value, dict):
            continue
        key = value.get("key")
        if isinstance(key, str) and is_signed(value, device.user_id, device.device_id, device.signing_key):
            return key
        log.warning("a one-time key is not signed by its device", user=device.user_id, device=device.device_id)
    return None
