"""What the bridge tells people of on its own behalf: events that were given up, and the state of its store."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import attrs
import trio

from armorclaw.events.event import Event
from armorclaw.events.subscriptions import is_agent
from armorclaw.guard.alerts import Alerts
from armorclaw.store import Database
from armorclaw.store.aside import SetAside

PERIOD = 60.0
"""Seconds between two alerts about dead letters of one subscription; the second says how many there were meanwhile.
Every single one is a line in the log and a row that `events.dead_letters` shows."""


@attrs.define
class _Dead:
    """Dead letters of one subscription since the last alert, and the newest of them."""

    count: int = 0
    facts: dict[str, Any] = attrs.field(factory=dict)
    quiet_until: float = -math.inf


class Notices:
    """Callbacks that never wait, and one task (`run`) that raises the alerts."""

    def __init__(self, alerts: Alerts, database: Database) -> None:
        self._alerts = alerts
        self._database = database
        self._dead: dict[tuple[str, str], _Dead] = {}  # bounded: those that come to rest are forgotten
        self._aside: SetAside | None = None  # that was told
        self._full_since: float | None = None
        self._full_told = False
        self._freed_after: float | None = None
        self._changed = trio.Event()
        database.on_full = self.on_full  # now: it may be full from the start on

    def on_dead(self, owner: str, name: str, event: Event, given: int, lost: int, reason: str) -> None:
        """An event was given up; see `Subscriptions.on_dead`."""
        dead = self._dead.setdefault((owner, name), _Dead())
        dead.count += 1
        dead.facts = {"seq": event.seq, "type": event.type, "given": given, "lost": lost, "reason": reason}
        self._changed.set()

    def on_full(self, full: bool) -> None:
        """The disk was found full, or has room again; see `Database.on_full`."""
        now = trio.current_time()
        if full:
            self._full_since = now if self._full_since is None else self._full_since
        elif self._full_since is not None:
            self._freed_after, self._full_since = now - self._full_since, None
        self._changed.set()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled."""
        task_status.started()
        while True:
            self._changed = trio.Event()
            await self._tell_store()
            await self._tell_dead()
            with trio.move_on_at(min((each.quiet_until for each in self._dead.values()), default=math.inf)):
                await self._changed.wait()

    async def _tell_store(self) -> None:
        aside = self._database.set_aside
        if aside is not None and aside != self._aside:
            self._aside = aside
            name = aside.path.name
            text = f"the database was damaged ({aside.why}): it was set aside as {name}, and a new one begun"
            await self._alerts.raise_alert("database_set_aside", "critical", text, file=name)
        if self._freed_after is not None:  # first: if it is full again, that is to be the last word
            seconds, self._freed_after, self._full_told = self._freed_after, None, False
            text = f"the disk was full for {seconds:.0f} s, and new work was refused; now it has room again"
            await self._alerts.raise_alert("storage_freed", "error", text, seconds=round(seconds, 3))
        if self._full_since is not None and not self._full_told:
            self._full_told = True
            await self._alerts.raise_alert("storage_full", "critical", "the disk is full: new work is refused")

    async def _tell_dead(self) -> None:
        now = trio.current_time()
        for (owner, name), dead in list(self._dead.items()):
            if now < dead.quiet_until:
                continue
            if not dead.count:
                del self._dead[owner, name]
                continue
            count, dead.count, dead.quiet_until = dead.count, 0, now + PERIOD
            agent = owner if is_agent(owner) else None
            whose = f"agent {owner}" if agent else owner or "operators"
            others = f", the last of {count} within a minute" if count > 1 else ""
            text = f"event {dead.facts['seq']} was given up for {whose}: {dead.facts['reason']}{others}"
            say = partial(self._alerts.raise_alert, "dead_letter", "error", text, agent=agent)
            await say(subscription=name, count=count, next="armorclaw events dead", **dead.facts)
