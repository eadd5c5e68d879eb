"""How long agents run: lifetime, idleness, sleep and waking."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from trio.testing import MockClock

from armorclaw import config
from armorclaw.config import AgentRestart
from armorclaw.containers.lifetime import AGAIN, TICK, WAKE_PATIENCE
from armorclaw.containers.register import Register
from armorclaw.containers.spec import Found
from armorclaw.errors import ArmorclawError
from armorclaw.rpc.call import Call
from armorclaw.rpc.local import call_local
from armorclaw.rpc.peer import Peer
from armorclaw.rpc.registry import Registry, Role
from tests.containers.fakes import Cursors, FakeHouse, declared, house_in

pytestmark = pytest.mark.mission("P0.1")


@pytest.fixture
async def house(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeHouse]:
    async with house_in(folder, monkeypatch) as made:
        yield made


def stopped(house: FakeHouse) -> bool:
    return bool(house.inline.conn.execute("SELECT stopped FROM agents WHERE name = 'ada'").fetchone()[0])


def reason(house: FakeHouse) -> tuple[str, str]:
    end = house.fleet.get("ada").ends[-1]
    return end.cause, end.text


async def asleep(house: FakeHouse, **fields: Any) -> None:
    await house.up(declared(idle_timeout=10.0, **fields))
    await house.ready()
    await house.until("sleeping")


# -- lifetime


async def test_a_lifetime_ends_with_a_stop_that_stays(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up(declared(lifetime=60.0), declared("bob"))
    await house.ready()
    house.shutdown = lambda: next(each for each in house.runtime.live if each.name == "ada").end(0)
    began = trio.current_time()
    await house.until("stopped")
    assert 59.9 <= trio.current_time() - began <= 60 + TICK + 0.1
    assert reason(house) == ("lifetime", "its lifetime of 60 s is over")
    assert house.facts("agent.expired")["why"] == "its lifetime of 60 s is over"
    assert stopped(house)
    await trio.sleep(1000)
    assert [each.state for each in house.fleet.standings()] == ["stopped", "running"]
    records = house.inline.conn.execute("SELECT body FROM audit").fetchall()
    assert any("its lifetime of 60 s is over" in str(body) for (body,) in records)


async def test_a_lifetime_counts_on_over_its_own_ends_and_sleep(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up(declared(lifetime=60.0, idle_timeout=10.0))
    await house.until("running")
    began = trio.current_time()
    await trio.sleep(5)
    house.runtime.last.end(1)
    await house.until("sleeping")
    await house.until("stopped")
    assert trio.current_time() - began == pytest.approx(60, abs=2 * TICK)


async def test_a_start_by_hand_begins_another_lifetime(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up(declared(lifetime=60.0))
    await house.until("stopped", generation=1)
    await house.call("start", name="ada")
    began = trio.current_time()
    await trio.sleep(30)
    await house.call("start", name="ada")  # it runs: nothing new
    await house.until("stopped", generation=2)
    assert trio.current_time() - began == pytest.approx(60, abs=2 * TICK)


async def test_the_lifetime_of_an_adopted_one_began_when_its_container_did(
    house: FakeHouse, autojump_clock: MockClock
) -> None:
    now = house.around.clock.now_ms()
    declared_here = declared(runtime="docker", image="i", lifetime=60.0)
    await house.up(declared_here)
    await house.until("running")
    digest = house.docker.last.digest
    await house.down()
    house.docker.left.append(Found("left-ada", "ada", digest, running=True, made_ms=now - 50_000))
    house.new_fleet()
    await house.up(declared_here)
    await house.until("running")
    began = trio.current_time()
    await house.until("stopped")
    assert trio.current_time() - began < 15


@pytest.mark.parametrize("status", [0, 1])
async def test_the_lifetime_of_one_that_has_ended_changes_nothing(
    house: FakeHouse, autojump_clock: MockClock, status: int
) -> None:
    await house.up(declared(lifetime=50.0, restart=AgentRestart(policy="on-failure", in_row=1)))
    await house.until("running")
    house.runtime.last.end(status)
    await house.until("failed" if status else "stopped")
    await trio.sleep(100)
    assert house.fleet.get("ada").state == ("failed" if status else "stopped")
    assert (house.fleet.get("ada").wanted, stopped(house)) == (True, False)
    assert "agent.expired" not in house.kinds()


async def test_a_store_that_refuses_delays_the_end_and_nothing_is_told_before(
    house: FakeHouse, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    refused = 0

    async def refuse(*args: object, **more: object) -> None:
        nonlocal refused
        await trio.lowlevel.checkpoint()
        refused += 1
        raise ArmorclawError("storage_failed", "disk full")

    await house.up(declared(lifetime=10.0))
    await house.ready()
    with monkeypatch.context() as patched:
        patched.setattr(Register, "mark", refuse)
        await trio.sleep(70)
        assert refused == pytest.approx(60 / AGAIN, abs=2)
        assert "agent.expired" not in house.kinds()
        assert house.fleet.get("ada").ordered.cause == "operator"  # a stop by hand would still be one
    await house.until("stopped")
    await trio.sleep(1)
    assert house.kinds().count("agent.expired") == 1


async def test_a_slow_store_delays_no_lifetime(
    house: FakeHouse, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def slow(cursors: Cursors, owner: str) -> bool:
        await trio.sleep(60)
        return True

    monkeypatch.setattr(Cursors, "has_work", slow)
    idle = [declared(f"idle{n}", idle_timeout=5.0) for n in range(5)]
    await house.up(*idle, declared("zoe", lifetime=20.0))
    await house.until("running", agent="zoe")
    began = trio.current_time()
    await house.until("stopped", agent="zoe")
    assert trio.current_time() - began == pytest.approx(20, abs=2 * TICK)


# -- idleness


async def test_an_idle_one_is_stopped_for_good_if_so_declared(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up(declared(idle_timeout=10.0, on_idle="stop"))
    await house.ready()
    await house.until("stopped")
    assert reason(house) == ("idle", "no work for 10 s")
    assert stopped(house)
    house.cursors.bring("ada")
    await trio.sleep(100)
    assert house.fleet.get("ada").state == "stopped"


@pytest.mark.parametrize("what", ["works", "holds an event", "has one waiting", "is asked", "starts"])
async def test_who_has_work_is_not_idle(house: FakeHouse, autojump_clock: MockClock, what: str) -> None:
    await house.up(declared(idle_timeout=10.0, ready_timeout=300.0 if what == "starts" else 0.0))
    agent = house.fleet.get("ada")
    if what != "starts":
        await house.ready()
    async with trio.open_nursery() as nursery:

        async def keep_busy() -> None:
            if what == "holds an event":
                house.cursors.held["ada"] = (1, trio.current_time())
            elif what == "has one waiting":
                house.cursors.waiting.add("ada")
            elif what == "is asked":
                with house.fleet.asking(agent):
                    await trio.sleep_forever()
            while what == "works":
                agent.worked()
                await trio.sleep(5)

        nursery.start_soon(keep_busy)
        await trio.sleep(100)
        assert agent.state in ("ready", "running")
        assert agent.generations == 1
        nursery.cancel_scope.cancel(reason="seen")
    if what == "is asked":
        house.cursors.held.clear()
        await house.until("sleeping")


async def test_what_comes_between_the_last_look_and_the_order_keeps_it_awake(
    house: FakeHouse, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked = False

    async def has_work(cursors: Cursors, owner: str) -> bool:
        nonlocal looked
        await trio.lowlevel.checkpoint()
        looked = True
        return False

    def unsettled(cursors: Cursors, owner: str) -> tuple[int, float | None]:
        nonlocal looked
        if looked:  # it has nothing, and right after that it has
            looked = False
            cursors.held[owner] = (1, trio.current_time())
            return 0, None
        return cursors.held.get(owner, (0, None))

    await house.up(declared(idle_timeout=10.0))
    await house.ready()
    with monkeypatch.context() as patched:
        patched.setattr(Cursors, "has_work", has_work)
        patched.setattr(Cursors, "unsettled", unsettled)
        await trio.sleep(60)
    assert house.cursors.held
    assert (house.fleet.get("ada").state, house.fleet.get("ada").generations) == ("ready", 1)
    house.cursors.held.clear()
    await house.until("sleeping")


# -- sleep


async def test_asleep_it_has_no_container_and_wakes_for_an_event(house: FakeHouse, autojump_clock: MockClock) -> None:
    await asleep(house)
    assert reason(house) == ("idle", "no work for 10 s")
    assert not stopped(house)
    assert house.runtime.live == []
    assert house.sockets() == []
    await trio.sleep(3600)
    assert (house.fleet.get("ada").state, house.fleet.get("ada").generations) == ("sleeping", 1)
    house.cursors.bring("ada")
    began = trio.current_time()
    await house.until("running", generation=2)
    assert trio.current_time() - began < 0.1
    assert house.fleet.get("ada").restarts == 0


@pytest.mark.parametrize("when", ["while it ends", "just before"])
async def test_what_comes_as_it_falls_asleep_wakes_it(house: FakeHouse, autojump_clock: MockClock, when: str) -> None:
    await house.up(declared(idle_timeout=10.0))
    await house.ready()
    house.shutdown = lambda: None  # it says yes, and takes its time
    agent = house.fleet.get("ada")
    if when == "just before":
        agent.sleep("the test says so")
        house.cursors.bring("ada")
    else:
        await house.until("stopping")
        await trio.sleep(1)
        house.cursors.bring("ada")
    await house.until("running", generation=2)
    await trio.sleep(0.1)
    assert house.moves()[-3:] == ["sleeping", "starting", "running"]


async def test_one_that_sleeps_often_is_never_given_up(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up(declared(idle_timeout=10.0))
    for generation in range(1, 40):
        await house.until("running", generation=generation)
        await house.until("sleeping")
        house.cursors.bring("ada")
        await house.until("running", generation=generation + 1)
        house.cursors.waiting.clear()


async def test_stop_of_a_sleeping_one(house: FakeHouse, autojump_clock: MockClock) -> None:
    await asleep(house)
    began = trio.current_time()
    assert (await house.call("stop", name="ada"))["status"] == "stopped"
    assert trio.current_time() - began < 0.1
    house.cursors.bring("ada")
    await trio.sleep(100)
    assert (house.fleet.get("ada").state, house.fleet.get("ada").generations) == ("stopped", 1)
    await house.call("start", name="ada")
    assert house.fleet.get("ada").state == "running"


@pytest.mark.parametrize("method", ["start", "containers.restart"])
@pytest.mark.parametrize("state", ["sleeping", "stopping"])
async def test_start_wakes_it(house: FakeHouse, autojump_clock: MockClock, method: str, state: str) -> None:
    await house.up(declared(idle_timeout=10.0))
    await house.ready()
    if state == "stopping":
        house.shutdown = lambda: house.nursery.start_soon(slowly, house)
    await house.until(state)
    answer = await house.call(method, name="ada")
    assert answer["status"] == "running"
    assert answer["container_id"] == house.runtime.last.id
    assert house.fleet.get("ada").generations == 2


async def slowly(house: FakeHouse) -> None:
    container = house.runtime.last
    await trio.sleep(1)
    container.end(0)


async def test_what_keeps_it_from_waking_is_said(house: FakeHouse, autojump_clock: MockClock) -> None:
    await asleep(house)
    house.runtime.errors["launch"] = ArmorclawError("start_failed", "no")
    with pytest.raises(ArmorclawError, match="no"):
        await house.call("start", name="ada")


async def failed_to_wake(house: FakeHouse, **restart: Any) -> None:
    await asleep(house, restart=AgentRestart(**restart))
    house.runtime.errors["launch"] = ArmorclawError("start_failed", "no image")
    house.cursors.bring("ada")
    await house.until("restarting", "failed")


@pytest.mark.parametrize("how", ["given up", "ended for good", "pauses"])
async def test_start_of_one_that_failed_to_wake_or_in_its_sleep(
    house: FakeHouse, autojump_clock: MockClock, how: str
) -> None:
    if how == "ended for good":
        await asleep(house)
        house.fleet.get("ada").end("quota", "too much", restart=False)
    else:
        await failed_to_wake(house, in_row=2 if how == "given up" else 0, per_hour=0)
    if how == "pauses":
        await trio.sleep(300)
        await house.until("starting")
        await house.until("restarting")
    else:
        await house.until("failed")
    house.runtime.errors.clear()
    house.cursors.waiting.clear()
    before = trio.current_time()
    answer = await house.call("start", name="ada")
    assert answer["status"] == "running"
    assert trio.current_time() - before < 0.1


async def test_start_of_one_that_is_waking_waits_for_that_start(house: FakeHouse, autojump_clock: MockClock) -> None:
    await asleep(house)
    house.runtime.takes["launch"] = 1.0
    house.cursors.bring("ada")
    await house.until("starting")
    before = trio.current_time()
    assert (await house.call("start", name="ada"))["status"] == "running"
    assert trio.current_time() - before == pytest.approx(1.0, abs=0.1)
    assert house.fleet.get("ada").generations == 2


@attrs.frozen
class Asked:
    method: str
    params: Any = None


async def hello(house: FakeHouse) -> Any:
    """What the agent answers to an operator."""
    params = {"agent": "ada", "method": "hello"}
    return await call_local(house.registry, "agent.call", params, role=Role.OPERATOR)


async def answering(house: FakeHouse, after: float) -> None:
    """The next generation is ready, and answers."""
    registry = Registry()
    answer = registry.method("agent.call", params=Asked, result=Any, chunk=Any, roles={Role.OPERATOR})

    @answer
    async def agent_call(call: Call, params: Asked) -> Any:
        await trio.lowlevel.checkpoint()
        return {"heard": params.method}

    await house.until("running", generation=2)
    await trio.sleep(after)
    stream = await trio.open_unix_socket(house.fleet.get("ada").socket.path)
    peer = Peer(stream, registry, role=Role.OPERATOR, around=house.around)
    await house.nursery.start(peer.serve)
    await peer.request("agent.ready", {}, timeout=5)


async def test_a_call_wakes_it_and_waits_for_its_session(house: FakeHouse, autojump_clock: MockClock) -> None:
    await asleep(house)
    house.nursery.start_soon(answering, house, 2.0)
    began = trio.current_time()
    assert await hello(house) == {"heard": "hello"}
    assert trio.current_time() - began == pytest.approx(2.0, abs=0.2)


async def test_a_call_to_one_that_wakes_slowly_may_be_tried_again(
    house: FakeHouse, autojump_clock: MockClock
) -> None:
    await asleep(house)
    house.nursery.start_soon(answering, house, 5.0)
    began = trio.current_time()
    with pytest.raises(ArmorclawError) as caught:
        await hello(house)
    assert trio.current_time() - began == pytest.approx(WAKE_PATIENCE, abs=0.1)
    assert (caught.value.name, caught.value.kind.retryable) == ("unavailable", True)
    await trio.sleep(3)
    assert await hello(house) == {"heard": "hello"}


async def test_a_call_to_one_that_does_not_sleep_does_not_wait(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up(declared())
    await house.until("running")
    began = trio.current_time()
    with pytest.raises(ArmorclawError, match="no session"):
        await hello(house)
    assert trio.current_time() - began < 0.1


async def test_cancelled_while_it_sleeps_nothing_is_left(house: FakeHouse, autojump_clock: MockClock) -> None:
    await asleep(house)
    began = trio.current_time()
    await house.down()
    assert trio.current_time() - began < 0.1


async def test_a_sleeping_one_can_be_described_anew(house: FakeHouse, autojump_clock: MockClock) -> None:
    await asleep(house)
    await house.call("start", name="ada", command=["other"])
    spec = house.runtime.last.spec
    assert spec is not None
    assert spec.command == ("other",)


# -- the configuration


def test_what_is_wrong_is_named() -> None:
    data = {"agents": {"a": {"command": ["x"], "lifetime": -1, "idle_timeout": "soon", "on_idle": "nap"}}}
    with pytest.raises(ArmorclawError) as caught:
        config.Config.parse(data)
    text = json.dumps(caught.value.data["faults"])
    assert all(f"agents.a.{key}" in text for key in ("lifetime", "idle_timeout", "on_idle"))
    attached = {"agents": {"a": {"runtime": "attached", "lifetime": 5}}}
    with pytest.raises(ArmorclawError, match="1 fault"):
        config.Config.parse(attached)
