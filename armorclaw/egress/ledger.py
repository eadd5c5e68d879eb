"""What is kept of egress: a record of every connection, counts of each agent, and events of what was refused."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

import attrs
import trio

from armorclaw.clock import Clock
from armorclaw.errors import ArmorclawError
from armorclaw.guard.audit import AuditLog
from armorclaw.hosts import Address, Target
from armorclaw.log import get_logger
from armorclaw.store import Connection, Database

log = get_logger(__name__)

WINDOW = 60.0
"""Seconds in which the same refusal is told once; those that follow are counted, and recorded as one at its end."""

MAX_TARGETS = 64
"""Refusals of one agent told apart within that time; all further ones share one entry."""

MAX_AGENTS = 1024
"""Names of which counts are kept; of those beyond, the ones unused for longest are forgotten."""

SWEEP = 10.0
"""Seconds between looks for refusals whose time is over."""

RECORD_PATIENCE = 1.0
"""Seconds a last record may take while everything is being stopped."""


class Notes(Protocol):
    """Where a refusal is recorded as an event, with its record in the audit trail."""

    async def __call__(self, type: str, content: Mapping[str, object], *, agent: str | None) -> object: ...  # noqa: A002


@attrs.define
class Counts:
    """Connections of one agent since the bridge began, and their bytes, both ways together.

    `refused` were not allowed; `failed` were, but could not be made. `open` are those that are there now.
    """

    opened: int = 0
    open: int = 0
    refused: int = 0
    failed: int = 0
    bytes: int = 0


@attrs.frozen
class Record:
    """One entry of the audit trail."""

    kind: str
    agent: str
    target: str
    facts: Mapping[str, object]


class Ledger:
    """One for the bridge."""

    def __init__(self, db: Database, audit: AuditLog, note: Notes, clock: Clock) -> None:
        self.clock = clock
        self.note = note
        self.counts: dict[str, Counts] = {}
        self._db = db
        self._audit = audit

    def of(self, agent: str) -> Counts:
        """The counts of that agent, to be counted on."""
        counts = self.counts.pop(agent, None) or Counts()
        while len(self.counts) >= MAX_AGENTS:
            unused = next((name for name, each in self.counts.items() if not each.open), None)
            if unused is None:
                break
            del self.counts[unused]
        self.counts[agent] = counts
        return counts

    async def record(self, *records: Record) -> None:
        """Into the audit trail, all or none. Raises what the store raises."""

        def work(db: Connection) -> None:
            for each in records:
                self._audit.append(db, each.kind, agent=each.agent, target=each.target, **each.facts)

        await self._db.write(work)

    async def record_last(self, *records: Record) -> None:
        """The same for what has happened anyhow, also under cancellation; if it fails, the log has it."""
        if not records:
            return
        why = f"not within {RECORD_PATIENCE:g} s"
        with trio.move_on_after(RECORD_PATIENCE, shield=True):
            try:
                await self.record(*records)
                return
            except ArmorclawError as error:
                why = str(error)
        for each in records:
            log.error(
                "egress not recorded", kind=each.kind, agent=each.agent, target=each.target, **each.facts, error=why
            )


@attrs.define
class _Window:
    until: float
    target: str
    facts: dict[str, object]
    left_out: int = 0


class Refusals:
    """What one agent was refused: the first of a kind at once, what follows within WINDOW seconds as a number."""

    def __init__(self, agent: str, ledger: Ledger) -> None:
        self._agent = agent
        self._ledger = ledger
        self._windows: dict[tuple[str, str], _Window] = {}

    async def run(self) -> None:
        """Record what was left out, when its time is over and at the end. Until cancelled."""
        try:
            while True:
                await trio.sleep(SWEEP)
                await self._sweep(self._ledger.clock.monotonic())
        finally:
            await self._sweep(float("inf"))

    async def add(self, target: Target | str, verdict: str, why: str, address: Address | None) -> None:
        """Record it, or count it; what the store has against it is only logged."""
        now = self._ledger.clock.monotonic()
        shown = str(target)
        window = self._windows.get((shown, verdict))
        if window is None and len(self._windows) >= MAX_TARGETS:
            shown, verdict, why, address = "others", "many", f"more than {MAX_TARGETS} targets within a minute", None
            window = self._windows.get((shown, verdict))
        if window is not None and now < window.until:
            window.left_out += 1
            return
        facts: dict[str, object] = {"verdict": verdict, "why": why}
        if address is not None:
            facts["address"] = str(address)
        self._windows[shown, verdict] = _Window(now + WINDOW, shown, facts)
        if window is not None:
            await self._ledger.record_last(*self._left_out([window]))
        log.info("egress refused", agent=self._agent, target=shown, **facts)
        try:
            await self._ledger.note("egress.refused", {"target": shown, **facts}, agent=self._agent)
        except ArmorclawError as error:
            log.error("egress not recorded", agent=self._agent, target=shown, why=str(error))

    async def _sweep(self, now: float) -> None:
        over = {key: window for key, window in self._windows.items() if window.until <= now}
        for key in over:
            del self._windows[key]
        await self._ledger.record_last(*self._left_out(over.values()))

    def _left_out(self, windows: Iterable[_Window]) -> list[Record]:
        return [
            Record("egress.refused", self._agent, window.target, {**window.facts, "times": window.left_out})
            for window in windows
            if window.left_out
        ]
