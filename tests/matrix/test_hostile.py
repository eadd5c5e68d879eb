"""Whole sessions against a homeserver that misbehaves, over real HTTP."""

from __future__ import annotations

import urllib.parse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from armorclaw.config import Account
from armorclaw.delivery.message import Delivery, Outgoing
from armorclaw.errors import ArmorclawError
from armorclaw.events.event import ascii_json
from armorclaw.matrix.crypto.vault import Vault
from armorclaw.matrix.status import SessionState
from armorclaw.structure import Secret
from tests.faults.town import BOT, PASSWORD, Town

from .conftest import KEY, Bench, open_bench, running, until
from .fake_homeserver import Asked, FakeHomeserver, Raw, Reply, fake_homeserver, refusal

ROOM = "!room:x"
LIMIT = {"errcode": "M_LIMIT_EXCEEDED", "error": "slow down"}


class Server:
    """A proper homeserver, except where `odd` has an answer for a request."""

    def __init__(self, odd: Callable[[Asked], Reply | Raw | None] = lambda _: None) -> None:
        self.odd = odd
        self.syncs: list[Any] = []
        self.pushed = trio.Event()
        self.events: dict[str, str] = {}  # transaction id → event id

    async def answer(self, asked: Asked) -> Reply | Raw:
        return self.odd(asked) or await self.proper(asked)

    async def proper(self, asked: Asked) -> Reply:
        if asked.path.endswith("/login"):
            return Reply({"user_id": "@bot:x", "device_id": asked.json["device_id"], "access_token": "t"})
        if asked.path.endswith("/whoami"):
            return Reply({"user_id": "@bot:x"})
        if "/send/" in asked.path:
            txn = asked.path.rpartition("/")[2]
            return Reply({"event_id": self.events.setdefault(txn, f"${len(self.events)}")})
        if asked.path.endswith("/sync"):
            since = urllib.parse.parse_qs(asked.target.partition("?")[2]).get("since")
            if since is None:
                return Reply({"next_batch": "s0", "rooms": {"join": {ROOM: {}}}})
            if self.syncs:
                return Reply(self.syncs.pop(0))
            with trio.move_on_after(30):
                await self.pushed.wait()
            return Reply({"next_batch": since[0]})
        return Reply({"errcode": "M_NOT_FOUND", "error": "no such thing"}, 404)


def account(fake: FakeHomeserver) -> Account:
    return Account(fake.url, "bot", password=Secret("canary-password"))


async def enqueue(bench: Bench, text: str, room: str = ROOM) -> Delivery:
    content = ascii_json({"msgtype": "m.text", "body": text})
    return await bench.outbox.enqueue(Outgoing("main", "echo", room, content))


def transaction_ids(fake: FakeHomeserver) -> list[str]:
    return [asked.path.rpartition("/")[2] for asked in fake.to("/send/")]


async def test_a_rate_limit_on_one_room_is_waited_out_and_another_room_goes_on(bench: Bench) -> None:
    times: list[float] = []

    def odd(asked: Asked) -> Reply | None:
        if "/send/" in asked.path and "slow" in asked.path:
            times.append(trio.current_time())
            if len(times) == 1:
                return Reply({**LIMIT, "retry_after_ms": 700}, 429)
        if "/send/" in asked.path and "shut" in asked.path:
            return Reply({**LIMIT, "retry_after_ms": 60_000}, 429)
        return None

    server = Server(odd)
    async with fake_homeserver(server.answer) as fake:
        bench.grants.set("echo", "main", [ROOM, "!slow:x", "!shut:x"])
        async with running(bench.accounts(account(fake))):
            shut = await enqueue(bench, "none", "!shut:x")
            await until(lambda: len(fake.to("shut")) > 0)
            slow = await enqueue(bench, "one", "!slow:x")
            quick = await enqueue(bench, "two")
            assert (await bench.outbox.settled(quick.delivery_id, 20)).state == "sent"
            assert (await bench.outbox.settled(slow.delivery_id, 20)).state == "sent"
        assert 0.7 <= times[1] - times[0] < 10
        of_slow = [asked.path for asked in fake.to("slow") if "/send/" in asked.path]
        assert len(of_slow) == 2
        assert len(set(of_slow)) == 1  # the same transaction
        assert (await bench.outbox.status(shut.delivery_id)).state == "queued"


