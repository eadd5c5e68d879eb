"""The sync of encrypted rooms: keys before events, late keys, restarts between steps, and what is never read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import trio
import trio.testing
from mautrix.errors import MatrixConnectionError, make_request_error

from armorclaw.errors import ArmorclawError
from armorclaw.matrix import undecrypted
from armorclaw.matrix.answer import Answer
from armorclaw.matrix.rooms import RoomState
from armorclaw.matrix.undecrypted import MAX_AGE_MS

from .fake_encryption import FakeEncryption, key, sealed
from .test_sync import BOT, ROOM, Homeserver, House, Step, accept, answer, said

OTHER = "!other:x"
ENCRYPTION = {"type": "m.room.encryption", "state_key": "", "event_id": "$enc", "content": {"algorithm": "a"}}
CLEAR = "m.room.message"


def secret(body: str, session_id: str = "s", type_: str = CLEAR, **content: Any) -> dict[str, Any]:
    """What Ann said for those alone who have the key."""
    inner = sealed(type_, {"body": body, **content}, session_id)
    return {"type": "m.room.encrypted", "sender": "@ann:x", "event_id": f"${body}", "content": inner}


def with_keys(whole: dict[str, Any], *keys: dict[str, Any]) -> dict[str, Any]:
    return {**whole, "to_device": {"events": list(keys)}}


def house_of(homeserver: Homeserver, encryption: FakeEncryption | None, **more: Any) -> House:
    house = House(homeserver, encryption=encryption, **more)
    if encryption is not None:
        encryption.on_keys = house.loop.on_keys
    house.rooms.replace({ROOM: RoomState("join", True)})
    return house


def lost(house: House) -> list[tuple[str, str]]:
    """Which events were said to be undecryptable, and why."""
    contents = [event.plain()["content"] for event in house.events if event.type == undecrypted.TYPE]
    return [(content["event_id"], content["reason"]) for content in contents]


# --- keys, on time and late ---


async def test_a_key_in_the_same_answer_is_there_before_its_events(autojump_clock: trio.testing.MockClock) -> None:
    events = [*said("a"), secret("b"), *said("c"), secret("d")]
    house = house_of(Homeserver(with_keys(answer("s1", *events), key(ROOM))), FakeEncryption())
    await house.run(10)
    assert house.bodies == ["a", "b", "c", "d"]
    assert [event.type for event in house.events] == [CLEAR] * 4
    assert [event.sender for event in house.events] == ["@ann:x"] * 4
    assert house.desk.asked == ["$a", "$b", "$c", "$d"]


async def test_a_sync_from_nothing_has_devices_and_members_asked_for_anew(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It does not tell who left, nor whose devices changed, since the one before; but what it brings counts."""
    encryption, told = FakeEncryption(), []

    class Client(Homeserver):
        async def poll(self, since: str | None, seconds: float, *, full_state: bool = False) -> dict[str, Any]:
            told.append(since)
            return await super().poll(since, seconds, full_state=full_state)

    async def start_over() -> None:
        await trio.lowlevel.checkpoint()
        told.append("started over")

    encryption.start_over = start_over  # type: ignore[method-assign]
    encryption.absorbing = lambda: told.append("absorbed")
    refused = make_request_error(400, "", "M_UNKNOWN_POS", "unknown position")
    house = house_of(Client(answer("s1"), answer("s2"), refused, answer("s3"), answer("s4")), encryption, since=None)
    await house.run(20)
    first = [None, "started over", "absorbed"]
    assert told[:11] == [*first, "s1", "absorbed", "s2", *first, "s3", "absorbed"]


