"""A subscription against a plain model of what its owner may expect, under any mix of what can happen to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from armorclaw.clock import Surroundings
from armorclaw.errors import ArmorclawError
from armorclaw.events import window
from armorclaw.events.journal import Journal
from armorclaw.events.subscription import Subscription
from armorclaw.events.subscriptions import Subscriptions

Step = tuple[str, int]

WINDOW = 4
"""Small, so that it is full much of the time."""

ROOMS = ("!mine:x", "!others:x")

WORDS = (
    *("publish", "publish", "foreign", "connect", "disconnect", "restart", "pause", "resume", "sleep"),
    *("settle", "settle", "ack", "ack", "ack_later", "ack_all", "nack", "nack", "fail_ack"),
)

steps = st.lists(
    st.tuples(
        st.sampled_from(WORDS),
        st.integers(0, 5),
    ),
    max_size=60,
)


class Model:
    """What the owner was promised: all of `wanted` in the end; checked at every push."""

    def __init__(self) -> None:
        self.wanted: set[int] = set()
        self.acknowledged: set[int] = set()  # those whose call has returned
        self.pushes: dict[int, int] = {}  # since the bridge started
        self.in_hand: list[int] = []  # on this connection, and not answered
        self.returned: set[int] = set()  # nacked on this connection
        self.first_pushed = 0  # the highest so far on this connection
        self.unanswered: set[int] = set()  # given on this connection, and no answer begun
        self.covered = 0  # up to here an answer has begun, also to what is given once more before it has arrived

    def connect(self) -> None:
        self.in_hand.clear()
        self.returned.clear()
        self.unanswered.clear()
        self.first_pushed = 0

    def push(self, pushed: Any) -> None:
        if pushed.method != "event":
            return
        seq = pushed.seq
        assert pushed.params["room_id"] == ROOMS[0], "an event of somebody else"
        assert seq not in self.acknowledged, "acknowledged, and given again"
        assert pushed.redelivered == self.pushes.get(seq, 0)
        if seq in self.returned:
            self.returned.discard(seq)
        else:
            assert seq > self.first_pushed, "twice on one connection, or out of order"
            self.first_pushed = seq
        self.pushes[seq] = self.pushes.get(seq, 0) + 1
        self.in_hand.append(seq)
        if seq > self.covered:
            self.unanswered.add(seq)
        assert len(self.unanswered) <= WINDOW, "more than the window"

    def acked(self, seq: int) -> None:
        self.acknowledged.add(seq)
        self.pushes.pop(seq, None)
        self.returned.discard(seq)
        if seq in self.in_hand:
            self.in_hand.remove(seq)


class Run:
    """Does the steps to the real thing, and tells the model."""

    def __init__(self, nursery: trio.Nursery, db: Any, new_event: Any, new_sink: Any) -> None:
        self.nursery = nursery
        self.db = db
        self.new_event = new_event
        self.new_sink = new_sink
        self.model = Model()
        self.sink: Any = None
        self.subscription: Subscription | None = None
        self.start()

    def start(self) -> None:
        self.journal = Journal(self.db)
        self.subscriptions = Subscriptions(self.db, self.journal, Surroundings())

    async def publish(self, n: int, room: str = ROOMS[0]) -> None:
        new = await self.journal.record([self.new_event(room) for _ in range(n + 1)])
        if room == ROOMS[0]:
            self.model.wanted |= {event.seq for event in new}

    async def foreign(self, n: int) -> None:
        await self.publish(n, ROOMS[1])

    async def connect(self, _: int) -> None:
        sink = self.new_sink(self.model.push)
        subscription = self.subscriptions.open(
            "echo", "main", None, "now", lambda event: event.room_id == ROOMS[0], sink
        )
        if self.subscription is not None:
            self.subscription.close("the connection went")  # nothing is pushed to it from now on
        self.sink, self.subscription = sink, subscription
        self.model.connect()
        await self.nursery.start(subscription.run)

    async def disconnect(self, _: int) -> None:
        if self.subscription is not None:
            self.subscription.close("gone")
            self.subscription = self.sink = None
            self.model.connect()

    async def restart(self, _: int) -> None:
        await self.disconnect(0)
        await trio.testing.wait_all_tasks_blocked()
        self.model.pushes.clear()
        self.start()

    def pick(self, n: int) -> int | None:
        return self.model.in_hand[n % len(self.model.in_hand)] if self.model.in_hand else None

    async def ack(self, n: int) -> None:
        seq = self.pick(n)
        if seq is not None and self.subscription is not None:
            self.model.unanswered.discard(seq)
            await self.subscription.ack(seq)
            self.model.acked(seq)

    async def ack_later(self, n: int) -> None:
        """Not waited for: what comes next happens meanwhile."""
        seq, subscription, model = self.pick(n), self.subscription, self.model
        if seq is None or subscription is None:
            return
        model.in_hand.remove(seq)
        model.unanswered.discard(seq)

        async def later() -> None:
            try:
                await subscription.ack(seq)
            except ArmorclawError:  # the store was down just then: it comes again on the next connection
                return
            model.acked(seq)

        self.nursery.start_soon(later)

    async def ack_all(self, n: int) -> None:
        seq = self.pick(n)
        if seq is not None and self.subscription is not None:
            below = {one for one in self.model.wanted if one <= seq}
            self.model.unanswered -= below
            self.model.covered = max(self.model.covered, seq)
            await self.subscription.ack(seq, cumulative=True)
            for one in below:
                self.model.acked(one)

    async def nack(self, n: int) -> None:
        seq = self.pick(n)
        if seq is not None and self.subscription is not None:
            self.model.in_hand.remove(seq)
            self.model.unanswered.discard(seq)
            self.model.returned.add(seq)
            await self.subscription.nack(seq, n * 400)

    async def fail_ack(self, n: int) -> None:
        seq = self.pick(n)
        if seq is not None and self.subscription is not None:
            self.db.down = True
            with pytest.raises(ArmorclawError):
                await self.subscription.ack(seq)
            self.db.down = False

    async def pause(self, _: int) -> None:
        if self.sink is not None:
            self.sink.pause()

    async def resume(self, _: int) -> None:
        if self.sink is not None:
            self.sink.resume()

    async def sleep(self, n: int) -> None:
        await trio.sleep(n * 0.5)

    async def settle(self, _: int) -> None:
        await trio.testing.wait_all_tasks_blocked()

    async def finish(self) -> None:
        """Everything is acknowledged as it comes, until nothing more comes."""
        await self.settle(0)
        await self.connect(0)
        for _ in range(len(self.model.wanted) + 2):
            await trio.sleep(3)
            while self.model.in_hand:
                await self.ack(0)
        assert self.model.acknowledged == self.model.wanted
        await self.restart(0)
        await self.connect(0)
        await trio.sleep(3)
        assert self.sink.seqs == []
        floor = self.db.conn.execute("SELECT floor FROM subscriptions").fetchone()[0]
        # two acknowledgements under way at once leave the floor below the second until the next
        above = {seq for (seq,) in self.db.conn.execute("SELECT seq FROM acks")}
        assert {one for one in self.model.wanted if one > floor} <= above


@settings(max_examples=300, deadline=None)
@given(steps)
def test_everything_allowed_comes_until_acknowledged_and_nothing_comes_after(
    new_inline_db: Callable[[], Any], new_event: Any, new_sink: Any, steps: list[Step]
) -> None:
    async def main() -> None:
        db = new_inline_db()
        try:
            async with trio.open_nursery() as nursery:
                run = Run(nursery, db, new_event, new_sink)
                await run.subscriptions.ensure("echo", "main")
                for name, n in steps:
                    await getattr(run, name)(n)
                await run.finish()
                nursery.cancel_scope.cancel(reason="done")
        finally:
            db.close()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(window, "WINDOW_EVENTS", WINDOW)
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
