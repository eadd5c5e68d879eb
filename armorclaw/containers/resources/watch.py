"""What agents use, watched by one task for all of them: readings, history, and a word when a limit comes near.

A reading is synchronous: files of the kernel that are open already, some 30 µs for one agent. Those of all agents are
spread over the second, so that no turn of the loop is long. Where there is no control group to read, the container is
asked (an engine's API, or /proc), in a task of its own that holds up nobody.

The folder at /data is measured by walking through it, in a worker thread, one at a time; one that hangs is left
behind after a while, and the others go on.

Whatever goes wrong with the figures of one agent is logged and leaves them unknown: the others are read.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import attrs
import trio

from armorclaw.clock import Surroundings
from armorclaw.containers.agent import Agent
from armorclaw.containers.resources.cgroup import Cgroup
from armorclaw.containers.resources.data import DataSize, data_folder, measure
from armorclaw.containers.resources.history import SECONDS, History, Peaks
from armorclaw.containers.resources.thresholds import Crossing, Threshold
from armorclaw.containers.resources.usage import Reading, Usage, tree
from armorclaw.containers.runtime import Running
from armorclaw.errors import ArmorclawError, trace
from armorclaw.guard.alerts import Severity
from armorclaw.log import get_logger

log = get_logger(__name__)

PERIOD = 1.0
"""Seconds from one reading of an agent to the next."""

TURNS = 20
"""Into so many turns of the loop the readings of many agents are spread; of 256 agents 13 fall to one, 0.4 ms."""

ASK_PATIENCE = 3.0
"""Seconds a container has to say what it uses, or which process is its main one."""

RETRY = 5.0
"""Seconds until a container is asked again for its main process, when it could not say."""

KEPT_OPEN = 10.0
"""Seconds a container's accounts stay open after it was last seen: why it ended is asked when it has."""

DATA_PERIOD = 10.0
"""Seconds from one measuring of a data folder to the next, at least."""

DATA_SHARE = 0.02
"""Share of the time that one folder may be walked through: one that takes 1 s is measured each 50 s."""

DATA_PATIENCE = 10.0
"""Seconds until the others are measured beside a folder that takes longer, for its size or as its disk is silent."""


class Note(Protocol):
    """Has a change of an agent recorded as an event, in order, without waiting."""

    def __call__(self, agent: Agent, kind: str, **facts: object) -> None: ...


class Alert(Protocol):
    """Has people told, in order, without waiting."""

    def __call__(self, name: str, severity: Severity, text: str, *, agent: Agent, **fields: object) -> None: ...


@attrs.define(eq=False)
class _Watch:
    """One container of one agent."""

    agent: Agent
    running: Running
    seen_at: float
    cgroup: Cgroup | None = None
    pid: int | None = None
    ask_pid_at: float = -math.inf
    opening: bool = False
    """A task asks for its main process."""
    asking: bool = False
    """A task asks what it uses."""
    last: Reading | None = None
    cpu: tuple[float, int] | None = None
    """When processor time was read last, and how much it was."""
    kills_told: int = 0
    """Processes killed for want of memory, up to what was told, by this or an earlier life of the bridge."""
    data: DataSize | None = None
    measure_at: float = -math.inf
    over: bool = False
    """It was found over its hard limit."""
    peaks: Peaks = attrs.field(factory=Peaks)
    thresholds: dict[str, Threshold] = attrs.field(factory=dict)

    @property
    def lives(self) -> bool:
        """Whether this is the agent's container of now, made to run."""
        generation = self.agent.generation
        return generation is not None and generation.running is self.running and self.agent.runs

    def close(self) -> None:
        if self.cgroup is not None:
            self.cgroup.close()


