"""All agents: supervised, stopped for good, started again, adopted, and ended together."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import attrs
import pytest
import trio
import trio.testing
from trio.testing import MockClock

from armorclaw import config
from armorclaw.containers.agent import STOP_GRACE, State
from armorclaw.containers.agent_socket import AgentSocket
from armorclaw.containers.fleet import MAX_AGENTS, START_PATIENCE
from armorclaw.containers.recipe import environment
from armorclaw.containers.spec import Found, News
from armorclaw.errors import ArmorclawError
from tests.containers.fakes import FakeHouse, Inside, declared, house_in

pytestmark = pytest.mark.mission("P0.1")


@pytest.fixture
async def house(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeHouse]:
    async with house_in(folder, monkeypatch) as made:
        yield made


def names(house: FakeHouse) -> dict[str, str]:
    return {each.name: each.state for each in house.fleet.standings()}


# -- restarts and their limits


async def test_restarts_back_off(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up(declared())
    gaps = []
    for generation in range(1, 5):
        await house.until("running", generation=generation)
        house.runtime.last.end(1)
        ended = trio.current_time()
        await house.until("running", generation=generation + 1)
        gaps.append(trio.current_time() - ended)
    assert gaps[0] == pytest.approx(0.0, abs=0.01)  # the first at once
    assert all(gap <= limit for gap, limit in zip(gaps[1:], (1.01, 2.01, 4.01), strict=True))
    assert any(gap > 0.01 for gap in gaps[1:])


@pytest.mark.mission("P0.1", "K.start")
async def test_six_that_never_became_stable_are_enough(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up(declared())
    for generation in range(1, 7):
        await house.until("running", generation=generation)
        await trio.sleep(5)
        house.runtime.last.end(9)
    await house.until("failed")
    await trio.sleep(3600)
    assert (names(house), house.fleet.get("ada").last_end) == ({"ada": "failed"}, "exit 9")
    assert house.notes[-1][0] == "agent.failed"
    await house.call("start", name="ada")
    assert names(house) == {"ada": "running"}
    house.runtime.last.end(9)  # its record is clear: it is tried again
    await house.until("running", generation=8)


async def test_given_up_and_then_stopped_is_stopped(house: FakeHouse, autojump_clock: MockClock) -> None:
    house.runtime.errors["launch"] = ArmorclawError("start_failed", "no")
    await house.up(declared())
    await house.until("failed")
    assert (await house.call("stop", name="ada"))["status"] == "stopped"
    assert names(house) == {"ada": "stopped"}


async def test_start_while_it_backs_off_does_not_wait(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up(declared())
    house.around.random.uniform = lambda a, b: 1000.0  # type: ignore[method-assign]
    for generation in (1, 2):
        await house.until("running", generation=generation)
        house.runtime.last.end(1)
    await house.until("restarting")
    await trio.sleep(1)
    began = trio.current_time()
    await house.call("start", name="ada")
    assert trio.current_time() - began < 0.1
    assert house.fleet.get("ada").generations == 3


async def test_one_that_backs_off_and_is_to_start_no_more_fails_at_once(
    house: FakeHouse, autojump_clock: MockClock
) -> None:
    house.runtime.errors["launch"] = ArmorclawError("start_failed", "no")
    await house.up(declared(restart=config.AgentRestart(in_row=0, per_hour=0)))
    await trio.sleep(300)
    await house.until("starting")
    await house.until("restarting")
    began, attempts = trio.current_time(), house.runtime.steps.count("launch")
    house.fleet.get("ada").end("quota", "too much", restart=False)
    await house.until("failed")
    assert trio.current_time() == began
    assert house.runtime.steps.count("launch") == attempts
    assert house.fleet.get("ada").last_end == "too much"


async def test_stop_while_it_backs_off(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up(declared())
    house.around.random.uniform = lambda a, b: 1000.0  # type: ignore[method-assign]
    for generation in (1, 2):
        await house.until("running", generation=generation)
        house.runtime.last.end(1)
    await house.until("restarting")
    await trio.sleep(1)
    assert (await house.call("stop", name="ada"))["status"] == "stopped"
    await trio.sleep(2000)
    assert (names(house), house.fleet.get("ada").generations) == ({"ada": "stopped"}, 2)


# -- start and stop, one after the other and at once


@pytest.mark.mission("K.stop")
async def test_stopped_by_hand_stays_stopped_in_the_next_bridge(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up(declared(), declared("bob"))
    await house.until("running")
    await house.call("stop", name="ada")
    await house.down()
    house.new_fleet()
    await house.up(declared(), declared("bob"))
    await house.until("running", agent="bob")
    await trio.sleep(100)
    assert names(house) == {"ada": "stopped", "bob": "running"}
    assert (await house.call("stop", name="ada"))["status"] == "stopped"  # which its supervisor has never seen
    await house.call("start", name="ada")
    await house.down()
    house.new_fleet()
    await house.up(declared())
    await house.until("running")


@pytest.mark.mission("K.stop")
async def test_stop_of_a_slow_agent_answers_and_goes_on(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up(declared())
    await house.ready()
    house.shutdown = lambda: None  # it says yes, and goes on
    began = trio.current_time()
    assert (await house.call("stop", name="ada"))["status"] == "stopping"
    assert trio.current_time() - began == pytest.approx(START_PATIENCE)
    assert names(house) == {"ada": "stopping"}
    await house.until("stopped")
    assert trio.current_time() - began == pytest.approx(STOP_GRACE)
    assert house.kinds()[-1] == "agent.ended"


@pytest.mark.mission("K.stop")
async def test_start_while_it_stops_starts_it_afterwards(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up(declared())
    await house.ready()
    house.shutdown = lambda: None
    house.nursery.start_soon(house.fleet.stop, house.fleet.get("ada"))
    await house.until("stopping")
    await trio.sleep(2)
    answer = await house.call("start", name="ada")
    assert answer["status"] == "running"
    assert answer["container_id"] == house.runtime.last.id
    await trio.sleep(100)
    assert names(house) == {"ada": "running"}
    assert (house.fleet.get("ada").generations, len(house.runtime.live)) == (2, 1)


async def test_two_starts_at_once_make_one_container(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up(declared())
    await house.until("running")
    await house.call("stop", name="ada")
    house.runtime.takes["launch"] = 1.0
    answers = []

    async def start() -> None:
        answers.append(await house.call("start", name="ada"))

    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(start)
    assert [answer["container_id"] for answer in answers] == [house.runtime.last.id] * 3
    assert house.runtime.steps.count("launch") == 2


async def test_stop_while_it_starts(house: FakeHouse, autojump_clock: MockClock) -> None:
    house.runtime.takes["launch"] = 3.0
    await house.up()
    errors = []

    async def start() -> None:
        try:
            await house.call("start", name="ada", command=["x"])
        except ArmorclawError as error:
            errors.append(error.name)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(start)
        await trio.sleep(1)
        assert (await house.call("stop", name="ada"))["status"] == "stopped"
    assert errors == ["conflict"]
    assert house.runtime.live == []


@pytest.mark.parametrize("last", ["start", "stop"])
async def test_of_a_start_and_a_stop_at_once_the_later_one_holds(
    house: FakeHouse, autojump_clock: MockClock, last: str
) -> None:
    for _ in range(10):  # whichever of the two tasks goes on first
        house.new_fleet()
        await house.up(declared())
        await house.until("running")
        ada = house.fleet.get("ada")
        async with trio.open_nursery() as nursery:
            for what in ("stop", "start") if last == "start" else ("start", "stop"):
                nursery.start_soon(quietly, getattr(house.fleet, what), ada)
                await trio.lowlevel.checkpoint()
        await trio.sleep(20)
        assert ada.wanted is (ada.state == "running")
        assert bool(house.inline.conn.execute("SELECT stopped FROM agents").fetchone()[0]) is not ada.wanted
        await house.down()
        house.inline.conn.execute("UPDATE agents SET stopped = 0")


async def quietly(function: object, *args: object) -> None:
    try:
        await function(*args)  # type: ignore[operator]
    except ArmorclawError as error:
        if error.name != "conflict":
            raise


async def test_start_that_takes_long_answers_in_time_and_goes_on(house: FakeHouse, autojump_clock: MockClock) -> None:
    house.runtime.takes["launch"] = 9.0
    await house.up()
    began = trio.current_time()
    answer = await house.call("start", name="ada", command=["x"])
    assert trio.current_time() - began == pytest.approx(START_PATIENCE)
    assert (answer["status"], answer["ready"], answer["container_id"]) == ("starting", False, "")
    await house.until("running")


async def test_a_start_that_is_not_ready_does_not_wait_for_it(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up(declared(ready_timeout=30.0))
    await house.until("running")
    await house.call("stop", name="ada")
    began = trio.current_time()
    answer = await house.call("start", name="ada")
    assert trio.current_time() - began < 0.1
    assert (answer["status"], answer["ready"]) == ("running", False)


async def test_nothing_can_be_asked_of_a_fleet_that_does_not_run(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up(declared())
    await house.down()
    for what in ("start", "stop"):
        with pytest.raises(ArmorclawError) as caught:
            await house.call(what, name="ada")
        assert caught.value.name == "unavailable"


# -- another description


async def test_a_stopped_agent_that_is_described_anew_runs_what_is_described(
    house: FakeHouse, autojump_clock: MockClock
) -> None:
    await house.up(declared(rooms=("!a:x",)))
    await house.until("running")
    await house.call("stop", name="ada")
    await house.call("start", name="ada", command=["other"], rooms=["!b:x"])
    spec = house.runtime.last.spec
    assert spec is not None
    assert spec.command == ("other",)
    assert house.fleet.standings()[0].rooms == ["!b:x"]
    house.runtime.last.end(1)
    await house.until("running", generation=3)
    assert house.runtime.last.spec == spec


async def test_agents_started_by_hand_are_kept_when_the_feature_is_restarted(
    house: FakeHouse, autojump_clock: MockClock
) -> None:
    await house.up(declared())
    await house.call("start", name="bob", command=["bob"])
    await house.call("start", name="eve", command=["eve"])
    await house.call("stop", name="eve")
    await house.down()
    assert names(house) == {"ada": "stopped", "bob": "stopped", "eve": "stopped"}
    await house.up(declared())
    for agent in ("ada", "bob"):
        await house.until("running", agent=agent)
    await trio.sleep(10)
    assert names(house) == {"ada": "running", "bob": "running", "eve": "stopped"}


async def test_each_agent_keeps_its_uid(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up(declared(), declared("bob"), declared("eve", uid=4242))
    await house.until("running", agent="eve")
    uids = {name: house.fleet.get(name).socket.uid for name in ("ada", "bob", "eve")}
    assert uids == {"ada": 10001, "bob": 10002, "eve": 4242}
    assert house.cursors.ensured == ["ada", "bob", "eve"]
    await house.down()
    house.new_fleet()
    await house.up(declared("zoe"), declared("bob"), declared())
    assert {name: house.fleet.get(name).socket.uid for name in ("ada", "bob", "zoe")} == {
        "ada": 10001,
        "bob": 10002,
        "zoe": 10004,
    }


async def test_the_first_start_of_many_leaves_others_their_time(house: FakeHouse, autojump_clock: MockClock) -> None:
    longest, count = 0, 0
    add = house.fleet.supervisor.add

    async def counted(*args: Any, **more: Any) -> None:
        nonlocal longest, count
        count += 1
        longest = max(longest, count)
        await add(*args, **more)

    async def other() -> None:
        nonlocal count
        while True:
            await trio.lowlevel.checkpoint()
            count = 0

    house.fleet.supervisor.add = counted  # type: ignore[method-assign]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        await house.up(*[declared(f"a{n}") for n in range(32)])
        nursery.cancel_scope.cancel(reason="seen")
    assert 0 < longest <= 2


async def test_there_is_a_limit(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up()
    for number in range(MAX_AGENTS):
        await house.fleet.describe(declared(f"a{number}"))
    with pytest.raises(ArmorclawError) as caught:
        await house.fleet.describe(declared("one-more"))
    assert caught.value.name == "queue_full"


async def test_a_name_that_somebody_else_has(house: FakeHouse, autojump_clock: MockClock) -> None:
    house.grants.set("attached", "main", ["!a:x"])
    await house.up()
    with pytest.raises(ArmorclawError) as caught:
        await house.call("start", name="attached", command=["x"])
    assert caught.value.name == "conflict"
    assert house.grants.rooms_of("attached") == {"!a:x"}


# -- what an earlier bridge left


async def found(house: FakeHouse, name: str = "ada", *, running: bool = True, changed: bool = False) -> Found:
    socket = AgentSocket(house.folder / "run", name, 10001)
    spec = await house.fleet.household.spec_for(in_docker(name), house.docker, socket)
    return Found(f"left-{name}", name, "0" * 64 if changed else spec.digest(), running)


def in_docker(name: str = "ada") -> config.Agent:
    return declared(name, runtime="docker", image="i", keys=("k",))


@pytest.mark.mission("P0.3", "K.secrets")
async def test_a_survivor_is_adopted_and_gets_no_secrets_again(house: FakeHouse, autojump_clock: MockClock) -> None:
    import hashlib

    payload = await house.store_key("k")
    house.docker.left.append(await found(house))
    await house.up(in_docker())
    inside = await house.ready(fingerprint=hashlib.sha256(payload).hexdigest())
    assert house.fleet.standings()[0].container_id == "left-ada"
    assert house.kinds() == ["agent.adopted"]
    assert "launch" not in house.docker.steps
    assert "start" not in house.docker.steps
    with pytest.raises(ArmorclawError) as caught:
        await inside.call("secrets.take", via="inline")
    assert caught.value.name == "secrets_taken"
    house.docker.last.end(1)
    await house.until("running", generation=2)
    inside = await house.connect()
    assert (await inside.call("secrets.take", via="inline"))["secrets"].encode() == payload


@pytest.mark.mission("P0.3")
@pytest.mark.parametrize("why", ["changed", "not running", "undeclared", "stopped by hand", "twice", "gone"])
async def test_a_survivor_that_is_not_what_is_declared_goes(
    house: FakeHouse, autojump_clock: MockClock, why: str
) -> None:
    await house.store_key("k")
    left = await found(
        house, "eve" if why == "undeclared" else "ada", running=why != "not running", changed=why == "changed"
    )
    house.docker.left.append(left)
    if why == "stopped by hand":
        house.inline.conn.execute("INSERT INTO agents (name, number, stopped) VALUES ('ada', 0, 1)")
    elif why == "twice":
        house.docker.left.insert(0, Found("first", "ada", left.digest, running=True))
    elif why == "gone":
        house.docker.errors["adopt"] = ArmorclawError("container_not_found", "gone")
    await house.up(in_docker())
    if why == "stopped by hand":
        await trio.sleep(10)
        assert names(house) == {"ada": "stopped"}
    else:
        await house.until("running")
    if why == "gone":
        house.docker.left.clear()
    else:
        assert house.docker.discarded == ["left-eve" if why == "undeclared" else "left-ada"]
    assert house.docker.left == []


@pytest.mark.mission("P0.3")
async def test_survivors_are_looked_for_when_an_engine_comes_late(
    house: FakeHouse, autojump_clock: MockClock
) -> None:
    await house.store_key("k")
    house.docker.left += [await found(house), await found(house, "eve")]
    house.docker.lose()
    await house.up(in_docker())
    await trio.sleep(100)
    house.docker.lose(False)
    await house.until("running")
    assert house.fleet.standings()[0].container_id == "left-ada"
    assert house.docker.discarded == ["left-eve"]


async def test_an_orphan_that_cannot_be_removed_keeps_nobody_from_starting(
    house: FakeHouse, autojump_clock: MockClock
) -> None:
    await house.store_key("k")
    house.docker.left.append(await found(house, "eve"))
    house.docker.errors["discard"] = ArmorclawError("engine_refused", "no")
    await house.up(in_docker())
    await house.until("running")
    house.docker.left.clear()


async def test_a_survivor_of_another_engine_is_not_adopted_here(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.store_key("k")
    house.docker.left.append(await found(house))
    await house.up(declared(keys=("k",)))  # in the sandbox now
    await house.until("running")
    assert house.docker.discarded == ["left-ada"]
    assert len(house.runtime.live) == 1


# -- the end


@pytest.mark.mission("C.stop")
async def test_many_end_together_within_one_grace(house: FakeHouse, autojump_clock: MockClock) -> None:
    many = [declared(f"a{number}") for number in range(20)]
    await house.up(*many)
    for each in many:
        await house.until("running", agent=each.name)
    house.runtime.heeds_sigterm = False
    house.runtime.takes["remove"] = 1.0
    began = trio.current_time()
    await house.down()
    assert trio.current_time() - began <= STOP_GRACE + 1.1
    assert [kind for kind, _, _ in house.notes].count("agent.ended") == 20
    assert set(names(house).values()) == {State.STOPPED}


async def test_a_fleet_cancelled_before_it_began_ends(house: FakeHouse, autojump_clock: MockClock) -> None:
    with trio.fail_after(10), trio.CancelScope() as scope:
        scope.cancel(reason="at once")
        await house.fleet.run({"ada": declared()})
    assert scope.cancelled_caught


def test_the_environment() -> None:
    made = environment(declared(rooms=("#a:x", "!b:x"), env={"LANG": "de", "X": "1"}), "/s")
    assert made["LANG"] == "de"
    assert (made["X"], made["ARMORCLAW_MATRIX_ROOM"], made["ARMORCLAW_SOCKET"]) == ("1", "!b:x", "/s")
    assert "ARMORCLAW_MATRIX_ROOM" not in environment(declared(), "/s")


async def test_a_key_that_comes_late_is_waited_for(house: FakeHouse, autojump_clock: MockClock) -> None:
    """An agent may be declared before its key is stored; that is no failure, however long it takes."""
    await house.up(declared(keys=("later",)))
    await trio.sleep(3600)
    assert names(house) == {"ada": "restarting"}
    assert "later" in house.fleet.get("ada").last_end
    await house.keystore.store(id="later", provider="openai", token="sk-1")
    await house.until("running")
    assert house.fleet.get("ada").generations == 1


# -- a restart of the feature, not of the bridge


async def session_of(house: FakeHouse, payload: bytes) -> Inside:
    import hashlib

    return await house.ready(fingerprint=hashlib.sha256(payload).hexdigest())


@pytest.mark.mission("P0.3")
@pytest.mark.parametrize("on_restart", ["adopt", "kill"])
async def test_a_restarted_feature_adopts_what_it_left(
    house: FakeHouse, autojump_clock: MockClock, on_restart: Literal["adopt", "kill"]
) -> None:
    """Whatever a new bridge would do: the container is left alone, and its secrets count as taken."""
    house.is_closing = False
    payload = await house.store_key("k")
    await house.up(attrs.evolve(in_docker(), on_restart=on_restart))
    inside = await house.ready()
    await inside.call("secrets.take", via="inline")
    container = house.docker.last
    await house.down()
    assert not container.ended
    assert not container.removed
    assert container.stops == []
    assert house.kinds() == ["agent.started"]
    assert house.sockets() != []
    house.is_closing = True
    await house.up()
    inside = await session_of(house, payload)
    assert house.docker.last is container
    assert house.kinds() == ["agent.started", "agent.adopted"]
    assert house.docker.discarded == []
    with pytest.raises(ArmorclawError) as caught:
        await inside.call("secrets.take", via="inline")
    assert caught.value.name == "secrets_taken"
    house.shutdown = lambda: container.end(0)


async def test_one_on_its_way_to_sleep_is_not_left_for_the_next_run(
    house: FakeHouse, autojump_clock: MockClock
) -> None:
    """It was told to end, and may do so at any time after."""
    house.docker.heeds_sigterm = house.is_closing = False
    await house.up(declared(image="i", runtime="docker", on_restart="adopt", idle_timeout=5.0))
    await house.until("running")
    await house.until("stopping")
    await trio.sleep(1)
    await house.down()
    assert (house.docker.left, house.docker.live) == ([], [])
    assert house.fleet.get("ada").ends[-1].cause == "idle"
    house.is_closing = True


async def test_only_engines_keep_anything(house: FakeHouse, autojump_clock: MockClock) -> None:
    house.is_closing = False
    await house.up(declared())
    await house.until("running")
    await house.down()
    assert house.runtime.live == []
    assert house.sockets() == []
    await house.up()
    await house.until("running")
    assert house.fleet.get("ada").generations == 2
    house.is_closing = True


async def test_what_is_stopped_while_the_feature_is_away_goes(house: FakeHouse, autojump_clock: MockClock) -> None:
    house.is_closing = False
    await house.store_key("k")
    await house.up(in_docker())
    await house.until("running")
    container = house.docker.last
    await house.down()
    house.fleet.get("ada").wanted = False
    house.is_closing = True
    await house.up()
    await trio.sleep(1)
    assert house.docker.discarded == [container.id]
    house.fleet.get("ada").socket.remove()


async def test_a_bridge_that_ends_before_the_feature_is_back_leaves_nothing(
    house: FakeHouse, autojump_clock: MockClock
) -> None:
    house.is_closing = False
    await house.store_key("k")
    await house.up(in_docker())
    await house.until("running")
    container = house.docker.last
    await house.down()
    assert house.docker.discarded == []
    await house.fleet.clear()
    assert house.docker.discarded == [container.id]
    await house.fleet.clear()
    assert house.docker.discarded == [container.id]


@pytest.mark.mission("P0.3")
async def test_a_new_bridge_kills_what_is_to_be_killed(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.store_key("k")
    house.docker.left.append(await found(house))
    await house.up(attrs.evolve(in_docker(), on_restart="kill"))
    await house.until("running")
    assert house.docker.discarded == ["left-ada"]
    assert house.docker.last.id != "left-ada"


@pytest.mark.mission("P0.3")
@pytest.mark.parametrize("step", ["survivors", "news", "ping"])
async def test_an_engine_that_hangs_holds_up_its_own_agents_alone(
    house: FakeHouse, autojump_clock: MockClock, step: str
) -> None:
    await house.store_key("k")
    house.docker.left.append(await found(house, "eve"))
    house.docker.hangs.add(step)
    began = trio.current_time()
    await house.up(in_docker(), declared("bob"))
    await house.until("running", agent="bob")
    assert trio.current_time() - began < 0.1
    if step == "survivors":
        await trio.sleep(100)
        assert house.fleet.get("ada").state == "starting"
        house.docker.left.clear()
    else:
        await house.until("running")


@pytest.mark.mission("P0.3")
async def test_orphans_of_an_engine_that_comes_late_and_nobody_needs(
    house: FakeHouse, autojump_clock: MockClock
) -> None:
    house.docker.left.append(await found(house, "eve"))
    house.docker.lose()
    await house.up(declared())
    await house.until("running")
    await trio.sleep(100)
    house.docker.lose(False)
    await trio.sleep(61)
    assert house.docker.discarded == ["left-eve"]


# -- what its engine tells


async def test_what_others_do_to_a_container_is_recorded(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.store_key("k")
    await house.up(in_docker())
    await house.until("running")
    container = house.docker.last.id
    await house.docker.tell.send(News(container, "ada", "paused"))
    await house.docker.tell.send(News(container, "ada", "oom"))
    await house.docker.tell.send(News("of another generation", "ada", "removed"))
    await trio.sleep(1)
    assert house.facts("agent.touched")["what"] == "paused"
    assert house.kinds()[-2:] == ["agent.touched", "agent.oom"]
    house.docker.last.end(1)
    await house.until("running", generation=2)
    assert house.fleet.get("ada").ends[-1].oom is True


async def test_an_engine_that_goes_and_comes_back(house: FakeHouse, autojump_clock: MockClock) -> None:
    """It is said once each, and what could not be removed meanwhile goes."""
    await house.store_key("k")
    await house.up(in_docker())
    await house.until("running")
    house.docker.lose()
    await house.until("unknown")
    await trio.sleep(60)
    house.docker.left.append(Found("stranded", "eve", "", running=True))
    house.docker.lose(False)
    await house.until("running")
    await trio.sleep(3)
    assert [kind for kind, who, _ in house.notes if who is None] == ["engine.lost", "engine.back"]
    assert house.docker.discarded == ["stranded"]
    assert house.fleet.get("ada").generations == 1


async def test_the_age_of_what_is_known_of_an_engine(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.store_key("k")
    await house.up(in_docker())
    await house.until("running")
    generation = house.fleet.get("ada").generation
    assert generation is not None
    await trio.sleep(100)
    assert trio.current_time() - generation.engine_at <= 5.1
    house.docker.hangs.add("ping")
    await trio.sleep(100)
    assert trio.current_time() - generation.engine_at > 90
