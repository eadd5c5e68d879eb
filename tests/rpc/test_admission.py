"""What a peer and a listener do with the answers of an allowance."""

from __future__ import annotations

import json
import socket
import threading
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from armorclaw.clock import Clock, Surroundings
from armorclaw.errors import ArmorclawError
from armorclaw.guard.limits import REFUSALS, Budget, Limits
from armorclaw.rpc.admission import Rate
from armorclaw.rpc.peer import Peer
from armorclaw.rpc.registry import Method, Role
from armorclaw.rpc.unix import bind_unix, serve_unix
from tests.rpc.conftest import House, Raw, call
from tests.rpc.test_peer import Streams, serving

PLENTY = Rate(1e9, 1e9)


class Recorder:
    """An allowance that notes what it was asked, and refuses what it is told to."""

    def __init__(self, *refused: str, pauses: dict[int, float] | None = None) -> None:
        self.refused = refused
        self.asked: list[str | None] = []
        self.sizes: list[int] = []
        self.pauses = pauses or {}

    def admit(self, method: Method | None) -> ArmorclawError | None:
        name = None if method is None else method.name
        self.asked.append(name)
        return ArmorclawError("rate_limited", "too many calls", retry_after=0.5) if name in self.refused else None

    def pause(self, size: int) -> float:
        self.sizes.append(size)
        return self.pauses.pop(len(self.sizes), 0.0)


async def test_each_message_is_counted_once(socket_pair: Streams, house: House) -> None:
    """Calls and notifications, alone and in batches; those that nobody may call, and what is no call at all."""
    allowance = Recorder()
    async with serving(socket_pair[0], house.registry, Role.AGENT, allowance=allowance):
        raw = Raw(socket_pair[1])
        note = {"jsonrpc": "2.0", "method": "note", "params": {"text": "n"}}
        await raw.send(call("echo", text="a"), note, [call("echo", id=2, text="b"), call("none", id=3)])
        await raw.send(
            call("operators", id=4), "{nonsense\n", {"jsonrpc": "2.0", "id": 7, "result": 1}, call("who", id=5)
        )
        while "id" not in (answer := await raw.line()) or answer["id"] != 5:
            pass
    assert allowance.asked == ["echo", "note", "echo", None, None, None, None, "who"]


async def test_a_refused_call_does_nothing(socket_pair: Streams, house: House) -> None:
    async with serving(socket_pair[0], house.registry, allowance=Recorder("note", "anote")):
        raw = Raw(socket_pair[1])
        for name in ("note", "anote"):
            answer = await raw.ask(name, text="x")
            assert answer["error"]["data"]["name"] == "rate_limited"
            assert answer["error"]["data"]["retry_after"] == 0.5
            assert answer["error"]["data"]["retryable"] is True
        await raw.send({"jsonrpc": "2.0", "method": "note", "params": {"text": "n"}}, call("echo", id=9, text="y"))
        assert (await raw.line())["id"] == 9  # a refused notification is silent
    assert house.seen == []


async def test_a_pause_is_not_held_against_the_caller(
    socket_pair: Streams, house: House, autojump_clock: trio.testing.MockClock
) -> None:
    """A message that was half read when we stopped reading has its ten seconds all the same."""
    allowance = Recorder(pauses={2: 30.0, 3: 5.0})
    async with serving(socket_pair[0], house.registry, allowance=allowance):
        text = json.dumps(call("echo", text="ab")).encode()
        for part, then in ((text[:10], 7), (text[10:20], 32), (text[20:], 6)):
            await socket_pair[1].send_all(part)
            await trio.sleep(then)
        assert json.loads(await socket_pair[1].receive_some())["result"] == {"text": "ab"}
    assert allowance.sizes[:3] == [10, 10, len(text) - 20]


@pytest.fixture
def strict() -> Limits:
    """Ten calls at once and then ten a second, of an agent."""
    rate = Rate(10, 10)
    return Limits(Clock(), {role: Budget(rate, rate, PLENTY, PLENTY) for role in Role})


