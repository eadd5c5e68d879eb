"""The bridge in a thread, from programs that know nothing of Trio."""

from __future__ import annotations

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Queue

import pytest
import trio

from armorclaw import run_in_thread
from armorclaw.agent import AgentError, Message, Receipt
from armorclaw.config import Agent, BridgeSection, Config
from armorclaw.errors import ArmorclawError
from armorclaw.events.event import Event
from armorclaw.threaded import ThreadedBridge, _Runner

ROOM, OTHER = "!one:x", "!two:x"


@pytest.fixture
def config(armorclaw_folder: Path) -> Config:
    return Config(bridge=BridgeSection(state_dir=armorclaw_folder / "state", runtime_dir=armorclaw_folder / "run"))


def say(bridge: ThreadedBridge, text: str, room: str = ROOM) -> None:
    content = {"msgtype": "m.text", "body": text}
    event = Event.make(
        "m.room.message", content, at_ms=0, account="main", room_id=room, sender="@alice:x", event_id=f"${text}"
    )
    bridge.run(lambda: bridge._bridge.journal.record([event]))


def bridge_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "armorclaw bridge"]


def test_calls_from_any_thread(config: Config) -> None:
    with run_in_thread(config) as bridge:
        assert bridge.call("status")["state"] == "running"
        bridge.until_connected()  # there is nothing to wait for
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda _: bridge.call("health"), range(32)))
        assert answers == [{"status": "healthy", "reasons": []}] * 32
        with pytest.raises(ArmorclawError) as caught:
            bridge.call("get_key", id="none")
        assert caught.value.name == "key_not_found"
        assert config.bridge.socket.exists()
    assert not config.bridge.socket.exists()
    assert bridge_threads() == []


def test_handlers_are_plain_functions(config: Config) -> None:
    """Each on a worker thread, one after the other in a room, side by side across rooms."""
    heard: Queue[tuple[str, str, type]] = Queue()
    gate = threading.Event()
    with run_in_thread(config) as bridge:
        agent = bridge.attach("inside", rooms=[ROOM, OTHER])
        assert (agent.name, agent.room) == ("inside", ROOM)

        @agent.on_message
        def handler(message: Message) -> None:
            if message.body == "slow":
                assert gate.wait(20)
            heard.put((message.body, threading.current_thread().name, type(message)))

        agent.start()
        say(bridge, "slow")
        say(bridge, "next")
        say(bridge, "elsewhere", OTHER)
        first = heard.get(timeout=20)
        gate.set()
        rest = [heard.get(timeout=20) for _ in range(2)]
    assert [body for body, _, _ in [first, *rest]] == ["elsewhere", "slow", "next"]
    assert {kind for _, _, kind in [first, *rest]} == {Message}
    assert {name for _, name, _ in [first, *rest]} == {"armorclaw handler"}


@pytest.mark.mission("P3.3")
def test_a_handler_that_raises_hears_it_again(config: Config) -> None:
    heard: Queue[int] = Queue()
    with run_in_thread(config) as bridge:
        agent = bridge.attach("inside", rooms=[ROOM])

        @agent.on_message
        def handler(message: Message) -> None:
            heard.put(message.redelivered)
            if not message.redelivered:
                raise ValueError("not now")

        agent.start()
        say(bridge, "hello")
        assert [heard.get(timeout=20), heard.get(timeout=20)] == [0, 1]


@pytest.mark.mission("P3.1")
def test_a_handler_that_blocks_does_not_hold_up_the_end(config: Config) -> None:
    """It is left behind, and what it had in hand comes again."""
    gate, heard = threading.Event(), Queue[str]()
    for blocks in (True, False):
        with run_in_thread(config) as bridge:
            agent = bridge.attach("inside", rooms=[ROOM])

            @agent.on_message
            def handler(message: Message, blocks: bool = blocks) -> None:
                heard.put(message.body)
                if blocks:
                    gate.wait(20)

            agent.start()
            if blocks:
                say(bridge, "hello")
            assert heard.get(timeout=20) == "hello"
            began = time.monotonic()
        assert time.monotonic() - began < 15
    gate.set()


