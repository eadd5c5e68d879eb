"""What happens to agents, recorded in the order in which it happened, by one task that holds up nobody."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable

import attrs
import trio

from armorclaw.errors import ArmorclawError, trace
from armorclaw.log import get_logger

log = get_logger(__name__)

WAITING_LIMIT = 64
"""Records of one agent that wait for a slow store, as of a dozen starts. Beyond it its new ones are left out, and
the log alone has them. So no agent takes the room of another."""

LASTING_LIMIT = 256
"""Likewise of those that must not be lost: alerts and ends, of which a generation has about four."""

LAST_PATIENCE = 1.0
"""Seconds for what is left when everything is being stopped."""

TELL_EVERY = 1.0
"""Seconds between two log lines about what is not recorded."""


@attrs.define(eq=False)
class Entry:
    """Something to record of an agent. `facts` is for whoever adds to it while it waits."""

    record: Callable[[], Awaitable[object]]
    agent: str
    lasting: bool
    facts: dict[str, object]


@attrs.define(eq=False)
class _Waiting:
    """What waits of one agent."""

    last: Entry
    passing: int = 0
    lasting: int = 0


class Chronicle:
    """A queue of things to record. What a record raises is logged, and stops no other."""

    def __init__(self) -> None:
        self._waiting: deque[Entry] = deque()
        self._of: dict[str, _Waiting] = {}
        self._bell = trio.Event()
        self._scope = trio.CancelScope()
        self._closed = False
        self._untold = 0
        self._why = ""
        self._told_at = -TELL_EVERY
        self.left_out = 0
        """How many are not recorded: their agent's room was full, or the store failed."""

    def add(
        self,
        record: Callable[[], Awaitable[object]],
        *,
        agent: str = "",
        lasting: bool = False,
        facts: dict[str, object] | None = None,
    ) -> None:
        """Have this awaited after all that was added before. Never waits."""
        entry = Entry(record, agent, lasting, {} if facts is None else facts)
        waiting = self._of.get(agent)
        if waiting is None:
            waiting = self._of[agent] = _Waiting(entry)
        if waiting.lasting >= LASTING_LIMIT if lasting else waiting.passing >= WAITING_LIMIT:
            self._leave_out("too many wait for the store")
            return
        if lasting:
            waiting.lasting += 1
        else:
            waiting.passing += 1
        waiting.last = entry
        self._waiting.append(entry)
        self._bell.set()

    def last(self, agent: str) -> Entry | None:
        """What was added last of an agent, as long as it waits."""
        waiting = self._of.get(agent)
        return None if waiting is None else waiting.last

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until `close`, whoever cancels it: how agents end while all is being stopped is recorded, too.

        What is left then is recorded within LAST_PATIENCE. Cancelled before it has started, it ends at once: whoever
        waits for its start does not come to call `close`.
        """
        self._closed = False
        task_status.started()
        await trio.lowlevel.checkpoint_if_cancelled()
        with trio.CancelScope(shield=True) as self._scope:
            while True:
                self._bell = trio.Event()
                await self._record()
                if self._closed:
                    break
                await self._bell.wait()
        left_out = len(self._waiting) + self._scope.cancelled_caught  # one was on its way
        if left_out:
            self._leave_out("the store took too long", left_out)
            self._waiting.clear()
            self._of.clear()
        self._say()

    def close(self) -> None:
        """Nothing more will happen to agents."""
        self._closed = True
        self._bell.set()
        self._scope.deadline = trio.current_time() + LAST_PATIENCE

    async def _record(self) -> None:
        while self._waiting:
            entry = self._take()  # first: a write that was handed over is carried out, cancelled or not
            try:
                await entry.record()
            except ArmorclawError as error:
                self._leave_out(str(error))
            except Exception as error:  # noqa: BLE001 - whatever it is, the next may fare better
                log.error("cannot record a change of an agent", agent=entry.agent or None, trace=trace(error))

    def _take(self) -> Entry:
        entry = self._waiting.popleft()
        waiting = self._of[entry.agent]
        if waiting.last is entry:
            del self._of[entry.agent]
        elif entry.lasting:
            waiting.lasting -= 1
        else:
            waiting.passing -= 1
        return entry

    def _leave_out(self, why: str, count: int = 1) -> None:
        self.left_out += count
        self._untold += count
        self._why = why
        if trio.current_time() - self._told_at >= TELL_EVERY:
            self._say()

    def _say(self) -> None:
        if self._untold:
            log.error("changes of agents are not recorded", count=self._untold, why=self._why)
            self._told_at, self._untold = trio.current_time(), 0
