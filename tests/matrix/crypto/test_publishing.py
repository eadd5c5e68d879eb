"""Keys that others need of us are there, never run out, and are never lost in between."""

from __future__ import annotations

from typing import Any

import pytest
import trio
from mautrix.errors import MatrixConnectionError, MatrixRequestError, MUnknown, MUnrecognized
from trio.testing import MockClock

from armorclaw.matrix.crypto.publishing import FALLBACK_MS, FALLBACK_PAUSE, LOW, REPUBLISH_PAUSE, STOCK
from tests.matrix.crypto.conftest import ANN, BEN, Party, Time, Town

PLACE = (ANN, "A")


def stock(town: Town) -> int:
    return len(town.server.one_time_keys[PLACE])


async def test_a_device_publishes_itself_and_a_stock(town: Town) -> None:
    ann = await town.device(ANN, "A", published=False)
    await ann.encryption._publisher.publish()
    keys = town.server.device_keys[PLACE]["keys"]
    assert keys == {"curve25519:A": ann.encryption.identity_key, "ed25519:A": _bare(ann)}
    assert stock(town) == STOCK


def _bare(party: Party) -> str:
    return party.encryption.fingerprint.replace(" ", "")


async def test_a_stock_that_runs_low_is_filled(town: Town) -> None:
    ann = await town.device(ANN, "A")
    for _ in range(STOCK - LOW + 1):
        town.server.one_time_keys[PLACE].popitem()
    await ann.catch_up()
    assert ann.encryption._publisher.due()
    await ann.encryption._publisher.publish()
    assert stock(town) == STOCK


async def test_a_stock_that_is_not_low_is_left_alone(town: Town) -> None:
    ann = await town.device(ANN, "A")
    await ann.encryption._publisher.publish()
    for _ in range(STOCK - LOW):
        town.server.one_time_keys[PLACE].popitem()
    await ann.catch_up()
    town.server.calls.clear()
    await ann.encryption._publisher.publish()
    assert town.server.calls == []


async def test_a_fallback_key_is_there_for_the_time_without(town: Town, autojump_clock: MockClock) -> None:
    ann, ben = await town.pair()
    await ann.encryption._publisher.publish()
    first = town.server.fallback_keys[PLACE]
    town.server.one_time_keys[PLACE].clear()
    assert await ann.hear(await ben.say()) == "hello"
    await ann.encryption._publisher.publish()
    await trio.sleep(FALLBACK_PAUSE)
    await ann.catch_up()
    await ann.encryption._publisher.publish()
    assert town.server.fallback_keys[PLACE] != first
    assert stock(town) == STOCK


async def test_what_was_said_with_the_fallback_key_before_is_read(town: Town, autojump_clock: MockClock) -> None:
    """Somebody took it while the next one was on its way."""
    ann, ben = await town.pair()
    await ann.encryption._publisher.publish()
    town.server.one_time_keys[PLACE].clear()
    raw = await ben.say()
    ann.encryption._publisher.told(None, [])
    await trio.sleep(FALLBACK_PAUSE)
    await ann.encryption._publisher.publish()
    assert await ann.hear(raw) == "hello"


async def test_a_homeserver_that_knows_no_fallback_keys_gets_one_and_no_more(
    town: Town, autojump_clock: MockClock
) -> None:
    ann = await town.device(ANN, "A", published=False)
    await ann.encryption._publisher.publish()
    first = town.server.fallback_keys[PLACE]
    await trio.sleep(FALLBACK_PAUSE)
    ann.encryption._publisher.told({"signed_curve25519": 0}, None)
    await ann.encryption._publisher.publish()
    assert town.server.fallback_keys[PLACE] == first


async def test_an_answer_that_is_lost_publishes_nothing_twice(town: Town) -> None:
    ann = await town.device(ANN, "A", published=False)
    uploads = 0

    async def fail() -> None:
        raise MatrixConnectionError("away")

    def second(name: str) -> Any:
        nonlocal uploads
        uploads += name == "keys/upload"
        return fail() if uploads == 2 else None

    town.server.lost = second
    with pytest.raises(MatrixConnectionError):
        await ann.encryption._publisher.publish()
    assert stock(town) == STOCK
    town.server.lost = lambda name: None
    again = await town.restart(ann)
    await again.encryption._publisher.publish()
    assert stock(town) == STOCK
    ben = await town.device(BEN, "B")
    town.server.encrypt_room(ANN, BEN)
    assert await again.hear(await ben.say()) == "hello"


