from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import attrs
import pytest
import trio

from armorclaw.clock import Clock
from armorclaw.events.event import Event
from armorclaw.events.filter import EventFilter
from armorclaw.events.journal import PAGE_BYTES, SCAN_LIMIT, Journal
from armorclaw.events.keeping import pruning
from armorclaw.store import Connection, Database

MakeEvent = Callable[..., Event]


@pytest.fixture
def journal(db: Database) -> Journal:
    return Journal(db)


async def test_events_are_numbered_and_read_back_as_they_were(journal: Journal, new_event: MakeEvent) -> None:
    given = [new_event(agent="echo"), Event.make("alert", {"text": "é"}, at_ms=3, severity="error")]
    given.append(attrs.evolve(new_event(event_id="$for-nobody"), addressed=()))
    given.append(attrs.evolve(new_event(event_id="$for-two"), addressed=("echo", "é")))
    recorded = await journal.record(given)
    assert [event.seq for event in recorded] == [1, 2, 3, 4]
    page = await journal.after(0, 10)
    assert list(page.events) == recorded
    assert [event.addressed for event in page.events] == [None, None, (), ("echo", "é")]
    assert page.events[0].content == given[0].content
    assert page.events[1].severity == "error"
    assert page.complete
    assert await journal.find([2, 7]) == recorded[1:2]


async def test_an_event_seen_twice_is_recorded_and_published_once(journal: Journal, new_event: MakeEvent) -> None:
    heard: list[Event] = []
    journal.subscribe_hub(heard.extend)
    event = new_event(id="one")
    await journal.record([event])
    again = await journal.record([event, new_event(event_id=event.event_id), new_event(id="two")])
    assert [one.id for one in again] == ["two"]
    assert [one.id for one in heard] == ["one", "two"]


async def test_the_same_matrix_event_on_another_account_is_another_event(
    journal: Journal, new_event: MakeEvent
) -> None:
    event = new_event()
    (other,) = await journal.record([event]) and await journal.record(
        [new_event(account="b", event_id=event.event_id)]
    )
    assert other.account == "b"
    assert event.event_id is not None
    assert await journal.of_matrix("b", event.event_id) == other
    assert await journal.of_matrix("c", event.event_id) is None


async def test_what_fails_beside_the_events_takes_them_along(journal: Journal, new_event: MakeEvent) -> None:
    heard: list[Event] = []
    journal.subscribe_hub(heard.extend)

    def fail(conn: Connection) -> None:
        raise RuntimeError("no token")

    with pytest.raises(RuntimeError, match="no token"):
        await journal.record([new_event()], also=fail)
    assert not heard
    assert await journal.head() == 0


async def test_the_token_is_in_the_transaction_of_its_events(journal: Journal, new_event: MakeEvent) -> None:
    def also(conn: Connection) -> None:
        assert conn.execute("SELECT count(*) FROM journal").fetchone() == (1,)
        assert conn.in_transaction

    await journal.record([new_event()], also=also)
    await journal.record([], also=lambda conn: conn.execute("SELECT 1"))  # only a token: nothing to publish


async def test_a_listener_that_fails_costs_the_others_nothing(journal: Journal, new_event: MakeEvent) -> None:
    heard: list[Event] = []

    def broken(events: Sequence[Event]) -> None:
        raise RuntimeError("a bug")

    journal.subscribe_hub(broken)
    remove = journal.subscribe_hub(heard.extend)
    await journal.record([new_event()])
    assert len(heard) == 1
    remove()
    remove()
    await journal.record([new_event()])
    assert len(heard) == 1


async def test_pages_end_at_their_limits(journal: Journal, new_event: MakeEvent) -> None:
    await journal.record([new_event() for _ in range(5)])
    page = await journal.after(1, 2)
    assert ([one.seq for one in page.events], page.position, page.complete) == ([2, 3], 3, False)
    page = await journal.after(3, 2)
    assert ([one.seq for one in page.events], page.position, page.complete) == ([4, 5], 5, True)
    page = await journal.after(0, 9, EventFilter(rooms=("!none:x",)))
    assert (page.events, page.position, page.complete) == ((), 5, True)


