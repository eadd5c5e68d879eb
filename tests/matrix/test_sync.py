"""The sync loop on a clock of its own, against homeservers good and bad, and stores that come and go."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import pytest
import trio
import trio.testing
from mautrix.errors import MatrixConnectionError, make_request_error
from structlog.testing import capture_logs

from armorclaw.clock import Clock, Surroundings
from armorclaw.delivery import rows
from armorclaw.delivery.message import Delivery
from armorclaw.delivery.receipts import Receipts
from armorclaw.errors import ArmorclawError
from armorclaw.events.event import Event
from armorclaw.events.journal import Journal
from armorclaw.guard.grants import Grants
from armorclaw.matrix import cache, gaps
from armorclaw.matrix.cache import Key
from armorclaw.matrix.facts import Facts
from armorclaw.matrix.intake import Intake
from armorclaw.matrix.login import Login, load, save
from armorclaw.matrix.processing import Processor
from armorclaw.matrix.reading import OnVerification, Reader
from armorclaw.matrix.rooms import Rooms, RoomState
from armorclaw.matrix.status import SessionState, SessionStatus
from armorclaw.matrix.sync import SyncLoop
from armorclaw.matrix.undecrypted import Undecrypted
from tests.events.inline_store import InlineDatabase

BOT = "@bot:x"
ROOM = "!room:x"
Step = dict[str, Any] | Exception


class Homeserver:
    """Answers /sync and /messages from scripts; when those are through, a sync is held back for its full time."""

    mxid = BOT

    def __init__(self, *answers: Step, pages: Sequence[Step] = ()) -> None:
        self.answers = list(answers)
        self.pages = list(pages)
        self.polls: list[tuple[float, str | None, float]] = []
        self.forever: Callable[[], Step] | None = None
        self.full_state: list[bool] = []

    async def poll(self, since: str | None, seconds: float, *, full_state: bool = False) -> dict[str, Any]:
        self.polls.append((trio.current_time(), since, seconds))
        self.full_state.append(full_state)
        await trio.lowlevel.checkpoint()
        if self.answers:
            return _given(self.answers.pop(0))
        if self.forever is not None:
            return _given(self.forever())
        await trio.sleep(seconds)
        return {"next_batch": since or "s0"}

    async def page_back(self, room_id: str, start: str, end: str, limit: int) -> tuple[list[Any], str | None]:
        await trio.lowlevel.checkpoint()
        page = _given(self.pages.pop(0))
        return page["chunk"], page.get("end")


def _given(step: Step) -> dict[str, Any]:
    if isinstance(step, Exception):
        raise step
    return step


class Store(InlineDatabase):
    """Fails as often as there are `failures`."""

    def __init__(self) -> None:
        super().__init__()
        self.failures: list[ArmorclawError] = []

    def _check(self) -> None:
        if self.failures:
            raise self.failures.pop(0)


class Desk:
    """Has for whoever is granted the room what is said there; in `asked` it is as it came."""

    def __init__(self, grants: Grants) -> None:
        self._grants = grants
        self.asked: list[str] = []

    def covers(self, room_id: str) -> bool:
        return bool(self._grants.agents_in("main", room_id))

    def hears(self, room_id: str, sender: str) -> bool:
        return self.covers(room_id)

    def own(self, event_id: str, txn_id: str | None) -> None:
        self.asked.append(event_id)

    def follows(self, event: Event) -> str | None:
        return None

    async def place(self, event: Event, *, in_clear: bool = False) -> Event | None:
        self.asked.append(event.event_id or "")
        return attrs.evolve(event, addressed=()) if in_clear else event


class House:
    """A sync loop with all it needs; `since` as if it had run before, `encryption` if it has some.

    With the `store` of another it is what comes after that one's end.
    """

    def __init__(
        self,
        homeserver: Homeserver,
        since: str | None = "s0",
        encryption: Any = None,
        store: Store | None = None,
        on_verification: OnVerification | None = None,
        boottime: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.homeserver = homeserver
        self.strict = False
        """Whether what is in the clear in encrypted rooms is told from what is not."""
        self.now = 1.7e9
        self.db = store or Store()
        if store is None:
            save(self.conn, "main", Login("http://x", BOT, "DEVICE", "token"))
            self.conn.execute("UPDATE accounts SET next_batch = ?, told = ?", [since, since is not None])
        around = Surroundings(Clock(wall=lambda: self.now, boottime=boottime), random.Random(1))
        db: Any = self.db
        journal = Journal(db, around.clock)
        self.events: list[Event] = []
        journal.subscribe_hub(self.events.extend)
        self.receipts = Receipts(around.clock)
        self.grants = grants = Grants()
        grants.set("echo", "main", [ROOM])
        self.rooms = Rooms("main", around.clock)
        self.rooms.apply({ROOM: RoomState("join")})
        facts = Facts("main", self.rooms)
        self.cache = facts.cache
        self.status = SessionStatus("main", "http://x", around.clock)
        self.connected = self.moves = 0
        self.desk = Desk(grants)
        self.undecrypted = Undecrypted("main", db, around.clock)
        stored = load(self.conn, "main")
        assert stored is not None
        client: Any = homeserver
        reader = Reader(
            "main",
            BOT,
            around.clock,
            desk=self.desk,
            outcomes=self.status,
            undecrypted=self.undecrypted,
            encryption=encryption,
            on_verification=on_verification,
            is_encrypted=lambda room_id: self.strict and self.rooms.encrypted(room_id),
        )
        intake = Intake("main", db, journal, self.receipts, self.undecrypted)
        self.processor = Processor(
            client, stored, facts, reader, intake, encryption, around.clock, moved=self.count_moves
        )
        self.loop = SyncLoop(client, self.processor, self.status, around, connected=self.count)

    @property
    def conn(self) -> sqlite3.Connection:
        return self.db.conn

    @property
    def bodies(self) -> list[str]:
        return [event.plain()["content"]["body"] for event in self.events if event.type == "m.room.message"]

    def count(self) -> None:
        self.connected += 1

    def count_moves(self) -> None:
        self.moves += 1

    async def run(self, seconds: float, *, close: bool = True) -> None:
        """Let it work for so long; then the store is closed, unless somebody goes on with it."""
        conn: Any = self.conn
        self.undecrypted.noted(self.undecrypted.look(conn))
        with trio.move_on_after(seconds):
            await self.loop.run()
        if close:
            self.db.close()

    @property
    def place(self) -> str | None:
        login = load(self.conn, "main")
        assert login is not None
        return login.next_batch


def said(*bodies: str) -> list[dict[str, Any]]:
    return [
        {"type": "m.room.message", "sender": "@ann:x", "event_id": f"${body}", "content": {"body": body}}
        for body in bodies
    ]


def answer(token: str, *events: dict[str, Any], **timeline: Any) -> dict[str, Any]:
    return {"next_batch": token, "rooms": {"join": {ROOM: {"timeline": {"events": list(events), **timeline}}}}}


async def test_events_come_once_and_in_order(autojump_clock: trio.testing.MockClock) -> None:
    own = {**said("mine")[0], "sender": BOT}
    house = House(Homeserver(answer("s1", *said("a", "b"), own), answer("s2", *said("b", "c"))))
    await house.run(100)
    assert house.bodies == ["a", "b", "c"]
    assert house.processor.since == "s2"
    assert [since for _, since, _ in house.homeserver.polls[:3]] == ["s0", "s1", "s2"]
    assert house.homeserver.polls[0][2] == 0  # the first answer is wanted at once
    assert house.homeserver.polls[1][2] == 30
    assert house.connected == 1


async def test_the_first_sync_takes_the_token_and_no_history(autojump_clock: trio.testing.MockClock) -> None:
    house = House(Homeserver(answer("s1", *said("old")), answer("s2", *said("new"))), since=None)
    await house.run(10)
    assert house.bodies == ["new"]


@pytest.mark.parametrize(
    "trouble",
    [
        make_request_error(502, "", None, "HTTP 502"),
        MatrixConnectionError("cannot connect"),
        {"next_batch": None},
        {},
    ],
    ids=repr,
)
async def test_trouble_makes_no_hot_loop_and_is_logged_once(
    trouble: Step, autojump_clock: trio.testing.MockClock
) -> None:
    homeserver = Homeserver()
    homeserver.forever = lambda: trouble
    house = House(homeserver)
    with capture_logs() as logs:
        await house.run(3600)
    assert len(homeserver.polls) <= 3600  # on average at most one a second
    assert len(homeserver.polls) > 1000  # and yet its return is seen soon
    assert len(logs) == 1
    assert logs[0]["event"] == "waiting for homeserver"
    assert house.status.state is SessionState.WAITING
    assert house.connected == 0


async def test_it_comes_back_within_two_seconds_and_loses_nothing(autojump_clock: trio.testing.MockClock) -> None:
    homeserver = Homeserver()
    down_until = trio.current_time() + 600

    def forever() -> Step:
        if trio.current_time() < down_until:
            return MatrixConnectionError("cannot connect")
        homeserver.forever = None
        return answer("s1", *said("waited"))

    homeserver.forever = forever
    house = House(homeserver)
    with capture_logs() as logs:
        await house.run(700)
    assert house.bodies == ["waited"]
    times = [at for at, _, _ in homeserver.polls]
    assert min(at for at in times if at >= down_until) - down_until <= 2
    assert [line["event"] for line in logs] == ["waiting for homeserver", "homeserver answers again"]
    assert house.connected == 1


async def test_new_trouble_after_good_times_is_retried_soon(autojump_clock: trio.testing.MockClock) -> None:
    lost = MatrixConnectionError("lost")
    homeserver = Homeserver(*[lost] * 6, answer("s1", *said("a")), lost, answer("s2", *said("b")))
    house = House(homeserver)
    await house.run(60)
    assert house.bodies == ["a", "b"]
    failed, again = (at for at, _, _ in homeserver.polls[7:9])
    assert again - failed <= 0.25


@pytest.mark.parametrize("told", [None, 45.0])
async def test_a_rate_limit_is_kept(told: float | None, autojump_clock: trio.testing.MockClock) -> None:
    limit = make_request_error(429, "", "M_LIMIT_EXCEEDED", "slow")
    limit.retry_after = told  # type: ignore[attr-defined]
    homeserver = Homeserver(limit, answer("s1", *said("a")))
    house = House(homeserver)
    await house.run(60)
    first, second = (at for at, _, _ in homeserver.polls[:2])
    assert second - first >= (told or 0.12)
    assert second - first <= (told or 0.12) + 0.2
    assert house.bodies == ["a"]


@pytest.mark.parametrize(
    "reply",
    [answer("s0", *said("same again")), {"next_batch": "s0"}, {"next_batch": "s1"}],
    ids=["the same token and events", "nothing, same token", "nothing, new token"],
)
async def test_a_homeserver_that_never_holds_back_is_not_asked_in_a_hot_loop(
    reply: Step, autojump_clock: trio.testing.MockClock
) -> None:
    homeserver = Homeserver()
    homeserver.forever = lambda: reply
    house = House(homeserver)
    await house.run(600)
    assert len(homeserver.polls) <= 600
    assert len(house.bodies) <= 1


async def test_an_unknown_token_ends_the_loop(autojump_clock: trio.testing.MockClock) -> None:
    house = House(Homeserver(answer("s1"), make_request_error(401, "", "M_UNKNOWN_TOKEN", "who?")))
    with trio.fail_after(100):
        await house.loop.run()
    assert len(house.homeserver.polls) == 2


async def test_a_refused_place_begins_anew_and_says_that_something_may_be_missing(
    autojump_clock: trio.testing.MockClock,
) -> None:
    refusal = make_request_error(400, "", "M_UNKNOWN_POS", "unknown position")
    house = House(Homeserver(refusal, answer("t1", *said("old")), answer("t2", *said("new"))))
    await house.run(20)
    gap, new = house.events
    assert (gap.type, gap.room_id) == ("gap", ROOM)
    assert new.event_id == "$new"
    assert [since for _, since, _ in house.homeserver.polls[:3]] == ["s0", None, "t1"]


async def test_a_refusal_that_will_not_pass_is_asked_seldom(autojump_clock: trio.testing.MockClock) -> None:
    homeserver = Homeserver()
    homeserver.forever = lambda: make_request_error(403, "", "M_FORBIDDEN", "no")
    house = House(homeserver)
    await house.run(3600)
    assert len(homeserver.polls) <= 121


async def test_a_gap_is_filled_in_order(autojump_clock: trio.testing.MockClock) -> None:
    pages: list[Step] = [{"chunk": said("d", "c"), "end": "p1"}, {"chunk": said("b", "a"), "end": None}]
    house = House(Homeserver(answer("s1", *said("e", "f"), limited=True, prev_batch="p0"), pages=pages))
    await house.run(10)
    assert house.bodies == ["a", "b", "c", "d", "e", "f"]


@pytest.mark.parametrize(
    "trouble", [MatrixConnectionError("lost"), make_request_error(502, "", None, "HTTP 502")], ids=repr
)
async def test_a_gap_that_fails_in_the_middle_is_asked_again_as_a_whole(
    trouble: Exception, autojump_clock: trio.testing.MockClock
) -> None:
    cut = answer("s1", *said("c"), limited=True, prev_batch="p0")
    pages: list[Step] = [
        {"chunk": said("b"), "end": "p1"},
        trouble,
        {"chunk": said("b"), "end": "p1"},
        {"chunk": said("a"), "end": None},
    ]
    house = House(Homeserver(cut, cut, pages=pages))
    await house.run(10)
    assert house.bodies == ["a", "b", "c"]
    assert house.homeserver.polls[1][1] == "s0"


async def test_a_gap_that_is_refused_or_too_long_is_told(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(gaps, "GAP_LIMIT", 2)
    cut = answer("s1", *said("c"), limited=True, prev_batch="p0")
    long: list[Step] = [{"chunk": said(f"{n}"), "end": f"p{n}"} for n in range(5)]
    refused: list[Step] = [make_request_error(403, "", "M_FORBIDDEN", "no")]
    for pages, bodies in ((long, ["1", "0", "c"]), (refused, ["c"])):
        house = House(Homeserver(cut, pages=pages))
        await house.run(10)
        assert house.events[0].type == "gap"
        assert house.bodies == bodies


async def test_pages_without_end_are_bounded(autojump_clock: trio.testing.MockClock) -> None:
    """`end` for ever: with events the bound ends it, without events the empty page does."""
    cut = answer("s1", *said("c"), limited=True, prev_batch="p0")
    house = House(Homeserver(cut, pages=[{"chunk": [], "end": None}]))
    await house.run(10)
    assert house.bodies == ["c"]


async def test_a_store_that_restarts_costs_nothing(autojump_clock: trio.testing.MockClock) -> None:
    house = House(Homeserver(answer("s1", *said("a")), answer("s1", *said("a"))))
    house.db.failures = [ArmorclawError("unavailable", "the store is restarting")]
    await house.run(10)
    assert house.bodies == ["a"]
    assert [since for _, since, _ in house.homeserver.polls[:3]] == ["s0", "s0", "s1"]


async def test_a_store_that_is_broken_ends_the_loop(autojump_clock: trio.testing.MockClock) -> None:
    house = House(Homeserver(answer("s1", *said("a"))))
    house.db.failures = [ArmorclawError("storage_corrupt", "no")]
    with pytest.raises(ArmorclawError):
        await house.loop.run()


async def test_a_room_joined_now_gives_nothing_from_before(autojump_clock: trio.testing.MockClock) -> None:
    join = {"type": "m.room.member", "state_key": BOT, "sender": BOT, "content": {"membership": "join"}}
    join["event_id"] = "$join"
    whole = House(Homeserver(answer("s1", *said("before"), join, *said("after"))))
    pages: list[Step] = [{"chunk": [*said("b"), join, *said("before")], "end": "p1"}]
    cut = House(Homeserver(answer("s1", *said("c"), limited=True, prev_batch="p0"), pages=pages))
    for house, bodies in ((whole, ["after"]), (cut, ["b", "c"])):
        house.rooms.replace({})
        await house.run(10)
        assert house.bodies == bodies


async def test_the_rooms_and_the_place_are_stored_with_the_events(autojump_clock: trio.testing.MockClock) -> None:
    encryption = {"type": "m.room.encryption", "state_key": "", "content": {}}
    joined = {"!new:x": {"state": {"events": [encryption]}}, ROOM: {"timeline": {"events": said("a")}}}
    first = {"next_batch": "s1", "rooms": {"join": joined, "invite": {"!asked:x": {}}}}
    then = {"next_batch": "s2", "rooms": {"leave": {"!new:x": {}}}}
    house = House(Homeserver(first, then))
    with trio.move_on_after(10):
        await house.loop.run()
    assert house.place == "s2"
    fresh = Rooms("main")
    assert fresh.load(house.conn) == {"!new:x": RoomState("leave", True), "!asked:x": RoomState("invite")}
    assert house.rooms.encrypted("!new:x")
    house.db.close()


async def test_many_events_leave_room_for_others(autojump_clock: trio.testing.MockClock) -> None:
    """An answer with 20,000 events must not hold the loop for long: others get their turn in between."""
    turns = 0

    async def other() -> None:
        nonlocal turns
        while True:
            turns += 1
            await trio.lowlevel.checkpoint()

    house = House(Homeserver(answer("s1", *said(*(str(n) for n in range(20_000))))))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        nursery.start_soon(house.loop.run)
        while len(house.events) < 20_000:
            await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert turns > 30
    house.db.close()


# --- what becomes of our own messages ---


def accept(house: House, number: int, *, room: str = ROOM, sent: bool = True) -> None:
    """A message of the outbox; its event id is `$m<number>`, known here if its PUT was answered."""
    delivery = Delivery(f"d{number}", f"ac_{number}", "main", "echo", room, "m.room.message", "queued", 0)
    delivery = rows.insert(house.conn, delivery, b"{}")
    if sent:
        rows.settle(house.conn, attrs.evolve(delivery, state="sent", event_id=f"$m{number}"))


def own(number: int, **more: Any) -> dict[str, Any]:
    """Its echo."""
    return {**said(f"m{number}")[0], "sender": BOT, **more}


def read_by(**readers: str) -> dict[str, Any]:
    """The receipts of a room, by the reader's name: `ann="$event"`."""
    content: dict[str, Any] = {}
    for name, event_id in readers.items():
        content.setdefault(event_id, {"m.read": {}})["m.read"][f"@{name}:x"] = {"ts": 1}
    return {"ephemeral": {"events": [{"type": "m.receipt", "content": content}]}}


