"""What encryption does by itself goes on whatever happens, never in a hurry, and ends at once when it is told to."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from mautrix.errors import MatrixConnectionError, MForbidden
from structlog.testing import capture_logs
from trio.testing import MockClock

from armorclaw.errors import ArmorclawError
from armorclaw.matrix.crypto.encryption import DevicePolicy
from armorclaw.matrix.crypto.failures import KeysLost
from armorclaw.matrix.crypto.upkeep import MAX_REPAIRS, SEEN_MS, TIDY_PAUSE
from tests.matrix.crypto.conftest import ANN, BEN, Party, Time, Town
from tests.matrix.crypto.key_server import ROOM

Ready = Callable[[Town], Awaitable[Party]]


async def unpublished(town: Town) -> Party:
    return await town.device(ANN, "A", published=False)


async def outdated(town: Town) -> Party:
    ann, _ = await town.pair()
    ann.encryption.devices.follow([BEN])
    return ann


async def wedged(town: Town) -> Party:
    ann, ben = await town.pair()
    await ann.hear(await ben.say())
    ann.encryption.db.run("DELETE FROM channels")
    ann.encryption._upkeep.repair(BEN, ben.encryption.identity_key)
    return ann


async def missing(town: Town) -> Party:
    ann, ben = await town.pair()
    await town.device(BEN, "B2")
    town.server.touch(BEN)
    await ben.catch_up()
    await ben.why_not(await ann.say())
    await trio.sleep(6)
    return ben


async def asked(town: Town) -> Party:
    ben = await missing(town)
    ben.encryption.db.run("DELETE FROM wanted")
    await ben.encryption.devices.refresh([BEN])
    content = {"action": "request", "request_id": "r", "requesting_device_id": "B2"}
    ben.encryption._requests.asked(BEN, {**content, "body": {"room_id": ROOM, "session_id": "s"}})
    return ben


PHASES: dict[str, tuple[Ready, str]] = {
    "is the device known": (unpublished, "keys/query"),
    "publishing": (unpublished, "keys/upload"),
    "asking for devices": (outdated, "keys/query"),
    "claiming a key": (wedged, "keys/claim"),
    "replacing a channel": (wedged, "sendToDevice"),
    "asking for a room key": (missing, "sendToDevice"),
    "answering": (asked, "sendToDevice"),
}


@pytest.mark.parametrize("phase", list(PHASES))
async def test_it_ends_at_once_in_each_phase(town: Town, autojump_clock: MockClock, phase: str) -> None:
    prepare, where = PHASES[phase]
    party = await prepare(town)
    reached = trio.Event()

    async def hang() -> None:
        reached.set()
        await trio.sleep_forever()

    town.server.fault = lambda name: hang() if name == where else None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(party.encryption.run)
        with trio.fail_after(60):
            await reached.wait()
        began = trio.current_time()
        nursery.cancel_scope.cancel()
    assert trio.current_time() == began


async def test_it_ends_at_once_with_nothing_to_do(town: Town, autojump_clock: MockClock) -> None:
    ann, _ = await town.pair()
    town.server.calls.clear()
    with trio.move_on_after(10 * TIDY_PAUSE) as scope:
        await ann.encryption.run()
    assert scope.cancelled_caught
    assert town.server.calls == []


@pytest.mark.parametrize("phase", list(PHASES))
async def test_what_fails_for_a_while_is_done_in_the_end(town: Town, autojump_clock: MockClock, phase: str) -> None:
    prepare, where = PHASES[phase]
    party = await prepare(town)
    left = 4

    async def fail() -> None:
        raise MatrixConnectionError("away")

    def fault(name: str) -> Any:
        nonlocal left
        if name == where and left:
            left -= 1
            return fail()
        return None

    town.server.fault = fault
    town.server.calls.clear()
    with trio.move_on_after(120):
        await party.encryption.run()
    assert left == 0
    assert town.server.calls.count(where) >= 5


@pytest.mark.parametrize("phase", list(PHASES))
async def test_what_is_refused_is_hardly_tried_again(town: Town, autojump_clock: MockClock, phase: str) -> None:
    prepare, where = PHASES[phase]
    party = await prepare(town)

    async def refuse() -> None:
        raise MForbidden(403, "no")

    town.server.fault = lambda name: refuse() if name == where else None
    town.server.calls.clear()
    with trio.move_on_after(3600):
        await party.encryption.run()
    assert 1 <= town.server.calls.count(where) <= 3


async def test_one_that_fails_does_not_hold_up_the_others(town: Town, autojump_clock: MockClock) -> None:
    ann = await wedged(town)
    ann.encryption.devices.changed([BEN])

    async def refuse() -> None:
        raise MForbidden(403, "no")

    town.server.fault = lambda name: refuse() if name == "keys/query" else None
    with trio.move_on_after(60):
        await ann.encryption.run()
    assert ann.encryption.counts["unwedged"] == 1


async def test_a_disk_that_fails_for_a_while_is_waited_for(
    town: Town, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = await outdated(town)
    failures = [ArmorclawError("storage_failed", "the disk"), OSError("the disk")]
    due = ann.encryption.devices.due

    def failing() -> list[str]:
        if failures:
            raise failures.pop()
        return due()

    monkeypatch.setattr(ann.encryption.devices, "due", failing)
    with capture_logs() as logs, trio.move_on_after(60):
        await ann.encryption.run()
    assert not ann.encryption.devices.is_pending(BEN)
    assert [log["event"] for log in logs] == ["cannot ask for devices"] * 2


async def test_a_file_that_is_lost_is_the_end(
    town: Town, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann, _ = await town.pair()

    def damaged() -> list[str]:
        raise KeysLost("damaged")

    monkeypatch.setattr(ann.encryption.devices, "due", damaged)
    with pytest.raises(KeysLost):
        await ann.encryption.run()


async def test_what_was_seen_is_forgotten_in_time(town: Town, time: Time, autojump_clock: MockClock) -> None:
    ann, ben = await town.pair()
    await ben.hear(await ann.say())
    assert ben.encryption.db.all("SELECT count(*) FROM seen")[0][0] == 1
    with trio.move_on_after(1):
        await ben.encryption.run()
    assert ben.encryption.db.all("SELECT count(*) FROM seen")[0][0] == 1
    time.ahead += SEEN_MS / 1000 + 1
    with trio.move_on_after(1):
        await ben.encryption.run()
    assert ben.encryption.db.all("SELECT count(*) FROM seen")[0][0] == 0


async def test_a_busy_log_is_moved_into_the_file(
    town: Town, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann, ben = await town.pair(ben=DevicePolicy("yes"))
    moved: list[float] = []
    checkpoint = ben.encryption.db.checkpoint

    async def noted() -> None:
        moved.append(trio.current_time())
        await checkpoint()

    monkeypatch.setattr(ben.encryption.db, "checkpoint", noted)
    raws = [await ann.say() for _ in range(100)]
    await ben.catch_up()
    await ben.encryption.db.checkpoint()
    moved.clear()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ben.encryption.run)
        await trio.sleep(1)
        before = len(moved)
        for life in range(6):
            ben.encryption.db.run("DELETE FROM heard WHERE ?", life)
            for raw in raws:
                await ben.read(raw)
        await trio.sleep(1)
        assert len(moved) == before + 1
        nursery.cancel_scope.cancel()


async def test_broken_channels_are_bounded(town: Town) -> None:
    ann, _ = await town.pair()
    for number in range(MAX_REPAIRS + 5):
        ann.encryption._upkeep.repair(BEN, str(number))
    assert len(ann.encryption._upkeep._broken) == MAX_REPAIRS


async def test_a_stranger_with_a_broken_channel_costs_one_question(town: Town, autojump_clock: MockClock) -> None:
    """Messages in the name of devices that there are not."""
    ann, _ = await town.pair()
    for number in range(50):
        content = {
            "algorithm": "m.olm.v1.curve25519-aes-sha2",
            "sender_key": str(number),
            "ciphertext": {ann.encryption.identity_key: {"type": 0, "body": "AAAA"}},
        }
        town.server.tell(ANN, "A", "m.room.encrypted", BEN, content)
    town.server.calls.clear()
    await ann.encryption.absorb(town.server.answer(ANN, "A"))
    with trio.move_on_after(60):
        await ann.encryption.run()
    assert town.server.calls == ["keys/query"]


@pytest.mark.parametrize("trouble", [OSError("the disk"), ArmorclawError("storage_full", "the disk")])
async def test_a_channel_that_the_disk_does_not_take_is_replaced_later(
    town: Town, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, trouble: Exception
) -> None:
    ann = await wedged(town)
    sync, troubles = ann.encryption.db.sync, [trouble]

    async def failing() -> None:
        if troubles:
            raise troubles.pop()
        await sync()

    monkeypatch.setattr(ann.encryption.db, "sync", failing)
    with capture_logs() as logs, trio.move_on_after(60):
        await ann.encryption.run()
    assert [log["event"] for log in logs] == ["cannot replace channels"]
    assert ann.encryption.counts["unwedged"] == 1
