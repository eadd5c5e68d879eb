"""A homeserver that is away, answers nonsense or asks for patience: simulated, so that hours take no time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from armorclaw.bridge import Bridge
from tests.faults.simulated import Simulation, simulation
from tests.faults.town import limited
from tests.matrix.fake_homeserver import Asked, Raw, Reply

ROOM, OTHER = "!a:town", "!b:town"
QUEUED = 1000


@pytest.fixture
def sim(tmp_path: Path) -> Iterator[Simulation]:
    with simulation(tmp_path, 1) as made:
        yield made


async def nothing(message: Any) -> None:
    pass


@asynccontextmanager
async def connected(sim: Simulation, *rooms: str) -> AsyncIterator[Bridge]:
    for room in rooms:
        sim.town.add_room(room)
    async with sim.live(list(rooms), nothing) as bridge:
        with trio.fail_after(30):
            await sim.town.synced.wait()
        yield bridge


async def send(bridge: Bridge, room: str, body: str) -> Any:
    return await bridge.call("matrix.send", room_id=room, message=body, idempotency_key=body)


@pytest.mark.mission("P3.1", "P3.3")
async def test_a_minute_without_a_homeserver_and_a_thousand_queued(
    sim: Simulation, autojump_clock: MockClock
) -> None:
    rooms = [f"!{number}:town" for number in range(10)]
    async with connected(sim, *rooms) as bridge:
        sim.network.weather = "refused"
        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for number in range(QUEUED):
                nursery.start_soon(send, bridge, rooms[number % 10], f"{number}")
                while sum(bridge.outbox.lengths().values()) <= number:
                    await trio.lowlevel.checkpoint()
        before, puts = sim.network.requests, sim.network.puts
        await trio.sleep_until(began + 60)
        assert sim.network.puts - puts <= 60, "ten rooms ask more often than one account may"
        assert sim.network.requests - before <= 120, "it asks too often while nobody is there"
        sim.network.weather = "fair"
        with trio.fail_after(60):
            while sum(len(sim.town.said(room)) for room in rooms) < QUEUED:  # noqa: ASYNC110 - simulated
                await trio.sleep(0.1)
    for number, room in enumerate(rooms):
        assert sim.town.said(room) == [f"{each}" for each in range(number, QUEUED, 10)]


@pytest.mark.parametrize("weather", ["502", "refused", "silent"])
async def test_who_answers_at_once_is_not_asked_at_once(
    sim: Simulation, autojump_clock: MockClock, weather: Any
) -> None:
    """A gateway that says 502 without any delay makes no hot loop, of the sync or of a message that waits."""
    async with connected(sim, ROOM) as bridge:
        sim.network.weather = weather
        assert (await send(bridge, ROOM, "hello"))["status"] in ("queued", "unknown")
        before = sim.network.requests
        await trio.sleep(600)
        assert sim.network.requests - before <= 600
        sim.network.weather = "fair"
        with trio.fail_after(320):
            while sim.town.said(ROOM) != ["hello"]:  # noqa: ASYNC110 - simulated
                await trio.sleep(0.1)


@pytest.mark.parametrize(
    ("reply", "wait"),
    [
        pytest.param(limited(20_000), 20.0, id="in the body"),
        pytest.param(limited(None, header="20"), 20.0, id="in a header"),
        pytest.param(limited(90_000, header="20"), 20.0, id="the header counts"),
        pytest.param(limited(None), None, id="untold"),
    ],
)
async def test_429_is_waited_out_by_its_own_room_alone(
    sim: Simulation, autojump_clock: MockClock, reply: Reply, wait: float | None
) -> None:
    strikes = 3

    async def meddle(asked: Asked) -> Reply | Raw | None:
        nonlocal strikes
        if asked.method == "PUT" and "a%3Atown" in asked.path and strikes:
            strikes -= 1
            return reply
        return None

    async with connected(sim, ROOM, OTHER) as bridge:
        sim.town.meddle = meddle
        await send(bridge, ROOM, "one")
        began = trio.current_time()
        await send(bridge, OTHER, "two")
        assert trio.current_time() - began < 1
        assert sim.town.said(OTHER) == ["two"]
        with trio.fail_after(120):
            while not sim.town.said(ROOM):  # noqa: ASYNC110 - simulated
                await trio.sleep(0.01)
    sends = sim.town.asked_at["PUT send"]
    assert len(sends) == 5
    apart = [after - before for before, after in zip(sorted(sends), sorted(sends)[1:], strict=False)]
    if wait is None:
        assert max(apart) < 10
        assert sum(apart) > 0.1
    else:
        assert sum(apart) == pytest.approx(3 * wait, abs=0.3)


@pytest.mark.parametrize("echoes", [True, False])
@pytest.mark.parametrize("lost", [1, 3])
async def test_an_answer_that_is_lost_makes_no_second_message(
    sim: Simulation, autojump_clock: MockClock, lost: int, echoes: bool
) -> None:
    """Our own message comes back and settles it; should that take long, it is sent again under its id."""

    async def meddle(asked: Asked) -> Reply | Raw | None:
        if not echoes and sim.town.kind(asked) == "GET sync":
            await trio.sleep(1000)
        return None

    async with connected(sim, ROOM) as bridge:
        sim.town.meddle = meddle
        await trio.sleep(60)
        sim.town.lose_next("PUT send", lost)
        for number in range(10):
            await send(bridge, ROOM, f"{number}")
        await trio.sleep(300)
        sim.town.meddle = None
        await trio.sleep(300)
        states = {row["state"] for row in await bridge.call("delivery.list")}
    assert sim.town.said(ROOM) == [f"{number}" for number in range(10)]
    assert (sim.town.asked["PUT send"] > 10) is not echoes
    assert states == {"delivered"}