async def test_a_flood_takes_its_time(house: House, strict: Limits, autojump_clock: trio.testing.MockClock) -> None:
    """Of five thousand notifications few are carried out, and the rest is read slowly; nobody else waits."""
    flooder, other = trio.testing.memory_stream_pair(), trio.testing.memory_stream_pair()
    with ExitStack() as stack:
        ada, bob = (stack.enter_context(strict.listener(Role.AGENT, agent=name).enter(1)) for name in ("ada", "bob"))
        async with (
            serving(flooder[0], house.registry, Role.AGENT, allowance=ada) as peer,
            serving(other[0], house.registry, Role.AGENT, allowance=bob),
        ):
            note = json.dumps({"jsonrpc": "2.0", "method": "note", "params": {"text": "n"}}) + "\n"
            await flooder[1].send_all(note.encode() * 5_000)
            began = trio.current_time()
            for number in range(50):
                with trio.fail_after(0.01):
                    assert (await Raw(other[1]).ask("who", id=number))["result"]["role"] == "agent"
                await trio.sleep(0.2)
            await flooder[1].send_eof()
            await peer.closed.wait()
            took = trio.current_time() - began
    assert took == pytest.approx((5_000 - REFUSALS.burst) / (REFUSALS.per_second + 10), rel=0.15)
    assert len(house.seen) <= 10 + 10 * took + 1


async def test_asking_again_and_again_takes_its_time_too(
    house: House, strict: Limits, autojump_clock: trio.testing.MockClock
) -> None:
    """One that waits for each refusal before it asks anew."""
    ours, theirs = trio.testing.memory_stream_pair()
    with strict.listener(Role.AGENT, agent="ada").enter(1) as allowance:
        async with serving(ours, house.registry, Role.AGENT, allowance=allowance):
            raw, began = Raw(theirs), trio.current_time()
            answers = [await raw.ask("echo", text="x") for _ in range(1_000)]
            took = trio.current_time() - began
    refused = sum("error" in answer for answer in answers)
    assert refused == pytest.approx(REFUSALS.burst + REFUSALS.per_second * took, rel=0.05)


async def test_a_flooding_connection_uses_little_of_the_processor(house: House, strict: Limits) -> None:
    """A thread writes as fast as it can for a second; a bridge that answered it all would be busy all the time."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    sent = 0

    def flood() -> None:
        nonlocal sent
        note = b'{"jsonrpc":"2.0","method":"none"}\n' * 1_000
        theirs.settimeout(0.1)
        until = time.monotonic() + 1.5
        while time.monotonic() < until:
            try:
                sent += theirs.send(note)
            except TimeoutError:
                pass

    with strict.listener(Role.AGENT, agent="ada").enter(1) as allowance:
        stream = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
        async with serving(stream, house.registry, Role.AGENT, allowance=allowance):
            thread = threading.Thread(target=flood)
            thread.start()
            await trio.sleep(0.5)  # the burst, and what the buffer of the socket takes
            before = time.thread_time()
            await trio.sleep(1.0)
            busy = time.thread_time() - before
            await trio.to_thread.run_sync(thread.join)
    theirs.close()
    assert sent > 0
    assert busy < 0.1


async def test_a_listener_asks_before_it_accepts(
    short: Path, house: House, autojump_clock: trio.testing.MockClock
) -> None:
    rate = Rate(2, 4)
    limits = Limits(Clock(), {Role.OPERATOR: Budget(Rate(1, 9), PLENTY, PLENTY, rate)})
    listener = bind_unix(short / "s")
    answers: list[Any] = []

    async def one() -> None:
        async with await trio.open_unix_socket(short / "s") as stream:
            answers.append((await Raw(stream).ask("who"), trio.current_time()))

    async with trio.open_nursery() as nursery:

        async def serve(task_status: trio.TaskStatus[None]) -> None:
            await serve_unix(
                listener,
                house.registry,
                role=Role.OPERATOR,
                around=Surroundings(),
                admission=limits.listener(Role.OPERATOR),
                task_status=task_status,
            )

        await nursery.start(serve)
        began = trio.current_time()
        async with trio.open_nursery() as callers:
            for _ in range(10):
                callers.start_soon(one)
        took = trio.current_time() - began
        nursery.cancel_scope.cancel()
    assert took == pytest.approx(3, abs=0.6)
    assert sum("result" in answer for answer, _ in answers) >= 9  # one bucket for all connections of this user
    assert all(caller.connections == 0 for caller in limits._callers.values())


async def test_without_an_allowance_nothing_is_counted(socket_pair: Streams, house: House) -> None:
    async with serving(socket_pair[0], house.registry) as peer:
        assert isinstance(peer, Peer)
        raw = Raw(socket_pair[1])
        await raw.send(*[call("echo", id=number, text="x") for number in range(5_000)])
        assert [(await raw.line())["id"] for _ in range(5_000)] == list(range(5_000))
