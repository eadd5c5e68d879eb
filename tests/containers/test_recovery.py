"""What follows the end of an agent: policies, limits, one alert; what is kept of it; and agents that hang."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import attrs
import pytest
import trio
import trio.testing
from trio.testing import MockClock

from armorclaw.config import AgentHealth, AgentRestart
from armorclaw.containers.attempt import SETTLING
from armorclaw.containers.ends import KEPT, SUSPECTED
from armorclaw.containers.household import LAUNCHES
from armorclaw.containers.spec import Found
from armorclaw.errors import ArmorclawError
from tests.containers.fakes import FakeHouse, declared, house_in

pytestmark = pytest.mark.mission("P0.1", "P0.2")

FAST = AgentHealth(period=1.0, stalled_after=5.0, stalled_limit=20.0, reconnect=3.0)


@pytest.fixture
async def house(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeHouse]:
    async with house_in(folder, monkeypatch) as made:
        yield made


# -- policies


@pytest.mark.parametrize(
    ("policy", "status", "state"),
    [
        ("always", 0, "running"),
        ("always", 1, "running"),
        ("on-failure", 0, "stopped"),
        ("on-failure", 1, "running"),
        ("on-failure", 137, "running"),
        ("never", 0, "stopped"),
        ("never", 1, "failed"),
    ],
)
async def test_what_a_policy_makes_of_an_end(
    house: FakeHouse, policy: str, status: int, state: str, autojump_clock: MockClock
) -> None:
    await house.up(declared(restart=AgentRestart(policy=policy)))  # type: ignore[arg-type]
    await house.until("running")
    house.runtime.last.end(status)
    await house.until(state, generation=2 if state == "running" else 1)
    await trio.sleep(100)
    ada = house.fleet.get("ada")
    assert (ada.state, ada.generations) == (state, 2 if state == "running" else 1)
    assert ada.restarts == (1 if state == "running" else 0)
    assert ada.wanted
    assert len(house.alerts) == (1 if state == "failed" else 0)


@pytest.mark.parametrize("policy", ["on-failure", "never"])
async def test_an_end_that_stays_is_started_by_hand_and_by_the_next_bridge(
    house: FakeHouse, policy: str, autojump_clock: MockClock
) -> None:
    await house.up(declared(restart=AgentRestart(policy=policy)))  # type: ignore[arg-type]
    await house.until("running")
    house.runtime.last.end(0)
    await house.until("stopped")
    assert (await house.call("start", name="ada"))["status"] == "running"
    house.runtime.last.end(0)
    await house.until("stopped")
    await house.down()
    house.new_fleet()
    await house.up(declared(restart=AgentRestart(policy=policy)))  # type: ignore[arg-type]
    await house.until("running")


async def test_one_that_may_never_start_again_does_not_when_it_cannot_start(
    house: FakeHouse, autojump_clock: MockClock
) -> None:
    house.runtime.errors["launch"] = ArmorclawError("start_failed", "no")
    await house.up(declared(restart=AgentRestart(policy="never")))
    await house.until("failed")
    assert house.runtime.steps.count("launch") == 1
    assert house.fleet.get("ada").last_end == "no"


async def test_limits_are_those_of_the_agent(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up(declared(restart=AgentRestart(in_row=2, longest_pause=5)), declared("bob"))
    for agent in ("ada", "bob"):
        for generation in (1, 2):
            await house.until("running", agent=agent, generation=generation)
            next(each for each in house.runtime.live if each.name == agent).end(1)
            await trio.testing.wait_all_tasks_blocked()
    await house.until("failed")
    await house.until("running", agent="bob", generation=3)
    assert house.fleet.get("ada").generations == 2


async def test_without_limits_it_is_tried_for_ever(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up(declared(restart=AgentRestart(in_row=0, per_hour=0, longest_pause=5)))
    began = trio.current_time()
    for generation in range(1, 50):
        await house.until("running", generation=generation)
        house.runtime.last.end(1)
    await house.until("running", generation=50)
    assert trio.current_time() - began < 50 * 5


async def test_ends_that_were_stable_count_by_the_hour(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up(declared(restart=AgentRestart(stable=10, per_hour=4)))
    for generation in range(1, 5):
        await house.until("running", generation=generation)
        await trio.sleep(20)
        house.runtime.last.end(1)
    await house.until("failed")


# -- given up


async def test_given_up_is_told_once(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up(declared(command=("raise SystemExit(3)",)))
    await house.until("failed")
    await trio.sleep(3600)
    assert house.alerts == [("ada", "agent_failed", "agent ada was given up: exit 3")]
    assert house.kinds().count("agent.failed") == 1
    assert house.facts("agent.failed")["why"] == "exit 3"
    assert house.moves()[-2:] == ["exited", "failed"]


@pytest.mark.parametrize("how", ["start", "containers.restart"])
async def test_by_hand_it_begins_with_a_clear_record(house: FakeHouse, how: str, autojump_clock: MockClock) -> None:
    await house.up(declared())
    for generation in range(1, 7):
        await house.until("running", generation=generation)
        house.runtime.last.end(1)
    await house.until("failed")
    await house.call(how, name="ada")
    for generation in range(7, 12):
        await house.until("running", generation=generation)
        house.runtime.last.end(1)
    await house.until("running", generation=12)
    assert len(house.alerts) == 1


@pytest.mark.parametrize("restart", [True, False])
async def test_ended_for_what_it_used(house: FakeHouse, restart: bool, autojump_clock: MockClock) -> None:
    await house.up(declared())
    await house.ready()
    ada = house.fleet.get("ada")
    ada.end("quota", "over its quota of messages", restart=restart)
    if restart:
        await house.until("running", generation=2)
    else:
        await house.until("failed")
        await trio.sleep(3600)
    assert (ada.ends[-1].cause, ada.last_end) == ("quota", "over its quota of messages")
    assert ada.state == ("running" if restart else "failed")
    assert len(house.alerts) == (0 if restart else 1)
    assert ada.ends_by_cause == {"quota": 1}
    await house.call("start", name="ada")
    await house.until("running")


@pytest.mark.parametrize("phase", ["launch", "back-off", "engine away"])
async def test_ended_for_good_between_two_lives(house: FakeHouse, phase: str, autojump_clock: MockClock) -> None:
    house.around.random.uniform = lambda a, b: 50.0  # type: ignore[method-assign]
    if phase == "launch":
        house.docker.takes["launch"] = 5.0
    elif phase == "engine away":
        house.docker.lose()
    await house.up(declared(runtime="docker", image="i"))
    ada = house.fleet.get("ada")
    if phase == "back-off":
        for generation in (1, 2):
            await house.until("running", generation=generation)
            house.docker.last.end(1)
    await trio.sleep(1)
    assert ada.state == ("starting" if phase == "launch" else "restarting")
    ada.end("quota", "too much", restart=False)
    await house.until("failed")
    house.docker.lose(False)
    house.docker.takes.clear()
    await trio.sleep(3600)
    assert ada.state == "failed"
    assert len(house.alerts) == 1
    await house.call("start", name="ada")
    assert ada.state == "running"


async def test_of_one_that_is_at_rest_nothing_can_be_ended(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up(declared())
    await house.until("running")
    await house.call("stop", name="ada")
    house.fleet.get("ada").end("quota", "too much", restart=False)
    await house.call("start", name="ada")
    await trio.sleep(10)
    assert house.fleet.get("ada").state == "running"


@pytest.mark.mission("P0.2")
async def test_why_it_does_not_start_is_said_in_the_words_of_the_start(
    house: FakeHouse, autojump_clock: MockClock
) -> None:
    house.runtime.errors["start"] = ArmorclawError("start_failed", "no such program")
    await house.up(declared(restart=AgentRestart(policy="never")))
    await house.until("failed")
    end = house.fleet.get("ada").ends[-1]
    assert (end.cause, end.text) == ("engine", "no such program")


# -- while the engine is lost


async def test_one_that_is_not_ready_while_its_engine_is_lost_lives_on(
    house: FakeHouse, autojump_clock: MockClock
) -> None:
    await house.up(declared(image="i", runtime="docker", ready_timeout=30.0))
    await house.until("running")
    house.docker.lose()
    await trio.sleep(300)
    assert house.fleet.get("ada").state == "unknown"
    assert not house.fleet.get("ada").ends
    house.docker.lose(False)
    began = trio.current_time()
    await house.until("running", generation=2)
    assert trio.current_time() - began <= 35
    assert house.fleet.get("ada").ends[-1].cause == "never ready"


@pytest.mark.parametrize("removed", [False, True])
async def test_the_socket_of_one_that_ended_while_its_engine_was_lost_goes_when_that_is_back(
    house: FakeHouse, removed: bool, autojump_clock: MockClock
) -> None:
    await house.up(declared(image="i", runtime="docker"))
    await house.until("running")
    house.docker.lose()
    await house.until("unknown")
    await house.call("stop", name="ada")
    await house.until("stopped")
    if removed:
        house.fleet._agents.pop("ada")
    assert house.sockets()  # a container may live on that has it mounted
    house.docker.lose(False)
    await trio.sleep(5)
    assert house.sockets() == []


async def test_the_socket_of_one_that_was_started_again_stays(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up(declared(image="i", runtime="docker"))
    await house.until("running")
    house.docker.lose()
    await house.until("unknown")
    await house.call("stop", name="ada")
    await house.until("stopped")
    house.docker.lose(False)
    await house.call("start", name="ada")
    await trio.sleep(5)
    assert house.fleet.get("ada").state == "running"
    assert house.sockets()


# -- orders that meet a restart


@pytest.mark.mission("K.start")
async def test_start_while_its_container_is_removed_waits_for_the_next(
    house: FakeHouse, autojump_clock: MockClock
) -> None:
    house.runtime.takes["remove"] = 2.0
    await house.up(declared())
    await house.until("running")
    house.runtime.last.end(1)
    await house.until("exited")
    answer = await house.call("start", name="ada")
    assert (answer["status"], answer["container_id"]) == ("running", house.runtime.last.id)
    await trio.sleep(100)
    assert house.fleet.get("ada").generations == 2


@pytest.mark.mission("K.start")
@pytest.mark.parametrize("first", ["start", "containers.restart"])
@pytest.mark.parametrize("delay", [0.1, 0.5, 1.0, 1.5])
async def test_a_start_that_meets_a_restart_is_no_conflict(
    house: FakeHouse, first: str, delay: float, autojump_clock: MockClock
) -> None:
    house.runtime.takes["launch"] = house.runtime.takes["remove"] = 0.75
    await house.up(declared())
    await house.until("running")
    answers = []

    async def ask(method: str) -> None:
        answers.append((await house.call(method, name="ada"))["status"])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask, "containers.restart")
        await trio.sleep(delay)
        nursery.start_soon(ask, first)
    assert len(answers) == 2
    assert set(answers) <= {"running", "restarting"}
    await trio.sleep(100)
    assert house.fleet.get("ada").state == "running"
    assert len(house.runtime.live) == 1


@pytest.mark.mission("K.start")
async def test_a_restart_that_cannot_start_says_why(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up(declared())
    await house.until("running")
    house.runtime.errors["launch"] = ArmorclawError("start_failed", "no")
    with pytest.raises(ArmorclawError, match="no"):
        await house.call("containers.restart", name="ada")


# -- many at once


async def test_many_that_die_at_once_come_back_a_few_at_a_time(house: FakeHouse, autojump_clock: MockClock) -> None:
    names = [f"a{number}" for number in range(20)]
    await house.up(*(declared(name) for name in names))
    for name in names:
        await house.until("running", agent=name)
    under_way, most = 0, 0
    step = house.runtime.step

    async def counted(name: str) -> None:
        nonlocal under_way, most
        under_way += name in ("launch", "start")
        most = max(most, under_way)
        await trio.sleep(0.1)
        under_way -= name in ("launch", "start")
        await step(name)

    house.runtime.step = counted  # type: ignore[method-assign]
    for container in house.runtime.live:
        container.end(137)
    for name in names:
        await house.until("running", agent=name, generation=2)
    assert most == LAUNCHES


async def test_a_runtime_that_hangs_holds_up_no_other(house: FakeHouse, autojump_clock: MockClock) -> None:
    house.docker.hangs.add("launch")
    await house.up(*(declared(f"d{number}", runtime="docker", image="i") for number in range(LAUNCHES + 2)))
    await trio.sleep(1)
    assert (await house.call("start", name="ada", command=["x"]))["status"] == "running"


# -- what is kept of an end


async def test_ends_are_kept_over_bridges(house: FakeHouse, autojump_clock: MockClock) -> None:
    restart = AgentRestart(in_row=0, per_hour=0, longest_pause=1)
    await house.up(declared(restart=restart))
    for generation in range(1, KEPT + 4):
        await house.until("running", generation=generation)
        house.runtime.last.end(generation)
    await house.until("running", generation=KEPT + 4)
    ends = list(house.fleet.get("ada").ends)
    assert [end.code for end in ends] == list(range(4, KEPT + 4))
    await house.down()
    house.new_fleet()
    await house.up(declared(restart=restart))
    ada = house.fleet.get("ada")
    assert list(ada.ends)[:-1] == ends[1:]
    assert (ada.ends[-1].cause, ada.ends[-1].text) == ("bridge", "the bridge stopped")
    assert ada.last_end == "the bridge stopped"
    assert ada.ends_by_cause == {}
    seen = await house.call("containers.inspect", name="ada")
    assert seen["ends"] == [attrs.asdict(end) for end in ada.ends]


@pytest.mark.parametrize(
    ("how", "cause", "text", "signal"),
    [
        ("stop", "operator", "stopped", None),
        ("stop, and it does not", "operator", "stopped", None),
        ("killed", "signal", SUSPECTED, 9),
        ("taken away", "engine", "it is gone", None),
        ("expired", "lifetime", "its lifetime is over", None),
    ],
)
async def test_who_ended_it(
    house: FakeHouse, how: str, cause: str, text: str, signal: int | None, autojump_clock: MockClock
) -> None:
    await house.up(declared())
    await house.ready()
    ada, container = house.fleet.get("ada"), house.runtime.last
    if how == "killed":
        container.end(137)
    elif how == "taken away":
        assert ada.generation is not None
        ada.generation.finish("engine", "it is gone")
    else:
        if how == "stop, and it does not":
            house.shutdown = lambda: None
        if how == "expired":
            ada.order("lifetime", "its lifetime is over")
        await house.fleet.stop(ada)
        await house.until("stopped")
    await trio.sleep(1)
    end = ada.ends[0]
    assert (end.cause, end.text, end.signal) == (cause, text, signal)
    facts = house.facts("agent.ended")
    assert (facts["cause"], facts["text"], facts["container"]) == (cause, text, container.id)


async def test_no_place_of_the_host_is_told_to_observers(house: FakeHouse, autojump_clock: MockClock) -> None:
    house.runtime.errors["launch"] = ArmorclawError("start_failed", "cannot read /srv/agents/main.py")
    await house.up(declared())
    await house.until("failed")
    assert house.fleet.standings()[0].last_end == "cannot read …/main.py"
    assert not any("/srv" in str(facts) for _, _, facts in house.notes)
    assert "/srv" not in str(house.alerts)


# -- agents that do not answer


async def silent(house: FakeHouse) -> trio.SocketStream:
    """A session that says it is ready, and then nothing."""
    await house.until("running", "suspect")
    stream = await trio.open_unix_socket(house.fleet.get("ada").socket.path)
    await stream.send_all(b'{"jsonrpc":"2.0","id":1,"method":"agent.ready","params":{}}\n')
    assert "result" in json.loads((await stream.receive_some()).split(b"\n")[0])
    return stream


async def test_one_that_hangs_is_started_again(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up(declared(health=FAST))
    async with await silent(house):
        began = trio.current_time()
        await house.until("running", generation=2)
    assert trio.current_time() - began <= 4.0
    await trio.testing.wait_all_tasks_blocked()
    ada = house.fleet.get("ada")
    assert ada.ends[-1].cause == "hang"
    assert house.moves()[2:] == ["ready", "suspect", "hung", "restarting", "starting", "running"]
    assert house.facts("agent.state")["why"] == ""


@pytest.mark.parametrize("how", ["closes", "half-closes"])
async def test_the_end_of_a_session_is_known_at_once(house: FakeHouse, how: str, autojump_clock: MockClock) -> None:
    await house.up(declared(health=FAST))
    stream = await silent(house)
    began = trio.current_time()
    if how == "closes":
        await stream.aclose()
    else:
        await stream.send_eof()
    await house.until("suspect")
    assert trio.current_time() - began == pytest.approx(0.0, abs=0.02)
    await house.until("running", generation=2)
    assert trio.current_time() - began == pytest.approx(FAST.reconnect, abs=0.02)
    assert house.fleet.get("ada").ends[-1].cause == "lost session"
    await stream.aclose()


async def test_a_stalled_one_is_told_of_once_and_started_again_in_the_end(
    house: FakeHouse, autojump_clock: MockClock
) -> None:
    await house.up(declared(health=FAST))
    await house.ready()
    began = trio.current_time()
    house.cursors.held["ada"] = (2, began)
    await house.until("stalled")
    assert 5 <= trio.current_time() - began <= 6.1
    ada = house.fleet.get("ada")
    ada.worked()
    assert ada.state == "ready"
    await house.until("stalled")
    house.cursors.held["ada"] = (0, None)
    await house.until("ready")
    house.cursors.held["ada"] = (1, trio.current_time())
    await house.until("running", generation=2)
    assert ada.ends[-1].cause == "stalled"
    names = [name for _, name, _ in house.alerts]
    assert names == ["agent_stalled"] * len(names)
    assert 2 <= len(names) <= 3


async def test_one_that_is_adopted_has_but_to_come_back(house: FakeHouse, autojump_clock: MockClock) -> None:
    from armorclaw.containers.agent_socket import AgentSocket

    wanted = declared(runtime="docker", image="i", ready_timeout=30.0, health=FAST)
    socket = AgentSocket(house.folder / "run", "ada", 10001)
    spec = await house.fleet.household.spec_for(wanted, house.docker, socket)
    house.docker.left.append(Found("found", "ada", spec.digest(), running=True))
    began = trio.current_time()
    await house.up(wanted)
    await house.until("running", generation=2)
    assert trio.current_time() - began == pytest.approx(FAST.reconnect, abs=0.1)
    assert house.fleet.get("ada").last_end == "its session did not come back within 3 s"


async def test_facts_with_their_ages(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up(declared(health=FAST))
    await house.ready()
    await trio.sleep(10.5)
    house.cursors.held["ada"] = (2, trio.current_time() - 1.5)
    health = (await house.call("containers.inspect", name="ada"))["health"]
    assert health["ping_ms"] >= 0
    assert 0 <= health.pop("ping_age_ms") <= 1000
    assert health.pop("ping_ms") < 1000
    assert health.pop("engine_age_ms") >= 0
    health.pop("reading_age_ms")
    assert health.pop("work_age_ms") == pytest.approx(10_500, abs=50)
    assert health.pop("session_age_ms") == pytest.approx(10_500, abs=50)
    assert health == {
        "engine": "running",
        "session": "open",
        "pings_missed": 0,
        "unacknowledged": 2,
        "oldest_unacknowledged_ms": 1500,
    }
    await house.call("stop", name="ada")
    assert (await house.call("containers.inspect", name="ada"))["health"] is None


# -- sleep


@pytest.mark.mission("P0.3")
async def test_it_sleeps_until_there_is_work_and_that_counts_nothing(
    house: FakeHouse, autojump_clock: MockClock
) -> None:
    await house.up(declared())
    ada = house.fleet.get("ada")
    for _ in range(30):  # far more often than ends are allowed
        await house.ready()
        ada.sleep("no work")
        await house.until("sleeping")
        assert house.runtime.live == []
        assert house.sockets() == []
        await trio.sleep(3)
        assert ada.state == "sleeping"
        began = trio.current_time()
        house.cursors.bring("ada")
        await house.until("running")
        assert trio.current_time() - began < 0.01
        house.cursors.waiting.clear()
    assert (ada.restarts, ada.ends[-1].cause, ada.ends[-1].text) == (0, "idle", "no work")
    assert house.alerts == []


async def test_one_that_does_not_end_to_sleep_is_made_to(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up(declared())
    await house.ready()
    house.shutdown = lambda: None
    began = trio.current_time()
    house.fleet.get("ada").sleep("no work")
    await house.until("sleeping")
    assert trio.current_time() - began == pytest.approx(4.5)
    assert house.fleet.get("ada").last_end == "no work, did not end within 4.5 s"


@pytest.mark.parametrize("how", ["stop", "containers.restart", "start", "end of the fleet", "end for good"])
async def test_told_while_it_sleeps(house: FakeHouse, how: str, autojump_clock: MockClock) -> None:
    await house.up(declared())
    await house.ready()
    ada = house.fleet.get("ada")
    ada.sleep("no work")
    await house.until("sleeping")
    began = trio.current_time()
    if how == "end of the fleet":
        await house.down()
        assert ada.state == "stopped"
    elif how == "end for good":
        ada.end("quota", "too much", restart=False)
        await house.until("failed")
    else:
        await house.call(how, name="ada")
        assert ada.state == ("stopped" if how == "stop" else "running")
    assert trio.current_time() - began < 0.1


async def test_stopped_on_its_way_to_sleep_it_stays_stopped(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up(declared())
    await house.ready()
    house.shutdown = lambda: None
    house.fleet.get("ada").sleep("no work")
    await trio.sleep(1)
    house.nursery.start_soon(house.fleet.stop, house.fleet.get("ada"))
    await house.until("stopped")
    house.cursors.bring("ada")
    await trio.sleep(100)
    assert house.fleet.get("ada").state == "stopped"


async def test_one_that_crashes_when_woken_is_started_again_as_ever(
    house: FakeHouse, autojump_clock: MockClock
) -> None:
    await house.up(declared())
    await house.ready()
    ada = house.fleet.get("ada")
    ada.sleep("no work")
    await house.until("sleeping")
    house.cursors.bring("ada")
    for generation in range(2, 8):
        await house.until("running", generation=generation)
        house.runtime.last.end(1)
    await house.until("failed")
    assert ada.generations == 7


async def test_one_that_starts_up_keeps_its_turn_for_a_while(house: FakeHouse, autojump_clock: MockClock) -> None:
    names = [f"a{number}" for number in range(LAUNCHES + 1)]
    began = trio.current_time()
    await house.up(*(declared(name, ready_timeout=30.0) for name in names))
    await trio.testing.wait_all_tasks_blocked()
    assert sorted(row.state for row in house.fleet.standings()) == ["running"] * LAUNCHES + ["starting"]
    await house.ready(next(row.name for row in house.fleet.standings() if row.state == "running"))
    await trio.testing.wait_all_tasks_blocked()
    assert not any(row.state == "starting" for row in house.fleet.standings())
    assert trio.current_time() - began < SETTLING


async def test_one_that_never_gets_ready_holds_up_the_others_for_a_moment(
    house: FakeHouse, autojump_clock: MockClock
) -> None:
    names = [f"a{number}" for number in range(LAUNCHES + 1)]
    began = trio.current_time()
    await house.up(*(declared(name, ready_timeout=30.0) for name in names))
    for name in names:
        await house.until("running", agent=name)
    assert trio.current_time() - began == pytest.approx(SETTLING, abs=0.01)
