"""What agents report: how they are, what went wrong, what happened, how far they are.

Each report is an event of its method's name, for operators; agents do not hear each other. How they are and what went
wrong is audited too, and an error as severe as alerts are is one. What an agent can have written in this way is
bounded: in bytes, and in alerts and log lines, of which no minute has more than `ERRORS` of one agent.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import attrs
import trio

from armorclaw.clock import Clock
from armorclaw.config import MIB
from armorclaw.containers.shapes import AgentError, AgentEvent, AgentProgress, AgentStatus
from armorclaw.errors import ArmorclawError
from armorclaw.events.event import Event, ascii_json
from armorclaw.events.journal import Journal
from armorclaw.events.severity import severity_of
from armorclaw.guard.alerts import RANK, Alerts
from armorclaw.guard.audit import AuditLog
from armorclaw.guard.quotas import MAX_AGENTS, Quotas, Window
from armorclaw.log import get_logger
from armorclaw.rpc.call import Call
from armorclaw.rpc.failure import printable
from armorclaw.rpc.registry import Registry, Role
from armorclaw.store import Connection

log = get_logger(__name__)

PROGRESS_EVERY = 0.5
"""Seconds between two records of one task's progress; of what comes in between the newest counts."""

REPORT_BYTES = 4 * MIB
"""Bytes of reports that one agent may have recorded in any minute, and one report more; what is beyond is refused."""

ERRORS = 10
"""Alerts about errors that one agent reports in any minute, and likewise lines in the log about errors that are none.
The rest are counted, and the next one says how many they were; the event of each is recorded all the same."""

MAX_TASKS = 64
"""Tasks of one agent whose progress is told at once."""

RETRY = 1.0
"""Seconds until the store is asked again to take progress."""

CLOSING = 1.0
"""Seconds that the last progress may take to be recorded when all is stopped."""


class Reporter(Protocol):
    """The agent that reports."""

    def worked(self) -> None: ...
    def tell_status(self, text: str) -> None: ...


class _Task:
    """The progress of one task."""

    __slots__ = ("newest",)

    def __init__(self) -> None:
        self.newest: Mapping[str, Any] | None = None  # not recorded yet


class _Pace:
    """Lets `ERRORS` a minute through, and counts the others."""

    __slots__ = ("_left_out", "_window")

    def __init__(self) -> None:
        self._window = Window(ERRORS)
        self._left_out = 0

    def take(self, now: float) -> int | None:
        """How many were left out since the last that was let through; None: this one is, too."""
        if self._window.wait(now):
            self._left_out += 1
            return None
        self._window.add(now)
        left_out, self._left_out = self._left_out, 0
        return left_out

    def at_rest(self, now: float) -> bool:
        self._window.add(now, 0)
        return not self._window.used


class _Agent:
    """What is kept of one that reports."""

    __slots__ = ("alerts", "bytes", "lines", "refused", "tasks")

    def __init__(self) -> None:
        self.tasks: dict[str, _Task] = {}
        self.bytes = Window(REPORT_BYTES)
        self.alerts, self.lines = _Pace(), _Pace()
        self.refused = False  # what it reported last

    def at_rest(self, now: float) -> bool:
        self.bytes.add(now, 0)
        return not (self.tasks or self.bytes.used) and self.alerts.at_rest(now) and self.lines.at_rest(now)