async def test_a_late_key_brings_its_events_once_in_order_and_before_newer_ones(
    autojump_clock: trio.testing.MockClock,
) -> None:
    late = answer("s1", secret("a"), secret("other", "t"), secret("b"), *said("plain"))
    house = house_of(
        Homeserver(late, with_keys(answer("s2", secret("c")), key(ROOM)), answer("s3", secret("b"))),
        FakeEncryption(),
    )
    await house.run(10, close=False)
    assert house.bodies == ["plain", "a", "b", "c"]
    assert house.undecrypted.count == 1  # of the other session
    assert house.status.undecryptable_waiting == 0  # who told it is not of this test's making
    assert house.conn.execute("SELECT event_id FROM undecrypted").fetchall() == [("$other",)]
    house.db.close()


async def test_a_key_that_comes_by_another_way_does_not_wait_for_the_next_answer(
    autojump_clock: trio.testing.MockClock,
) -> None:
    encryption = FakeEncryption()
    house = house_of(Homeserver(answer("s1", secret("a"))), encryption)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(house.run, 29)
        await trio.sleep(7)
        assert house.bodies == []
        encryption.receive(ROOM, "s")
        await trio.sleep(0.1)
        assert house.bodies == ["a"]
    assert len(house.homeserver.polls) == 3  # the poll that was cut short is made again, from the same place
    assert [since for _, since, _ in house.homeserver.polls] == ["s0", "s1", "s1"]


