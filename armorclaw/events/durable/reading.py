"""Up to where the owner of a subscription has read each room: for receipts that others see."""

from __future__ import annotations

from bisect import bisect_left

import attrs

from armorclaw.events.event import Event


@attrs.frozen
class Seen:
    """A Matrix event that somebody is done with, and with all before it in its room that they were given."""

    account: str
    room_id: str
    event_id: str
    seq: int


class Reading:
    """What was given of each room and in what order; answers may come in any.

    Of a room it keeps what is unanswered, and between two of those at most one that is answered.
    """

    def __init__(self) -> None:
        self._rooms: dict[tuple[str, str], list[_Entry]] = {}
        self._entries: dict[int, _Entry] = {}  # those unanswered

    def give(self, event: Event) -> None:
        """An event was given out, perhaps once more."""
        if event.event_id is None or event.room_id is None or event.account is None:
            return
        if event.seq in self._entries:
            self._entries[event.seq].given_up = False
            return
        entry = _Entry(event.seq, Seen(event.account, event.room_id, event.event_id, event.seq))
        room = self._rooms.setdefault((event.account, event.room_id), [])
        room.insert(bisect_left(room, entry.seq, key=_seq), entry)
        self._entries[event.seq] = entry

    def settle(self, floor: int, seq: int | None) -> list[Seen]:
        """Everything up to `floor`, and `seq`, is answered: the last of each room that is read because of it."""
        done = [] if seq is None or seq not in self._entries else [seq]
        if self._entries and min(self._entries) <= floor:
            done.extend(one for one in self._entries if one <= floor and one != seq)
        rooms: dict[tuple[str, str], list[_Entry]] = {}
        for one in done:
            entry = self._entries.pop(one)
            entry.answered = True
            key = entry.seen.account, entry.seen.room_id
            rooms[key] = self._rooms[key]
        read = [_read(room) for room in rooms.values()]
        for key, room in rooms.items():
            if not room:
                del self._rooms[key]
        return [seen for seen in read if seen is not None]

    def forget(self, seq: int) -> None:
        """It is given up: when that settles it, nobody has read it."""
        if seq in self._entries:
            self._entries[seq].given_up = True


@attrs.define(eq=False)
class _Entry:
    seq: int
    seen: Seen
    answered: bool = False
    given_up: bool = False


def _seq(entry: _Entry) -> int:
    return entry.seq


def _read(room: list[_Entry]) -> Seen | None:
    """Takes out what is read; of other answered ones that follow each other, all but the last."""
    kept: list[_Entry] = []
    read: Seen | None = None
    for entry in room:
        if entry.answered and entry.given_up:
            continue
        if entry.answered and not kept:
            read = entry.seen
        else:
            if entry.answered and kept[-1].answered:
                kept.pop()
            kept.append(entry)
    room[:] = kept
    return read
