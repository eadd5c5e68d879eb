"""Watching what agents use, with containers that use what they are told to."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import structlog
import trio
from trio.testing import MockClock

from armorclaw import config
from armorclaw.containers.resources import data
from armorclaw.containers.resources import watch as module
from armorclaw.containers.resources.data import data_folder
from armorclaw.containers.resources.history import SECONDS
from armorclaw.containers.resources.usage import Reading, Usage
from armorclaw.containers.resources.watch import KEPT_OPEN, Resources
from armorclaw.errors import ArmorclawError
from armorclaw.structure import Size
from tests.containers.fakes import FakeContainer, FakeHouse, declared, house_in

pytestmark = pytest.mark.mission("P0.4")


class FakeCgroup:
    """Accounts that say what a test wants them to."""

    made: list[FakeCgroup] = []

    def __init__(self) -> None:
        self.says = Usage(cpu_ns=0, memory_bytes=10, memory_limit=100, pids=1)
        self.kills: int | None = 0
        self.gone = False
        self.closed = False
        self.pids_limit = 10
        self.memory_limit = 100
        self.reads: list[float] = []
        self.pids: list[int] = []

    @classmethod
    def of(cls, pid: int) -> FakeCgroup | None:
        if pid == NO_GROUP:
            return None
        cls.made.append(cls())
        return cls.made[-1]

    def usage(self) -> Usage:
        self.reads.append(trio.current_time())
        return Usage() if self.gone else self.says

    def oom_kills(self) -> int | None:
        return self.kills

    def throttled_ns(self) -> int | None:
        return None if self.gone else 5

    def processes(self) -> list[int]:
        return self.pids

    def close(self) -> None:
        self.closed = True


NO_GROUP = 2**22 + 1


@pytest.fixture
async def house(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeHouse]:
    async with house_in(folder, monkeypatch) as made:
        yield made


@pytest.fixture
def groups(monkeypatch: pytest.MonkeyPatch) -> list[FakeCgroup]:
    """Those that were opened; every container of the test has one."""
    FakeCgroup.made = []

    async def main_pid(container: FakeContainer) -> int | None:
        await trio.lowlevel.checkpoint()
        return 2**22 + 2

    monkeypatch.setattr(FakeContainer, "main_pid", main_pid)
    monkeypatch.setattr(module, "Cgroup", FakeCgroup)
    return FakeCgroup.made


def container(house: FakeHouse, name: str = "ada") -> FakeContainer:
    generation = house.fleet.get(name).generation
    assert generation is not None
    assert isinstance(generation.running, FakeContainer)
    return generation.running


def last(resources: Resources, name: str = "ada") -> Reading:
    reading = resources.last(name)
    assert reading is not None
    return reading


def told(house: FakeHouse) -> list[dict[str, object]]:
    """The events of resources, without what all have."""
    facts = [facts for kind, _, facts in house.notes if kind == "agent.resources"]
    return [{name: value for name, value in each.items() if name != "generation"} for each in facts]


async def test_asked_where_there_is_no_group(house: FakeHouse, autojump_clock: MockClock) -> None:
    resources = house.fleet.resources
    await house.up(declared())
    await house.until("running")
    assert resources.last("ada") is None
    uses = container(house)
    for second in range(5):
        uses.uses = Usage(cpu_ns=second * 500_000_000, memory_bytes=(second % 3) << 20, pids=second)
        await trio.sleep(1)
    assert last(resources).usage.pids == 4
    assert last(resources).cpu_percent == 50.0
    assert last(resources).container == uses.id
    assert [each.usage.pids for each in resources.history("ada")][-4:] == [1, 2, 3, 4]
    peaks = resources.peaks("ada")
    assert (peaks.pids, peaks.memory_bytes, peaks.cpu_percent) == (4, 2 << 20, 50.0)
    assert resources.read_now(house.fleet.get("ada")) == last(resources)
    assert not resources.reads("ada")


async def test_read_where_there_is_one(house: FakeHouse, groups: list[FakeCgroup], autojump_clock: MockClock) -> None:
    resources = house.fleet.resources
    await house.up(declared())
    await house.until("running")
    await trio.sleep(0.01)
    (group,) = groups  # found at once: what happens in its first second is seen, too
    await trio.sleep(1.5)
    group.says = attrs.evolve(group.says, cpu_ns=10**9)
    now = resources.read_now(house.fleet.get("ada"))
    assert now is not None
    assert (now.at, now.usage.cpu_ns, now.throttled_ns, now.oom_kills) == (trio.current_time(), 10**9, 5, 0)
    assert last(resources).usage.cpu_ns == 0  # that of each second
    assert resources.reads("ada")
    assert "usage" not in house.runtime.steps


async def test_of_one_that_ended_what_is_known_last(
    house: FakeHouse, groups: list[FakeCgroup], autojump_clock: MockClock
) -> None:
    await house.up(declared())
    await house.until("running")
    await trio.sleep(2)
    agent, (group,) = house.fleet.get("ada"), groups
    group.gone, group.kills = True, 1
    reading = house.fleet.resources.read_now(agent)
    assert reading is not None
    assert (reading.oom_kills, reading.usage.memory_bytes, reading.container) == (1, 10, container(house).id)
    assert not house.fleet.resources.reads("ada")


async def test_another_container_is_another_matter(
    house: FakeHouse, groups: list[FakeCgroup], autojump_clock: MockClock
) -> None:
    resources = house.fleet.resources
    await house.up(declared())
    await house.until("running")
    await trio.sleep(3)
    groups[0].says = attrs.evolve(groups[0].says, memory_bytes=50)
    await trio.sleep(2)
    container(house).end(1)
    await house.until("running", generation=2)
    assert resources.last("ada") is None
    await trio.sleep(3)
    assert groups[0].closed
    assert not groups[1].closed
    assert last(resources).container == container(house).id
    assert resources.peaks("ada").memory_bytes == 10
    assert len(resources.history("ada")) >= 7  # over its generations


async def test_nothing_is_kept_open_that_nobody_needs(
    house: FakeHouse, groups: list[FakeCgroup], autojump_clock: MockClock
) -> None:
    await house.up(declared(), declared("bob"))
    await house.until("running")
    await house.until("running", agent="bob")
    await trio.sleep(2)
    await house.call("stop", name="ada")
    assert house.fleet.resources.last("ada") is None
    await trio.sleep(KEPT_OPEN + 2)
    assert [group.closed for group in groups].count(True) == 1
    assert house.fleet.resources.history("ada")
    await house.fleet.forget(house.fleet.get("ada"))
    await trio.sleep(2)
    assert house.fleet.resources.history("ada") == []
    await house.down()
    assert all(group.closed for group in groups)


async def test_history_ends_after_ten_minutes(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up(declared())
    await house.until("running")
    await trio.sleep(SECONDS + 60)
    assert SECONDS - 2 <= len(house.fleet.resources.history("ada")) <= SECONDS


async def test_readings_are_spread_over_the_second(
    house: FakeHouse, groups: list[FakeCgroup], autojump_clock: MockClock
) -> None:
    await house.up(*(declared(f"a{number}") for number in range(40)))
    for number in range(40):
        await house.until("running", agent=f"a{number}")
    await trio.sleep(1)
    for group in groups:
        group.reads.clear()
    await trio.sleep(5)
    assert len(groups) == 40
    assert all(4 <= len(group.reads) <= 6 for group in groups)
    moments = [round(moment, 6) for group in groups for moment in group.reads]
    assert max(moments.count(moment) for moment in moments) <= 2


@pytest.mark.parametrize("trouble", ["hangs", "fails"])
async def test_an_engine_in_trouble_holds_up_nobody(
    house: FakeHouse, trouble: str, autojump_clock: MockClock
) -> None:
    await house.up(declared(), declared("bob", image="it"))
    await house.until("running")
    await house.until("running", agent="bob")
    await trio.sleep(3)
    for step in ("usage", "main_pid"):
        if trouble == "hangs":
            house.docker.hangs.add(step)
        else:
            house.docker.errors[step] = ArmorclawError("engine_unreachable", "it is gone")
    await trio.sleep(20)
    now = trio.current_time()
    assert now - last(house.fleet.resources).at < 1.1
    assert now - last(house.fleet.resources, "bob").at > 15  # the last that is known, with its age
    house.docker.hangs.clear()
    house.docker.errors.clear()
    await trio.sleep(5)
    assert trio.current_time() - last(house.fleet.resources, "bob").at < 1.1


async def test_a_limit_that_comes_near(house: FakeHouse, groups: list[FakeCgroup], autojump_clock: MockClock) -> None:
    await house.up(declared())
    await house.until("running")
    await trio.sleep(2)
    (group,) = groups
    group.says = attrs.evolve(group.says, memory_bytes=95, pids=9)
    await trio.sleep(60)
    assert sorted(told(house), key=str) == [
        {"what": "memory", "level": "high", "used": 95, "limit": 100},
        {"what": "pids", "level": "high", "used": 9, "limit": 10},
    ]
    group.says = attrs.evolve(group.says, memory_bytes=20)
    await trio.sleep(60)
    assert told(house)[2:] == [{"what": "memory", "level": "normal", "used": 20, "limit": 100}]


async def test_a_kill_for_want_of_memory_while_it_lives(
    house: FakeHouse, groups: list[FakeCgroup], autojump_clock: MockClock
) -> None:
    await house.up(declared())
    await house.until("running")
    await trio.sleep(2)
    groups[0].kills = 1
    await trio.sleep(10)
    groups[0].kills = 3
    await trio.sleep(10)
    assert told(house) == [{"what": "oom", "kills": 1}, {"what": "oom", "kills": 3}]


async def test_kills_before_it_was_adopted_are_not_its_own(
    house: FakeHouse, groups: list[FakeCgroup], autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are neither told again nor the reason why it ends; those after are both."""
    monkeypatch.setattr(FakeCgroup, "oom_kills", lambda group: 3 if len(groups) < 3 else 4)
    house.is_closing = False
    ada = declared(image="i", runtime="docker", on_restart="adopt")
    await house.up(ada)
    await house.until("running")
    await trio.sleep(3)
    await house.down()
    assert told(house) == [{"what": "oom", "kills": 3}]
    house.new_fleet()
    await house.up(ada)
    await house.until("running")
    await trio.sleep(3)
    generation = house.fleet.get("ada").generation
    assert generation is not None
    assert generation.adopted
    assert told(house) == [{"what": "oom", "kills": 3}]
    house.docker.last.end(1)
    await house.until("running", generation=2)
    end = house.fleet.get("ada").ends[-1]
    assert (end.cause, end.oom, end.text) == ("exit", False, "exit 1")
    house.is_closing = True


