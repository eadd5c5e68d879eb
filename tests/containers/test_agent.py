"""One agent over its generations: adoption, secrets, sessions, engines that go and come, and every way to be cut."""

from __future__ import annotations

import hashlib
import json
import os
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from armorclaw.containers import agent as module
from armorclaw.containers import attempt
from armorclaw.containers.secrets import SecretGrant
from armorclaw.errors import ArmorclawError
from armorclaw.rpc.local import call_local
from armorclaw.rpc.registry import Role
from armorclaw.supervision import ChildState
from tests.containers.fakes import FakeHouse, declared, house_in

pytestmark = [pytest.mark.mission("K.start", "P0.1")]


@pytest.fixture
async def house(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeHouse]:
    async with house_in(folder, monkeypatch) as made:
        yield made


@pytest.fixture
def payloads(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[bytearray]]:
    """Every payload of secrets that was made; whatever happens, all are overwritten in the end."""
    made: list[bytearray] = []

    class Watched(SecretGrant):
        def __init__(self, payload: bytearray) -> None:
            made.append(payload)
            super().__init__(payload)

    monkeypatch.setattr(attempt, "SecretGrant", Watched)
    yield made
    assert all(payload == bytes(len(payload)) for payload in made)


# -- one generation


async def test_one_life(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up(declared(ready_timeout=30.0))
    await house.until("running")
    ada = house.fleet.get("ada")
    assert ada.socket.path.is_socket()
    assert ada.socket.link.is_symlink()
    inside = await house.ready()
    assert ada.state == "ready"
    assert ada.generation is not None
    (container,) = house.runtime.live
    assert ada.generation.running is container
    container.end(3)
    await house.until("running", generation=2)
    assert container.removed
    assert ada.last_end == "exit 3"
    await trio.testing.wait_all_tasks_blocked()
    assert house.kinds() == ["agent.started", "agent.ended", "agent.started"]
    ended = house.facts("agent.ended")
    assert ended.pop("ran_ms") == 0
    assert ended == {
        "container": container.id,
        "generation": 1,
        "why": "exit 3",
        "text": "exit 3",
        "cause": "exit",
        "code": 3,
        "signal": None,
        "oom": None,
    }
    assert house.moves() == ["starting", "running", "ready", "exited", "restarting", "starting", "running"]
    with pytest.raises(ArmorclawError, match="no answer"):
        await inside.call("agent.ready")


async def test_not_ready_in_time(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up(declared(ready_timeout=7.0))
    ada = house.fleet.get("ada")
    began = trio.current_time()
    await house.until("running", generation=2)
    assert trio.current_time() - began == pytest.approx(7.0)
    assert ada.last_end == "not ready within 7 s"


async def test_ready_in_time_is_the_supervisors_ready(house: FakeHouse, autojump_clock: MockClock) -> None:
    def state() -> ChildState:
        return house.fleet.supervisor.snapshot().children[0].state

    await house.up(declared(ready_timeout=7.0))
    await house.until("running")
    assert state() is ChildState.STARTING
    await house.ready()
    await trio.sleep(100)
    assert state() is ChildState.RUNNING
    assert house.fleet.get("ada").generations == 1


async def test_where_readiness_is_never_demanded_running_is_enough(
    house: FakeHouse, autojump_clock: MockClock
) -> None:
    await house.up(declared(ready_timeout=0.0))
    await trio.sleep(1000)
    ada = house.fleet.get("ada")
    assert (ada.state, ada.generations) == ("running", 1)
    assert house.fleet.supervisor.snapshot().children[0].state is ChildState.RUNNING


@pytest.mark.mission("P0.2")
@pytest.mark.parametrize("back", [True, False])
async def test_a_session_that_breaks(house: FakeHouse, back: bool, autojump_clock: MockClock) -> None:
    await house.up(declared(ready_timeout=30.0))
    inside = await house.ready()
    inside.close()
    await house.until("suspect")
    await trio.sleep(9.5)
    ada = house.fleet.get("ada")
    if back:
        await house.ready()
        await trio.sleep(60)
        assert (ada.state, ada.generations) == ("ready", 1)
    else:
        await house.until("running", generation=2)
        assert "did not come back within 10 s" in ada.last_end


@pytest.mark.mission("K.socket")
async def test_who_is_not_of_the_container_is_refused(house: FakeHouse, autojump_clock: MockClock) -> None:
    house.runtime.trusts = False
    await house.up(declared())
    await house.until("running")
    stream = await trio.open_unix_socket(house.fleet.get("ada").socket.path)
    async with aclosing(stream):
        answer = json.loads(await stream.receive_some())
        assert answer["error"]["data"]["name"] == "denied"
        assert await stream.receive_some() == b""


# -- secrets


@pytest.mark.mission("K.secrets")
@pytest.mark.parametrize("via", ["fd", "inline"])
async def test_secrets_once_for_each_generation(
    house: FakeHouse, payloads: list[bytearray], via: str, autojump_clock: MockClock
) -> None:
    payload = await house.store_key("k")
    await house.up(declared(keys=("k",)))
    for generation in (1, 2):
        await house.until("running", generation=generation)
        taken, error = await raw_take(house.fleet.get("ada").socket.path, via)
        assert taken == payload
        assert error is None
        for again in ("fd", "inline"):
            taken, error = await raw_take(house.fleet.get("ada").socket.path, again)
            assert (taken, error) == (b"", "secrets_taken")
        assert payloads[-1] == bytes(len(payload))
        house.runtime.last.end(1)
        await house.until("restarting", "starting")
    assert len(payloads) >= 2


async def raw_take(path: Path, via: str) -> tuple[bytes, str | None]:
    """What comes for secrets.take, and the name of the error."""
    with trio.socket.socket(trio.socket.AF_UNIX) as sock:
        await sock.connect(str(path))
        params = {"via": via}
        request = {"jsonrpc": "2.0", "id": 1, "method": "secrets.take", "params": params}
        await sock.send(json.dumps(request).encode() + b"\n")
        data, ancillary, _, _ = await sock.recvmsg(65536, socket.CMSG_SPACE(4))
        answer = json.loads(data)
        if "error" in answer:
            return b"", answer["error"]["data"]["name"]
        if via == "inline":
            return answer["result"]["secrets"].encode(), None
        assert answer["result"]["fds"] == 1
        fd = int.from_bytes(ancillary[0][2], "little")
        try:
            return os.read(fd, answer["result"]["size"]), None
        finally:
            os.close(fd)


@pytest.mark.mission("K.secrets")
async def test_ready_with_a_fingerprint(
    house: FakeHouse, payloads: list[bytearray], autojump_clock: MockClock
) -> None:
    payload = await house.store_key("k")
    await house.up(declared(keys=("k",), ready_timeout=30.0))
    ada = house.fleet.get("ada")
    with pytest.raises(ArmorclawError) as caught:
        await house.ready(fingerprint="0" * 64)
    assert caught.value.name == "conflict"
    await house.until("running", generation=2)
    assert ada.last_end == "its secrets are not those granted now"
    await house.ready(fingerprint=hashlib.sha256(payload).hexdigest())
    assert ada.state == "ready"


async def test_a_session_needs_a_connection(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up(declared())
    await house.until("running")
    for method in ("agent.ready", "secrets.take"):
        with pytest.raises(ArmorclawError) as caught:
            await call_local(house.registry, method, {}, role=Role.AGENT, agent="ada")
        assert caught.value.name == "invalid_request"
    assert await raw_take(house.fleet.get("ada").socket.path, "inline") == (b'{"keys":{}}', None)


# -- engines that go and come


@pytest.mark.mission("P0.2")
async def test_an_engine_lost_and_the_container_found_again(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up(declared(runtime="docker", image="i"))
    await house.ready()
    house.docker.lose()
    await house.until("unknown")
    await trio.sleep(300)
    ada = house.fleet.get("ada")
    assert (ada.state, ada.generations) == ("unknown", 1)
    house.docker.lose(False)
    await house.until("ready")
    house.docker.lose()
    await house.until("unknown")
    house.docker.lose(False)
    await house.until("ready")
    assert ada.generations == 1


@pytest.mark.mission("P0.2")
async def test_an_engine_lost_and_the_container_with_it(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up(declared(runtime="docker", image="i"))
    await house.until("running")
    house.docker.lose()
    await house.until("unknown")
    house.docker.last.end(137)
    house.docker.lose(False)
    await house.until("running", generation=2)
    assert house.fleet.get("ada").last_end == "killed (137), memory limit suspected"


@pytest.mark.mission("P0.2")
async def test_an_engine_that_is_away_at_the_start_is_waited_for(house: FakeHouse, autojump_clock: MockClock) -> None:
    house.docker.lose()
    await house.up(declared(runtime="docker", image="i"))
    await house.until("restarting")
    await trio.sleep(3600)
    ada = house.fleet.get("ada")
    assert (ada.state, ada.last_end) == ("restarting", "the engine is gone")
    assert house.sockets() == []
    with pytest.raises(ArmorclawError, match="the engine is gone") as caught:
        await house.call("start", name="ada")
    assert caught.value.name == "engine_unreachable"
    house.docker.lose(False)
    await house.until("running")
    assert ada.generations == 1


async def test_losing_the_engine_while_stopping_ends_all_the_same(
    house: FakeHouse, autojump_clock: MockClock
) -> None:
    await house.up(declared(runtime="docker", image="i"))
    await house.until("running")
    house.docker.lose()
    await house.until("unknown")
    assert (await house.call("stop", name="ada"))["status"] == "stopping"
    await house.until("stopped")
    assert house.docker.live == []
    house.fleet.get("ada").socket.remove()  # kept, for a container that may live on


# -- every phase, cut

PHASES = ["survivors", "check_image", "launch", "start", "ready", "serving", "stop", "remove", "discard", "adopt"]


@pytest.mark.mission("C.stop", "K.secrets")
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("how", ["end of the fleet", "stop by hand"])
async def test_cut_in_every_phase_nothing_is_left(
    house: FakeHouse, payloads: list[bytearray], phase: str, how: str, autojump_clock: MockClock
) -> None:
    """No container, no listener, no task, no payload: what `house` and `payloads` check, and more."""
    await house.store_key("k")
    house.docker.heeds_sigterm = False
    house.shutdown = lambda: None
    if phase in ("adopt", "discard"):
        found = await survivor(house, "k", changed=phase == "discard")
        house.docker.left.append(found)
    if phase in ("check_image", "launch", "start", "stop", "adopt"):
        house.docker.hangs.add(phase)
    elif phase in ("remove", "discard"):
        house.docker.takes[phase] = 2.0
    if phase == "survivors":
        await house.up()
        house.docker.hangs.add(phase)
        house.fleet._survivors.forget()
        house.nursery.start_soon(quiet_start, house)
    else:
        before = len(house.nursery.child_tasks)
        await house.up(declared(runtime="docker", image="i", keys=("k",), ready_timeout=30.0))
        assert len(house.nursery.child_tasks) == before + 1
    if phase == "serving":
        await house.ready()
    elif phase == "stop":
        house.shutdown = refuse
        await house.ready()
        house.nursery.start_soon(house.fleet.stop, house.fleet.get("ada"))
    elif phase == "remove":
        await house.until("running")
        house.docker.last.end(1)
    await trio.sleep(0.01)
    if phase not in ("ready", "serving"):
        assert phase in house.docker.steps
    began = trio.current_time()
    if how == "stop by hand":
        with trio.fail_after(20):
            ada = house.fleet.get("ada")
            await house.call("stop", name="ada")
            while ada.state != "stopped":
                await ada.progress.wait()
    await house.down()
    assert trio.current_time() - began < 2 * module.STOP_GRACE + 2
    assert house.docker.live == []
    assert house.docker.left == [] or phase == "adopt"
    assert house.sockets() == []
    assert all(each.container_id is None for each in house.fleet.standings())


def refuse() -> None:
    raise ArmorclawError("unavailable", "not now")


async def quiet_start(house: FakeHouse) -> None:
    try:
        await house.call("start", name="ada", runtime="docker", image="i", keys=["k"])
    except ArmorclawError as error:
        if error.name not in ("conflict", "unavailable"):
            raise


async def survivor(house: FakeHouse, *keys: str, changed: bool = False) -> Any:
    """What a bridge that was killed would have left of ada."""
    from armorclaw.containers.agent_socket import AgentSocket
    from armorclaw.containers.spec import Found

    wanted = declared(runtime="docker", image="i", keys=keys, ready_timeout=30.0)
    socket = AgentSocket(house.folder / "run", "ada", 10001)
    spec = await house.fleet.household.spec_for(wanted, house.docker, socket)
    return Found("found", "ada", "0" * 64 if changed else spec.digest(), running=True)


@pytest.mark.mission("K.start")
@pytest.mark.parametrize("step", ["check_image", "launch", "start"])
async def test_what_preparing_raises_is_told_and_tried_again(
    house: FakeHouse, payloads: list[bytearray], step: str, autojump_clock: MockClock
) -> None:
    await house.store_key("k")
    house.docker.errors[step] = ArmorclawError("engine_refused", "no", why="because")
    await house.up()
    with pytest.raises(ArmorclawError, match="no: because") as caught:
        await house.fleet.start(
            await house.fleet.describe(declared(runtime="docker", image="i", keys=("k",), ready_timeout=30.0))
        )
    assert caught.value.name == "engine_refused"
    house.docker.errors.clear()
    await house.until("running")


async def test_what_nobody_foresaw_is_a_crash_like_any_other(
    house: FakeHouse, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    async def broken(*_: Any) -> bytearray:
        await trio.lowlevel.checkpoint()
        raise ZeroDivisionError("odd")

    monkeypatch.setattr(house.fleet.household, "secrets_for", broken)
    await house.up()
    ada = await house.fleet.describe(declared())
    with pytest.raises(ZeroDivisionError):
        await house.fleet.start(ada)
    assert ada.last_end == "ZeroDivisionError: odd"
    monkeypatch.undo()


async def test_a_note_that_cannot_be_recorded_ends_no_agent(
    house: FakeHouse, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    async def full(*_: Any, **__: Any) -> None:
        await trio.lowlevel.checkpoint()
        raise ArmorclawError("storage_failed", "the disk is full")

    object.__setattr__(house.fleet._services, "note", full)
    await house.up(declared())
    await house.until("running")
    await trio.sleep(100)
    assert house.fleet.get("ada").generations == 1
