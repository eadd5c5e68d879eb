"""What is kept, for how long, and that nothing stale is ever kept."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from armorclaw.matrix import cache as module
from armorclaw.matrix.answer import RoomUpdate
from armorclaw.matrix.cache import MAX_AGE, Cache, CacheCounts, Key, members_of, profile_of, state_of

ROOM = "!room:x"
TOPIC = state_of(ROOM, "m.room.topic", "")


class Homeserver:
    """The present truth; `gate` holds answers back."""

    def __init__(self) -> None:
        self.truth: dict[Key, Any] = {}
        self.asked = 0
        self.gate = trio.Event()
        self.gate.set()

    async def ask(self, cache: Cache, key: Key, *, keep: bool = True) -> Any:
        async def fetch() -> Any:
            self.asked += 1
            value = self.truth.get(key)
            await self.gate.wait()
            return value

        return await cache.get(key, fetch, keep=keep)


def change(type_: str, state_key: str = "", *, room: str = ROOM, limited: bool = False) -> RoomUpdate:
    raw = {"type": type_, "state_key": state_key, "event_id": "$1", "sender": "@a:x", "content": {}}
    return RoomUpdate(room, "join", timeline=[raw], limited=limited)


@pytest.mark.mission("R.3")
async def test_a_value_is_asked_for_once_until_it_changes(autojump_clock: trio.testing.MockClock) -> None:
    server, cache = Homeserver(), Cache()
    server.truth[TOPIC] = {"topic": "tea"}
    for _ in range(3):
        assert await server.ask(cache, TOPIC) == {"topic": "tea"}
    assert server.asked == 1
    cache.follow(change("m.room.name"))
    cache.follow(change("m.room.topic", "other key"))
    cache.follow(change("m.room.topic", room="!other:x"))
    await server.ask(cache, TOPIC)
    assert server.asked == 1
    server.truth[TOPIC] = {"topic": "coffee"}
    cache.follow(change("m.room.topic"))
    assert await server.ask(cache, TOPIC) == {"topic": "coffee"}
    counts = cache.counts
    assert (counts.hits, counts.misses, counts.entries) == (3, 2, 1)
    assert counts.bytes > 0


async def test_that_there_is_nothing_is_known_too(autojump_clock: trio.testing.MockClock) -> None:
    server, cache = Homeserver(), Cache()
    assert await server.ask(cache, TOPIC) is None
    assert await server.ask(cache, TOPIC) is None
    assert server.asked == 1


async def test_a_member_changes_three_things(autojump_clock: trio.testing.MockClock) -> None:
    server, cache = Homeserver(), Cache()
    keys = [members_of(ROOM), profile_of("@a:x"), state_of(ROOM, "m.room.member", "@a:x"), profile_of("@b:x")]
    for key in keys:
        await server.ask(cache, key)
    cache.follow(change("m.room.member", "@a:x"))
    for key in keys:
        await server.ask(cache, key)
    assert server.asked == 4 + 3


@pytest.mark.parametrize(
    "update",
    [RoomUpdate(ROOM, "join", limited=True), RoomUpdate(ROOM, "leave"), RoomUpdate(ROOM, "invite")],
    ids=repr,
)
async def test_all_of_a_room_goes_when_not_all_changes_are_told(
    update: RoomUpdate, autojump_clock: trio.testing.MockClock
) -> None:
    server, cache = Homeserver(), Cache()
    kept = [profile_of("@a:x"), members_of("!other:x")]
    for key in [TOPIC, members_of(ROOM), *kept]:
        await server.ask(cache, key)
    cache.follow(update)
    server.asked = 0
    for key in kept:
        await server.ask(cache, key)
    assert server.asked == 0
    await server.ask(cache, TOPIC)
    await server.ask(cache, members_of(ROOM))
    assert server.asked == 2


async def test_an_answer_that_was_overtaken_by_a_change_is_not_kept(autojump_clock: trio.testing.MockClock) -> None:
    server, cache = Homeserver(), Cache()
    server.truth[TOPIC] = "old"
    server.gate = trio.Event()
    got: list[Any] = []

    async def ask() -> None:
        got.append(await server.ask(cache, TOPIC))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        server.truth[TOPIC] = "new"
        cache.follow(change("m.room.topic"))
        nursery.start_soon(ask)  # this one must not be given the first one's answer
        await trio.testing.wait_all_tasks_blocked()
        server.gate.set()
    assert sorted(got) == ["new", "old"]
    assert await server.ask(cache, TOPIC) == "new"
    assert server.asked == 2


async def test_the_same_question_at_a_time_is_asked_once_and_a_failure_by_the_next(
    autojump_clock: trio.testing.MockClock,
) -> None:
    cache, asked, gate = Cache(), 0, trio.Event()

    async def fetch() -> str:
        nonlocal asked
        asked += 1
        await gate.wait()
        if asked == 1:
            raise OSError("lost")
        return "known"

    got: list[str] = []

    async def ask() -> None:
        try:
            got.append(await cache.get(TOPIC, fetch))
        except OSError:
            got.append("lost")

    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(ask)
        await trio.testing.wait_all_tasks_blocked()
        assert asked == 1
        gate.set()
    assert sorted(got) == ["known"] * 4 + ["lost"]
    assert asked == 2


async def test_whoever_gives_up_leaves_the_question_to_the_next(autojump_clock: trio.testing.MockClock) -> None:
    server, cache = Homeserver(), Cache()
    server.gate = trio.Event()
    with trio.move_on_after(1):
        await server.ask(cache, TOPIC)
    server.gate.set()
    with trio.fail_after(1):
        await server.ask(cache, TOPIC)
    assert server.asked == 2


async def test_what_is_not_to_be_kept_is_asked_each_time(autojump_clock: trio.testing.MockClock) -> None:
    server, cache = Homeserver(), Cache()
    for _ in range(2):
        await server.ask(cache, TOPIC, keep=False)
    assert server.asked == 2
    assert cache.counts.entries == 0


async def test_age(autojump_clock: trio.testing.MockClock) -> None:
    server, cache = Homeserver(), Cache()
    await server.ask(cache, TOPIC)
    await trio.sleep(MAX_AGE)
    await server.ask(cache, TOPIC)
    assert server.asked == 1
    await trio.sleep(1)
    await server.ask(cache, TOPIC)
    assert server.asked == 2


async def test_it_is_bounded_and_the_least_used_goes_first(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "ENTRIES", 3)
    server, cache = Homeserver(), Cache()
    keys = [profile_of(f"@{n}:x") for n in range(4)]
    for key in (*keys[:3], keys[0], keys[3]):
        await server.ask(cache, key)
    assert cache.counts.entries == 3
    server.asked = 0
    await server.ask(cache, keys[0])
    assert server.asked == 0
    await server.ask(cache, keys[1])
    assert server.asked == 1


async def test_bytes_are_bounded_and_one_value_cannot_put_out_the_rest(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BYTES", 4000)
    server, cache = Homeserver(), Cache()
    for number in range(50):
        key = profile_of(f"@{number}:x")
        server.truth[key] = "x" * 500
        await server.ask(cache, key)
    counts = cache.counts
    assert counts.bytes <= 4000
    assert counts.entries == 7
    server.truth[TOPIC] = "x" * 2000
    await server.ask(cache, TOPIC)
    assert cache.counts == CacheCounts(0, 51, 7, counts.bytes)
    cache.clear()
    assert (cache.counts.entries, cache.counts.bytes) == (0, 0)


def test_sums() -> None:
    assert CacheCounts.of_all([]) == CacheCounts(0, 0, 0, 0)
    assert CacheCounts.of_all([CacheCounts(1, 2, 3, 4)] * 2) == CacheCounts(2, 4, 6, 8)


class CacheModel(RuleBasedStateMachine):
    """Changes, questions and their slow answers in any order: nothing kept is older than the last change told."""

    KEYS = (TOPIC, members_of(ROOM), profile_of("@a:x"), state_of(ROOM, "m.room.member", "@a:x"))

    def __init__(self) -> None:
        super().__init__()
        self.cache = Cache()
        self.version = dict.fromkeys(self.KEYS, 0)
        self.told = dict.fromkeys(self.KEYS, 0)
        self.under_way: list[tuple[Key, Any, int]] = []

    @rule(key=st.sampled_from(KEYS))
    def begin(self, key: Key) -> None:
        """A question goes out, and is answered with what is true now; the answer arrives later."""
        version = self.version[key]
        answers: list[int] = []

        class Later:
            def __await__(self) -> Any:
                while not answers:
                    yield
                return answers[0]

        coroutine = self.cache.get(key, Later)
        # no run loop: the clock is asked only where something is kept already, and then that is a hit
        if key in self.cache._entries or key in self.cache._fetches:
            coroutine.close()
            return
        coroutine.send(None)
        self.under_way.append((key, (coroutine, answers), version))

    @rule(data=st.data())
    def arrive(self, data: st.DataObject) -> None:
        if not self.under_way:
            return
        _, (coroutine, answers), version = self.under_way.pop(
            data.draw(st.integers(0, len(self.under_way) - 1), label="which")
        )
        answers.append(version)

        async def finish() -> None:
            class Rest:
                def __await__(self) -> Any:
                    return (yield from coroutine.__await__())

            await Rest()

        trio.run(finish)

    @rule(key=st.sampled_from(KEYS))
    def happen(self, key: Key) -> None:
        self.version[key] += 1

    @rule(whole=st.booleans())
    def sync(self, whole: bool) -> None:
        """All that happened is told, in detail or as a gap, after which profiles may be old."""
        updates = [change("m.room.topic"), change("m.room.member", "@a:x")]
        self.told = dict(self.version)
        if whole:
            updates.append(RoomUpdate(ROOM, "join", limited=True))
        for update in updates:
            self.cache.follow(update)

    @invariant()
    def nothing_kept_is_older_than_what_was_told(self) -> None:
        for key, entry in self.cache._entries.items():
            assert entry.value >= self.told[key]

    @invariant()
    def the_sums_are_right(self) -> None:
        assert self.cache.counts.bytes == sum(entry.size for entry in self.cache._entries.values())
        assert {key for keys in self.cache._about.values() for key in keys} == set(self.cache._entries)

    def teardown(self) -> None:
        for _, (coroutine, _), _ in self.under_way:
            coroutine.close()


TestCacheModel = CacheModel.TestCase
TestCacheModel.settings = settings(max_examples=60, stateful_step_count=30)
