"""What both drivers promise to the author of an agent, and to the bridge."""

from __future__ import annotations

import threading
import time
from typing import Any

import pytest

from armorclaw.agent import Agent, AgentError, Message, Receipt

from .conftest import FINGERPRINT, PAYLOAD, ROOM, AnyMessage, BlockingKit, FakeBridge, Kit, Refuse, eventually


@pytest.mark.mission("P0.2")
def test_it_greets_then_answers_and_acknowledges(kit: Kit, bridge: FakeBridge) -> None:
    seen: list[Any] = []

    async def echo(msg: AnyMessage) -> None:
        sent = await kit.reply(msg, "echo: " + msg.body)
        seen.append((msg.body, msg.room_id, msg.sender, msg.event_id, msg.msgtype, msg.redelivered, sent))

    kit.on_message(echo)
    kit.start()
    bridge.wait_for("events.subscribe")
    seq = bridge.say("good morning ☀")
    bridge.wait_acked(seq)

    assert [name for name, _ in bridge.calls] == [
        "secrets.take",
        "agent.ready",
        "events.subscribe",
        "matrix.send",
        "events.ack",
    ]
    assert bridge.of("secrets.take") == [{"via": "fd"}]
    ready = bridge.of("agent.ready")[0]
    assert (ready["protocol"], ready["fingerprint"]) == (1, FINGERPRINT)
    assert bridge.of("events.subscribe") == [{"name": "main", "filter": {}, "from": "now"}]
    assert bridge.of("matrix.send") == [
        {
            "room_id": ROOM,
            "message": "echo: good morning ☀",
            "msgtype": "m.text",
            "reply_to": "$1",
            "idempotency_key": "$1:1",
        }
    ]
    assert bridge.of("events.ack") == [{"subscription": "s1", "seq": 1}]
    assert seen[0][:6] == ("good morning ☀", ROOM, "@p:example.org", "$1", "m.text", 0)
    assert (seen[0][6].status, seen[0][6].event_id) == ("sent", "$sent1")


def test_secrets_are_there_in_a_handler_and_never_shown(kit: Kit, bridge: FakeBridge) -> None:
    tokens: list[str] = []

    async def look(msg: AnyMessage) -> None:
        tokens.append(kit.agent.secrets["openai-default"].token)
        tokens.append(kit.agent.secret("openai-default").token)

    kit.on_message(look)
    with pytest.raises(AgentError, match="secrets come when the agent runs"):
        kit.agent.secrets  # noqa: B018 - a property that raises
    kit.start()
    bridge.wait_acked(bridge.say("x"))
    assert tokens == ["sk-canary-1"] * 2
    shown = f"{kit.agent.secrets!r} {kit.agent.secrets} {kit.agent.secret('openai-default')!r} {vars(kit.agent)}"
    assert "canary" not in shown
    with pytest.raises(KeyError, match=r"'other' is not among the keys of this agent \(openai-default\)"):
        kit.agent.secret("other")


def test_secrets_inline_when_descriptors_do_not_pass(kit: Kit, bridge: FakeBridge) -> None:
    def take(params: Any) -> Any:
        if params["via"] == "fd":
            raise Refuse(-32602, "invalid_params")
        return {"secrets": PAYLOAD.decode()}

    bridge.script["secrets.take"] = take
    kit.start()
    assert bridge.wait_for("agent.ready")[0]["fingerprint"] == FINGERPRINT


def test_secrets_already_taken_are_no_reason_to_stop(
    kit: Kit, bridge: FakeBridge, capfd: pytest.CaptureFixture[str]
) -> None:
    def take(params: Any) -> Any:
        raise Refuse(-32007, "secrets_taken")

    bridge.script["secrets.take"] = take
    kit.start()
    assert bridge.wait_for("agent.ready")[0]["fingerprint"] is None
    assert len(kit.agent.secrets) == 0
    assert "taken before" in capfd.readouterr().err


