"""What an agent does in a room: the calls it makes, with keys by which nothing is done twice."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from armorclaw.agent import Agent, AgentError, AsyncAgent, AsyncRoom, Delivery, Room
from armorclaw.agent.events import Keys
from armorclaw.agent.messages import Message

from .conftest import ROOM, AnyMessage, FakeBridge, Kit

SENT = Delivery("sent", "$9", "d_9", ROOM)
QUEUED = Delivery("queued", None, "d_8", ROOM)


def in_handler(kit: Kit, bridge: FakeBridge, steps: Any, **event: Any) -> None:
    kit.on_message(steps)
    kit.start()
    bridge.wait_acked(bridge.say("x", **event))


def test_replies(kit: Kit, bridge: FakeBridge) -> None:
    async def steps(msg: AnyMessage) -> None:
        await kit.reply(msg, "plain")
        await kit.done(msg.reply(markdown="*x*", mentions=["@ann:x"], msgtype="m.notice", content={"a": 1}))
        await kit.done(msg.reply("apart", thread=True))
        with pytest.raises(ValueError, match="either text or markdown"):
            await kit.done(msg.reply("both", markdown="both"))

    in_handler(kit, bridge, steps)
    said = {"room_id": ROOM, "msgtype": "m.text"}
    assert bridge.of("matrix.send") == [
        {**said, "message": "plain", "reply_to": "$1", "idempotency_key": "$1:1"},
        {
            "room_id": ROOM,
            "message": "*x*",
            "msgtype": "m.notice",
            "format": "markdown",
            "reply_to": "$1",
            "mentions": ["@ann:x"],
            "content": {"a": 1},
            "idempotency_key": "$1:2",
        },
        {**said, "message": "apart", "thread": "$1", "idempotency_key": "$1:3"},
    ]


def test_in_a_thread_answers_stay_there(kit: Kit, bridge: FakeBridge) -> None:
    async def steps(msg: AnyMessage) -> None:
        assert msg.thread == "$root"
        await kit.reply(msg, "here")
        await kit.done(msg.reply("here too", thread=True))

    relation = {"rel_type": "m.thread", "event_id": "$root"}
    in_handler(kit, bridge, steps, content={"body": "x", "m.relates_to": relation})
    assert [(each["thread"], each["reply_to"]) for each in bridge.of("matrix.send")] == [("$root", "$1")] * 2


@pytest.mark.parametrize("relation", [None, [], {"rel_type": "m.thread"}, {"rel_type": "m.thread", "event_id": 1}])
def test_what_is_no_thread(relation: Any) -> None:
    message = Message({"seq": 1, "content": {"m.relates_to": relation}}, None)  # type: ignore[arg-type]
    assert message.thread is None


def test_edits_reactions_and_redactions(kit: Kit, bridge: FakeBridge) -> None:
    async def steps(msg: AnyMessage) -> None:
        await kit.done(msg.react("👍"))
        await kit.done(msg.room.react(SENT, "👍"))
        await kit.done(msg.room.edit(SENT, markdown="*x*", thread="$root", mentions=["@room"]))
        await kit.done(msg.room.edit(QUEUED, "x", "m.notice"))
        await kit.done(msg.room.redact("$7", "wrong"))
        await kit.done(msg.room.redact(QUEUED))
        await kit.done(msg.mark_read())

    in_handler(kit, bridge, steps)

    def without_keys(method: str) -> list[Any]:
        calls = bridge.of(method)
        assert len({call.pop("idempotency_key") for call in calls}) == len(calls)
        return calls

    assert without_keys("matrix.react") == [
        {"room_id": ROOM, "key": "👍", "event_id": "$1"},
        {"room_id": ROOM, "key": "👍", "event_id": "$9"},
    ]
    edit = {"room_id": ROOM, "msgtype": "m.text", "message": "*x*", "format": "markdown", "thread": "$root"}
    assert without_keys("matrix.edit") == [
        {**edit, "mentions": ["@room"], "event_id": "$9"},
        {"room_id": ROOM, "msgtype": "m.notice", "message": "x", "delivery_id": "d_8"},
    ]
    assert without_keys("matrix.redact") == [
        {"room_id": ROOM, "event_id": "$7", "reason": "wrong"},
        {"room_id": ROOM, "delivery_id": "d_8"},
    ]
    assert bridge.of("matrix.read") == [{"room_id": ROOM, "event_id": "$1"}]


def test_in_whatever_order_a_handler_that_runs_again_does_nothing_twice(kit: Kit, bridge: FakeBridge) -> None:
    runs: list[int] = []

    async def steps(msg: AnyMessage) -> None:
        runs.append(1)
        doing: list[Callable[[], Any]] = [
            lambda: msg.react("👍"),
            lambda: msg.room.edit(SENT, "x"),
            lambda: msg.room.redact("$7"),
            lambda: msg.reply("answer"),
            lambda: msg.room.send("another"),
        ]
        for do in doing if len(runs) == 1 else [*doing[2::-1], *doing[3:]]:
            await kit.done(do())
        if len(runs) == 1:
            raise LookupError

    kit.on_message(steps)
    kit.start()
    seq = bridge.say("x")
    bridge.wait_for("events.ack")
    bridge.push_again(seq)
    bridge.wait_acked(seq)
    for method in ("matrix.react", "matrix.edit", "matrix.redact", "matrix.send"):
        keys = [params["idempotency_key"] for params in bridge.of(method)]
        half = len(keys) // 2
        assert keys[:half] == keys[half:], method
        assert len(set(keys)) == half


def test_of_its_own_accord(kit: Kit, bridge: FakeBridge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARMORCLAW_MATRIX_ROOM", "!first:x")
    room = kit.agent.in_room("!two:x")
    assert isinstance(room, (Room, AsyncRoom))
    assert repr(room) == f"<{type(room).__name__} !two:x>"

    async def steps() -> None:
        for _ in range(2):
            await kit.done(room.send("hello", thread="$root"))
        await kit.done(room.send("keyed", idempotency_key="k"))
        await kit.done(kit.agent.in_room().send("there"))
        await kit.done(kit.agent.send("!two:x", markdown="*x*", reply_to="$1"))

    kit.start()
    kit.do(steps())
    sent = bridge.of("matrix.send")
    keys = [params["idempotency_key"] for params in sent]
    assert len(set(keys)) == len(keys) == 5  # each says something new, and survives a bridge that restarts
    assert keys[2] == "k"
    assert [params["room_id"] for params in sent] == ["!two:x"] * 3 + ["!first:x", "!two:x"]
    assert (sent[4]["format"], sent[4]["reply_to"]) == ("markdown", "$1")


def test_typing_while_a_handler_works(bridge: FakeBridge, kit: Kit) -> None:
    told: list[int] = []

    def typing() -> list[bool]:
        return [params.get("typing", True) for params in bridge.of("matrix.typing")]

    agent = kit.agent
    if isinstance(agent, Agent):

        @agent.on_message(typing=True)
        def plain(msg: Any) -> None:
            bridge.wait(typing)
            told.append(len(typing()))
            if msg.body == "fail" and not msg.redelivered:
                raise LookupError

    else:

        @agent.on_message(typing=True)
        async def handler(msg: Any) -> None:
            while not typing():  # noqa: ASYNC110
                await asyncio.sleep(0.005)
            told.append(len(typing()))
            if msg.body == "fail" and not msg.redelivered:
                raise LookupError

    kit.start()
    bridge.wait_acked(bridge.say("x"))
    bridge.wait(lambda: typing() == [True, False])
    assert told == [1]
    bridge.say("fail", room="!other:x")
    bridge.wait(lambda: typing() == [True, False] * 2)
    assert bridge.of("matrix.typing")[-1] == {"room_id": "!other:x", "typing": False}
    assert bridge.of("matrix.typing")[-2] == {"room_id": "!other:x", "timeout_ms": 120_000}


def test_typing_for_the_length_of_a_block(kit: Kit, bridge: FakeBridge) -> None:
    async def steps(msg: AnyMessage) -> None:
        with msg.typing():
            await kit.reply(msg, "in between")
        async with msg.room.typing():
            pass

    in_handler(kit, bridge, steps)
    told = [params.get("typing", True) if name == "matrix.typing" else name for name, params in bridge.calls[3:]]
    assert told == [True, "matrix.send", False, True, False, "events.ack"]


def test_typing_waits_for_no_bridge(kit: Kit, bridge: FakeBridge) -> None:
    bridge.script["matrix.typing"] = lambda params: None  # never answered

    async def steps(msg: AnyMessage) -> None:
        with msg.typing():
            pass

    in_handler(kit, bridge, steps)
    kit.stop()
    assert kit.error is None


@pytest.mark.parametrize("agent", [Agent("/nowhere"), AsyncAgent("/nowhere")])
def test_before_it_runs(agent: Agent | AsyncAgent) -> None:
    with pytest.raises(AgentError, match="does not run"):
        agent.in_room("!a:x").typing().start()


def test_keys() -> None:
    keys = Keys("$1")
    assert [keys.next(), keys.next()] == ["$1:1", "$1:2"]
    edits = [keys.next("edit", "$2"), keys.next("edit", "$2"), keys.next("edit", "$3"), keys.next("redact", "$2")]
    assert len(set(edits)) == 4
    same = Keys("$1")
    assert [same.next("redact", "$2"), same.next("edit", "$3"), same.next("edit", "$2")] == [
        edits[3],
        edits[2],
        edits[0],
    ]
    assert Keys().next() != Keys().next()
    assert len(Keys("$" + "x" * 254).next("redact", "$" + "y" * 254)) < 300 - len(":last")
