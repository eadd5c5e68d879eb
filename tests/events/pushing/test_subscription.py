from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from armorclaw.errors import ArmorclawError
from armorclaw.events.durable import cursor as cursor_module
from armorclaw.events.durable.cursor import CURSORS_LIMIT
from armorclaw.events.event import Event
from armorclaw.events.filter import EventFilter
from armorclaw.events.journal import Journal
from armorclaw.events.pushing import hand as hand_module
from armorclaw.events.pushing.outlet import SLOW_SECONDS
from armorclaw.events.pushing.subscription import FLOOR_LAG, NACK_LIMIT_MS
from armorclaw.events.pushing.window import WINDOW_BYTES, WINDOW_EVENTS
from armorclaw.rpc.outgoing import WRITE_DEADLINE
from tests.events.world import World

Make = Callable[..., Any]
settle = trio.testing.wait_all_tasks_blocked


@pytest.mark.mission("P1.1")
async def test_who_keeps_up_is_pushed_to_without_a_look_into_the_store(world: World) -> None:
    subscription, sink = await world.connect()
    assert subscription.position == 0
    reads, writes = world.db.reads, world.db.writes
    await world.publish(2)
    assert sink.seqs == [1, 2]
    assert (world.db.reads, world.db.writes) == (reads, writes + 1)
    assert [one.redelivered for one in sink.pushed] == [0, 0]
    assert sink.pushed[0].params["subscription"] == "main"
    assert sink.pushed[0].params["content"]["body"] == "hello"


async def test_a_batch_of_acknowledgements_moves_the_floor(world: World) -> None:
    subscription, _ = await world.connect()
    await world.publish(4)
    await subscription.ack(3)
    assert world.rows() == (0, [3])
    await subscription.ack(1)
    assert world.rows() == (1, [3])
    await subscription.ack(2)
    assert world.rows() == (3, [])
    await subscription.ack(2)  # again
    await subscription.ack(4)
    assert world.rows() == (4, [])


async def test_the_floor_passes_over_what_is_not_for_this_subscriber(world: World) -> None:
    subscription, sink = await world.connect(allowed=lambda event: event.room_id == "!a:x")
    await world.publish(3, "!b:x")
    await world.publish(1)
    await world.publish(2, "!b:x")
    assert sink.seqs == [4]
    await subscription.ack(4)
    assert world.rows() == (6, [])


async def test_a_cumulative_acknowledgement_settles_all_below(world: World) -> None:
    subscription, _sink = await world.connect()
    await world.publish(5)
    await subscription.ack(3, cumulative=True)
    assert world.rows() == (3, [])
    _, again = await world.connect()
    await settle()
    assert again.seqs == [4, 5]


async def test_what_was_not_acknowledged_comes_again_on_the_next_connection(world: World) -> None:
    first, sink = await world.connect()
    await world.publish(3)
    await first.ack(2)
    await world.disconnect(first)
    await world.publish(1)  # while nobody is connected
    _, again = await world.connect()
    await settle()
    assert sink.seqs == [1, 2, 3]
    assert [(one.seq, one.redelivered) for one in again.pushed] == [(1, 1), (3, 1), (4, 0)]


async def test_a_restart_of_the_bridge_keeps_the_cursor(world: World) -> None:
    subscription, _ = await world.connect()
    await world.publish(3)
    await subscription.ack(1)
    await subscription.ack(3)
    _, sink = await world.restart().connect()
    await settle()
    assert sink.seqs == [2]


async def test_a_cursor_keeps_events_before_its_owner_first_connects(world: World) -> None:
    await world.publish(1)
    await world.subscriptions.ensure("echo", "main")
    await world.publish(2)
    _, sink = await world.connect()
    await settle()
    assert sink.seqs == [2, 3]


@pytest.mark.parametrize("start, expected", [("now", []), (0, [1, 2, 3]), (2, [3]), (99, []), (-1, [1, 2, 3])])
@pytest.mark.parametrize("name", ["main", None])
async def test_where_a_new_subscription_starts(
    world: World, name: str | None, start: Any, expected: list[int]
) -> None:
    await world.publish(3)
    _, sink = await world.connect(name, start=start)
    await settle()
    assert sink.seqs == expected
    await world.publish(1)
    assert sink.seqs == [*expected, 4]


