"""Agents inside the program, on a bridge without Matrix: events are put straight into its journal."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from armorclaw import Bridge, open_bridge
from armorclaw.agent import AgentError, AsyncCall, AsyncMessage, Receipt
from armorclaw.attached import AttachedAgent, AttachedStream
from armorclaw.clock import Clock, Surroundings
from armorclaw.config import Account, Agent, AgentQuota, BridgeSection, Config, EventsSection
from armorclaw.errors import ArmorclawError
from armorclaw.events.event import Event
from armorclaw.rpc.call import Call
from armorclaw.rpc.registry import NoParams, Role

ROOM, OTHER = "!one:x", "!two:x"


def config_in(folder: Path, **sections: Any) -> Config:
    return Config(bridge=BridgeSection(state_dir=folder / "state", runtime_dir=folder / "run"), **sections)


@pytest.fixture
async def bridge(armorclaw_folder: Path) -> AsyncIterator[Bridge]:
    async with open_bridge(config_in(armorclaw_folder)) as running:
        yield running


async def say(bridge: Bridge, *texts: str, room: str = ROOM) -> None:
    """As if they had just come from Matrix."""
    await bridge.journal.record(
        [
            Event.make(
                "m.room.message",
                {"msgtype": "m.text", "body": text},
                at_ms=0,
                account="main",
                room_id=room,
                sender="@alice:x",
                event_id=f"${text}",
            )
            for text in texts
        ]
    )


class Heard:
    """What a handler heard, to be waited for."""

    def __init__(self) -> None:
        self.messages: list[AsyncMessage] = []
        self._changed = trio.Event()

    async def __call__(self, message: AsyncMessage) -> None:
        self.messages.append(message)
        self._changed.set()
        self._changed = trio.Event()

    @property
    def bodies(self) -> list[str]:
        return [message.body for message in self.messages]

    async def until(self, count: int) -> list[str]:
        with trio.fail_after(20):
            while len(self.messages) < count:
                await self._changed.wait()
        return self.bodies


@asynccontextmanager
async def running(agent: AttachedAgent) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(agent.run)
        yield
        nursery.cancel_scope.cancel()


def attach(bridge: Bridge, handler: Callable[[AsyncMessage], Awaitable[None]], *rooms: str) -> AttachedAgent:
    agent = bridge.attach("inside", rooms=rooms or [ROOM])
    agent.on_message(handler)
    return agent


@pytest.mark.mission("P1.1", "P1.2")
async def test_it_hears_its_rooms_and_no_others(bridge: Bridge) -> None:
    heard = Heard()
    agent = attach(bridge, heard)
    assert (agent.name, agent.room) == ("inside", ROOM)
    async with running(agent):
        await say(bridge, "not for it", room=OTHER)
        await say(bridge, "hello", "again")
        assert await heard.until(2) == ["hello", "again"]
    message = heard.messages[0]
    assert (message.sender, message.event_id, message.room_id) == ("@alice:x", "$hello", ROOM)
    await say(bridge, "too late")  # nobody is granted the room any more
    assert heard.bodies == ["hello", "again"]
    assert bridge.grants.rooms_of("inside") == frozenset()


async def test_in_order_in_a_room_and_side_by_side_across_rooms(bridge: Bridge) -> None:
    gate, heard = trio.Event(), Heard()

    async def handler(message: AsyncMessage) -> None:
        if message.body == "slow":
            await gate.wait()
        await heard(message)

    async with running(attach(bridge, handler, ROOM, OTHER)):
        await say(bridge, "slow", "next")
        await say(bridge, "elsewhere", room=OTHER)
        assert await heard.until(1) == ["elsewhere"]
        gate.set()
        assert await heard.until(3) == ["elsewhere", "slow", "next"]


@pytest.mark.mission("P1.5", "P3.3")
async def test_a_handler_that_raises_hears_it_again(bridge: Bridge) -> None:
    """Later, so what comes after it in the room goes first; others never notice."""
    heard = Heard()

    async def handler(message: AsyncMessage) -> None:
        await heard(message)
        if message.body == "bad" and not message.redelivered:
            raise ValueError("cannot take this")

    async with running(attach(bridge, handler)):
        await say(bridge, "bad", "good")
        assert await heard.until(3) == ["bad", "good", "bad"]
    assert [message.redelivered for message in heard.messages] == [0, 0, 1]


@pytest.mark.mission("P3.1")
async def test_what_was_not_finished_comes_again(armorclaw_folder: Path) -> None:
    """To the next run, and to the next bridge; what was finished does not."""
    heard = Heard()

    async def handler(message: AsyncMessage) -> None:
        await heard(message)
        if message.body == "long" and len(heard.messages) < 4:
            await trio.sleep_forever()

    async with open_bridge(config_in(armorclaw_folder)) as bridge:
        async with running(attach(bridge, handler)):
            await say(bridge, "short", "long")
            await heard.until(2)
        async with running(attach(bridge, handler)):
            await heard.until(3)
    async with open_bridge(config_in(armorclaw_folder)) as bridge:
        async with running(attach(bridge, handler)):
            assert await heard.until(4) == ["short", "long", "long", "long"]
            await say(bridge, "more")
            assert (await heard.until(5))[4:] == ["more"]


@pytest.mark.mission("P3.3")
async def test_it_outlives_a_restart_of_the_store(bridge: Bridge) -> None:
    heard = Heard()
    async with running(attach(bridge, heard)):
        await say(bridge, "before")
        await heard.until(1)
        await bridge._root.restart("store")
        await bridge.call("health")
        await say(bridge, "after")
        assert await heard.until(2) == ["before", "after"]


async def test_a_restart_of_the_store_in_the_middle_of_a_handler(bridge: Bridge) -> None:
    """The acknowledgement waits for the store: to handle the event again would cost more."""
    heard = Heard()

    async def handler(message: AsyncMessage) -> None:
        await heard(message)
        if len(heard.messages) == 1:
            await bridge._root.stop("store")

    async with running(attach(bridge, handler)):
        await say(bridge, "hello")
        await heard.until(1)
        await bridge._root.restart("store")
        await bridge.call("health")
        await say(bridge, "after")
        assert await heard.until(2) == ["hello", "after"]


async def test_a_handler_that_takes_long_is_not_begun_twice(armorclaw_folder: Path) -> None:
    """The bridge gives the event again meanwhile, unless the handler says that it is at it."""
    begun: list[tuple[str, int]] = []
    free = trio.Event()

    async def handler(message: AsyncMessage) -> None:
        begun.append((message.body, message.redelivered))
        while message.body == "says so" and not free.is_set():
            await message.working()
            await trio.sleep(0.02)
        await free.wait()

    section = EventsSection(redeliver_after_s=0.3)
    async with open_bridge(config_in(armorclaw_folder, events=section)) as bridge:
        async with running(attach(bridge, handler, ROOM, OTHER)):
            await say(bridge, "says so")
            await say(bridge, "does not", room=OTHER)
            with trio.fail_after(20):
                while not bridge.subscriptions.totals.given_again:  # noqa: ASYNC110 - nobody tells
                    await trio.sleep(0.02)
            free.set()
            with trio.fail_after(20):
                while bridge.subscriptions.in_hand():  # noqa: ASYNC110 - nobody tells
                    await trio.sleep(0.02)
        assert sorted(begun) == [("does not", 0), ("says so", 0)]
        assert bridge.subscriptions.totals.expired >= bridge.subscriptions.totals.given_again


@pytest.mark.mission("P3.2")
async def test_it_is_told_what_becomes_of_its_messages(bridge: Bridge) -> None:
    told: list[Receipt] = []
    agent = bridge.attach("inside", rooms=[ROOM])

    @agent.on_delivery
    async def handler(receipt: Receipt) -> None:
        told.append(receipt)

    async with running(agent):
        for name in ("inside", "other"):
            content = {"delivery_id": f"d_{name}", "state": "sent", "room_id": ROOM, "event_id": "$e", "at_ms": 5}
            await bridge.journal.record([Event.make("delivery", content, at_ms=5, account="main", agent=name)])
        with trio.fail_after(20):
            while not told or bridge.subscriptions.in_hand():  # noqa: ASYNC110 - nobody tells
                await trio.sleep(0.01)
    assert told == [Receipt("d_inside", "sent", ROOM, "$e", None, False, None, None, 5)]


async def test_other_events_have_handlers_too(bridge: Bridge) -> None:
    heard = Heard()
    agent = bridge.attach("inside", rooms=[ROOM])
    agent.on_event("m.room.topic")(heard)
    async with running(agent):
        await say(bridge, "without a handler it is acknowledged")
        topic = Event.make("m.room.topic", {"topic": "t"}, at_ms=0, account="main", room_id=ROOM, event_id="$t")
        await bridge.journal.record([topic])
        await heard.until(1)
    assert heard.messages[0].content == {"topic": "t"}


@pytest.mark.mission("S.5")
async def test_it_may_write_to_its_rooms_only(bridge: Bridge) -> None:
    """Refused as a container would be: by the same error, with the same code."""
    agent = bridge.attach("inside", rooms=[ROOM])
    async with running(agent):
        with pytest.raises(AgentError) as caught:
            await agent.send(OTHER, "hello")
    assert (caught.value.name, caught.value.code) == ("room_denied", -32010)
    assert "grant the room" in caught.value.hint


async def test_its_name_is_its_own(armorclaw_folder: Path) -> None:
    declared = Agent(command=("true",), runtime="process")
    async with open_bridge(config_in(armorclaw_folder, agents={"boxed": declared})) as bridge:
        for name in ("", "../up", "A"):
            with pytest.raises(ArmorclawError) as odd:
                bridge.attach(name, rooms=[ROOM])
            assert odd.value.name == "invalid_params"
        async with running(bridge.attach("inside", rooms=[ROOM])):
            for name in ("inside", "boxed"):
                with pytest.raises(ArmorclawError) as taken:
                    await bridge.attach(name, rooms=[OTHER]).run()
                assert taken.value.name == "conflict"
            assert bridge.grants.rooms_of("inside") == {ROOM}
        async with running(bridge.attach("inside", rooms=[OTHER])):
            pass


async def test_more_than_its_sink_takes(bridge: Bridge) -> None:
    """A handler that is slow costs the bridge nothing: the rest waits in the journal."""
    heard = Heard()
    texts = [f"{number:03} " + "x" * 5_000 for number in range(300)]
    async with running(attach(bridge, heard)):
        await say(bridge, *texts)
        assert await heard.until(300) == texts


@pytest.mark.mission("P1.1")
async def test_declared_it_misses_nothing_while_its_program_is_down(armorclaw_folder: Path) -> None:
    """Its rooms are granted, and its place is kept, before anything comes."""
    declared = Agent(runtime="attached", rooms=(ROOM,))
    config = config_in(armorclaw_folder, agents={"inside": declared})
    async with open_bridge(config) as bridge:
        await say(bridge, "early")
        assert bridge.grants.rooms_of("inside") == {ROOM}
    async with open_bridge(config) as bridge:
        heard = Heard()
        agent = bridge.attach("inside")
        agent.on_message(heard)
        async with running(agent):
            assert await heard.until(1) == ["early"]
        assert bridge.grants.rooms_of("inside") == {ROOM}, "the grant outlives its run"
        assert bridge.status().agents == [], "it has no container"
        with pytest.raises(ArmorclawError, match="declaration"):
            bridge.attach("inside", rooms=[OTHER])


@pytest.mark.parametrize(
    "params", [{"rooms": ["nonsense"]}, {"rooms": [ROOM], "account": "other"}, {"rooms": ["!a:b/../../login"]}]
)
async def test_what_it_cannot_hear_is_said_at_once(armorclaw_folder: Path, params: dict[str, Any]) -> None:
    account = Account(homeserver="http://127.0.0.1:9", user="bot")
    async with open_bridge(config_in(armorclaw_folder, accounts={"main": account})) as bridge:
        with pytest.raises(ArmorclawError):
            bridge.attach("inside", **params)


async def test_a_plain_function_is_a_handler_too(bridge: Bridge) -> None:
    seen: list[str] = []
    done = trio.Event()

    def plain(message: AsyncMessage) -> None:
        seen.append(message.body)
        done.set()

    agent = bridge.attach("inside", rooms=[ROOM])
    agent.on_message(plain)
    async with running(agent):
        await say(bridge, "hello")
        with trio.fail_after(20):
            await done.wait()
    assert seen == ["hello"]


async def test_it_has_the_names_of_an_agent_in_a_container(armorclaw_folder: Path) -> None:
    """Keys of its declaration, calls of its role, an end of its own wish."""
    declared = Agent(runtime="attached", rooms=(ROOM,), keys=("one",))
    async with open_bridge(config_in(armorclaw_folder, agents={"inside": declared})) as bridge:
        agent = bridge.attach("inside")
        with pytest.raises(AgentError, match="when the agent runs"):
            agent.secret("one")
        await bridge.call("store_key", id="one", provider="openai", token="sk-1")
        async with trio.open_nursery() as nursery:
            await nursery.start(agent.run)
            assert agent.secret("one").token == "sk-1"
            assert (await agent.call("health"))["status"] == "healthy"
            with pytest.raises(AgentError) as caught:
                await agent.call("get_key", id="one")
            assert caught.value.name == "denied"
            agent.stop()
        assert bridge.grants.rooms_of("inside") == {ROOM}


# calls


async def ask(bridge: Bridge, method: str, params: Any = None) -> Any:
    return await bridge.call("agent.call", agent="inside", method=method, params=params)


def inside(bridge: Bridge) -> AttachedAgent:
    return bridge.attach("inside", rooms=[ROOM])


async def test_it_answers_calls_with_chunks_and_progress(bridge: Bridge) -> None:
    agent = inside(bridge)
    seen: list[Any] = []

    @agent.on_call("summarise")
    async def summarise(call: AsyncCall) -> dict[str, Any]:
        for number, word in enumerate(call.params["words"]):
            call.progress(number + 1, 2, word)
            await call.send({"word": word})
        assert not call.cancelled
        return {"method": call.method}

    async with running(agent):
        params = {"words": ["one", "two"]}
        stream = bridge.stream(
            "agent.call",
            agent="inside",
            method="summarise",
            params=params,
            on_progress=lambda *news: seen.append(news),
        )
        async with stream as chunks:
            assert [chunk async for chunk in chunks] == [{"word": "one"}, {"word": "two"}]
            assert await chunks.result() == {"method": "summarise"}
    assert seen == [(1, 2, "one"), (2, 2, "two")]


async def test_plain_functions_answer_calls_too(bridge: Bridge) -> None:
    agent = inside(bridge)
    agent.on_call("add")(lambda call: sum(call.params))
    async with running(agent):
        assert await ask(bridge, "add", [1, 2]) == 3


async def test_a_call_without_params_has_empty_ones(bridge: Bridge) -> None:
    agent = inside(bridge)
    agent.on_call("echo")(lambda call: call.params)
    async with running(agent):
        assert await ask(bridge, "echo", None) == {}


@pytest.mark.parametrize(
    ("method", "name", "text"),
    [
        ("fails", "remote_failed", "LookupError: no page"),
        ("refuses", "conflict", "busy"),
        ("nothing", "method_not_found", "this agent has no method 'nothing'"),
        ("odd", "invalid_params", "a chunk that is no JSON"),
        ("large", "too_large", "too large"),
    ],
)
async def test_what_goes_wrong_in_a_call(bridge: Bridge, method: str, name: str, text: str) -> None:
    agent = inside(bridge)

    @agent.on_call("fails")
    async def fails(call: AsyncCall) -> None:
        raise LookupError("no page")

    @agent.on_call("refuses")
    async def refuses(call: AsyncCall) -> None:
        raise AgentError(-32005, "conflict", "busy")

    @agent.on_call("odd")
    async def odd(call: AsyncCall) -> None:
        await call.send(object())

    @agent.on_call("large")
    async def large(call: AsyncCall) -> None:
        await call.send("x" * 300_000)

    async with running(agent):
        with pytest.raises(ArmorclawError, match=text) as failed:
            await ask(bridge, method)
    assert failed.value.name == name


async def test_calls_have_a_limit_and_end_with_whoever_is_first(bridge: Bridge) -> None:
    """With the caller who leaves, or with the agent."""
    agent = inside(bridge)
    begun: list[int] = []
    ended: list[int] = []
    outcomes: list[str] = []

    @agent.on_call("wait")
    async def wait(call: AsyncCall) -> None:
        begun.append(call.params)
        try:
            await trio.sleep_forever()
        finally:
            ended.append(call.params)

    async def one(number: int) -> None:
        try:
            await ask(bridge, "wait", number)
        except ArmorclawError as error:
            outcomes.append(error.name)

    async def once_begun(number: int, do: Callable[[], object] = lambda: None) -> None:
        with trio.fail_after(20):
            while number not in begun:  # noqa: ASYNC110 - nobody tells
                await trio.sleep(0.01)
        do()

    async with trio.open_nursery() as callers:
        async with running(agent):
            for number in range(7):
                callers.start_soon(one, number)
            with trio.CancelScope() as caller:
                callers.start_soon(once_begun, 99, caller.cancel)
                await one(99)
            assert ended == [99]
            callers.start_soon(one, 7)
            await once_begun(7)
            with pytest.raises(ArmorclawError) as refused:
                await ask(bridge, "wait", 8)
            assert refused.value.name == "queue_full"
    assert outcomes == ["unavailable"] * 8
    assert sorted(ended) == [*range(8), 99]
    with pytest.raises(ArmorclawError) as gone:
        await ask(bridge, "wait", 9)
    assert gone.value.name == "container_not_found"


async def test_it_streams_from_the_bridge(bridge: Bridge) -> None:
    agent = inside(bridge)

    @bridge.registry.method("count", result=dict, chunk=int, upload=bytes, roles=[Role.AGENT])
    async def count(call: Call, params: NoParams) -> dict[str, int]:
        total = 0
        async for piece in call.uploads():
            total += len(piece)
            if piece == b"bad":
                raise ArmorclawError("conflict", "not that one")
            await call.send(total)
        return {"total": total}

    async with agent.stream("count") as stream:
        await stream.send(b"12345")
        assert await anext(stream) == 5
        await stream.end()
        assert [piece async for piece in stream] == []
        assert await stream.result() == {"total": 5}
    async with agent.stream("count") as stream:
        await stream.send(b"bad")
        with pytest.raises(AgentError, match="not that one"):
            await stream.result()
    with pytest.raises(AgentError) as refused:
        async with agent.stream("containers.logs", name="x"):
            pass
    assert refused.value.name == "denied"


async def test_a_call_that_takes_too_long(bridge: Bridge) -> None:
    agent = inside(bridge)

    @bridge.registry.method("forever", roles=[Role.AGENT])
    async def forever(call: Call, params: NoParams) -> None:
        await trio.sleep_forever()

    with pytest.raises(AgentError) as late:
        await agent.call("forever", timeout=0.05)
    assert late.value.name == "timed_out"


# what is over


async def test_a_stop_before_it_runs_sticks(bridge: Bridge) -> None:
    agent = inside(bridge)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(agent.run)
            agent.stop()
    agent = inside(bridge)
    agent.stop()
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            await nursery.start(agent.run)
    assert bridge.grants.rooms_of("inside") == frozenset()


@pytest.mark.parametrize("uses", ["__anext__", "result", "send"])
@pytest.mark.parametrize("when", ["meanwhile", "behind the block"])
async def test_a_stream_whose_block_is_left_says_so(bridge: Bridge, uses: str, when: str) -> None:
    """As any other agent's: `tests/agent/test_over.py`."""
    agent = inside(bridge)
    told: list[AgentError] = []

    @bridge.registry.method("stuck", chunk=int, upload=bytes, roles=[Role.AGENT])
    async def stuck(call: Call, params: NoParams) -> None:
        await trio.sleep_forever()

    async def use(stream: AttachedStream) -> None:
        with pytest.raises(AgentError, match="stuck: the stream was closed") as closed:
            await getattr(stream, uses)(*([b"x"] if uses == "send" else []))
        told.append(closed.value)

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            async with agent.stream("stuck") as stream:
                if when == "meanwhile":
                    nursery.start_soon(use, stream)
                    await trio.testing.wait_all_tasks_blocked()
            await use(stream)
    assert {error.name for error in told} == {"cancelled"}