def room_answer(token: str, part: dict[str, Any], room: str = ROOM) -> dict[str, Any]:
    return {"next_batch": token, "rooms": {"join": {room: part}}}


def told(house: House) -> list[tuple[str, str]]:
    """What senders were told, and what others said, in the order of the journal."""
    found = []
    for event in house.events:
        content = event.plain()["content"]
        is_told = event.type == "delivery"
        found.append((content["delivery_id"], content["state"]) if is_told else (event.event_id or "", event.type))
    return found


async def test_echoes_are_told_at_their_place_and_receipts_cover_what_is_before(
    autojump_clock: trio.testing.MockClock,
) -> None:
    house = House(
        Homeserver(
            answer("s1", own(1), *said("a"), own(2, unsigned={"transaction_id": "ac_2"}), *said("b"), own(3)),
            room_answer("s2", read_by(ann="$b")),
            room_answer("s3", read_by(ann="$m3")),
        )
    )
    accept(house, 1)
    accept(house, 2, sent=False)  # its answer was lost: only the transaction id tells whose it is
    accept(house, 3)
    await house.run(10)
    assert told(house) == [
        ("d1", "delivered"),
        ("$a", "m.room.message"),
        ("d2", "delivered"),
        ("$b", "m.room.message"),
        ("d3", "delivered"),
        ("d1", "read"),
        ("d2", "read"),
        ("d3", "read"),
    ]
    assert [event.seq for event in house.events] == sorted(event.seq for event in house.events)
    assert house.events[-1].plain()["content"]["by"] == "@ann:x"


