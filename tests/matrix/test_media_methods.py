"""Files as operators and agents have them: whose, of which room, and with a real homeserver."""

from __future__ import annotations

import base64
import os
import secrets
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import httpx
import pytest

from armorclaw.config import Account
from armorclaw.errors import ArmorclawError
from armorclaw.events.event import Event
from armorclaw.matrix.accounts import Accounts
from armorclaw.matrix.media.transfers import Transfers
from armorclaw.matrix.media_methods import MediaMethods
from armorclaw.rpc.local import stream_local
from armorclaw.rpc.registry import Registry, Role
from armorclaw.testing.homeserver import Homeserver

from .conftest import Bench, Person, account_of, running, until
from .media.upstream_files import decrypt_attachment, encrypt_attachment

MakePerson = Callable[[str], Awaitable[Person]]

ROOM = "!r:x"
URI = "mxc://x/abc"


class Allowance:
    def require(self, agent: str, kind: str) -> None:
        pass

    def spend(self, agent: str, kind: str, amount: int) -> None:
        pass


class Wire:
    """The methods as a client calls them."""

    def __init__(self, bench: Bench, accounts: Accounts) -> None:
        self.registry = Registry()
        transfers = Transfers(Allowance(), 64 * 2**20)
        MediaMethods(accounts, bench.grants, bench.journal, transfers).register(self.registry)

    def stream(self, method: str, agent: str | None, params: dict[str, Any]) -> Any:
        role = Role.AGENT if agent else Role.OPERATOR
        return stream_local(self.registry, method, params, role=role, agent=agent)

    async def upload(self, data: bytes, *, agent: str | None = None, **params: Any) -> Any:
        given = {"name": "a.bin", "size": len(data), **params}
        async with self.stream("matrix.upload", agent, given) as stream:
            for begin in range(0, len(data), 100_000):
                await stream.send(data[begin : begin + 100_000])
            await stream.end()
            return await stream.result()

    async def download(self, *, agent: str | None = None, **params: Any) -> tuple[bytes, Any]:
        async with self.stream("matrix.download", agent, params) as stream:
            data = b"".join([base64.b64decode(piece) async for piece in stream])
            return data, await stream.result()

    async def refusal(self, doing: Awaitable[Any]) -> ArmorclawError:
        with pytest.raises(ArmorclawError) as caught:
            await doing
        return caught.value


# --- whose


@pytest.fixture
async def wire(bench: Bench) -> Wire:
    bench.grants.set("echo", "main", [ROOM])
    return Wire(bench, bench.accounts(Account(homeserver="http://127.0.0.1:9", user="bot")))


async def said(bench: Bench, content: dict[str, Any], **more: Any) -> str:
    given = {"account": "main", "room_id": ROOM, "sender": "@ann:x", **more}
    event_id = given.setdefault("event_id", f"${secrets.token_hex(4)}")
    await bench.journal.record([Event.make("m.room.message", content, at_ms=1, id=event_id, **given)])
    return str(event_id)


IMAGE = {"msgtype": "m.image", "body": "a.png", "url": URI, "info": {"mimetype": "image/png"}}


@pytest.mark.parametrize(
    ("params", "name"),
    [
        ({}, "invalid_params"),
        ({"room_id": ROOM}, "invalid_params"),
        ({"event_id": "$e"}, "invalid_params"),
        ({"room_id": ROOM, "event_id": ""}, "invalid_params"),
        ({"room_id": "#alias:x", "event_id": "$e"}, "invalid_params"),
        ({"room_id": ROOM, "event_id": "$e", "mxc": URI}, "invalid_params"),
        ({"mxc": URI, "file": {}}, "invalid_params"),
        ({"mxc": "https://x/a"}, "not_found"),
        ({"file": {"url": URI}}, "not_found"),
        ({"mxc": URI, "account": "nobody"}, "matrix_not_configured"),
        ({"mxc": URI}, "unavailable"),  # nobody is logged in
    ],
)
async def test_what_an_operator_may_ask_for(wire: Wire, params: dict[str, Any], name: str) -> None:
    assert (await wire.refusal(wire.download(**params))).name == name


