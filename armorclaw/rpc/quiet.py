"""Log lines that the other side can cause: the first, then one a second that counts those left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

import trio

QUIET_SECONDS = 1.0
"""Between two lines of one kind."""

KINDS_LIMIT = 256
"""Kinds told apart; all further ones share one. Kinds are literals and names of methods, so there are few."""


class Quiet:
    """One stands in front of the log for each listener, and for each connection that has none.

        quiet = Quiet()
        quiet(log.warning, "caller refused", uid=uid)

    Else whoever connects, sends nonsense or fails in a loop writes the log full, and costs the time of writing it.
    """

    def __init__(self) -> None:
        self._next: dict[str, float] = {}  # kind → when its next line may come
        self._left_out: Counter[str] = Counter()

    def __call__(self, say: Callable[..., object], event: str, *, kind: str = "", **fields: object) -> bool:
        """Call `say(event, **fields)`, with `left_out` if lines were; whether it was called.

        `kind` tells apart lines of the same `event`. It must come from the program, never from the other side.
        """
        key = f"{event} {kind}"
        if key not in self._next and len(self._next) >= KINDS_LIMIT:
            key = ""
        now = trio.current_time()
        if now < self._next.get(key, now):
            self._left_out[key] += 1
            return False
        self._next[key] = now + QUIET_SECONDS
        left_out = self._left_out.pop(key, 0)
        if left_out:
            fields["left_out"] = left_out
        say(event, **fields)
        return True
