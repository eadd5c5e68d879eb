"""Secrets of an account, kept by its homeserver under a recovery key that the homeserver has not.

Source: "Secret storage" of the Matrix specification. The cryptography is mautrix's; here is what its answers mean.
No I/O: contents of account data in, contents of account data out.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from armorclaw.matrix.crypto.upstream import (
    EncryptedAccountDataEventContent,
    Key,
    KeyMetadata,
    decode_base58_recovery_key,
)
from armorclaw.matrix.trust.identity import USAGES, PrivateIdentity

DEFAULT_KEY = "m.secret_storage.default_key"
_KEY = "m.secret_storage.key."
_SECRET = "m.cross_signing."  # noqa: S105 - a type of account data


class WrongKeyError(Exception):
    """The recovery key does not open what is stored, or what is stored cannot be read."""


def new_key() -> Key:
    """A random one; its `recovery_key` is what a person writes down."""
    return Key.generate()


def key_from(recovery_key: str) -> bytes:
    """The bytes of a recovery key as people type it. Raises WrongKeyError."""
    try:
        found = decode_base58_recovery_key("".join(recovery_key.split()))
    except ValueError:
        found = None
    if found is None:
        raise WrongKeyError("it is no recovery key: 12 groups of 4 characters, beginning with E")
    return found


def key_type(key_id: str) -> str:
    """The type of account data that describes a key."""
    return _KEY + key_id


def default_key_id(content: Mapping[str, Any] | None) -> str | None:
    """Which key the account uses, of the content of `DEFAULT_KEY`."""
    found = content.get("key") if content is not None else None
    return found if isinstance(found, str) and found else None


def description(key: Key) -> dict[str, Any]:
    """What account data says of a key, so that one can tell whether it is the right one."""
    made: dict[str, Any] = key.metadata.serialize()
    return made


def open_key(key_id: str, described: Mapping[str, Any] | None, recovery_key: str) -> Key:
    """The key of that id. Raises WrongKeyError unless the recovery key is its."""
    raw = key_from(recovery_key)
    try:
        return KeyMetadata.deserialize(cast(Any, described or {})).verify_raw_key(key_id, raw)
    except Exception as error:
        raise WrongKeyError("it is not the recovery key of this account") from error


def secret_type(usage: str) -> str:
    """The type of account data that holds a seed."""
    return _SECRET + usage


def sealed(private: PrivateIdentity, key: Key) -> dict[str, dict[str, Any]]:
    """The account data that keeps an identity, by type."""
    return {
        secret_type(usage): {"encrypted": {key.id: key.encrypt(secret_type(usage), seed).serialize()}}
        for usage, seed in private.seeds().items()
    }


def opened(user_id: str, contents: Mapping[str, Mapping[str, Any] | None], key: Key) -> PrivateIdentity:
    """The identity of a user, from the account data that keeps it, by usage. Raises WrongKeyError."""
    try:
        seeds = {
            usage: EncryptedAccountDataEventContent.deserialize(cast(Any, contents[usage] or {})).decrypt(
                secret_type(usage), key
            )
            for usage in USAGES
        }
        return PrivateIdentity.from_seeds(user_id, seeds)
    except Exception as error:
        raise WrongKeyError("the stored keys of this account cannot be opened with it") from error