@pytest.mark.mission("P3.2")
def test_what_becomes_of_its_messages_and_of_time(config: Config) -> None:
    """Receipts, and handlers that say that they are at it, as in a container."""
    told: Queue[Receipt] = Queue()
    heard: Queue[str] = Queue()
    with run_in_thread(config) as bridge:
        agent = bridge.attach("inside", rooms=[ROOM])

        @agent.on_delivery
        def receipt(receipt: Receipt) -> None:
            told.put(receipt)

        @agent.on_message
        def handler(message: Message) -> None:
            message.working()
            heard.put(message.body)

        agent.start()
        content = {"delivery_id": "d_1", "state": "read", "room_id": ROOM, "by": "@alice:x"}
        event = Event.make("delivery", content, at_ms=7, account="main", agent="inside")
        bridge.run(lambda: bridge._bridge.journal.record([event]))
        say(bridge, "hello")
        assert heard.get(timeout=20) == "hello"
        assert told.get(timeout=20) == Receipt("d_1", "read", ROOM, None, None, False, None, "@alice:x", 7)


def test_it_finishes_what_it_has(config: Config) -> None:
    gate, heard = threading.Event(), Queue[str]()
    with run_in_thread(config) as bridge:
        agent = bridge.attach("inside", rooms=[ROOM])

        @agent.on_message
        def handler(message: Message) -> None:
            heard.put(f"begun {message.body}")
            assert gate.wait(20)
            heard.put(f"done {message.body}")

        agent.start()
        say(bridge, "hello")
        assert heard.get(timeout=20) == "begun hello"
        assert bridge.drain(0) is False
        gate.set()
        assert heard.get(timeout=20) == "done hello"
        with pytest.raises(ArmorclawError, match="store_key"):
            bridge.call("store_key", id="k", provider="openai", token="t")


@pytest.mark.mission("S.5")
def test_it_may_write_to_its_rooms_only(config: Config) -> None:
    with run_in_thread(config) as bridge:
        agent = bridge.attach("inside", rooms=[ROOM])
        agent.start()
        with pytest.raises(AgentError) as caught:
            agent.send(OTHER, "hello")
        assert caught.value.name == "room_denied"
        with pytest.raises(ArmorclawError) as taken:
            bridge.attach("inside", rooms=[ROOM]).start()
        assert taken.value.name == "conflict"
        assert bridge.call("health")["status"] == "healthy"  # the fault of one is not the bridge's


def test_what_keeps_it_from_starting_is_raised(config: Config) -> None:
    with run_in_thread(config):
        with pytest.raises(ArmorclawError) as caught:
            with run_in_thread(config):
                raise AssertionError("there are two bridges")
        assert caught.value.name == "already_running"
    assert bridge_threads() == []


def test_what_the_block_raises_comes_out_as_it_is(config: Config) -> None:
    with pytest.raises(ZeroDivisionError):
        with run_in_thread(config):
            _ = 1 / 0
    assert bridge_threads() == []
    assert not config.bridge.socket.exists()


def test_a_bridge_that_ends_by_itself(config: Config) -> None:
    """Calls say that it has ended; the block says why."""

    async def fail() -> None:
        raise ArmorclawError("gave_up", "the store", why="it is broken")

    async def crash(*, task_status: trio.TaskStatus[None]) -> None:
        task_status.started()
        await fail()

    bridges: list[ThreadedBridge] = []

    def program() -> None:
        with run_in_thread(config) as bridge:
            bridges.append(bridge)
            bridge.start(crash)
            runner = next(thread for thread in threading.enumerate() if thread.name == "armorclaw bridge")
            runner.join(20)
            bridge.call("status")

    with pytest.raises(ArmorclawError) as caught:
        program()
    assert caught.value.name == "gave_up"
    assert caught.value.__cause__ is not None
    assert "the bridge has ended" in str(caught.value.__cause__)
    with pytest.raises(ArmorclawError) as late:
        bridges[0].call("status")
    assert late.value.name == "unavailable"


def test_a_start_that_is_interrupted(config: Config) -> None:
    """Whoever waits for the start gets Ctrl-C at any moment of it; the thread always ends."""
    for pause in (None, 0.0, 0.01, 0.1):
        runner = _Runner(config)
        if pause is None:
            runner._stopping = True
            runner.start()
        else:
            runner._thread.start()
            time.sleep(pause)
        runner.stop()
        assert runner.error is None
        assert bridge_threads() == []
        assert not config.bridge.socket.exists()


def test_it_has_the_names_of_an_agent_in_a_container(armorclaw_folder: Path) -> None:
    declared = Agent(runtime="attached", keys=("one",))
    bridge = BridgeSection(state_dir=armorclaw_folder / "state", runtime_dir=armorclaw_folder / "run")
    with run_in_thread(Config(bridge=bridge, agents={"inside": declared})) as running:
        running.call("store_key", id="one", provider="openai", token="sk-1")
        agent = running.attach("inside")
        agent.start()
        assert agent.secret("one").token == "sk-1"
        assert list(agent.secrets) == ["one"]
        assert agent.call("health")["status"] == "healthy"
        agent.stop()