@pytest.mark.mission("P3.3")
async def test_an_answer_that_is_lost_makes_one_event(bench: Bench) -> None:
    """The homeserver took the message and then the connection broke; also 502 and 200 with a web page."""
    failures: list[Reply | Raw] = [Raw(b""), Reply(b"<html>", 502), Reply(b"<html>"), Reply(b'{"event_id": "$')]
    server = Server()

    def odd(asked: Asked) -> Reply | Raw | None:
        if "/send/" in asked.path and failures:
            txn = asked.path.rpartition("/")[2]
            server.events.setdefault(txn, f"${len(server.events)}")
            return failures.pop(0)
        return None

    server.odd = odd
    async with fake_homeserver(server.answer) as fake:
        async with running(bench.accounts(account(fake))):
            delivery = await enqueue(bench, "once")
            assert (await bench.outbox.settled(delivery.delivery_id, 20)).event_id == "$0"
        assert len(transaction_ids(fake)) == 5
        assert len(server.events) == 1


async def test_a_login_that_is_hampered_is_one_device(bench: Bench) -> None:
    failures: list[Reply | Raw] = [Raw(b""), Reply({**LIMIT, "retry_after_ms": 50}, 429), Reply(b"<html>", 503)]

    def odd(asked: Asked) -> Reply | Raw | None:
        return failures.pop(0) if asked.path.endswith("/login") and failures else None

    async with fake_homeserver(Server(odd).answer) as fake:
        async with running(bench.accounts(account(fake))):
            pass
        logins = [asked.json["device_id"] for asked in fake.to("/login")]
        assert len(logins) == 4
        assert len(set(logins)) == 1


async def test_a_hard_logout_makes_no_storm_of_logins(bench: Bench) -> None:
    """The token is unknown and the password too: one more login, then a person is needed. What is queued stays."""
    gone = False

    def odd(asked: Asked) -> Reply | None:
        if gone and asked.path.endswith("/login"):
            return Reply({"errcode": "M_FORBIDDEN", "error": "no"}, 403)
        if gone:
            return Reply({"errcode": "M_UNKNOWN_TOKEN", "error": "who?", "soft_logout": False}, 401)
        return None

    server = Server(odd)
    async with fake_homeserver(server.answer) as fake:
        async with running(bench.accounts(account(fake))) as accounts:
            gone = True
            server.pushed.set()  # ends the long poll that is under way
            delivery = await enqueue(bench, "kept")
            status = accounts.status()
            assert status is not None
            await until(lambda: status.state is SessionState.LOGGED_OUT)
            await trio.sleep(0.5)
            assert len(fake.to("/login")) == 2
            assert (await bench.outbox.status(delivery.delivery_id)).state == "queued"


async def test_logins_that_are_forgotten_at_once_make_no_storm(bench: Bench) -> None:
    def odd(asked: Asked) -> Reply | None:
        forgotten = asked.path.endswith(("/sync", "/whoami"))
        return refusal(401, "M_UNKNOWN_TOKEN", soft_logout=True) if forgotten else None

    async with fake_homeserver(Server(odd).answer) as fake:
        async with running(bench.accounts(account(fake)), connected=False):
            await until(lambda: len(fake.to("/login")) >= 2)
            await trio.sleep(1)
        logins = [asked.json["device_id"] for asked in fake.to("/login")]
        assert 2 <= len(logins) <= 5
        assert len(set(logins)) == 1


async def test_secrets_are_in_no_request_line_and_no_report(bench: Bench) -> None:
    async with fake_homeserver(Server().answer) as fake, running(bench.accounts(account(fake))) as accounts:
        assert not [asked for asked in fake.asked if "canary" in asked.target]
        assert "canary" not in repr((accounts.reports(), accounts))


async def test_a_sync_of_ten_thousand_odd_events_is_survived(bench: Bench) -> None:
    odd_events = [
        {"type": 5},
        None,
        "x",
        {"type": "m.room.message", "sender": "@a:x", "event_id": "$1", "content": []},
    ]
    good = {"type": "m.room.message", "sender": "@a:x", "event_id": "$2", "content": {"body": "good"}}
    timeline = {"events": [*odd_events * 2_500, good], "limited": "yes", "prev_batch": 5}
    server = Server()
    async with fake_homeserver(server.answer) as fake:
        bench.grants.set("echo", "main", [ROOM])
        server.syncs.append({"next_batch": "s1", "rooms": {"join": {ROOM: {"timeline": timeline}, "bad": []}}})
        async with running(bench.accounts(account(fake))):
            await until(lambda: bench.messages() == ["good"])