async def test_owners_do_not_meet(world: World) -> None:
    _, one = await world.connect(owner="one")
    _, two = await world.connect(owner="two")
    await world.publish(1)
    assert one.seqs == two.seqs == [1]


async def test_the_newer_connection_takes_over_and_the_older_is_told(world: World) -> None:
    older, sink = await world.connect()
    await world.publish(1)
    newer, other = await world.connect()
    await settle()
    assert older.closed_because == "another connection took over"
    assert sink.pushed[-1].method == "events.closed"
    assert sink.pushed[-1].params == {"subscription": "main", "reason": "another connection took over", "cursor": 1}
    await world.publish(1)
    assert sink.seqs == [1]
    assert other.seqs == [1, 2]
    await older.ack(1)  # late, yet a fact
    await newer.ack(2)
    assert world.rows() == (2, [])


async def test_subscribing_again_on_the_same_connection_is_quiet(world: World) -> None:
    _, sink = await world.connect()
    await world.connect(sink=sink)
    await settle()
    assert sink.pushed == []
    await world.publish(1)
    assert sink.seqs == [1]


async def test_a_full_window_holds_new_events_back_until_acknowledgements_come(world: World) -> None:
    subscription, sink = await world.connect()
    await world.publish(WINDOW_EVENTS + 10)
    await settle()
    assert sink.seqs == list(range(1, WINDOW_EVENTS + 1))
    await subscription.ack(40)
    await settle()
    assert sink.seqs[-1] == WINDOW_EVENTS + 1
    await subscription.ack(WINDOW_EVENTS, cumulative=True)
    await settle()
    assert sink.seqs == list(range(1, WINDOW_EVENTS + 11))
    await subscription.ack(WINDOW_EVENTS + 10, cumulative=True)
    reads = world.db.reads
    await world.publish(1)
    assert sink.seqs[-1] == WINDOW_EVENTS + 11  # live again
    assert world.db.reads == reads


