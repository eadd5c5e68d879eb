"""Gaps in timelines: rooms that cannot be fetched, long absences, and what is too large to take in at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import trio
import trio.testing
from mautrix.errors import MatrixConnectionError, make_request_error

from armorclaw.errors import ArmorclawError
from armorclaw.matrix import gaps, portions
from armorclaw.matrix.decoding import NotJSONError
from armorclaw.matrix.rooms import RoomState
from armorclaw.store import Connection

from .test_sync import ROOM, Homeserver, House, Step, answer, own, read_by, said

BAD = "!bad:x"
FAILED = make_request_error(500, "", "M_UNKNOWN", "out of order")
Page = tuple[list[Any], str | None]


class Rooms(Homeserver):
    """Answers /messages by room; `asked` counts the attempts of each."""

    def __init__(self, *answers: Step, pages: Callable[[str, str], Page]) -> None:
        super().__init__(*answers)
        self.asked: dict[str, int] = {}
        self._page = pages

    async def page_back(self, room_id: str, start: str, end: str, limit: int) -> Page:
        await trio.lowlevel.checkpoint()
        self.asked[room_id] = self.asked.get(room_id, 0) + 1
        return self._page(room_id, start)


def house_of(homeserver: Homeserver, *rooms: str) -> House:
    house = House(homeserver)
    house.rooms.apply({room: RoomState("join") for room in rooms})
    house.grants.set("echo", "main", [ROOM, *rooms])
    return house


def cut(token: str, **rooms: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Limited timelines, by room: `good` is `!good:x`."""
    joined = {
        f"!{name}:x": {"timeline": {"events": events, "limited": True, "prev_batch": "p0"}}
        for name, events in rooms.items()
    }
    return {"next_batch": token, "rooms": {"join": joined}}


def failing(error: Exception) -> Callable[[str, str], Page]:
    def page(room_id: str, start: str) -> Page:
        if room_id == BAD:
            raise error
        return said("older"), None

    return page


@pytest.mark.parametrize(
    "error",
    [FAILED, MatrixConnectionError("timed out"), NotJSONError("a web page")],
    ids=["500", "silent", "nonsense"],
)
async def test_a_room_that_cannot_be_fetched_does_not_hold_up_the_others(
    error: Exception, autojump_clock: trio.testing.MockClock
) -> None:
    homeserver = Rooms(pages=failing(error))
    replies = {"s0": cut("s1", bad=said("b"), room=said("newer")), "s1": cut("s2", bad=said("c"))}
    homeserver.forever = lambda: replies.get(homeserver.polls[-1][1] or "", {"next_batch": "s2"})
    house = house_of(homeserver, BAD)
    await house.run(20)
    assert house.processor.since == "s2"
    assert [event.event_id for event in house.events if event.room_id == ROOM] == ["$older", "$newer"]
    of_bad = [event for event in house.events if event.room_id == BAD]
    assert [(event.type, event.event_id) for event in of_bad] == [
        ("gap", None),
        ("m.room.message", "$b"),
        ("gap", None),
        ("m.room.message", "$c"),
    ]
    assert str(error.args[-1] if isinstance(error, NotJSONError) else "") in of_bad[0].plain()["content"]["reason"]
    # the second time it gets one attempt: it has not worked since
    assert homeserver.asked[BAD] == gaps.GAP_ATTEMPTS + 1
    assert len({event.id for event in of_bad}) == 4


async def test_a_homeserver_that_is_away_as_a_whole_is_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    away: list[Step] = [MatrixConnectionError("cannot connect")] * 50
    limited = cut("s1", room=said("c"))
    troubles: list[Exception] = [FAILED] * (gaps.GAP_ATTEMPTS - 1)

    def pages(room_id: str, start: str) -> Page:
        if troubles:
            raise troubles.pop()
        return said("b", "a"), None

    house = House(Rooms(*[limited] * 2, *away, *[limited] * 2, *away, limited, pages=pages))
    await house.run(3600)
    assert house.bodies == ["a", "b", "c"]
    assert [event.type for event in house.events] == ["m.room.message"] * 3


async def test_many_rooms_that_fail_are_given_up_together(autojump_clock: trio.testing.MockClock) -> None:
    def pages(room_id: str, start: str) -> Page:
        raise FAILED

    names = [f"r{n}" for n in range(50)]
    homeserver = Rooms(pages=pages)
    everything = cut("s1", **{name: said(name) for name in names})
    homeserver.forever = lambda: everything if homeserver.polls[-1][1] == "s0" else {"next_batch": "s1"}
    house = house_of(homeserver, *(f"!{name}:x" for name in names))
    await house.run(60)
    assert sum(homeserver.asked.values()) == gaps.ROUND_ATTEMPTS
    assert sum(event.type == "gap" for event in house.events) == 50
    assert sorted(house.bodies) == sorted(names)


