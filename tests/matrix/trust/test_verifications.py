"""Requests that come in, and those that go out: who is heard, who is not, and how many at a time."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import trio
from mautrix.errors import MatrixConnectionError, make_request_error
from structlog.testing import capture_logs

from armorclaw.clock import Clock, Surroundings
from armorclaw.errors import ArmorclawError
from armorclaw.matrix.rooms import Rooms, RoomState
from armorclaw.matrix.trust.exchange import Exchange
from armorclaw.matrix.trust.port import TrustPort
from armorclaw.matrix.trust.verification import PREFIX, Phase, Verification
from armorclaw.matrix.trust.verifications import (
    ASKED,
    FROM_ONE,
    REQUEST,
    SESSION_ENDED,
    TOLD_AGAIN,
    UNANSWERED,
    Verifications,
)

from .test_exchange import Post
from .test_verification import ALICE, BOB, KEYS

NOW = 1_700_000_000_000


@attrs.define
class Home:
    """Alice's verifications at work, with what was told and sent."""

    verifications: Verifications
    post: Post
    rooms: Rooms
    told: list[str]

    def asked_by(self, user_id: str, txn: str = "txn", **more: Any) -> None:
        content = {
            "from_device": "BDEV",
            "methods": ["m.sas.v1"],
            "timestamp": NOW,
            "transaction_id": txn,
            **more,
        }
        self.verifications.on_to_device(REQUEST, user_id, content, False)

    @property
    def waiting(self) -> list[str]:
        return [each.verification.transaction_id for each in self.verifications._unanswered]


class Keys:
    async def devices_of(self, user_id: str) -> list[str]:
        await trio.lowlevel.checkpoint()
        return {BOB.user_id: ["BDEV", "TABLET"], ALICE.user_id: ["ADEV", "PHONE"]}.get(user_id, [])

    async def known(self, user_id: str, device_id: str | None) -> Mapping[str, str]:
        await trio.lowlevel.checkpoint()
        return KEYS[BOB]

    async def conclude(self, verification: Verification) -> None:
        await trio.lowlevel.checkpoint()

    def own(self) -> dict[str, str]:
        return KEYS[ALICE]


@asynccontextmanager
async def home() -> AsyncIterator[Home]:
    post, rooms, told = Post(), Rooms("main"), list[str]()

    async def tell(name: str, severity: str, text: str) -> None:
        await trio.lowlevel.checkpoint()
        told.append(name)

    client: Any = SimpleNamespace(mxid=ALICE.user_id, device_id=ALICE.device_id, api=post)
    around = Surroundings(Clock(wall=lambda: NOW / 1000))
    made = Verifications("main", client, Keys(), post, rooms, around, tell)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(made.run)
        yield Home(made, post, rooms, told)
        nursery.cancel_scope.cancel(reason="the test is done")


async def test_somebody_asks_and_is_accepted(autojump_clock: trio.testing.MockClock) -> None:
    async with home() as alice:
        alice.asked_by(BOB.user_id)
        exchange = await alice.verifications.next_request()
        assert exchange.verification.asks_us
        exchange.accept()
        await trio.sleep(1)
        assert alice.post.kinds() == ["ready"]
        assert alice.post.sent[0][2] == ("BDEV",)


async def test_people_are_told_once_an_hour_of_who_asks_in_vain(autojump_clock: trio.testing.MockClock) -> None:
    async with home() as alice:
        for number in range(2):
            alice.asked_by(BOB.user_id, f"t{number}")
            await trio.sleep(1)
        assert alice.told == ["matrix_verification_requested"]
        await trio.sleep(TOLD_AGAIN)
        assert not alice.waiting  # they have ended by themselves
        alice.asked_by(BOB.user_id, "t3")
        await trio.sleep(1)
        assert alice.told == ["matrix_verification_requested"] * 2


@pytest.mark.parametrize(
    "more",
    [
        {"timestamp": NOW - 601_000},
        {"timestamp": NOW + 301_000},
        {"timestamp": "now"},
        {"timestamp": None},
        {"from_device": ""},
        {"from_device": 1},
        {"methods": ["m.qr_code.show.v1"]},
        {"methods": "m.sas.v1"},
        {"transaction_id": ""},
        {"transaction_id": "x" * 256},
        {"transaction_id": None},
    ],
)
async def test_odd_requests_are_not_heard(autojump_clock: trio.testing.MockClock, more: dict[str, Any]) -> None:
    async with home() as alice:
        alice.asked_by(BOB.user_id, **more)
        await trio.sleep(1)
        assert not alice.waiting
        assert not alice.post.sent


