"""Events for programs that embed the bridge: nothing twice, nothing left out, and left at any point."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from armorclaw.clock import Clock
from armorclaw.errors import ArmorclawError
from armorclaw.events.durable.cursor import Cursor, Start
from armorclaw.events.event import Event
from armorclaw.events.filter import EventFilter
from armorclaw.events.journal import Journal
from armorclaw.events.stream import PAGE, EventStream, Readers
from armorclaw.store import Database
from tests.events.inline_store import InlineDatabase

MakeEvent = Callable[..., Event]


class House:
    """A journal, its names, and streams of them."""

    def __init__(self, db: Database) -> None:
        self.db = db
        self.journal = Journal(db)
        self.readers = Readers()
        self.cursors: dict[str, Cursor] = {}
        self.redelivered: list[int] = []

    def made(self, event: Event, redelivered: int) -> Event:
        self.redelivered.append(redelivered)
        return event

    def cursor(self, name: str) -> Cursor:
        if name not in self.cursors:
            self.cursors[name] = Cursor(self.db, "", name, set())
        return self.cursors[name]

    def stream(
        self, name: str | None = None, *, start: Start = "now", matching: EventFilter | None = None
    ) -> EventStream[Event]:
        async def begin() -> Start:
            return start

        return EventStream(
            self.journal,
            matching=matching or EventFilter(),
            start=begin,
            cursor=None if name is None else self.cursor(name),
            readers=self.readers,
            clock=Clock(),
            make=self.made,
        )


@pytest.fixture
async def house(db: Database) -> House:
    made = House(db)
    await made.journal.head()  # as in a bridge that is up
    return made


async def take(stream: EventStream[Event], count: int) -> list[int]:
    with trio.fail_after(5):
        return [(await anext(stream)).seq for _ in range(count)]


async def nothing_comes(stream: EventStream[Event]) -> None:
    with trio.move_on_after(1) as scope:
        await anext(stream)
    assert scope.cancelled_caught


async def test_from_now_is_when_it_was_made(house: House, new_event: MakeEvent, autojump_clock: MockClock) -> None:
    """Not when the first is asked for, nor where the block begins."""
    await house.journal.record([new_event()])
    stream = house.stream()
    await house.journal.record([new_event(), new_event()])
    async with stream:
        await house.journal.record([new_event()])
        assert await take(stream, 3) == [2, 3, 4]
        await nothing_comes(stream)
        await house.journal.record([new_event()])
        assert await take(stream, 1) == [5]


async def test_in_a_journal_nobody_has_looked_at(
    house: House, new_event: MakeEvent, autojump_clock: MockClock
) -> None:
    """Then "now" is when it begins, as there is no other."""
    house.journal._known = None
    stream = house.stream()
    async with stream:
        await house.journal.record([new_event()])
    assert await take(stream, 1) == [1]


async def test_waits_for_what_comes(house: House, new_event: MakeEvent, autojump_clock: MockClock) -> None:
    stream = house.stream()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(house.journal.record, [new_event()]))
        assert await take(stream, 1) == [1]


async def test_from_a_number_over_many_pages(house: House, new_event: MakeEvent, autojump_clock: MockClock) -> None:
    await house.journal.record([new_event() for _ in range(3 * PAGE)])
    assert await take(house.stream(start=10), 3 * PAGE - 10) == list(range(11, 3 * PAGE + 1))
    ahead = house.stream(start=10**9)  # of another journal, perhaps
    await house.journal.record([new_event()])
    assert await take(ahead, 1) == [3 * PAGE + 1]


async def test_only_what_fits(house: House, new_event: MakeEvent, autojump_clock: MockClock) -> None:
    stream = house.stream(matching=EventFilter(rooms=("!b*",)))
    await house.journal.record([new_event(room) for room in ("!a:x", "!b:x", "!a:x", "!b2:x", "!a:x")])
    assert await take(stream, 2) == [2, 4]
    await nothing_comes(stream)


async def test_a_name_is_acknowledged_by_taking_the_next(
    house: House, new_event: MakeEvent, autojump_clock: MockClock
) -> None:
    """Left at any point, in or out of a block, the next one begins with what was not acknowledged."""
    async with house.stream("archive") as stream:
        await house.journal.record([new_event() for _ in range(5)])
        assert await take(stream, 2) == [1, 2]
    assert await take(house.stream("archive"), 2) == [2, 3]
    stream = house.stream("archive")
    assert await take(stream, 1) == [3]
    await stream.ack()
    await stream.ack()  # again is harmless
    assert await take(house.stream("archive"), 2) == [4, 5]
    assert await take(house.stream("other", start=0), 1) == [1]


@pytest.mark.parametrize("name", ["archive", None])
async def test_what_was_read_ahead_is_there_after_the_block(
    house: House, new_event: MakeEvent, autojump_clock: MockClock, name: str | None
) -> None:
    """To acknowledge then acknowledges what was taken, and to go on, in a block or not, goes on with the next."""
    stream = house.stream(name, start=0)
    await house.journal.record([new_event() for _ in range(5)])
    async with stream:
        assert await take(stream, 1) == [1]
    await stream.ack()
    assert name is None or house.cursor(name).floor == 1
    async with stream:
        assert await take(stream, 2) == [2, 3]
    assert await take(stream, 2) == [4, 5]
    await nothing_comes(stream)
    assert house.redelivered == [0] * 5
    assert name is None or house.cursor(name).floor == 5


async def test_a_loop(house: House, new_event: MakeEvent, autojump_clock: MockClock) -> None:
    seen = []
    await house.journal.record([new_event() for _ in range(5)])
    async for event in house.stream("archive", start=0):
        seen.append(event.seq)
        if event.seq == 5:
            break
    assert seen == [1, 2, 3, 4, 5]


async def test_what_does_not_fit_is_acknowledged_along(
    house: House, new_event: MakeEvent, autojump_clock: MockClock
) -> None:
    """Else it would keep its place, and be looked at again."""
    matching = EventFilter(rooms=("!b:x",))
    async with house.stream("archive", matching=matching) as stream:
        await house.journal.record([new_event(room) for room in ("!a:x", "!b:x", "!a:x", "!a:x")])
        assert await take(stream, 1) == [2]
        await stream.ack()
    assert house.cursor("archive").floor == 4


async def test_what_was_acknowledged_elsewhere_is_not_given(
    house: House, new_event: MakeEvent, autojump_clock: MockClock
) -> None:
    stream = house.stream("archive")
    await house.journal.record([new_event() for _ in range(3)])
    async with stream:
        await house.cursor("archive").ack(2)
        assert await take(stream, 2) == [1, 3]


async def test_the_newest_of_a_name_has_it(house: House, new_event: MakeEvent, autojump_clock: MockClock) -> None:
    first = house.stream("archive")
    await house.journal.record([new_event() for _ in range(3)])
    assert await take(first, 1) == [1]
    second = house.stream("archive")
    assert await take(second, 1) == [1]
    for step in (partial(anext, first), first.ack):
        with pytest.raises(ArmorclawError, match="archive") as caught:
            await step()
        assert (caught.value.name, caught.value.why) == ("conflict", "another stream took over")
    assert await take(second, 2) == [2, 3]


async def test_a_connection_has_it(house: House, new_event: MakeEvent, autojump_clock: MockClock) -> None:
    stream = house.stream("archive")
    await house.journal.record([new_event()])
    assert await take(stream, 1) == [1]
    house.cursor("archive").holder = object()  # type: ignore[assignment]
    for each in (stream, house.stream("archive")):
        with pytest.raises(ArmorclawError, match="archive") as caught:
            await anext(each)
        assert caught.value.why == "its events are being pushed to a connection"


async def test_what_is_refused_meanwhile_is_not_passed_over(
    house: House, new_event: MakeEvent, autojump_clock: MockClock
) -> None:
    stream = house.stream("archive", start=0)
    await house.journal.record([new_event() for _ in range(3)])
    assert await take(stream, 1) == [1]
    await stream.ack()
    house.cursor("archive").holder = object()  # type: ignore[assignment]
    with pytest.raises(ArmorclawError):
        await anext(stream)
    house.cursor("archive").holder = None  # the connection has ended, with nothing acknowledged
    assert await take(stream, 2) == [2, 3]


async def test_who_reads_what_is_forgotten_meanwhile_acknowledges_nothing_of_the_new_one(
    house: House, new_event: MakeEvent, autojump_clock: MockClock
) -> None:
    stream = house.stream("archive", start=0)
    await house.journal.record([new_event() for _ in range(3)])
    assert await take(stream, 2) == [1, 2]
    await house.cursor("archive").forget(None)
    await house.cursor("archive").load(None, 0)
    for step in (stream.ack, partial(anext, stream)):
        with pytest.raises(ArmorclawError, match="archive") as caught:
            await step()
        assert (caught.value.name, caught.value.why) == ("conflict", "its name was forgotten")
    assert await take(house.stream("archive"), 3) == [1, 2, 3]


@pytest.mark.parametrize("name", ["archive", None])
async def test_what_was_deleted_leaves_a_gap(
    house: House, inline_db: InlineDatabase, new_event: MakeEvent, autojump_clock: MockClock, name: str | None
) -> None:
    await house.journal.record([new_event() for _ in range(6)])
    if name is not None:
        await house.cursor(name).load(None, 1)
    inline_db.conn.execute("DELETE FROM journal WHERE seq <= 4")
    inline_db.conn.execute("UPDATE trimmed SET seq = 4")
    stream = house.stream(name, start=1)
    gap = await anext(stream)
    assert (gap.type, gap.seq, gap.severity) == ("gap", 4, "warning")
    assert gap.plain()["content"] == {"from": 2, "to": 4, "reason": "retention"}
    assert await take(stream, 2) == [5, 6]
    if name is not None:
        assert house.cursor(name).floor == 5


async def test_a_store_that_is_away_is_waited_for(
    house: House, inline_db: InlineDatabase, new_event: MakeEvent, autojump_clock: MockClock
) -> None:
    await house.journal.record([new_event(), new_event()])
    stream = house.stream("archive", start=0)
    inline_db.down = True
    seqs: list[int] = []

    async def read() -> None:
        seqs.extend(await take(stream, 1))
        inline_db.down = True
        seqs.extend(await take(stream, 1))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(read)
        for _ in range(2):
            await trio.sleep(1)
            inline_db.down = False
    assert seqs == [1, 2]


async def test_while_it_waits_for_the_store_somebody_may_take_over(
    house: House, inline_db: InlineDatabase, new_event: MakeEvent, autojump_clock: MockClock
) -> None:
    """Who has another filter, perhaps, and wants what was passed over here."""
    stream = house.stream("archive", start=0, matching=EventFilter(rooms=("!a:x",)))
    await house.journal.record([new_event(room) for room in ("!a:x", "!b:x")])
    assert await take(stream, 1) == [1]
    inline_db.down = True
    async with trio.open_nursery() as nursery:

        async def ack() -> None:
            with pytest.raises(ArmorclawError) as caught:
                await stream.ack()
            assert caught.value.why == "its events are being pushed to a connection"

        nursery.start_soon(ack)
        await trio.testing.wait_all_tasks_blocked()
        inline_db.down = False
        house.cursor("archive").holder = object()  # type: ignore[assignment]
    assert house.cursor("archive").floor == 0


async def test_cancelled_it_goes_on_where_it_was(
    house: House, new_event: MakeEvent, autojump_clock: MockClock
) -> None:
    stream = house.stream("archive", start=0)
    await house.journal.record([new_event(), new_event()])
    assert await take(stream, 1) == [1]
    with trio.CancelScope() as scope:
        scope.cancel()
        await anext(stream)
    assert await take(stream, 1) == [2]


async def test_nothing_is_written_without_a_name(
    house: House, inline_db: InlineDatabase, new_event: MakeEvent, autojump_clock: MockClock
) -> None:
    stream: Any = house.stream()
    await house.journal.record([new_event() for _ in range(3)])
    before = inline_db.writes
    assert await take(stream, 3) == [1, 2, 3]
    await stream.ack()
    assert inline_db.writes == before


async def test_what_comes_again_says_so(house: House, new_event: MakeEvent) -> None:
    await house.cursor("work").load(None, "now")
    await house.journal.record([new_event() for _ in range(3)])
    assert await take(house.stream("work"), 2) == [1, 2]
    assert await take(house.stream("work"), 2) == [2, 3]
    assert await take(house.stream(start=0), 2) == [1, 2]
    assert house.redelivered == [0, 0, 1, 0, 0, 0]
