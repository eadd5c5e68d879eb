"""What must be on disk before others see its consequences, is; after kill -9 at any point everything goes on."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from armorclaw.matrix.answer import Answer
from tests.matrix.crypto.conftest import ANN, BEN, Town
from tests.matrix.crypto.key_server import ROOM, KeyServer


@pytest.fixture
def log(town: Town, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Requests and syncs, in order."""

    def sync(path: Path, first: bool) -> None:
        town.server.calls.append(f"sync {path.name[-4]}")

    monkeypatch.setattr("armorclaw.matrix.crypto.database._sync", sync)
    return town.server.calls


async def test_keys_are_on_disk_before_they_are_published(town: Town, log: list[str]) -> None:
    ann = await town.device(ANN, "A", published=False)
    log.clear()
    await ann.encryption._publisher.publish()
    assert log == ["keys/query", "keys/upload", "sync A", "keys/upload"]


async def test_a_channel_is_on_disk_before_it_is_used(town: Town, log: list[str]) -> None:
    ann, _ = await town.pair()
    log.clear()
    await ann.say()
    assert log == ["state", "state", "members", "keys/query", "keys/claim", "sync A", "sendToDevice"]


async def test_what_came_is_on_disk_before_the_homeserver_forgets_it(town: Town, log: list[str]) -> None:
    ann, ben = await town.pair()
    await ann.say()
    log.clear()
    await ben.encryption.absorb(town.server.answer(BEN, "B"))
    assert log[0].startswith("sync")
    log.clear()
    await ben.encryption.absorb(Answer("s", one_time_keys={"signed_curve25519": 50}))
    assert log == []


async def test_killed_at_any_request_it_goes_on(town: Town, tmp_path: Path) -> None:
    """The files as they are at each request, carried out or not, are those of a life that can be taken up."""
    ann, ben = await town.pair()
    lives: list[tuple[Path, KeyServer]] = []
    folder = town.file(ANN, "A").parent
    identity = ann.encryption.identity_key

    def keep(name: str) -> None:
        copy = tmp_path / f"copy{len(lives)}"
        shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("*-shm"))
        lives.append((copy, town.server.twin()))

    town.server.fault = town.server.lost = keep
    for word in ("one", "two"):
        await ben.hear(await ann.say(word))
    await ann.hear(await ben.say("three"))
    assert len(lives) >= 20
    for copy, server in lives:
        await town.end()
        shutil.rmtree(folder)
        shutil.copytree(copy, folder)
        town.server = server
        ben = await town.device(BEN, "B", published=False)
        ann = await town.device(ANN, "A", identity_key=identity, published=False)
        assert await ben.hear(await ann.say("after")) == "after"
        assert await ann.hear(await ben.say("well")) == "well"


async def test_messages_of_a_life_that_was_cut_come_again(town: Town) -> None:
    """Taken in, but the sync token was not written: the homeserver sends them once more."""
    ann, ben = await town.pair()
    raw = await ann.say()
    answer = town.server.answer(BEN, "B")
    await ben.encryption.absorb(answer)
    again = await town.restart(ben)
    await again.encryption.absorb(answer)
    assert await again.read(raw) == "hello"
    counts: Any = again.encryption.counts
    assert counts["messages_refused"] == 0
    assert again.encryption._upkeep._broken == {}
    assert again.encryption.db.all("SELECT count(*) FROM room_keys WHERE room_id = ?", ROOM)[0][0] == 1
