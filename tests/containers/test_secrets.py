from __future__ import annotations

import fcntl
import hashlib
import json
import mmap
import os

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from armorclaw.containers.secrets import SecretGrant, sealed_memfd, secrets_payload
from armorclaw.errors import ArmorclawError

pytestmark = pytest.mark.mission("P0.2")


@attrs.frozen
class Key:
    id: str
    token: str
    provider: str = "openai"
    display_name: str = ""


TOKEN = "sk-canary-5f2b"


def grant() -> SecretGrant:
    return SecretGrant(secrets_payload([Key("main", TOKEN)]))


def test_payload_is_canonical() -> None:
    keys = [Key("b", "2"), Key("a", "ü", display_name="Anna")]
    payload = bytes(secrets_payload(keys))
    assert payload == bytes(secrets_payload(reversed(keys)))
    assert payload == (
        b'{"keys":{"a":{"display_name":"Anna","provider":"openai","token":"\\u00fc"},'
        b'"b":{"display_name":"","provider":"openai","token":"2"}}}'
    )
    assert bytes(secrets_payload([])) == b'{"keys":{}}'


@given(tokens=st.dictionaries(st.text(max_size=20), st.text(max_size=50), max_size=5))
def test_payload_brings_every_token_unchanged(tokens: dict[str, str]) -> None:
    payload = secrets_payload([Key(name, token) for name, token in tokens.items()])
    assert payload.isascii()
    assert {name: key["token"] for name, key in json.loads(payload)["keys"].items()} == tokens


def test_sealed_memory_cannot_be_changed() -> None:
    fd = sealed_memfd(b"secret")
    try:
        assert os.read(fd, 100) == b"secret"
        seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
        assert fcntl.fcntl(fd, fcntl.F_GET_SEALS) & seals == seals
        assert not os.get_inheritable(fd)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(fd, b"x")
        again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
        try:
            for change in (
                lambda: os.write(again, b"x"),
                lambda: os.ftruncate(again, 0),
                lambda: os.ftruncate(again, 4096),
                lambda: mmap.mmap(again, 6, mmap.MAP_SHARED),
                lambda: fcntl.fcntl(again, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE),
            ):
                with pytest.raises(PermissionError):
                    change()
        finally:
            os.close(again)
        assert os.pread(fd, 100, 0) == b"secret"
    finally:
        os.close(fd)


def test_sealed_memory_takes_more_than_one_write() -> None:
    data = os.urandom(3 * 1024 * 1024)
    fd = sealed_memfd(data)
    with open(fd, "rb") as file:
        assert file.read() == data


def test_taken_once_by_descriptor() -> None:
    one = grant()
    before = one.taken
    fd, size = one.take_fd()
    with open(fd, "rb") as file:
        payload = file.read()
    assert len(payload) == size
    assert TOKEN.encode() in payload
    assert one.fingerprint == hashlib.sha256(payload).hexdigest()
    assert (before, one.taken) == (False, True)
    for take in (one.take_fd, one.take_inline):
        with pytest.raises(ArmorclawError) as caught:
            take()
        assert caught.value.name == "secrets_taken"
        assert caught.value.kind.code == -32007


def test_taken_once_inline() -> None:
    one = grant()
    text = one.take_inline()
    assert json.loads(text)["keys"]["main"]["token"] == TOKEN
    assert one.fingerprint == hashlib.sha256(text.encode()).hexdigest()
    with pytest.raises(ArmorclawError, match="already"):
        one.take_fd()


def test_no_memory_for_a_descriptor_leaves_it_open(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(24, "Too many open files")

    one = grant()
    with monkeypatch.context() as patch:
        patch.setattr(os, "memfd_create", full)
        with pytest.raises(OSError, match="Too many"):
            one.take_fd()
    assert TOKEN in one.take_inline()


def test_an_older_kernel_gets_a_descriptor_without_the_newest_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    create = os.memfd_create

    def older(name: str, flags: int) -> int:
        if flags & 0x8:
            raise OSError(22, "Invalid argument")
        return create(name, flags)

    monkeypatch.setattr(os, "memfd_create", older)
    with open(sealed_memfd(b"x"), "rb") as file:
        assert file.read() == b"x"


def test_what_is_taken_or_revoked_is_overwritten() -> None:
    for end in (SecretGrant.take_inline, SecretGrant.revoke):
        payload = secrets_payload([Key("main", TOKEN)])
        end(SecretGrant(payload))
        assert set(payload) == {0}


def test_an_adopted_container_has_had_its_secrets() -> None:
    before = grant()
    one = SecretGrant.taken_before(secrets_payload([Key("main", TOKEN)]))
    assert one.taken
    assert one.confirms(before.fingerprint)
    with pytest.raises(ArmorclawError):
        one.take_fd()


def test_fingerprint_is_compared() -> None:
    one = grant()
    assert one.confirms(one.fingerprint)
    assert not one.confirms("0" * 64)
    assert not one.confirms("ü")
    assert not one.confirms(None)


def test_no_secret_in_its_text() -> None:
    one = grant()
    assert TOKEN not in f"{one!r} {one} {vars(type(one))}"
    one.take_inline()
    with pytest.raises(ArmorclawError) as caught:
        one.take_inline()
    assert TOKEN not in str(caught.value.payload())