async def test_a_stream_that_ended_by_itself_keeps_its_outcome(bridge: Bridge) -> None:
    agent = inside(bridge)

    @bridge.registry.method("ends", result=int, chunk=int, upload=bytes, roles=[Role.AGENT])
    async def ends(call: Call, params: NoParams) -> int:
        async for piece in call.uploads():
            raise ArmorclawError("conflict", piece.decode())
        return 7

    async with agent.stream("ends") as stream:
        await stream.end()
        assert await stream.result() == 7
    assert await stream.result() == 7
    async with agent.stream("ends") as stream:
        await stream.send(b"not that")
        with pytest.raises(AgentError, match="not that"):
            await stream.result()
    with pytest.raises(AgentError, match="not that"):
        await stream.result()


# what it says of itself


async def reports(bridge: Bridge) -> list[tuple[str, str | None, dict[str, Any]]]:
    page = await bridge.journal.after(0, 100)
    found = [event.plain() for event in page.events]
    return [(each["type"], each.get("agent"), each["content"]) for each in found if each["type"].startswith("agent.")]


async def reported(bridge: Bridge, count: int) -> list[tuple[str, str | None, dict[str, Any]]]:
    """So many of them, once they are there."""
    with trio.fail_after(20):
        while True:
            known = bridge.journal.known or 0
            if len(found := await reports(bridge)) >= count:
                return found
            await bridge.journal.beyond(known)


