"""Quotas: how much an agent may do in any minute, over all its connections and all its generations.

Rates (`guard.limits`) keep one caller from harming others in a moment; a quota says how much an agent is meant to do
at all. So it is exact where it counts: no minute, wherever it begins, has more than the quota, and whoever has
rested for `WINDOW + SLOT` seconds has all of it. The price is a list of 13 numbers for each.

At a share of a quota there is a warning, at its end what is beyond is refused, and an agent that is to be stopped for
it is, when it goes on regardless for `STOP_AFTER` seconds. Each is told once: again only after a minute without it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Mapping
from typing import Literal, Protocol
from weakref import WeakValueDictionary

import attrs
import trio

from armorclaw.clock import Clock
from armorclaw.config import AgentQuota
from armorclaw.errors import ArmorclawError
from armorclaw.guard.alerts import Alerts
from armorclaw.log import get_logger
from armorclaw.rpc.registry import Method

log = get_logger(__name__)

Kind = Literal["events", "messages", "bytes", "calls", "media"]
KINDS: tuple[Kind, ...] = ("events", "messages", "bytes", "calls", "media")

WINDOW = 60.0
"""Seconds that a quota is for."""

SLOT = 5.0
"""Seconds in which what was used is one number: at most so much longer than `WINDOW` it is remembered."""

STOP_AFTER = 10.0
"""Seconds after its first refusal that an agent may still be refused before it is stopped, if it is to be: those who
wait as long as they were told are not refused again."""

MAX_AGENTS = 512
"""Whose use is kept: twice as many as there may be in containers. Beyond, those who rest are forgotten."""

MAX_UNTOLD = 1_024
"""Crossings that wait to be recorded; of more the oldest stay in the log alone."""

_SLOTS = int(WINDOW / SLOT) + 1  # the one that is being filled, and a full minute before it


class Note(Protocol):
    """Where a crossing is recorded as an event."""

    async def __call__(self, type: str, content: Mapping[str, object], *, agent: str | None) -> object: ...  # noqa: A002


@attrs.frozen
class Crossing:
    """An agent came to the soft share of a quota, or to its end, or is to be stopped for going on."""

    agent: str
    kind: Kind
    level: Literal["soft", "hard", "stop"]
    used: int
    limit: int

    @property
    def text(self) -> str:
        """What a person is told."""
        quota = f"its quota of {self.limit:,} {_words(self.kind)} a minute"
        if self.level == "soft":
            return f"agent {self.agent} has used {self.used:,} of {quota}"
        if self.level == "hard":
            return f"agent {self.agent} has used up {quota}: what is beyond is refused"
        return f"it went on for {STOP_AFTER:g} s after it had used up {quota}"


class Window:
    """How much there was in the last minute, against a limit; 0 is none. `now` never goes back."""

    __slots__ = ("_counts", "_slot", "_until", "limit", "used")

    def __init__(self, limit: int = 0) -> None:
        self.limit = limit
        self.used = 0
        self._counts = [0] * _SLOTS
        self._slot = 0
        self._until = -math.inf  # the end of the slot that is being filled

    def add(self, now: float, amount: int = 1) -> None:
        """Count what was used."""
        self._turn(now)
        self._counts[self._slot % _SLOTS] += amount
        self.used += amount

    def wait(self, now: float) -> float:
        """Seconds until there is something left; 0.0: there is."""
        self._turn(now)
        if not self.limit or self.used < self.limit:
            return 0.0
        left = self.used
        for slot in range(self._slot - _SLOTS + 1, self._slot + 1):
            left -= self._counts[slot % _SLOTS]
            if left < self.limit:
                return max(SLOT / 1000, (slot + _SLOTS) * SLOT - now)
        raise AssertionError("what was used is the sum of the slots")

    def _turn(self, now: float) -> None:
        if now < self._until:
            return
        slot = math.floor(now / SLOT)
        for passed in range(self._slot + 1, min(slot, self._slot + _SLOTS) + 1):
            self.used -= self._counts[passed % _SLOTS]
            self._counts[passed % _SLOTS] = 0
        self._slot = slot
        self._until = (slot + 1) * SLOT


class Consumption:
    """What one agent has used of its quotas."""

    def __init__(self, agent: str, quota: AgentQuota, tell: Callable[[Crossing], object]) -> None:
        self._agent = agent
        self._tell = tell
        self._windows: dict[Kind, Window] = {kind: Window() for kind in KINDS}
        self._calls, self._bytes = self._windows["calls"], self._windows["bytes"]
        self._last: dict[tuple[str, str], float] = {}  # when a kind was last above a level; 8 at most
        self._refused_since = 0.0
        self._stopped = False
        self.refused = 0
        """Calls, since the agent is known."""
        self.declare(quota)

    def declare(self, quota: AgentQuota) -> None:
        """From now on this is what it may use."""
        self._quota = quota
        for kind, window in self._windows.items():
            window.limit = getattr(quota, kind)

    def declares(self, quota: AgentQuota) -> bool:
        return self._quota == quota

    def used(self, now: float) -> dict[Kind, int]:
        """Of each kind in the last minute."""
        for window in self._windows.values():
            window.add(now, 0)
        return {kind: window.used for kind, window in self._windows.items()}

    def admit(self, method: Method | None, now: float) -> ArmorclawError | None:
        """Count a call, or refuse it; `method` is None for what is no call of a method, which is not counted."""
        if method is None or method.quota == "nothing":
            return None
        kind = method.quota
        if wait := self._calls.wait(now):
            return self._refuse("calls", wait, now)
        if wait := self._bytes.wait(now):
            return self._refuse("bytes", wait, now)
        if kind != "calls" and (wait := self.take(kind, now)):
            return self._refuse(kind, wait, now)
        self._use("calls", self._calls, now, 1)
        return None

    def take(self, kind: Kind, now: float) -> float:
        """Count one of a kind: 0.0. With none left nothing is counted; the answer is the seconds until there is."""
        window = self._windows[kind]
        if wait := window.wait(now):
            return wait
        self._use(kind, window, now, 1)
        return 0.0

    def read(self, size: int, now: float) -> float:
        """Count bytes that were read; the seconds to read nothing more, if they were too many."""
        self._use("bytes", self._bytes, now, size)
        return self._bytes.wait(now)

    def require(self, kind: Kind, now: float) -> ArmorclawError | None:
        """Why nothing that uses this may begin now, if nothing of it is left; nothing is counted."""
        wait = self._windows[kind].wait(now)
        return self._refuse(kind, wait, now) if wait else None

    def spend(self, kind: Kind, amount: int, now: float) -> None:
        """Count what was used by something that was let begin; it may be more than was left."""
        self._use(kind, self._windows[kind], now, amount)

    def _use(self, kind: Kind, window: Window, now: float, amount: int) -> None:
        window.add(now, amount)
        if window.limit and window.used >= window.limit * self._quota.soft and self._is_new(kind, "soft", now):
            self._cross(kind, "soft")

    def _refuse(self, kind: Kind, wait: float, now: float) -> ArmorclawError:
        self.refused += 1
        self._last[kind, "soft"] = now  # whoever is refused is no less above it
        if self._is_new(kind, "hard", now):
            self._refused_since, self._stopped = now, False
            self._cross(kind, "hard")
        elif self._quota.on_exceeded == "stop" and now - self._refused_since >= STOP_AFTER and not self._stopped:
            self._stopped = True
            self._cross(kind, "stop")
        limit = self._windows[kind].limit
        what = f"agent {self._agent} has used up its quota of {limit} {_words(kind)} a minute"
        return ArmorclawError("rate_limited", what, retry_after=math.ceil(wait * 1000) / 1000, quota=kind)

    def _is_new(self, kind: Kind, level: str, now: float) -> bool:
        last = self._last.get((kind, level))
        self._last[kind, level] = now
        return last is None or now - last >= WINDOW

    def _cross(self, kind: Kind, level: Literal["soft", "hard", "stop"]) -> None:
        window = self._windows[kind]
        self._tell(Crossing(self._agent, kind, level, window.used, window.limit))


def _words(kind: Kind) -> str:
    return "bytes of files" if kind == "media" else kind


class Quotas:
    """What all agents have used. One per bridge; `run` records who came to a limit.

    `declared` says what an agent may use, None if nothing is said of it; `stop(agent, why)` ends one for good, and is
    called from within the call that is refused.
    """

    def __init__(
        self,
        declared: Callable[[str], AgentQuota | None],
        *,
        note: Note,
        alerts: Alerts,
        stop: Callable[[str, str], object],
        clock: Clock,
    ) -> None:
        self._declared = declared
        self._note = note
        self._alerts = alerts
        self._stop = stop
        self._clock = clock
        self._known: dict[str, Consumption] = {}
        self._untold: deque[Crossing] = deque(maxlen=MAX_UNTOLD)
        self._news = trio.Event()

    def of(self, agent: str) -> Consumption | None:
        """What an agent uses, as it is declared now; None for one that has no quotas."""
        quota = self._declared(agent)
        if quota is None:
            return None
        known = self._known.get(agent)
        if known is None:
            self._sweep()
            known = self._known[agent] = Consumption(agent, quota, self._crossed)
        elif not known.declares(quota):
            known.declare(quota)
        return known

    def check(self, agent: str, method: Method | None) -> None:
        """Count a call that came by no connection. Raises `rate_limited`."""
        used = self.of(agent)
        refused = None if used is None else used.admit(method, self._clock.monotonic())
        if refused is not None:
            raise refused

    def require(self, agent: str, kind: Kind) -> None:
        """Before something that will use an unknown amount of a kind. Raises `rate_limited` if nothing is left."""
        used = self.of(agent)
        refused = None if used is None else used.require(kind, self._clock.monotonic())
        if refused is not None:
            raise refused

    def spend(self, agent: str, kind: Kind, amount: int) -> None:
        """Count it as it is used."""
        used = self.of(agent)
        if used is not None:
            used.spend(kind, amount, self._clock.monotonic())

    def used(self) -> dict[str, dict[Kind, int]]:
        """By agent, what it used in the last minute."""
        now = self._clock.monotonic()
        return {agent: known.used(now) for agent, known in sorted(self._known.items())}

    def refused(self) -> dict[str, int]:
        """By agent, how many calls a quota has refused."""
        return {agent: known.refused for agent, known in sorted(self._known.items())}

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Record crossings and tell people of those that are hard; until cancelled."""
        task_status.started()
        while True:
            self._news = trio.Event()
            while self._untold:
                crossing = self._untold[0]
                await self._record(crossing)
                if self._untold and self._untold[0] is crossing:  # it may have fallen out
                    self._untold.popleft()
            await self._news.wait()

    def _crossed(self, crossing: Crossing) -> None:
        say = log.warning if crossing.level == "soft" else log.error
        say("quota", agent=crossing.agent, of=crossing.kind, level=crossing.level, limit=crossing.limit)
        if crossing.level == "stop":  # at once: what is to be recorded may wait for the store
            self._stop(crossing.agent, crossing.text)
        self._untold.append(crossing)
        self._news.set()

    async def _record(self, crossing: Crossing) -> None:
        facts = {"quota": crossing.kind, "level": crossing.level, "used": crossing.used, "limit": crossing.limit}
        try:
            await self._note("agent.quota", facts, agent=crossing.agent)
        except ArmorclawError as error:
            log.error("quota not recorded", agent=crossing.agent, why=str(error))
        if crossing.level == "hard":
            kind, limit = crossing.kind, crossing.limit
            await self._alerts.raise_alert(
                "quota_exceeded", "error", crossing.text, agent=crossing.agent, quota=kind, limit=limit
            )

    def _sweep(self) -> None:
        if len(self._known) < MAX_AGENTS:
            return
        now = self._clock.monotonic()
        resting = WeakValueDictionary(
            {agent: known for agent, known in self._known.items() if not any(known.used(now).values())}
        )
        self._known = {agent: known for agent, known in self._known.items() if agent not in resting}
        self._known.update(resting.items())  # held by a connection, whose next is to count with it
