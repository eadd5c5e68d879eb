"""The orderly end: what is refused, what is waited for, and for how long."""

from __future__ import annotations

from pathlib import Path
from random import Random
from typing import Any

import attrs
import pytest
import structlog.testing
import trio
from trio.testing import MockClock

from armorclaw import Bridge, connect, open_bridge
from armorclaw.agent.messages import AsyncMessage
from armorclaw.clock import Surroundings
from armorclaw.config import Account, Agent, BridgeSection, Config
from armorclaw.drain import LAST_SHARE, LOOKS_ON, STAYS, Drain, Left
from armorclaw.errors import ArmorclawError
from armorclaw.events.event import Event
from armorclaw.rpc.local import call_local
from armorclaw.rpc.registry import Registry, Role
from armorclaw.structure import Secret
from tests.faults.town import BOT, PASSWORD, Town
from tests.matrix.fake_homeserver import fake_homeserver

ROOM = "!one:x"


@attrs.define
class Part:
    """What gives events or sends messages, as far as a drain knows it."""

    busy: int = 0
    held: bool = False

    def hold_all(self) -> None:
        self.held = True

    hold = hold_all

    def in_hand(self) -> int:
        return self.busy

    in_flight = in_hand


@attrs.define
class House:
    registry: Registry = attrs.field(factory=Registry)
    agents: Part = attrs.field(factory=Part)
    outbox: Part = attrs.field(factory=Part)
    done: trio.Event = attrs.field(factory=trio.Event)

    def __attrs_post_init__(self) -> None:
        everyone = [Role.OPERATOR, Role.AGENT]

        @self.registry.method("status", roles=everyone)
        def status(call: Any, params: Any) -> None:
            """Stays."""

        @self.registry.method("work", roles=everyone)
        async def work(call: Any, params: Any) -> None:
            """Takes until `done`."""
            await self.done.wait()

        @self.registry.method("matrix.receive", roles=everyone)
        async def receive(call: Any, params: Any) -> None:
            """Nobody waits for it."""
            await self.done.wait()

        @self.registry.method("upload", roles=everyone, upload=bytes)
        async def upload(call: Any, params: Any) -> None:
            """Streams."""

    def drain(self) -> Drain:
        return Drain(self.registry, self.agents, self.outbox)

    async def call(self, method: str, role: Role = Role.OPERATOR) -> Any:
        return await call_local(self.registry, method, {}, role=role, agent="a" if role is Role.AGENT else None)


@pytest.fixture
def house() -> House:
    return House()


async def test_nothing_to_do_is_done_at_once(house: House, autojump_clock: MockClock) -> None:
    drain = house.drain()
    drain.check()
    began = trio.current_time()
    assert await drain.run(10) == Left()
    assert trio.current_time() == began
    assert house.agents.held
    assert house.outbox.held
    with pytest.raises(ArmorclawError) as caught:
        drain.check()
    assert (caught.value.name, caught.value.kind.retryable) == ("draining", True)


async def test_operators_may_only_look_and_agents_may_call(house: House, autojump_clock: MockClock) -> None:
    await house.drain().run(10)
    house.done.set()
    await house.call("status")
    for method in ("work", "upload"):
        with pytest.raises(ArmorclawError) as caught:
            await house.call(method)
        assert (caught.value.name, caught.value.what) == ("draining", method)
    await house.call("work", Role.AGENT)


async def test_waits_for_agents_and_calls_then_for_messages(house: House, autojump_clock: MockClock) -> None:
    """While agents are at it, messages go on; then no other is begun."""
    house.agents.busy = house.outbox.busy = 1
    drain = house.drain()
    seen: list[tuple[str, bool]] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(house.call, "work")
        nursery.start_soon(house.call, "matrix.receive")
        await trio.testing.wait_all_tasks_blocked()

        async def drained() -> None:
            assert not await drain.run(10)
            seen.append(("drained", house.outbox.held))
            house.done.set()

        nursery.start_soon(drained)
        await trio.sleep(1)
        seen.append(("agents are through", house.outbox.held))
        house.agents.busy = 0
        await trio.sleep(1)
        seen.append(("call is answered", house.outbox.held))
        house.registry.answering["work"] -= 1  # as if: `done` would answer both
        await trio.sleep(1)
        seen.append(("message is sent", house.outbox.held))
        house.outbox.busy = 0
        await trio.sleep(1)
        house.registry.answering["work"] += 1
    assert seen == [
        ("agents are through", False),
        ("call is answered", False),
        ("message is sent", True),
        ("drained", True),
    ]
    assert +house.registry.answering == {}


