"""The part of python-olm's API that mautrix.crypto uses, on vodozemac; what else we need of Olm is here too.

mautrix says `import olm`. `load_mautrix_crypto` lets it find this module under that name while mautrix.crypto is
imported, and only then: a real python-olm in the same process stays importable for anybody else.

Two differences of the libraries shape this module. vodozemac decrypts the first message while it creates an inbound
session, so `inbound_session` returns both. And its exceptions, one of them a Rust panic that no `except Exception`
would stop, are never let out: whatever a stranger sends ends in an OlmError.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import importlib
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from types import ModuleType
from typing import Any, ClassVar, Self, cast

import vodozemac

PREKEY, MESSAGE = 0, 1
"""Types of an Olm message, as m.room.encrypted has them."""


class OlmError(ValueError):
    """A key, a message or a pickle is not what it should be."""


class OlmAccountError(OlmError):
    """As python-olm names it."""


class OlmSessionError(OlmError):
    """As python-olm names it."""


class OlmGroupSessionError(OlmError):
    """As python-olm names it."""


class OlmVerifyError(OlmError):
    """As python-olm names it."""


class PkSigningError(OlmError):
    """As python-olm names it."""


@contextmanager
def guarded(error: type[OlmError]) -> Iterator[None]:
    """Turns what vodozemac raises, panics too, into `error`. For every direct use of vodozemac."""
    try:
        yield
    except BaseException as raised:
        if isinstance(raised, (ValueError, OverflowError)) or type(raised).__module__ == "pyo3_runtime":
            raise error(str(raised) or type(raised).__name__) from raised
        raise


class _Pickled:
    """One vodozemac object, with python-olm's pickle() and from_pickle()."""

    _kind: ClassVar[Any]
    _error: ClassVar[type[OlmError]]
    _inner: Any

    def pickle(self, passphrase: str = "") -> bytes:
        with guarded(self._error):
            return cast(str, self._inner.pickle(_pickle_key(passphrase))).encode("ascii")

    @classmethod
    def from_pickle(cls, pickle: bytes, passphrase: str = "") -> Self:
        made = cls.__new__(cls)
        with guarded(cls._error):
            made._inner = cls._kind.from_pickle(bytes(pickle).decode("ascii"), _pickle_key(passphrase))
        return made


class Account(_Pickled):
    """The keys of one device. vodozemac forgets a one-time key as soon as a session is made from it."""

    _kind, _error = vodozemac.Account, OlmAccountError

    max_one_time_keys = 100
    """libolm's figure, of which half is kept on the homeserver; vodozemac holds 5,000 and says 50."""

    def __init__(self) -> None:
        self._inner = vodozemac.Account()

    @property
    def identity_keys(self) -> dict[str, str]:
        """Both public keys in base64, `curve25519` and `ed25519`."""
        inner = self._inner
        return {"curve25519": inner.curve25519_key.to_base64(), "ed25519": inner.ed25519_key.to_base64()}

    def sign(self, message: str | bytes) -> str:
        with guarded(OlmAccountError):
            return cast(str, self._inner.sign(_bytes(message)).to_base64())

    def generate_one_time_keys(self, count: int) -> None:
        with guarded(OlmAccountError):
            self._inner.generate_one_time_keys(count)

    @property
    def one_time_keys(self) -> dict[str, dict[str, str]]:
        """Those that are not published yet, by id."""
        return {"curve25519": {name: key.to_base64() for name, key in self._inner.one_time_keys.items()}}

    def generate_fallback_key(self) -> None:
        self._inner.generate_fallback_key()

    @property
    def fallback_key(self) -> dict[str, dict[str, str]]:
        """The one that is not published yet, if any, by id."""
        return {"curve25519": {name: key.to_base64() for name, key in self._inner.fallback_key.items()}}

    def mark_keys_as_published(self) -> None:
        self._inner.mark_keys_as_published()

    def inbound_session(self, sender_key: str, ciphertext: str) -> tuple[Session, bytes]:
        """A session from the pre-key message that asks for one, and what it says. Raises OlmSessionError."""
        with guarded(OlmSessionError):
            sender = vodozemac.Curve25519PublicKey.from_base64(sender_key)
            message = vodozemac.PreKeyMessage.from_base64(_encode(_decode(ciphertext)))
            inner, plaintext = self._inner.create_inbound_session(sender, message)
        return Session._of(inner), bytes(plaintext)

    def outbound_session(self, identity_key: str, one_time_key: str) -> Session:
        """A session with a device whose one-time key was claimed. Raises OlmSessionError."""
        with guarded(OlmSessionError):
            identity = vodozemac.Curve25519PublicKey.from_base64(identity_key)
            return Session._of(
                self._inner.create_outbound_session(identity, vodozemac.Curve25519PublicKey.from_base64(one_time_key))
            )