async def test_large_events_make_small_pages(journal: Journal, new_event: MakeEvent) -> None:
    await journal.record([new_event(body="x" * (PAGE_BYTES // 3)) for _ in range(4)])
    page = await journal.after(0, 64)
    assert ([one.seq for one in page.events], page.position, page.complete) == ([1, 2], 2, False)


async def test_a_filter_that_fits_rarely_is_answered_in_parts(journal: Journal, new_event: MakeEvent) -> None:
    await journal.record([new_event() for _ in range(SCAN_LIMIT + 1)])
    page = await journal.after(0, 9, EventFilter(rooms=("!none:x",)))
    assert (page.position, page.complete) == (SCAN_LIMIT, False)


async def test_the_filter_is_not_tried_on_what_is_not_allowed(journal: Journal, new_event: MakeEvent) -> None:
    tried: list[int] = []

    class Spy(EventFilter):
        def matches(self, event: Event) -> bool:
            tried.append(event.seq)
            return True

    await journal.record([new_event(room) for room in ("!a:x", "!b:x", "!a:x")])
    page = await journal.after(0, 9, Spy(), lambda event: event.room_id == "!a:x")
    assert [one.seq for one in page.events] == tried == [1, 3]
    assert (page.position, page.complete) == (3, True)


async def test_the_head_survives_the_events(journal: Journal, db: Database, new_event: MakeEvent) -> None:
    await journal.record([new_event(), new_event()])
    await db.write(lambda conn: conn.execute("DELETE FROM journal"))
    page = await Journal(db).after(0, 9)
    assert (page.events, page.position, page.complete) == ((), 2, True)
    assert await Journal(db).head() == 2


async def test_what_is_erased_is_read_as_erased(journal: Journal, db: Database, new_event: MakeEvent) -> None:
    await journal.record([new_event(), new_event()])
    await db.write(lambda conn: conn.execute("UPDATE journal SET content = CAST('{}' AS BLOB), erased = 1"))
    (first, _) = (await journal.after(0, 9)).events
    assert first.erased is True
    assert first.content == b"{}"
    assert first.plain()["erased"] is True
    assert (await journal.find([1])) == [first]


async def test_a_page_says_what_is_deleted(journal: Journal, db: Database, new_event: MakeEvent) -> None:
    await journal.record([new_event() for _ in range(5)])
    assert (await journal.after(0, 2)).trimmed == await journal.trimmed_to() == 0
    await db.write(lambda conn: pruning.trim(conn, before_ms=0, now_ms=2**62, upto=3))
    for limit, matching in ((1, None), (9, None), (9, EventFilter(("x",)))):
        assert (await journal.after(0, limit, matching)).trimmed == 3
    assert await journal.trimmed_to() == 3
    assert await db.write(journal.trimmed) == 3
    await db.write(lambda conn: pruning.trim(conn, before_ms=0, now_ms=2**62, upto=9))
    page = await journal.after(0, 9)
    assert (page.events, page.position, page.complete, page.trimmed) == ((), 5, True, 5)


async def test_a_number_used_up_by_what_came_twice_is_not_deleted(
    journal: Journal, db: Database, new_event: MakeEvent
) -> None:
    first = new_event()
    await journal.record([first, new_event()])
    assert await journal.record([first]) == []
    (last,) = await journal.record([new_event()])
    assert last.seq == 4  # the premise: it used up 3
    await db.write(lambda conn: pruning.trim(conn, before_ms=0, now_ms=2**62, upto=2))
    assert (await journal.after(2, 9)).trimmed == 2, "who has seen 2 has missed nothing"


async def test_a_replay_begins_behind_what_was_stored_before(db: Database, new_event: MakeEvent) -> None:
    now = [0]
    journal = Journal(db, Clock(wall=lambda: now[0] / 1000))
    assert await journal.seq_at(50) == 0
    seen = new_event()
    for now[0] in (10_000, 20_000, 20_000, 30_000):
        await journal.record([seen, new_event(), new_event()])  # leaves holes in the numbers
    stored = await db.read(lambda conn: conn.execute("SELECT seq, stored_ms FROM journal").fetchall())
    for time_ms in (0, 9_999, 10_000, 10_001, 19_999, 20_000, 20_001, 30_000, 30_001, 10**12):
        expected = max((seq for seq, at in stored if at < time_ms), default=0)
        assert await journal.seq_at(time_ms) == expected
    await db.write(lambda conn: pruning.trim(conn, before_ms=20_000, now_ms=now[0], upto=0))
    assert await journal.seq_at(20_000) == 0, "what was deleted may have been wanted: the gap is told"
    await db.write(lambda conn: pruning.trim(conn, before_ms=10**12, now_ms=now[0], upto=0))
    assert await journal.seq_at(30_000) == 0


async def test_waiting_for_what_is_behind_a_number(
    journal: Journal, new_event: MakeEvent, autojump_clock: trio.testing.MockClock
) -> None:
    await journal.record([new_event()])
    await journal.beyond(0)
    with trio.move_on_after(1) as scope:
        await journal.beyond(1)
    assert scope.cancelled_caught
    async with trio.open_nursery() as nursery:
        nursery.start_soon(journal.beyond, 1)
        await trio.testing.wait_all_tasks_blocked()
        await journal.record([new_event()])


async def test_concurrent_writers_are_heard_in_the_order_of_the_journal(
    real_db: Database, new_event: MakeEvent
) -> None:
    journal = Journal(real_db)
    heard: list[int] = []
    journal.subscribe_hub(lambda events: heard.extend(event.seq for event in events))

    async def writer() -> None:
        for _ in range(10):
            await journal.record([new_event(), new_event()])

    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(writer)
    assert heard == list(range(1, 201))


async def test_events_and_token_survive_a_new_process(tmp_path: Path, new_event: MakeEvent) -> None:
    async with Database.open(tmp_path / "a.db", bytes(32)) as db:
        recorded = await Journal(db).record([new_event()], durable=True)
    async with Database.open(tmp_path / "a.db", bytes(32)) as db:
        again = Journal(db)
        assert list((await again.after(0, 9)).events) == recorded
        assert await again.record(recorded) == []