async def test_keys_that_were_published_are_on_disk(town: Town) -> None:
    """Killed right after: who takes one of them can still talk to us."""
    ann = await town.device(ANN, "A", published=False)
    with trio.CancelScope() as scope:
        uploads = 0

        def kill(name: str) -> Any:
            nonlocal uploads
            uploads += name == "keys/upload"
            if uploads == 2:
                scope.cancel()
                return wait()
            return None

        async def wait() -> None:
            await trio.lowlevel.checkpoint()

        town.server.lost = kill
        await ann.encryption._publisher.publish()
    town.server.lost = lambda name: None
    assert scope.cancelled_caught
    again = await town.restart(ann)
    ben = await town.device(BEN, "B")
    town.server.encrypt_room(ANN, BEN)
    assert await again.hear(await ben.say()) == "hello"


async def test_one_time_keys_that_are_there_already_are_passed_over(town: Town) -> None:
    """Of a life that the file remembers nothing of: an older backup, say."""
    ann = await town.device(ANN, "A", published=False)

    async def refuse() -> None:
        town.server.fault = lambda name: None
        raise MUnknown(400, "One time key signed_curve25519:AAAA already exists")

    uploads = 0

    def second(name: str) -> Any:
        nonlocal uploads
        uploads += name == "keys/upload"
        return refuse() if uploads == 2 else None

    town.server.fault = second
    with pytest.raises(MatrixRequestError):
        await ann.encryption._publisher.publish()
    assert stock(town) == 0
    fallback = town.server.fallback_keys[PLACE]  # of all else the homeserver has none yet
    await ann.encryption._publisher.publish()
    assert stock(town) == STOCK
    assert town.server.fallback_keys[PLACE] == fallback
    assert PLACE in town.server.device_keys


async def test_upkeep_publishes_until_it_is_done(town: Town, autojump_clock: MockClock) -> None:
    ann = await town.device(ANN, "A", published=False)
    failures = 5

    async def fail() -> None:
        raise MatrixConnectionError("away")

    def often(name: str) -> Any:
        nonlocal failures
        failures -= 1
        return fail() if failures >= 0 else None

    town.server.fault = often
    with trio.move_on_after(200):
        await ann.encryption.run()
    assert stock(town) == STOCK


async def test_a_homeserver_without_encryption_is_hardly_asked(town: Town, autojump_clock: MockClock) -> None:
    ann = await town.device(ANN, "A", published=False)

    async def refuse() -> None:
        raise MUnrecognized(404, "there is no such thing")

    town.server.fault = lambda name: refuse()
    with trio.move_on_after(24 * 3600):
        await ann.encryption.run()
    assert 10 <= len(town.server.calls) <= 60


async def test_a_homeserver_that_never_has_enough_is_hardly_served(town: Town, autojump_clock: MockClock) -> None:
    ann = await town.device(ANN, "A")

    async def always_short() -> None:
        while True:
            await trio.sleep(1)
            ann.encryption._publisher.told({}, None)

    town.server.calls.clear()
    with trio.move_on_after(3600):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ann.encryption.run)
            nursery.start_soon(always_short)
    assert town.server.calls.count("keys/upload") <= 40


async def test_a_message_waits_for_the_keys_that_prove_it(town: Town) -> None:
    """Nobody would believe a device that the homeserver does not know."""
    town.server.encrypt_room(ANN, BEN)
    ann, ben = await town.device(ANN, "A", published=False), await town.device(BEN, "B")

    async def fail() -> None:
        raise MatrixConnectionError("away")

    town.server.fault = lambda name: fail() if name == "keys/upload" else None
    with pytest.raises(MatrixConnectionError):
        await ann.say()
    town.server.fault = lambda name: None
    assert await ben.hear(await ann.say()) == "hello"


async def test_a_device_that_is_missed_while_keys_go_up_is_published_all_the_same(
    town: Town, autojump_clock: MockClock
) -> None:
    ann = await town.device(ANN, "A")
    await trio.sleep(REPUBLISH_PAUSE)
    publisher = ann.encryption._publisher
    publisher.told({}, None)
    lost: list[bool] = []

    async def lose() -> None:
        town.server.lost = lambda name: None
        town.server.device_keys.pop(PLACE)
        town.server.one_time_keys[PLACE].clear()
        lost.append(publisher.missed())

    town.server.lost = lambda name: lose() if name == "keys/upload" else None
    await publisher.publish()
    assert lost == [True]
    await publisher.ensure_device()
    assert PLACE in town.server.device_keys
    assert stock(town) == STOCK
    assert not publisher.missed()  # that it is back may be told late