async def test_ends_in_time_and_says_what_is_left(house: House, autojump_clock: MockClock) -> None:
    """Messages under way keep their share of the time, however long agents take."""
    house.agents.busy, house.outbox.busy = 3, 2
    drain = house.drain()
    began = trio.current_time()
    held_at: list[float] = []

    async def watch() -> None:
        while not house.outbox.held:  # noqa: ASYNC110 - the clock jumps
            await trio.sleep(0.01)
        held_at.append(trio.current_time() - began)

    with structlog.testing.capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            left = await drain.run(10)
    assert left == Left(events=3, messages=2)
    assert trio.current_time() - began == pytest.approx(10, abs=0.1)
    assert held_at == [pytest.approx(10 * (1 - LAST_SHARE), abs=0.1)]
    assert [line["event"] for line in logs] == ["draining", "drained in part"]
    assert logs[-1].items() >= {"events": 3, "calls": 0, "messages": 2}.items()


async def test_no_time_at_all(house: House, autojump_clock: MockClock) -> None:
    house.agents.busy = 1
    assert await house.drain().run(0) == Left(events=1)
    assert house.agents.held
    assert house.outbox.held


async def test_whoever_asks_again_waits_for_the_same_end(house: House, autojump_clock: MockClock) -> None:
    house.agents.busy = 1
    drain = house.drain()
    ends: list[tuple[float, Left]] = []

    async def run(seconds: float) -> None:
        left = await drain.run(seconds)
        ends.append((round(trio.current_time() - began), left))

    began = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run, 5)
        await trio.sleep(1)
        nursery.start_soon(run, 500)
    assert ends == [(5, Left(events=1))] * 2


async def test_one_that_is_cancelled_lets_others_go(house: House, autojump_clock: MockClock) -> None:
    house.agents.busy = 1
    drain = house.drain()
    with trio.move_on_after(1):
        await drain.run(10)
    assert await drain.run(10) == Left(events=1)


def test_what_stays_exists_and_is_for_operators(tmp_path: Path) -> None:
    """A name that is misspelt would be refused without a word."""
    bridge = Bridge(Config(bridge=BridgeSection(state_dir=tmp_path, runtime_dir=tmp_path)), Surroundings())
    assert set(bridge.registry.names(Role.OPERATOR)) >= STAYS
    assert set(bridge.registry.names(Role.OBSERVER)) <= STAYS
    assert set(bridge.registry.names()) >= LOOKS_ON


# --- the real bridge


def config_in(folder: Path, **values: Any) -> Config:
    return Config(bridge=BridgeSection(state_dir=folder / "state", runtime_dir=folder / "run", **values))


async def say(bridge: Bridge, text: str) -> None:
    content = {"msgtype": "m.text", "body": text}
    event = Event.make(
        "m.room.message", content, at_ms=0, account="main", room_id=ROOM, sender="@alice:x", event_id=f"${text}"
    )
    await bridge.journal.record([event])


@pytest.mark.mission("P3.1")
async def test_what_agents_have_in_hand_is_finished_and_nothing_new_is_given(armorclaw_folder: Path) -> None:
    """And what came meanwhile is theirs in the next life."""
    heard: list[str] = []
    begun, go_on = trio.Event(), trio.Event()

    async def handle(message: AsyncMessage) -> None:
        begun.set()
        await go_on.wait()
        heard.append(f"{message.body} {message.redelivered}")

    config = config_in(armorclaw_folder)
    for life in (1, 2):
        async with open_bridge(config) as bridge, trio.open_nursery() as nursery:
            agent = bridge.attach("inside", rooms=[ROOM])
            agent.on_message(handle)
            await nursery.start(agent.run)
            if life == 1:
                await say(bridge, "one")
                await begun.wait()
                drained: list[bool] = []

                async def drain(bridge: Bridge = bridge, drained: list[bool] = drained) -> None:
                    drained.append(await bridge.drain())

                nursery.start_soon(drain)
                with trio.fail_after(20):
                    while bridge.status().state != "draining":  # noqa: ASYNC110 - nobody tells
                        await trio.sleep(0.01)
                await say(bridge, "two")
                assert (heard, drained) == ([], [])
                go_on.set()
                with trio.fail_after(20):
                    while not drained:  # noqa: ASYNC110 - nobody tells
                        await trio.sleep(0.01)
                assert (heard, drained) == (["one 0"], [True])
            with trio.fail_after(20):
                while life == 2 and len(heard) < 2:  # noqa: ASYNC110 - nobody tells
                    await trio.sleep(0.01)
            nursery.cancel_scope.cancel(reason="end of the test")
    assert heard == ["one 0", "two 0"]


