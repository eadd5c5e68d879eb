"""What waits for an agent: the events in its hands, and those for which one that sleeps is woken."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from armorclaw.clock import Surroundings
from armorclaw.config import EventsSection
from armorclaw.errors import ArmorclawError
from armorclaw.events.durable.dead_letters import DeadLetters
from armorclaw.events.event import Event
from armorclaw.events.journal import Journal
from armorclaw.events.subscriptions import MAIN, Subscriptions
from armorclaw.events.work import AgentWork, wakes
from armorclaw.guard.grants import Grants
from armorclaw.store import Database

MINE, OTHERS = "!mine:x", "!others:x"


def allowed(event: Event) -> bool:
    return event.room_id == MINE


class Place:
    """Everything for one agent that has been known for a while."""

    def __init__(self, db: Database, new_event: Callable[..., Event]) -> None:
        self.journal = Journal(db)
        self.subscriptions = Subscriptions(db, self.journal, Surroundings())
        self._new_event = new_event

    async def publish(self, room: str = MINE, count: int = 1) -> list[int]:
        return [event.seq for event in await self.journal.record([self._new_event(room) for _ in range(count)])]


@pytest.fixture
async def place(db: Database, new_event: Callable[..., Event]) -> Place:
    made = Place(db, new_event)
    await made.subscriptions.ensure("ada", MAIN)
    return made


async def test_what_is_in_its_hands(place: Place, new_sink: Any, autojump_clock: trio.testing.MockClock) -> None:
    subscriptions = place.subscriptions
    assert subscriptions.unsettled("ada") == (0, None)
    assert subscriptions.unsettled("nobody") == (0, None)
    async with trio.open_nursery() as nursery:
        subscription = subscriptions.open("ada", MAIN, None, "now", allowed, new_sink())
        await nursery.start(subscription.run)
        assert subscriptions.unsettled("ada") == (0, None)
        began = trio.current_time()
        (first,) = await place.publish()
        await trio.sleep(5)
        second, third = await place.publish(count=2)
        await trio.testing.wait_all_tasks_blocked()
        assert subscriptions.unsettled("ada") == (3, began)
        await subscription.ack(first)
        assert subscriptions.unsettled("ada") == (2, began + 5)
        await subscription.nack(second, 1000)
        assert subscriptions.unsettled("ada") == (1, began + 5)
        await trio.sleep(2)
        assert subscriptions.unsettled("ada") == (2, began + 5)  # given once more, behind the other
        await subscription.ack(third)
        assert subscriptions.unsettled("ada") == (1, began + 6)
        subscription.close("gone")
    assert subscriptions.unsettled("ada") == (0, None)


async def test_what_a_poller_took_is_in_its_hands(place: Place, autojump_clock: trio.testing.MockClock) -> None:
    began = trio.current_time()
    await place.publish(count=2)
    await place.subscriptions.take("ada", 10, allowed=allowed)
    await trio.sleep(1)
    assert place.subscriptions.unsettled("ada") == (2, began)
    await place.subscriptions.take("ada", 10, allowed=allowed)
    assert place.subscriptions.unsettled("ada") == (0, None)


async def test_an_event_that_waits_is_work_at_once(place: Place) -> None:
    assert not await place.subscriptions.has_work("ada", allowed=allowed)
    (seq,) = await place.publish()
    assert await place.subscriptions.has_work("ada", allowed=allowed)
    with trio.fail_after(5):
        await place.subscriptions.until_work("ada", allowed=allowed)
    await place.subscriptions.ack("ada", MAIN, seq)
    assert not await place.subscriptions.has_work("ada", allowed=allowed)


async def test_events_of_others_are_none_of_its_work(place: Place) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(place.subscriptions.until_work, "ada", allowed=allowed))
        await trio.testing.wait_all_tasks_blocked()
        await place.publish(OTHERS, 500)
        await trio.testing.wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 1
        await place.publish()
        await trio.testing.wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 0


async def test_a_store_that_does_not_answer_is_waited_for(
    place: Place, monkeypatch: pytest.MonkeyPatch, autojump_clock: trio.testing.MockClock
) -> None:
    after, failures = place.journal.after, [ArmorclawError("storage_failed", "away")] * 20

    async def fails(*args: Any) -> Any:
        if failures:
            await trio.lowlevel.checkpoint()
            raise failures.pop()
        return await after(*args)

    monkeypatch.setattr(place.journal, "after", fails)
    await place.publish()
    with trio.fail_after(200):
        await place.subscriptions.until_work("ada", allowed=allowed)
    assert failures == []


async def test_cancelled_it_leaves_nothing(place: Place) -> None:
    with trio.move_on_after(0.01) as scope:
        await place.subscriptions.until_work("ada", allowed=allowed)
    assert scope.cancelled_caught
    (seq,) = await place.publish()
    assert [event.seq for event in await place.subscriptions.take("ada", 10, allowed=allowed)] == [seq]


steps = st.lists(
    st.tuples(
        st.sampled_from(("publish", "publish", "foreign", "connect", "disconnect", "ack", "nack", "pass", "sleep")),
        st.integers(0, 3),
    ),
    max_size=30,
)


@settings(max_examples=150)
@given(before=steps, during=steps)
def test_no_wake_up_is_lost(
    before: list[tuple[str, int]],
    during: list[tuple[str, int]],
    new_inline_db: Callable[[], Any],
    new_event: Any,
    new_sink: Any,
) -> None:
    """Whatever went on before, and whenever events come: it returns exactly when one waits that is not settled."""

    async def main() -> None:
        db = new_inline_db()
        place = Place(db, new_event)
        await place.subscriptions.ensure("ada", MAIN)
        wanted: set[int] = set()
        settled: set[int] = set()
        held: list[int] = []
        async with trio.open_nursery() as nursery:
            subscription: Any = None

            async def do(word: str, number: int, *, awake: bool) -> None:
                nonlocal subscription
                if word in ("publish", "foreign"):
                    new = await place.publish(MINE if word == "publish" else OTHERS, number + 1)
                    wanted.update(new if word == "publish" else ())
                elif word == "pass":
                    for _ in range(number):
                        await trio.lowlevel.checkpoint()
                elif not awake:
                    pass
                elif word == "connect":
                    if subscription is not None:
                        subscription.close("another")
                    held.clear()
                    sink = new_sink(lambda pushed: held.append(pushed.seq) if pushed.method == "event" else None)
                    subscription = place.subscriptions.open("ada", MAIN, None, "now", allowed, sink)
                    await nursery.start(subscription.run)
                elif word == "disconnect" and subscription is not None:
                    subscription.close("gone")
                    subscription = None
                elif word == "ack" and subscription is not None and held:
                    seq = held[number % len(held)]
                    await subscription.ack(seq)
                    settled.add(seq)
                elif word == "nack" and subscription is not None and held:
                    seq = held[number % len(held)]
                    if seq not in settled:
                        await subscription.nack(seq, 1000)

            for word, number in before:
                await do(word, number, awake=True)
            done = trio.Event()

            async def wait() -> None:
                await place.subscriptions.until_work("ada", allowed=allowed)
                done.set()

            if subscription is not None:
                subscription.close("it sleeps")
            nursery.start_soon(wait)
            for word, number in during:
                await do(word, number, awake=False)
            await trio.testing.wait_all_tasks_blocked()
            assert done.is_set() is bool(wanted - settled)
            nursery.cancel_scope.cancel(reason="seen")
        db.close()

    trio.run(main)


@pytest.mark.parametrize(
    ("where", "is_work"),
    [
        ({"room": MINE}, True),
        ({"room": OTHERS}, False),
        ({"room": None, "type": "config.attached", "agent": "ada"}, True),
        ({"room": None, "type": "agent.ended", "agent": "ada"}, False),
        ({"room": None, "type": "alert", "agent": "ada"}, False),
        ({"room": None, "type": "agent.ended", "agent": "bob"}, False),
    ],
)
def test_what_wakes(where: dict[str, Any], is_work: bool, new_event: Callable[..., Event]) -> None:
    """That it was put to sleep does not."""
    grants = Grants()
    grants.set("ada", "main", [MINE])
    assert wakes(grants, "ada", new_event(where.pop("room"), **where)) is is_work


async def test_the_work_of_an_agent(place: Place, new_event: Callable[..., Event]) -> None:
    grants = Grants()
    grants.set("ada", "main", [MINE])
    work = AgentWork(place.subscriptions, grants)
    await work.ensure("ada", MAIN)
    assert not await work.has_work("ada")
    assert work.unsettled("ada") == (0, None)
    await place.publish()
    assert await work.has_work("ada")
    await work.until_work("ada")


async def test_who_answers_for_events_works(place: Place) -> None:
    worked: list[str] = []
    place.subscriptions.on_work = worked.append
    await place.publish()
    await place.subscriptions.take("ada", 10, allowed=allowed)
    assert worked == []  # it was given something, and has done nothing yet
    await place.subscriptions.take("ada", 10, allowed=allowed)
    assert worked == ["ada"]


@pytest.mark.parametrize("type_", ["delivery", "gap", "alert", "agent.expired", "app.done"])
def test_news_of_its_own_is_no_reason_to_wake_up(type_: str) -> None:
    grants = Grants()
    grants.set("ada", "main", [MINE])
    assert not wakes(grants, "ada", Event.make(type_, {}, at_ms=1, agent="ada"))
    assert wakes(grants, "ada", Event.make("agentic", {}, at_ms=1, agent="ada"))
    assert wakes(grants, "ada", Event.make("m.room.message", {}, at_ms=1, account="main", room_id=MINE))


async def test_an_event_that_is_owed_again_is_work(
    db: Database, new_event: Callable[..., Event], autojump_clock: trio.testing.MockClock
) -> None:
    journal = Journal(db)
    dead = DeadLetters(db, journal)
    subscriptions = Subscriptions(db, journal, Surroundings(), EventsSection(), dead)
    await subscriptions.ensure("ada", MAIN)
    (event,) = await journal.record([new_event(MINE)])
    row = ("ada", MAIN, event.seq, 0, 5, 5, "lost")
    sql = "INSERT INTO dead_letters (owner, name, seq, at_ms, given, lost, reason) VALUES (?, ?, ?, ?, ?, ?, ?)"
    await db.write(lambda conn: conn.execute(sql, row).rowcount)
    await subscriptions.ack("ada", MAIN, event.seq)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(subscriptions.until_work, "ada", allowed=allowed))
        await trio.sleep(60)
        assert len(nursery.child_tasks) == 1
        await subscriptions.give_again("ada", MAIN, event.seq)
        await trio.testing.wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 0
    assert await subscriptions.has_work("ada", allowed=allowed)
    with pytest.raises(ArmorclawError) as caught:
        await subscriptions.give_again("ada", MAIN, 99)
    assert caught.value.name == "not_found"


async def test_owed_again_while_it_is_looked_for_others_is_work(
    db: Database, new_event: Callable[..., Event], monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(db)
    subscriptions = Subscriptions(db, journal, Surroundings(), EventsSection(), DeadLetters(db, journal))
    await subscriptions.ensure("ada", MAIN)
    (event,) = await journal.record([new_event(MINE)])
    row = ("ada", MAIN, event.seq, 0, 5, 5, "lost")
    sql = "INSERT INTO dead_letters (owner, name, seq, at_ms, given, lost, reason) VALUES (?, ?, ?, ?, ?, ?, ?)"
    await db.write(lambda conn: conn.execute(sql, row).rowcount)
    await subscriptions.ack("ada", MAIN, event.seq)
    after, meanwhile = journal.after, False

    async def slow(*args: Any) -> Any:
        page = await after(*args)
        if meanwhile:
            await subscriptions.give_again("ada", MAIN, event.seq)
        return page

    monkeypatch.setattr(journal, "after", slow)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(subscriptions.until_work, "ada", allowed=allowed))
        await trio.testing.wait_all_tasks_blocked()
        meanwhile = True
        await journal.record([new_event(OTHERS)])  # it looks what that is
        await trio.testing.wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 0
        nursery.cancel_scope.cancel(reason="seen")


async def test_nobody_is_woken_while_the_bridge_ends(place: Place) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(place.subscriptions.until_work, "ada", allowed=allowed))
        await trio.testing.wait_all_tasks_blocked()
        place.subscriptions.hold_all()
        await place.publish()
        nursery.start_soon(partial(place.subscriptions.until_work, "ada", allowed=allowed))
        await trio.testing.wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 2
        place.subscriptions.release_all()
        await trio.testing.wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 0


async def test_nor_if_it_begins_to_end_while_work_is_looked_for(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    after = place.journal.after

    async def slow(*args: Any) -> Any:
        page = await after(*args)
        place.subscriptions.hold_all()
        return page

    monkeypatch.setattr(place.journal, "after", slow)
    await place.publish()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(place.subscriptions.until_work, "ada", allowed=allowed))
        await trio.testing.wait_all_tasks_blocked()
        assert len(nursery.child_tasks) == 1
        nursery.cancel_scope.cancel(reason="seen")


async def test_what_was_said_before_its_grant_wakes_nobody(place: Place) -> None:
    grants = Grants(lambda: place.journal.known or 0)
    grants.set("ada", "main", [OTHERS])
    work = AgentWork(place.subscriptions, grants)
    await place.publish()
    grants.set("ada", "main", [OTHERS, MINE])
    assert not await work.has_work("ada")
    await place.publish()
    assert await work.has_work("ada")
