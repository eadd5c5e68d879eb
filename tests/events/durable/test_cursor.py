"""How often an event is given, and what is known of that after the worst moment to end."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing

from armorclaw.config import EventsSection
from armorclaw.errors import ArmorclawError
from armorclaw.events.durable.attempts import RESERVE
from armorclaw.events.durable.reading import Seen
from armorclaw.events.pushing.subscription import FLOOR_LAG, Subscription
from armorclaw.events.pushing.window import WINDOW_EVENTS
from tests.events.world import World, settle

DEADLINE = EventsSection().redeliver_after_s


def given(sink: Any) -> list[tuple[int, int]]:
    """Numbers, and how often each was given before."""
    return [(one.seq, one.redelivered) for one in sink.pushed if one.method == "event"]


def reserved(world: World) -> int:
    (number,) = world.db.conn.execute("SELECT reserved FROM subscriptions").fetchone()
    return int(number)


@pytest.mark.mission("P1.1")
async def test_what_is_not_answered_in_time_comes_again_on_the_same_connection(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    subscription, sink = await world.connect()
    await world.publish(1)
    await trio.sleep(DEADLINE / 2)
    await world.publish(1)
    await trio.sleep(DEADLINE / 2 - 0.1)
    assert given(sink) == [(1, 0), (2, 0)]
    await trio.sleep(0.2)
    assert given(sink) == [(1, 0), (2, 0), (1, 1)]
    await subscription.ack(2)
    await trio.sleep(DEADLINE)
    assert given(sink) == [(1, 0), (2, 0), (1, 1), (1, 2)]
    await subscription.ack(1)
    assert world.rows() == (2, [])
    assert world.count("attempts") == 0
    await trio.sleep(3 * DEADLINE)
    assert len(sink.pushed) == 4


async def test_who_is_still_at_it_has_its_time_anew(world: World, autojump_clock: trio.testing.MockClock) -> None:
    subscription, sink = await world.connect()
    await world.publish(2)
    for _ in range(5):
        await trio.sleep(DEADLINE - 1)
        await subscription.working(1)
    assert given(sink)[:2] == [(1, 0), (2, 0)]
    assert {seq for seq, _ in given(sink)[2:]} == {2}
    await subscription.ack(1)
    for seq in (1, 3):
        with pytest.raises(ArmorclawError) as caught:
            await subscription.working(seq)
        assert caught.value.name == "not_found"
    unnamed, _ = await world.connect(None)
    with pytest.raises(ArmorclawError) as caught:
        await unnamed.working(2)
    assert caught.value.name == "invalid_params"


async def test_parts_of_the_bridge_may_take_longer_and_have_no_dead_letters(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    _, sink = await world.connect(owner="@alerts")
    await world.publish(1)
    await trio.sleep(100 * DEADLINE)
    assert given(sink) == [(1, 0)]
    for _ in range(30):
        subscription, sink = await world.connect(owner="@alerts")
        await world.crash(subscription)
    assert given(sink) == [(1, 30)]
    assert world.deaths == []


async def test_to_be_given_for_the_first_time_nothing_waits_for_the_disk(world: World) -> None:
    subscription, sink = await world.connect()
    writes = world.db.writes
    await world.publish(WINDOW_EVENTS)
    assert world.db.writes == writes + 1  # the publisher's
    assert len(sink.pushed) == WINDOW_EVENTS
    for seq in range(1, WINDOW_EVENTS + 1):
        await subscription.ack(seq)
    assert world.db.writes == writes + 1 + WINDOW_EVENTS  # nor does anything else
    assert reserved(world) >= WINDOW_EVENTS + RESERVE  # as acknowledging reserves more


async def test_where_nothing_is_reserved_any_more_it_is_before_anything_is_given(world: World) -> None:
    """Somebody who hears nothing for a long time, amid what is for others."""
    subscription, sink = await world.connect(allowed=lambda event: event.room_id == "!a:x")
    await world.publish(2 * RESERVE // FLOOR_LAG * (FLOOR_LAG - 1), "!b:x")
    world.db.conn.execute("UPDATE subscriptions SET reserved = 1")
    attempts = subscription._cursor.attempts  # type: ignore[union-attr]
    attempts._reserved = 1
    (seq,) = await world.publish(1)
    assert given(sink) == [(seq, 0)]
    assert reserved(world) >= seq


async def test_counts_survive_a_bridge_that_is_killed(world: World) -> None:
    subscription, sink = await world.connect()
    await world.publish(3)
    await subscription.ack(2)
    second, sink = await world.connect()  # takes over: 1 and 3 are lost once
    assert given(sink) == [(1, 1), (3, 1)]
    assert world.count("attempts") == 2
    world = world.restart()  # with both in somebody's hands
    await world.publish(1)
    _, sink = await world.connect()
    await settle()
    # of 4 it is not known whether the old bridge had given it: it was not, but might have been
    assert given(sink) == [(1, 2), (3, 2), (4, 1)]
    await world.publish(1)
    assert given(sink)[3:] == [(5, 0)]
    assert second.closed_because is None


async def test_after_an_orderly_end_what_was_not_given_is_not_marked(world: World) -> None:
    subscription, _ = await world.connect()
    await world.publish(2)
    assert reserved(world) >= RESERVE
    await world.disconnect(subscription)
    assert reserved(world) == 2
    await world.publish(2)
    _, sink = await world.restart().connect()
    await settle()
    assert given(sink) == [(1, 1), (2, 1), (3, 0), (4, 0)]


@pytest.mark.parametrize("moment", ["before commit", "after commit"])
async def test_no_crash_makes_an_event_look_new_that_was_given(world: World, moment: str) -> None:
    """Killed at each commit in turn, in the middle of giving and losing events."""

    class Killed(BaseException):
        pass

    told: dict[int, int] = {}

    def saw(pushed: Any) -> None:
        if pushed.method != "event":
            return
        assert pushed.redelivered >= told.get(pushed.seq, 0), "given before, and nobody knows"
        told[pushed.seq] = told.get(pushed.seq, 0) + 1

    await world.subscriptions.ensure("echo", "main")
    await world.publish(5)
    for point in range(1, 25):
        fresh = world.restart()
        left = point

        def kill(name: str) -> None:
            nonlocal left
            left -= name == moment
            if left <= 0:
                raise Killed

        world.db.point = kill
        try:
            async with trio.open_nursery() as nursery:
                fresh.nursery = nursery
                for _ in range(4):
                    subscription, _ = await fresh.connect(sink=fresh.new_sink(saw))
                    await fresh.publish(1)
                    await subscription.nack(subscription._hand.window.out[0], 0)  # type: ignore[union-attr]
                    await settle()
                nursery.cancel_scope.cancel(reason="not killed this time")
        except* Killed:
            pass
        finally:
            world.db.point = lambda name: None
            if world.db.conn.in_transaction:
                world.db.conn.execute("ROLLBACK")
    assert len(told) > 5


async def lose(world: World, times: int, connect: Callable[[], Any] | None = None) -> list[list[tuple[int, int]]]:
    """What was given on each of so many connections, of which none survives."""
    seen = []
    for _ in range(times):
        subscription, sink = await (connect or world.connect)()
        await settle()
        seen.append(given(sink))
        await world.crash(subscription)
    return seen


async def test_an_event_that_no_reader_survives_is_given_up(world: World) -> None:
    await world.subscriptions.ensure("echo", "main")
    await world.publish(1)
    assert await lose(world, 5) == [[(1, 0)], [(1, 1)], [(1, 2)], [(1, 3)], [(1, 4)]]
    assert world.deaths == []
    _, sink = await world.connect()
    await settle()
    assert given(sink) == []
    assert world.deaths == [("echo", "main", 1, 5, 5, "lost 5 times: its reader ended, or did not answer in time")]
    assert world.rows() == (0, [1])
    assert (world.count("dead_letters"), world.count("attempts")) == (1, 0)
    await world.publish(1)
    assert given(sink) == [(2, 0)]
    _, sink = await world.restart().connect()
    await settle()
    assert [seq for seq, _ in given(sink)] == [2]


async def test_the_counts_for_that_go_on_when_the_bridge_is_killed_in_between(world: World) -> None:
    await world.subscriptions.ensure("echo", "main")
    await world.publish(1)
    await lose(world, 4)
    world = world.restart()
    await lose(world, 1)
    await world.connect()
    await settle()
    assert [death[:4] for death in world.deaths] == [("echo", "main", 1, 5)]


async def test_an_event_put_off_too_often_is_given_up(world: World, autojump_clock: trio.testing.MockClock) -> None:
    world = world.restart(EventsSection(max_deliveries=3))
    subscription, sink = await world.connect()
    await world.publish(2)
    await subscription.ack(2)
    for _ in range(3):
        await subscription.nack(1, 1000)
        await trio.sleep(2)
    assert given(sink) == [(1, 0), (2, 0), (1, 1), (1, 2)]
    assert world.deaths == [("echo", "main", 1, 3, 0, "given 3 times and never acknowledged")]
    assert world.rows() == (2, [])


async def test_an_event_never_answered_is_given_up(world: World, autojump_clock: trio.testing.MockClock) -> None:
    _, sink = await world.connect()
    await world.publish(1)
    await trio.sleep(4.5 * DEADLINE)
    assert given(sink) == [(1, n) for n in range(5)]
    await trio.sleep(DEADLINE)
    assert [death[2:5] for death in world.deaths] == [(1, 5, 5)]
    assert len(given(sink)) == 5


async def test_one_bad_event_takes_no_other_with_it(world: World) -> None:
    """Its reader ends whenever it sees event 3: of others in its hands by then it is not known that they are good."""
    await world.subscriptions.ensure("echo", "main")
    await world.publish(6)
    done: set[int] = set()
    for _ in range(12):
        ended = trio.Event()
        acks: list[int] = []
        sink = world.new_sink(
            lambda pushed, ended=ended, acks=acks: ended.set() if pushed.seq == 3 else acks.append(pushed.seq)
        )
        subscription, _ = await world.connect(sink=sink)
        while True:
            await settle()
            if ended.is_set() or not acks:
                break
            for seq in list(acks):
                await subscription.ack(seq)
                done.add(seq)
                acks.remove(seq)
        await world.crash(subscription)
    assert [death[2] for death in world.deaths] == [3]
    assert done == {1, 2, 4, 5, 6}
    assert world.rows() == (6, [])


async def test_a_suspect_is_given_alone(world: World, autojump_clock: trio.testing.MockClock) -> None:
    await world.subscriptions.ensure("echo", "main")
    await world.publish(3)
    assert (await lose(world, 2))[1] == [(1, 1), (2, 1), (3, 1)]
    subscription, sink = await world.connect()
    await world.publish(1)
    assert given(sink) == [(1, 2)]
    await subscription.nack(1, 60_000)
    await settle()
    assert given(sink) == [(1, 2), (2, 2)]  # it is not in anybody's hands, so others may go
    await subscription.ack(2)
    await settle()
    assert given(sink) == [(1, 2), (2, 2), (3, 2)]
    await trio.sleep(61)
    assert given(sink)[3:] == []  # 1 wants to be alone, and 3 is out
    await world.publish(1)
    await subscription.ack(3)
    await settle()
    assert given(sink)[3:] == [(1, 3)]  # before what is new
    await subscription.ack(1)
    await settle()
    assert given(sink)[4:] == [(4, 0), (5, 0)]


async def test_a_suspect_that_waits_to_be_alone_can_be_put_off_again(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    subscription, sink = await world.connect()
    await world.publish(2)
    await trio.sleep(2 * DEADLINE - 1)
    await subscription.working(2)
    await trio.sleep(2)
    assert given(sink).count((1, 2)) == 0  # lost twice, and 2 is out
    await subscription.nack(1, 3_000_000)
    await world.publish(1)
    assert given(sink)[-1] == (3, 0)  # it holds up nobody meanwhile
    for seq in (2, 3):
        await subscription.ack(seq)
    await trio.sleep(3_001)
    assert given(sink)[-1] == (1, 2)


async def test_an_end_that_is_nobodys_fault_is_not_counted(world: World) -> None:
    await world.subscriptions.ensure("echo", "main")
    await world.publish(1)

    def paused(subscription: Subscription) -> None:
        subscription.pause()

    def excused(subscription: Subscription) -> None:
        subscription.excuse()

    def unsubscribed(subscription: Subscription) -> None:
        subscription.close("unsubscribed", orderly=True)

    for end in (paused, excused, unsubscribed) * 3:
        subscription, _ = await world.connect()
        await settle()
        end(subscription)
        await world.disconnect(subscription)
    _, sink = await world.connect()
    await settle()
    assert given(sink) == [(1, 9)]
    assert world.deaths == []


async def test_paused_nothing_new_is_given_and_what_is_out_can_be_answered(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    subscription, sink = await world.connect()
    unnamed, other = await world.connect(None)
    await world.publish(2)
    for one in (subscription, unnamed):
        one.pause()
    await world.publish(1)
    await subscription.nack(1, 0)
    await subscription.ack(2)
    await trio.sleep(2 * DEADLINE)
    assert given(sink) == given(other) == [(1, 0), (2, 0)]
    for one in (subscription, unnamed):
        one.resume()
    await settle()
    assert given(sink) == [(1, 0), (2, 0), (1, 1), (3, 0)]
    assert given(other) == [(1, 0), (2, 0), (3, 0)]


async def test_an_acknowledgement_and_giving_up_at_once_leave_no_dead_letter(world: World) -> None:
    await world.subscriptions.ensure("echo", "main")
    (event,) = await world.journal.record([world.new_event()])
    subscription, _ = await world.connect()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(subscription.ack, event.seq)
        await trio.testing.wait_all_tasks_blocked()
        await subscription._cursor.bury(event, "too late")  # type: ignore[union-attr]
    assert world.deaths == []
    assert world.count("dead_letters") == 0


async def test_what_is_reserved_for_a_connection_ends_with_it(world: World) -> None:
    subscription, _ = await world.connect()
    attempts = subscription._cursor.attempts  # type: ignore[union-attr]
    assert attempts.ready(1)
    late = attempts.reserve(0)  # by an acknowledgement that is on its way to the disk when the connection ends
    await world.disconnect(subscription)
    assert not attempts.ready(1)
    attempts.reserved(late)
    assert not attempts.ready(1)  # the end comes behind it, and takes that back
    assert reserved(world) == 0
    await attempts.prepare([1])
    assert attempts.ready(1)
    assert reserved(world) > 0


# --- deleted events ---


async def test_who_comes_too_late_is_told_once_and_goes_on_behind(world: World) -> None:
    await world.subscriptions.ensure("echo", "main")
    await world.publish(5)
    world.trim(3)
    subscription, sink = await world.connect()
    await settle()
    gap = sink.pushed[0].params
    assert (gap["type"], gap["severity"], gap["seq"], gap["id"]) == ("gap", "warning", 3, "gap/main/1-3")
    assert gap["content"] == {"from": 1, "to": 3, "reason": "retention"}
    assert [one.seq for one in sink.pushed] == [3, 4, 5]
    await subscription.ack(3)
    assert world.rows() == (3, [])
    await world.disconnect(subscription)
    _, sink = await world.connect()
    await settle()
    assert sink.seqs == [4, 5]
    unnamed, sink = await world.connect(None, start=1)
    await settle()
    assert [one.params["type"] for one in sink.pushed] == ["gap", "m.room.message", "m.room.message"]
    assert sink.pushed[0].params["id"] == f"gap/{unnamed.id}/2-3"


async def test_a_gap_that_no_reader_survives_is_given_up(world: World) -> None:
    """Else all that comes behind it would wait for ever."""
    await world.subscriptions.ensure("echo", "main")
    await world.publish(5)
    world.trim(3)
    times = []
    for _ in range(EventsSection().max_lost):
        subscription, sink = await world.connect()
        times += [(one.seq, one.redelivered) for one in sink.pushed[:1]]
        await world.crash(subscription)
    assert times == [(3, number) for number in range(5)]
    subscription, sink = await world.connect()
    assert sink.seqs == [4]  # it was with the gap when that was lost, so it is given alone
    await subscription.ack(4)
    await settle()
    assert sink.seqs == [4, 5]
    assert [(seq, lost) for _, _, seq, _, lost, _ in world.deaths] == [(3, 5)]
    await subscription.ack(5, cumulative=True)
    assert world.rows() == (5, [])
    await world.disconnect(subscription)
    world.trim(5)
    await world.publish(2)
    world.trim(6)
    subscription, sink = await world.connect()
    assert [(one.seq, one.redelivered) for one in sink.pushed] == [(6, 0), (7, 0)]  # another gap, counted anew
    await subscription.ack(6)


async def test_being_told_of_a_gap_can_be_put_off_and_comes_again(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    await world.subscriptions.ensure("echo", "main")
    await world.publish(4)
    await world.subscriptions.ack("echo", "main", 3)  # the very event that the marker is numbered by
    world.trim(3)
    subscription, sink = await world.connect()
    await settle()
    await subscription.nack(3, 1000)
    await trio.sleep(2)
    assert [(one.seq, one.params["type"]) for one in sink.pushed] == [
        (3, "gap"),
        (4, "m.room.message"),
        (3, "gap"),
    ]
    await subscription.ack(3)
    assert world.rows() == (3, [])


# --- what people see ---


async def test_people_see_what_was_read_room_by_room_and_in_order(
    world: World, autojump_clock: trio.testing.MockClock
) -> None:
    read: list[tuple[str, str, int]] = []

    def on_settled(owner: str, seen: Seen) -> None:
        assert world.rows()[0] >= seen.seq or seen.seq in world.rows()[1]  # it is on disk by then
        read.append((owner, seen.room_id, seen.seq))

    subscription, _ = await world.connect()
    subscription._cursor.on_settled = on_settled  # type: ignore[union-attr]
    await world.publish(3, "!a:x")
    await world.publish(2, "!b:x")
    await world.publish(1, "!a:x", event_id=None)  # nothing that anybody could have read
    await subscription.ack(2)
    assert read == []  # 1 is not done
    await subscription.ack(5)
    await subscription.nack(1, 1000)
    await subscription.ack(3)
    assert read == []
    await subscription.ack(1)
    assert read == [("echo", "!a:x", 3)]
    await subscription.ack(6, cumulative=True)
    assert read == [("echo", "!a:x", 3), ("echo", "!b:x", 5)]
    await subscription.ack(6)
    assert len(read) == 2


async def test_what_is_given_up_is_not_shown_as_read(world: World, autojump_clock: trio.testing.MockClock) -> None:
    world = world.restart(EventsSection(max_deliveries=1))
    read: list[int] = []
    subscription, _ = await world.connect()
    subscription._cursor.on_settled = lambda owner, seen: read.append(seen.seq)  # type: ignore[union-attr]
    await world.publish(3)
    await subscription.ack(2)
    await subscription.nack(1, 0)
    await settle()
    assert [death[2] for death in world.deaths] == [1]
    assert read == [2]
    await subscription.nack(3, 0)
    await settle()
    assert len(world.deaths) == 2
    assert read == [2]


async def test_what_could_not_be_given_up_and_is_acknowledged_then_was_read(world: World) -> None:
    read: list[int] = []
    subscription, _ = await world.connect()
    subscription._cursor.on_settled = lambda owner, seen: read.append(seen.seq)  # type: ignore[union-attr]
    (event,) = await world.journal.record([world.new_event()])
    await settle()
    world.db.down = True
    with pytest.raises(ArmorclawError):
        await subscription._cursor.bury(event, "too late")  # type: ignore[union-attr]
    world.db.down = False
    await subscription.ack(event.seq)
    assert read == [event.seq]