@pytest.mark.parametrize("given", [{"mxc": "mxc://evil.test/secret"}, {"file": {"url": URI}}])
async def test_an_address_is_no_agents_to_name(wire: Wire, given: dict[str, Any]) -> None:
    """The homeserver would fetch it from any server: a way out of a container without a network."""
    for params in (given, {**given, "room_id": ROOM}, {**given, "room_id": ROOM, "event_id": "$e"}):
        assert (await wire.refusal(wire.download(agent="echo", **params))).name == "invalid_params"


@pytest.mark.mission("S.5")
async def test_an_agent_has_the_files_of_messages_it_may_hear(bench: Bench, wire: Wire) -> None:
    before = await said(bench, IMAGE)
    bench.grants.set("late", "main", [ROOM])  # which begins now
    bench.grants.forget("echo")
    bench.grants.recall("echo", {("main", ROOM): 0})
    bench.grants.set("echo", "main", [ROOM])
    heard = await said(bench, IMAGE)
    other_room = await said(bench, IMAGE, room_id="!other:x")
    other_account = await said(bench, IMAGE, account="second")

    async def asked(agent: str | None, event_id: str, room_id: str = ROOM) -> str:
        return (await wire.refusal(wire.download(agent=agent, room_id=room_id, event_id=event_id))).name

    # found, so that only the homeserver is missing
    assert await asked("echo", heard) == await asked("echo", before) == await asked(None, heard) == "unavailable"
    for event_id in (other_room, other_account, "$unknown"):
        assert await asked("echo", event_id) == "not_found"
    assert await asked("echo", other_room, "!other:x") == "room_denied"
    assert await asked("stranger", heard) == "room_denied"


async def test_what_was_said_to_others_is_not_found(bench: Bench, wire: Wire) -> None:
    event = Event.make("m.room.message", IMAGE, at_ms=1, account="main", room_id=ROOM, sender="@ann:x", event_id="$e")
    await bench.journal.record([attrs.evolve(event, addressed=("ada",))])
    bench.grants.recall("echo", {("main", ROOM): 0})
    assert (await wire.refusal(wire.download(agent="echo", room_id=ROOM, event_id="$e"))).name == "not_found"


async def test_messages_without_a_file(bench: Bench, wire: Wire) -> None:
    text = await said(bench, {"msgtype": "m.text", "body": "hi"})
    error = await wire.refusal(wire.download(room_id=ROOM, event_id=text))
    assert (error.name, error.what) == ("not_found", text)
    image = await said(bench, IMAGE)
    error = await wire.refusal(wire.download(room_id=ROOM, event_id=image, part="thumbnail"))
    assert "thumbnail" in error.why


@pytest.mark.parametrize(
    ("agent", "params", "name"),
    [
        (None, {"room_id": "#a:x"}, "invalid_params"),
        (None, {"room_id": ROOM, "name": "../a"}, "invalid_params"),
        (None, {"room_id": ROOM, "name": ""}, "invalid_params"),
        (None, {"room_id": ROOM, "name": "a\r\nb"}, "invalid_params"),
        (None, {"room_id": ROOM, "mimetype": "text/html; charset=x"}, "invalid_params"),
        (None, {"room_id": ROOM, "mimetype": "a/b\r\nX-Evil: 1"}, "invalid_params"),
        (None, {"room_id": ROOM, "size": -1}, "invalid_params"),
        (None, {"room_id": ROOM, "kind": "voice", "waveform": [1025]}, "invalid_params"),
        (None, {"room_id": ROOM, "account": "nobody"}, "matrix_not_configured"),
        ("echo", {"room_id": "!other:x"}, "room_denied"),
        ("stranger", {"room_id": ROOM}, "room_denied"),
        ("echo", {"room_id": ROOM}, "unavailable"),  # nobody is logged in
    ],
)
async def test_who_may_upload_what(wire: Wire, agent: str | None, params: dict[str, Any], name: str) -> None:
    assert (await wire.refusal(wire.upload(b"abc", agent=agent, **params))).name == name


# --- with a real homeserver