class Resources:
    """The readings of all agents, each second one, for as long as `run` runs.

    `agents` are those to watch. An agent's history, and whether its /data was over the soft limit, are kept until it
    is known no more, over its generations.
    """

    def __init__(
        self,
        agents: Callable[[], list[Agent]],
        around: Surroundings,
        note: Note,
        alert: Alert,
        state_dir: Path,
    ) -> None:
        self._agents = agents
        self._clock = around.clock
        self._note = note
        self._alert = alert
        self._state_dir = state_dir
        self._watches: dict[str, _Watch] = {}
        self._histories: dict[str, History] = {}
        self._data_thresholds: dict[str, Threshold] = {}
        self._faulty: set[str] = set()  # agents of whom a fault was logged
        self._measuring: set[str] = set()  # agents through whose folders a thread walks
        self._turn_to_open = trio.Lock()
        self._bell = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Watch until cancelled.

        Resource handling: all files it opened are closed. Error handling: what cannot be read is unknown, never an
        error of whoever runs this.
        """
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._measure_folders, nursery)
                task_status.started()
                await self._read_all(nursery)
        finally:
            for watch in self._watches.values():
                watch.close()
            self._watches.clear()

    def look_soon(self) -> None:
        """A container was started: find it at once, not with the next turn, for it may end before that."""
        self._bell.set()

    def reads(self, name: str) -> bool:
        """Whether the kernel's accounts of the container that runs are open, so that `read_now` is of now."""
        watch = self._watches.get(name)
        return watch is not None and watch.lives and watch.cgroup is not None and not watch.cgroup.gone

    def last(self, name: str) -> Reading | None:
        """The last reading of the container that runs; None if none does, or none was read yet."""
        watch = self._watches.get(name)
        return watch.last if watch is not None and watch.lives else None

    def history(self, name: str) -> list[Reading]:
        """Those of the last ten minutes, oldest first, with the figures that are kept; gaps where nothing ran."""
        history = self._histories.get(name)
        return [] if history is None else list(history.since(self._clock.now_ms() - SECONDS * 1000))

    def peaks(self, name: str) -> Peaks:
        """The most its container of now, or its last, ever used."""
        watch = self._watches.get(name)
        return Peaks() if watch is None else attrs.evolve(watch.peaks)

    def read_now(self, agent: Agent) -> Reading | None:
        """What its container uses this very moment, synchronously; of one that has just ended, what is known last.

        So long as its group is there, and after that where the kernel calls back, it tells kills for want of memory.
        Where there is no group to read it is the last reading, up to a second old.
        """
        watch = self._watches.get(agent.name)
        if watch is None:
            return None
        generation = agent.generation
        if generation is not None and generation.running is not watch.running:
            return None
        reading = None
        with self._guarded(watch):
            reading = self._reading(watch) or watch.last
        return reading  # noqa: RET504 - None after a fault

    @contextmanager
    def _guarded(self, watch: _Watch) -> Iterator[None]:
        """Whatever is wrong with the figures of one agent ends neither it nor the others."""
        try:
            yield
        except Exception as error:  # noqa: BLE001 - engines and files of the kernel say what they like
            watch.last = watch.data = None
            if watch.agent.name not in self._faulty:
                self._faulty.add(watch.agent.name)
                log.error("figures of an agent are not known", agent=watch.agent.name, trace=trace(error))

    # -- readings

    async def _read_all(self, nursery: trio.Nursery) -> None:
        turn, due = 0, trio.current_time()
        while True:
            with trio.move_on_at(due):
                await self._bell.wait()
                self._bell = trio.Event()
            agents = self._agents()
            self._meet(agents, nursery)
            if trio.current_time() < due:
                await trio.lowlevel.checkpoint()  # whoever rings without end holds up nobody
                continue
            turns = max(1, min(TURNS, len(agents)))
            turn = (turn + 1) % turns
            for agent in agents[turn::turns]:
                watch = self._watches.get(agent.name)
                if watch is not None and watch.lives:
                    if watch.cgroup is not None:
                        self._read(watch)
                    elif not watch.asking and not (watch.opening and watch.last is None):
                        # while it is opened there will most likely be a group in a moment
                        watch.asking = True
                        nursery.start_soon(self._ask, watch)
            due = max(due + PERIOD / turns, trio.current_time())  # a loop that was held up makes no burst

    def _meet(self, agents: list[Agent], nursery: trio.Nursery) -> None:
        """Begin to watch containers that are new, and let go of those that have gone."""
        now = trio.current_time()
        for agent in agents:
            watch, generation = self._watches.get(agent.name), agent.generation
            if generation is None or not agent.runs:
                continue
            if watch is None or watch.running is not generation.running:
                if watch is not None:
                    watch.close()
                watch = self._watches[agent.name] = _Watch(agent, generation.running, now)
            watch.seen_at = now
            if watch.pid is None and not watch.opening and now >= watch.ask_pid_at:
                watch.opening, watch.ask_pid_at = True, now + RETRY
                nursery.start_soon(self._open, watch)
        known = {agent.name for agent in agents}
        for name, watch in list(self._watches.items()):
            if name not in known or now - watch.seen_at > KEPT_OPEN:
                watch.close()
                del self._watches[name]
        for name in self._histories.keys() - known:
            del self._histories[name]
        for name in self._data_thresholds.keys() - known:
            del self._data_thresholds[name]
        self._faulty &= known

    async def _open(self, watch: _Watch) -> None:
        """Find the accounts of a container, which are those of its main process."""
        with self._guarded(watch):
            try:
                pid = None
                with trio.move_on_after(ASK_PATIENCE):
                    pid = await watch.running.main_pid()
                async with self._turn_to_open:
                    if pid is not None and self._watches.get(watch.agent.name) is watch:
                        await self._open_group(watch, pid)
            except ArmorclawError:  # the state says what is wrong
                pass
            finally:
                watch.opening = False
            self._begin_count(watch)

    async def _open_group(self, watch: _Watch, pid: int) -> None:
        """In a thread: to be told of shortages of memory takes the kernel some 10 ms."""
        group = await trio.to_thread.run_sync(Cgroup.of, pid)
        if self._watches.get(watch.agent.name) is watch:
            watch.pid, watch.cgroup = pid, group
        elif group is not None:
            group.close()

    def _begin_count(self, watch: _Watch) -> None:
        """Kills for want of memory before it was adopted are no reason for its end, and have been told."""
        generation = watch.agent.generation
        if watch.cgroup is None or generation is None or generation.running is not watch.running:
            return
        if generation.adopted:
            generation.oom_before = watch.kills_told = watch.cgroup.oom_kills() or 0

    def _read(self, watch: _Watch) -> None:
        with self._guarded(watch):
            reading = self._reading(watch)
            if reading is not None and watch.cgroup is not None and not watch.cgroup.gone:
                self._take(watch, reading)

    async def _ask(self, watch: _Watch) -> None:
        with self._guarded(watch):
            try:
                usage = Usage()
                with trio.move_on_after(ASK_PATIENCE):
                    usage = await watch.running.usage()
            except ArmorclawError:
                return
            finally:
                watch.asking = False
            if usage != Usage() and watch.lives:
                self._take(watch, self._made(watch, usage))

    def _reading(self, watch: _Watch) -> Reading | None:
        """From its group, now; once that has gone, the last with what is known of kills. None without a group."""
        if watch.cgroup is None:
            return None
        usage, kills = watch.cgroup.usage(), watch.cgroup.oom_kills()
        if watch.cgroup.gone:
            return (
                None
                if watch.last is None and kills is None
                else attrs.evolve(watch.last or self._made(watch, Usage()), oom_kills=kills)
            )
        return attrs.evolve(
            self._made(watch, usage), oom_kills=kills, throttled_ns=watch.cgroup.throttled_ns(), tmp_bytes=_tmp(watch)
        )

    def _made(self, watch: _Watch, usage: Usage) -> Reading:
        now = trio.current_time()
        percent = None
        if watch.cpu is not None and usage.cpu_ns is not None and now > watch.cpu[0]:
            percent = round(max(0, usage.cpu_ns - watch.cpu[1]) / (now - watch.cpu[0]) / 10_000_000, 1)
        return Reading(
            at=now,
            at_ms=self._clock.now_ms(),
            container=watch.running.id,
            usage=usage,
            cpu_percent=percent,
            data_bytes=None if watch.data is None else watch.data.bytes,
        )

    def _take(self, watch: _Watch, reading: Reading) -> None:
        """One of those that are made each second."""
        watch.last = reading
        if reading.usage.cpu_ns is not None:
            watch.cpu = reading.at, reading.usage.cpu_ns
        watch.peaks.take(reading)
        self._histories.setdefault(watch.agent.name, History()).add(reading)
        for crossing in _crossings(watch, reading):
            self._tell(watch.agent, crossing)
        if reading.oom_kills is not None and reading.oom_kills > watch.kills_told:
            watch.kills_told = reading.oom_kills
            log.warning("a process of an agent was killed for want of memory", agent=watch.agent.name)
            self._note(watch.agent, "agent.resources", what="oom", kills=reading.oom_kills)

    def _tell(self, agent: Agent, crossing: Crossing) -> None:
        self._note(agent, "agent.resources", **attrs.asdict(crossing))

    # -- the folders at /data

    async def _measure_folders(self, nursery: trio.Nursery) -> None:
        while True:
            await trio.sleep(PERIOD)
            for watch in list(self._watches.values()):
                name = watch.agent.name
                if not watch.lives or watch.over or name in self._measuring or trio.current_time() < watch.measure_at:
                    continue
                self._measuring.add(name)
                done = trio.Event()
                nursery.start_soon(self._measure_guarded, watch, done)
                with trio.move_on_after(DATA_PATIENCE) as scope:
                    await done.wait()
                if scope.cancelled_caught:
                    log.warning("measuring a data folder takes long", agent=name, seconds=DATA_PATIENCE)

    async def _measure_guarded(self, watch: _Watch, done: trio.Event) -> None:
        try:
            with self._guarded(watch):
                watch.measure_at = trio.current_time() + DATA_PERIOD
                await self._measure(watch)
        finally:
            self._measuring.discard(watch.agent.name)
            done.set()

    async def _measure(self, watch: _Watch) -> None:
        agent, limits = watch.agent, watch.agent.declared.data
        folder, began = data_folder(self._state_dir, agent.name), trio.current_time()
        # a limiter of its own: threads that hang, at most one for each agent, keep nobody else's waiting
        size = await trio.to_thread.run_sync(
            lambda: measure(folder, limits.hard, _processes(watch.cgroup, watch.pid)),
            abandon_on_cancel=True,
            limiter=trio.CapacityLimiter(1),
        )
        took = trio.current_time() - began
        watch.measure_at = trio.current_time() + max(DATA_PERIOD, took / DATA_SHARE)
        if not watch.lives:
            return
        if size.why and (watch.data is None or not watch.data.why):
            log.warning("a data folder cannot be measured in full", agent=agent.name, why=size.why)
        watch.data = size
        threshold = self._data_thresholds.setdefault(agent.name, Threshold("data"))
        crossing = threshold.take(size.bytes, limits.soft, trio.current_time(), high=1.0)
        if crossing is not None:
            self._tell(agent, crossing)
        if excess := size.excess(limits.hard):
            watch.over = True
            agent.end("quota", f"its data folder is over its limit: {excess}", restart=False)
        elif crossing is not None and crossing.level == "high":
            text = f"the data folder of agent {agent.name} holds {size.bytes:,} bytes; at {limits.hard:,} it is ended"
            self._alert("agent_data", "warning", text, agent=agent)


