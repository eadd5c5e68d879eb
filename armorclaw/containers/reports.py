"""What agents report: how they are, what went wrong, what happened, how far they are.

Each report is an event of its method's name, for operators; agents do not hear each other. How they are and what went
wrong is audited too, and an error as severe as alerts are is one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import attrs
import trio

from armorclaw.clock import Clock
from armorclaw.containers.shapes import AgentError, AgentEvent, AgentProgress, AgentStatus
from armorclaw.errors import ArmorclawError
from armorclaw.events.event import Event
from armorclaw.events.journal import Journal
from armorclaw.guard.alerts import RANK, Alerts
from armorclaw.guard.audit import AuditLog
from armorclaw.guard.quotas import Quotas
from armorclaw.log import get_logger
from armorclaw.rpc.call import Call
from armorclaw.rpc.failure import printable
from armorclaw.rpc.registry import Registry, Role
from armorclaw.store import Connection

log = get_logger(__name__)

PROGRESS_EVERY = 0.5
"""Seconds between two records of one task's progress; of what comes in between the newest counts."""

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

    __slots__ = ("due", "newest")

    def __init__(self) -> None:
        self.newest: Mapping[str, Any] | None = None  # not recorded yet
        self.due = 0.0


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
        self._tasks: dict[tuple[str, str], _Task] = {}  # by agent and name
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
        log.warning("agent reports an error", agent=name, severity=params.severity, text=printable(params.message))
        await self._record("agent.error", {**facts, "traceback": params.traceback}, name, audited=facts)
        if RANK[params.severity] >= RANK[self._severity]:
            text = f"agent {name} reports: {printable(params.message, 500)}"
            await self._alerts.raise_alert("agent_error", params.severity, text, agent=name)

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
        key = (name, params.task)
        task = self._tasks.get(key)
        if task is None:
            if Counter(agent for agent, _ in self._tasks)[name] >= MAX_TASKS:
                raise ArmorclawError("queue_full", f"agent {name} tells of {MAX_TASKS} tasks at once")
            task = self._tasks[key] = _Task()
        task.newest = attrs.asdict(params)
        self._news.set()

    # -- inside

    def _reporter(self, call: Call) -> tuple[str, Reporter | None]:
        """Who reports; one in this program is no agent of the fleet. To report is a sign of work."""
        assert call.agent is not None, "only agents may call this"
        agent = self._find(call.agent)
        if agent is not None:
            agent.worked()
        return call.agent, agent

    def _made(self, kind: str, content: Mapping[str, Any], agent: str) -> Event:
        return Event.make(kind, content, at_ms=self._clock.now_ms(), agent=agent)

    async def _record(
        self, kind: str, content: Mapping[str, Any], agent: str, *, audited: Mapping[str, Any] | None = None
    ) -> None:
        def also(db: Connection) -> None:
            if audited is not None:
                self._audit.append(db, kind, agent=agent, **audited)

        await self._journal.record([self._made(kind, content, agent)], also=also)

    async def _record_progress(self, *, last: bool = False) -> float:
        """Record what is due, or all if it is the `last` time; when there is more to do, by Trio's clock."""
        now = trio.current_time()
        taken: list[tuple[_Task, Mapping[str, Any]]] = []
        events: list[Event] = []
        for (agent, name), task in list(self._tasks.items()):
            if task.due > now and not last:
                continue
            if task.newest is None:
                del self._tasks[agent, name]  # it has rested
            elif (wait := self._quota(agent)) and not last:
                task.due = now + wait
            else:
                events.append(self._made("agent.progress", task.newest, agent))
                taken.append((task, task.newest))
                task.due = now + PROGRESS_EVERY
        if events:
            try:
                await self._journal.record(events)
            except ArmorclawError as error:
                log.warning("progress not recorded", why=str(error))
                return now + RETRY
        for task, told in taken:
            if task.newest is told:
                task.newest = None
        return min((task.due for task in self._tasks.values()), default=float("inf"))

    def _quota(self, agent: str) -> float:
        """Count a record; or the seconds until the agent may have another."""
        used = self._quotas.of(agent)
        return 0.0 if used is None else used.take("events", self._clock.monotonic())
