"""What is known of devices, from mautrix's tables: who signed whom was checked when it was written there."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import attrs
from mautrix.types import TrustState

from armorclaw.matrix.crypto.database import CryptoDatabase
from armorclaw.matrix.crypto.policy import Trust

OWN_MASTER = "master_key"
"""The fact that names our own user's master key, once we hold it or somebody verified it."""

_SIGNED = """EXISTS (SELECT 1 FROM crypto_cross_signing_signatures s WHERE s.signed_user_id = {user}
    AND s.signed_key = {key} AND s.signer_user_id = {signer} AND s.signer_key = {by})"""
_DEVICES = f"""
SELECT d.user_id, d.device_id, d.identity_key, d.signing_key, d.trust, m.key AS master, m.first_seen_key AS first,
    {_SIGNED.format(user="d.user_id", key="f.key", signer="d.user_id", by="m.key")}
    AND {_SIGNED.format(user="d.user_id", key="d.signing_key", signer="d.user_id", by="f.key")} AS signed,
    {_SIGNED.format(user="d.user_id", key="m.key", signer="?", by="?")} AS vouched
FROM crypto_device d
LEFT JOIN crypto_cross_signing_keys m ON m.user_id = d.user_id AND m.usage = 'master'
LEFT JOIN crypto_cross_signing_keys f ON f.user_id = d.user_id AND f.usage = 'self_signing'
WHERE d.user_id = ?
"""  # noqa: S608 - no value in it comes from outside


@attrs.frozen
class Device:
    """A device of somebody's, and how far it is trusted. Keys are base64: `key` Curve25519, `signing_key` Ed25519."""

    user_id: str
    device_id: str
    key: str
    signing_key: str
    trust: Trust


class Standing:
    """Reads only; `own` is our user id."""

    def __init__(self, db: CryptoDatabase, own: str) -> None:
        self._db = db
        self._own = own

    def devices(self, user_id: str) -> Iterator[Device]:
        """All devices of a user, as last heard."""
        return map(self._device, self._db.all(_DEVICES, self._own, self._user_signing_key(), user_id))

    def device(self, user_id: str, device_id: str) -> Device | None:
        """One device by its id."""
        return self._one("device_id", user_id, device_id)

    def device_of_key(self, user_id: str, key: str) -> Device | None:
        """One device by its Curve25519 key."""
        return self._one("identity_key", user_id, key)

    def has_identity(self, user_id: str) -> bool:
        """Whether the user has a master key, as last heard."""
        sql = "SELECT 1 FROM crypto_cross_signing_keys WHERE user_id = ? AND usage = 'master'"
        return self._db.one(sql, user_id) is not None

    def is_verified(self, user_id: str) -> bool:
        """Whether the user's master key is signed by ours."""
        row = self._db.one(
            f"SELECT {_SIGNED.format(user='m.user_id', key='m.key', signer='?', by='?')} "  # noqa: S608
            "FROM crypto_cross_signing_keys m WHERE m.user_id = ? AND m.usage = 'master'",
            self._own,
            self._user_signing_key(),
            user_id,
        )
        return row is not None and bool(row[0])

    def _one(self, column: str, user_id: str, value: str) -> Device | None:
        sql = f"{_DEVICES} AND d.{column} = ?"
        row = self._db.one(sql, self._own, self._user_signing_key(), user_id, value)
        return None if row is None else self._device(row)

    def _device(self, row: Any) -> Device:
        return Device(row["user_id"], row["device_id"], row["identity_key"], row["signing_key"], self._trust(row))

    def _trust(self, row: Any) -> Trust:
        if row["trust"] == TrustState.BLACKLISTED:
            return Trust.BLACKLISTED
        if row["trust"] == TrustState.VERIFIED:
            return Trust.VERIFIED
        if row["master"] is None:
            return Trust.NO_IDENTITY
        if not row["signed"]:
            return Trust.UNVERIFIED
        if row["vouched"] or (row["user_id"] == self._own and row["master"] == self._own_master()):
            return Trust.VERIFIED
        return Trust.TOFU if row["master"] == row["first"] else Trust.CHANGED

    def _own_master(self) -> str | None:
        row = self._db.one("SELECT value FROM facts WHERE name = ?", OWN_MASTER)
        return None if row is None else str(row[0])

    def _user_signing_key(self) -> str:
        """Ours, if it belongs to the identity that is known to be ours; the homeserver may name any other."""
        row = self._db.one(
            f"SELECT u.key FROM crypto_cross_signing_keys u "  # noqa: S608
            f"JOIN crypto_cross_signing_keys m ON m.user_id = u.user_id AND m.usage = 'master' "
            f"JOIN facts f ON f.name = ? AND f.value = m.key "
            f"WHERE u.user_id = ? AND u.usage = 'user_signing' "
            f"AND {_SIGNED.format(user='u.user_id', key='u.key', signer='u.user_id', by='m.key')}",
            OWN_MASTER,
            self._own,
        )
        return "" if row is None else str(row[0])
