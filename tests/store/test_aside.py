"""What is set aside keeps its name, its log, and the company of others."""

from __future__ import annotations

from pathlib import Path

import structlog

from armorclaw.store.aside import SetAside, last_set_aside, set_aside

NOON = 1_795_348_800_000
"""2026-11-22T12:00:00Z"""


def names(path: Path) -> list[str]:
    return sorted(file.name for file in path.parent.iterdir())


def test_the_file_and_its_log_stay_together(path: Path) -> None:
    for ending in ("", "-wal", "-shm"):
        Path(f"{path}{ending}").write_text(f"content{ending}")
    with structlog.testing.capture_logs() as logs:
        aside = set_aside(path, "page 7", NOON)
    assert aside == SetAside(path.with_name("bridge.db.damaged-20261122T120000Z"), "page 7", NOON)
    moved = [f"bridge.db.damaged-20261122T120000Z{ending}" for ending in ("", "-shm", "-wal")]
    assert names(path) == moved
    assert Path(f"{aside.path}-wal").read_text() == "content-wal"
    assert [(entry["log_level"], entry["why"]) for entry in logs] == [("critical", "page 7")]


def test_nothing_that_was_set_aside_is_ever_overwritten(path: Path) -> None:
    moved = []
    for content in ("first", "second", "third"):
        path.write_text(content)
        moved.append(set_aside(path, "", NOON).path)
    assert [each.read_text() for each in moved] == ["first", "second", "third"]
    assert len(set(moved)) == 3


def test_a_log_alone_is_set_aside_too_and_beside_no_other_file(path: Path) -> None:
    path.write_text("damaged")
    first = set_aside(path, "", NOON)
    Path(f"{path}-wal").write_text("log")
    second = set_aside(path, "", NOON)
    assert second.path.name == "bridge.db.damaged-20261122T120000Z-2-wal"
    assert not Path(f"{first.path}-wal").exists()


def test_the_last_is_found_again(path: Path) -> None:
    assert last_set_aside(path) is None
    for at_ms, copies in ((NOON, 1), (NOON + 60_000, 11), (NOON - 60_000, 1)):
        for _ in range(copies):
            for ending in ("", "-wal"):
                Path(f"{path}{ending}").write_text("x")
            set_aside(path, "", at_ms)
    found = last_set_aside(path)
    assert found is not None
    assert found.path.name == "bridge.db.damaged-20261122T120100Z-11"
    assert found.at_ms == NOON + 60_000
    found.path.unlink()
    found = last_set_aside(path)
    assert found is not None
    assert found.path.name == "bridge.db.damaged-20261122T120100Z-11-wal"


def test_other_files_are_not_taken_for_it(path: Path) -> None:
    for name in ("bridge.db.damaged-", "bridge.db.damaged-by-hand", "other.db.damaged-20261122T120000Z", "bridge.db"):
        path.with_name(name).write_text("x")
    assert last_set_aside(path) is None