async def test_a_device_that_is_there_after_all_keeps_its_fallback_key(town: Town, autojump_clock: MockClock) -> None:
    """What is said with it may be on its way; a second new one would have it forgotten."""
    ann = await town.device(ANN, "A")
    first = town.server.fallback_keys[PLACE]
    await trio.sleep(REPUBLISH_PAUSE)
    assert ann.encryption._publisher.missed()
    await ann.encryption._publisher.ensure_device()
    assert town.server.fallback_keys[PLACE] == first
    assert not ann.encryption._publisher.due()


async def test_what_came_to_nothing_is_not_written_down_with_new_keys(
    town: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one-time key that a message used up is in the file still; it is needed when the message comes again."""
    ann, ben = await town.pair()
    raw = await ben.say()
    answer = town.server.answer(ANN, "A")

    def fail(*args: Any) -> None:
        raise OSError("no disk")

    with monkeypatch.context() as patch:
        patch.setattr(ann.encryption._keys, "_keep", fail)
        with pytest.raises(OSError, match="no disk"):
            await ann.encryption.absorb(answer)
    town.server.one_time_keys[PLACE].clear()
    ann.encryption._publisher.told({}, None)
    await ann.encryption._publisher.publish()
    assert stock(town) == STOCK
    await ann.encryption.absorb(answer)
    assert await ann.read(raw) == "hello"


async def test_a_fallback_key_grows_old_whatever_the_homeserver_says(town: Town, autojump_clock: MockClock) -> None:
    ann = await town.device(ANN, "A")
    first = town.server.fallback_keys[PLACE]
    await trio.sleep(FALLBACK_MS / 2000)
    again = await town.restart(ann)
    await again.encryption._publisher.publish()
    assert town.server.fallback_keys[PLACE] == first
    await trio.sleep(FALLBACK_MS / 2000)
    await again.catch_up()
    await again.encryption._publisher.publish()
    assert town.server.fallback_keys[PLACE] != first
    assert not again.encryption._publisher.due()


async def test_a_fallback_key_of_which_nobody_knows_the_age_is_replaced(
    town: Town, time: Time, autojump_clock: MockClock
) -> None:
    ann = await town.device(ANN, "A")
    keys = [town.server.fallback_keys[PLACE]]

    async def publish(party: Party) -> bool:
        """Whether that brought another one."""
        party.encryption._publisher.told({}, None)
        await party.encryption._publisher.publish()
        keys.append(town.server.fallback_keys[PLACE])
        return keys[-1] != keys[-2]

    ann.encryption.db.run("DELETE FROM facts WHERE name = 'fallback_ms'")  # so are files from before
    ann = await town.restart(ann)
    assert await publish(ann)
    time.ahead -= 30 * 24 * 3600  # the clock was wrong; but the one before may be in use still
    ann = await town.restart(ann)
    assert not await publish(ann)
    await trio.sleep(FALLBACK_PAUSE)
    assert await publish(ann)
    await trio.sleep(FALLBACK_PAUSE)
    assert not await publish(ann)


async def test_what_was_said_long_ago_cannot_be_brought_again(town: Town, autojump_clock: MockClock) -> None:
    """By a homeserver that gave out the fallback key, and says that nobody took it."""
    ann, ben = await town.pair()
    town.server.one_time_keys[PLACE].clear()
    raw = await ben.say()
    town.server.fallback_used.clear()
    old = town.server.answer(ANN, "A")
    await ann.encryption.absorb(old)
    assert await ann.read(raw) == "hello"
    for _ in range(2):
        await trio.sleep(FALLBACK_MS / 1000)
        await ann.catch_up()
        await ann.encryption._publisher.publish()
    for table in ("channels", "room_keys", "seen"):
        ann.encryption.db.run(f"DELETE FROM {table}")
    ann.encryption._keys._open.clear()
    await ann.encryption.absorb(old)
    assert (await ann.why_not(raw)).reason == "no_key"
    assert ann.encryption.counts["messages_refused"] == 1


async def test_a_fallback_key_serves_on_for_a_while_however_often_it_is_taken(
    town: Town, autojump_clock: MockClock
) -> None:
    ann, ben = await town.pair()
    await trio.sleep(FALLBACK_PAUSE)
    town.server.one_time_keys[PLACE].clear()
    raw = await ben.say()
    late, first = town.server.inbox[PLACE], town.server.fallback_keys[PLACE]
    for number in range(3):
        if number == 2:
            ann = await town.restart(ann)
        ann.encryption._publisher.told(None, [])
        await ann.encryption._publisher.publish()
        await trio.sleep(FALLBACK_PAUSE / 4)
    assert town.server.fallback_keys[PLACE] != first
    town.server.inbox[PLACE] = late
    await ann.catch_up()
    assert await ann.read(raw) == "hello"
