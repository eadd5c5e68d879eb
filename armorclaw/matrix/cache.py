"""What was asked of rooms and people before, kept for as long as the sync would tell of a change.

So an answer is as fresh as the last sync. What a sync does not tell of has an age beyond which it is asked anew.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import attrs
import msgspec
import trio

from armorclaw.matrix.answer import RoomUpdate

ENTRIES = 4_096
BYTES = 8 * 1024 * 1024
"""Of all entries of one account, as JSON."""

MAX_AGE = 600.0
"""Seconds. A profile can change without an event in any of our rooms, and rarely, where servers disagreed for a
while, so can state."""

Key = tuple[str, ...]
"""What was asked: its kind, of which room or person, and what of it."""


def members_of(room_id: str) -> Key:
    """Who has joined a room."""
    return ("members", room_id)


def state_of(room_id: str, type_: str, state_key: str) -> Key:
    """One piece of a room's state."""
    return ("state", room_id, type_, state_key)


def profile_of(user_id: str) -> Key:
    """What a person's own homeserver says of them."""
    return ("profile", user_id)


@attrs.frozen
class CacheCounts:
    """Since the start; `entries` and `bytes` as of now."""

    hits: int
    misses: int
    entries: int
    bytes: int

    @classmethod
    def of_all(cls, counts: Iterable[CacheCounts]) -> CacheCounts:
        """The sums."""
        rows = [attrs.astuple(each) for each in counts]
        return cls(*map(sum, zip(*rows, strict=True))) if rows else cls(0, 0, 0, 0)


@attrs.frozen
class _Entry:
    value: Any
    size: int
    at: float


class _Fetch:
    """One that is under way; those who want the same wait for it."""

    def __init__(self) -> None:
        self.done = trio.Event()
        self.overtaken = False


class Cache:
    """The least recently used goes first. What is asked twice at a time is fetched once."""

    def __init__(self) -> None:
        self._entries: OrderedDict[Key, _Entry] = OrderedDict()
        self._about: dict[str, set[Key]] = {}  # room or person → what is kept of it
        self._fetches: dict[Key, _Fetch] = {}
        self._bytes = 0
        self._hits = 0
        self._misses = 0

    @property
    def counts(self) -> CacheCounts:
        return CacheCounts(self._hits, self._misses, len(self._entries), self._bytes)

    async def get(self, key: Key, fetch: Callable[[], Awaitable[Any]], *, keep: bool = True) -> Any:
        """The value as kept, else as fetched; without `keep` it is asked anew. JSON values, to be read, not changed.

        Raises what `fetch` raises, each time to whoever asked: a failure is not kept.
        """
        while keep:
            entry = self._entries.get(key)
            if entry is not None and trio.current_time() - entry.at <= MAX_AGE:
                self._entries.move_to_end(key)
                self._hits += 1
                return entry.value
            under_way = self._fetches.get(key)
            if under_way is None:
                break
            await under_way.done.wait()  # it may have failed, or been cancelled: then one of us is the next
        self._misses += 1
        if not keep:
            return await fetch()
        mine = self._fetches[key] = _Fetch()
        try:
            value = await fetch()
            if not mine.overtaken:
                self._put(key, value)
            return value
        finally:
            if self._fetches.get(key) is mine:
                del self._fetches[key]
            mine.done.set()

    def follow(self, update: RoomUpdate) -> None:
        """Forget what this part of a sync changes; all of the room if not all changes are in it."""
        room = update.room_id
        if update.limited or update.membership != "join":
            for key in [*self._about.get(room, ()), *(key for key in self._fetches if key[1] == room)]:
                self._drop(key)
        for raw in (*update.state, *update.timeline):
            type_, state_key = raw.get("type"), raw.get("state_key")
            if not isinstance(type_, str) or not isinstance(state_key, str):
                continue
            self._drop(state_of(room, type_, state_key))
            if type_ == "m.room.member":
                self._drop(members_of(room))
                self._drop(profile_of(state_key))

    def clear(self) -> None:
        """Forget everything: there may have been changes that nobody told of."""
        for key in [*self._entries, *self._fetches]:
            self._drop(key)

    def _put(self, key: Key, value: Any) -> None:
        self._remove(key)
        try:
            size = len(msgspec.json.encode(value)) + sum(map(len, key))
        except (ValueError, OverflowError, RecursionError):
            return  # numbers or depths that only an odd homeserver comes up with
        if size > BYTES // 4:
            return  # it would put out too many of the others
        self._entries[key] = _Entry(value, size, trio.current_time())
        self._about.setdefault(key[1], set()).add(key)
        self._bytes += size
        while len(self._entries) > ENTRIES or self._bytes > BYTES:
            self._remove(next(iter(self._entries)))

    def _drop(self, key: Key) -> None:
        self._remove(key)
        fetch = self._fetches.pop(key, None)  # whoever asks from now on must not be given what it brings
        if fetch is not None:
            fetch.overtaken = True

    def _remove(self, key: Key) -> None:
        entry = self._entries.pop(key, None)
        if entry is None:
            return
        self._bytes -= entry.size
        about = self._about[key[1]]
        about.discard(key)
        if not about:
            del self._about[key[1]]