@pytest.mark.mission("P1.4", "P1.6")
async def test_its_reports_are_like_any_agents(bridge: Bridge) -> None:
    agent = inside(bridge)
    await agent.status("reading")
    await agent.event("feed.read", {"items": 3})
    await agent.error("no feed", severity="info")
    await agent.progress(1, 2, "half", task="feed")
    assert await reported(bridge, 4) == [
        ("agent.status", "inside", {"text": "reading"}),
        ("agent.event", "inside", {"name": "feed.read", "data": {"items": 3}}),
        ("agent.error", "inside", {"severity": "info", "message": "no feed", "traceback": ""}),
        ("agent.progress", "inside", {"done": 1, "total": 2, "message": "half", "task": "feed"}),
    ]
    with pytest.raises(AgentError, match="text"):
        await agent.status("x" * 501)


@pytest.mark.mission("P1.5")
async def test_a_handler_that_raises_is_reported(bridge: Bridge) -> None:
    async def fail(message: AsyncMessage) -> None:
        raise ValueError(f"cannot read {message.body}")

    async with running(attach(bridge, fail)):
        await say(bridge, "this")
        ((kind, who, content),) = await reported(bridge, 1)
    assert (kind, who, content["severity"]) == ("agent.error", "inside", "warning")
    assert content["message"].endswith("failed: ValueError: cannot read this")
    assert content["traceback"].endswith("ValueError: cannot read this\n")