async def test_the_window_is_bounded_in_bytes_but_takes_one_event_of_any_size(world: World) -> None:
    subscription, sink = await world.connect()
    await world.publish(3, body="x" * (WINDOW_BYTES // 2))
    await settle()
    assert sink.seqs == [1, 2]
    await subscription.ack(1)
    await settle()
    assert sink.seqs == [1, 2, 3]


async def test_reading_a_backlog_costs_one_look_into_the_store_per_window(world: World) -> None:
    await world.publish(10 * WINDOW_EVENTS)
    reads = world.db.reads
    subscription, sink = await world.connect(start=0)
    for seq in range(1, 10 * WINDOW_EVENTS + 1):
        await settle()
        assert sink.seqs[-1] >= seq
        await subscription.ack(seq)
    assert world.db.reads - reads <= 12


async def test_a_slow_reader_gets_everything_when_it_reads_again(world: World) -> None:
    subscription, sink = await world.connect(None)
    other, brisk = await world.connect(None)
    sink.pause()
    await world.publish(3 * WINDOW_EVENTS)
    await settle()
    assert sink.seqs == []
    assert len(brisk.seqs) == 3 * WINDOW_EVENTS  # the others do not notice
    sink.resume()
    await settle()
    assert sink.seqs == list(range(1, 3 * WINDOW_EVENTS + 1))
    await world.publish(1)
    assert sink.seqs[-1] == subscription.position == other.position == 3 * WINDOW_EVENTS + 1


async def test_a_broken_sink_costs_the_others_nothing(world: World) -> None:
    broken, sink = await world.connect(None)
    sink.broken = True
    _, good = await world.connect(None)
    await world.publish(1)
    await settle()
    assert broken.closed_because == "its sink is broken"
    assert good.seqs == [1]


async def test_what_was_put_off_comes_again_in_time(world: World, autojump_clock: trio.testing.MockClock) -> None:
    subscription, sink = await world.connect()
    await world.publish(2)
    await subscription.nack(1, 5_000)
    started = trio.current_time()
    await trio.sleep(4.9)
    assert sink.seqs == [1, 2]
    await trio.sleep(0.2)
    assert [(one.seq, one.redelivered) for one in sink.pushed] == [(1, 0), (2, 0), (1, 1)]
    assert trio.current_time() - started == pytest.approx(5.1)
    await subscription.ack(1)
    await subscription.ack(2)
    assert world.rows() == (2, [])


async def test_what_is_put_off_once_more_while_it_is_looked_up_waits_again(
    world: World, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    subscription, sink = await world.connect()
    await world.publish(1)
    find = world.journal.find

    async def meanwhile(seqs: list[int]) -> list[Event]:
        monkeypatch.undo()
        await subscription.nack(1, 5_000)
        return await find(seqs)

    monkeypatch.setattr(world.journal, "find", meanwhile)
    await subscription.nack(1, 0)
    await trio.sleep(4.9)
    assert sink.seqs == [1]
    await trio.sleep(0.2)
    assert sink.seqs == [1, 1]


async def test_what_was_put_off_and_then_acknowledged_does_not_come(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    subscription, sink = await world.connect()
    await world.publish(1)
    await subscription.nack(1, 1000)
    await subscription.ack(1)
    await trio.sleep(5)
    assert sink.seqs == [1]


async def test_what_was_put_off_comes_at_once_on_a_new_connection(world: World) -> None:
    subscription, _ = await world.connect()
    await world.publish(1)
    await subscription.nack(1, NACK_LIMIT_MS)
    _, sink = await world.connect()
    await settle()
    assert [(one.seq, one.redelivered) for one in sink.pushed] == [(1, 1)]


async def test_an_event_put_off_makes_room_for_others(world: World, autojump_clock: trio.testing.MockClock) -> None:
    subscription, sink = await world.connect()
    await world.publish(WINDOW_EVENTS + 1)
    await subscription.nack(1, 60_000)
    await settle()
    assert sink.seqs[-1] == WINDOW_EVENTS + 1
    await trio.sleep(61)
    assert sink.seqs.count(1) == 1  # the window is full: it waits
    await subscription.ack(2)
    await settle()
    assert sink.seqs.count(1) == 2


async def test_too_many_put_off_hold_up_what_is_new(
    world: World, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("armorclaw.events.pushing.window.NACKED_LIMIT", 3)
    subscription, sink = await world.connect()
    await world.publish(3)
    for seq in (1, 2, 3):
        await subscription.nack(seq, 10_000)
    await world.publish(1)
    await settle()
    assert sink.seqs == [1, 2, 3]
    await trio.sleep(11)
    assert sink.seqs == [1, 2, 3, 1, 2, 3, 4]


async def test_too_many_acknowledged_above_an_unsettled_one_hold_up_what_is_new(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hand_module, "ACKED_LIMIT", 3)
    subscription, sink = await world.connect()
    await world.publish(4)
    for seq in (2, 3, 4):
        await subscription.ack(seq)
    await world.publish(1)
    await settle()
    assert sink.seqs == [1, 2, 3, 4]
    await subscription.ack(1)
    await settle()
    assert sink.seqs == [1, 2, 3, 4, 5]


async def test_past_that_only_what_is_in_hand_can_be_acknowledged(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cursor_module, "ACKED_LIMIT", 3)
    subscription, sink = await world.connect(allowed=lambda event: event.seq <= 5)
    await world.publish(50)
    assert sink.seqs == [1, 2, 3, 4, 5]
    for seq in (20, 21, 22):  # never given to it, but a fact for all we know
        await subscription.ack(seq)
    for attempt in (subscription.ack(23), world.subscriptions.ack("echo", "main", 24)):
        with pytest.raises(ArmorclawError) as caught:
            await attempt
        assert caught.value.name == "queue_full"
    for seq in (2, 3, 4, 5, 20):  # these it has, or they are known
        await subscription.ack(seq)
    assert len(subscription._cursor.acked) == 7  # type: ignore[union-attr]
    await subscription.ack(1)
    assert subscription._cursor.floor == 50  # type: ignore[union-attr]
    await subscription.ack(30)
    await world.disconnect(subscription)
    await world.publish(9)
    await world.subscriptions.ack("echo", "main", 59, cumulative=True)


async def test_a_filter_that_changes_costs_no_flush_and_one_that_does_not_no_write(world: World) -> None:
    await world.subscriptions.ensure("echo", "main")
    assert (world.db.writes, world.db.durable) == (1, 1)
    for room in ("!a:x", "!a:x", "!b:x", "!b:x", "!a:x"):
        await world.subscriptions.ensure("echo", "main", filter=EventFilter(rooms=(room,)))
    assert (world.db.writes, world.db.durable) == (4, 1)
    again = world.restart()
    await again.subscriptions.ensure("echo", "main", filter=EventFilter(rooms=("!c:x",)))
    assert (world.db.writes, world.db.durable) == (5, 1)


async def test_the_filter_is_not_tried_on_what_is_not_allowed(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[str | None] = []

    def matches(self: EventFilter, event: Event) -> bool:
        tried.append(event.room_id)
        return True

    monkeypatch.setattr(EventFilter, "matches", matches)
    await world.publish(1, "!b:x")
    _, sink = await world.connect(
        None, filter=EventFilter(rooms=("*",)), start=0, allowed=lambda event: event.room_id == "!a:x"
    )
    await world.publish(1, "!b:x")
    await world.publish(1, "!a:x")
    assert sink.seqs == [3]
    assert set(tried) == {"!a:x"}


async def test_what_is_not_allowed_any_more_does_not_come_again(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    granted = True
    subscription, sink = await world.connect(allowed=lambda event: granted)
    await world.publish(1)
    await subscription.nack(1, 1000)
    granted = False
    await trio.sleep(5)
    await world.publish(1)
    assert sink.seqs == [1]
    _, other = await world.connect(allowed=lambda event: granted)
    await settle()
    assert other.seqs == []


async def test_a_filter_narrows_what_policy_allows(world: World) -> None:
    everything = EventFilter(rooms=("*",))
    _, sink = await world.connect(filter=everything, allowed=lambda event: event.room_id == "!a:x")
    await world.publish(1, "!b:x")
    assert sink.seqs == []


async def test_the_filter_is_kept_with_the_name(world: World) -> None:
    only_b = EventFilter(rooms=("!b:x",))
    await world.subscriptions.ensure("echo", "main", filter=only_b)
    await world.publish(1, "!a:x")
    await world.publish(1, "!b:x")
    _, sink = await world.restart().connect(filter=None)
    await settle()
    assert sink.seqs == [2]
    _, sink = await world.connect(filter=EventFilter())
    await settle()
    assert sink.seqs == [1, 2]  # nothing was settled, and the new filter takes both


@pytest.mark.parametrize("seq", [0, -1, 2, 10**15])
@pytest.mark.parametrize("cumulative", [True, False])
async def test_numbers_never_given_out_cannot_be_acknowledged(world: World, seq: int, cumulative: bool) -> None:
    subscription, _ = await world.connect()
    await world.publish(1)
    if seq > 0:
        with pytest.raises(ArmorclawError) as caught:
            await subscription.ack(seq, cumulative=cumulative)
        assert caught.value.name == "invalid_params"
    else:
        await subscription.ack(seq, cumulative=cumulative)  # below the floor: long settled
    assert world.rows() == (0, [])


async def test_an_acknowledgement_from_before_a_restart_is_taken(world: World) -> None:
    await world.subscriptions.ensure("echo", "main")
    await world.publish(2)
    new = world.restart()
    sink = new.new_sink()
    sink.pause()
    subscription, _ = await new.connect(sink=sink)
    await subscription.ack(2)
    sink.resume()
    await settle()
    assert sink.seqs == [1]


@pytest.mark.parametrize("delay_ms", [-1, NACK_LIMIT_MS + 1])
async def test_delays_have_a_range(world: World, delay_ms: int) -> None:
    subscription, _ = await world.connect()
    await world.publish(1)
    with pytest.raises(ArmorclawError, match="nack_ms"):
        await subscription.nack(1, delay_ms)


async def test_only_what_is_in_hand_can_be_put_off(world: World) -> None:
    subscription, _ = await world.connect()
    await world.publish(1)
    await subscription.ack(1)
    with pytest.raises(ArmorclawError) as caught:
        await subscription.nack(1, 0)
    assert caught.value.name == "not_found"


async def test_an_ephemeral_subscription_writes_nothing_and_acknowledges_nothing(world: World) -> None:
    writes = world.db.writes
    subscription, sink = await world.connect(None)
    assert world.db.writes == writes
    assert subscription.id.startswith("#")
    await world.publish(WINDOW_EVENTS * 2)
    assert len(sink.seqs) == WINDOW_EVENTS * 2  # no window
    for attempt in (subscription.ack(1), subscription.nack(1, 0)):
        with pytest.raises(ArmorclawError) as caught:
            await attempt
        assert caught.value.name == "invalid_params"


@pytest.mark.parametrize("name", ["", "#1", "a b", "x" * 65, "é", "../x", "-a"])
async def test_odd_names_are_refused(world: World, name: str) -> None:
    with pytest.raises(ArmorclawError) as caught:
        await world.subscriptions.ensure("echo", name)
    assert caught.value.name == "invalid_params"


async def test_an_owner_has_a_limited_number_of_names(world: World) -> None:
    for number in range(CURSORS_LIMIT):
        await world.subscriptions.ensure("echo", f"n{number}")
    with pytest.raises(ArmorclawError) as caught:
        await world.connect("more")
    assert caught.value.name == "conflict"
    await world.subscriptions.ensure("other", "more")
    await world.connect("n0")


async def test_events_wait_for_the_store_to_come_back(world: World, autojump_clock: trio.testing.MockClock) -> None:
    _subscription, sink = await world.connect()
    sink.pause()
    await world.publish(1)
    await settle()
    world.db.down = True
    sink.resume()
    await trio.sleep(30)
    assert sink.seqs == []
    world.db.down = False
    await trio.sleep(6)
    assert sink.seqs == [1]


async def test_a_store_that_is_down_keeps_a_subscription_from_starting(world: World) -> None:
    world.db.down = True
    with pytest.raises(ArmorclawError) as caught:
        await world.connect()
    assert caught.value.name == "unavailable"


async def test_an_acknowledgement_that_fails_counts_for_nothing(world: World) -> None:
    subscription, _ = await world.connect()
    await world.publish(1)
    world.db.down = True
    with pytest.raises(ArmorclawError):
        await subscription.ack(1)
    world.db.down = False
    _, sink = await world.connect()
    await settle()
    assert sink.seqs == [1]


async def test_an_idle_floor_follows_events_meant_for_others(world: World) -> None:
    await world.connect(allowed=lambda event: False)
    await world.publish(FLOOR_LAG - 1)
    await settle()
    assert world.rows() == (0, [])
    await world.publish(1)
    await settle()
    assert world.rows() == (FLOOR_LAG, [])


async def test_no_event_is_missed_between_catching_up_and_being_live(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A commit that comes between reading the last page and looking at it."""
    await world.publish(1)
    world = world.restart()
    after = Journal.after
    late = 2

    async def and_then_one_more(journal: Journal, *args: Any) -> Any:
        nonlocal late
        page = await after(journal, *args)
        if late:
            late -= 1
            await world.journal.record([world.new_event()])
        return page

    monkeypatch.setattr(Journal, "after", and_then_one_more)
    _, sink = await world.connect(start=0)
    await settle()
    assert sink.seqs == [1, 2, 3]
    await world.publish(1)
    assert sink.seqs == [1, 2, 3, 4]


async def test_held_nothing_is_pushed_until_released(world: World) -> None:
    await world.publish(1)
    sink = world.new_sink()
    subscription = world.subscriptions.open("echo", "main", None, 0, lambda event: True, sink)
    subscription.hold()
    await world.nursery.start(subscription.run)
    await world.publish(1)
    await settle()
    assert sink.seqs == []
    subscription.release()
    await settle()
    assert sink.seqs == [1, 2]


async def test_closed_nothing_is_pushed_any_more(world: World) -> None:
    subscription, sink = await world.connect()
    sink.pause()
    await world.publish(1)
    await settle()
    sink.resume()  # its task is about to push
    subscription.close("unsubscribed")
    await settle()
    assert sink.pushed == []


async def test_a_cut_connection_leaves_nothing_behind(world: World) -> None:
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            subscription = world.subscriptions.open("echo", "main", None, "now", lambda _: True, world.new_sink())
            await nursery.start(subscription.run)
            scope.cancel(reason="the connection is cut")
    await world.publish(1)
    assert world.subscriptions.open_count == 0


# --- slow readers ---


async def test_who_has_no_room_for_too_long_is_cut_and_told_where_to_go_on(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    subscription, sink = await world.connect(None)
    _, brisk = await world.connect(None)
    await world.publish(2)
    sink.pause()
    await world.publish(1)
    await trio.sleep(SLOW_SECONDS - 0.1)
    assert sink.seqs == [1, 2]
    assert sink.pushed[-1].method == "event"
    await trio.sleep(0.2)
    assert subscription.closed_because == "too slow: for 10 seconds it had no room"
    assert sink.pushed[-1].method == "events.closed"
    assert sink.pushed[-1].params["cursor"] == 2
    assert brisk.seqs == [1, 2, 3]
    _, again = await world.connect(None, start=2)
    await settle()
    assert again.seqs == [3]


async def test_who_has_no_room_and_needs_none_is_not_cut(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    subscription, sink = await world.connect(None)
    sink.pause()
    await trio.sleep(100 * SLOW_SECONDS)
    for _ in range(3):
        sink.pause()
        await world.publish(1)
        await trio.sleep(SLOW_SECONDS - 1)
        sink.resume()
        await settle()
    assert subscription.closed_because is None
    assert sink.seqs == [1, 2, 3]


async def test_it_is_as_patient_as_the_connection_below() -> None:
    assert SLOW_SECONDS == WRITE_DEADLINE


# --- events that are kept nowhere ---


def passing(world: World, room: str = "!a:x") -> Event:
    event: Event = world.new_event(room, type="typing")
    return event


async def test_an_event_kept_nowhere_goes_to_those_without_a_name(world: World) -> None:
    _, named = await world.connect()
    subscription, sink = await world.connect(None, filter=EventFilter(rooms=("!a:x",)))
    _, deaf = await world.connect(None, allowed=lambda event: False)
    await world.publish(1)
    reads, writes = world.db.reads, world.db.writes
    for room in ("!a:x", "!b:x"):
        world.subscriptions.publish_ephemeral(passing(world, room))
    await settle()
    assert [one.params["type"] for one in sink.pushed] == ["m.room.message", "typing"]
    assert (sink.seqs, named.seqs, deaf.seqs) == ([1, 0], [1], [])
    assert subscription.position == 1
    assert (world.db.reads, world.db.writes) == (reads, writes)


async def test_what_found_no_room_is_counted_and_told_before_anything_else(world: World) -> None:
    subscription, sink = await world.connect(None)
    await world.publish(1)
    sink.pause()
    for _ in range(3):
        subscription.offer_ephemeral([passing(world)])
    await world.publish(1)
    assert sink.seqs == [1]
    sink.resume()
    await settle()
    assert [(one.seq, one.params["type"]) for one in sink.pushed[1:]] == [(1, "gap"), (2, "m.room.message")]
    gap = sink.pushed[1].params
    assert gap["content"] == {"missed": 3, "reason": "slow"}
    assert gap["severity"] == "warning"
    assert subscription.missed == 3
    sink.pause()
    subscription.offer_ephemeral([passing(world)])
    sink.resume()
    subscription.offer_ephemeral([passing(world)])  # before the pump had its turn
    assert [one.params["type"] for one in sink.pushed[3:]] == ["gap", "typing"]
    assert sink.pushed[3].params["content"] == {"missed": 1, "reason": "slow"}
    assert sink.pushed[3].params["id"] != gap["id"]


async def test_what_comes_before_the_answer_to_who_subscribed_is_not_missed(world: World) -> None:
    sink = world.new_sink()
    subscription = world.subscriptions.open("", None, None, "now", lambda event: True, sink)
    subscription.hold()
    await world.nursery.start(subscription.run)
    subscription.offer_ephemeral([passing(world)])
    subscription.release()
    await settle()
    assert sink.pushed == []
    assert subscription.missed == 0


async def test_without_a_name_nothing_is_ever_written(world: World, autojump_clock: trio.testing.MockClock) -> None:
    writes = world.db.writes
    subscription, sink = await world.connect(None, start=0)
    for _ in range(5):
        await world.publish(FLOOR_LAG)
        sink.pause()
        subscription.offer_ephemeral([passing(world)])
        await trio.sleep(1)
        sink.resume()
        await settle()
    await world.disconnect(subscription)
    assert world.db.writes - writes == 5  # the publisher's
