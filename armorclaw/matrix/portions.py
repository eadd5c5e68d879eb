"""A long answer goes into the store in portions, so that nobody else waits long for the one that writes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import trio

from armorclaw.events.event import Event
from armorclaw.matrix.answer import Echo, Receipt
from armorclaw.matrix.intake import Batch, Intake
from armorclaw.store import Connection

PORTION = 200
"""Events, or receipts, in one transaction."""

PORTION_BYTES = 512 * 1024
"""Of those events. The writer is busy with it for some 10 ms."""

BREATH = 100
BREATH_BYTES = 256 * 1024
"""Events, and bytes of them, turned into ours between two looks at the other tasks."""

Entry = Event | Echo

_ENVELOPE = 1024  # bytes, about; what an event takes in memory beside its content


def size_of(entry: Entry) -> int:
    """Bytes that an entry holds in memory, about."""
    return _ENVELOPE + (len(entry.content) if isinstance(entry, Event) else 0)


async def put(
    intake: Intake,
    entries: Iterable[Entry | None],
    receipts: Sequence[Receipt],
    *,
    also: Callable[[Connection], object],
) -> None:
    """Take it all in, in order, and do `also` in the last transaction, which for most answers is the only one.

    A crash in between leaves the first portions; the answer then comes again, as the token is in `also`, and they are
    known by their ids. `entries` may be made on the way; None stands for one that is left out. Raises what the store
    raises.
    """
    portion: list[Entry] = []
    size = since_breath = 0
    for number, entry in enumerate(entries, 1):
        grown = 0 if entry is None else size_of(entry)
        since_breath += grown
        if number % BREATH == 0 or since_breath > BREATH_BYTES:
            since_breath = 0
            await trio.lowlevel.checkpoint()
        if entry is None:
            continue
        if portion and (len(portion) == PORTION or size + grown > PORTION_BYTES):
            await intake.take(Batch(portion), also=_nothing)
            portion, size = [], 0
        portion.append(entry)
        size += grown
    if len(receipts) > PORTION:
        if portion:
            await intake.take(Batch(portion), also=_nothing)
            portion = []
        while len(receipts) > PORTION:
            await intake.take(Batch((), receipts[:PORTION]), also=_nothing)
            receipts = receipts[PORTION:]
    await intake.take(Batch(portion, receipts), also=also)


def _nothing(db: Connection) -> None:
    pass
