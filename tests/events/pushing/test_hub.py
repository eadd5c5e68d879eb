"""How events cross from who commits them to who follows: in batches, through bounded channels."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from armorclaw.clock import Surroundings
from armorclaw.errors import ArmorclawError
from armorclaw.events.event import Event
from armorclaw.events.journal import Journal
from armorclaw.events.pushing.hub import Hub
from armorclaw.events.pushing.relay import RELAY_BATCHES, RELAY_BYTES, TOGETHER, Relay
from armorclaw.events.pushing.subscription import Subscription
from armorclaw.events.subscriptions import Subscriptions
from armorclaw.store import Database

Make = Callable[..., Any]


def everything(event: Event) -> bool:
    return True


def event(seq: int) -> Event:
    return Event("app.x", b"{}", 0, f"id-{seq}", seq=seq)


class Follower:
    """Writes down what it is told, and in which task."""

    def __init__(self, owner: str = "", *, broken: bool = False) -> None:
        self.id, self.owner, self.broken = "#1", owner, broken
        self.seqs: list[int] = []
        self.ids: list[str] = []
        self.tasks: set[trio.lowlevel.Task] = set()
        self.behind = self.missed = self.pieces = 0
        self.closed = ""

    def offer(self, events: Sequence[Event]) -> None:
        if self.broken:
            raise BrokenPipeError
        self.tasks.add(trio.lowlevel.current_task())
        self.seqs += [each.seq for each in events]

    def offer_ephemeral(self, events: Sequence[Event]) -> None:
        self.tasks.add(trio.lowlevel.current_task())
        self.ids += [each.id for each in events]
        self.pieces += 1

    def fall_behind(self) -> None:
        self.behind += 1

    def missed_ephemeral(self, count: int) -> None:
        self.missed += count

    def close(self, reason: str) -> None:
        self.closed = reason


def joined(relay: Relay, *followers: Follower) -> None:
    for follower in followers:
        relay.add(cast(Subscription, follower))


async def settle() -> None:
    await trio.testing.wait_all_tasks_blocked()


async def test_a_batch_is_given_out_in_the_nursery_of_those_who_follow() -> None:
    hub = Hub()
    one, two, other = Follower(), Follower(), Follower()
    async with trio.open_nursery() as here, trio.open_nursery() as there:
        joined(hub.relay_of(here), one, two)
        joined(hub.relay_of(there), other)
        hub.publish([event(1), event(2)])
        hub.publish([event(0)])
        assert one.seqs == []  # nothing was called
        await settle()
        for follower, nursery in ((one, here), (two, here), (other, there)):
            assert (follower.seqs, follower.ids) == ([1, 2], ["id-0"])
            (task,) = follower.tasks
            assert task.parent_nursery is nursery
        assert one.tasks == two.tasks  # one task for all of a nursery
        assert (len(here.child_tasks), len(there.child_tasks)) == (1, 1)
        here.cancel_scope.cancel(reason="the test is over")
        there.cancel_scope.cancel(reason="the test is over")


async def test_a_relay_that_nobody_follows_is_told_nothing() -> None:
    hub = Hub()
    relay = hub.relay()
    follower = Follower()
    for _ in range(3 * RELAY_BATCHES):
        hub.publish([event(1)])
    joined(relay, follower)
    relay.discard(cast(Subscription, follower))
    for _ in range(3 * RELAY_BATCHES):
        hub.publish([event(1)])
    assert hub.overflows == relay.overflows == 0
    assert hub.followers == []


async def run_for_a_while(relay: Relay) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(relay.run)
        await settle()
        nursery.cancel_scope.cancel(reason="enough")


@pytest.mark.parametrize(
    ("batches", "size", "given"),
    [
        (RELAY_BATCHES, 10, RELAY_BATCHES),
        (RELAY_BATCHES + 1, 10, RELAY_BATCHES),
        (5, RELAY_BYTES // 4, 4),
        (2, 200_000, 2),
    ],
)
async def test_a_full_channel_takes_no_more_and_says_so(batches: int, size: int, given: int) -> None:
    relay, follower = Relay({}), Follower()
    joined(relay, follower)
    for number in range(batches):
        relay.tell([event(number + 1)], size)
    assert relay.overflows == batches - given
    await run_for_a_while(relay)
    assert follower.seqs == list(range(1, given + 1))
    assert follower.behind == (1 if batches > given else 0)
    relay.tell([event(99)], 10)
    await run_for_a_while(relay)
    assert follower.seqs[-1] == 99
    assert follower.behind == (1 if batches > given else 0)


async def test_a_batch_larger_than_the_channel_passes_alone() -> None:
    relay, follower = Relay({}), Follower()
    joined(relay, follower)
    relay.tell([event(1)], 2 * RELAY_BYTES)
    relay.tell([event(2)], 1)
    assert relay.overflows == 1
    await run_for_a_while(relay)
    assert (follower.seqs, follower.behind) == ([1], 1)


async def test_what_is_kept_nowhere_is_given_out_together_and_in_its_order() -> None:
    relay, follower = Relay({}), Follower()
    joined(relay, follower)
    for seq, size in ((0, 10), (0, 10), (5, 10), (0, 10), (0, TOGETHER), (0, 10), (0, 10)):
        relay.tell([event(seq)], size)
    await run_for_a_while(relay)
    assert (len(follower.ids), follower.seqs, follower.pieces) == (6, [5], 3)
    relay.tell([event(0)], RELAY_BYTES)  # nothing is counted any more of what was given out
    relay.tell([event(0)], 0)
    assert relay.overflows == 0


async def test_of_events_that_are_nowhere_else_operators_hear_how_many_they_missed() -> None:
    relay, operator, agent = Relay({}), Follower(), Follower("echo")
    joined(relay, operator, agent)
    for _ in range(RELAY_BATCHES + 3):
        relay.tell([event(0), event(0)], 20)
    await run_for_a_while(relay)
    assert operator.missed == 6
    assert agent.missed == 0  # it may not hear of the events, so not of their number either
    assert operator.behind == agent.behind == 0
    assert len(operator.ids) == 2 * RELAY_BATCHES


async def test_one_with_a_broken_sink_is_closed_and_the_others_do_not_notice() -> None:
    relay, broken, other = Relay({}), Follower(broken=True), Follower()
    joined(relay, broken, other)
    relay.tell([event(1)], 10)
    with capture_logs() as logs:
        await run_for_a_while(relay)
    assert broken.closed == "its sink is broken"
    assert other.seqs == [1]
    assert [line["event"] for line in logs] == ["cannot push to a subscriber"]


async def test_many_followers_leave_turns_to_others_and_who_left_meanwhile_is_told_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("armorclaw.events.pushing.relay._TURN", 0.0)
    relay, followers = Relay({}), [Follower() for _ in range(100)]
    joined(relay, *followers)

    def leave(events: Sequence[Event]) -> None:
        for each in followers[90:]:
            relay.discard(cast(Subscription, each))

    monkeypatch.setattr(followers[0], "offer", leave)
    relay.tell([event(1)], 10)
    await run_for_a_while(relay)
    assert [len(each.seqs) for each in followers] == [0] + [1] * 89 + [0] * 10


# --- with the journal behind it ---


@pytest.mark.mission("P1.3")
async def test_nothing_is_lost_or_given_twice_when_a_relay_lags(
    db: Database, new_event: Make, new_sink: Make, autojump_clock: trio.testing.MockClock
) -> None:
    journal, relay, sink = Journal(db), Relay({}), new_sink()
    subscription = Subscription(
        "#1", journal, sink, matching=None, allowed=everything, cursor=None, start="now", followers=relay
    )
    journal.subscribe_hub(lambda events: relay.tell(events, 1))
    async with trio.open_nursery() as nursery:
        await nursery.start(subscription.run)
        for _ in range(RELAY_BATCHES + 20):  # nobody empties the channel
            await journal.record([new_event(), new_event()])
        assert relay.overflows == 20
        assert sink.seqs == []
        nursery.start_soon(relay.run)
        await settle()
        assert sink.seqs == list(range(1, 2 * (RELAY_BATCHES + 20) + 1))
        await journal.record([new_event()])
        await settle()
        assert sink.seqs[-1] == 2 * (RELAY_BATCHES + 20) + 1
        nursery.cancel_scope.cancel(reason="the test is over")


async def test_random_lag(
    db: Database, new_event: Make, new_sink: Make, autojump_clock: trio.testing.MockClock
) -> None:
    """Whatever is published, overflows and is read meanwhile: everyone gets all of it, in order, once."""
    hub, journal, around = Hub(), Journal(db), Surroundings()
    journal.subscribe_hub(hub.publish)
    async with trio.open_nursery() as commons:
        sinks = []

        async def follow(start: int) -> None:
            sinks.append((start, sink := new_sink()))
            subscription = Subscription(
                f"#{len(sinks)}",
                journal,
                sink,
                matching=None,
                allowed=everything,
                cursor=None,
                start=start,
                followers=hub.relay_of(commons),
            )
            await commons.start(subscription.run)

        def fill(name: str) -> None:
            for _ in range(RELAY_BATCHES if name == "after commit" else 0):
                hub.publish([event(0)])

        await follow(0)
        published = 0
        for _ in range(300):
            match around.random.randrange(5):
                case 0:
                    for _ in range(2):
                        await journal.record([new_event() for _ in range(3)])
                        published += 3
                case 1:
                    hub.publish([event(0)])
                case 2:
                    await trio.lowlevel.checkpoint()
                case 3 if len(sinks) < 5:
                    await follow(around.random.randrange(published + 1))
                case 4:  # as if the task of the relay had had no turn for long: what is committed finds no room
                    cast(Any, db).point = fill
                    await journal.record([new_event()])
                    cast(Any, db).point = lambda name: None
                    published += 1
        await settle()
        for start, sink in sinks:
            seqs = [one.seq for one in sink.pushed if one.params["type"] == "m.room.message"]
            assert seqs == list(range(start + 1, published + 1))
        assert hub.overflows
        commons.cancel_scope.cancel(reason="the test is over")


async def test_subscriptions_without_a_nursery_in_common_bring_a_relay_of_their_own(
    db: Database, new_event: Make, new_sink: Make, autojump_clock: trio.testing.MockClock
) -> None:
    journal = Journal(db)
    subscriptions = Subscriptions(db, journal, Surroundings())
    sinks = [new_sink(), new_sink(), new_sink()]
    async with trio.open_nursery() as nursery:
        for number, sink in enumerate(sinks):
            opened = subscriptions.open("", f"n{number}", None, "now", everything, sink)
            await nursery.start(opened.run)
        await journal.record([new_event()])
        await settle()
        assert [sink.seqs for sink in sinks] == [[1], [1], [1]]
        assert subscriptions.open_count == 3
        nursery.cancel_scope.cancel(reason="the test is over")
    assert subscriptions.open_count == 0


async def test_those_of_one_nursery_share_a_relay(
    db: Database, new_event: Make, new_sink: Make, autojump_clock: trio.testing.MockClock
) -> None:
    journal = Journal(db)
    subscriptions = Subscriptions(db, journal, Surroundings())
    async with trio.open_nursery() as commons:
        sinks = [new_sink() for _ in range(10)]
        for sink in sinks:
            opened = subscriptions.open("", None, None, "now", everything, sink, commons=commons)
            await commons.start(opened.run)
        assert len(commons.child_tasks) == 11
        await journal.record([new_event()])
        await settle()
        assert all(sink.seqs == [1] for sink in sinks)
        commons.cancel_scope.cancel(reason="the test is over")
    assert subscriptions.open_count == 0


async def test_an_end_by_the_store_comes_out_as_itself(
    db: Database, new_sink: Make, autojump_clock: trio.testing.MockClock
) -> None:
    subscriptions = Subscriptions(db, Journal(db), Surroundings())
    opened = subscriptions.open("", "a", None, "now", everything, new_sink())
    cast(Any, db).down = True
    with pytest.raises(ArmorclawError, match="not running"):
        await opened.run()
