"""The bridge ends by SIGKILL at every numbered point of the paths in and out, and nobody notices more than a pause.

A point is one commit of the store, one request to the homeserver, or one write to a socket, before or after it. The
points are those that a first, whole run has passed; then each has a trial of its own.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from collections.abc import Set as AbstractSet

import pytest
import trio

from tests.faults.lives import (
    MARKS,
    OTHER,
    ROOM,
    TOLD,
    Trial,
    Zygote,
    new_zygote,
    open_trial,
    operator,
    passed,
    short_folder,
)

IN_AND_OUT = {
    f"{side} {what}"
    for side in ("before", "after")
    for what in (
        "POST login",
        "commit of Entrance._attempt",
        "GET sync",
        "commit of Intake.take",
        "write of event",
        "commit of Cursor._settle",
        "commit of Outbox.enqueue_all",
        "PUT send",
        "commit of Outbox.settle",
        "write of answer",
        "POST receipt",
    )
}
"""What must be among the points: each step of a message from the homeserver to the agent, and back."""

WITH_KEYS = {
    f"{side} {what}"
    for side in ("before", "after")
    for what in (
        "commit of DeviceSession._encryption",
        "POST keys/upload",
        "GET sync",
        "commit of keys",
        "commit of Intake.take",
        "POST keys/query",
        "GET members",
        "PUT sendToDevice",
        "PUT send",
        "commit of Outbox.settle",
    )
}
"""What must be among them where a room is encrypted; only such points are tried there."""


PARTS = 4
"""Tests that share the points."""

WORKERS = 2
"""Trials at a time."""

TRIES = 3
REACHED = 0.9
"""How often a point is tried, and the share of a part's points that must be met in the end: which connection is
served first, and what goes into one write, is chance, so that the last of a kind is not passed in each run. The first
of each kind in `IN_AND_OUT` is in every part, and of each of these kinds at least one must be met there."""


async def conversation(trial: Trial) -> None:
    """Three questions in two rooms, their answers, a word of the operator's, and somebody who reads it."""
    with trial.within("synced"):
        await trial.town.synced.wait()
    trial.say(ROOM, "one")
    trial.say(OTHER, "two")
    async with operator(trial) as client:
        await trial.send(client, ROOM, "by the way")
        trial.say(ROOM, "three")
        await trial.until_heard()
        event_id = trial.town.event_of(ROOM, "re: three")
        assert event_id is not None
        trial.town.read(ROOM, event_id)
        await trial.until_settled(client, told=TOLD)
        trial.check(await trial.deliveries(client), marks=MARKS)


async def keep_alive(trial: Trial, zygote: Zygote, crash: str | None) -> None:
    async with zygote.bridge(trial.order(watched=True, crash=crash)) as life:
        await trial.until_ended(life, -9 if crash else None)
    async with zygote.bridge(trial.order()) as life:
        await trial.until_ended(life, None)


async def trial_with(zygote: Zygote, crash: str | None, encrypted: Sequence[str]) -> tuple[list[str], bool]:
    """One conversation; the points passed, and whether the bridge was killed at `crash`."""
    with short_folder() as folder:
        async with open_trial(folder, encrypted=encrypted) as trial, trio.open_nursery() as nursery:
            nursery.start_soon(keep_alive, trial, zygote, crash)
            await conversation(trial)
            nursery.cancel_scope.cancel(reason="all is said")
        return passed(folder), trial.statuses == [-9]


@pytest.mark.timeout(300)
@pytest.mark.mission("P1.1", "P3.1", "P3.3")
@pytest.mark.parametrize("part", range(PARTS))
async def test_a_crash_at_every_point_loses_nothing_and_doubles_nothing(part: int) -> None:
    await sweep(part, IN_AND_OUT)


@pytest.mark.timeout(300)
@pytest.mark.mission("M.e2ee")
@pytest.mark.parametrize("part", range(PARTS))
async def test_nor_where_one_of_the_rooms_is_encrypted(part: int) -> None:
    """And no key of the ratchet is used twice, no one-time key handed out twice, not a word in the clear."""
    await sweep(part, WITH_KEYS, encrypted=[ROOM])


async def sweep(part: int, kinds: AbstractSet[str], *, encrypted: Sequence[str] = ()) -> None:
    """A trial for each point of this part; `kinds` must be among the points."""
    with new_zygote() as zygote:
        points, _ = await trial_with(zygote, None, encrypted)
    passed_by = {kind_of(point) for point in points}
    assert passed_by >= kinds, f"the conversation does not take all the ways, not {sorted(kinds - passed_by)}"
    if encrypted:  # what else there is has nothing to do with keys
        points = [point for point in points if kind_of(point) in kinds]
        kinds = {kind_of(point) for point in sorted(points)[part::PARTS]}
    mine = share(points, part, () if encrypted else kinds)
    waiting = deque(mine)
    reached: list[str] = []
    missed: Counter[str] = Counter()
    failed: dict[str, BaseException] = {}

    async def work() -> None:
        with new_zygote() as zygote:
            while waiting:
                point = waiting.popleft()
                try:
                    _, crashed = await trial_with(zygote, point, encrypted)
                except Exception as error:  # noqa: BLE001 - all points are tried, then all failures told
                    failed[point] = error
                    continue
                if crashed:
                    reached.append(point)
                else:
                    missed[point] += 1
                    waiting.extend([point] * (missed[point] < TRIES))

    async with trio.open_nursery() as nursery:
        for _ in range(WORKERS):
            nursery.start_soon(work)
    assert not failed, "\n\n".join(f"at {point}: {_words(error)}" for point, error in failed.items())
    never = sorted(set(mine) - set(reached))
    print(f"part {part}: {len(reached)} of {len(mine)} points met; not met in {TRIES} tries: {never}")
    not_at_all = kinds - {kind_of(point) for point in reached}
    assert not not_at_all, f"no point of these kinds was met: {sorted(not_at_all)}; of all, not met: {never}"
    assert len(reached) >= REACHED * len(mine), f"not met in {TRIES} tries: {never}"


def kind_of(point: str) -> str:
    return point.partition(" #")[0]


def share(points: list[str], part: int, firsts: Iterable[str] = IN_AND_OUT) -> list[str]:
    """The points of one part: every fourth, and of these kinds the first."""
    return sorted({*sorted(points)[part::PARTS], *(f"{kind} #1" for kind in firsts)})


def test_each_point_is_in_a_part_and_each_kind_in_all() -> None:
    points = [f"{kind} #{number}" for kind in (*IN_AND_OUT, "before commit of something") for number in range(1, 4)]
    parts = [share(points, part) for part in range(PARTS)]
    assert set().union(*parts) == set(points)
    assert all({kind_of(point) for point in part} >= IN_AND_OUT for part in parts)


def _words(error: BaseException) -> str:
    if isinstance(error, BaseExceptionGroup):
        return "; ".join(_words(each) for each in error.exceptions)
    return f"{type(error).__name__}: {error}"
