"""How much each caller may ask for: the one token bucket, the one quota, and what they are by default.

A *caller* is an agent, or one user in one role. All connections of a caller draw on one bucket, so that opening more
of them gains nothing, and nobody draws on another's. Each connection has a bucket of its own as well, so that one
program gone wild leaves something to the same user's others. A method may name a rate of its own, which every caller
has for itself.

A call without a token is refused with `rate_limited` and the seconds until there is one. That too costs work, so a
connection that goes on regardless is read more slowly, down to `REFUSALS`. The same holds for bytes, and for what is
no call: pieces of streams count, but are never refused, as the stream would be broken.

Calls from the program that embeds the bridge are not counted: it is the bridge. (Agents inside it have quotas all the
same.) How many connections there may be is the listener's own to count (`rpc.unix.Gate`), so that one without limits
is bounded as well.

What an agent may do in a minute, `guard.quotas`, is asked here as well, behind all this.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import attrs

from armorclaw.clock import Clock
from armorclaw.config import MIB, LimitsSection
from armorclaw.errors import ArmorclawError
from armorclaw.guard.quotas import Consumption, Quotas
from armorclaw.rpc.admission import Rate
from armorclaw.rpc.registry import Method, Role

BURST_SECONDS = 2
"""How many seconds' worth of calls may come at once, after a rest."""

REFUSALS = Rate(50, 100)
"""Of one connection, before it is read more slowly."""

MAX_PAUSE = 2.0
"""Seconds for which a connection is not read, or a listener does not accept, at most at a time."""

MAX_CALLERS = 4_096
"""Callers kept apart, those who left without being rested among them; any more share one bucket."""

_SWEEP_FROM = 256  # callers, before those at rest are looked for
_SWEEP_EVERY = 1.0  # seconds
_LUMP = 64 * 1024  # bytes read that are charged at once: less is not worth the arithmetic
_SLACK = 1e-3  # tokens: what adding up intervals may be wrong by


@attrs.frozen
class Budget:
    """What the callers of one role may do: calls of all a caller's connections together, and of each; bytes of each
    connection; connections that one listener accepts. All per second."""

    calls: Rate
    connection: Rate
    read: Rate
    accepts: Rate


def calls(per_second: float) -> Rate:
    """The usual burst."""
    return Rate(per_second, max(1.0, per_second * BURST_SECONDS))


_OBSERVER_CALLS = 20  # what looks at health and figures does so every few seconds
_REMOTE_CALLS = 20  # a person behind a browser


def budgets(section: LimitsSection) -> dict[Role, Budget]:
    """What each role may do, with the two figures that a configuration may change."""
    agent, operator = section.agent_calls, section.operator_calls
    bulk, modest, little = Rate(1024 * MIB, 2048 * MIB), Rate(32 * MIB, 64 * MIB), Rate(MIB, 2 * MIB)
    return {
        Role.AGENT: Budget(calls(agent), calls(agent), modest, Rate(50, 100)),
        Role.OPERATOR: Budget(calls(4 * operator), calls(operator), bulk, Rate(250, 500)),
        Role.OBSERVER: Budget(calls(4 * _OBSERVER_CALLS), calls(_OBSERVER_CALLS), little, Rate(20, 40)),
        Role.REMOTE: Budget(calls(_REMOTE_CALLS), calls(_REMOTE_CALLS), little, Rate(20, 40)),
    }


class Bucket:
    """Tokens that come back with time. One number says it all: when the bucket will be full again.

    In any t seconds it gives at most burst + t * rate tokens, whatever the clock does: a clock that jumps back finds
    an empty bucket at worst, one that jumps ahead a full one.
    """

    __slots__ = ("_full_at", "_interval", "_slack", "_span")

    def __init__(self, rate: Rate) -> None:
        self._interval = 1 / rate.per_second
        self._span = rate.burst * self._interval  # seconds from empty to full
        self._slack = _SLACK * self._interval
        self._full_at = -math.inf

    def take(self, now: float) -> float:
        """Take a token: 0.0. Without one, nothing is taken, and the answer is the seconds until there is one."""
        full_at = (self._full_at if self._full_at > now else now) + self._interval
        late = full_at - now - self._span
        if late <= self._slack:
            self._full_at = full_at
            return 0.0
        if late > self._interval + self._slack:  # a time that is yet to come: the clock was put back
            self._full_at = now + self._span
            return self._interval
        return late

    def give_back(self) -> None:
        """What the last `take` took."""
        self._full_at -= self._interval

    def charge(self, now: float, tokens: float) -> float:
        """Take tokens that were used already; the seconds until none are owed, `MAX_PAUSE` at most."""
        self._full_at = max(self._full_at, now) + tokens * self._interval
        latest = now + self._span + MAX_PAUSE
        if self._full_at > latest:
            self._full_at = latest
        return max(0.0, self._full_at - now - self._span)

    def is_full(self, now: float) -> bool:
        return self._full_at <= now


class _Caller:
    """What all connections of one caller share."""

    __slots__ = ("bucket", "connections", "methods", "refuse")

    def __init__(self, budget: Budget, refuse: Callable[[], None]) -> None:
        self.refuse = refuse
        self.bucket = Bucket(budget.calls)
        self.methods: dict[str, Bucket] = {}  # of those that name a rate, if they were called
        self.connections = 0

    def at_rest(self, now: float) -> bool:
        """Whether it makes no difference to forget it."""
        if self.connections or not self.bucket.is_full(now):
            return False
        return all(bucket.is_full(now) for bucket in self.methods.values())

    def method(self, method: Method, rate: Rate) -> Bucket:
        bucket = self.methods.get(method.name)
        if bucket is None:
            bucket = self.methods[method.name] = Bucket(rate)
        return bucket


