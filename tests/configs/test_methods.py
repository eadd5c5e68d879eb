"""attach_config and list_configs as clients see them."""

from __future__ import annotations

import base64
import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from armorclaw.configs import methods
from armorclaw.configs.library import FILE_LIMIT, Configs
from armorclaw.configs.methods import register
from armorclaw.errors import ArmorclawError
from armorclaw.rpc.local import call_local, stream_local
from armorclaw.rpc.registry import Registry, Role


class Wire:
    def __init__(self, configs: Configs) -> None:
        self.registry = Registry()
        register(self.registry, configs)

    async def call(self, method: str, **params: Any) -> Any:
        return await call_local(self.registry, method, params, role=Role.OPERATOR)

    async def refusal(self, method: str, **params: Any) -> ArmorclawError:
        with pytest.raises(ArmorclawError) as caught:
            await self.call(method, **params)
        return caught.value


@pytest.fixture
def wire(configs: Configs) -> Wire:
    return Wire(configs)


@pytest.mark.mission("C.attach_config", "C.list_configs")
async def test_the_shapes(wire: Wire, root: Path) -> None:
    assert await wire.call("list_configs") == []
    attached = await wire.call("attach_config", name="agent.env", content="A=é\n", type="env", metadata={"k": "v"})
    assert re.fullmatch(r"config-agent\.env-\d{10}", attached.pop("config_id"))
    assert attached == {
        "name": "agent.env",
        "path": "/config/shared/agent.env",
        "size": 5,
        "type": "env",
        "encoding": "raw",
        "metadata": {"k": "v"},
    }
    content = base64.b64encode(bytes(range(256))).decode()
    own = await wire.call("attach_config", name="b.bin", content=content, encoding="base64", agent="ada")
    assert "metadata" not in own  # only if given
    assert (own["agent"], own["path"], own["size"]) == ("ada", "/config/b.bin", 256)
    assert (root / "ada" / "b.bin").read_bytes() == bytes(range(256))
    listed = await wire.call("list_configs")
    for each in listed:
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", each.pop("modified"))
    assert listed[1] == own
    listed[0].pop("config_id")
    assert listed[0] == attached


@pytest.mark.parametrize("wrapped", [True, False])
async def test_base64_with_and_without_line_ends(wire: Wire, root: Path, wrapped: bool) -> None:
    """As the program base64 writes it."""
    data = bytes(1000)
    content = (base64.encodebytes(data) if wrapped else base64.b64encode(data)).decode()
    await wire.call("attach_config", name="a", content=content, encoding="base64")
    assert (root / "_shared" / "a").read_bytes() == data


@pytest.mark.parametrize(
    ("name", "field", "params"),
    [
        ("invalid_params", "name", {"content": "x"}),
        ("invalid_params", "name", {"name": "../../../etc/passwd", "content": "x"}),
        ("invalid_params", "name", {"name": "a\0", "content": "x"}),
        ("invalid_params", "content", {"name": "a", "content": 1}),
        ("invalid_params", "content", {"name": "a", "content": "x", "encoding": "base64"}),
        ("invalid_params", "content", {"name": "a", "content": "é===", "encoding": "base64"}),
        ("invalid_params", "content", {"name": "a", "content": "YQ==YQ==", "encoding": "base64"}),
        ("invalid_params", "content", {"name": "a", "content": "\ud800"}),
        ("invalid_params", "encoding", {"name": "a", "content": "x", "encoding": "gzip"}),
        ("invalid_params", "metadata.k", {"name": "a", "content": "x", "metadata": {"k": 1}}),
        ("invalid_params", "agent", {"name": "a", "content": "x", "agent": "../bob"}),
        ("invalid_params", "path", {"name": "a", "content": "x", "path": "/etc"}),
    ],
)
async def test_wrong_params_are_named(wire: Wire, name: str, field: str, params: dict[str, Any]) -> None:
    error = await wire.refusal("attach_config", **params)
    assert (error.name, error.data["fields"]) == (name, [field])
    assert await wire.call("list_configs") == []


async def test_size_is_looked_at_before_decoding(wire: Wire, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(base64, "b64decode")
    error = await wire.refusal("attach_config", name="a", content="A" * (FILE_LIMIT * 2), encoding="base64")
    assert error.name == "too_large"


@pytest.mark.mission("C.streaming")
async def test_by_stream(wire: Wire, root: Path) -> None:
    data = bytes(range(256)) * 4096
    params = {"name": "model.bin", "type": "weights", "agent": "ada"}
    async with stream_local(wire.registry, "attach_config", params, role=Role.OPERATOR) as stream:
        for start in range(0, len(data), 192 * 1024):
            await stream.send(data[start : start + 192 * 1024])
        await stream.end()
        result = await stream.result()
    assert (result["size"], result["type"], result["path"]) == (len(data), "weights", "/config/model.bin")
    assert (root / "ada" / "model.bin").read_bytes() == data


async def test_more_than_a_file_may_have_ends_the_stream_early(wire: Wire, root: Path) -> None:
    sent = 0

    async def endless() -> None:
        nonlocal sent
        async with stream_local(wire.registry, "attach_config", {"name": "a"}, role=Role.OPERATOR) as stream:
            while True:
                await stream.send(bytes(192 * 1024))
                sent += 192 * 1024

    with pytest.raises(ArmorclawError) as caught:
        await endless()
    assert caught.value.name == "too_large"
    assert sent <= FILE_LIMIT + 16 * 192 * 1024
    assert await wire.call("list_configs") == []
    assert list((root / "_drafts").iterdir()) == []


async def test_an_empty_file_by_stream_is_the_end_alone(wire: Wire, root: Path) -> None:
    async with stream_local(wire.registry, "attach_config", {"name": "a"}, role=Role.OPERATOR) as stream:
        await stream.end()
        assert (await stream.result())["size"] == 0
    assert (root / "_shared" / "a").read_bytes() == b""


async def test_neither_content_nor_stream(wire: Wire, autojump_clock: MockClock) -> None:
    """Forgotten content is an error in time, not a wait for a stream that never begins."""
    assert methods.FIRST_PIECE < 4

    async def forget() -> None:
        async with stream_local(wire.registry, "attach_config", {"name": "a"}, role=Role.OPERATOR) as stream:
            await stream.result()

    started = trio.current_time()
    with pytest.raises(ArmorclawError) as caught:
        await forget()
    assert (caught.value.name, caught.value.data["fields"]) == ("invalid_params", ["content"])
    assert trio.current_time() - started == methods.FIRST_PIECE


async def test_an_agent_lists_what_it_can_read_and_attaches_nothing(wire: Wire) -> None:
    await wire.call("attach_config", name="mine", content="x", agent="ada")
    await wire.call("attach_config", name="not-mine", content="x", agent="bob")
    await wire.call("attach_config", name="everybodys", content="x")
    as_ada = partial(call_local, wire.registry, role=Role.AGENT, agent="ada")
    for listed in (
        await wire.call("list_configs", agent="ada"),
        await as_ada("list_configs", {}),
        await as_ada("list_configs", {"agent": "ada"}),
    ):
        assert [each["name"] for each in listed] == ["everybodys", "mine"]
    for method, params in (("list_configs", {"agent": "bob"}), ("attach_config", {"name": "a", "content": "x"})):
        with pytest.raises(ArmorclawError) as caught:
            await as_ada(method, params)
        assert caught.value.name == "denied"
    assert wire.registry.names(Role.OBSERVER) == wire.registry.names(Role.REMOTE) == []
