"""Which key fits, without opening anything."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import structlog

from armorclaw.store.keycheck import key_fits, note_key

KEY = bytes(range(32))


def test_nobody_knows_before_it_is_noted(path: Path) -> None:
    assert key_fits(path, KEY) is None


def test_it_knows_one_key_from_another(path: Path) -> None:
    note_key(path, KEY)
    assert key_fits(path, KEY) is True
    assert key_fits(path, bytes(32)) is False
    note_key(path, bytes(32))
    assert key_fits(path, KEY) is False


def test_the_note_is_private_and_holds_no_key(path: Path) -> None:
    note_key(path, KEY)
    (note,) = path.parent.iterdir()
    assert note.name == "bridge.db.check"
    assert note.stat().st_mode & 0o777 == 0o600
    assert KEY.hex() not in note.read_text()


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b"ab", b"00" * 31])
def test_a_damaged_note_says_nothing(path: Path, content: bytes) -> None:
    path.with_name("bridge.db.check").write_bytes(content)
    assert key_fits(path, KEY) is None
    note_key(path, KEY)
    assert key_fits(path, KEY) is True


def test_where_nothing_can_be_written_it_is_left_for_another_time(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(fd: int) -> None:
        raise OSError(28, os.strerror(28))

    note_key(path, bytes(32))
    monkeypatch.setattr(os, "fsync", full)
    with structlog.testing.capture_logs() as logs:
        note_key(path, KEY)
    assert [entry["error"] for entry in logs] == ["No space left on device"]
    assert key_fits(path, bytes(32)) is True  # what was there is whole
