"""start, stop and containers.list as clients see them; what agents may say of themselves."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from armorclaw.config import AgentLimits
from armorclaw.errors import ArmorclawError
from armorclaw.rpc.registry import Role
from tests.containers.fakes import FakeHouse, declared, house_in

pytestmark = pytest.mark.mission("K.start", "K.stop")


@pytest.fixture
async def house(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeHouse]:
    async with house_in(folder, monkeypatch) as made:
        yield made


async def refusal(house: FakeHouse, method: str, **params: Any) -> ArmorclawError:
    with pytest.raises(ArmorclawError) as caught:
        await house.call(method, **params)
    return caught.value


# -- shapes that clients in the field depend on


async def test_start_and_stop(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.store_key("k")
    await house.up(declared("openclaw", keys=("k",)))
    await house.until("running", agent="openclaw")
    await house.call("stop", name="openclaw")
    answer = await house.call("start", key_id="k", agent_type="openclaw")
    container = house.runtime.last.id
    assert answer == {
        "container_id": container,
        "container_name": "armorclaw-inst-openclaw",
        "status": "running",
        "endpoint": str(house.folder / "run/mounts/openclaw/openclaw.sock"),
        "name": "openclaw",
        "ready": False,
    }
    assert await house.call("stop", container_id=container) == {
        "status": "stopped",
        "container_id": container,
        "container_name": "armorclaw-inst-openclaw",
        "name": "openclaw",
    }
    assert (await refusal(house, "stop", container_id=container)).name == "container_not_found"
    assert (await house.call("stop", container_id="armorclaw-inst-openclaw"))["status"] == "stopped"


async def test_the_list_is_a_bare_array(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up()
    assert await house.call("containers.list") == []
    await house.call("start", name="ada", command=["x"], rooms=["!b:x", "!a:x"])
    await house.ready()
    (row,) = await house.call("containers.list")
    assert row.pop("since_ms") > 0
    assert row == {
        "name": "ada",
        "state": "ready",
        "runtime": "auto",
        "image": None,
        "container_id": house.runtime.last.id,
        "generation": 1,
        "ready": True,
        "last_end": "",
        "rooms": ["!a:x", "!b:x"],
        "account": "main",
        "restarts": 0,
        "status": "",
        "cpu_percent": None,
        "memory_bytes": None,
    }


async def test_start_of_what_runs_changes_nothing(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.store_key("k")
    await house.up(declared(keys=("k",)))
    inside = await house.ready()
    first = await house.call("start", name="ada", key_id="k")
    assert first["ready"] is True
    assert first["container_id"] == house.runtime.last.id
    assert len(house.runtime.containers) == 1
    assert inside.peer.closed.is_set() is False


async def test_a_description_said_twice_is_one_start(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up()
    described: dict[str, Any] = {"name": "ada", "command": ["x"], "env": {"A": "b"}}
    one = await house.call("start", **described)
    assert await house.call("start", **described) == one
    error = await refusal(house, "start", **(described | {"command": ["y"]}))
    assert (error.name, error.hint) == ("conflict", "stop it first")


@pytest.mark.mission("K.secrets")
async def test_a_key_more(house: FakeHouse, autojump_clock: MockClock) -> None:
    for key in ("k", "l"):
        await house.store_key(key)
    await house.up(declared(keys=("k",)))
    await house.until("running")
    assert (await refusal(house, "start", name="ada", key_id="l")).name == "conflict"  # it runs without it
    assert (await refusal(house, "start", name="ada", key_id="none")).name == "key_not_found"
    await house.call("stop", name="ada")
    await house.call("start", name="ada", key_id="l")
    await house.call("stop", name="ada")
    await house.call("start", name="ada", key_id="l")
    assert house.fleet.get("ada").declared.keys == ("k", "l")
    await house.call("start", name="bob", command=["x"], keys=["k", "k"], key_id="l")
    assert house.fleet.get("bob").declared.keys == ("k", "l")


async def test_what_never_ran_leaves_nothing_behind(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up()
    house.docker.errors["check_image"] = ArmorclawError("image_missing", "no image", hint="docker pull it")
    error = await refusal(house, "start", name="ada", image="it", rooms=["!a:x"])
    assert (error.name, error.hint) == ("image_missing", "docker pull it")
    assert (await refusal(house, "start", name="ada", image="it", keys=["no"])).name == "key_not_found"
    assert await house.call("containers.list") == []
    assert house.grants.rooms_of("ada") == frozenset()
    house.docker.errors.clear()
    assert (await house.call("start", name="ada", image="it"))["status"] == "running"


async def test_an_agent_that_ends_at_once_was_started_all_the_same(
    house: FakeHouse, autojump_clock: MockClock
) -> None:
    await house.up()
    await house.call("start", name="ada", command=["raise SystemExit(3)"])
    await house.until("failed")
    (row,) = await house.call("containers.list")
    assert (row["state"], row["last_end"], row["container_id"]) == ("failed", "exit 3", None)


@pytest.mark.mission("K.status")
async def test_inspect(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.store_key("k")
    env = {"TOKEN": "not to be seen", "A": "b"}
    await house.up(declared(keys=("k",), rooms=("!a:x",), env=env, limits=AgentLimits(cpus=0.5)))
    await house.ready()
    seen = await house.call("containers.inspect", name="ada")
    assert len(seen.pop("digest")) == 64
    assert seen.pop("since_ms") > 0
    container = house.runtime.last
    health = seen.pop("health")
    assert (health["engine"], health["session"], health["pings_missed"]) == ("running", "open", 0)
    assert (seen.pop("patience")["period"], seen.pop("restart_policy")["policy"]) == (10.0, "always")
    assert seen.pop("quota").keys() == {"events", "messages", "bytes", "calls", "media", "soft", "on_exceeded"}
    figures = {"cpu_percent", "memory_bytes", "pids", "tmp_bytes", "data_bytes"}
    assert (seen.pop("usage") or seen["peaks"]).keys() == seen.pop("peaks").keys() == figures
    assert seen == {
        "name": "ada",
        "status": "",
        "on_restart": "adopt",
        "lifetime": 0.0,
        "idle_timeout": 0.0,
        "on_idle": "sleep",
        "python": None,
        "egress": [],
        "data": {"soft": 256 * 2**20, "hard": 2**30},
        "ends": [],
        "state": "ready",
        "wanted": True,
        "ready": True,
        "generation": 1,
        "restarts": 0,
        "last_end": "",
        "container_name": "armorclaw-inst-ada",
        "container_id": container.id,
        "adopted": False,
        "runs_on": "sandbox",
        "runtime": "auto",
        "image": None,
        "command": ["agent"],
        "code": None,
        "uid": 10001,
        "socket": str(house.folder / "run/mounts/ada/ada.sock"),
        "account": "main",
        "rooms": ["!a:x"],
        "keys": ["k"],
        "env": ["A", "TOKEN"],
        "limits": {"memory": 512 * 2**20, "cpus": 0.5, "pids": 128, "files": 1024, "tmp": 64 * 2**20},
        "ready_timeout": 0.0,
    }
    assert await house.call("containers.inspect", name=container.id) == await house.call(
        "containers.inspect", name="ada"
    )
    container.end(3)
    await house.until("running", generation=2)
    again = await house.call("containers.inspect", name="ada")
    assert (again["restarts"], again["generation"], again["last_end"], again["ready"]) == (1, 2, "exit 3", False)
    await house.call("stop", name="ada")
    at_rest = await house.call("containers.inspect", name="ada")
    gone = ("container_id", "since_ms", "digest", "adopted", "runs_on")
    assert [at_rest[name] for name in (*gone, "wanted", "state")] == [None] * 5 + [False, "stopped"]
    assert (await refusal(house, "containers.inspect", name="nobody")).name == "container_not_found"


# -- restart


@pytest.mark.mission("P0.3")
@pytest.mark.parametrize("state", ["running", "stopped", "failed", "restarting"])
async def test_restart_from_any_state(house: FakeHouse, state: str, autojump_clock: MockClock) -> None:
    await house.up(declared())
    await house.until("running")
    if state == "stopped":
        await house.call("stop", name="ada")
    elif state != "running":
        house.runtime.errors["launch"] = ArmorclawError("start_failed", "no")
        house.runtime.last.end(1)
        await house.until("failed")
        if state == "restarting":
            house.runtime.errors["launch"] = ArmorclawError("engine_unreachable", "gone")
            assert (await refusal(house, "start", name="ada")).name == "engine_unreachable"
            await house.until("restarting")
        house.runtime.errors.clear()
    before, began = house.runtime.last.id, trio.current_time()
    answer = await house.call("containers.restart", name="ada")
    assert trio.current_time() - began < 4
    assert answer["status"] == "running"
    assert answer["container_id"] == house.runtime.last.id != before
    assert (answer["name"], answer["ready"]) == ("ada", False)
    ada = house.fleet.get("ada")
    assert (ada.state, ada.wanted) == ("running", True)
    assert len(house.runtime.live) == 1


@pytest.mark.mission("P0.3")
async def test_a_restart_that_takes_long_says_so(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up(declared())
    await house.until("running")
    house.runtime.takes["remove"] = 8
    began = trio.current_time()
    answer = await house.call("containers.restart", name="ada")
    assert trio.current_time() - began < 4
    assert (answer["status"], answer["container_id"]) == ("restarting", "")
    house.runtime.takes.clear()
    await house.until("running", generation=2)


@pytest.mark.mission("P0.3")
async def test_what_keeps_it_from_starting_again_is_said(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up(declared())
    await house.until("running")
    house.runtime.errors["launch"] = ArmorclawError("start_failed", "no such program", hint="write it")
    error = await refusal(house, "containers.restart", name="ada")
    assert (error.name, error.hint) == ("start_failed", "write it")
    house.runtime.errors.clear()
    await house.until("running", generation=2)


@pytest.mark.mission("P0.3")
async def test_a_restart_clears_the_record(house: FakeHouse, autojump_clock: MockClock) -> None:
    """One that fails again and again is not given up for what was before."""
    await house.up(declared())
    for generation in range(1, 12):
        await house.until("running", generation=generation)
        if generation % 4 == 0:
            await house.call("containers.restart", name="ada")
        else:
            house.runtime.last.end(1)
    await house.until("running", generation=12)


# -- wrong params: each names its field


@pytest.mark.parametrize(
    ("field", "params"),
    [
        ("name", {}),
        ("name", {"key_id": "k"}),
        ("name", {"name": "../x", "command": ["x"]}),
        ("name", {"name": "A", "command": ["x"]}),
        ("name", {"name": "x" * 33, "command": ["x"]}),
        ("name", {"name": 1}),
        ("runtime", {"name": "a", "command": ["x"], "runtime": "vm"}),
        ("runtime", {"name": "a", "command": ["x"], "runtime": "docker"}),
        ("runtime", {"name": "a", "image": "i", "runtime": "sandbox"}),
        ("runtime", {"name": "ada", "runtime": "docker"}),
        ("command", {"name": "a", "command": "x"}),
        ("command[0]", {"name": "a", "command": [1]}),
        ("command", {"name": "a", "command": ["x\0"]}),
        ("code", {"name": "a", "code": "main.py"}),
        ("rooms", {"name": "a", "command": ["x"], "rooms": ["lobby"]}),
        ("rooms", {"name": "ada", "rooms": ["!a:x"]}),
        ("keys", {"name": "a", "command": ["x"], "keys": [""]}),
        ("env", {"name": "a", "command": ["x"], "env": {"ARMORCLAW_AGENT": "b"}}),
        ("env", {"name": "a", "command": ["x"], "env": {"A-B": "b"}}),
        ("env", {"name": "a", "command": ["x"], "env": {"A": "\0"}}),
        ("env.A", {"name": "a", "command": ["x"], "env": {"A": 1}}),
        ("env", {"name": "ada", "env": {"A": "1"}}),
        ("account", {"name": "ada", "account": "other"}),
        ("colour", {"name": "a", "colour": "red"}),
    ],
)
async def test_start_refuses(house: FakeHouse, autojump_clock: MockClock, field: str, params: dict[str, Any]) -> None:
    await house.up(declared())
    error = await refusal(house, "start", **params)
    assert (error.name, error.data["fields"]) == ("invalid_params", [field])
    assert field.partition("[")[0].partition(".")[0] in str(error)
    assert list(house.fleet._agents) == ["ada"]


@pytest.mark.parametrize(("field", "params"), [("name", {}), ("container_id", {"container_id": None})])
async def test_stop_refuses(house: FakeHouse, autojump_clock: MockClock, field: str, params: dict[str, Any]) -> None:
    error = await refusal(house, "stop", **params)
    assert (error.name, error.data["fields"]) == ("invalid_params", [field])


async def test_start_of_nobody(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up()
    error = await refusal(house, "start", name="nope")
    assert (error.name, error.kind.exit_status) == ("container_not_found", 4)


async def test_stop_of_nobody(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up()
    error = await refusal(house, "stop", container_id="f00")
    assert (error.name, error.kind.code) == ("container_not_found", -2)


@pytest.mark.parametrize(
    ("field", "method", "params"),
    [
        ("protocol", "agent.ready", {"protocol": 2}),
        ("protocol", "agent.ready", {"protocol": "1"}),
        ("fingerprint", "agent.ready", {"fingerprint": "abc"}),
        ("fingerprint", "agent.ready", {"fingerprint": "g" * 64}),
        ("via", "secrets.take", {"via": "post"}),
    ],
)
async def test_what_an_agent_may_not_say(
    house: FakeHouse, autojump_clock: MockClock, field: str, method: str, params: dict[str, Any]
) -> None:
    await house.up(declared())
    await house.until("running")
    inside = await house.connect()
    with pytest.raises(ArmorclawError) as caught:
        await inside.call(method, **params)
    assert caught.value.name == "invalid_params"
    assert field in str(caught.value)
    assert (await inside.call("agent.ready", library="1"))["agent"] == "ada"


@pytest.mark.mission("K.socket")
async def test_each_role_has_its_own(house: FakeHouse, autojump_clock: MockClock) -> None:
    containers = [f"containers.{name}" for name in ("inspect", "isolation", "list", "logs", "restart", "stats")]
    assert house.registry.names(Role.OPERATOR) == ["agent.call", *containers, "start", "stop"]
    assert house.registry.names(Role.AGENT) == ["agent.ready", "secrets.take"]
    assert house.registry.names(Role.OBSERVER) == ["containers.list"]
    assert house.registry.names(Role.REMOTE) == []
    await house.up(declared())
    await house.until("running")
    inside = await house.connect()
    for method in ("start", "stop", "containers.list"):
        with pytest.raises(ArmorclawError) as caught:
            await inside.call(method)
        assert caught.value.name == "denied"
    await trio.lowlevel.checkpoint()
