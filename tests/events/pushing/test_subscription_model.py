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
from armorclaw.config import EventsSection
from armorclaw.errors import ArmorclawError
from armorclaw.events.durable import attempts
from armorclaw.events.durable.dead_letters import DeadLetters
from armorclaw.events.event import Event
from armorclaw.events.journal import Journal
from armorclaw.events.pushing import window
from armorclaw.events.pushing.subscription import Subscription
from armorclaw.events.subscriptions import Subscriptions

Step = tuple[str, int]

WINDOW = 4
"""Small, so that it is full much of the time."""

RESERVE = 3
"""Small, so that it is used up much of the time."""

SECTION = EventsSection(redeliver_after_s=40.0, max_deliveries=6, max_lost=3)

ROOMS = ("!mine:x", "!others:x")

WORDS = (
    *("publish", "publish", "foreign", "connect", "disconnect", "restart", "kill", "pause", "resume", "sleep"),
    *("settle", "settle", "ack", "ack", "ack_later", "ack_all", "nack", "nack", "fail_ack"),
    *("oversleep", "oversleep", "working", "drain", "crash_loop", "crash_loop", "again", "again", "drop", "trim"),
)

steps = st.lists(st.tuples(st.sampled_from(WORDS), st.integers(0, 5)), max_size=60)


