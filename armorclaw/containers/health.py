"""Whether an agent that runs also works: pings over its session, and how long what it was given lies undone.

A ping is answered by the loop that does the agent's work, so an answer says more than that a process exists. Whatever
else comes over the session says that the process lives, but not that this loop runs: a thread may say it. So while
something comes, `failures` missed pings are no hang yet, as an answer may be queued behind much else; TALKATIVE times
as many are. An answer that comes late is an answer: the loop runs.

The bridge may itself have been away: stopped, or busy with something that does not yield. A wait that took AWAY
longer than it should have is no measure of the agent, and counts nothing.
"""

from __future__ import annotations

import random
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import trio

from armorclaw import config
from armorclaw.containers.states import Fact
from armorclaw.errors import ArmorclawError

if TYPE_CHECKING:
    from armorclaw.containers.generation import Generation
    from armorclaw.rpc.peer import Peer

AWAY = 0.25
"""Seconds a wait may end late before it is taken for an absence of the bridge. Its loop is mostly late by under 5 ms;
garbage collection, fsync in the kernel or a crowded machine may make that 100."""

TALKATIVE = 10
"""How many times more pings may be missed by an agent from which something else comes meanwhile."""


async def in_time(event: trio.Event, seconds: float) -> bool:
    """Whether `event` is set within so many seconds; those in which the bridge itself was away are given again."""
    deadline = trio.current_time() + seconds
    while not event.is_set():
        with trio.move_on_at(deadline):
            await event.wait()
        late = trio.current_time() - deadline
        if not event.is_set() and late <= AWAY:
            return False
        deadline = trio.current_time() + min(late, seconds)
    return True


class Work(Protocol):
    """What an agent has to do."""

    @property
    def last_work(self) -> float:
        """When there was last a sign of work, on Trio's clock."""
        ...

    def unsettled(self) -> tuple[int, float | None]:
        """How many events are in its hands, and since when the oldest is."""
        ...

    def warn(self, text: str) -> None:
        """Have a person told of it."""
        ...


class Heartbeat:
    """Watches one generation, as far as it has a session, and ends it when it hangs or does nothing for too long."""

    def __init__(self, generation: Generation, health: config.AgentHealth, work: Work, chance: random.Random) -> None:
        self.ping: float | None = None
        """Seconds that the last ping took."""
        self.answered_at: float | None = None
        """When it was answered, on Trio's clock."""
        self.missed = 0
        """Pings in a row that were not answered in time."""
        self._silent = 0  # of them, those since anything came
        self._stalled = False
        self._generation = generation
        self._health = health
        self._work = work
        self._chance = chance

    async def run(self) -> None:
        """Until cancelled, or until it has ended the generation."""
        generation, period = self._generation, self._health.period
        due = self._first_due()
        while True:
            session = generation.session
            if session is None:
                self._start_anew()
                await generation.ready.wait()
                due = self._first_due()
                continue
            await trio.sleep_until(due)
            now = trio.current_time()
            if now - due > AWAY:
                self._start_anew()
                due = now
            due += period
            if generation.session is session:
                await self._ask(session)

    def _first_due(self) -> float:
        """Spread: many that came together are not asked together for ever."""
        return trio.current_time() + self._chance.uniform(0.0, self._health.period)

    def _start_anew(self) -> None:
        self.missed = self._silent = 0

    async def _ask(self, session: Peer) -> None:
        sent, reads, timeout = trio.current_time(), session.reads, self._health.timeout
        try:
            await session.request("agent.ping", timeout=timeout, late=partial(self._answered_late, session, sent))
        except ArmorclawError as error:
            took = trio.current_time() - sent
            if self._generation.session is not session:
                return  # which has been told
            if error.name not in ("timed_out", "unavailable"):
                self._answered(took)  # that it knows no pings is an answer, too
            elif took > timeout + AWAY:
                self._start_anew()
            else:
                self._miss(silent=session.reads == reads)
        else:
            self._answered(trio.current_time() - sent)

    def _answered_late(self, session: Peer, sent: float, _: Any) -> None:
        if self._generation.session is session:
            self._answered(trio.current_time() - sent)

    def _answered(self, took: float) -> None:
        self.ping, self.answered_at = took, trio.current_time()
        self._start_anew()
        self._generation.tell(Fact.PING_ANSWERED, "it answers")
        if took <= self._health.timeout:  # else the bridge may have been away, and have heard nothing
            self._look_at_work()

    def _miss(self, *, silent: bool) -> None:
        generation, health = self._generation, self._health
        self.missed += 1
        self._silent = self._silent + 1 if silent else 0
        hangs = self._silent >= health.failures or self.missed >= health.failures * TALKATIVE
        if hangs and not (generation.engine_lost or generation.stopping):  # else nothing could be done about it
            generation.finish("hang", f"did not answer {self.missed} times within {health.timeout:g} s")
            return
        generation.tell(Fact.PING_MISSED, f"did not answer within {health.timeout:g} s")

    def _look_at_work(self) -> None:
        generation, health, work = self._generation, self._health, self._work
        count, since = work.unsettled()
        idle = 0.0 if since is None else trio.current_time() - max(since, work.last_work)
        if idle < health.stalled_after:
            if self._stalled:
                self._stalled = False
                generation.tell(Fact.WORKED, "it works again")
            return
        why = f"did nothing with {count} event{'s' if count != 1 else ''} for {idle:.0f} s"
        if health.stalled_limit and idle >= health.stalled_limit and not generation.stopping:
            generation.finish("stalled", why)
            return
        generation.tell(Fact.STALLED, why)
        if not self._stalled:
            self._stalled = True
            work.warn(f"answers, but {why}")
