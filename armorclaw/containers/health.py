"""Whether an agent that runs also works: pings over its session, and how long what it was given lies undone.

A ping is answered by the loop that does the agent's work, so an answer says more than that a process exists. Whatever
else comes over the session says that the process lives, but not that this loop runs: a thread may say it. So while
something comes, `failures` missed pings are no hang yet, as an answer may be queued behind much else; TALKATIVE times
as many are. An answer that comes late is an answer: the loop runs.

The bridge may itself have been away: stopped, or busy with something that does not yield. A wait that took AWAY
longer than it should have is no measure of the agent, and counts nothing.
"""

from __future__ import annotations

import math
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

SLOW = 3
"""Answers in time until one that answered late is no longer taken to be slow."""


async def in_time(event: trio.Event, seconds: float) -> bool:
    """Whether `event` is set within so many seconds; those in which the bridge itself was away are given again."""
    seconds = max(0.0, seconds)
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
        self._slow = 0  # answers in time until a single missed ping says something again
        self._due = -math.inf  # the next ping
        self._away_at = -math.inf  # when the bridge was last found to have been away
        self._generation = generation
        self._health = health
        self._work = work
        self._chance = chance

    async def run(self) -> None:
        """Until cancelled, or until it has ended the generation."""
        generation, period = self._generation, self._health.period
        self._due = self._first_due()
        while True:
            if generation.session is None:
                self._start_anew()
                await generation.ready.wait()
                self._due = self._first_due()
            await trio.sleep_until(self._due)
            now = trio.current_time()
            if now - self._due > AWAY:
                self._was_away()
                self._due = now
            self._due += period
            if (session := generation.session) is not None:  # that of now: it may change more often than we ask
                await self._ask(session)

    def _first_due(self) -> float:
        """Spread: many that came together are not asked together for ever."""
        return trio.current_time() + self._chance.uniform(0.0, self._health.period)

    def _start_anew(self) -> None:
        self.missed = self._silent = 0

    def _was_away(self) -> None:
        self._start_anew()
        self._away_at = trio.current_time()

    async def _ask(self, session: Peer) -> None:
        sent, reads, timeout = trio.current_time(), session.reads, self._health.timeout
        try:
            await session.request("agent.ping", timeout=timeout, late=partial(self._answered_late, session, sent))
        except ArmorclawError as error:
            took = trio.current_time() - sent
            if self._generation.session is not session:
                return  # which has been told
            if error.name not in ("timed_out", "unavailable"):
                self._answered(sent)  # that it knows no pings is an answer, too
            elif took > timeout + AWAY:
                self._was_away()
            else:
                self._miss(silent=session.reads == reads)
        else:
            self._answered(sent)

    def _answered_late(self, session: Peer, sent: float, _: Any) -> None:
        if self._generation.session is session:
            self._slow = SLOW
            self._answered(sent)

    def _answered(self, sent: float) -> None:
        now = trio.current_time()
        self.ping, self.answered_at = now - sent, now
        if self.ping <= self._health.timeout:
            self._slow = max(0, self._slow - 1)
        self._start_anew()
        self._generation.tell(Fact.PING_ANSWERED, "it answers")
        if now - self._due > AWAY:
            self._was_away()
        if self._away_at < sent:  # else it may have worked since, and we have not heard it yet
            self._look_at_work()

    def _miss(self, *, silent: bool) -> None:
        generation, health = self._generation, self._health
        self.missed += 1
        self._silent = self._silent + 1 if silent else 0
        hangs = self._silent >= health.failures or self.missed >= health.failures * TALKATIVE
        if hangs and not (generation.engine_lost or generation.stopping):  # else nothing could be done about it
            generation.finish("hang", f"did not answer {self.missed} times within {health.timeout:g} s")
            return
        if self._slow and self.missed == 1:
            return  # the answer comes late, as the last ones did; it is not to change its state each time
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
        over = health.stalled_limit and idle >= health.stalled_limit
        if over and not (generation.engine_lost or generation.stopping):
            generation.finish("stalled", why)
            return
        generation.tell(Fact.STALLED, why)
        if not self._stalled:
            self._stalled = True
            work.warn(f"answers, but {why}")
