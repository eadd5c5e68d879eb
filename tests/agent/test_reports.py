"""What an agent says of itself, in both drivers; and what it says of its handlers' failures."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any

import pytest

from armorclaw.agent import AgentError
from armorclaw.agent.reports import MESSAGE_LIMIT, OFTEN, PER_MINUTE, TRACEBACK_LIMIT

from .conftest import AnyCall, AnyMessage, FakeBridge, Kit, Refuse

TOKEN = "sk-canary-1"


async def done(result: Any) -> Any:
    return await result if isinstance(result, Awaitable) else result


async def say_it_all(kit: Kit) -> None:
    agent: Any = kit.agent
    await done(agent.status("reading"))
    await done(agent.event("feed.read", {"items": 3}))
    await done(agent.event("plain"))
    await done(agent.progress(1, 10, "page 1", task="feed"))
    await done(agent.progress(2))
    await done(agent.error("no feed", severity="critical"))
    try:
        raise ValueError("bad\nfeed")
    except ValueError as error:
        await done(agent.error("cannot read", error=error))


def test_the_four_reports_as_the_bridge_gets_them(kit: Kit, bridge: FakeBridge) -> None:
    kit.start()
    kit.do(say_it_all(kit))
    assert bridge.of("agent.status") == [{"text": "reading"}]
    assert bridge.of("agent.event") == [{"name": "feed.read", "data": {"items": 3}}, {"name": "plain", "data": None}]
    assert bridge.of("agent.progress") == [
        {"done": 1, "total": 10, "message": "page 1", "task": "feed"},
        {"done": 2, "total": None, "message": "", "task": ""},
    ]
    first, second = bridge.of("agent.error")
    assert first == {"message": "no feed", "severity": "critical"}
    assert second["severity"] == "error"
    assert second["traceback"].startswith("Traceback (most recent call last)")
    assert second["traceback"].endswith("ValueError: bad\nfeed\n")


def test_a_report_that_is_refused_says_so(kit: Kit, bridge: FakeBridge) -> None:
    def refuse(params: Any) -> Any:
        raise Refuse(-32602, "invalid_params")

    bridge.script["agent.status"] = refuse
    kit.start()

    async def steps() -> None:
        await done(kit.agent.status("x" * 1_000))

    with pytest.raises(AgentError) as caught:
        kit.do(steps())
    assert caught.value.name == "invalid_params"


def test_a_handler_that_raises_is_reported_without_its_keys(kit: Kit, bridge: FakeBridge) -> None:
    async def fail(msg: AnyMessage) -> None:
        raise RuntimeError(f"https://api.example.org/?key={TOKEN} says 401\nand more")

    kit.on_message(fail)
    kit.start()
    bridge.wait_for("events.subscribe")
    bridge.say("x")
    (report,) = bridge.wait_for("agent.error")
    assert report["severity"] == "warning"
    assert report["message"].startswith("the handler of <")
    assert report["message"].endswith("> failed: RuntimeError: https://api.example.org/?key=[secret] says 401")
    assert "[secret] says 401\nand more" in report["traceback"]
    assert TOKEN not in str(report)
    assert bridge.wait_for("events.ack")[0]["nack_ms"] == 1000


def test_one_that_fails_again_and_again_is_an_error(kit: Kit, bridge: FakeBridge) -> None:
    async def fail(msg: AnyMessage) -> None:
        raise RuntimeError

    kit.on_message(fail)
    kit.start()
    bridge.wait_for("events.subscribe")
    bridge.say("x")
    for number in range(1, OFTEN + 1):
        bridge.wait_for("events.ack", number)
        bridge.push_again(1)
    reports = bridge.wait_for("agent.error", OFTEN + 1)
    assert [report["severity"] for report in reports] == ["warning"] * OFTEN + ["error"]


def test_a_handler_of_a_call_that_raises_is_reported_too(kit: Kit, bridge: FakeBridge) -> None:
    async def fail(call: AnyCall) -> Any:
        raise ValueError("no such page")

    async def refuse(call: AnyCall) -> Any:
        raise AgentError(-32004, "not_found", "no such page")  # an answer like any other

    kit.on_call("summarise", fail)
    kit.on_call("look", refuse)
    kit.start()
    bridge.wait(lambda: bridge._session, "a session")
    bridge.ask("agent.call", {"method": "look"})
    bridge.ask("agent.call", {"method": "summarise"})
    (report,) = bridge.wait_for("agent.error")
    assert report["message"] == "the handler of the call summarise failed"
    assert report["traceback"].endswith("ValueError: no such page\n")


def test_no_more_are_reported_than_some_in_a_minute(
    kit: Kit, bridge: FakeBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_000.0
    monkeypatch.setattr("armorclaw.agent.reports.time.monotonic", lambda: now)

    async def fail(msg: AnyMessage) -> None:
        raise RuntimeError(msg.body)

    kit.on_message(fail)
    kit.start()
    bridge.wait_for("events.subscribe")
    for number in range(PER_MINUTE + 7):
        bridge.say(str(number))
    bridge.wait_for("events.ack", PER_MINUTE + 7)
    assert len(bridge.of("agent.error")) == PER_MINUTE
    now += 61
    bridge.say("later")
    report = bridge.wait_for("agent.error", PER_MINUTE + 1)[-1]
    assert report["message"].endswith("RuntimeError: later (and 7 more failures since the last report)")


def test_a_bridge_that_knows_no_reports_hurts_nobody(kit: Kit, bridge: FakeBridge) -> None:
    def refuse(params: Any) -> Any:
        raise Refuse(-32601, "method_not_found")

    bridge.script["agent.error"] = refuse
    fails = True

    async def fail(msg: AnyMessage) -> None:
        if fails:
            raise RuntimeError

    kit.on_message(fail)
    kit.start()
    bridge.wait_for("events.subscribe")
    bridge.say("x")
    bridge.wait_for("agent.error")
    fails = False
    bridge.wait_acked(bridge.say("y"))
    kit.stop()
    assert kit.error is None


def test_a_report_that_goes_wrong_hurts_nobody(
    kit: Kit, bridge: FakeBridge, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def explode(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(kit.agent, "post", explode)

    async def fail(msg: AnyMessage) -> None:
        raise RuntimeError

    kit.on_message(fail)
    kit.start()
    bridge.wait_for("events.subscribe")
    bridge.say("x")
    assert bridge.wait_for("events.ack")[0]["nack_ms"] == 1000
    assert "a failure could not be reported: ZeroDivisionError" in capfd.readouterr().err


def test_what_is_too_long_is_cut_to_what_the_bridge_takes(kit: Kit, bridge: FakeBridge) -> None:
    async def fail(msg: AnyMessage) -> None:
        raise RuntimeError("ä" * 100_000)

    kit.on_message(fail)
    kit.start()
    bridge.wait_for("events.subscribe")
    bridge.say("x")
    (report,) = bridge.wait_for("agent.error")
    assert MESSAGE_LIMIT - 4 < len(report["message"].encode()) <= MESSAGE_LIMIT
    assert TRACEBACK_LIMIT - 4 < len(report["traceback"].encode()) <= TRACEBACK_LIMIT


def test_the_limits_are_those_of_the_bridge() -> None:
    from armorclaw.containers import shapes

    assert (shapes.MESSAGE_LIMIT, shapes.TRACEBACK_LIMIT) == (MESSAGE_LIMIT, TRACEBACK_LIMIT)
