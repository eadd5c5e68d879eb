"""A session ends at once, whatever it is in the middle of, and the next one goes on."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
import trio
from mautrix.api import Method

from armorclaw.clock import Clock
from armorclaw.matrix.transport import open_api

from .conftest import open_bench, until
from .fake_homeserver import Asked, Raw, Reply, fake_homeserver
from .phases import PHASES, seconds_to_end

LIMIT = 0.05
"""Seconds, once in so many attempts: a wait that should not be is there each time, a loaded machine only at times."""

ATTEMPTS = 10


@pytest.mark.parametrize("name", sorted(PHASES))
async def test_the_end_in_the_middle_of(name: str, tmp_path: Path) -> None:
    took: list[float] = []
    while not took or (took[-1] > LIMIT and len(took) < ATTEMPTS):
        folder = tmp_path / str(len(took))
        folder.mkdir()
        async with open_bench(folder) as bench:
            took.append(await seconds_to_end(bench, folder, PHASES[name]))
    assert took[-1] <= LIMIT, took


async def test_a_request_ends_while_its_answer_is_read_on_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody waits for that thread any more."""
    began, go_on = threading.Event(), threading.Event()

    def slow(body: bytes, packed: bool) -> object:
        began.set()
        go_on.wait(20)
        return {}

    async def answer(asked: Asked) -> Reply | Raw:
        await trio.lowlevel.checkpoint()
        return Reply({"large": "x" * 1000})

    monkeypatch.setattr("armorclaw.matrix.decoding._read_whole", slow)
    monkeypatch.setattr("armorclaw.matrix.decoding._DECODE_INLINE", 10)
    async with fake_homeserver(answer) as fake, open_api(fake.url, Clock()) as api, trio.open_nursery() as nursery:
        nursery.start_soon(api.request, Method.GET, "_matrix/client/versions")
        await until(began.is_set)
        asked = time.perf_counter()
        nursery.cancel_scope.cancel(reason="it is being read")
    took = time.perf_counter() - asked
    go_on.set()
    assert took < 10
