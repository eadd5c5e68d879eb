"""Peers that are not ours, and a bridge beside them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
import trio

from armorclaw.testing.homeserver import Homeserver
from tests.interop.ours import Bot
from tests.interop.peers import KINDS, Kind, Peers, Program, programs


@pytest.fixture(scope="session")
def peer_programs() -> Iterator[Callable[[Kind], Program]]:
    yield from programs()


@pytest.fixture
async def peers(
    homeserver: Homeserver, peer_programs: Callable[[Kind], Program], tmp_path: Path
) -> AsyncIterator[Peers]:
    """Factory of devices: `await peers("nio", "alice")`."""
    async with trio.open_nursery() as nursery:
        made = Peers(homeserver, tmp_path, peer_programs, nursery)
        yield made
        await made.clear()
        nursery.cancel_scope.cancel(reason="the test is done")


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> Kind:
    """Each of the stacks that the other side may be."""
    found: Kind = request.param
    return found


@pytest.fixture
async def bot(homeserver: Homeserver, armorclaw_folder: Path) -> Bot:
    """A user that bridges of this test are."""
    return await Bot.register(homeserver, armorclaw_folder)
