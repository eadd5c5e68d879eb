"""A long answer goes into the store in portions, so that nobody else waits long for the one that writes."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Sequence

import trio

from armorclaw.events.event import Event, ascii_json
from armorclaw.matrix.answer import Receipt
from armorclaw.matrix.intake import Batch, Intake
from armorclaw.matrix.reading import Entry, InClear, Item, Redacted, Sealed
from armorclaw.matrix.undecrypted import Settled, Waiting
from armorclaw.store import Connection

PORTION = 200
"""Events, or receipts, in one transaction."""

PORTION_BYTES = 512 * 1024
"""Of those events. The writer is busy with it for some 10 ms."""

BREATH = 100
BREATH_BYTES = 256 * 1024
"""Events, and bytes of them, turned into ours between two looks at the other tasks."""

BREATH_SEALED = 8
"""The same for events that are decrypted, at about half a millisecond each."""

_ENVELOPE = 1024  # bytes, about; what an event takes in memory beside its content


def size_of(one: Item | Entry) -> int:
    """Bytes that an item or entry holds in memory, about."""
    match one:
        case Event():
            return _ENVELOPE + len(one.content)
        case Settled(event=Event() as event) | Redacted(by=Event() as event) | InClear(event=event):
            return _ENVELOPE + len(event.content)
        case Waiting():
            return _ENVELOPE + len(one.raw)
        case Sealed():
            return 2 * _ENVELOPE + _length(one.raw.get("content"))
    return _ENVELOPE


def _length(content: object) -> int:
    try:
        return len(ascii_json(content))
    except (ValueError, RecursionError):
        return 1 << 30  # no event; whoever has a bound is to leave it out


async def put(
    intake: Intake,
    items: Iterable[Item | None],
    receipts: Sequence[Receipt],
    *,
    read: Callable[[Item], Awaitable[Entry | None]],
    also: Callable[[Connection], object] = lambda conn: None,
) -> None:
    """Read it all, take it in, in order, and do `also` in the last transaction, for most answers the only one.

    A crash in between leaves the first portions; the answer then comes again, as the token is in `also`, and they are
    known by their ids. `items` may be made on the way; None stands for one that is left out. Raises what the store
    raises.
    """
    portion: list[Entry] = []
    size = since_breath = sealed = 0
    for number, item in enumerate(items, 1):
        if isinstance(item, Sealed):
            sealed += 1
            if sealed % BREATH_SEALED == 0:
                await trio.lowlevel.checkpoint()
        entry = None if item is None else await read(item)
        grown = 0 if entry is None else size_of(entry)
        since_breath += grown
        if number % BREATH == 0 or since_breath > BREATH_BYTES:
            since_breath = 0
            await trio.lowlevel.checkpoint()
        if entry is None:
            continue
        if portion and (len(portion) == PORTION or size + grown > PORTION_BYTES):
            await intake.take(Batch(portion))
            portion, size = [], 0
        portion.append(entry)
        size += grown
    if len(receipts) > PORTION:
        if portion:
            await intake.take(Batch(portion))
            portion = []
        while len(receipts) > PORTION:
            await intake.take(Batch((), receipts[:PORTION]))
            receipts = receipts[PORTION:]
    await intake.take(Batch(portion, receipts), also=also)
