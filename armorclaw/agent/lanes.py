"""Who may work on what: in order within a room, at the same time across rooms."""

from __future__ import annotations

from collections import deque
from typing import Generic, Optional, TypeVar

T = TypeVar("T")


class Lanes(Generic[T]):
    """A queue per key, of which at most one item is out at a time. Does no locking.

    Keys with something to do take turns, one item each, so a busy room does not hold up a quiet one. The queues have
    no bound of their own: the bridge hands out at most 64 events, or 256 KiB, that are not acknowledged.
    """

    def __init__(self) -> None:
        self._waiting: dict[str, deque[T]] = {}  # keys with anything waiting or out
        self._ready: deque[str] = deque()  # keys whose next item may be taken
        self.out = 0  # items taken and not done

    def put(self, key: str, item: T) -> None:
        lane = self._waiting.get(key)
        if lane is None:
            self._waiting[key] = deque((item,))
            self._ready.append(key)
        else:
            lane.append(item)

    def take(self) -> Optional[T]:
        """The next item, or None while there is none that may be worked on. `done` must follow."""
        if not self._ready:
            return None
        self.out += 1
        return self._waiting[self._ready.popleft()].popleft()

    def done(self, key: str) -> None:
        """The item of `key` that was out is finished: the next one of that key may be taken."""
        self.out -= 1
        if self._waiting[key]:
            self._ready.append(key)
        else:
            del self._waiting[key]

    def clear(self) -> list[T]:
        """Forget what was not taken yet, and return it."""
        dropped = [item for lane in self._waiting.values() for item in lane]
        for key in self._ready:
            del self._waiting[key]
        self._ready.clear()
        for lane in self._waiting.values():
            lane.clear()
        return dropped