class Session(_Pickled):
    """A pairwise channel. Its messages are (type, base64)."""

    _kind, _error = vodozemac.Session, OlmSessionError

    @classmethod
    def _of(cls, inner: Any) -> Self:
        made = cls.__new__(cls)
        made._inner = inner
        return made

    @property
    def id(self) -> str:
        return cast(str, self._inner.session_id)

    def matches(self, ciphertext: str) -> bool:
        """Whether a pre-key message belongs to this session; False for one that cannot be read."""
        try:
            with guarded(OlmSessionError):
                message = vodozemac.PreKeyMessage.from_base64(_encode(_decode(ciphertext)))
                return cast(bool, self._inner.session_matches(message))
        except OlmSessionError:
            return False

    def encrypt(self, plaintext: str | bytes) -> tuple[int, str]:
        with guarded(OlmSessionError):
            kind, data = self._inner.encrypt(_bytes(plaintext)).to_parts()
        return kind, _encode(data)

    def decrypt(self, kind: int, ciphertext: str) -> bytes:
        """Raises OlmSessionError; the session is then as it was."""
        with guarded(OlmSessionError):
            return bytes(self._inner.decrypt(vodozemac.AnyOlmMessage.from_parts(kind, _decode(ciphertext))))


class InboundGroupSession(_Pickled):
    """The key to what one device says in a room."""

    _kind, _error = vodozemac.InboundGroupSession, OlmGroupSessionError

    def __init__(self, session_key: str) -> None:
        with guarded(OlmGroupSessionError):
            self._inner = vodozemac.InboundGroupSession(vodozemac.SessionKey(session_key))

    @classmethod
    def import_session(cls, session_key: str) -> Self:
        """From the format of forwarded keys and of exports, which carries no signature."""
        made = cls.__new__(cls)
        with guarded(OlmGroupSessionError):
            made._inner = vodozemac.InboundGroupSession.import_session(vodozemac.ExportedSessionKey(session_key))
        return made

    def export_session(self, message_index: int) -> str:
        """The key from that message on. Raises OlmGroupSessionError for one from before we had it."""
        with guarded(OlmGroupSessionError):
            key = self._inner.export_at(message_index)
            if key is None:
                raise ValueError("the key is of a later message")
            return cast(str, key.to_base64())

    @property
    def id(self) -> str:
        return cast(str, self._inner.session_id)

    @property
    def first_known_index(self) -> int:
        return cast(int, self._inner.first_known_index)

    def decrypt(self, ciphertext: str) -> tuple[bytes, int]:
        """What it says and which message of the session it is, counted from 0. Raises OlmGroupSessionError."""
        with guarded(OlmGroupSessionError):
            opened = self._inner.decrypt(vodozemac.MegolmMessage.from_base64(ciphertext))
            return bytes(opened.plaintext), opened.message_index

    def is_before(self, ciphertext: str) -> bool:
        """Whether a message is older than the key."""
        try:
            with guarded(OlmGroupSessionError):
                place = vodozemac.MegolmMessage.from_base64(ciphertext).message_index()
        except OlmGroupSessionError:
            return False
        return place < self.first_known_index


