"""The journal and its retention against a plain model: nothing goes too early, too late, unseen, or out of turn."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import attrs
import pytest
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from armorclaw.clock import Clock, Surroundings
from armorclaw.config.sections import EventsSection
from armorclaw.events.event import Event
from armorclaw.events.filter import EventFilter
from armorclaw.events.journal import Journal
from armorclaw.events.keeping import pruning, retention
from armorclaw.events.keeping.pruning import DAY_MS, ROW_BYTES
from armorclaw.events.keeping.retention import HOUR_MS, Retention
from armorclaw.store import Connection, Database
from tests.events.inline_store import InlineDatabase

ERASE_H, KEEP_DAYS, ROWS = 6.0, 3.0, 12
LIMIT = ROWS * (ROW_BYTES + 100)
NAMES = ("a", "b", "c")
ROOMS = ("!a:x", "!b:x", None)


@attrs.define
class Kept:
    """What the model knows of an event that is in the journal."""

    event: Event
    stored: int
    erased: bool = False

    @property
    def size(self) -> int:
        return ROW_BYTES + (2 if self.erased else len(self.event.content))


@attrs.define
class Reader:
    floor: int
    acks: set[int] = attrs.field(factory=set)

    def has(self, seq: int) -> bool:
        return seq <= self.floor or seq in self.acks


class RetentionMachine(RuleBasedStateMachine):
    """Time only goes on here; `test_pruning.py` sets the clock back."""

    def __init__(self) -> None:
        super().__init__()
        self.db = InlineDatabase()
        self.now = 10**12
        self.around = Surroundings(clock=Clock(wall=lambda: self.now / 1000))
        self.journal = Journal(cast(Database, self.db), self.around.clock)
        self.journal.subscribe_hub(self._hear)
        self.kept: dict[int, Kept] = {}
        self.trimmed = 0
        self.head = 0
        self.readers: dict[str, Reader] = {}
        self.dead: set[int] = set()
        self.looks: list[tuple[int, int]] = []  # when, and up to where everybody was settled then
        self.given: list[str] = []
        self.restart()

    def teardown(self) -> None:
        self.db.close()

    def _hear(self, events: Any) -> None:
        for event in events:
            assert event.seq > self.head, "a number that was given out before"
            self.head = event.seq
            self.kept[event.seq] = Kept(event, self.now)

    def _do(self, work: Callable[[Connection], object]) -> None:
        trio.run(self.db.write, work)

    # --- what happens to the journal

    @initialize(rooms=st.lists(st.sampled_from(ROOMS), min_size=3, max_size=6))
    def begin(self, rooms: list[str | None]) -> None:
        self.subscribe("a", 0)
        self.append(rooms, 10)

    @rule(rooms=st.lists(st.sampled_from(ROOMS), min_size=1, max_size=4), body=st.integers(0, 200))
    def append(self, rooms: list[str | None], body: int) -> None:
        events = [Event.make("x", {"body": "x" * body}, at_ms=0, room_id=room) for room in rooms]
        self.given += [event.id for event in events]
        assert [one.id for one in trio.run(self.journal.record, events)] == [event.id for event in events]

    @precondition(lambda self: self.given)
    @rule(data=st.data())
    def append_again(self, data: st.DataObject) -> None:
        id_ = data.draw(st.sampled_from(self.given))
        known = id_ in {one.event.id for one in self.kept.values()}
        event = Event.make("x", {"body": "again"}, at_ms=0, id=id_, room_id="!a:x")
        new = trio.run(self.journal.record, [event])
        assert bool(new) is not known, "erased or not, it is known while it is kept"

    @rule(hours=st.sampled_from([0.5, 1.0, 2.0, 5.0, 7.0, 30.0]))
    def wait(self, hours: float) -> None:
        self.now += round(hours * HOUR_MS)

    # --- what readers do

    @rule(name=st.sampled_from(NAMES), back=st.integers(0, 10))
    def subscribe(self, name: str, back: int) -> None:
        if name not in self.readers:
            self.readers[name] = Reader(max(self.head - back, 0))
            sql = "INSERT INTO subscriptions (owner, name, filter, floor) VALUES ('o', ?, '{}', ?)"
            self._do(lambda conn: conn.execute(sql, (name, self.readers[name].floor)))

    @rule(name=st.sampled_from(NAMES), by=st.sampled_from([1, 2, 3, 99, 99]))
    def settle(self, name: str, by: int) -> None:
        if name in self.readers:
            reader = self.readers[name]
            reader.floor = min(reader.floor + by, self.head)
            sql = "UPDATE subscriptions SET floor = ? WHERE name = ?"
            self._do(lambda conn: conn.execute(sql, (reader.floor, name)))

    @precondition(lambda self: self.kept)
    @rule(name=st.sampled_from(NAMES), data=st.data())
    def ack_one(self, name: str, data: st.DataObject) -> None:
        if name in self.readers:
            seq = data.draw(st.sampled_from(sorted(self.kept)[:4]))  # the next to go
            self.readers[name].acks.add(seq)
            sql = "INSERT INTO acks (owner, name, seq) VALUES ('o', ?, ?) ON CONFLICT DO NOTHING"
            self._do(lambda conn: conn.execute(sql, (name, seq)))

    @rule(name=st.sampled_from(NAMES))
    def forget(self, name: str) -> None:
        if self.readers.pop(name, None) is not None:
            self.dead = set() if name == "a" else self.dead  # they go along with the name
            self._do(lambda conn: conn.execute("DELETE FROM subscriptions WHERE name = ?", (name,)))

    @precondition(lambda self: self.kept and "a" in self.readers)
    @rule(data=st.data())
    def bury(self, data: st.DataObject) -> None:
        seq = data.draw(st.sampled_from(sorted(self.kept)[:4]))
        self.dead.add(seq)
        sql = "INSERT INTO dead_letters VALUES ('o', 'a', ?, 0, 1, 1, 'x', 0) ON CONFLICT DO NOTHING"
        self._do(lambda conn: conn.execute(sql, (seq,)))

    @precondition(lambda self: self.dead)
    @rule(data=st.data())
    def exhume(self, data: st.DataObject) -> None:
        seq = data.draw(st.sampled_from(sorted(self.dead)))
        self.dead.discard(seq)
        self._do(lambda conn: conn.execute("DELETE FROM dead_letters WHERE seq = ?", (seq,)))

    # --- retention

    @rule()
    def restart(self) -> None:
        section = EventsSection(keep_days=KEEP_DAYS, keep_mb=LIMIT / 1024**2, erase_after_h=ERASE_H)
        db = cast(Database, self.db)
        self.retention = Retention(db, self.around, section, trio.lowlevel.checkpoint, self.journal)

    @rule()
    def look(self) -> None:
        before = self.head
        self.looks.append((self.now, min((one.floor for one in self.readers.values()), default=self.head)))
        erased = {seq for seq, one in self.kept.items() if self._due(seq, one)}
        for seq in erased:
            self.kept[seq].erased = True
        gone = self._too_much()
        deleted = {seq: self.kept.pop(seq) for seq in gone}
        self.trimmed = max([self.trimmed, *gone])
        missed = [seq for seq in gone if not all(reader.has(seq) for reader in self.readers.values())]

        done = trio.run(self.retention.prune)
        assert (done.erased, done.events) == (len(erased), len(deleted))
        told = [one.event for seq, one in self.kept.items() if seq > before]
        if missed:
            (one,) = told
            content = {"from": min(gone), "to": max(gone), "unacknowledged": len(missed)}
            assert (one.type, one.severity, one.plain()["content"]) == ("events.trimmed", "warning", content)
        else:
            assert not told

    def _due(self, seq: int, one: Kept) -> bool:
        """Whether the body goes: everybody was done with it at a look long enough ago, and at all looks since."""
        if one.event.room_id is None or one.erased or seq in self.dead:
            return False
        settled_at = None
        for at, floor in self.looks:
            if seq > floor:
                settled_at = None
            elif settled_at is None:
                settled_at = at
        return settled_at is not None and self.now - settled_at >= ERASE_H * HOUR_MS

    def _too_much(self) -> list[int]:
        gone, total = [], sum(one.size for one in self.kept.values())
        for seq in sorted(self.kept):
            one = self.kept[seq]
            if total <= LIMIT and one.stored >= self.now - KEEP_DAYS * DAY_MS:
                break
            gone.append(seq)
            total -= one.size
        return gone

    # --- what readers see

    @rule(back=st.integers(0, 30), limit=st.integers(1, 5), room=st.sampled_from(ROOMS))
    def replay(self, back: int, limit: int, room: str | None) -> None:
        matching = None if room is None else EventFilter(rooms=(room,))
        position = start = max(self.head - back, 0)
        seen: list[Event] = []
        while True:
            page = trio.run(self.journal.after, position, limit, matching)
            assert page.trimmed == self.trimmed
            seen += page.events
            position = page.position
            if page.complete:
                break
        expected = [seq for seq in sorted(self.kept) if seq > start]
        assert [one.seq for one in seen] == [
            seq for seq in expected if room is None or self.kept[seq].event.room_id == room
        ]
        for one in seen:
            kept = self.kept[one.seq]
            assert one == (attrs.evolve(kept.event, content=b"{}", erased=True) if kept.erased else kept.event)

    @rule(hours=st.integers(0, 40))
    def replay_from_a_time(self, hours: int) -> None:
        time_ms = self.now - hours * HOUR_MS
        earlier = [seq for seq, one in self.kept.items() if one.stored < time_ms]
        assert trio.run(self.journal.seq_at, time_ms) == max(earlier, default=0)

    @invariant()
    def what_is_there_is_what_was_not_deleted(self) -> None:
        conn = self.db.conn
        assert [seq for (seq,) in conn.execute("SELECT seq FROM journal ORDER BY seq")] == sorted(self.kept)
        assert Journal.trimmed(conn) == self.trimmed
        assert all(seq > self.trimmed for seq in self.kept)
        (marks,) = conn.execute("SELECT count(*) FROM marks").fetchone()
        assert marks <= len(self.looks)


@pytest.fixture(autouse=True)
def small_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a database that is larger than the journal may be; batches of a few rows."""
    monkeypatch.setattr(retention, "_bytes_used", lambda conn: 2**62)
    for name, rows in (("_BODIES", "ERASE_ROWS"), ("_OLDEST", "DELETE_ROWS"), ("_SIZES", "SIZE_ROWS")):
        text = getattr(pruning, name)
        limit = f"LIMIT {getattr(pruning, rows)}"
        assert text.endswith(limit)
        monkeypatch.setattr(pruning, name, text.removesuffix(limit) + "LIMIT 3")


RetentionMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=60)
TestRetention = RetentionMachine.TestCase