async def test_a_key_that_comes_while_another_is_tried_does_not_wait_either(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no poll then that could be cut short."""
    encryption = FakeEncryption()
    house = house_of(Homeserver(answer("s1", secret("a"), secret("b", "t"))), encryption)
    take_in, candidates = house.processor.take_in, house.undecrypted.candidates

    async def and_a_key(taken: Answer) -> None:
        await take_in(taken)
        if not encryption.keys:
            encryption.receive(ROOM, "s")

    async def and_another() -> list[int]:
        found = await candidates()
        if found and len(encryption.keys) == 1:
            encryption.receive(ROOM, "t")
        return found

    monkeypatch.setattr(house.processor, "take_in", and_a_key)
    monkeypatch.setattr(house.undecrypted, "candidates", and_another)
    await house.run(1)
    assert house.bodies == ["a", "b"]


async def test_keys_that_come_all_the_time_make_no_hot_loop_without_waiting_events(
    autojump_clock: trio.testing.MockClock,
) -> None:
    encryption = FakeEncryption()
    house = house_of(Homeserver(answer("s1", *said("a"))), encryption)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(house.run, 100)
        for number in range(100):
            await trio.sleep(0.9)
            encryption.receive(ROOM, f"s{number}")
    assert len(house.homeserver.polls) <= 6


async def test_what_waits_survives_a_restart_and_is_tried_again(autojump_clock: trio.testing.MockClock) -> None:
    before = house_of(Homeserver(answer("s1", secret("a"), secret("b", "t"))), FakeEncryption())
    await before.run(10, close=False)
    assert before.bodies == []
    # the key came, and the end before anything was made of it: its message will not come again
    after = house_of(Homeserver(), FakeEncryption((ROOM, "s")), store=before.db)
    await after.run(10, close=False)
    assert after.bodies == ["a"]
    assert after.undecrypted.count == 1
    last = house_of(Homeserver(), FakeEncryption((ROOM, "t")), store=before.db)
    await last.run(10)
    assert last.bodies == ["b"]


async def test_a_commit_that_fails_loses_neither_key_nor_event(autojump_clock: trio.testing.MockClock) -> None:
    encryption = FakeEncryption()
    homeserver = Homeserver(answer("s1", secret("a")), with_keys({"next_batch": "s2"}, key(ROOM)))
    house = house_of(homeserver, encryption)
    taken: list[str] = []

    def fail_once() -> None:
        if (ROOM, "s") in encryption.keys or len(homeserver.polls) < 2 or taken:
            return
        taken.append("failed")
        homeserver.answers = [with_keys({"next_batch": "s2"}, key(ROOM))]  # it says so again
        house.db.failures = [ArmorclawError("unavailable", "restarting")]

    encryption.absorbing = fail_once
    await house.run(30)
    assert taken
    assert house.bodies == ["a"]


async def test_decrypted_again_after_a_crash_it_is_the_same_event(autojump_clock: trio.testing.MockClock) -> None:
    encryption = FakeEncryption((ROOM, "s"))
    before = house_of(Homeserver(answer("s1", secret("a"))), encryption)
    await before.run(10, close=False)
    before.conn.execute("UPDATE accounts SET next_batch = 's0'")
    after = house_of(Homeserver(answer("s1", secret("a"), secret("b"))), encryption, store=before.db)
    await after.run(10)
    assert after.bodies == ["b"]


@pytest.mark.parametrize("at", ["absorb", "before commit", "after commit"])
async def test_killed_between_any_two_steps_each_event_is_journalled_once(
    at: str, autojump_clock: trio.testing.MockClock
) -> None:
    """The homeserver gives again what was not confirmed; the store of keys knows what it has seen."""

    class KilledError(Exception):
        pass

    def script() -> list[dict[str, Any]]:
        return [
            answer("s1", secret("a"), *said("b")),
            with_keys(answer("s2", secret("c")), key(ROOM)),
            answer("s3", secret("d")),
        ]

    encryption, store = FakeEncryption(), None
    for lives in range(12):
        house = house_of(Homeserver(), encryption, store=store)
        store, place = house.db, house.place or "s0"
        house.homeserver.answers = script()[int(place[1:]) :]  # type: ignore[assignment]
        left = lives  # the more lives, the later the end

        def end(point: str, at: str = at) -> None:
            nonlocal left
            if point == at:
                left -= 1
                if left == 0:
                    raise KilledError

        encryption.absorbing = lambda end=end: end("absorb")  # type: ignore[misc]
        store.point = end
        try:
            await house.run(10, close=False)
        except KilledError:
            pass
        store.point = lambda name: None
    assert store is not None
    rows = store.conn.execute("SELECT event_id FROM journal ORDER BY seq").fetchall()
    assert [event_id for (event_id,) in rows] == ["$b", "$a", "$c", "$d"]
    assert store.conn.execute("SELECT count(*) FROM undecrypted").fetchone() == (0,)
    store.close()


# --- what cannot be read ---


async def test_what_can_never_be_read_is_said_at_once_and_once(autojump_clock: trio.testing.MockClock) -> None:
    encryption = FakeEncryption()
    encryption.reasons["s"] = "replayed"
    house = house_of(Homeserver(answer("s1", secret("a")), answer("s2", secret("a"), *said("b"))), encryption)
    await house.run(10)
    assert lost(house) == [("$a", "replayed")]
    assert house.bodies == ["b"]
    (event,) = (event for event in house.events if event.type == undecrypted.TYPE)
    assert (event.event_id, event.room_id, event.severity) == (None, ROOM, "warning")
    assert house.status.decrypt_failures == 2


async def test_after_a_day_without_its_key_it_is_said(autojump_clock: trio.testing.MockClock) -> None:
    house = house_of(Homeserver(answer("s1", secret("a"))), FakeEncryption())
    await house.run(100, close=False)
    assert lost(house) == []
    house.now += MAX_AGE_MS / 1000
    await house.run(100, close=False)
    assert lost(house) == [("$a", "no_key")]
    assert house.undecrypted.count == 0
    house.now += MAX_AGE_MS / 1000
    await house.run(100)
    assert len(house.events) == 1


async def test_a_key_that_comes_on_the_last_day_is_in_time(autojump_clock: trio.testing.MockClock) -> None:
    house = house_of(Homeserver(answer("s1", secret("a"))), FakeEncryption())
    await house.run(100, close=False)
    house.now += 2 * MAX_AGE_MS / 1000  # nobody was there
    house.homeserver.answers = [with_keys({"next_batch": "s2"}, key(ROOM))]
    await house.run(100)
    assert house.bodies == ["a"]
    assert lost(house) == []


async def test_what_nobody_may_hear_any_more_is_forgotten_without_a_word(
    autojump_clock: trio.testing.MockClock,
) -> None:
    house = house_of(Homeserver(answer("s1", secret("a"), secret("b", "t"))), FakeEncryption())
    await house.run(10, close=False)
    house.grants.set("echo", "main", [])
    house.homeserver.answers = [with_keys({"next_batch": "s2"}, key(ROOM))]
    await house.run(10, close=False)
    house.now += MAX_AGE_MS / 1000
    await house.run(10)
    assert house.events == []
    assert house.undecrypted.count == 0


async def test_without_encryption_it_is_said_that_it_is_off(autojump_clock: trio.testing.MockClock) -> None:
    house = house_of(Homeserver(answer("s1", secret("a"), *said("b"))), None)
    await house.run(10)
    assert lost(house) == [("$a", "encryption_off")]
    assert house.bodies == ["b"]
    assert house.status.decrypt_failures == 0  # nothing is wrong


async def test_more_than_the_bound_are_said_to_be_lost(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(undecrypted, "PER_SESSION", 2)
    house = house_of(Homeserver(answer("s1", *(secret(name) for name in "abcd"))), FakeEncryption())
    await house.run(10)
    assert [event_id for event_id, _ in lost(house)] == ["$a", "$b"]
    assert house.undecrypted.count == 2


async def test_what_is_taken_back_while_it_waits_is_not_read_any_more(
    autojump_clock: trio.testing.MockClock,
) -> None:
    def redaction(of: str) -> dict[str, Any]:
        content = {"redacts": of}
        return {"type": "m.room.redaction", "sender": "@ann:x", "event_id": f"{of}-r", "content": content}

    together = [secret("a"), redaction("$a"), secret("b")]
    later = with_keys(answer("s3"), key(ROOM))
    house = house_of(Homeserver(answer("s1", *together), answer("s2", redaction("$b")), later), FakeEncryption())
    await house.run(10)
    assert house.bodies == []
    assert lost(house) == []
    assert [event.event_id for event in house.events] == ["$a-r", "$b-r"]


async def test_one_whose_content_was_taken_away_stays_what_it_is(autojump_clock: trio.testing.MockClock) -> None:
    empty = {**secret("a"), "content": {}, "unsigned": {"redacted_because": {}}}
    house = house_of(Homeserver(answer("s1", empty)), FakeEncryption())
    await house.run(10)
    assert [(event.type, event.content) for event in house.events] == [("m.room.encrypted", b"{}")]


# --- in the clear ---


@pytest.mark.mission("S.5")
async def test_what_is_in_the_clear_is_nobodys_from_when_the_room_is_known_to_be_encrypted(
    autojump_clock: trio.testing.MockClock,
) -> None:
    turns = answer("s2", *said("b"), ENCRYPTION, *said("c"))  # what was said before that is not lost
    house = house_of(
        Homeserver(answer("s1", *said("a")), turns, answer("s3", *said("d"), secret("e"))),
        FakeEncryption((ROOM, "s")),
    )
    house.strict = True
    house.rooms.replace({ROOM: RoomState("join")})
    await house.run(10)
    assert house.bodies == ["a", "b", "c", "d", "e"]
    heard = {event.event_id: event.addressed for event in house.events}
    assert heard == {"$a": None, "$b": None, "$c": (), "$d": (), "$e": None}


async def test_a_room_that_is_encrypted_once_more_was_encrypted_before(
    autojump_clock: trio.testing.MockClock,
) -> None:
    house = house_of(Homeserver(answer("s1", *said("a"), ENCRYPTION)), FakeEncryption())
    house.strict = True
    await house.run(10)
    assert [(event.event_id, event.addressed) for event in house.events] == [("$a", ())]


@pytest.mark.parametrize("state_first", [True, False])
async def test_in_a_room_that_was_encrypted_when_its_timeline_began_nothing_in_the_clear_is_heard(
    autojump_clock: trio.testing.MockClock, state_first: bool
) -> None:
    whole = answer("s1", *said("a"))
    if state_first:
        whole["rooms"]["join"][ROOM]["state"] = {"events": [ENCRYPTION]}
    house = house_of(Homeserver(whole), FakeEncryption())
    house.strict = True
    house.rooms.replace({ROOM: RoomState("join")})
    if not state_first:
        house.rooms.turned_encrypted(ROOM)  # as the homeserver has told when it was asked
    await house.run(10)
    assert [event.addressed for event in house.events] == [()]


async def test_what_was_missed_before_the_room_was_encrypted_is_heard(autojump_clock: trio.testing.MockClock) -> None:
    whole = answer("s1", *said("b"))
    room = whole["rooms"]["join"][ROOM]
    room["timeline"] |= {"limited": True, "prev_batch": "p1"}
    room["state"] = {"events": [ENCRYPTION]}
    homeserver = Homeserver(whole)
    homeserver.pages = [{"chunk": [ENCRYPTION, *said("a")]}]
    house = house_of(homeserver, FakeEncryption())
    house.strict = True
    house.rooms.replace({ROOM: RoomState("join")})
    await house.run(10)
    heard = {event.event_id: event.addressed for event in house.events}
    assert (heard["$a"], heard["$b"]) == (None, ())


# --- what is inside ---


async def test_what_is_inside_is_checked_like_anything_else(autojump_clock: trio.testing.MockClock) -> None:
    events = [
        secret("alert", type_="alert"),  # a word of the bridge's own
        secret("deep", type_=CLEAR, more=_deep(100)),
        secret("member", type_="m.room.member", membership="leave"),
        secret("redaction", type_="m.room.redaction", redacts="$x"),
        secret("again", type_="m.room.encrypted"),
        secret("", type_="m.reaction"),
        secret("long", type_="x" * 300),
        secret("emote", type_="org.example.emote"),
    ]
    events[5]["event_id"] = "$reaction"
    house = house_of(Homeserver(answer("s1", *events)), FakeEncryption((ROOM, "s")))
    await house.run(10)
    assert [(event.type, event.event_id) for event in house.events if event.type != undecrypted.TYPE] == [
        ("matrix.alert", "$alert"),
        ("gap", None),
        ("m.reaction", "$reaction"),
        ("org.example.emote", "$emote"),
    ]
    assert lost(house) == [("$member", "malformed"), ("$redaction", "malformed"), ("$again", "malformed")]


def _deep(levels: int) -> Any:
    value: Any = 1
    for _ in range(levels):
        value = [value]
    return value


async def test_an_encrypted_event_that_is_none(autojump_clock: trio.testing.MockClock) -> None:
    odd: list[Any] = [
        {**secret("a"), "event_id": None},
        {**secret("b"), "sender": 5},
        {**secret("c"), "state_key": ""},  # state is never encrypted
        secret("d"),
    ]
    house = house_of(Homeserver(answer("s1", *odd)), FakeEncryption((ROOM, "s")))
    await house.run(10)
    assert [(event.type, event.event_id) for event in house.events] == [("m.room.encrypted", "$c"), (CLEAR, "$d")]


async def test_our_own_come_back_without_being_read(autojump_clock: trio.testing.MockClock) -> None:
    encryption = FakeEncryption()
    echo = {**secret("m1"), "sender": BOT, "event_id": "$m1"}
    house = house_of(Homeserver(answer("s1", echo)), encryption)
    accept(house, 1)
    await house.run(10)
    assert [event.plain()["content"]["state"] for event in house.events] == ["delivered"]
    assert encryption.log == []
    assert house.desk.asked == ["$m1"]


async def test_nothing_is_read_in_rooms_that_are_nobodys(autojump_clock: trio.testing.MockClock) -> None:
    encryption = FakeEncryption((OTHER, "s"))
    foreign = {"next_batch": "s1", "rooms": {"join": {OTHER: {"timeline": {"events": [secret("a")]}}}}}
    house = house_of(Homeserver(foreign), encryption)
    await house.run(10)
    assert house.events == []
    assert ("decrypt", "$a") not in encryption.log


# --- verification ---


async def test_what_verifies_our_device_is_for_nobody_else(autojump_clock: trio.testing.MockClock) -> None:
    told: list[tuple[Any, ...]] = []

    def note(room: str, event_id: str, sender: str, type_: str, content: Mapping[str, Any]) -> None:
        told.append((room, event_id, sender, type_, content.get("body")))

    direct = {
        OTHER: {
            "state": {"events": []},
            "timeline": {"events": [secret("ask", msgtype="m.key.verification.request"), secret("not ours")]},
        },
        ROOM: {
            "timeline": {
                "events": [
                    {"type": "m.key.verification.ready", "sender": "@ann:x", "event_id": "$1", "content": {}},
                    secret("start", type_="m.key.verification.start"),
                    {"type": "m.key.verification.key", "sender": "@ann:x", "content": {}},
                    *said("a"),
                ]
            }
        },
    }
    encryption = FakeEncryption((ROOM, "s"), (OTHER, "s"))
    homeserver = Homeserver({"next_batch": "s1", "rooms": {"join": direct}})
    house = house_of(homeserver, encryption, on_verification=note)
    house.rooms.apply({OTHER: RoomState("join", True, direct="@ann:x")})
    await house.run(10)
    assert told == [
        (OTHER, "$ask", "@ann:x", CLEAR, "ask"),
        (ROOM, "$1", "@ann:x", "m.key.verification.ready", None),
        (ROOM, "$start", "@ann:x", "m.key.verification.start", "start"),
    ]
    assert house.bodies == ["a"]
    assert len(house.events) == 1


# --- gaps ---


async def test_what_a_gap_held_is_read_in_order(autojump_clock: trio.testing.MockClock) -> None:
    pages: list[Step] = [{"chunk": [secret("c"), *said("b")], "end": "p1"}, {"chunk": [secret("a")]}]
    homeserver = Homeserver(answer("s1", secret("d"), limited=True, prev_batch="p0"), pages=pages)
    encryption = FakeEncryption((ROOM, "s"))
    house = house_of(homeserver, encryption)
    await house.run(10)
    assert house.bodies == ["a", "b", "c", "d"]
    assert encryption.log[0] == ("forget", ROOM)  # who came and went in between, the state tells not


async def test_a_gap_whose_keys_are_late(autojump_clock: trio.testing.MockClock) -> None:
    pages = [{"chunk": [secret("b"), secret("a")]}]
    homeserver = Homeserver(
        answer("s1", secret("c"), limited=True, prev_batch="p0"),
        with_keys({"next_batch": "s2"}, key(ROOM)),
        pages=pages,
    )
    house = house_of(homeserver, FakeEncryption())
    await house.run(10)
    assert house.bodies == ["a", "b", "c"]


# --- what the encryption is told of rooms ---


def member(user: str, membership: str) -> dict[str, Any]:
    content = {"membership": membership}
    return {"type": "m.room.member", "state_key": user, "sender": user, "event_id": f"${user}", "content": content}


async def test_the_encryption_follows_encrypted_rooms_in_order(autojump_clock: trio.testing.MockClock) -> None:
    room = {
        "state": {"events": [ENCRYPTION]},
        "timeline": {"events": [member("@bob:x", "join"), *said("a"), member("@ann:x", "leave")]},
    }
    plain = {"timeline": {"events": [member("@bob:x", "join")]}}
    encryption = FakeEncryption()
    house = house_of(Homeserver({"next_batch": "s1", "rooms": {"join": {ROOM: room, OTHER: plain}}}), encryption)
    house.rooms.replace({ROOM: RoomState("join"), OTHER: RoomState("join")})
    await house.run(10)
    assert encryption.log == [
        ("state", ROOM, "m.room.encryption", ""),
        ("state", ROOM, "m.room.member", "@bob:x"),
        ("state", ROOM, "m.room.member", "@ann:x"),
    ]


@pytest.mark.parametrize("why", ["limited", "joined", "first", "over"])
async def test_whoever_may_have_come_or_gone_unseen_is_asked_for_anew(
    why: str, autojump_clock: trio.testing.MockClock
) -> None:
    encryption = FakeEncryption()
    cut = {"limited": why == "limited", "prev_batch": "p"}
    homeserver = Homeserver(answer("s1", member("@bob:x", "join"), **cut), pages=[{"chunk": []}])
    house = house_of(homeserver, encryption)
    if why == "joined":
        house.rooms.replace({ROOM: RoomState("leave", True)})
    elif why in ("first", "over"):
        house.processor.since = None
    await house.run(10)
    assert encryption.log == [("forget", ROOM), ("state", ROOM, "m.room.member", "@bob:x")]


async def test_a_room_that_turns_encrypted_is_known_to_be_before_anything_else_happens(
    autojump_clock: trio.testing.MockClock,
) -> None:
    encryption = FakeEncryption()
    homeserver = Homeserver(answer("s1"), answer("s2", ENCRYPTION, secret("a")))
    house = house_of(homeserver, encryption)
    house.rooms.replace({ROOM: RoomState("join")})
    known: list[bool | None] = []
    encryption.absorbing = lambda: known.append(house.rooms.must_encrypt(ROOM))
    house.db.failures = []
    await house.run(10, close=False)
    assert known[:2] == [None, True]
    assert house.conn.execute("SELECT encrypted FROM rooms").fetchall() == [(1,)]
    house.db.close()


async def test_it_stays_so_though_the_store_did_not_take_it(autojump_clock: trio.testing.MockClock) -> None:
    house = house_of(Homeserver(answer("s1"), answer("s2", ENCRYPTION)), FakeEncryption())
    house.rooms.replace({ROOM: RoomState("join")})
    with trio.move_on_after(1):
        await house.loop.run()
    house.homeserver.answers = [answer("s2", ENCRYPTION)]
    house.db.down = True
    await house.run(100)
    assert house.rooms.must_encrypt(ROOM) is True


async def test_that_a_room_is_not_encrypted_is_certain_only_while_the_sync_goes_on(
    autojump_clock: trio.testing.MockClock,
) -> None:
    homeserver = Homeserver(answer("s1"))
    house = house_of(homeserver, FakeEncryption())
    house.rooms.replace({ROOM: RoomState("join")})
    async with trio.open_nursery() as nursery:
        nursery.start_soon(house.loop.run)
        assert house.rooms.must_encrypt(ROOM) is None
        await trio.sleep(1)
        assert house.rooms.must_encrypt(ROOM) is False
        homeserver.forever = lambda: MatrixConnectionError("lost")
        await trio.sleep(40)
        assert house.rooms.must_encrypt(ROOM) is None
        homeserver.forever = None
        homeserver.answers = [{"next_batch": "s2"}]
        await trio.sleep(10)
        assert house.rooms.must_encrypt(ROOM) is False
        nursery.cancel_scope.cancel()
    house.db.close()


async def test_that_is_not_certain_while_a_poll_hangs_or_a_gap_is_filled(
    autojump_clock: trio.testing.MockClock,
) -> None:
    cut = answer("s2", *said("b"), limited=True, prev_batch="p")
    homeserver = Homeserver(answer("s1"), pages=[{"chunk": []}])
    house = House(homeserver, boottime=trio.current_time)
    house.rooms.replace({ROOM: RoomState("join")})
    page_back, poll = homeserver.page_back, homeserver.poll
    hangs = trio.Event()

    async def hang(*args: Any, **more: Any) -> Any:
        if homeserver.polls:
            await hangs.wait()
        return await poll(*args, **more)

    async def slow(*args: Any) -> Any:
        await trio.sleep(120)
        return await page_back(*args)

    homeserver.poll = hang  # type: ignore[method-assign]
    homeserver.page_back = slow  # type: ignore[method-assign, assignment]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(house.loop.run)
        await trio.sleep(30)
        assert house.rooms.must_encrypt(ROOM) is False
        await trio.sleep(15)
        assert house.rooms.must_encrypt(ROOM) is None
        homeserver.answers = [cut]
        hangs.set()
        await trio.sleep(119)
        assert house.rooms.must_encrypt(ROOM) is None
        await trio.sleep(2)
        assert house.bodies == ["b"]
        homeserver.answers = [answer("s3")]
        await trio.sleep(31)
        assert house.rooms.must_encrypt(ROOM) is False
        nursery.cancel_scope.cancel()
    house.db.close()


async def test_the_keys_are_told_how_far_the_sync_is_before_that_is_committed(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """And after all that the answer brought, so that they know no more than they have."""
    encryption = FakeEncryption()
    house = house_of(Homeserver(answer("s1", member("@bob:x", "join")), answer("s2")), encryption)
    stood: list[Any] = []
    stands = encryption.stands

    def note(since: str | None, next_batch: str) -> None:
        stood.append((house.place, next_batch, len(encryption.log)))
        stands(since, next_batch)

    encryption.stands = note  # type: ignore[method-assign]
    await house.run(10)
    assert encryption.places == [("s0", "s1"), ("s1", "s2")]
    assert stood == [("s0", "s1", 1), ("s1", "s2", 1)]


async def test_an_account_from_before_asks_once_for_all_that_is_kept_of_rooms(
    autojump_clock: trio.testing.MockClock,
) -> None:
    homeserver = Homeserver(MatrixConnectionError("lost"), answer("s1"), answer("s2"))
    house = House(homeserver)
    house.conn.execute("UPDATE accounts SET told = 0")
    again = House(homeserver, store=house.db)
    await again.run(10, close=False)
    assert homeserver.full_state[:4] == [True, True, False, False]
    assert House(homeserver, store=house.db).place == "s2"
    assert house.conn.execute("SELECT told FROM accounts").fetchone() == (1,)
    house.db.close()


# --- cancellation ---


async def test_cancelled_anywhere_it_goes_on_as_if_nothing_was(autojump_clock: trio.testing.MockClock) -> None:
    """At every checkpoint of three rounds in turn, with the store of both kept."""
    script = [
        answer("s1", secret("a"), *said("b")),
        with_keys(answer("s2", secret("c")), key(ROOM)),
        answer("s3", secret("d"), ENCRYPTION),
    ]
    ended = False
    for steps in range(1, 200):
        encryption = FakeEncryption()
        house = house_of(Homeserver(*script), encryption)
        ended = await _cancelled_after(house, steps)
        place = int((house.place or "s0")[1:])
        again = house_of(Homeserver(*script[place:]), encryption, store=house.db)
        await again.run(10, close=False)
        rows = house.conn.execute("SELECT event_id FROM journal ORDER BY seq").fetchall()
        assert [event_id for (event_id,) in rows] == ["$b", "$a", "$c", "$d", "$enc"][: len(rows)], steps
        assert len(rows) == 4, steps  # who made the room encrypted has no sender here
        house.db.close()
        if ended:
            break
    assert ended


async def _cancelled_after(house: House, steps: int) -> bool:
    """Whether it had nothing more to do by then."""
    task: list[trio.lowlevel.Task] = []

    async def run() -> None:
        task.append(trio.lowlevel.current_task())
        await house.undecrypted.load()
        await house.loop.run()

    class Count(trio.abc.Instrument):
        left = steps

        def before_task_step(self, stepped: trio.lowlevel.Task) -> None:
            if task and stepped is task[0]:
                self.left -= 1
                if self.left == 0:
                    scope.cancel()

    count = Count()
    async with trio.open_nursery() as nursery:
        scope = nursery.cancel_scope
        trio.lowlevel.add_instrument(count)
        nursery.start_soon(run)
        await trio.sleep(25)
        scope.cancel()
    trio.lowlevel.remove_instrument(count)
    return count.left > 0
