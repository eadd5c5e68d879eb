from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from armorclaw.events.durable.reading import Reading
from armorclaw.events.event import Event


def event(seq: int, room: str = "!a:x", **more: Any) -> Event:
    where: dict[str, Any] = {"account": "main", "room_id": room, "event_id": f"${seq}", **more}
    return Event("m.room.message", b"{}", 0, str(seq), seq=seq, **where)


def test_a_room_is_read_up_to_the_first_that_is_not_answered() -> None:
    reading = Reading()
    for seq, room in ((1, "!a:x"), (2, "!b:x"), (3, "!a:x"), (4, "!a:x")):
        reading.give(event(seq, room))
    assert reading.settle(0, 3) == []
    assert reading.settle(0, 4) == []
    (seen,) = reading.settle(0, 1)
    assert (seen.account, seen.room_id, seen.event_id, seen.seq) == ("main", "!a:x", "$4", 4)
    assert [seen.seq for seen in reading.settle(2, None)] == [2]
    assert reading.settle(9, 9) == []


def test_what_is_no_message_of_a_room_is_none_of_its_business() -> None:
    reading = Reading()
    reading.give(event(1, account=None))
    reading.give(event(2, room_id=None))
    reading.give(event(3, event_id=None))
    assert reading.settle(9, None) == []


def test_what_is_given_up_is_not_read_but_holds_up_nothing() -> None:
    reading = Reading()
    for seq in (1, 2, 3):
        reading.give(event(seq))
    reading.settle(0, 2)
    reading.forget(1)
    assert [seen.seq for seen in reading.settle(0, 1)] == [2]
    reading.forget(3)
    assert reading.settle(0, 3) == []
    reading.forget(9)


def test_one_that_was_not_given_up_after_all_is_read() -> None:
    reading = Reading()
    reading.give(event(1))
    reading.forget(1)
    reading.give(event(1))
    assert [seen.seq for seen in reading.settle(0, 1)] == [1]


@given(st.lists(st.tuples(st.integers(1, 30), st.booleans()), max_size=60))
def test_however_it_is_answered(answers: list[tuple[int, bool]]) -> None:
    """Against what it means, said plainly; and it keeps no more than twice what is open."""
    reading = Reading()
    rooms = {seq: f"!{seq % 3}:x" for seq in range(1, 31)}
    for seq, room in rooms.items():
        reading.give(event(seq, room))
    answered: set[int] = set()
    told = dict.fromkeys(rooms.values(), 0)
    for seq, cumulative in answers:
        answered |= {one for one in rooms if one <= seq} if cumulative else {seq}
        seen = reading.settle(seq if cumulative else 0, None if cumulative else seq)
        for room in told:
            mine = [one for one in rooms if rooms[one] == room]
            first = next((one for one in mine if one not in answered), 99)
            last = max((one for one in mine if one < first), default=0)
            expected = [last] if last > told[room] else []
            assert [one.seq for one in seen if one.room_id == room] == expected
            told[room] = max(told[room], last)
        assert sum(map(len, reading._rooms.values())) <= 2 * len(set(rooms) - answered)
