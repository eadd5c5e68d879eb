"""What is told of agents, however slow the store and however wild other agents; and ends that nobody saw."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from itertools import pairwise
from pathlib import Path

import pytest
import structlog
import trio
from trio.testing import MockClock

from armorclaw.config import AgentRestart
from armorclaw.containers.chronicle import WAITING_LIMIT
from armorclaw.containers.ends import Begun
from armorclaw.containers.spec import Found
from armorclaw.containers.states import Fact
from tests.containers.fakes import FakeHouse, declared, house_in

pytestmark = [pytest.mark.mission("P0.2", "P0.3")]


@pytest.fixture
async def house(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeHouse]:
    async with house_in(folder, monkeypatch) as made:
        yield made


@pytest.fixture
def slow(house: FakeHouse, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each event takes a second to be stored."""

    async def note(type: str, content: Mapping[str, object], *, agent: str | None) -> None:  # noqa: A002
        await trio.sleep(1)
        house.notes.append((type, agent, dict(content)))

    monkeypatch.setattr(house, "_note", note)
    house.new_fleet()


async def test_a_wild_agent_keeps_no_alert_of_another_back(
    house: FakeHouse, slow: None, autojump_clock: MockClock
) -> None:
    once = AgentRestart(policy="never")
    await house.up(declared("evil"), declared(restart=once))
    for name in ("evil", "ada"):
        await house.until("running", agent=name)
    await trio.sleep(20)
    evil = house.fleet.get("evil")
    evil.learn(Fact.READY)
    with structlog.testing.capture_logs() as logs:
        for _ in range(3 * WAITING_LIMIT):
            evil.learn(Fact.SESSION_LOST, "its session broke")
            evil.learn(Fact.READY)
        house.runtime.containers[[each.name for each in house.runtime.containers].index("ada")].end(1)
        await house.until("failed")
        told = {line["event"] for line in logs if line.get("agent") == "ada"}
        assert told >= {"alert", "agent.ended", "agent.failed"}  # before the store has any of it
    await trio.sleep(10)
    assert house.kinds()[-2:] == ["agent.ended", "agent.failed"]
    assert [(who, name) for who, name, _ in house.alerts] == [("ada", "agent_failed")]
    changes = [facts for kind, who, facts in house.notes if (kind, who) == ("agent.state", "evil")]
    assert changes[-1]["to"] == "ready"
    counted = len(changes) + sum(int(str(facts.get("left_out", 0))) for facts in changes)
    assert counted == 3 + 2 * 3 * WAITING_LIMIT
    assert len(changes) < WAITING_LIMIT
    for before, after in pairwise(changes):
        assert before["to"] == after["from"]
    assert house.fleet.household.chronicle.left_out == 0


async def test_sessions_have_a_rate(house: FakeHouse) -> None:
    method = house.registry.get("agent.ready")
    assert method is not None
    assert method.rate is not None
    assert method.rate.per_second <= 5


async def test_a_fleet_that_is_cancelled_as_it_starts_ends(
    house: FakeHouse, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    run, scope = house.runtimes.run, trio.CancelScope()

    async def running(*, task_status: trio.TaskStatus[None]) -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(lambda *, task_status: run(task_status=task_status))
            task_status.started()
            scope.cancel(reason="the end")

    monkeypatch.setattr(house.runtimes, "run", running)
    with trio.fail_after(10, shield=True), scope:
        await house.fleet.run({})


async def test_what_ran_when_the_bridge_was_killed_has_an_end(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.fleet.household.ends.begin("ada", Begun(3, "old", 1000, False))
    await house.up(declared())
    await house.until("running")
    (end,) = house.fleet.get("ada").ends
    assert (end.generation, end.container_id, end.cause) == (3, "old", "bridge")
    assert await house.fleet.household.ends.of("ada") == [end]
    begun = await house.fleet.household.ends.unfinished("ada")
    assert begun is not None
    assert begun.container_id == house.runtime.last.id
    house.runtime.last.end(1)
    await house.until("running", generation=2)
    assert [each.cause for each in house.fleet.get("ada").ends] == ["bridge", "exit"]
    await house.down()
    assert await house.fleet.household.ends.unfinished("ada") is None


@pytest.mark.parametrize("adopted", [True, False])
async def test_what_may_be_adopted_has_none_if_it_is(
    house: FakeHouse, adopted: bool, autojump_clock: MockClock
) -> None:
    ada = declared(image="i", runtime="docker")
    house.is_closing = False
    await house.up(ada)
    await house.until("running")
    await house.down()
    (left,) = house.docker.left
    begun = await house.fleet.household.ends.unfinished("ada")
    assert begun is not None
    assert (begun.container_id, begun.survives) == (left.id, True)
    if not adopted:
        house.docker.left[:] = [Found(left.id, "ada", "another", running=True)]
    house.new_fleet()  # as the next bridge does
    await house.up(ada)
    await house.until("running")
    assert [(each.container_id, each.cause) for each in house.fleet.get("ada").ends] == (
        [] if adopted else [(left.id, "bridge")]
    )
    house.is_closing = True


async def test_a_lost_engine_names_no_path(house: FakeHouse, autojump_clock: MockClock) -> None:
    house.fleet.household.note_engine(house.docker, "engine.lost", why="dial unix:///run/user/1000/docker.sock")
    await house.up()
    await trio.sleep(1)
    assert [facts["why"] for kind, _, facts in house.notes if kind == "engine.lost"] == ["dial unix:…/docker.sock"]