async def test_an_echo_and_its_receipt_in_one_answer_and_a_receipt_that_is_ahead(
    autojump_clock: trio.testing.MockClock,
) -> None:
    house = House(
        Homeserver(
            room_answer("s1", {"timeline": {"events": [own(1)]}, **read_by(ann="$m1")}),
            room_answer("s2", read_by(ann="$later")),
            answer("s3", own(2), *said("later")),
        )
    )
    for number in (1, 2):
        accept(house, number)
    await house.run(10)
    assert [one for one in told(house) if one[1] != "m.room.message"] == [
        ("d1", "delivered"),
        ("d1", "read"),
        ("d2", "delivered"),
        ("d2", "read"),
    ]


async def test_our_own_receipts_say_nothing(autojump_clock: trio.testing.MockClock) -> None:
    house = House(Homeserver(answer("s1", own(1)), room_answer("s2", read_by(bot="$m1"))))
    accept(house, 1)
    await house.run(10)
    assert told(house) == [("d1", "delivered")]


async def test_somebody_else_read_what_we_did_too(autojump_clock: trio.testing.MockClock) -> None:
    """One event, two readers: ours first."""
    house = House(Homeserver(answer("s1", own(1)), room_answer("s2", read_by(bot="$m1", ann="$m1"))))
    accept(house, 1)
    await house.run(10)
    assert told(house)[-1] == ("d1", "read")


