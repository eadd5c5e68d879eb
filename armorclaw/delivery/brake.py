"""The brake on retries: a homeserver that is away is asked by all rooms of an account together, not by each alone."""

from __future__ import annotations

import heapq
import math

import attrs
import trio

PERIOD = 1.0
"""Seconds between two retries of one account on average, while its homeserver as a whole is away."""

BURST = 3
"""Retries that may follow each other at once."""


@attrs.define(order=True)
class Turn:
    """A retry in the line. Fewest failures come first, so that rooms which are stuck keep no other waiting."""

    failures: int
    number: int
    nudge: trio.Event = attrs.field(order=False)
    given: bool = attrs.field(default=False, order=False)
    wanted: bool = attrs.field(default=True, order=False)


class Brake:
    """On from a failure of the homeserver as a whole until something succeeds. `run` gives the turns meanwhile."""

    def __init__(self) -> None:
        self.on = False
        self._line: list[Turn] = []
        self._asked = trio.Event()
        self._count = 0

    def put_on(self) -> None:
        self.on = True

    def lift(self) -> None:
        """Nudges all who stand in line: they need no turn any more."""
        self.on = False
        line, self._line = self._line, []
        for turn in line:
            turn.nudge.set()

    def ask(self, failures: int, nudge: trio.Event) -> Turn:
        """Stand in line: `nudge` is set when the turn is given, or none is needed. Clear `wanted` to leave it."""
        self._count += 1
        turn = Turn(failures, self._count, nudge)
        heapq.heappush(self._line, turn)
        self._asked.set()
        return turn

    async def run(self) -> None:
        """Until cancelled."""
        due = -math.inf
        while True:
            self._asked = trio.Event()
            if not self._line:
                await self._asked.wait()
            await trio.sleep_until(due)
            while self._line:
                turn = heapq.heappop(self._line)
                if turn.wanted:
                    turn.given = True
                    turn.nudge.set()
                    due = max(due, trio.current_time() - (BURST - 1) * PERIOD) + PERIOD
                    break