async def test_we_do_not_verify_ourselves_with_ourselves(autojump_clock: trio.testing.MockClock) -> None:
    async with home() as alice:
        alice.asked_by(ALICE.user_id, from_device="ADEV")
        assert not alice.waiting
        alice.asked_by(ALICE.user_id, from_device="PHONE")
        assert alice.waiting == ["txn"]


async def test_the_same_request_twice_is_one(autojump_clock: trio.testing.MockClock) -> None:
    async with home() as alice:
        alice.asked_by(BOB.user_id)
        alice.asked_by(BOB.user_id)
        assert alice.waiting == ["txn"]
        alice.asked_by("@carol:hs")  # the same id, of somebody else
        assert alice.waiting == ["txn", "txn"]


async def test_requests_are_bounded_and_it_is_said(autojump_clock: trio.testing.MockClock) -> None:
    async with home() as alice:
        with capture_logs() as logs:
            for number in range(FROM_ONE + 2):
                alice.asked_by(BOB.user_id, f"t{number}")
            assert len(alice.waiting) == FROM_ONE
            for number in range(UNANSWERED + 5):
                alice.asked_by(f"@user{number}:hs", "t")
            assert len(alice.waiting) == UNANSWERED
        assert sum("too many verifications" in entry["event"] for entry in logs) == 2 + FROM_ONE + 5
        # whoever is here can still ask, so many times
        await trio.sleep(1)
        for _ in range(ASKED):
            await alice.verifications.ask(BOB.user_id)
        with pytest.raises(ArmorclawError) as refused:
            await alice.verifications.ask(BOB.user_id)
        assert refused.value.name == "queue_full"


async def test_a_request_that_is_taken_back_waits_no_more(autojump_clock: trio.testing.MockClock) -> None:
    async with home() as alice:
        alice.asked_by(BOB.user_id)
        cancel = {"transaction_id": "txn", "code": "m.accepted", "reason": "another device"}
        alice.verifications.on_to_device(PREFIX + "cancel", "@eve:hs", cancel, False)
        await trio.sleep(1)
        assert alice.waiting == ["txn"]
        alice.verifications.on_to_device(PREFIX + "cancel", BOB.user_id, cancel, False)
        await trio.sleep(1)
        assert not alice.waiting
        assert not alice.post.sent


async def test_a_device_that_begins_anew_has_given_up_what_was_before(
    autojump_clock: trio.testing.MockClock,
) -> None:
    """It crashed: what is answered is the newest. What was not accepted here may be at work elsewhere: no cancel."""
    async with home() as alice:
        alice.asked_by(BOB.user_id, "first")
        alice.asked_by("@carol:hs", "hers", from_device="CDEV")
        alice.asked_by(BOB.user_id, "of another device", from_device="TABLET")
        alice.asked_by(BOB.user_id, "second")
        taken = [await alice.verifications.next_request() for _ in range(3)]
        assert [each.verification.transaction_id for each in taken] == ["hers", "of another device", "second"]
        await trio.sleep(1)
        assert not alice.post.sent
        taken[2].accept()
        await trio.sleep(1)
        alice.asked_by(BOB.user_id, "third")
        await trio.sleep(1)
        assert (taken[2].over, taken[2].verification.code) == (True, "m.unexpected_message")
        assert alice.post.kinds() == ["ready", "cancel"]
        assert alice.waiting == ["third"]
        asked = await alice.verifications.ask(BOB.user_id, "BDEV")
        alice.asked_by(BOB.user_id, "crossing", from_device="BDEV")
        await trio.sleep(1)
        assert not asked.over