class Reports:
    """Takes the reports of all agents. `find` knows those in containers; `severity` is that of alerts."""

    def __init__(
        self,
        *,
        find: Callable[[str], Reporter | None],
        journal: Journal,
        audit: AuditLog,
        alerts: Alerts,
        quotas: Quotas,
        severity: str,
        clock: Clock,
    ) -> None:
        self._find = find
        self._journal = journal
        self._audit = audit
        self._alerts = alerts
        self._quotas = quotas
        self._severity = severity
        self._clock = clock
        self._agents: dict[str, _Agent] = {}
        self._due: list[tuple[float, str, str]] = []  # a heap: of each task, when to look at it; agent and name
        self._news = trio.Event()

    def register(self, registry: Registry) -> None:
        """Add the methods, for agents only: an operator cannot speak for one."""
        agents = {Role.AGENT}
        method = registry.method
        method("agent.status", params=AgentStatus, roles=agents, quota="events")(self.status)
        method("agent.error", params=AgentError, roles=agents, quota="events")(self.error)
        method("agent.event", params=AgentEvent, roles=agents, quota="events")(self.event)
        method("agent.progress", params=AgentProgress, roles=agents)(self.progress)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Record progress as it falls due, until cancelled; then, within `CLOSING` seconds, what was told last."""
        task_status.started()
        try:
            while True:
                self._news = trio.Event()
                due = await self._record_progress()
                with trio.move_on_at(due):
                    await self._news.wait()
        finally:
            with trio.move_on_after(CLOSING, shield=True):
                await self._record_progress(last=True)

    # -- the methods

    async def status(self, call: Call, params: AgentStatus) -> None:
        """Say what the agent is at; shown to operators beside its state until it says something else."""
        name, agent = self._reporter(call)
        text = printable(params.text, len(params.text))
        await self._record("agent.status", {"text": text}, name, audited={"text": text})
        if agent is not None:
            agent.tell_status(text)

    async def error(self, call: Call, params: AgentError) -> None:
        """Say that something went wrong. From the severity of alerts on, the room of alerts is told."""
        name, _ = self._reporter(call)
        facts = {"severity": params.severity, "message": params.message}
        await self._record("agent.error", {**facts, "traceback": params.traceback}, name, audited=facts)
        known, now, text = self._known(name), self._clock.monotonic(), printable(params.message, 500)
        if RANK[params.severity] < RANK[self._severity]:
            if (left_out := known.lines.take(now)) is not None:
                more = {"left_out": left_out} if left_out else {}
                log.warning("agent reports an error", agent=name, severity=params.severity, text=text, **more)
        elif (left_out := known.alerts.take(now)) is not None:
            more = {"left_out": left_out} if left_out else {}
            since = f" ({left_out} more since the last that was told)" if left_out else ""
            said = f"agent {name} reports: {text}{since}"
            await self._alerts.raise_alert("agent_error", params.severity, said, agent=name, **more)

    async def event(self, call: Call, params: AgentEvent) -> None:
        """Tell operators of something that happened, by a name of the agent's own; it is kept like any event."""
        name, _ = self._reporter(call)
        await self._record("agent.event", {"name": params.name, "data": params.data}, name)

    def progress(self, call: Call, params: AgentProgress) -> None:
        """Say how far a task is.

        At most two a second are kept of each task; of those in between the newest, so the last is never lost. Raises
        queue_full when 64 tasks are told of at once.
        """
        name, _ = self._reporter(call)
        tasks = self._known(name).tasks
        task = tasks.get(params.task)
        if task is None:
            if len(tasks) >= MAX_TASKS:
                raise ArmorclawError("queue_full", f"agent {name} tells of {MAX_TASKS} tasks at once")
            task = tasks[params.task] = _Task()
            heapq.heappush(self._due, (trio.current_time(), name, params.task))
            self._news.set()  # a task that is known is looked at when it is due
        task.newest = attrs.asdict(params)

    # -- inside

    def _reporter(self, call: Call) -> tuple[str, Reporter | None]:
        """Who reports; one in this program is no agent of the fleet. To report is a sign of work."""
        assert call.agent is not None, "only agents may call this"
        agent = self._find(call.agent)
        if agent is not None:
            agent.worked()
        return call.agent, agent

    def _known(self, name: str) -> _Agent:
        known = self._agents.get(name)
        if known is None:
            if len(self._agents) >= MAX_AGENTS:
                now = self._clock.monotonic()
                self._agents = {name: each for name, each in self._agents.items() if not each.at_rest(now)}
            known = self._agents[name] = _Agent()
        return known

    def _made(self, kind: str, content: Mapping[str, Any], agent: str) -> Event:
        severity = severity_of(kind, content)
        return Event.make(kind, content, at_ms=self._clock.now_ms(), agent=agent, severity=severity)

    async def _record(
        self, kind: str, content: Mapping[str, Any], agent: str, *, audited: Mapping[str, Any] | None = None
    ) -> None:
        """Raises rate_limited, and what the store raises."""

        def also(db: Connection) -> None:
            if audited is not None:
                self._audit.append(db, kind, agent=agent, **audited)

        event = self._made(kind, content, agent)
        self._charge(agent, len(event.content) + (0 if audited is None else len(ascii_json(audited))))
        await self._journal.record([event], also=also)

    def _charge(self, agent: str, size: int) -> None:
        """Count bytes that are to be recorded. Raises rate_limited."""
        known, now = self._known(agent), self._clock.monotonic()
        wait = known.bytes.wait(now)
        if wait and not known.refused:
            log.warning("reports refused", agent=agent, bytes_a_minute=REPORT_BYTES)
        known.refused = bool(wait)
        if wait:
            what = f"agent {agent} has reported {REPORT_BYTES // MIB} MiB within a minute"
            retry_after = math.ceil(wait * 1000) / 1000
            raise ArmorclawError("rate_limited", what, retry_after=retry_after, quota="report_bytes")
        known.bytes.add(now, size)

    async def _record_progress(self, *, last: bool = False) -> float:
        """Record what is due, or all if it is the `last` time; when there is more to do, by Trio's clock."""
        now = trio.current_time()
        taken: list[tuple[_Task, Mapping[str, Any]]] = []
        events: list[Event] = []
        due = []
        while self._due and (last or self._due[0][0] <= now):
            due.append(heapq.heappop(self._due))
        for _, agent, name in due:
            known = self._agents[agent]
            task = known.tasks[name]
            again = now + PROGRESS_EVERY
            if task.newest is None:
                del known.tasks[name]  # it has rested
                continue
            if (wait := self._quota(agent, known)) and not last:
                again = now + wait
            else:
                event = self._made("agent.progress", task.newest, agent)
                known.bytes.add(self._clock.monotonic(), len(event.content))
                events.append(event)
                taken.append((task, task.newest))
            heapq.heappush(self._due, (again, agent, name))
        if events:
            try:
                await self._journal.record(events)
            except ArmorclawError as error:
                log.warning("progress not recorded", why=str(error))
                return now + RETRY
        for task, told in taken:
            if task.newest is told:
                task.newest = None
        return self._due[0][0] if self._due else math.inf

    def _quota(self, agent: str, known: _Agent) -> float:
        """Count a record; or the seconds until the agent may have another."""
        used, now = self._quotas.of(agent), self._clock.monotonic()
        return known.bytes.wait(now) or (0.0 if used is None else used.take("events", now))
