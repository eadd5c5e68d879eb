"""A verification's messages on their way: sent once, again when the homeserver was away, and not for ever."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import trio
from mautrix.errors import MatrixConnectionError, MatrixError, make_request_error

from armorclaw.clock import Surroundings
from armorclaw.delivery.transport import Delayed, Refused
from armorclaw.matrix.trust.exchange import INBOX, TIME_LIMIT, Exchange
from armorclaw.matrix.trust.verification import PREFIX, Phase, Verification

from .test_verification import ALICE, BOB, KEYS, side


@attrs.define
class Post:
    """Takes messages of one side; `trouble` says for each request, by number, whether it fails, and how."""

    trouble: Callable[[int], Exception | None] = lambda number: None
    requests: int = 0
    noted: Callable[[], object] = lambda: None
    sent: list[tuple[str, str, tuple[str, ...], dict[str, Any]]] = attrs.field(factory=list)
    """Type, transaction id, to which devices or room, content."""
    known: Mapping[str, str] = attrs.field(factory=lambda: KEYS[BOB])
    kept: list[Verification] = attrs.field(factory=list)
    news: trio.Event = attrs.field(factory=trio.Event)

    async def pass_through(self) -> None:
        await trio.lowlevel.checkpoint()
        self.requests += 1
        if (error := self.trouble(self.requests - 1)) is not None:
            raise error

    async def request(self, method: Any, path: Any, content: Any = None, **more: Any) -> dict[str, Any]:
        await self.pass_through()
        *_, type_, txn_id = str(path).split("/")
        (devices,) = json.loads(content)["messages"].values()
        self.note(type_, txn_id, tuple(devices), next(iter(devices.values())))
        return {}

    async def put(self, room_id: str, type: str, txn_id: str, content: bytes) -> str:  # noqa: A002
        await self.pass_through()
        self.note(type, txn_id, (room_id,), json.loads(content))
        return "$event"

    def note(self, type_: str, txn_id: str, to: tuple[str, ...], content: dict[str, Any]) -> None:
        self.sent.append((type_.removeprefix(PREFIX), txn_id, to, content))
        self.news.set()
        self.news = trio.Event()
        self.noted()

    def kinds(self) -> list[str]:
        return [kind for kind, *_ in self.sent]

    def exchange(self, verification: Verification, **more: Any) -> Exchange:
        async def known(user_id: str, device_id: str | None) -> Mapping[str, str]:
            await self.pass_through()
            assert (user_id, device_id) == (BOB.user_id, BOB.device_id)
            return self.known

        async def conclude(proven: Verification) -> None:
            await self.pass_through()
            self.kept.append(proven)

        client: Any = SimpleNamespace(api=self)
        return Exchange(verification, client, self, Surroundings(), known_keys=known, conclude=conclude, **more)


async def play(post: Post, exchange: Exchange, *, stop: str = "") -> None:
    """Bob's side, who answers as he should, until it is over; `stop` is what he does not answer to any more."""
    bob = side(BOB, ALICE, asked=False, in_room=exchange.room_id is not None)
    at = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(exchange.drive)
        bob.accept()
        while not exchange.over:
            while bob.pending:
                _, message = bob.pending.popleft()
                exchange.receive(message.type, message.content)
            news, changed = post.news, exchange._changed
            while at < len(post.sent):
                kind, _, to, content = post.sent[at]
                at += 1
                if kind != stop and (exchange.room_id in to or "BDEV" in to):
                    bob.receive(PREFIX + kind, content)
            if bob.phase is Phase.SHOWN:
                bob.confirm(True)
            if exchange.verification.phase is Phase.SHOWN:
                exchange.confirm(True)
                continue
            if not bob.pending and at == len(post.sent) and not exchange.over:
                with trio.move_on_after(700):
                    await _first(news, changed)


async def _first(*events: trio.Event) -> None:
    async with trio.open_nursery() as nursery:

        async def wait(event: trio.Event) -> None:
            await event.wait()
            nursery.cancel_scope.cancel()

        for event in events:
            nursery.start_soon(wait, event)


async def test_between_devices(autojump_clock: trio.testing.MockClock) -> None:
    post = Post()
    exchange = post.exchange(side(ALICE, BOB, asked=True), asked=["BDEV", "TABLET", "PHONE"])
    await play(post, exchange)
    assert exchange.concluded
    assert post.kept == [exchange.verification]
    assert sorted(post.kinds()) == ["cancel", "done", "key", "mac", "start"]
    (cancel,) = (each for each in post.sent if each[0] == "cancel")
    assert (cancel[2], cancel[3]["code"]) == (("TABLET", "PHONE"), "m.accepted")
    assert {each[2] for each in post.sent if each[0] != "cancel"} == {("BDEV",)}
    assert len({txn_id for _, txn_id, *_ in post.sent}) == 5