async def test_a_login_beside_a_session_whose_answer_is_lost_costs_no_device(bench: Bench, tmp_path: Path) -> None:
    """The homeserver knows one token for each device: the new login ends the old one, and nobody hears of the new."""
    town = Town()
    town.add_room(ROOM)
    vault = Vault(tmp_path / "keys", lambda: KEY)
    async with fake_homeserver(town.answer) as fake:
        bench.grants.set("echo", "main", [ROOM])
        accounts = bench.accounts(Account(fake.url, BOT, password=Secret(PASSWORD)), vault=vault)
        async with running(accounts):
            status = accounts.status()
            assert status is not None
            device = status.device_id

            async def lose(asked: Asked) -> Reply | Raw | None:
                await trio.lowlevel.checkpoint()
                if town.kind(asked) != "POST login":
                    return None
                town.meddle = None
                town.logins.clear()
                town.logins.log_in(asked.json)
                return Raw(b"")

            town.meddle = lose
            with pytest.raises(ArmorclawError) as caught:
                await accounts.login("main", BOT, Secret(PASSWORD))
            assert caught.value.name == "unavailable"
            town.say(ROOM, "ends the poll")
            await until(lambda: town.logins.devices == {(BOT, device)} and bench.messages() == ["ends the poll"])
            town.say(ROOM, "heard by the same device")
            await until(lambda: "heard by the same device" in bench.messages())
            assert status.device_id == device
    assert not list((tmp_path / "keys").glob("*aside*"))


# -- about keys

ODD: dict[str, Reply | Raw] = {
    "429": Reply(LIMIT, 429),
    "429 for no time": Reply({**LIMIT, "retry_after_ms": 0}, 429),
    "502 with a page": Reply(b"<html>", 502),
    "500": refusal(500, "M_UNKNOWN"),
    "403": refusal(403, "M_FORBIDDEN"),
    "404": refusal(404, "M_UNRECOGNIZED"),
    "400": refusal(400, "M_UNKNOWN"),
    "401 for a lock": refusal(401, "M_USER_LOCKED", soft_logout=True),
    "a redirect": Reply(b"", 302, {"location": "http://elsewhere/"}),
    "nothing": Raw(b""),
    "an empty object": Reply({}),
    "a list": Reply([]),
    "a page": Reply(b"<html>"),
    "another kind": Reply(
        {"one_time_key_counts": 5, "device_keys": [], "one_time_keys": {"@person:town": 7}, "failures": "x"}
    ),
    "users of another kind": Reply(
        {
            "one_time_key_counts": {"signed_curve25519": "many"},
            "device_keys": {"@person:town": {"D": {"keys": 5}}, "x": None},
            "one_time_keys": {"@person:town": {"D": {"signed_curve25519:x": {"key": 5}}}},
        }
    ),
}

QUESTIONS_OF_KEYS = ("POST keys/upload", "POST keys/query", "POST keys/claim", "PUT sendToDevice", "GET members")

SECONDS, AT_MOST = 4.0, 16
"""Seconds for which each is answered oddly, and how often it may be asked in them: 6 times until pauses are two
seconds long, and by several at once that need it."""


@pytest.mark.parametrize("question", QUESTIONS_OF_KEYS)
async def test_odd_answers_about_keys_make_no_storm_and_plain_rooms_go_on(question: str, tmp_path: Path) -> None:
    """All of them at once, each to a session of its own."""
    asked: dict[str, int] = {}

    async def live(name: str) -> None:
        folder = tmp_path / name.replace(" ", "_")
        folder.mkdir()
        town, secret = Town(), "!secret:town"
        town.add_room(ROOM)
        town.add_room(secret, encrypted=True)

        async def meddle(request: Asked) -> Reply | Raw | None:
            await trio.lowlevel.checkpoint()
            return ODD[name] if town.kind(request) == question else None

        town.meddle = meddle
        async with open_bench(folder) as bench, fake_homeserver(town.answer) as fake:
            bench.grants.set("echo", "main", [ROOM, secret])
            accounts = bench.accounts(
                Account(fake.url, BOT, password=Secret(PASSWORD)), vault=Vault(folder / "keys", lambda: KEY)
            )
            async with running(accounts, connected=False):
                hidden = await enqueue(bench, "hidden", secret)
                plain = await enqueue(bench, "plain")
                assert (await bench.outbox.settled(plain.delivery_id, 60)).state in ("sent", "delivered")
                town.say(ROOM, "heard")
                await until(lambda: "heard" in bench.messages(), 60)
                town.asked.clear()
                await trio.sleep(SECONDS)
                asked[name] = town.asked[question]
                sent = (await bench.outbox.status(hidden.delivery_id)).event_id is not None
            arrived = [["hidden"], [None]]  # some could not have its key
            assert town.said(secret) in (arrived if sent else [[], *arrived])  # an answer may be under way
            assert town.wrongs() == []

    async with trio.open_nursery() as nursery:
        for name in ODD:
            nursery.start_soon(live, name)
    assert {name: count for name, count in asked.items() if count > AT_MOST} == {}
