from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import attrs
import pytest

from armorclaw.clock import Clock, Surroundings
from armorclaw.store import Database


@attrs.define
class Hands:
    """A wall clock that the test sets, in seconds since the epoch."""

    now: float = 1_770_000_000.0


@pytest.fixture
def hands() -> Hands:
    return Hands()


@pytest.fixture
def around(hands: Hands) -> Surroundings:
    return Surroundings(clock=Clock(wall=lambda: hands.now))


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[Database]:
    async with Database.open(tmp_path / "bridge.db", bytes(range(32))) as database:
        yield database
