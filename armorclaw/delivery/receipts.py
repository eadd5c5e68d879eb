"""Receipts: what a sync tells of our own messages, that they came back, and who has read up to where.

All of it happens in the transaction that takes the sync in, so that a receipt is as durable as the sync's token. The
session calls, for each room and in this order: `echoed` for each own event at its place in the timeline, the
journal's `append`, `placed` for what `echoed` had to tell, `read` for each receipt, `caught_up`; and `committed`
behind the commit.
"""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TypeVar

from armorclaw.clock import Clock
from armorclaw.delivery import rows
from armorclaw.delivery.message import STATES, WAITING, State
from armorclaw.delivery.news import TYPE, news_of
from armorclaw.events.event import Event
from armorclaw.store import Connection

K = TypeVar("K")
V = TypeVar("V")

TXN_PREFIX = "ac_"
"""How our transaction ids begin: others of the same account are not looked up."""

KEPT = 1_000
"""Receipts for events that are not known yet, and own events that no message is known for yet, that are kept."""


class Receipts:
    """Turns what syncs tell into states of messages. `gone` is told, on Trio's thread, which and what became of them.

    What is remembered here belongs to the store's writing thread. It only ever makes a receipt come earlier: a
    transaction that is taken back and done anew finds the same, and after a restart the next receipt covers it.
    """

    def __init__(self, clock: Clock, gone: Callable[[str, State], object] = lambda delivery_id, state: None) -> None:
        self._clock = clock
        self._gone = gone
        self._ahead: OrderedDict[tuple[str, str, str], str] = OrderedDict()  # account, room, reader: event id
        self._strays: OrderedDict[tuple[str, str], None] = OrderedDict()  # account, event id

    # --- within the transaction of a sync, on the store's thread ---

    def echoed(
        self, conn: Connection, account: str, room_id: str, event_id: str, txn_id: str | None = None
    ) -> Event | None:
        """An event of our own came back: the event that tells its sender so, for the journal, at its place.

        None if it is no message of the outbox, or was told before. `txn_id` is what the homeserver says, if it does.
        """
        found = rows.by_event(conn, account, event_id)
        if found is None and txn_id is not None and txn_id.startswith(TXN_PREFIX):
            found = rows.by_txn(conn, txn_id)
        if found is None:
            _keep(self._strays, (account, event_id), None)
            return None
        if found.account != account or found.room_id != room_id or found.state in ("delivered", "read"):
            return None
        now = self._clock.now_ms()
        delivered = rows.came_back(conn, found, event_id, now)
        return news_of(delivered, now, id=f"{account}/{event_id}/delivered")

    def placed(self, conn: Connection, account: str, event_id: str, seq: int) -> None:
        """The journal's number of the event that `echoed` returned: who reads up to there, has read it."""
        rows.put_in_place(conn, account, event_id, seq)

    def read(self, conn: Connection, account: str, room_id: str, event_id: str, reader: str) -> list[Event]:
        """Somebody else has read up to an event: what to tell of our messages up to there, for the journal.

        If the event is not known yet, the last such receipt of each reader is kept for `caught_up`.
        """
        place = rows.place_of(conn, account, event_id)
        if place is None:
            _keep(self._ahead, (account, room_id, reader), event_id)
            return []
        self._ahead.pop((account, room_id, reader), None)
        return self._read_up_to(conn, account, room_id, place, reader)

    def caught_up(self, conn: Connection, account: str, room_id: str) -> list[Event]:
        """The room's news is in the journal: what to tell as receipts that were ahead of it now fit."""
        events: list[Event] = []
        for key, event_id in list(self._ahead.items()):
            if key[:2] != (account, room_id):
                continue
            place = rows.place_of(conn, account, event_id)
            if place is None:
                continue
            told = self._read_up_to(conn, account, room_id, place, key[2])
            if not told:  # not before, lest a transaction that is taken back takes the receipt along
                del self._ahead[key]
            events += told
        return events

    def strayed(self, account: str, event_id: str) -> bool:
        """Whether this event came back before anybody knew it for a message of ours."""
        return (account, event_id) in self._strays

    def _read_up_to(self, conn: Connection, account: str, room_id: str, place: int, reader: str) -> list[Event]:
        now = self._clock.now_ms()
        return [news_of(each, now, by=reader) for each in rows.read_up_to(conn, account, room_id, place)]

    # --- behind the commit, on Trio's thread ---

    def committed(self, events: Sequence[Event]) -> None:
        """Has memory follow: call it in the `then` of the write with the events that were journalled, of any type."""
        for event in events:
            if event.type != TYPE or event.event_id is not None:
                continue  # what has an event id was said in a room, whatever it is called
            content = json.loads(event.content)
            delivery_id, state = content.get("delivery_id"), content.get("state")
            if isinstance(delivery_id, str) and state in STATES and state not in WAITING:
                self._gone(delivery_id, state)


def _keep(kept: OrderedDict[K, V], key: K, value: V) -> None:
    kept[key] = value
    kept.move_to_end(key)
    if len(kept) > KEPT:
        kept.popitem(last=False)
