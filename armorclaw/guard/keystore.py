"""The keystore: the tokens of AI providers, on disk only inside the encrypted database."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

import attrs

from armorclaw.clock import Surroundings
from armorclaw.errors import ArmorclawError
from armorclaw.guard.audit import AuditLog
from armorclaw.store import Connection, Database

PROVIDERS = ("openai", "anthropic", "openrouter", "google", "gemini", "xai")
"""The providers whose names clients may rely on; any other name of that form is taken too."""

MAX_TOKEN = 16_384
"""Longest token, in characters: all keys of an agent must fit into one frame."""

_PROVIDER = re.compile(r"[a-z0-9_-]{1,32}")
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_TAG = re.compile(r"[^\x00-\x1f\x7f]{1,64}")
_NAME = re.compile(r"[^\x00-\x1f\x7f]{0,200}")


@attrs.frozen(kw_only=True)
class KeyInfo:
    """What may be shown of a key. Times are seconds since the epoch; `expires_at` 0 is never."""

    id: str
    provider: str
    display_name: str = ""
    created_at: int = 0
    expires_at: int = 0
    tags: tuple[str, ...] | None = None


@attrs.frozen(kw_only=True)
class StoredKey(KeyInfo):
    """A key with its token, which no repr, log or error shows."""

    token: str = attrs.field(repr=False)


class KeyStore:
    """Keeps keys, and an audit record of each change and each reading."""

    def __init__(self, db: Database, audit: AuditLog, around: Surroundings) -> None:
        self._db = db
        self._audit = audit
        self._clock = around.clock

    async def store(
        self,
        *,
        provider: str,
        token: str,
        id: str = "",  # noqa: A002 - the word of the wire
        display_name: str = "",
        expires_at: int = 0,
        tags: Sequence[str] | None = None,
        by: str = "operator",
    ) -> KeyInfo:
        """Stores a key durably, in place of one with the same id; `id` is `<provider>-default` unless given.

        Raises `invalid_params` naming the field.
        """
        key = StoredKey(
            id=id or f"{provider}-default",
            provider=provider,
            token=token,
            display_name=display_name,
            created_at=int(self._clock.wall()),
            expires_at=expires_at,
            tags=None if tags is None else tuple(tags),
        )
        _check(key)

        def work(db: Connection) -> None:
            known = db.execute("SELECT 1 FROM keys WHERE id = ?", (key.id,)).fetchone()
            db.execute(
                "INSERT OR REPLACE INTO keys (id, provider, token, display_name, created_at, expires_at, tags)"
                " VALUES (?, ?, ?, ?, ?, ?, ?)",
                (
                    key.id,
                    key.provider,
                    key.token,
                    key.display_name,
                    key.created_at,
                    key.expires_at,
                    None if key.tags is None else json.dumps(key.tags, separators=(",", ":")),
                ),
            )
            self._audit.append(db, "key_stored", id=key.id, provider=key.provider, replaced=known is not None, by=by)

        await self._db.write(work, durable=True, grows=True)
        return _info(key)

    async def get(self, id: str, *, by: str = "bridge") -> StoredKey:  # noqa: A002 - the word of the wire
        """The key with its token, for `by` (who gets to see it, for the audit trail).

        Raises `key_not_found`, also for one that has expired.
        """

        def work(db: Connection) -> StoredKey:
            row = db.execute(_ONE, (id,)).fetchone()
            if row is None:
                raise _missing(id)
            info = _from_row(row[:-1])
            if 0 < info.expires_at <= self._clock.wall():
                raise ArmorclawError(
                    "key_not_found",
                    f"there is no usable key {id!r}",
                    why="expired",
                    hint="armorclaw keys rotate, or rotate_key, gives it a new token",
                )
            self._audit.append(db, "key_read", id=id, by=by)
            return StoredKey(token=row[-1], **attrs.asdict(info))

        return await self._db.write(work)

    async def list(self, provider: str = "") -> Sequence[KeyInfo]:
        """What is known of all keys, or those of one provider, by id; expired ones too."""
        rows = await self._db.read(lambda db: db.execute(_ALL, (provider,)).fetchall())
        return [_from_row(row) for row in rows]

    async def rotate(
        self,
        id: str,  # noqa: A002 - the word of the wire
        token: str,
        *,
        expires_at: int | None = None,
        by: str = "operator",
    ) -> KeyInfo:
        """Gives a key another token, and another end if that is said; `created_at` is then now.

        Raises `key_not_found`, `invalid_params` naming the field, also for an end that has passed.
        """

        def work(db: Connection) -> KeyInfo:
            row = db.execute(_ONE, (id,)).fetchone()
            if row is None:
                raise _missing(id)
            old, now = _from_row(row[:-1]), int(self._clock.wall())
            until = old.expires_at if expires_at is None else expires_at
            if 0 < until <= now:
                raise _invalid("expires_at", "to come, or 0 for never")
            key = StoredKey(**(attrs.asdict(old) | {"token": token, "created_at": now, "expires_at": until}))
            _check(key)
            db.execute(_ROTATE, (key.token, key.created_at, key.expires_at, id))
            self._audit.append(db, "key_rotated", id=id, provider=key.provider, by=by)
            return _info(key)

        return await self._db.write(work, durable=True)

    async def delete(self, id: str, *, by: str = "operator") -> None:  # noqa: A002 - the word of the wire
        """Forgets a key durably. Raises `key_not_found`."""

        def work(db: Connection) -> None:
            if not db.execute("DELETE FROM keys WHERE id = ?", (id,)).rowcount:
                raise _missing(id)
            self._audit.append(db, "key_deleted", id=id, by=by)

        await self._db.write(work, durable=True)


_ONE = "SELECT id, provider, display_name, created_at, expires_at, tags, token FROM keys WHERE id = ?"
_ROTATE = "UPDATE keys SET token = ?, created_at = ?, expires_at = ? WHERE id = ?"
_ALL = (
    "SELECT id, provider, display_name, created_at, expires_at, tags FROM keys"
    " WHERE provider = ?1 OR ?1 = '' ORDER BY id"
)


def _from_row(row: Sequence[Any]) -> KeyInfo:
    key_id, provider, display_name, created_at, expires_at, tags = row
    return KeyInfo(
        id=key_id,
        provider=provider,
        display_name=display_name,
        created_at=created_at,
        expires_at=expires_at,
        tags=None if tags is None else tuple(json.loads(tags)),
    )


def _info(key: StoredKey) -> KeyInfo:
    return KeyInfo(**{field.name: getattr(key, field.name) for field in attrs.fields(KeyInfo)})


def _check(key: StoredKey) -> None:
    if not _PROVIDER.fullmatch(key.provider):
        raise _invalid("provider", "1 to 32 of a-z 0-9 _ -")
    if not _ID.fullmatch(key.id):
        raise _invalid("id", "1 to 64 of letters, digits, . _ - and begins with a letter or digit")
    if not key.token.strip() or len(key.token) > MAX_TOKEN or "\x00" in key.token:
        raise _invalid("token", f"1 to {MAX_TOKEN} characters without NUL")
    if not _NAME.fullmatch(key.display_name):
        raise _invalid("display_name", "at most 200 characters on one line")
    if not 0 <= key.expires_at < 2**53:
        raise _invalid("expires_at", "seconds since the epoch, or 0 for never")
    if key.tags is not None and not (len(key.tags) <= 32 and all(_TAG.fullmatch(tag) for tag in key.tags)):
        raise _invalid("tags", "at most 32 words of at most 64 characters")


def _invalid(field: str, rule: str) -> ArmorclawError:
    return ArmorclawError("invalid_params", f"{field} is not valid", why=f"it must be {rule}", fields=[field])


def _missing(key_id: str) -> ArmorclawError:
    return ArmorclawError("key_not_found", f"there is no key {key_id!r}")