async def test_a_start_without_a_request(autojump_clock: trio.testing.MockClock) -> None:
    async with home() as alice:
        start = {
            "from_device": "BDEV",
            "method": "m.sas.v1",
            "transaction_id": "txn",
            "key_agreement_protocols": ["curve25519-hkdf-sha256"],
            "hashes": ["sha256"],
            "message_authentication_codes": ["hkdf-hmac-sha256.v2"],
            "short_authentication_string": ["emoji", "decimal"],
        }
        alice.verifications.on_to_device(PREFIX + "start", BOB.user_id, start, False)
        exchange = await alice.verifications.next_request()
        await trio.sleep(1)
        assert exchange.verification.phase is Phase.STARTED
        assert not alice.post.sent
        exchange.accept()
        await trio.sleep(1)
        assert alice.post.kinds() == ["accept"]


def in_room(**more: Any) -> dict[str, Any]:
    return {"msgtype": REQUEST, "to": ALICE.user_id, "from_device": "BDEV", "methods": ["m.sas.v1"], **more}


def about(event_id: str, **more: Any) -> dict[str, Any]:
    return {"m.relates_to": {"rel_type": "m.reference", "event_id": event_id}, **more}


async def test_in_rooms_only_what_is_for_us_and_of_whom_it_is_with(autojump_clock: trio.testing.MockClock) -> None:
    async with home() as alice:
        on_room = alice.verifications.on_room
        on_room("!r:hs", "$other", BOB.user_id, "m.room.message", in_room(to="@carol:hs"))
        assert not alice.waiting
        on_room("!r:hs", "$e", BOB.user_id, "m.room.message", in_room())
        assert alice.waiting == ["$e"]
        cancel = about("$e", code="m.user")
        on_room("!r:hs", "$x", "@eve:hs", PREFIX + "cancel", cancel)
        on_room("!other:hs", "$x", BOB.user_id, PREFIX + "cancel", cancel)
        odd_ones: list[dict[str, Any]] = [{}, {"m.relates_to": []}, {"m.relates_to": {"event_id": 1}}]
        for odd in odd_ones:
            on_room("!r:hs", "$x", BOB.user_id, PREFIX + "cancel", odd)
        await trio.sleep(1)
        assert alice.waiting == ["$e"]
        on_room("!r:hs", "$x", BOB.user_id, PREFIX + "cancel", cancel)
        await trio.sleep(1)
        assert not alice.waiting


async def test_what_another_device_of_ours_accepted_is_left_to_it(autojump_clock: trio.testing.MockClock) -> None:
    async with home() as alice:
        alice.verifications.on_room("!r:hs", "$e", BOB.user_id, "m.room.message", in_room())
        start = about("$e", from_device="BDEV", method="m.sas.v1")
        alice.verifications.on_room("!r:hs", "$f", BOB.user_id, PREFIX + "start", start)
        await trio.sleep(1)
        assert not alice.waiting
        assert not alice.post.sent


async def test_an_answer_in_the_room_may_overtake_the_request(autojump_clock: trio.testing.MockClock) -> None:
    async with home() as alice:
        ready = about("$event", from_device="BDEV", methods=["m.sas.v1"])
        alice.verifications.on_room("!r:hs", "$f", BOB.user_id, PREFIX + "ready", ready)
        exchange = await alice.verifications.ask(BOB.user_id, room_id="!r:hs")
        await trio.sleep(1)
        assert exchange.verification.phase is Phase.STARTED
        assert alice.post.kinds() == ["m.room.message", "start"]