def _crossings(watch: _Watch, reading: Reading) -> Iterator[Crossing]:
    usage, limits = reading.usage, watch.agent.declared.limits
    of_pids = watch.cgroup.pids_limit if watch.cgroup is not None else limits.pids
    for what, used, limit in (
        ("memory", usage.memory_bytes, usage.memory_limit),
        ("pids", usage.pids, of_pids),
        ("tmp", reading.tmp_bytes, int(limits.tmp)),
    ):
        crossing = watch.thresholds.setdefault(what, Threshold(what)).take(used, limit, reading.at)
        if crossing is not None:
            yield crossing


def _processes(cgroup: Cgroup | None, pid: int | None) -> Iterator[int]:
    """Those of an agent, as its group tells, else as they descend from its main process; blocking."""
    found = [] if cgroup is None else cgroup.processes()
    yield from found or (tree(pid) if pid is not None else ())


def _tmp(watch: _Watch) -> int | None:
    """What its /tmp holds; None where the kernel does not let us look, or that is no file system of its own."""
    try:
        facts = os.statvfs(f"/proc/{watch.pid}/root/tmp")
    except OSError:
        return None
    size, page = facts.f_blocks * facts.f_frsize, facts.f_frsize
    if not 0 <= size - watch.agent.declared.limits.tmp < page:
        return None
    return (facts.f_blocks - facts.f_bfree) * facts.f_frsize
