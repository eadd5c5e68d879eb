"""The methods that send, change and mark messages, as a client sees them and as people on a real homeserver do."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import trio

from armorclaw.config import Account
from armorclaw.delivery.message import Delivery, Outgoing
from armorclaw.errors import ArmorclawError
from armorclaw.matrix import message_methods, postman
from armorclaw.matrix.message_methods import MessageMethods
from armorclaw.matrix.message_shapes import SendParams
from armorclaw.matrix.routing.said import MARK
from armorclaw.testing.homeserver import Homeserver
from tests.turns import turns

from .conftest import Bench, Person, Watch, account_of, running, until
from .test_methods import methods_of

MakePerson = Callable[[str], Awaitable[Person]]


async def refusal(calling: Awaitable[Any]) -> ArmorclawError:
    with pytest.raises(ArmorclawError) as caught:
        await calling
    return caught.value


async def contents(reader: Person, room: str) -> list[dict[str, Any]]:
    """What was said in a room, oldest first."""
    return [raw["content"] for raw in await reader.read(room)]


async def test_a_reply_a_thread_and_markdown(bench: Bench, homeserver: Homeserver, person: MakePerson) -> None:
    ann, bot = await person("ann"), await person("bot")
    room = await ann.create_room(bot.user_id)
    bench.grants.set("echo", "main", [room])
    async with running(bench.accounts(account_of(bot, homeserver))) as accounts:
        call = methods_of(bench, accounts)
        await until(lambda: ann.member_of(room, bot.user_id))
        asked = await ann.say(room, "well?")
        said = {"agent": "echo", "room_id": room}
        mentioned = [ann.user_id]
        await call("matrix.send", **said, message="*yes*", format="markdown", reply_to=asked, mentions=mentioned)
        await call("matrix.send", **said, message="and more", thread=asked)
        reply, threaded = (await contents(ann, room))[1:]
    assert reply == {
        "msgtype": "m.text",
        "body": "*yes*",
        "format": "org.matrix.custom.html",
        "formatted_body": "<em>yes</em>",
        "m.mentions": {"user_ids": [ann.user_id]},
        "m.relates_to": {"m.in_reply_to": {"event_id": asked}},
        MARK: "echo",
    }
    assert (threaded["m.relates_to"]["rel_type"], threaded["m.relates_to"]["event_id"]) == ("m.thread", asked)
    # the homeserver knows it for a thread
    path = f"/_matrix/client/v1/rooms/{room}/relations/{asked}/m.thread"
    answer = await ann.http.get(path, headers={"Authorization": f"Bearer {ann.token}"})
    assert [raw["content"]["body"] for raw in answer.json()["chunk"]] == ["and more"]


async def test_edits_reactions_and_redactions(bench: Bench, homeserver: Homeserver, person: MakePerson) -> None:
    ann, bot = await person("ann"), await person("bot")
    room = await ann.create_room(bot.user_id)
    bench.grants.set("echo", "main", [room])
    async with running(bench.accounts(account_of(bot, homeserver))) as accounts:
        call = methods_of(bench, accounts)
        await until(lambda: ann.member_of(room, bot.user_id))
        asked = await ann.say(room, "well?")
        said = {"agent": "echo", "room_id": room}
        first = await call("matrix.send", **said, message="thinking")
        await call("matrix.edit", **said, message="*done*", format="markdown", event_id=first["event_id"])
        last = await call("matrix.edit", **said, message="well done", delivery_id=first["delivery_id"])
        assert last["status"] == "sent"
        shown = await ann.call("GET", f"rooms/{room}/event/{first['event_id']}")
        newest = shown["unsigned"]["m.relations"]["m.replace"]  # as the homeserver sees it, too
        assert newest["content"]["m.new_content"] == {"msgtype": "m.text", "body": "well done", MARK: "echo"}

        liked = await call("matrix.react", **said, key="👍", event_id=asked)
        again = await refusal(call("matrix.react", **said, key="👍", event_id=asked))
        assert (again.name, "DUPLICATE" in again.why) == ("matrix_refused", True)
        relations = f"/_matrix/client/v1/rooms/{room}/relations/{asked}/m.annotation"
        headers = {"Authorization": f"Bearer {ann.token}"}

        async def reactions() -> list[str]:
            chunk = (await ann.http.get(relations, headers=headers)).json()["chunk"]
            return [raw["content"]["m.relates_to"]["key"] for raw in chunk]

        assert await reactions() == ["👍"]
        await call("matrix.redact", **said, event_id=liked["event_id"])
        assert await reactions() == []
        gone = await call("matrix.redact", **said, delivery_id=first["delivery_id"], reason="said in error")
        left = await ann.call("GET", f"rooms/{room}/event/{first['event_id']}")
        assert left["content"] == {}
        assert left["unsigned"]["redacted_because"]["content"]["reason"] == "said in error"
        assert left["unsigned"]["redacted_because"]["event_id"] == gone["event_id"]


async def test_a_long_message_becomes_several_in_order_and_once(
    bench: Bench, homeserver: Homeserver, person: MakePerson
) -> None:
    ann, bot = await person("ann"), await person("bot")
    room = await ann.create_room(bot.user_id)
    bench.grants.set("echo", "main", [room])
    text = "".join(f"line {number} of many\n" for number in range(8_000))
    async with running(bench.accounts(account_of(bot, homeserver))) as accounts:
        call = methods_of(bench, accounts)
        await until(lambda: ann.member_of(room, bot.user_id))
        asked = await ann.say(room, "all of it")
        params = {"room_id": room, "message": text, "reply_to": asked, "idempotency_key": "k" * 300}
        sent = await call("matrix.send", agent="echo", **params)
        assert len(sent["parts"]) == 4
        assert sent["parts"][0] == sent["delivery_id"]
        assert (await call("matrix.send", agent="echo", **params))["parts"] == sent["parts"]
        await call("matrix.send", agent="echo", room_id=room, message="done")
        said = (await contents(ann, room))[1:]
    assert "".join(each["body"] for each in said) == text + "done"
    assert [each.get("m.relates_to") for each in said] == [{"m.in_reply_to": {"event_id": asked}}, *[None] * 4]


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("matrix.edit", {"message": "mine now"}),
        ("matrix.redact", {}),
        ("matrix.send", {"message": "mine now"}),
    ],
)
async def test_an_agent_changes_only_what_it_sent_itself(
    name: str, params: dict[str, Any], bench: Bench, homeserver: Homeserver, person: MakePerson
) -> None:
    ann, bot = await person("ann"), await person("bot")
    room, other = await ann.create_room(bot.user_id), await ann.create_room(bot.user_id)
    for agent in ("echo", "another"):
        bench.grants.set(agent, "main", [room, other])
    async with running(bench.accounts(account_of(bot, homeserver))) as accounts:
        call = methods_of(bench, accounts)
        for each in (room, other):
            await until(lambda each=each: ann.member_of(each, bot.user_id))
        theirs = await call("matrix.send", agent="another", room_id=room, message="hello")
        elsewhere = await call("matrix.send", agent="echo", room_id=other, message="hello")
        persons = await ann.say(room, "hello")
        operators = await call("matrix.send", room_id=room, message="hello")
        for event_id in (theirs["event_id"], elsewhere["event_id"], persons, operators["event_id"], "$never"):
            which: dict[str, Any] = {"event_id": event_id}
            if name == "matrix.send":  # by its content
                relation = {"rel_type": "m.replace", "event_id": event_id}
                which = {"content": {"m.relates_to": relation, "m.new_content": {"body": "mine now"}}}
            error = await refusal(call(name, agent="echo", room_id=room, **which, **params))
            assert error.name == "message_denied"
        if name != "matrix.send":
            for sent in (theirs, elsewhere, operators):  # which may not even be known
                which = {"delivery_id": sent["delivery_id"]}
                assert (await refusal(call(name, agent="echo", room_id=room, **which, **params))).name == "not_found"
        before = await contents(ann, room)
        assert [each["body"] for each in before] == ["hello"] * 3
        if name == "matrix.redact":
            assert await call(name, room_id=room, event_id=operators["event_id"])  # an operator may
            assert (await contents(ann, room))[2] == {}


async def test_what_is_wrong_with_params(bench: Bench) -> None:
    bench.grants.set("echo", "main", ["!mine:x"])
    call = methods_of(bench, bench.accounts(Account("http://127.0.0.1:1", "bot")))
    room = {"agent": "echo", "room_id": "!mine:x"}
    wrong: list[tuple[str, dict[str, Any], set[str]]] = [
        ("matrix.send", {"message": "x", "reply_to": "abc"}, {"reply_to"}),
        ("matrix.send", {"message": "x", "thread": "$" + "x" * 255}, {"thread"}),
        ("matrix.send", {"message": "x", "mentions": ["ann"]}, {"mentions"}),
        ("matrix.send", {"message": "x", "mentions": ["@a:b"] * 101}, {"mentions"}),
        ("matrix.send", {"message": "x", "format": "html"}, {"format"}),
        ("matrix.send", {"message": "x", "wait_ms": -1}, {"wait_ms"}),
        ("matrix.send", {"message": "x", "msgtype": "m.key.verification.request"}, {"msgtype"}),
        ("matrix.send", {"message": "x", "content": {"msgtype": "m.key.verification.request"}}, {"msgtype"}),
        ("matrix.send", {"message": "x", "content": {"m.relates_to": {"rel_type": "m.replace"}}}, {"content"}),
        ("matrix.edit", {"message": "x"}, {"event_id", "delivery_id"}),
        ("matrix.edit", {"message": "x", "event_id": "$a", "delivery_id": "d_a"}, {"event_id", "delivery_id"}),
        ("matrix.react", {"key": " ", "event_id": "$a"}, {"key"}),
        ("matrix.react", {"key": "👍" * 65, "event_id": "$a"}, {"key"}),
        ("matrix.redact", {"event_id": "a/../b"}, {"event_id"}),
        ("matrix.typing", {"timeout_ms": 999}, {"timeout_ms"}),
        ("matrix.typing", {"timeout_ms": 600_001}, {"timeout_ms"}),
        ("matrix.read", {"event_id": ""}, {"event_id"}),
    ]
    for name, params, fields in wrong:
        error = await refusal(call(name, **room, **params))
        assert (error.name, set(error.data["fields"])) == ("invalid_params", fields), (name, params)
        assert len(str(error)) < 200
    for message, format_ in (("x" * 300_000, "plain"), ("x" * 70_000, "markdown"), ("x", "plain")):
        params = {"message": message, "format": format_, "content": {"org.x": "y" * 60_000} if message == "x" else {}}
        assert (await refusal(call("matrix.send", **room, **params))).name == "too_large"
    assert (await refusal(call("matrix.send", room_id="!a:b", message="x", account="none"))).name == (
        "matrix_not_configured"
    )


@pytest.mark.parametrize(
    ("name", "params"),
    [
        ("matrix.edit", {"event_id": "$a", "message": "x"}),
        ("matrix.react", {"event_id": "$a", "key": "x"}),
        ("matrix.redact", {"event_id": "$a"}),
        ("matrix.typing", {}),
        ("matrix.read", {"event_id": "$a"}),
    ],
)
async def test_rooms_that_are_not_granted(bench: Bench, name: str, params: dict[str, Any]) -> None:
    bench.grants.set("echo", "main", ["!mine:x"])
    call = methods_of(bench, bench.accounts(Account("http://127.0.0.1:1", "bot")))
    for room, expected in (("!other:x", "room_denied"), ("#a:b", "invalid_params"), ("!a b", "invalid_params")):
        assert (await refusal(call(name, agent="echo", room_id=room, **params))).name == expected


async def test_what_was_not_sent_yet_can_be_edited_and_interim_edits_wait_for_their_turn(
    bench: Bench, homeserver: Homeserver, person: MakePerson
) -> None:
    ann, bot = await person("ann"), await person("bot")
    room = await ann.create_room(bot.user_id)
    await bot.call("POST", f"rooms/{room}/join")
    bench.grants.set("echo", "main", [room])
    bench.outbox.hold()
    async with running(bench.accounts(account_of(bot, homeserver))) as accounts:
        call = methods_of(bench, accounts)
        said = {"agent": "echo", "room_id": room, "wait_ms": 0}
        first = await call("matrix.send", **said, message="a")
        which = {"delivery_id": first["delivery_id"]}
        assert (first["status"], first["event_id"]) == ("queued", None)
        assert (
            await refusal(call("matrix.edit", **said, **which, message="a b", interim=True))
        ).name == "unavailable"
        last = await call("matrix.edit", **said, **which, message="a b c", idempotency_key="last")
        liked = await call("matrix.react", **said, **which, key="🎉")
        bench.outbox.release()
        await until(lambda: bench.outbox.lengths().get("main", 0) == 0)
        status = await bench.outbox.status(last["delivery_id"])
        assert status.state in ("sent", "delivered")
        said_now = await contents(ann, room)
        assert said_now[1]["m.new_content"]["body"] == "a b c"
        event_id = (await bench.outbox.status(first["delivery_id"])).event_id
        assert said_now[1]["m.relates_to"]["event_id"] == event_id
        assert (await bench.outbox.status(liked["delivery_id"])).state in ("sent", "delivered")

        bench.outbox.hold()
        one = await call("matrix.edit", **said, **which, message="a b c d", interim=True)
        error = await refusal(call("matrix.edit", **said, event_id=event_id, message="a b c d e", interim=True))
        assert (error.name, error.kind.retryable) == ("unavailable", True)
        bench.outbox.release()
        await bench.outbox.settled(one["delivery_id"], 20)
        long = await call("matrix.edit", **said, event_id=event_id, message="word " * 20_000, interim=True)
        await bench.outbox.settled(long["delivery_id"], 20)
        assert "parts" not in long
        bodies = [each["m.new_content"]["body"] for each in (await contents(ann, room))[1:]]
    assert bodies[:2] == ["a b c", "a b c d"]
    assert re.fullmatch("(word ){5000,}word…", bodies[2])


async def test_how_many_interim_edits_are_remembered(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(message_methods, "INTERIM_EDITS", 2)
    bench.outbox.hold()
    call = methods_of(bench, bench.accounts(Account("http://127.0.0.1:1", "bot")))

    async def edit(event_id: str) -> Any:
        params = {"room_id": "!a:x", "message": "x", "interim": True, "wait_ms": 0}
        return await call("matrix.edit", event_id=event_id, **params)

    for event_id in ("$1", "$2", "$3"):
        await edit(event_id)
    await edit("$1")
    assert (await refusal(edit("$3"))).name == "unavailable"


async def test_typing_and_reading_are_seen(bench: Bench, homeserver: Homeserver, person: MakePerson) -> None:
    ann, bot = await person("ann"), await person("bot")
    room = await ann.create_room(bot.user_id)
    bench.grants.set("echo", "main", [room])
    async with running(bench.accounts(account_of(bot, homeserver))) as accounts:
        call = methods_of(bench, accounts)
        await until(lambda: ann.member_of(room, bot.user_id))
        watch, said = Watch(ann, room), {"agent": "echo", "room_id": room}
        since = (await ann.call("GET", "sync?timeout=0"))["next_batch"]

        async def typing() -> list[str]:
            nonlocal since
            answer = await ann.call("GET", f"sync?timeout=5000&since={since}")
            since = answer["next_batch"]
            part = answer.get("rooms", {}).get("join", {}).get(room, {})
            told = [raw for raw in part.get("ephemeral", {}).get("events", []) if raw["type"] == "m.typing"]
            return told[-1]["content"]["user_ids"] if told else ["nothing new"]

        assert await call("matrix.typing", **said) == {}
        assert await typing() == [bot.user_id]
        await call("matrix.typing", **said, typing=False)
        assert await typing() == []

        await watch.look()
        asked = await ann.say(room, "hello")
        assert await call("matrix.read", **said, event_id=asked) == {}

        async def is_read() -> bool:
            return (bot.user_id, asked) in await watch.look()

        await until(is_read)


async def test_the_event_loop_is_not_held_up_by_long_markdown(bench: Bench) -> None:
    bench.outbox.hold()
    call = methods_of(bench, bench.accounts(Account("http://127.0.0.1:1", "bot")))
    with turns() as found:
        began = time.process_time()
        await call("matrix.send", room_id="!a:x", message="*a* _b_ " * 3_000, format="markdown", wait_ms=0)
        took = time.process_time() - began
    assert found.longest < took / 4


async def test_a_homeserver_that_is_away_queues_within_the_time_clients_have(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert message_methods.SEND_WAIT < 4
    monkeypatch.setattr(message_methods, "SEND_WAIT", 0.3)
    bench.grants.set("echo", "main", ["!mine:x"])
    async with running(bench.accounts(Account("http://127.0.0.1:1", "bot")), connected=False) as accounts:
        call = methods_of(bench, accounts)
        began = trio.current_time()
        answer = await call("matrix.send", agent="echo", room_id="!mine:x", message="hello")
        assert trio.current_time() - began < 4
        assert (answer["status"], answer["event_id"]) == ("queued", None)
        status = await call("matrix.status")
        assert (status["status"], status["logged_in"]) == ("disconnected", False)


async def test_encrypted_rooms_are_refused_by_name(bench: Bench, homeserver: Homeserver, person: MakePerson) -> None:
    """Also one that is not known yet: then the homeserver is asked first."""
    ann, bot = await person("ann"), await person("bot")
    room = await ann.create_room(bot.user_id, encrypted=True)
    await bot.call("POST", f"rooms/{room}/join")
    async with running(bench.accounts(account_of(bot, homeserver))) as accounts:
        call = methods_of(bench, accounts)
        await until(lambda: accounts.encrypted("main", room) is True)
        later = await ann.create_room(bot.user_id, encrypted=True)
        await bot.call("POST", f"rooms/{later}/join")
        bench.grants.set("echo", "main", [room, later])
        for one in (room, later):
            with pytest.raises(ArmorclawError) as caught:
                await call("matrix.send", agent="echo", room_id=one, message="in the clear")
            assert caught.value.name == "room_encrypted"
            assert "switched off for this account" in caught.value.why
            assert "switch encryption on" in caught.value.hint
            assert await ann.read(one) == []


@pytest.mark.parametrize("known", [True, False])
async def test_why_an_encrypted_room_gets_nothing_is_told(known: bool) -> None:
    """To switch encryption on helps only where it is off."""
    reason = postman.OFF if known else "room_encrypted, unknown_algorithm: it is encrypted in another way"

    async def enqueue_all(outs: Sequence[Outgoing]) -> list[Delivery]:
        await trio.lowlevel.checkpoint()
        return [
            Delivery("d", "t", out.account, out.agent, out.room_id, out.type, "failed", 1, reason=reason)
            for out in outs
        ]

    outbox: Any = SimpleNamespace(enqueue_all=enqueue_all)
    permission: Any = SimpleNamespace(account_for=lambda *_: "main")
    accounts: Any = SimpleNamespace(encrypted=lambda *_: True)
    operator: Any = SimpleNamespace(agent=None)
    sending = MessageMethods(accounts, outbox, permission).send(operator, SendParams("!a:x", "hello"))
    told = await refusal(sending)
    assert told.name == "room_encrypted"
    assert told.why == reason.partition(": ")[2]
    assert told.data["delivery_id"] == "d"
    assert ("switch encryption on" in told.hint) is known
    assert ("m.megolm.v1.aes-sha2" in told.hint) is not known


async def test_a_room_that_refuses_is_an_error_with_its_reason(
    bench: Bench, homeserver: Homeserver, person: MakePerson
) -> None:
    ann, bot = await person("ann"), await person("bot")
    room = await ann.create_room()
    async with running(bench.accounts(account_of(bot, homeserver))) as accounts:
        with pytest.raises(ArmorclawError) as caught:
            await methods_of(bench, accounts)("matrix.send", room_id=room, message="let me in")
        assert caught.value.name == "matrix_refused"
        assert "M_FORBIDDEN" in caught.value.why
        assert "power level" in caught.value.hint
