"""Events that were given up: looked at, given again, dropped."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from armorclaw.config import EventsSection
from armorclaw.errors import ArmorclawError
from armorclaw.events.durable import dead_letters as dead_letters_module
from armorclaw.events.filter import EventFilter
from tests.events.world import World, settle


async def bury(world: World, count: int, name: str = "main", owner: str = "echo") -> None:
    """So many new events become dead letters of a subscription."""
    subscription, _ = await world.connect(name, owner=owner)
    for seq in await world.publish(count):
        await subscription.nack(seq, 0)
    await settle()
    assert len(world.deaths) >= count
    await world.disconnect(subscription)


@pytest.fixture
def strict(world: World) -> World:
    """Where each event is given once."""
    return world.restart(EventsSection(max_deliveries=1))


def types(sink: Any) -> list[tuple[int, int]]:
    return [(one.seq, one.redelivered) for one in sink.pushed if one.method == "event"]


async def test_they_are_listed_the_newest_first_with_their_events(strict: World) -> None:
    await bury(strict, 2)
    await bury(strict, 1, "work")
    await bury(strict, 1, owner="other")
    letters = await strict.dead.list("echo")
    assert [(letter.name, letter.seq) for letter in letters] == [("work", 3), ("main", 2), ("main", 1)]
    letter = letters[-1]
    assert (letter.given, letter.lost, letter.reason) == (1, 0, "given 1 times and never acknowledged")
    assert letter.again is False
    assert letter.event is not None
    assert letter.event.seq == 1
    assert len(await strict.dead.list()) == await strict.dead.count() == 4
    assert len(await strict.dead.list(limit=2)) == 2
    assert await strict.dead.count("other") == 1


async def test_one_wanted_again_comes_at_once_to_who_is_connected(strict: World) -> None:
    await bury(strict, 3)
    subscription, sink = await strict.connect(filter=EventFilter(rooms=("!b:x",)))
    assert sink.pushed == []
    await strict.dead.again("echo", "main", 2)
    await strict.dead.again("echo", "main", 2)
    await settle()
    assert types(sink) == [(2, 1)]  # whatever the filter is now
    (letter,) = (letter for letter in await strict.dead.list() if letter.seq == 2)
    assert letter.again
    rows = strict.rows()
    await subscription.ack(2)
    assert [letter.seq for letter in await strict.dead.list()] == [3, 1]
    assert strict.rows() == rows
    await strict.disconnect(subscription)
    _, sink = await strict.connect()
    await settle()
    assert types(sink) == []


async def test_one_wanted_again_waits_for_the_next_connection_over_a_restart(strict: World) -> None:
    await bury(strict, 3)
    await strict.dead.again("echo", "main", 1)
    world = strict.restart()
    await world.publish(1)
    subscription, sink = await world.connect()
    await settle()
    assert types(sink) == [(1, 1)]
    await subscription.ack(1)
    await settle()
    assert types(sink) == [(1, 1), (4, 0)]
    await subscription.ack(4)
    assert world.rows() == (4, [])
    assert [letter.seq for letter in await world.dead.list()] == [3, 2]


async def test_one_wanted_again_holds_no_floor_and_is_given_alone(world: World) -> None:
    world = world.restart(EventsSection(max_deliveries=1))
    await bury(world, 1)
    world = world.restart()
    subscription, sink = await world.connect()
    await world.dead.again("echo", "main", 1)
    await settle()
    (seq,) = await world.publish(1)
    assert types(sink) == [(1, 1)]
    await subscription.nack(1, 3_600_000)
    await settle()
    assert sink.seqs == [1, seq]
    await subscription.ack(seq)
    assert world.rows() == (seq, [])
    await world.disconnect(subscription)
    _, sink = await world.connect()
    await settle()
    assert types(sink) == [(1, 2)]


async def test_a_cumulative_acknowledgement_means_those_in_hand_only(strict: World) -> None:
    await bury(strict, 2)
    world = strict.restart()
    subscription, sink = await world.connect()
    await world.dead.again("echo", "main", 1)
    await settle()
    (seq,) = await world.publish(1)
    assert sink.seqs == [1]
    await subscription.ack(2, cumulative=True)
    await settle()
    assert sink.seqs == [1, seq]
    assert [letter.seq for letter in await world.dead.list()] == [2]


async def test_one_that_fails_again_is_a_dead_letter_again(
    strict: World, autojump_clock: trio.testing.MockClock
) -> None:
    await bury(strict, 1)
    world = strict.restart(EventsSection(max_lost=2))
    await world.dead.again("echo", "main", 1)
    for _ in range(2):
        subscription, sink = await world.connect()
        await settle()
        assert sink.seqs == [1]
        await world.crash(subscription)
    assert world.deaths == []
    _, sink = await world.connect()
    await settle()
    assert sink.seqs == []
    assert [death[2:5] for death in world.deaths] == [(1, 3, 2)]
    (letter,) = await world.dead.list()
    assert (letter.given, letter.lost, letter.again) == (3, 2, False)


async def test_its_counts_survive_a_bridge_that_is_killed(strict: World) -> None:
    await bury(strict, 1)
    world = strict.restart()
    await world.dead.again("echo", "main", 1)
    for before in range(1, 6):
        _, sink = await world.connect()
        await settle()
        assert types(sink) == [(1, before)]
        world = world.restart()


async def test_dropped_it_is_gone_wherever_it_is(strict: World) -> None:
    await bury(strict, 2)
    await strict.dead.drop("echo", "main", 1)
    world = strict.restart()
    subscription, sink = await world.connect()
    await world.dead.again("echo", "main", 2)
    await settle()
    await world.dead.drop("echo", "main", 2)
    assert await world.dead.list() == []
    await world.disconnect(subscription)
    _, sink = await world.connect()
    await settle()
    assert sink.seqs == []


async def test_what_is_not_there_cannot_be_wanted(strict: World) -> None:
    await bury(strict, 1)
    for seq in (2, -1):
        for attempt in (strict.dead.again("echo", "main", seq), strict.dead.drop("echo", "main", seq)):
            with pytest.raises(ArmorclawError) as caught:
                await attempt
            assert caught.value.name == "not_found"
    strict.db.conn.execute("DELETE FROM journal")
    with pytest.raises(ArmorclawError, match="deleted") as caught:
        await strict.dead.again("echo", "main", 1)
    assert caught.value.name == "not_found"
    (letter,) = await strict.dead.list()
    assert letter.event is None


async def test_what_is_not_allowed_any_more_is_not_given_again(strict: World) -> None:
    await bury(strict, 1)
    granted = False
    _, sink = await strict.connect(allowed=lambda event: granted)
    await strict.dead.again("echo", "main", 1)
    await settle()
    assert sink.seqs == []
    granted = True
    _, sink = await strict.connect(allowed=lambda event: granted)
    await settle()
    assert sink.seqs == [1]


async def test_there_is_a_limit_and_the_oldest_goes(strict: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dead_letters_module, "DEAD_LIMIT", 3)
    with capture_logs() as logs:
        await bury(strict, 5)
        await bury(strict, 1, "work")
    assert sorted(letter.seq for letter in await strict.dead.list() if letter.name == "main") == [3, 4, 5]
    assert [entry["seq"] for entry in logs if entry["event"].startswith("too many")] == [1, 2]


async def test_who_is_told_and_fails_costs_nothing(strict: World) -> None:
    def broken(*dead: object) -> None:
        strict.deaths.append(("echo", "main", 0, 0, 0, ""))
        raise ZeroDivisionError

    strict.subscriptions.on_dead = broken
    await bury(strict, 1)
    assert await strict.dead.count() == 1
    _, sink = await strict.connect()
    await strict.publish(1)
    assert sink.seqs == [2]


async def test_forgetting_a_name_forgets_its_dead_letters(strict: World) -> None:
    await bury(strict, 1)
    await strict.subscriptions.forget("echo", "main", None)
    assert await strict.dead.count() == 0
    with pytest.raises(ArmorclawError):
        await strict.dead.again("echo", "main", 1)


async def test_one_wanted_again_and_then_deleted_ends_in_a_gap(strict: World) -> None:
    """The gap is told by the very number of the dead letter."""
    await strict.publish(1)
    await strict.subscriptions.ensure("echo", "main", at=0)
    subscription, sink = await strict.connect()
    (seq,) = await strict.publish(1)
    await subscription.nack(seq, 0)
    await settle()
    await strict.dead.again("echo", "main", seq)
    await settle()
    await subscription.nack(seq, 0)
    await settle()
    await strict.dead.again("echo", "main", seq)
    await settle()
    await strict.disconnect(subscription)
    strict.trim(seq)
    strict.db.conn.execute("DELETE FROM dead_letters")
    subscription, sink = await strict.connect()
    await settle()
    assert [(one.seq, one.params["type"]) for one in sink.pushed] == [(seq, "gap")]
    await subscription.ack(seq)
    assert strict.rows() == (seq, [])
    await strict.publish(1)
    assert sink.seqs == [seq, seq + 1]