async def test_it_has_a_quota_and_is_stopped_for_going_on(armorclaw_folder: Path) -> None:
    quota = AgentQuota(events=3, on_exceeded="stop")
    config = config_in(armorclaw_folder, agents={"inside": Agent(runtime="attached", quota=quota)})
    now = 0.0
    around = Surroundings(clock=Clock(monotonic=lambda: trio.current_time() + now))
    async with open_bridge(config, around=around) as bridge:
        agent = bridge.attach("inside")
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                await nursery.start(agent.run)
                for _ in range(3):
                    await agent.event("again")
                with pytest.raises(AgentError, match="its quota of 3 events a minute") as caught:
                    await agent.event("again")
                assert caught.value.name == "rate_limited"
                assert caught.value.retry_after is not None
                now = 11.0
                with pytest.raises(AgentError):
                    await agent.event("again")
        told = [content["level"] for kind, _, content in await reported(bridge, 5) if kind == "agent.quota"]
    assert told == ["soft", "hard", "stop"][: len(told)]
    assert len(told) >= 2


async def test_the_grant_of_another_room_begins_when_it_runs(bridge: Bridge) -> None:
    """Behind its place there may be what was for others."""
    heard = Heard()
    async with running(attach(bridge, heard)):
        await say(bridge, "one")
        assert await heard.until(1) == ["one"]
        await say(bridge, "two", room=OTHER)
    agent, again = bridge.attach("inside", rooms=[ROOM, OTHER]), Heard()
    agent.on_message(again)
    async with running(agent):
        await say(bridge, "three")
        assert await again.until(1) == ["three"]
