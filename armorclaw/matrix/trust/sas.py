"""The arithmetic of a short authentication string (SAS): keys agreed on, commitment, emoji, numbers, MACs.

Source: "Short Authentication String (SAS) verification" of the Matrix specification, with the key agreement
curve25519-hkdf-sha256, the hash sha256 and the MACs hkdf-hmac-sha256.v2 and hkdf-hmac-sha256.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Mapping
from typing import Any

import attrs
import vodozemac

from armorclaw.matrix.crypto.olm import OlmError, guarded
from armorclaw.matrix.crypto.upstream import canonical_json
from armorclaw.matrix.trust.emoji import EMOJI

MAC_V2 = "hkdf-hmac-sha256.v2"
MAC_V1 = "hkdf-hmac-sha256"
"""As libolm wrote it: its base64 is not base64. Clients on libolm know no other."""


class SasError(OlmError):
    """What the other side sent cannot be used."""


@attrs.frozen
class ShortAuth:
    """What both people compare: seven emoji, or three numbers of four digits."""

    emoji: tuple[tuple[str, str], ...]
    """Each with its English name."""
    decimals: tuple[int, int, int]


@attrs.frozen
class End:
    """One side of a verification."""

    user_id: str
    device_id: str

    def __str__(self) -> str:
        return self.user_id + self.device_id


class KeyAgreement:
    """Our half of one verification; it agrees on a secret once."""

    def __init__(self) -> None:
        self._sas = vodozemac.Sas()
        self.public_key: str = self._sas.public_key.to_base64()

    def agree(self, their_key: str) -> SharedSecret:
        """The secret that we share with the owner of `their_key`. Raises SasError for what is no usable key."""
        check_key(their_key)
        # vodozemac refuses keys of low order, for which the secret is known to everybody
        with guarded(SasError):
            made = self._sas.diffie_hellman(vodozemac.Curve25519PublicKey.from_base64(their_key))
        return SharedSecret(made, self.public_key, their_key)


class SharedSecret:
    """What both sides derive the same strings from, and nobody else can."""

    def __init__(self, established: vodozemac.EstablishedSas, our_key: str, their_key: str) -> None:
        self._established = established
        self._our_key = our_key
        self._their_key = their_key

    def short_auth(self, own: End, theirs: End, transaction_id: str, *, we_started: bool) -> ShortAuth:
        """What our person compares with theirs."""
        ours_text = f"{own.user_id}|{own.device_id}|{self._our_key}"
        their_text = f"{theirs.user_id}|{theirs.device_id}|{self._their_key}"
        first, second = (ours_text, their_text) if we_started else (their_text, ours_text)
        info = f"MATRIX_KEY_VERIFICATION_SAS|{first}|{second}|{transaction_id}"
        with guarded(SasError):
            made = self._established.bytes(info)
        return ShortAuth(tuple(EMOJI[index] for index in made.emoji_indices), made.decimals)

    def mac(self, method: str, text: str, info: str) -> str:
        """What proves that its sender has the secret and means `text`."""
        calculate = (
            self._established.calculate_mac_invalid_base64 if method == MAC_V1 else self._established.calculate_mac
        )
        with guarded(SasError):
            return str(calculate(text, info))

    def macs(self, method: str, keys: Mapping[str, str], sender: End, receiver: End, txn: str) -> dict[str, Any]:
        """`mac` and `keys` of m.key.verification.mac: for each key by its id, and for the list of the ids."""
        info = f"MATRIX_KEY_VERIFICATION_MAC{sender}{receiver}{txn}"
        each = {key_id: self.mac(method, key, info + key_id) for key_id, key in keys.items()}
        return {"mac": each, "keys": self.mac(method, ",".join(sorted(keys)), info + "KEY_IDS")}

    def proves(
        self,
        method: str,
        said: Mapping[str, str],
        listed: str,
        known: Mapping[str, str],
        sender: End,
        receiver: End,
        txn: str,
    ) -> dict[str, str] | None:
        """The keys of `known` that the other side has as well; None if any differs or the list was changed.

        `said` and `listed` are `mac` and `keys` of its message. Keys that we do not know are left out.
        """
        info = f"MATRIX_KEY_VERIFICATION_MAC{sender}{receiver}{txn}"
        if not _same(listed, self.mac(method, ",".join(sorted(said)), info + "KEY_IDS")):
            return None
        proven = {key_id: known[key_id] for key_id in said if key_id in known}
        right = [_same(said[key_id], self.mac(method, key, info + key_id)) for key_id, key in proven.items()]
        return proven if all(right) else None


def commitment(public_key: str, start: Mapping[str, Any]) -> str:
    """What binds the side that accepts to its key before it sees the other's: of the content of the start message."""
    text = public_key + canonical_json(start)
    return unpadded(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest())


def unpadded(data: bytes) -> str:
    """Base64 without the padding, as Matrix writes it."""
    return base64.b64encode(data).rstrip(b"=").decode()


def check_key(key: str) -> bytes:
    """The 32 bytes of a public key in its one unpadded form. Raises SasError for anything else.

    A look at the form first, since vodozemac panics on some that are no keys.
    """
    try:
        data = base64.b64decode(key + "=" * (-len(key) % 4), validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if len(data) != 32 or unpadded(data) != key:
        raise SasError("it is no public key")
    return data


def _same(one: str, other: str) -> bool:
    return hmac.compare_digest(one.encode("utf-8", "surrogatepass"), other.encode())