async def test_connections_that_are_there_go_on_and_new_ones_are_turned_away(armorclaw_folder: Path) -> None:
    async with open_bridge(config_in(armorclaw_folder)) as bridge:
        path = bridge.config.bridge.socket
        async with connect(path, reconnect=False) as client:
            assert (await client.call("status"))["state"] == "running"
            assert await bridge.drain()
            assert (await client.call("status"))["state"] == "draining"
            assert await client.call("delivery.list") == []
            for caller in (client, bridge):
                with pytest.raises(ArmorclawError) as caught:
                    await caller.call("store_key", id="k", provider="openai", token="t")
                assert caught.value.name == "draining"
            assert await client.call("list_keys") == []
            stream = await trio.open_unix_socket(path)
            async with stream:
                with trio.fail_after(20):
                    said = b"".join([data async for data in stream])
            assert b'"name":"draining"' in said


@pytest.mark.mission("P1.1", "P3.1", "P3.3")
async def test_under_load_nothing_that_was_accepted_is_lost_or_doubled(armorclaw_folder: Path) -> None:
    """People talk, an agent answers, the operator sends: three bridges end in order in the middle of it."""
    town = Town()
    town.add_room("!a:town")
    town.add_room("!b:town")
    rooms = ("!a:town", "!b:town")
    said: list[str] = []
    accepted: list[str] = []
    chance = Random(7)

    async def answer(message: AsyncMessage) -> None:
        await trio.sleep(chance.uniform(0, 0.05))
        await message.reply(f"re {message.body}")

    async def talk() -> None:
        while True:
            said.append(f"word {len(said)}")
            town.say(rooms[len(said) % 2], said[-1])
            await trio.sleep(chance.uniform(0, 0.02))

    async def send(bridge: Bridge) -> None:
        number = 0
        while True:
            text = f"notice {len(accepted)} {number}"
            number += 1
            try:
                await bridge.call("matrix.send", room_id=chance.choice(rooms), message=text)
            except ArmorclawError as error:
                assert error.name == "draining"  # noqa: PT017 - any other is a loss
                return
            accepted.append(text)

    def shown() -> list[str]:
        return [body for room in rooms for body in town.said(room)]

    async with fake_homeserver(town.answer) as served:
        config = Config(
            bridge=BridgeSection(state_dir=armorclaw_folder / "state", runtime_dir=armorclaw_folder / "run"),
            accounts={"main": Account(homeserver=served.url, user=BOT, password=Secret(PASSWORD))},
            agents={"inside": Agent(runtime="attached", rooms=rooms)},
        )
        for life in range(4):
            async with open_bridge(config) as bridge, trio.open_nursery() as nursery:
                agent = bridge.attach("inside")
                agent.on_message(answer)
                await nursery.start(agent.run)
                with trio.fail_after(60):
                    await bridge.until_joined(rooms)
                    if not life:
                        await town.synced.wait()
                    if life < 3:
                        answered = len(shown())
                        nursery.start_soon(send, bridge)
                        async with trio.open_nursery() as load:
                            load.start_soon(talk)
                            while len(shown()) < answered + 10:  # noqa: ASYNC110 - of a town that tells nobody
                                await trio.sleep(0.01)
                            assert await bridge.drain(), "all in hand takes 50 ms"
                            load.cancel_scope.cancel()
                    else:
                        wanted = {*accepted, *(f"re {text}" for text in said)}
                        while not wanted <= set(shown()):  # noqa: ASYNC110 - of a town that tells nobody
                            await trio.sleep(0.01)
                nursery.cancel_scope.cancel()
    assert sorted(shown()) == sorted(wanted)
