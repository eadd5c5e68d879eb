"""What trust keeps in an account's crypto file: our own private keys, the recovery key, and whom people verified."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

import attrs
from mautrix.types import TrustState

from armorclaw.matrix.crypto.database import CryptoDatabase
from armorclaw.matrix.crypto.standing import OWN_MASTER
from armorclaw.matrix.trust.identity import PrivateIdentity

_PRIVATE = "trust.private"
_RECOVERY = "trust.recovery"
_PENDING = "trust.pending"
_SEEN_MASTER = "trust.seen_master"


@attrs.frozen
class Recovery:
    """A recovery key that nobody has been shown yet, and what account data says of it."""

    key_id: str
    recovery_key: str = attrs.field(repr=False)
    described: Mapping[str, Any] = attrs.field(repr=False)


class Records:
    """All at once or nothing, as `CryptoDatabase.transaction` says."""

    def __init__(self, db: CryptoDatabase) -> None:
        self._db = db

    async def sync(self) -> None:
        """Until all of it outlasts a power cut. Raises storage_failed."""
        await self._db.sync()

    def private(self, user_id: str) -> PrivateIdentity | None:
        """Our own identity, if we have its private half."""
        kept = self._fact(_PRIVATE)
        if kept is None:
            return None
        seeds = {usage: base64.b64decode(seed) for usage, seed in json.loads(kept).items()}
        return PrivateIdentity.from_seeds(user_id, seeds)

    def keep_private(self, private: PrivateIdentity | None) -> None:
        seeds = None if private is None else private.seeds()
        text = None if seeds is None else json.dumps({usage: _text(seed) for usage, seed in seeds.items()})
        self._keep(_PRIVATE, text)

    def begin(self, private: PrivateIdentity, recovery: Recovery) -> None:
        """An identity that is about to be published. From here on a crash changes nothing about which it is."""
        with self._db.transaction():
            self.keep_private(private)
            self.renew(recovery)

    def renew(self, recovery: Recovery) -> None:
        """A recovery key that is about to open our identity, in place of any before."""
        with self._db.transaction():
            self.keep_recovery(recovery)
            self._keep(_PENDING, "1")

    @property
    def pending(self) -> bool:
        """Whether our identity is not yet published and stored, whole, under the recovery key that is kept here."""
        return self._fact(_PENDING) is not None

    def finish(self) -> None:
        self._keep(_PENDING, None)

    def abandon(self) -> None:
        """Our identity is not the account's, or no longer."""
        with self._db.transaction():
            for name in (_PRIVATE, _RECOVERY, _PENDING):
                self._keep(name, None)

    def recovery(self) -> Recovery | None:
        """The recovery key, until it was shown."""
        kept = self._fact(_RECOVERY)
        return None if kept is None else Recovery(**json.loads(kept))

    def keep_recovery(self, recovery: Recovery | None) -> None:
        self._keep(_RECOVERY, None if recovery is None else json.dumps(attrs.asdict(recovery)))

    @property
    def seen_master(self) -> str | None:
        """The public master key that the account had when we last looked."""
        return self._fact(_SEEN_MASTER)

    def saw_master(self, key: str | None) -> None:
        self._keep(_SEEN_MASTER, key)

    def trust_own_master(self, key: str | None) -> None:
        """The master key that is certainly ours: its other keys count, and whom they signed. None: there is none."""
        self._keep(OWN_MASTER, key)

    @property
    def trusted_own_master(self) -> str | None:
        return self._fact(OWN_MASTER)

    def verify_device(self, user_id: str, device_id: str, key: str) -> bool:
        """A person has compared this Ed25519 key; whether there is such a device."""
        query = "UPDATE crypto_device SET trust = ? WHERE user_id = ? AND device_id = ? AND signing_key = ?"
        return self._db.run(query, int(TrustState.VERIFIED), user_id, device_id, key).rowcount > 0

    def identity(self, user_id: str) -> tuple[str, str] | None:
        """The master key that a user has now, and the one we saw first."""
        query = "SELECT key, first_seen_key FROM crypto_cross_signing_keys WHERE user_id = ? AND usage = 'master'"
        row = self._db.one(query, user_id)
        return None if row is None else (row["key"], row["first_seen_key"])

    def changed_identities(self) -> list[tuple[str, str]]:
        """Users whose master key is not the first we saw, and whom nobody was told of; with the key."""
        query = (
            "SELECT user_id, key FROM crypto_cross_signing_keys AS seen WHERE usage = 'master'"
            " AND key <> first_seen_key AND NOT EXISTS"
            " (SELECT 1 FROM told WHERE told.user_id = seen.user_id AND told.master = seen.key)"
        )
        return [(row["user_id"], row["key"]) for row in self._db.all(query)]

    def told(self, user_id: str, master: str) -> None:
        self._db.run("INSERT OR REPLACE INTO told VALUES (?, ?)", user_id, master)

    def accept_identity(self, user_id: str, master: str) -> bool:
        """The identity with this master key counts as the first; whether it is the one that the user has now."""
        query = (
            "UPDATE crypto_cross_signing_keys SET first_seen_key = key"
            " WHERE user_id = ? AND usage = 'master' AND key = ?"
        )
        return self._db.run(query, user_id, master).rowcount > 0

    def _fact(self, name: str) -> str | None:
        row = self._db.one("SELECT value FROM facts WHERE name = ?", name)
        return None if row is None else str(row["value"])

    def _keep(self, name: str, value: str | None) -> None:
        if value is None:
            self._db.run("DELETE FROM facts WHERE name = ?", name)
        else:
            self._db.run("INSERT OR REPLACE INTO facts VALUES (?, ?)", name, value)


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()
