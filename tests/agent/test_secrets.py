"""What is taken, how it is handed on, and that it shows nowhere."""

from __future__ import annotations

import json
import os

import pytest

from armorclaw.agent.secrets import Secrets, read_secrets, sealed_memfd, secrets_file

from .conftest import FINGERPRINT, PAYLOAD


def test_secrets_by_id() -> None:
    secrets = Secrets(PAYLOAD)
    key = secrets["openai-default"]
    assert (key.id, key.provider, key.token, key.display_name) == ("openai-default", "openai", "sk-canary-1", "")
    assert key.env_name == "OPENAI_API_KEY"
    assert list(secrets) == ["openai-default"]
    assert "other" not in secrets
    assert secrets.fingerprint == FINGERPRINT
    assert (len(Secrets()), Secrets().fingerprint) == (0, None)


def test_no_repr_shows_a_token() -> None:
    secrets = Secrets(PAYLOAD)
    assert "canary" not in f"{secrets!r}{secrets}{secrets['openai-default']!r}{secrets['openai-default']}"
    assert "openai-default" in repr(secrets)


def test_the_file_of_a_child_reads_both_ways() -> None:
    """As this library has it, and as programs for the original bridge read it: one provider, one token."""
    file = json.loads(secrets_file(Secrets(PAYLOAD)))
    assert (file["provider"], file["token"]) == ("openai", "sk-canary-1")
    assert file["keys"] == json.loads(PAYLOAD)["keys"]
    assert json.loads(secrets_file(Secrets(b'{"keys":{}}'))) == {"keys": {}}


def test_a_sealed_file_cannot_be_changed() -> None:
    fd = sealed_memfd(b"secret")
    try:
        assert os.read(fd, 100) == b"secret"
        assert not os.get_inheritable(fd)
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.write(fd, b"x")
        again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
        try:
            for change in (lambda: os.write(again, b"x"), lambda: os.ftruncate(again, 0)):
                with pytest.raises(PermissionError):
                    change()
        finally:
            os.close(again)
        assert read_secrets(fd, 6) == b"secret"
        with pytest.raises(OSError, match="end after 6 of 7 bytes"):
            read_secrets(fd, 7)
    finally:
        os.close(fd)
