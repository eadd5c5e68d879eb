"""Handing an agent its keys: in sealed memory, over its own socket, once.

What an agent gets is one payload, canonical JSON: {"keys": {ID: {"display_name", "provider", "token"}}}. Its
fingerprint comes back in `agent.ready`, so that the bridge knows which keys an agent works with without asking.

Python cannot wipe strings: copies made on the way here live until their memory is used again. What this module holds
itself it overwrites.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import hmac
import json
import os
from collections.abc import Iterable
from typing import Protocol

from armorclaw.errors import ArmorclawError

_MFD_NOEXEC_SEAL = 0x0008  # linux/memfd.h, since 6.3; Python has no name for it
_SEALS = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE


class Key(Protocol):
    """What an agent is told of a key (`guard.keystore.StoredKey` is one)."""

    @property
    def id(self) -> str: ...
    @property
    def provider(self) -> str: ...
    @property
    def token(self) -> str: ...
    @property
    def display_name(self) -> str: ...


def secrets_payload(keys: Iterable[Key]) -> bytearray:
    """The payload for these keys; the same bytes whatever their order."""
    known = {key.id: {"provider": key.provider, "token": key.token, "display_name": key.display_name} for key in keys}
    return bytearray(json.dumps({"keys": known}, sort_keys=True, separators=(",", ":")).encode("ascii"))


def sealed_memfd(data: bytes | bytearray) -> int:
    """A read-only descriptor of anonymous memory that holds `data` and that nobody can change any more.

    Its offset is its own and 0. The caller closes it. Raises OSError.
    """
    writable = _memfd()
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(writable, view) :]
        fcntl.fcntl(writable, fcntl.F_ADD_SEALS, _SEALS)
        return os.open(f"/proc/self/fd/{writable}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(writable)


def _memfd() -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        return os.memfd_create("armorclaw-secrets", flags | _MFD_NOEXEC_SEAL)
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
        return os.memfd_create("armorclaw-secrets", flags)  # a kernel before 6.3


class SecretGrant:
    """One generation's right to take its secrets once, by descriptor or inline, whichever comes first.

    The payload becomes the grant's own: it is overwritten when it was taken and by `revoke`.
    """

    def __init__(self, payload: bytearray) -> None:
        self.fingerprint = hashlib.sha256(payload).hexdigest()
        """SHA-256 of the payload, 64 hex digits."""
        self._payload: bytearray | None = payload

    @classmethod
    def taken_before(cls, payload: bytearray) -> SecretGrant:
        """For an adopted container, which has had its secrets from an earlier life of the bridge.

        `payload` is what it would get today, so that `confirms` tells whether what it has is still right.
        """
        grant = cls(payload)
        grant.revoke()
        return grant

    def __repr__(self) -> str:
        return f"<SecretGrant {'taken' if self.taken else 'open'}>"

    @property
    def taken(self) -> bool:
        """Whether nothing is to be had any more."""
        return self._payload is None

    def take_fd(self) -> tuple[int, int]:
        """A sealed descriptor, which the caller closes, and its size in bytes.

        Raises `secrets_taken`, and OSError, after which the grant is still open.
        """
        payload = self._open()
        fd = sealed_memfd(payload)
        size = len(payload)
        self.revoke()
        return fd, size

    def take_inline(self) -> str:
        """The payload as text, for those who cannot receive descriptors. Raises `secrets_taken`."""
        text = self._open().decode("ascii")
        self.revoke()
        return text

    def confirms(self, fingerprint: str | None) -> bool:
        """Whether an agent that reports this fingerprint has what was granted; None says it has not taken any."""
        return fingerprint is not None and hmac.compare_digest(fingerprint.encode(), self.fingerprint.encode())

    def revoke(self) -> None:
        """The generation is over, or has taken them: overwrite the payload."""
        if self._payload is not None:
            self._payload[:] = bytes(len(self._payload))
            self._payload = None

    def _open(self) -> bytearray:
        if self._payload is None:
            raise ArmorclawError("secrets_taken", "the secrets of this container have been taken already")
        return self._payload
