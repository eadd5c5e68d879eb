from __future__ import annotations

import os
from pathlib import Path

import pytest

from armorclaw.errors import ArmorclawError
from armorclaw.store.lock import only_process


def test_given_back_at_the_end(path: Path) -> None:
    for _ in range(2):
        with only_process(path):
            assert path.with_name("bridge.db.lock").read_text() == f"{os.getpid()}\n"


def test_a_second_holder_is_refused_and_told_who_holds_it(path: Path) -> None:
    with only_process(path):
        with pytest.raises(ArmorclawError) as caught:
            with only_process(path):
                pass
    assert caught.value.name == "already_running"
    assert f"process {os.getpid()} " in caught.value.why


def test_a_link_in_its_place_is_not_followed(path: Path) -> None:
    path.with_name("bridge.db.lock").symlink_to(path.parent / "victim")
    with pytest.raises(ArmorclawError) as caught:
        with only_process(path):
            pass
    assert caught.value.name == "storage_failed"
    assert not (path.parent / "victim").exists()