async def test_a_kill_after_it_was_adopted_is_told(
    house: FakeHouse, groups: list[FakeCgroup], autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    kills = 3
    monkeypatch.setattr(FakeCgroup, "oom_kills", lambda _: kills)
    house.is_closing = False
    ada = declared(image="i", runtime="docker", on_restart="adopt")
    await house.up(ada)
    await house.until("running")
    await trio.sleep(3)
    await house.down()
    house.new_fleet()
    await house.up(ada)
    await house.until("running")
    await trio.sleep(3)
    kills = 4
    await trio.sleep(3)
    assert told(house)[-1] == {"what": "oom", "kills": 4}
    house.docker.last.end(1)
    await house.until("running", generation=2)
    assert house.fleet.get("ada").ends[-1].cause == "oom"
    house.is_closing = True


@pytest.mark.parametrize("step", ["usage", "main_pid", "group", "accounts", "take", "measure"])
async def test_one_whose_figures_are_strange_ends_nobody(
    house: FakeHouse,
    groups: list[FakeCgroup],
    step: str,
    autojump_clock: MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whichever step it is that fails for bob, ada is read."""
    strange = ValueError("strange figures")
    main_pid, pid_of, measure = FakeContainer.main_pid, FakeCgroup.of, data.measure

    async def bobs_pid(container: FakeContainer) -> int | None:
        if container.name == "bob" and step == "main_pid":
            raise strange
        pid = await main_pid(container)
        return NO_GROUP + 5 if container.name == "bob" and step == "group" else NO_GROUP if step == "usage" else pid

    async def usage(container: FakeContainer) -> Usage:
        await trio.lowlevel.checkpoint()
        if container.name == "bob":
            raise strange
        return Usage(pids=1)

    def of(pid: int) -> FakeCgroup | None:
        if pid == NO_GROUP + 5:
            raise strange
        return pid_of(pid)

    def sized(folder: Path, *args: Any) -> Any:
        if folder.name == "bob" and step == "measure":
            raise strange
        return measure(folder, *args)

    def broken(*_: Any) -> None:
        raise strange

    monkeypatch.setattr(FakeContainer, "main_pid", bobs_pid)
    monkeypatch.setattr(FakeContainer, "usage", usage)
    monkeypatch.setattr(FakeCgroup, "of", of)
    monkeypatch.setattr(module, "measure", sized)
    with structlog.testing.capture_logs() as logs:
        await house.up(declared(), declared("bob"))
        await house.until("running")
        await house.until("running", agent="bob")
        await trio.sleep(3)
        if step in ("accounts", "take"):
            watch = house.fleet.resources._watches["bob"]
            if step == "take":
                monkeypatch.setattr(
                    watch.peaks.__class__, "take", lambda peaks, _: broken() if peaks is watch.peaks else None
                )
            else:
                monkeypatch.setattr(watch.cgroup, "usage", broken)
        await trio.sleep(30)
    resources = house.fleet.resources
    assert trio.current_time() - last(resources).at < 1.1
    assert last(resources).data_bytes is not None
    if step == "measure":
        assert last(resources, "bob").data_bytes is None
    else:
        assert resources.last("bob") is None
        assert resources.read_now(house.fleet.get("bob")) is None or step == "take"
    assert {house.fleet.get(name).state for name in ("ada", "bob")} == {"running"}
    assert len([each for each in logs if each["event"] == "figures of an agent are not known"]) == 1


async def test_a_figure_that_is_too_big_is_the_most_there_is(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up(declared())
    await house.until("running")
    container(house).uses = Usage(cpu_ns=1, memory_bytes=2**64, pids=2**40, read_bytes=2**64 - 1)
    await trio.sleep(3)
    usage = house.fleet.resources.history("ada")[-1].usage
    assert (usage.read_bytes, usage.pids) == (2**63 - 1, 2**31 - 1)


async def test_accounts_are_opened_one_in_a_turn_of_the_loop(
    house: FakeHouse, groups: list[FakeCgroup], autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Turns(trio.abc.Instrument):
        count = 0

        def before_io_wait(self, timeout: float) -> None:
            self.count += 1

    turns, opened, asked, all_asked = Turns(), list[int](), list[str](), trio.Event()
    original = FakeCgroup.of

    async def main_pid(container: FakeContainer) -> int:
        asked.append(container.name)
        if len(asked) == 20:
            all_asked.set()
        await all_asked.wait()
        return NO_GROUP + 1

    def of(pid: int) -> FakeCgroup | None:
        opened.append(turns.count)
        return original(pid)

    monkeypatch.setattr(FakeContainer, "main_pid", main_pid)
    monkeypatch.setattr(FakeCgroup, "of", of)
    monkeypatch.setattr(module, "ASK_PATIENCE", 3600)
    trio.lowlevel.add_instrument(turns)
    await house.up(*(declared(f"a{number}") for number in range(20)))
    await trio.sleep(60)
    trio.lowlevel.remove_instrument(turns)
    assert len(opened) == 20
    assert len(set(opened)) == 20


async def test_a_bell_without_end_holds_up_nobody(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up(declared())
    await house.until("running")
    for _ in range(1000):
        house.fleet.resources.look_soon()
        await trio.lowlevel.checkpoint()
    await trio.sleep(3)
    assert len(house.fleet.resources.history("ada")) <= 4


# -- /data


def with_data(house: FakeHouse, soft: int, hard: int, **fields: Any) -> config.Agent:
    return declared(data=config.AgentData(Size(soft), Size(hard)), **fields)


def fill(house: FakeHouse, size: int) -> None:
    folder = data_folder(house.folder / "state", "ada")
    assert folder.is_dir()
    (folder / "big").write_bytes(os.urandom(size))


async def test_its_data_is_measured(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up(declared())
    await house.until("running")
    fill(house, 50_000)
    await trio.sleep(15)
    assert 50_000 <= (last(house.fleet.resources).data_bytes or 0) < 70_000
    assert told(house) == []


async def test_the_soft_limit_warns_once(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up(with_data(house, 40_000, 1_000_000))
    await house.until("running")
    fill(house, 50_000)
    await trio.sleep(60)
    (event,) = told(house)
    assert (event["what"], event["level"], event["limit"]) == ("data", "high", 40_000)
    warnings = [text for _, name, text in house.alerts if name == "agent_data"]
    assert len(warnings) == 1
    assert "1,000,000" in warnings[0]
    assert str(house.folder) not in warnings[0]
    assert house.fleet.get("ada").runs
    fill(house, 10)
    await trio.sleep(120)
    assert [each["level"] for each in told(house)] == ["high", "normal"]


async def test_the_soft_limit_is_the_agents_not_the_containers(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up(with_data(house, 40_000, 1_000_000))
    await house.until("running")
    fill(house, 50_000)
    await trio.sleep(30)
    for generation in (2, 3):
        container(house).end(1)
        await house.until("running", generation=generation)
        await trio.sleep(30)
    assert [each["level"] for each in told(house)] == ["high"]
    assert [name for _, name, _ in house.alerts] == ["agent_data"]


async def test_a_file_without_a_name_counts(
    house: FakeHouse, groups: list[FakeCgroup], autojump_clock: MockClock
) -> None:
    await house.up(with_data(house, 40_000, 80_000))
    await house.until("running")
    await trio.sleep(0.5)
    groups[0].pids = [os.getpid()]
    with (data_folder(house.folder / "state", "ada") / "big").open("wb", buffering=0) as file:
        file.write(os.urandom(100_000))
        os.unlink(file.name)
        await house.until("failed")
    assert house.fleet.get("ada").ends[-1].cause == "quota"


async def test_folders_too_deep_are_told_as_that(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up(declared())
    await house.until("running")
    here = data_folder(house.folder / "state", "ada")
    (here / "/".join("d" * 130)).mkdir(parents=True)
    await house.until("failed")
    text = house.fleet.get("ada").ends[-1].text
    assert "nested" in text
    assert "bytes" not in text


class Hung:
    """The folder of bob does not answer until `back` is set."""

    def __init__(self) -> None:
        self.back = trio.Event()
        self.walks = 0


@pytest.fixture
async def hung(house: FakeHouse, monkeypatch: pytest.MonkeyPatch) -> Hung:
    made, original, in_thread = Hung(), data.measure, trio.to_thread.run_sync

    def measure(folder: Path, *args: Any) -> Any:
        if folder.name == "bob" and not made.back.is_set():
            made.walks += 1
            raise TimeoutError
        return original(folder, *args)

    async def run_sync(function: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return await in_thread(function, *args, **kwargs)
        except TimeoutError:
            assert kwargs["abandon_on_cancel"]
            await made.back.wait()
            return function(*args)

    monkeypatch.setattr(module, "measure", measure)
    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)
    return made


async def test_a_folder_that_hangs_holds_up_nobody(house: FakeHouse, hung: Hung, autojump_clock: MockClock) -> None:
    resources = house.fleet.resources
    await house.up(declared("bob"), declared())
    await house.until("running")
    await house.until("running", agent="bob")
    await trio.sleep(60)
    assert last(resources).data_bytes is not None
    fill(house, 500_000)
    await trio.sleep(60)
    assert (last(resources).data_bytes or 0) > 500_000
    assert last(resources, "bob").data_bytes is None
    assert hung.walks == 1, "one thread hangs, not one for each attempt"
    hung.back.set()
    await trio.sleep(2)
    assert last(resources, "bob").data_bytes is not None


async def test_cancelled_while_a_folder_hangs(house: FakeHouse, hung: Hung, autojump_clock: MockClock) -> None:
    await house.up(declared("bob"))
    await house.until("running", agent="bob")
    await trio.sleep(20)
    assert hung.walks == 1
    began = trio.current_time()
    await house.down()
    assert trio.current_time() - began < 5


async def test_over_the_hard_limit_it_is_ended_and_cannot_start(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up(with_data(house, 40_000, 80_000))
    await house.until("running")
    fill(house, 100_000)
    await house.until("failed")
    agent = house.fleet.get("ada")
    assert agent.ends[-1].cause == "quota"
    assert "data folder" in agent.last_end
    await trio.sleep(60)
    assert house.runtime.live == []
    with pytest.raises(ArmorclawError) as caught:
        await house.call("start", name="ada")
    assert caught.value.name == "quota_exceeded"
    assert "agent ada" in str(caught.value)
    assert str(house.folder) not in str(caught.value.payload())
    await house.call("stop", name="ada")
    fill(house, 10)
    await house.call("start", name="ada")
    await house.until("running")


async def test_over_the_hard_limit_there_is_one_alert(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up(with_data(house, 40_000, 80_000))
    await house.until("running")
    fill(house, 100_000)
    await house.until("failed")
    await trio.sleep(60)
    assert len(house.alerts) == 1


@pytest.mark.parametrize("step", ["usage", "main_pid", "measure"])
async def test_cancelled_wherever_it_is(
    house: FakeHouse, step: str, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    if step == "measure":

        async def forever(*_: Any, **__: Any) -> None:
            await trio.sleep_forever()

        monkeypatch.setattr(Resources, "_measure", forever)
    house.runtime.hangs.add(step)
    await house.up(declared())
    await house.until("running")
    await trio.sleep(2.5)
    began = trio.current_time()
    await house.down()
    assert trio.current_time() - began < 5