class Connection:
    """The allowance of one connection; see `armorclaw.rpc.admission`.

    The clock is looked at once for what one read brought: that is most of what admitting a call would cost.
    """

    __slots__ = ("_bucket", "_caller", "_clock", "_now", "_quota", "_read", "_refusals", "_refused", "_uncharged")

    def __init__(self, caller: _Caller, budget: Budget, clock: Clock, quota: Consumption | None = None) -> None:
        self._caller = caller
        self._quota = quota
        self._clock = clock
        self._bucket = Bucket(budget.connection)
        self._read = Bucket(budget.read)
        self._refusals = Bucket(REFUSALS)
        self._refused = 0  # since the last pause, as below
        self._uncharged = 0  # bytes
        self._now = clock.monotonic()

    def admit(self, method: Method | None) -> ArmorclawError | None:
        now = self._now
        bucket, caller = self._bucket, self._caller
        if wait := bucket.take(now):
            return self._refusal("too many calls on this connection", wait)
        if wait := caller.bucket.take(now):
            bucket.give_back()
            return self._refusal("too many calls", wait)
        if method is None:
            return None
        rate = method.rate
        if rate is not None and (wait := caller.method(method, rate).take(now)):
            bucket.give_back()
            caller.bucket.give_back()
            return self._refusal(f"too many calls of {method.name}", wait)
        if self._quota is not None and (refused := self._quota.admit(method, now)):
            self._refused += 1
            return refused
        return None

    def pause(self, size: int) -> float:
        self._now = now = self._clock.monotonic()
        self._uncharged += size
        if self._uncharged < _LUMP and not self._refused:
            return 0.0
        pause = max(self._read.charge(now, self._uncharged), self._refusals.charge(now, self._refused))
        if self._quota is not None:
            pause = max(pause, min(MAX_PAUSE, self._quota.read(self._uncharged, now)))
        self._uncharged = self._refused = 0
        self._now = now + pause
        return pause

    def close(self) -> None:
        """It is over: count what was too little to be counted before."""
        if self._quota is not None:
            self._quota.read(self._uncharged, self._clock.monotonic())

    def _refusal(self, what: str, wait: float) -> ArmorclawError:
        self._refused += 1
        self._caller.refuse()
        return ArmorclawError("rate_limited", what, retry_after=math.ceil(wait * 1000) / 1000)


class Listener:
    """The admission of one listener; see `armorclaw.rpc.admission`."""

    def __init__(self, limits: Limits, role: Role, agent: str | None) -> None:
        self._limits = limits
        self._role = role
        self._agent = agent
        self._accepts = Bucket(limits.budgets[role].accepts)

    def pause(self) -> float:
        return self._accepts.charge(self._limits.clock.monotonic(), 1)

    @contextmanager
    def enter(self, uid: int) -> Iterator[Connection]:
        caller = self._limits.caller(self._role, uid if self._agent is None else self._agent)
        quotas = self._limits.quotas
        quota = None if self._agent is None or quotas is None else quotas.of(self._agent)
        caller.connections += 1
        connection = Connection(caller, self._limits.budgets[self._role], self._limits.clock, quota)
        try:
            yield connection
        finally:
            connection.close()
            caller.connections -= 1


class Limits:
    """Who has used up how much. One per bridge, given to every listener."""

    def __init__(
        self, clock: Clock, roles: Mapping[Role, Budget] | None = None, quotas: Quotas | None = None
    ) -> None:
        self.clock = clock
        self.quotas = quotas
        self.budgets = roles or budgets(LimitsSection())
        self._callers: dict[tuple[Role, int | str], _Caller] = {}
        self.refused: Counter[Role] = Counter()
        """Calls that came too often, by role."""
        self._strangers = {role: self._new(role) for role in self.budgets}
        self._swept = -math.inf

    def listener(self, role: Role, *, agent: str | None = None) -> Listener:
        """For a listener of this role; `agent` if it is the socket of one."""
        return Listener(self, role, agent)

    def caller(self, role: Role, who: int | str) -> _Caller:
        """What is known of a uid or an agent; when too many are known, of all the unknown together."""
        caller = self._callers.get((role, who))
        if caller is None:
            self._sweep()
            if len(self._callers) >= MAX_CALLERS:
                return self._strangers[role]
            caller = self._callers[role, who] = self._new(role)
        return caller

    def _new(self, role: Role) -> _Caller:
        return _Caller(self.budgets[role], partial(self._refuse, role))

    def _refuse(self, role: Role) -> None:
        self.refused[role] += 1

    def _sweep(self) -> None:
        now = self.clock.monotonic()
        if len(self._callers) < _SWEEP_FROM or abs(now - self._swept) < _SWEEP_EVERY:
            return
        self._swept = now
        self._callers = {who: caller for who, caller in self._callers.items() if not caller.at_rest(now)}


class Quota:
    """How many of something each holder may have at once; `what` names it, as in "subscriptions"."""

    def __init__(self, what: str, most: int) -> None:
        self._what = what
        self._most = most
        self._held: Counter[Hashable] = Counter()  # of holders who have any

    @contextmanager
    def hold(self, holder: Hashable, shown: str) -> Iterator[None]:
        """Have one, for the length of the block. Raises `queue_full` when `holder`, `shown` in the text, has all."""
        if self._held[holder] >= self._most:
            raise ArmorclawError("queue_full", f"{shown} has {self._most} {self._what}")
        self._held[holder] += 1
        try:
            yield
        finally:
            self._held[holder] -= 1
            if not self._held[holder]:
                del self._held[holder]