async def test_people_are_asked_in_their_direct_chat_and_devices_directly(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with home() as alice:
        await alice.verifications.ask(BOB.user_id)
        await alice.verifications.ask(BOB.user_id, "TABLET")
        await alice.verifications.ask(ALICE.user_id)
        assert [to for _, _, to, _ in alice.post.sent] == [("BDEV", "TABLET"), ("TABLET",), ("PHONE",)]
        alice.rooms.apply({"!left:hs": RoomState("leave", direct=BOB.user_id)})
        alice.rooms.apply({"!dm:hs": RoomState("join", direct=BOB.user_id)})
        exchange = await alice.verifications.ask(BOB.user_id)
        assert alice.post.sent[-1][2] == ("!dm:hs",)
        assert exchange.room_id == "!dm:hs"
        assert alice.post.sent[-1][3]["to"] == BOB.user_id


async def test_who_cannot_be_asked_is_told_why(autojump_clock: trio.testing.MockClock) -> None:
    async with home() as alice:
        for user, device in (("@nobody:hs", None), (BOB.user_id, "NONE"), (ALICE.user_id, "ADEV")):
            with pytest.raises(ArmorclawError) as refused:
                await alice.verifications.ask(user, device)
            assert refused.value.name == "not_found"
        with pytest.raises(ArmorclawError) as refused:
            await alice.verifications.ask(BOB.user_id, direct=True)
        assert refused.value.name == "invalid_params"
        for trouble, name in (
            (MatrixConnectionError("away"), "unavailable"),
            (make_request_error(403, "no", "M_FORBIDDEN", "no"), "matrix_refused"),
        ):
            alice.post.trouble = lambda number, trouble=trouble: trouble  # type: ignore[misc]
            with pytest.raises(ArmorclawError) as refused:
                await alice.verifications.ask(BOB.user_id)
            assert refused.value.name == name
        assert not alice.verifications._exchanges


async def test_nothing_is_left_of_what_is_over(autojump_clock: trio.testing.MockClock) -> None:
    async with home() as alice:
        alice.asked_by(BOB.user_id)
        asked: Exchange = await alice.verifications.ask(BOB.user_id)
        await trio.sleep(700)
        assert asked.verification.code == "m.timeout"
        assert not alice.verifications._exchanges
        assert alice.post.kinds() == ["request", "cancel", "cancel"]


# -- the session ends, and whoever waits does not end with it


async def until_over(exchange: Exchange) -> None:
    while not exchange.over:
        await exchange.changed()


async def test_who_watches_one_hears_that_the_session_has_ended(autojump_clock: trio.testing.MockClock) -> None:
    with trio.fail_after(5):
        async with trio.open_nursery() as operators:
            async with home() as alice:
                asked = await alice.verifications.ask(BOB.user_id)
                alice.asked_by("@carol:hs")
                taken = await alice.verifications.next_request()
                alice.asked_by("@dave:hs")  # nobody has taken that one, and people are about to be told
                for exchange in (asked, taken):
                    operators.start_soon(until_over, exchange)
                await trio.testing.wait_all_tasks_blocked()
    assert (asked.failure, taken.failure) == (SESSION_ENDED, SESSION_ENDED)
    assert not alice.verifications._exchanges


async def test_who_waits_for_a_request_hears_that_the_session_has_ended(
    autojump_clock: trio.testing.MockClock,
) -> None:
    names: list[str] = []

    async def wait(verifications: Verifications) -> None:
        with pytest.raises(ArmorclawError) as ended:
            await verifications.next_request()
        names.append(ended.value.name)

    with trio.fail_after(5):
        async with trio.open_nursery() as operators:
            async with home() as alice:
                for _ in range(2):
                    operators.start_soon(wait, alice.verifications)
                await trio.testing.wait_all_tasks_blocked()
    assert names == ["unavailable"] * 2


@pytest.mark.parametrize("more", [{}, {"room_id": "!r:hs"}, {"device_id": "BDEV", "direct": True}], ids=str)
async def test_what_is_asked_too_late_for_the_session_is_not_begun(
    autojump_clock: trio.testing.MockClock, more: dict[str, Any]
) -> None:
    names: list[str] = []
    answers = trio.Event()

    async def ask(alice: Home) -> None:
        with pytest.raises(ArmorclawError) as ended:
            await alice.verifications.ask(BOB.user_id, **more)
        names.append(ended.value.name)

    with trio.fail_after(5):
        async with trio.open_nursery() as operators:
            async with home() as alice:
                asked = alice.verifications._keys.devices_of

                async def slow(user_id: str) -> list[str]:
                    await answers.wait()
                    return await asked(user_id)

                alice.verifications._keys.devices_of = slow  # type: ignore[method-assign]
                operators.start_soon(ask, alice)
                await trio.testing.wait_all_tasks_blocked()
            answers.set()
    await ask(alice)  # and after it
    assert names == ["unavailable"] * 2
    alice.asked_by(BOB.user_id)
    assert not alice.waiting


async def test_a_session_may_end_before_it_drives_any(autojump_clock: trio.testing.MockClock) -> None:
    async def no_key() -> None:
        return None

    port = TrustPort("main", no_key)
    async with home() as alice:
        trust: Any = SimpleNamespace(verifications=alice.verifications)
        with port.answered_by(trust):
            pass
        with pytest.raises(ArmorclawError) as ended:
            await alice.verifications.next_request()
        assert ended.value.name == "unavailable"