class Model:
    """What the owner was promised: all of `wanted` in the end, or a reason why not; checked at every push."""

    def __init__(self) -> None:
        self.wanted: set[int] = set()
        self.acknowledged: set[int] = set()  # those whose call has returned
        self.dead: set[int] = set()
        self.trimmed = 0  # up to here events are deleted
        self.gaps: set[int] = set()  # numbers by which somebody was told of that
        self.pushes: dict[int, int] = {}
        self.killed = False  # some bridge did not end in order
        self.in_hand: list[int] = []  # on this connection, and not answered
        self.returned: set[int] = set()  # nacked on this connection
        self.since: dict[int, float] = {}  # when it was pushed on this connection, or somebody was last at it
        self.first_pushed = 0  # the highest so far on this connection
        self.unanswered: set[int] = set()  # given on this connection, and no answer begun
        self.answering: list[int] = []  # an answer to it is under way
        self.covered = 0  # up to here an answer has begun, also to what is given once more before it has arrived
        self.drained = False
        self.subscription: Any = None

    def connect(self, subscription: Any) -> None:
        self.subscription = subscription
        self.in_hand.clear()
        self.returned.clear()
        self.unanswered.clear()
        self.since.clear()
        self.first_pushed = 0
        self.drained = False

    def push(self, pushed: Any) -> None:
        if pushed.method != "event":
            return
        assert not self.drained
        hand = self.subscription._hand
        counts = hand.cursor.attempts
        seq, now = pushed.seq, trio.current_time()
        if pushed.params["type"] == "gap":
            content = pushed.params["content"]
            assert 1 <= content["from"] <= content["to"] == seq <= self.trimmed
            self.gaps.add(seq)
            self.first_pushed = max(self.first_pushed, seq)
        else:
            assert pushed.params["room_id"] == ROOMS[0], "an event of somebody else"
            owed = seq in counts.owed
            assert owed or seq not in self.acknowledged, "acknowledged, and given again"
            assert owed or seq not in self.dead, "given up, and given again"
            before = self.pushes.get(seq, int(owed))  # a dead letter's counts begin anew, with the one it had
            assert pushed.redelivered >= before if self.killed else pushed.redelivered == before
            assert pushed.redelivered < SECTION.max_deliveries + owed
            if seq in self.returned:
                self.returned.discard(seq)
            elif not owed and seq <= self.first_pushed:
                assert now >= self.since[seq] + SECTION.redeliver_after_s, "twice on one connection, or out of order"
            self.first_pushed = max(self.first_pushed, 0 if owed else seq)
            self.pushes[seq] = before + 1
        out = hand.window.out  # what was there before this one
        assert not (out and counts.suspect(seq)), "a suspect in company"
        assert not any(counts.suspect(one) for one in out if one != seq), "company for a suspect"
        assert len(out) < WINDOW, "more than the window"
        self.since[seq] = now
        self.in_hand.append(seq)
        if seq > self.covered and seq not in self.answering:
            self.unanswered.add(seq)
        expired = {one for one in self.unanswered if now >= self.since[one] + SECTION.redeliver_after_s}
        assert len(self.unanswered - expired) <= WINDOW, "more than the window"

    def acked(self, seq: int) -> None:
        self.acknowledged.add(seq)
        self.pushes.pop(seq, None)
        self.answered(seq)

    def answered(self, seq: int) -> None:
        self.returned.discard(seq)
        self.unanswered.discard(seq)
        while seq in self.in_hand:
            self.in_hand.remove(seq)

    def died(self, owner: str, name: str, event: Event, given: int, lost: int, reason: str) -> None:
        seq = event.seq
        assert (owner, name) == ("echo", "main")
        assert seq not in self.acknowledged or seq in self.gaps or seq in self.dead
        assert given >= SECTION.max_deliveries or lost >= SECTION.max_lost
        assert lost <= given
        assert self.killed or seq in self.gaps or given == self.pushes[seq]
        self.dead.add(seq)
        self.pushes.pop(seq, None)
        self.answered(seq)


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
        self.dead = DeadLetters(self.db, self.journal)
        self.subscriptions = Subscriptions(self.db, self.journal, Surroundings(), SECTION, self.dead)
        self.subscriptions.on_dead = self.model.died

    async def do(self, name: str, n: int) -> None:
        if self.subscription is not None and self.subscription.closed_because is not None:
            assert "too slow" in self.subscription.closed_because
            await self.disconnect(0)
        await getattr(self, name)(n)

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
        self.model.connect(subscription)
        await self.nursery.start(subscription.run)

    async def disconnect(self, _: int) -> None:
        if self.subscription is not None:
            self.subscription.close("gone")
            self.subscription = self.sink = None
            self.model.connect(None)

    async def crash_loop(self, n: int) -> None:
        """An agent that sees what is there, and ends."""
        for _ in range(n):
            await self.connect(0)
            await trio.testing.wait_all_tasks_blocked()
        await self.disconnect(0)

    async def restart(self, _: int) -> None:
        await self.disconnect(0)
        await trio.testing.wait_all_tasks_blocked()
        self.start()

    async def kill(self, _: int) -> None:
        """The bridge ends without a word: nothing is written any more."""
        self.db.down = True
        await self.restart(0)
        self.db.down = False
        self.model.killed = True

    def pick(self, n: int) -> int | None:
        return self.model.in_hand[n % len(self.model.in_hand)] if self.model.in_hand else None

    async def ack(self, n: int) -> None:
        seq = self.pick(n)
        if seq is not None and self.subscription is not None:
            self.model.unanswered.discard(seq)
            self.model.answering.append(seq)
            await self.subscription.ack(seq)
            self.model.answering.remove(seq)
            self.model.acked(seq)

    async def ack_later(self, n: int) -> None:
        """Not waited for: what comes next happens meanwhile."""
        seq, subscription, model = self.pick(n), self.subscription, self.model
        if seq is None or subscription is None:
            return
        model.in_hand.remove(seq)
        model.unanswered.discard(seq)
        model.answering.append(seq)

        async def later() -> None:
            try:
                await subscription.ack(seq)
            except ArmorclawError:  # the store was down just then: it comes again on the next connection
                return
            finally:
                model.answering.remove(seq)
            model.acked(seq)

        self.nursery.start_soon(later)

    async def ack_all(self, n: int) -> None:
        seq = self.pick(n)
        if seq is not None and self.subscription is not None:
            below = {one for one in self.model.wanted if one <= seq}
            self.model.unanswered -= below
            self.model.covered = max(self.model.covered, seq)
            await self.subscription.ack(seq, cumulative=True)
            for one in below | {seq}:
                self.model.acked(one)

    async def nack(self, n: int) -> None:
        seq = self.pick(n)
        if seq is not None and self.subscription is not None:
            self.model.answered(seq)
            if self.subscription.gave(seq):  # else it was deleted
                self.model.returned.add(seq)
                try:
                    await self.subscription.nack(seq, n * 400)
                except ArmorclawError:  # acknowledged in this very moment, by what is under way
                    self.model.returned.discard(seq)
                else:  # it may have come once more in between, as its time was over
                    self.model.answered(seq)
                    self.model.returned.add(seq)

    async def working(self, n: int) -> None:
        seq = self.pick(n)
        if seq is not None and self.subscription is not None and seq in self.subscription._hand.window.out:  # type: ignore[union-attr]
            before, self.model.since[seq] = self.model.since[seq], trio.current_time()
            try:
                await self.subscription.working(seq)
            except ArmorclawError:  # its time was over in this very moment
                self.model.since[seq] = max(before, self.model.since[seq] - SECTION.redeliver_after_s)

    async def fail_ack(self, n: int) -> None:
        seq = self.pick(n)
        if seq is not None and self.subscription is not None:
            self.db.down = True
            try:
                await self.subscription.ack(seq)
                assert self.subscription._cursor.done(seq)  # type: ignore[union-attr]  # by one that was under way
            except ArmorclawError:
                pass
            finally:
                self.db.down = False

    async def again(self, n: int) -> None:
        dead = sorted(self.model.dead)
        if dead:
            seq = dead[n % len(dead)]
            letters = {letter.seq: letter for letter in await self.dead.list("echo")}
            if seq not in letters or letters[seq].event is None:
                with pytest.raises(ArmorclawError):
                    await self.dead.again("echo", "main", seq)
                return
            await self.dead.again("echo", "main", seq)

    async def drop(self, n: int) -> None:
        letters = await self.dead.list("echo")
        if letters:
            await self.dead.drop("echo", "main", letters[n % len(letters)].seq)

    async def trim(self, n: int) -> None:
        """Retention deletes the oldest."""
        head = await self.journal.head()
        upto = min(self.model.trimmed + n, head)
        for table in ("journal", "dead_letters"):
            self.db.conn.execute(f"DELETE FROM {table} WHERE seq <= ?", (upto,))
        self.db.conn.execute("UPDATE trimmed SET seq = ?", (upto,))
        self.model.trimmed = upto

    async def pause(self, _: int) -> None:
        if self.sink is not None:
            self.sink.pause()

    async def resume(self, _: int) -> None:
        if self.sink is not None:
            self.sink.resume()

    async def drain(self, n: int) -> None:
        """Nothing new is given, for a while."""
        if self.subscription is not None:
            self.subscription.pause()
            self.model.drained = True
            await self.sleep(n)
            if self.subscription is not None:
                self.model.drained = False
                self.subscription.resume()

    async def sleep(self, n: int) -> None:
        await trio.sleep(n * 0.5)

    async def oversleep(self, n: int) -> None:
        await trio.sleep(SECTION.redeliver_after_s / 5 * (n + 1))

    async def settle(self, _: int) -> None:
        await trio.testing.wait_all_tasks_blocked()

    async def finish(self) -> None:
        """Everything is acknowledged as it comes, until nothing more comes."""
        await self.settle(0)
        await self.connect(0)
        for _ in range(len(self.model.wanted) + 4):
            await trio.sleep(3)
            while self.model.in_hand:
                await self.ack(0)
        kept = {seq for seq in self.model.wanted if seq > self.model.trimmed}
        assert kept <= self.model.acknowledged | self.model.dead
        assert self.rows("SELECT seq FROM dead_letters WHERE again = 1") == set()
        assert self.rows("SELECT seq FROM dead_letters") <= self.model.dead
        await self.restart(0)
        await self.connect(0)
        await trio.sleep(3)
        assert self.sink.seqs == []
        (floor,) = self.rows("SELECT floor FROM subscriptions")
        # two acknowledgements under way at once leave the floor below the second until the next
        assert {one for one in kept if one > floor} <= self.rows("SELECT seq FROM acks")
        assert self.rows("SELECT seq FROM attempts") <= self.rows("SELECT seq FROM acks")

    def rows(self, sql: str) -> set[int]:
        return {seq for (seq,) in self.db.conn.execute(sql)}


def without_end(step: Callable[[Subscription], Any]) -> Callable[[Subscription], Any]:
    """A pump that always finds something to do hangs the clock, and tells nobody: this does."""
    steps: dict[tuple[Subscription, float], int] = {}

    async def counted(self: Subscription) -> None:
        key = self, trio.current_time()
        steps[key] = steps.get(key, 0) + 1
        assert steps[key] < 1000, "the pump spins"
        await step(self)

    return counted


@settings(max_examples=300)
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
                await run.publish(2)
                await run.connect(0)
                for name, n in steps:
                    await run.do(name, n)
                await run.finish()
                nursery.cancel_scope.cancel(reason="done")
        finally:
            db.close()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(window, "WINDOW_EVENTS", WINDOW)
        patch.setattr(attempts, "RESERVE", RESERVE)
        patch.setattr(Subscription, "_step", without_end(Subscription._step))
        trio.run(main, clock=trio.testing.MockClock(autojump_threshold=0))
