"""What a sync brings goes into the store: events, echoes of our own messages, receipts, the token; all or none."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs

from armorclaw.delivery.receipts import Receipts
from armorclaw.events.event import Event
from armorclaw.events.journal import Journal
from armorclaw.matrix.answer import Echo, Receipt
from armorclaw.matrix.reading import Entry, Redacted
from armorclaw.matrix.undecrypted import Settled, Undecrypted, Waiting
from armorclaw.store import Connection, Database


@attrs.frozen
class Batch:
    """What one answer brings. `entries` are in the order of their timelines; the receipts come after them all."""

    entries: Sequence[Entry] = ()
    receipts: Sequence[Receipt] = ()

    def __bool__(self) -> bool:
        return bool(self.entries or self.receipts)


class Intake:
    """Where the sync of one account puts what it brings."""

    def __init__(
        self, account: str, db: Database, journal: Journal, receipts: Receipts | None, undecrypted: Undecrypted
    ) -> None:
        self._account = account
        self._undecrypted = undecrypted
        self._db = db
        self._journal = journal
        self._receipts = receipts

    async def take(self, batch: Batch, *, also: Callable[[Connection], object] = lambda conn: None) -> list[Event]:
        """Journal all that is new and do `also`, in one transaction; returns the new events.

        Survives kill -9. A power cut may take it back whole, and then the token that `also` keeps brings it again.
        Raises what the store raises.
        """

        waiting = self._undecrypted.count, self._undecrypted.oldest_ms

        def work(conn: Connection) -> list[Event]:
            nonlocal waiting
            new = self._append(conn, batch.entries)
            if self._receipts is not None:
                new += self._journal.append(conn, self._news(conn, self._receipts, batch))
            also(conn)
            if self._undecrypted.count or any(isinstance(entry, Waiting) for entry in batch.entries):
                waiting = self._undecrypted.look(conn)
            return new

        def then(new: list[Event]) -> None:
            self._journal.publish(new)  # first: they are on record, and whoever follows must hear of them
            if self._receipts is not None:
                self._receipts.committed(new)
            self._undecrypted.noted(waiting)

        return await self._db.write(work, grows=bool(batch), then=then)

    def _append(self, conn: Connection, entries: Sequence[Entry]) -> list[Event]:
        """Journal what the timelines hold; what tells of a message of ours is numbered where its echo was."""
        events: list[Event] = []
        waiting: dict[tuple[str, str], Waiting] = {}
        settled: dict[tuple[str, str], Event] = {}
        echoes: dict[str, str] = {}  # id of the event that tells → id of the Matrix event it tells of
        for each in entries:
            entry: Entry | None = each
            if isinstance(each, Redacted):  # what waited for its key until now is not to be heard any more
                which = each.room_id, each.event_id
                waiting.pop(which, None)
                self._undecrypted.drop(conn, *which)
                if (late := settled.pop(which, None)) is not None:
                    events.remove(late)
                entry = each.by
            match entry:
                case Event():
                    events.append(entry)
                case Waiting():
                    waiting[entry.room_id, entry.event_id] = entry
                case Settled():
                    if self._undecrypted.drop(conn, entry.room_id, entry.event_id) and entry.event is not None:
                        events.append(entry.event)
                        settled[entry.room_id, entry.event_id] = entry.event
                case Echo() if self._receipts is not None:
                    told = self._receipts.echoed(conn, self._account, entry.room_id, entry.event_id, entry.txn_id)
                    if told is not None:
                        events.append(told)
                        echoes[told.id] = entry.event_id
        if waiting:
            events += self._undecrypted.keep(conn, list(waiting.values()))
        new = self._journal.append(conn, events)
        if self._receipts is not None:
            for event in new:
                if event.id in echoes:
                    self._receipts.placed(conn, self._account, echoes[event.id], event.seq)
        return new

    def _news(self, conn: Connection, receipts: Receipts, batch: Batch) -> list[Event]:
        """What is to be told of messages that others have read by now."""
        told = [
            event
            for each in batch.receipts
            for event in receipts.read(conn, self._account, each.room_id, each.event_id, each.reader)
        ]
        for room_id in dict.fromkeys(entry.room_id for entry in batch.entries if entry.room_id is not None):
            told += receipts.caught_up(conn, self._account, room_id)
        return told
