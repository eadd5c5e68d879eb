"""What is encrypted here is what Matrix clients decrypt, and the other way round."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armorclaw.matrix.media.attachment import FileKey, MalformedError, Opening, Sealing

from .upstream_files import decrypt_attachment, encrypt_attachment

URI = "mxc://x/abc"


def pieces_of(data: bytes, seed: int) -> list[bytes]:
    cuts = sorted(random.Random(seed).choices(range(len(data) + 1), k=7))
    return [data[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True)]


@given(st.binary(max_size=5000), st.integers())
def test_others_read_what_is_sealed_here(data: bytes, seed: int) -> None:
    sealing = Sealing()
    sealed = b"".join(sealing.seal(piece) for piece in pieces_of(data, seed))
    file = sealing.key().written(URI)
    assert file["url"] == URI
    assert len(sealed) == len(data)
    assert decrypt_attachment(sealed, file["key"]["k"], file["hashes"]["sha256"], file["iv"]) == data


@given(st.binary(max_size=5000), st.integers())
def test_what_others_seal_is_read_here(data: bytes, seed: int) -> None:
    sealed, file = encrypt_attachment(data)
    opening = Opening(FileKey.read(file.serialize()))
    assert b"".join(opening.open(piece) for piece in pieces_of(sealed, seed)) == data
    assert opening.is_whole()


def test_a_key_is_of_one_file() -> None:
    one, other = (Sealing().key() for _ in range(2))
    assert (one.key, one.iv[:8]) != (other.key, other.iv[:8])
    assert one.iv[8:] == bytes(8)  # the specification asks for a counter that begins at 0


def test_a_counter_that_begins_elsewhere_is_read() -> None:
    """As some clients write it."""
    sealing = Sealing()
    sealed = sealing.seal(bytes(16)) + sealing.seal(b"0123456789abcdef")
    key = sealing.key()
    later = FileKey(key.key, key.iv[:8] + (1).to_bytes(8, "big"), key.sha256)
    assert Opening(later).open(sealed[16:]) == b"0123456789abcdef"


@pytest.mark.parametrize("at", [0, 17, 999])
def test_one_changed_bit_is_seen(at: int) -> None:
    sealing = Sealing()
    sealed = bytearray(sealing.seal(bytes(1000)))
    sealed[at] ^= 1
    opening = Opening(sealing.key())
    opening.open(bytes(sealed))
    assert not opening.is_whole()


def test_a_missing_end_is_seen() -> None:
    sealing = Sealing()
    sealed = sealing.seal(bytes(1000))
    opening = Opening(sealing.key())
    opening.open(sealed[:-1])
    assert not opening.is_whole()


def changed(**members: Any) -> dict[str, Any]:
    file = Sealing().key().written(URI)
    return {**file, **members}


@pytest.mark.parametrize(
    "file",
    [
        {},
        changed(v="v1"),
        changed(v=None),
        changed(key=None),
        changed(key="k"),
        changed(key={"kty": "oct", "alg": "A256CTR"}),
        changed(key={"kty": "oct", "alg": "A256CTR", "k": 5}),
        changed(key={"kty": "oct", "alg": "A256CTR", "k": "AAAA"}),
        changed(key={"kty": "oct", "alg": "A256CTR", "k": "é" * 43}),
        changed(key={"kty": "oct", "alg": "A256CTR", "k": "A" * 10_000}),
        changed(key={"kty": "oct", "alg": "A256GCM", "k": "A" * 43}),
        changed(key={"kty": "RSA", "alg": "A256CTR", "k": "A" * 43}),
        changed(iv=None),
        changed(iv="A" * 21),
        changed(iv="!" * 22),
        changed(hashes=None),
        changed(hashes={"md5": "A"}),
        changed(hashes={"sha256": "A" * 42}),
        changed(hashes={"sha256": ["A" * 43]}),
    ],
)
def test_what_describes_no_file_is_refused(file: dict[str, Any]) -> None:
    with pytest.raises(MalformedError) as caught:
        FileKey.read(file)
    assert "A" * 21 not in str(caught.value)  # no part of a key


@pytest.mark.parametrize("padding", ["", "="])
def test_base64_of_either_kind(padding: str) -> None:
    file = changed()
    standard = file["key"]["k"].replace("-", "+").replace("_", "/") + padding
    assert FileKey.read({**file, "key": {**file["key"], "k": standard}}) == FileKey.read(file)


def test_no_key_in_a_repr() -> None:
    key = Sealing().key()
    assert repr(key) == "FileKey()"