async def test_messages_count_in_rooms_that_nobody_is_granted_and_in_the_first_sync(
    autojump_clock: trio.testing.MockClock,
) -> None:
    other = "!other:x"
    part = {"timeline": {"events": [*said("private"), own(1)]}, **read_by(ann="$m1")}
    for since in ("s0", None):
        house = House(Homeserver(room_answer("s1", part, other)), since)
        accept(house, 1, room=other)
        await house.run(10)
        assert told(house) == [("d1", "delivered"), ("d1", "read")]


async def test_an_echo_in_a_gap_is_found(autojump_clock: trio.testing.MockClock) -> None:
    pages: list[Step] = [{"chunk": [*said("b"), own(1), *said("a")], "end": None}]
    house = House(Homeserver(answer("s1", *said("c"), limited=True, prev_batch="p0"), pages=pages))
    accept(house, 1)
    await house.run(10)
    assert [one for one, _ in told(house)] == ["$a", "d1", "$b", "$c"]


async def test_what_is_told_twice_is_journalled_once(autojump_clock: trio.testing.MockClock) -> None:
    """The store fails after the answer has come, so all of it comes again; nor does it come a third time."""
    part = {"timeline": {"events": [own(1), *said("a")]}, **read_by(ann="$a")}
    house = House(Homeserver(room_answer("s1", part), room_answer("s1", part), room_answer("s2", part)))
    accept(house, 1)
    house.db.failures = [ArmorclawError("storage_full", "no space left")]
    await house.run(10)
    assert told(house) == [("d1", "delivered"), ("$a", "m.room.message"), ("d1", "read")]