async def test_a_token_that_is_unknown_while_a_gap_is_filled_ends_the_loop(
    autojump_clock: trio.testing.MockClock,
) -> None:
    def pages(room_id: str, start: str) -> Page:
        raise make_request_error(401, "", "M_UNKNOWN_TOKEN", "who?")

    house = House(Rooms(cut("s1", room=said("a")), pages=pages))
    with trio.fail_after(5):
        await house.loop.run()
    assert house.processor.since == "s0"


async def test_a_gap_behind_an_empty_timeline_is_filled(autojump_clock: trio.testing.MockClock) -> None:
    house = House(Rooms(cut("s1", room=[]), pages=lambda room, start: (said("missed"), None)))
    await house.run(5)
    assert house.bodies == ["missed"]


async def test_a_gap_that_cannot_be_found_is_told(autojump_clock: trio.testing.MockClock) -> None:
    house = House(Homeserver(answer("s1", limited=True)))
    await house.run(5)
    assert [event.type for event in house.events] == ["gap"]


async def test_what_all_rooms_of_an_answer_missed_is_bounded_in_bytes(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gaps, "HAND_LIMIT", 30_000)
    numbers = iter(range(1_000_000))

    def pages(room_id: str, start: str) -> Page:
        return [{**said(f"{room_id}{next(numbers)}")[0], "content": {"body": "x" * 4_000}} for _ in range(5)], "more"

    rooms = [f"!r{n}:x" for n in range(3)]
    house = house_of(Rooms(cut("s1", r0=said("a"), r1=said("b"), r2=said("c")), pages=pages), *rooms)
    await house.run(10)
    assert [sum(event.type == "gap" for event in house.events if event.room_id == room) for room in rooms] == [
        1,
        1,
        1,
    ]
    older = [event for event in house.events if event.content.startswith(b'{"body":"xxx')]
    assert 4 <= len(older) <= 30_000 // 5_000
    assert [event.type for event in house.events if event.room_id == ROOM] == []
    assert {"a", "b", "c"} <= set(house.bodies)


class Watching:
    """Notes what each transaction brings."""

    def __init__(self, house: House) -> None:
        self.portions: list[tuple[int, int]] = []
        write = house.db.write

        async def watched(work: Callable[[Connection], Any], **more: Any) -> Any:
            def counted(conn: Connection) -> Any:
                new = work(conn)
                self.portions.append((len(new), sum(len(event.content) for event in new)))
                return new

            return await write(counted, **more)

        house.db.write = watched  # type: ignore[method-assign]


@pytest.mark.parametrize("size", [10, 60_000])
async def test_a_long_answer_goes_in_by_portions_in_order(size: int, autojump_clock: trio.testing.MockClock) -> None:
    def pages(room_id: str, start: str) -> Page:
        first = int(start[1:]) * 100
        bodies = [f"{n:05}" for n in range(first, first + 100)]
        page = [{**raw, "content": {"body": raw["content"]["body"], "more": "x" * size}} for raw in said(*bodies)]
        return page, f"p{start[1:] and int(start[1:]) + 1}" if first < 900 else None

    house = House(Rooms(cut("s1", room=said("last")), pages=pages))
    watching = Watching(house)
    await house.run(10)
    assert house.bodies[-1] == "last"
    assert house.bodies[:-1] == sorted(house.bodies[:-1], reverse=True)
    assert len(house.bodies) > 200
    assert len(house.bodies) == 1_001 or house.events[0].type == "gap"  # 1,000 of 60 KB are too many
    assert len(watching.portions) > 4
    assert max(count for count, _ in watching.portions) <= portions.PORTION
    assert max(taken for _, taken in watching.portions) <= portions.PORTION_BYTES
    assert house.processor.since == "s1"


async def test_many_receipts_go_in_by_portions(autojump_clock: trio.testing.MockClock) -> None:
    part = read_by(**{f"ann{n}": f"$e{n}" for n in range(1_000)})
    house = House(Homeserver({"next_batch": "s1", "rooms": {"join": {ROOM: part}}}))
    watching = Watching(house)
    await house.run(5)
    assert len(watching.portions) == 1_000 // portions.PORTION


@pytest.mark.parametrize("when", [1, 2, 3, 4])
async def test_a_store_that_fails_between_portions_costs_nothing_and_tells_nothing_twice(
    when: int, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second time the homeserver would give more: it would stand behind what is newer, and so is left out."""
    monkeypatch.setattr(portions, "PORTION", 4)
    refused = [make_request_error(403, "", "M_FORBIDDEN", "no")]

    def pages(room_id: str, start: str) -> Page:
        if start == "p0":
            return said(*"fedcb"), "p1"
        if refused:
            raise refused.pop()
        return said("a"), None

    limited = cut("s1", room=[*said(*"ghijklm"), own(1)])
    house = House(Rooms(limited, limited, pages=pages))
    full = ArmorclawError("storage_full", "no space left")
    checks = 0

    def check() -> None:
        nonlocal checks
        checks += 1
        if checks == when:
            raise full

    house.db._check = check  # type: ignore[method-assign]
    await house.run(10)
    assert house.bodies == list("bcdefghijklm")
    assert [event.type for event in house.events].count("gap") == 1
    assert house.events[0].type == "gap"
    assert house.processor.since == "s1"