async def test_in_a_room(autojump_clock: trio.testing.MockClock) -> None:
    post = Post()
    exchange = post.exchange(side(ALICE, BOB, asked=True, in_room=True), room_id="!r:hs")
    await play(post, exchange)
    assert exchange.concluded
    assert {to for _, _, to, _ in post.sent} == {("!r:hs",)}
    assert post.kinds() == ["start", "key", "mac", "done"]


TROUBLES = [
    MatrixConnectionError("away"),
    make_request_error(502, "bad gateway", None, "bad gateway"),
    make_request_error(429, "slow down", "M_LIMIT_EXCEEDED", "slow down"),
    Delayed(3.0, "later"),
]


@pytest.mark.parametrize("trouble", TROUBLES, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("in_room", [True, False])
async def test_a_homeserver_that_is_away_is_waited_for(
    autojump_clock: trio.testing.MockClock, trouble: Exception, in_room: bool
) -> None:
    for number in range(8):
        post = Post(trouble=lambda at, first=number: trouble if first <= at < first + 2 else None)  # type: ignore[misc]
        more: Any = {"room_id": "!r:hs"} if in_room else {"asked": ["BDEV"]}
        exchange = post.exchange(side(ALICE, BOB, asked=True, in_room=in_room), **more)
        await play(post, exchange)
        assert exchange.concluded, number
        assert post.kinds() == ["start", "key", "mac", "done"]
        assert len(post.kept) == 1


@pytest.mark.parametrize("trouble", [Refused("not in this room"), make_request_error(403, "no", "M_FORBIDDEN", "no")])
async def test_what_is_refused_is_not_tried_again(
    autojump_clock: trio.testing.MockClock, trouble: MatrixError | Refused
) -> None:
    post = Post(trouble=lambda at: trouble if at == 0 else None)
    exchange = post.exchange(side(ALICE, BOB, asked=True), asked=["BDEV"])
    await play(post, exchange)
    assert not exchange.concluded
    assert "no" in exchange.failure
    assert trio.current_time() < 10
    assert not exchange.verification.proven


async def test_it_ends_in_ten_minutes_and_says_so(autojump_clock: trio.testing.MockClock) -> None:
    post = Post()
    exchange = post.exchange(side(ALICE, BOB, asked=True), asked=["BDEV"])
    start = trio.current_time()
    await play(post, exchange, stop="start")
    assert trio.current_time() - start == pytest.approx(TIME_LIMIT, abs=6)
    assert exchange.verification.code == "m.timeout"
    assert post.kinds()[-1] == "cancel"


async def test_a_homeserver_that_stays_away_ends_it_too(autojump_clock: trio.testing.MockClock) -> None:
    post = Post(trouble=lambda at: MatrixConnectionError("away"))
    exchange = post.exchange(side(ALICE, BOB, asked=True), asked=["BDEV"])
    exchange.receive(PREFIX + "ready", {"from_device": "BDEV", "methods": ["m.sas.v1"]})
    start = trio.current_time()
    await exchange.drive()
    assert trio.current_time() - start == pytest.approx(TIME_LIMIT, abs=6)
    assert exchange.over
    assert post.requests < TIME_LIMIT, "asked more than once in a second"


async def test_what_was_proven_and_could_not_be_kept_is_not_called_verified(
    autojump_clock: trio.testing.MockClock,
) -> None:
    post = Post()
    exchange = post.exchange(side(ALICE, BOB, asked=True), asked=["BDEV"])

    async def conclude(verification: Verification) -> None:
        await trio.lowlevel.checkpoint()
        raise MatrixConnectionError("away")

    exchange._conclude = conclude
    await play(post, exchange)
    assert (exchange.concluded, exchange.verification.phase) == (False, Phase.DONE)
    assert "could not be kept" in exchange.failure


async def test_a_flood_is_dropped(autojump_clock: trio.testing.MockClock) -> None:
    post = Post()
    exchange = post.exchange(side(ALICE, BOB, asked=True), asked=["BDEV"])
    for _ in range(INBOX + 10):
        exchange.receive(PREFIX + "done", {})
    assert len(exchange._inbox) == INBOX


@pytest.mark.parametrize("sent", range(5))
async def test_it_can_be_cancelled_at_any_time(autojump_clock: trio.testing.MockClock, sent: int) -> None:
    post = Post()
    exchange = post.exchange(side(ALICE, BOB, asked=True), asked=["BDEV"])
    with trio.CancelScope() as scope:
        post.noted = lambda: scope.cancel() if len(post.sent) > sent else None
        await play(post, exchange)
    assert scope.cancelled_caught or exchange.concluded
    assert len(post.sent) <= sent + 2


async def test_one_that_nobody_drives_any_more_comes_to_nothing(autojump_clock: trio.testing.MockClock) -> None:
    post = Post()
    exchange = post.exchange(side(ALICE, BOB, asked=True), asked=["BDEV"])
    exchange.abandon("nobody is here")
    assert (exchange.over, exchange.failure) == (True, "nobody is here")
    done = post.exchange(side(ALICE, BOB, asked=True), asked=["BDEV"])
    await play(post, done)
    done.abandon("nobody is here")
    assert (done.concluded, done.failure) == (True, "")