async def test_a_crash_at_the_commit_tells_all_or_nothing(autojump_clock: trio.testing.MockClock) -> None:
    part = {"timeline": {"events": [own(1), *said("a")]}, **read_by(ann="$a")}

    class CrashError(Exception):
        pass

    for moment, rows_there in (("before commit", 0), ("after commit", 3)):
        house = House(Homeserver(room_answer("s1", part)))
        accept(house, 1)

        def crash(at: str, moment: str = moment) -> None:
            if at == moment:
                raise CrashError

        house.db.point = crash
        with pytest.raises(CrashError):
            await house.loop.run()
        (count,) = house.conn.execute("SELECT count(*) FROM journal").fetchone()
        (state,) = house.conn.execute("SELECT state FROM outbox").fetchone()
        assert (count, state, house.place) == ((3, "read", "s1") if rows_there else (0, "sent", "s0"))


async def test_what_a_sync_changes_is_forgotten(autojump_clock: trio.testing.MockClock) -> None:
    async def ask(key: Key) -> str:
        value: str = await house.cache.get(key, fetch)
        return value

    async def fetch() -> str:
        asked.append(1)
        return "known"

    asked: list[int] = []
    member = {"type": "m.room.member", "state_key": "@ann:x", "sender": "@ann:x", "content": {"membership": "join"}}
    house = House(Homeserver(answer("s1", {**member, "event_id": "$1"})))
    keys = [cache.members_of(ROOM), cache.profile_of("@ann:x"), cache.state_of(ROOM, "m.room.topic", "")]
    for key in keys * 2:
        await ask(key)
    assert len(asked) == 3
    await house.run(10)
    for key in keys:
        await ask(key)
    assert len(asked) == 5  # all but the topic