@pytest.mark.parametrize("encrypted", [False, True])
async def test_a_file_up_and_down(bench: Bench, homeserver: Homeserver, person: MakePerson, encrypted: bool) -> None:
    ann, bot = await person("ann"), await person("bot")
    room = await ann.create_room(bot.user_id, encrypted=encrypted)
    bench.grants.set("echo", "main", [room])
    data = os.urandom(700_000)
    async with running(bench.accounts(account_of(bot, homeserver))) as accounts:
        wire = Wire(bench, accounts)
        await accounts.until_joined("main", [room])
        given = {"name": "ü.png", "mimetype": "image/png", "width": 1, "height": 2}
        up = await wire.upload(data, agent="echo", room_id=room, **given)
        assert (up["encrypted"], up["size"]) == (encrypted, len(data))
        content = up["content"]
        kept = await fetched(ann, up["mxc"])
        if encrypted:
            file = content["file"]
            assert "url" not in content
            assert kept.headers["content-type"] == "application/octet-stream"
            assert "png" not in str(kept.headers)
            opened = decrypt_attachment(kept.content, file["key"]["k"], file["hashes"]["sha256"], file["iv"])
            assert opened == data
        else:
            assert content["url"] == up["mxc"]
            assert kept.content == data
            assert kept.headers["content-type"] == "image/png"
        assert (content["msgtype"], content["filename"], content["info"]["w"]) == ("m.image", "ü.png", 1)

        # and back: as the file of a message that somebody sent
        event_id = await said(bench, content, room_id=room)
        got, told = await wire.download(agent="echo", room_id=room, event_id=event_id)
        assert got == data
        assert told == {"size": len(data), "name": "ü.png", "mimetype": "image/png", "encrypted": encrypted}
        if encrypted:
            assert (await wire.download(file=content["file"]))[0] == data
        assert (await wire.download(mxc=up["mxc"]))[0] == kept.content


async def test_a_file_that_a_person_sent(bench: Bench, homeserver: Homeserver, person: MakePerson) -> None:
    """It comes through the sync; and once its message is erased here, the homeserver still has it."""
    ann, bot = await person("ann"), await person("bot")
    room = await ann.create_room(bot.user_id)
    bench.grants.set("echo", "main", [room])
    data = os.urandom(300_000)
    sealed, file = encrypt_attachment(data)
    async with running(bench.accounts(account_of(bot, homeserver))) as accounts:
        wire = Wire(bench, accounts)
        await accounts.until_joined("main", [room])
        file.url = await uploaded(ann, sealed)
        content = {"msgtype": "m.file", "body": "a", "file": file.serialize(), "info": {"size": len(data)}}
        path = f"rooms/{room}/send/m.room.message/{secrets.token_hex(8)}"
        event_id = (await ann.call("PUT", path, content))["event_id"]
        await until(lambda: any(event.event_id == event_id for event in bench.events))
        assert (await wire.download(agent="echo", room_id=room, event_id=event_id))[0] == data
        await bench.db.write(lambda db: db.execute("UPDATE journal SET content = x'7b7d', erased = 1"))
        assert (await wire.download(agent="echo", room_id=room, event_id=event_id))[0] == data
        assert (await wire.refusal(wire.download(room_id=room, event_id="$nothing"))).name == "not_found"


async def test_an_empty_file_and_one_that_is_cut(bench: Bench, homeserver: Homeserver, person: MakePerson) -> None:
    ann, bot = await person("ann"), await person("bot")
    room = await ann.create_room(bot.user_id)
    bench.grants.set("echo", "main", [room])
    async with running(bench.accounts(account_of(bot, homeserver))) as accounts:
        wire = Wire(bench, accounts)
        await accounts.until_joined("main", [room])
        up = await wire.upload(b"", room_id=room)
        assert await wire.download(mxc=up["mxc"]) == (
            b"",
            {"size": 0, "name": "", "mimetype": "application/octet-stream", "encrypted": False},
        )
        error = await wire.refusal(wire.upload(b"abc", room_id=room, size=5))
        assert (error.name, error.data["fields"]) == ("invalid_params", ["size"])
        most = 2**26 - 1
        error = await wire.refusal(wire.upload(b"abc", room_id=room, size=most))
        assert error.name == "too_large"  # Synapse takes 50 MiB
        assert "the homeserver takes" in error.why


async def fetched(person: Person, uri: str) -> httpx.Response:
    path = f"/_matrix/client/v1/media/download/{uri.removeprefix('mxc://')}"
    answer = await person.http.get(path, headers={"Authorization": f"Bearer {person.token}"})
    assert answer.status_code == 200
    return answer


async def uploaded(person: Person, data: bytes) -> Any:
    headers = {"Authorization": f"Bearer {person.token}", "Content-Type": "application/octet-stream"}
    answer = await person.http.post("/_matrix/media/v3/upload", content=data, headers=headers)
    return answer.json()["content_uri"]