def test_what_the_bridge_cannot_do_just_now_is_asked_again(
    kit: Kit, bridge: FakeBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("armorclaw.agent.session.TICK", 0.05)
    refusals = {"secrets.take": 1, "agent.ready": 1, "events.subscribe": 1, "events.ack": 1}

    def busy(method: str) -> None:
        plain = bridge.plain(method)

        def answer(params: Any) -> Any:
            if refusals[method]:
                refusals[method] -= 1
                raise Refuse(-32002, "unavailable", retryable=True)
            return plain(params)

        bridge.script[method] = answer

    for method in refusals:
        busy(method)
    kit.start()
    bridge.wait_acked(bridge.say("x"))
    assert bridge.connections == 1  # an end of the connection would look like a death of the agent
    assert len(bridge.of("secrets.take")) == len(bridge.of("events.ack")) == 2


@pytest.mark.parametrize("method", ["agent.ready", "events.subscribe", "secrets.take"])
def test_a_refusal_for_good_ends_the_agent_with_the_reason(kit: Kit, bridge: FakeBridge, method: str) -> None:
    def refuse(params: Any) -> Any:
        raise Refuse(-32001, "denied")

    bridge.script[method] = refuse
    kit.start()
    kit.join()
    assert isinstance(kit.error, AgentError)
    assert kit.error.name == "denied"


def test_rooms_keep_their_order_and_do_not_wait_for_each_other(kit: Kit, bridge: FakeBridge) -> None:
    handled: list[str] = []
    free = threading.Event()

    async def steps(msg: AnyMessage) -> None:
        if msg.body == "a1":
            await kit.wait(free)
        handled.append(msg.body)

    kit.on_message(steps)
    kit.start()
    bridge.wait_for("events.subscribe")
    bridge.say("a1", room="!a:x")
    bridge.say("a2", room="!a:x")
    others = [bridge.say(f"b{n}", room="!b:x") for n in range(5)]
    last = bridge.say("a3", room="!a:x")
    bridge.wait_acked(*others)
    assert handled == [f"b{n}" for n in range(5)]
    free.set()
    bridge.wait_acked(last)
    assert handled[5:] == ["a1", "a2", "a3"]


def test_no_more_handlers_at_once_than_workers(bridge: FakeBridge) -> None:
    kit = BlockingKit(bridge, workers=3)
    running: list[str] = []
    free = threading.Event()
    most = 0

    async def steps(msg: AnyMessage) -> None:
        nonlocal most
        running.append(msg.room_id)
        most = max(most, len(running))
        bridge.changed()
        await kit.wait(free)
        running.remove(msg.room_id)

    kit.on_message(steps)
    kit.start()
    seqs = [bridge.say("x", room=f"!{n}:x") for n in range(9)]
    bridge.wait(lambda: len(running) == 3, "three handlers")
    free.set()
    bridge.wait_acked(*seqs)
    assert most == 3
    kit.stop()


def test_raising_reports_and_asks_for_redelivery(
    kit: Kit, bridge: FakeBridge, capfd: pytest.CaptureFixture[str]
) -> None:
    async def steps(msg: AnyMessage) -> None:
        await kit.reply(msg, "first")
        await kit.reply(msg, "second")
        if msg.redelivered < 2:
            raise LookupError("no such thing")

    kit.on_message(steps)
    kit.start()
    seq = bridge.say("body-canary")
    bridge.wait_for("events.ack")
    bridge.push_again(seq)
    bridge.wait_for("events.ack", 2)
    bridge.push_again(seq)
    bridge.wait_acked(seq)
    assert bridge.of("events.ack") == [
        {"subscription": "s1", "seq": seq, "nack_ms": 1000},
        {"subscription": "s1", "seq": seq, "nack_ms": 2000},
        {"subscription": "s1", "seq": seq},
    ]
    # the same keys each time, so that the room sees each answer once
    assert [sent["idempotency_key"] for sent in bridge.of("matrix.send")] == [f"${seq}:1", f"${seq}:2"] * 3
    said = capfd.readouterr().err
    assert "LookupError: no such thing" in said
    assert "Traceback" in said
    assert "body-canary" not in said


def test_events_without_a_handler_are_acknowledged(kit: Kit, bridge: FakeBridge) -> None:
    types: list[str] = []

    async def steps(msg: AnyMessage) -> None:
        types.append(msg.type)

    kit.on_event("m.reaction", steps)
    kit.start()
    first = bridge.say("x", event_type="m.sticker")
    second = bridge.say("x", event_type="m.reaction", content=None, room_id=None, sender=None)
    bridge.wait_acked(first, second)
    assert types == ["m.reaction"]
    with pytest.raises(ValueError, match="reaction has a handler already"):
        kit.on_event("m.reaction", steps)


@pytest.mark.mission("P3.2")
def test_what_becomes_of_its_messages(kit: Kit, bridge: FakeBridge) -> None:
    told: list[Receipt] = []

    async def steps(receipt: Receipt) -> None:
        told.append(receipt)

    kit.on_delivery(steps)
    kit.start()
    sent = {"delivery_id": "d_1", "state": "sent", "room_id": ROOM, "event_id": "$e", "at_ms": 5}
    read = {**sent, "state": "read", "by": "@p:example.org", "idempotency_key": "k", "at_ms": 6}
    failed = {"delivery_id": "d_2", "state": "failed", "room_id": ROOM, "reason": "forbidden", "retryable": False}
    bare: dict[str, Any] = {"type": "delivery", "room": "", "sender": None, "event_id": None}
    event_type = bare.pop("type")
    seqs = [
        bridge.say("", event_type=event_type, content=each, severity=severity, **bare)
        for each, severity in ((sent, None), (read, None), (failed, "warning"), ({}, None))
    ]
    bridge.wait_acked(*seqs)
    assert told[:3] == [
        Receipt("d_1", "sent", ROOM, "$e", None, False, None, None, 5),
        Receipt("d_1", "read", ROOM, "$e", None, False, "k", "@p:example.org", 6),
        Receipt("d_2", "failed", ROOM, None, "forbidden", False, None, None, 1003),
    ]
    assert (told[3].delivery_id, told[3].state) == ("", "")  # of a bridge that says less
    with pytest.raises(ValueError, match="delivery has a handler already"):
        kit.on_delivery(steps)


def test_a_handler_that_takes_long_says_so_and_is_not_begun_twice(kit: Kit, bridge: FakeBridge) -> None:
    """Though the bridge, which cannot know, gives it again meanwhile."""
    begun: list[int] = []
    free = threading.Event()

    async def steps(msg: AnyMessage) -> None:
        begun.append(msg.seq)
        await kit.working(msg)
        await kit.wait(free)

    kit.on_message(steps)
    kit.start()
    bridge.wait_for("events.subscribe")
    seq = bridge.say("long")
    assert bridge.wait_for("events.ack") == [{"subscription": "s1", "seq": seq, "working": True}]
    bridge.push_again(seq)
    bridge.ask("agent.ping")  # it has read that
    free.set()
    bridge.wait_acked(seq)
    assert begun == [seq]


def test_what_events_say_of_themselves(kit: Kit, bridge: FakeBridge) -> None:
    seen: list[tuple[str, bool, dict[str, Any]]] = []

    async def steps(msg: AnyMessage) -> None:
        seen.append((msg.severity, msg.erased, msg.content))

    kit.on_message(steps)
    kit.start()
    seqs = [bridge.say("x"), bridge.say("x", severity="warning", erased=True, content={})]
    bridge.wait_acked(*seqs)
    assert seen == [("", False, {"msgtype": "m.text", "body": "x"}), ("warning", True, {})]


def test_pings_are_answered_while_a_handler_runs(kit: Kit, bridge: FakeBridge) -> None:
    begun, free = threading.Event(), threading.Event()

    async def steps(msg: AnyMessage) -> None:
        begun.set()
        await kit.wait(free)

    kit.on_message(steps)
    kit.start()
    seq = bridge.say("x")
    assert begun.wait(30)
    assert bridge.ask("agent.ping")["result"] == {"pong": True}
    assert bridge.ask("agent.dance")["error"]["code"] == -32601
    free.set()
    bridge.wait_acked(seq)


def test_send_and_call(kit: Kit, bridge: FakeBridge) -> None:
    outcome: list[Any] = []

    def status(params: Any) -> Any:
        if params:
            raise Refuse(-32602, "invalid_params")
        return {"state": "running"}

    bridge.script["status"] = status

    async def steps(msg: AnyMessage) -> None:
        outcome.append(await kit.call("status"))
        for doomed in (
            kit.call("status", odd=1),
            kit.call("status", odd=object()),
            kit.call("status", odd="\ud800"),
            kit.call("status", odd="x" * 2_000_000),
        ):
            try:
                await doomed
            except AgentError as error:
                outcome.append(error.name)
        await kit.send("!two:x", "plain")
        await kit.send("!two:x", "keyed", "m.notice", idempotency_key="k", content={"a": 1})

    kit.on_message(steps)
    kit.start()
    bridge.wait_acked(bridge.say("x"))
    assert outcome == [{"state": "running"}, "invalid_params", "invalid_params", "invalid_params", "too_large"]
    assert bridge.of("status") == [{}, {"odd": 1}]  # the rest never went out
    sent = bridge.of("matrix.send")
    assert sent[0].pop("idempotency_key")  # of its own: it survives a bridge that restarts
    assert sent == [
        {"room_id": "!two:x", "message": "plain", "msgtype": "m.text"},
        {
            "room_id": "!two:x",
            "message": "keyed",
            "msgtype": "m.notice",
            "content": {"a": 1},
            "idempotency_key": "k",
        },
    ]


@pytest.mark.mission("P0.2")
def test_a_bridge_that_comes_back_finds_everything_as_it_was(
    kit: Kit, bridge: FakeBridge, capfd: pytest.CaptureFixture[str]
) -> None:
    """One message waits in its handler, one is handled but not acknowledged, one fails: none is lost or repeated."""
    ran: list[str] = []
    begun, free = threading.Event(), threading.Event()

    async def steps(msg: AnyMessage) -> None:
        ran.append(msg.body)
        if msg.body == "slow":
            begun.set()
            await kit.wait(free)
        await kit.reply(msg, msg.body)

    kit.on_message(steps)
    bridge.script["events.ack"] = lambda params: None  # lost on the way
    kit.start()
    bridge.wait_for("events.subscribe")
    slow = bridge.say("slow", room="!slow:x")
    done = bridge.say("done")
    bridge.wait_for("events.ack")
    assert begun.wait(30)
    bridge.stop()
    del bridge.script["events.ack"]
    free.set()  # its reply is made while there is no bridge
    bridge.start()
    bridge.wait_acked(slow, done)
    assert sorted(ran) == ["done", "slow"]
    assert bridge.of("agent.ready")[1]["fingerprint"] == FINGERPRINT
    assert len(bridge.of("secrets.take")) == 1
    assert {sent["message"] for sent in bridge.of("matrix.send")} == {"slow", "done"}
    assert bridge.of("events.ack")[-1]["subscription"] == "s2"
    assert "the bridge is back" in capfd.readouterr().err


def test_a_call_on_the_wire_when_the_bridge_goes(kit: Kit, bridge: FakeBridge) -> None:
    """With a key it is sent again; without one nobody knows whether it was carried out, so it fails."""
    outcome: list[str] = []
    bridge.script["matrix.send"] = lambda params: None

    async def plain(msg: AnyMessage) -> None:
        try:
            await kit.call("matrix.send", room_id=ROOM, message="plain")
        except AgentError as error:
            outcome.append(error.name)

    async def keyed(msg: AnyMessage) -> None:
        await kit.reply(msg, "keyed")

    kit.on_event("plain", plain)
    kit.on_event("keyed", keyed)
    kit.start()
    seqs = [bridge.say("x", event_type="plain", room="!a:x"), bridge.say("x", event_type="keyed")]
    bridge.wait_for("matrix.send", 2)
    bridge.stop()
    del bridge.script["matrix.send"]
    bridge.start()
    bridge.wait_acked(*seqs)
    assert outcome == ["unavailable"]
    assert [sent["message"] for sent in bridge.of("matrix.send")[2:]] == ["keyed"]


def test_a_failed_handler_runs_again_after_the_bridge_came_back(kit: Kit, bridge: FakeBridge) -> None:
    ran: list[int] = []
    begun, free = threading.Event(), threading.Event()

    async def steps(msg: AnyMessage) -> None:
        ran.append(msg.redelivered)
        if not msg.redelivered:
            begun.set()
            await kit.wait(free)
            raise LookupError

    kit.on_message(steps)
    kit.start()
    seq = bridge.say("x")
    assert begun.wait(30)
    bridge.stop()
    free.set()
    bridge.start()
    bridge.wait_acked(seq)
    assert ran in ([0, 1], [0, 2])  # handed out again, or put off and then handed out again


def test_the_bridge_may_start_later_than_the_agent(
    kit: Kit, bridge: FakeBridge, capfd: pytest.CaptureFixture[str]
) -> None:
    said = ""

    def complained() -> bool:
        nonlocal said
        said += capfd.readouterr().err
        return "waiting for the bridge at" in said

    bridge.stop()
    kit.start()
    eventually(complained, "a complaint")
    time.sleep(0.3)  # for more to be said, if more would
    bridge.start()
    bridge.wait_for("events.subscribe")
    said += capfd.readouterr().err
    assert said.count("waiting for the bridge at") == 1


def test_a_subscription_that_is_closed_is_opened_again(kit: Kit, bridge: FakeBridge) -> None:
    kit.start()
    bridge.wait_for("events.subscribe")
    bridge.wait(lambda: bridge._subscriber is not None)
    bridge.tell("events.closed", {"subscription": "s1", "reason": "replaced"})
    bridge.wait_for("events.subscribe", 2)
    bridge.wait_acked(bridge.say("x"))


@pytest.mark.parametrize("how", ["request", "notification", "agent"])
def test_shutdown_finishes_what_runs_and_leaves_the_rest(kit: Kit, bridge: FakeBridge, how: str) -> None:
    begun, free = threading.Event(), threading.Event()
    handled: list[str] = []

    async def steps(msg: AnyMessage) -> None:
        handled.append(msg.body)
        begun.set()
        await kit.wait(free)
        await kit.reply(msg, "late")

    kit.on_message(steps)
    kit.start()
    running = bridge.say("x")
    waiting = bridge.say("y")
    assert begun.wait(30)
    if how == "request":
        assert bridge.ask("agent.shutdown")["result"] == {}
    elif how == "notification":
        bridge.tell("agent.shutdown", {})
        bridge.ask("agent.ping")  # so that it has been heard
    else:
        kit.agent.stop()
    late = bridge.say("z", room="!two:x")
    bridge.ask("agent.ping")  # an agent that ends still answers, and has seen the late one now
    free.set()
    kit.join()
    assert kit.error is None
    assert bridge.acked == {running}
    assert handled == ["x"], (waiting, late)


def test_shutdown_does_not_wait_for_a_handler_for_ever(
    kit: Kit, bridge: FakeBridge, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("armorclaw.agent.agent.STOP_GRACE", 0.2)
    monkeypatch.setattr("armorclaw.agent.aio.STOP_GRACE", 0.2)
    begun, free = threading.Event(), threading.Event()

    async def steps(msg: AnyMessage) -> None:
        begun.set()
        await kit.wait(free)

    kit.on_message(steps)
    kit.start()
    bridge.say("x")
    assert begun.wait(30)
    kit.stop()
    free.set()
    assert kit.error is None
    assert not bridge.acked
    assert "1 handlers did not finish within 0.2 s" in capfd.readouterr().err


def test_a_long_answer_and_many_messages_get_through(kit: Kit, bridge: FakeBridge) -> None:
    """More than a socket takes at once, in both directions."""

    async def steps(msg: AnyMessage) -> None:
        await kit.reply(msg, msg.body)

    kit.on_message(steps)
    kit.start()
    bridge.wait_for("events.subscribe")
    seqs = [bridge.say(f"{n}" * 50_000, room=f"!{n % 7}:x") for n in range(60)]
    bridge.wait_acked(*seqs)
    assert sorted(len(sent["message"]) for sent in bridge.of("matrix.send")) == sorted(
        len(event["content"]["body"]) for event in bridge.journal
    )


def test_an_answer_larger_than_the_socket_takes_at_once(kit: Kit, bridge: FakeBridge) -> None:
    """Nothing else happens meanwhile that would wake the agent to send the rest."""

    async def steps(msg: AnyMessage) -> None:
        await kit.reply(msg, "x" * 1_000_000)

    kit.on_message(steps)
    kit.start()
    bridge.wait_acked(bridge.say("x"))
    assert len(bridge.of("matrix.send")[0]["message"]) == 1_000_000


def test_two_messages_never_count_on_the_same_idle_thread(bridge: FakeBridge) -> None:
    agent = Agent(bridge.path)
    together = threading.Barrier(2)

    @agent.on_message
    def handler(msg: Message) -> None:
        if msg.body:
            together.wait(5)

    thread = threading.Thread(target=agent.run, daemon=True)
    thread.start()
    bridge.wait_acked(bridge.say(""))
    eventually(lambda: agent._idle == 1, "an idle worker")
    first, second = ({**bridge.journal[0], "seq": n, "room_id": f"!{n}:x", "content": {"body": "x"}} for n in (2, 3))
    with agent._changed:  # both before the thread can wake
        agent._accept(Message(first, agent))
        agent._accept(Message(second, agent))
    eventually(lambda: agent._idle == 2, "both handlers to meet")
    assert not together.broken
    agent.stop()
    thread.join()


def test_a_path_too_long_is_said_at_once(bridge: FakeBridge) -> None:
    bridge.path = "/tmp/" + "x" * 120
    kit = BlockingKit(bridge)
    kit.start()
    kit.join()
    assert isinstance(kit.error, AgentError)
    assert kit.error.name == "path_too_long"