class OutboundGroupSession(_Pickled):
    """The key to what we say in a room."""

    _kind, _error = vodozemac.GroupSession, OlmGroupSessionError

    def __init__(self) -> None:
        self._inner = vodozemac.GroupSession()

    @property
    def id(self) -> str:
        return cast(str, self._inner.session_id)

    @property
    def message_index(self) -> int:
        """The number of the next message, counted from 0."""
        return cast(int, self._inner.message_index)

    @property
    def session_key(self) -> str:
        """The key from the next message on, signed by the session."""
        return cast(str, self._inner.session_key.to_base64())

    def encrypt(self, plaintext: str | bytes) -> str:
        with guarded(OlmGroupSessionError):
            return cast(str, self._inner.encrypt(_bytes(plaintext)).to_base64())


class PkSigning:
    """An Ed25519 key from its seed, as cross-signing has them; vodozemac's binding has none."""

    def __init__(self, seed: bytes) -> None:
        from Crypto.PublicKey import ECC  # only here: most lives of a session sign nothing
        from Crypto.Signature import eddsa

        with guarded(PkSigningError):
            key = ECC.construct(curve="Ed25519", seed=bytes(seed))
        self._signer = eddsa.new(key, "rfc8032")
        self.public_key = _encode(key.public_key().export_key(format="raw"))

    @classmethod
    def generate_seed(cls) -> bytes:
        return os.urandom(32)

    def sign(self, message: str | bytes) -> str:
        return _encode(self._signer.sign(_bytes(message)))


def ed25519_verify(key: str, message: str | bytes, signature: str) -> None:
    """Raises OlmVerifyError unless `key` signed the message."""
    with guarded(OlmVerifyError):
        if len(_decode(key)) != 32:
            raise ValueError("an Ed25519 key has 32 bytes")  # vodozemac 0.10 panics
        public = vodozemac.Ed25519PublicKey.from_base64(key)
        public.verify_signature(_bytes(message), vodozemac.Ed25519Signature.from_base64(signature))


def load_mautrix_crypto() -> None:
    """Import mautrix.crypto with this module as its `olm`; again, it does nothing. Raises ImportError if it is there
    with another one.

    Meanwhile drivers of databases that its stores could use, and a second way from pycryptodome into C, are not to be
    found: 5 MB for which we have no use.
    """
    native = ModuleType("_libolm")
    native.ffi = native.lib = None  # type: ignore[attr-defined]  # mautrix asks for them and, with us, uses neither
    drivers = ModuleType("asyncpg")
    drivers.UniqueViolationError = _NeverRaised  # type: ignore[attr-defined]  # the one thing that is needed of it
    names: dict[str, ModuleType | None] = {"olm": sys.modules[__name__], "_libolm": native}
    spared = {"asyncpg": drivers, "aiosqlite": None, "sqlite3": None, "cffi": None}  # None: it cannot be imported
    names |= {name: module for name, module in spared.items() if name not in sys.modules}
    before = {name: sys.modules.get(name) for name in names}
    sys.modules.update(names)  # type: ignore[arg-type]
    try:
        for name in ("mautrix.crypto", "mautrix.crypto.store.asyncpg", "mautrix.crypto.attachments"):
            importlib.import_module(name)
    finally:
        for name, module in before.items():
            if module is None:
                del sys.modules[name]
            else:
                sys.modules[name] = module
    if not issubclass(sys.modules["mautrix.crypto"].OlmAccount, Account):
        raise ImportError("mautrix.crypto was imported before, with another olm")


class _NeverRaised(Exception):  # noqa: N818 - a name of asyncpg's, to be caught
    """What PostgreSQL would say of a row that is there already."""


@lru_cache(maxsize=8)
def _pickle_key(passphrase: str) -> bytes:
    """vodozemac wants 32 bytes: HKDF-SHA256 (RFC 5869), no salt, one block."""
    extracted = hmac.digest(bytes(32), passphrase.encode(), hashlib.sha256)
    return hmac.digest(extracted, b"armorclaw pickle\x01", hashlib.sha256)


def _bytes(data: str | bytes) -> bytes:
    return data.encode() if isinstance(data, str) else bytes(data)


def _encode(data: bytes) -> str:
    return base64.b64encode(data).rstrip(b"=").decode("ascii")


def _decode(text: str) -> bytes:
    """Base64 with or without padding. Raises ValueError."""
    raw = text.encode("ascii").rstrip(b"=")
    return binascii.a2b_base64(raw + b"=" * (-len(raw) % 4), strict_mode=True)
