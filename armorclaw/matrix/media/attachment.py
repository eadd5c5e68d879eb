"""Attachments of encrypted rooms: AES-CTR as they stream, and the hash by which the receiver knows them whole.

Matrix, client-server API, "Sending encrypted attachments". A key is of one file, made here, and goes nowhere but into
the content of the message about it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import secrets
from collections.abc import Mapping
from typing import Any

import attrs

VERSION = "v2"

_KEY_BYTES = 32
_PREFIX_BYTES = 8  # of the 16 of an initialisation vector; the others count blocks, from 0 as the specification asks
_HASH_BYTES = 32


class MalformedError(ValueError):
    """What describes an encrypted file is not as it must be. The text quotes nothing of it."""


@attrs.frozen
class FileKey:
    """What a receiver needs beside the bytes: key, initialisation vector, SHA-256 of the ciphertext."""

    key: bytes = attrs.field(repr=False)
    iv: bytes = attrs.field(repr=False)
    sha256: bytes = attrs.field(repr=False)

    @classmethod
    def read(cls, file: Mapping[str, Any]) -> FileKey:
        """From an EncryptedFile of Matrix. Raises MalformedError."""
        key, hashes = file.get("key"), file.get("hashes")
        if file.get("v") != VERSION:
            raise MalformedError("it is encrypted in another way than v2")
        if not isinstance(key, Mapping) or key.get("kty") != "oct" or key.get("alg") != "A256CTR":
            raise MalformedError("its key is no A256CTR key")
        if not isinstance(hashes, Mapping):
            raise MalformedError("it has no hashes")
        return cls(
            _bytes(key.get("k"), _KEY_BYTES, "key"),
            _bytes(file.get("iv"), 16, "initialisation vector"),
            _bytes(hashes.get("sha256"), _HASH_BYTES, "SHA-256"),
        )

    def written(self, uri: str) -> dict[str, Any]:
        """As an EncryptedFile of Matrix, for the file that lies at `uri`."""
        key = {
            "kty": "oct",
            "key_ops": ["encrypt", "decrypt"],
            "alg": "A256CTR",
            "k": _url_safe(self.key),
            "ext": True,
        }
        return {
            "v": VERSION,
            "url": uri,
            "key": key,
            "iv": _plain(self.iv),
            "hashes": {"sha256": _plain(self.sha256)},
        }


class Sealing:
    """Encrypts one file, piece by piece, under a key of its own."""

    def __init__(self) -> None:
        self._key = secrets.token_bytes(_KEY_BYTES)
        self._iv = secrets.token_bytes(_PREFIX_BYTES) + bytes(16 - _PREFIX_BYTES)
        self._cipher = _cipher(self._key, self._iv)
        self._hash = hashlib.sha256()

    def seal(self, piece: bytes) -> bytes:
        sealed: bytes = self._cipher.encrypt(piece)
        self._hash.update(sealed)
        return sealed

    def key(self) -> FileKey:
        """For what was sealed so far."""
        return FileKey(self._key, self._iv, self._hash.digest())


class Opening:
    """Decrypts one file, piece by piece. What it gives is not to be trusted before `is_whole` says so."""

    def __init__(self, key: FileKey) -> None:
        self._cipher = _cipher(key.key, key.iv)
        self._hash = hashlib.sha256()
        self._expected = key.sha256

    def open(self, sealed: bytes) -> bytes:
        self._hash.update(sealed)
        piece: bytes = self._cipher.decrypt(sealed)
        return piece

    def is_whole(self) -> bool:
        """Whether all that was opened is the file that its sender sealed."""
        return hmac.compare_digest(self._hash.digest(), self._expected)


def _cipher(key: bytes, iv: bytes) -> Any:
    from Crypto.Cipher import AES  # 130 ms, which only encrypted files are worth

    counter = int.from_bytes(iv[_PREFIX_BYTES:], "big")  # some clients begin elsewhere than at 0
    return AES.new(key, AES.MODE_CTR, nonce=iv[:_PREFIX_BYTES], initial_value=counter)


def _bytes(text: object, size: int, what: str) -> bytes:
    """From base64 of either alphabet, with padding or without."""
    if isinstance(text, str) and len(text) <= 2 * size:
        bare = text.rstrip("=").replace("-", "+").replace("_", "/")
        try:
            found = base64.b64decode(bare + "=" * (-len(bare) % 4), validate=True)
        except (binascii.Error, ValueError):
            found = b""
        if len(found) == size:
            return found
    raise MalformedError(f"its {what} is not {size} bytes of base64")


def _plain(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii").rstrip("=")


def _url_safe(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode("ascii").rstrip("=")
