"""The generated methods of clients, against a real bridge; and that this page of shapes costs little to load."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, assert_type

import pytest

from armorclaw import Bridge, connect, open_bridge
from armorclaw.config import BridgeSection, Config
from armorclaw.containers.shapes import LogChunk, Standing
from armorclaw.errors import ArmorclawError
from armorclaw.guard.shapes import KeyShown, KeyStored
from armorclaw.matrix.shapes import MatrixStatus
from armorclaw.rpc.local import call_local
from armorclaw.rpc.registry import Role
from armorclaw.shapes import BridgeStatus, Health
from armorclaw.typed import Methods
from tests.protocol import registry
from tests.rpc.openrpc import Promises, check


@asynccontextmanager
async def opened(folder: Path) -> AsyncIterator[Bridge]:
    async with open_bridge(
        Config(bridge=BridgeSection(state_dir=folder / "state", runtime_dir=folder / "run"))
    ) as bridge:
        yield bridge


async def test_a_bridge_has_its_methods_with_types(armorclaw_folder: Path) -> None:
    async with opened(armorclaw_folder) as bridge:
        methods = bridge.methods
        assert_type(await methods.health(), Health)
        assert await methods.health() == Health("healthy", [])
        assert_type(await methods.status(), BridgeStatus)
        assert (await methods.status()).version == "0.1.0"
        assert_type(await methods.containers_list(), list[Standing])
        assert await methods.containers_list() == []
        stored = await methods.store_key(provider="openai", token="sk-1", tags=("a", "b"))
        assert_type(stored, KeyStored)
        assert stored.key_id == "openai-default"
        (shown,) = await methods.list_keys()
        assert_type(shown, KeyShown)
        assert shown.tags == ["a", "b"]
        assert await methods.matrix_status() == MatrixStatus(False, "not_configured", None, False)
        with pytest.raises(ArmorclawError) as caught:
            await methods.get_key(id="another")
        assert caught.value.name == "key_not_found"


async def test_a_stream_has_its_types(armorclaw_folder: Path) -> None:
    async with opened(armorclaw_folder) as bridge:
        async with bridge.methods.attach_config(name="hello.txt") as upload:
            await upload.send(b"hello ")
            await upload.send(b"world")
            await upload.end()
            attached = await upload.result()
        assert (attached.name, attached.size) == ("hello.txt", 11)
        (listed,) = await bridge.methods.list_configs()
        assert listed.name == "hello.txt"


async def test_a_client_has_the_same_methods(armorclaw_folder: Path) -> None:
    async with opened(armorclaw_folder) as bridge, connect(bridge.config.bridge.socket) as client:
        assert await client.methods.health() == await bridge.methods.health()
        async with client.methods.attach_config(name="big.bin") as upload:
            for _ in range(20):  # more than may be under way at once
                await upload.send(b"x" * 1000)
            await upload.end()
            assert (await upload.result()).size == 20_000
        async with client.methods.containers_logs(name="nobody") as logs:
            with pytest.raises(ArmorclawError) as caught:
                assert_type(await anext(logs), LogChunk)
        assert caught.value.name == "container_not_found"


def test_there_is_a_method_for_each_an_operator_may_call() -> None:
    names = {name.replace(".", "_") for name in registry().names(Role.OPERATOR)}
    assert names == {name for name in vars(Methods) if not name.startswith("_")}


async def test_what_the_bridge_answers_is_what_rpc_discover_promises(armorclaw_folder: Path) -> None:
    async with opened(armorclaw_folder) as bridge:
        document = await bridge.call("rpc.discover")
        check(document)
        calls: list[tuple[str, dict[str, Any]]] = [
            ("status", {}),
            ("health", {}),
            ("matrix.status", {}),
            ("containers.list", {}),
            ("store_key", {"provider": "openai", "token": "sk-1", "tags": ["x"]}),
            ("store_key", {"provider": "xai", "token": "sk-2"}),
            ("list_keys", {}),
            ("get_key", {"id": "openai-default"}),
            ("attach_config", {"name": "a.txt", "content": "a"}),
            ("attach_config", {"name": "b.txt", "content": "Yg==", "encoding": "base64", "metadata": {"k": "v"}}),
            ("list_configs", {}),
            ("rpc.discover", {}),
        ]
        for name, params in calls:
            promises = Promises(document, name)
            promises.params(params)
            promises.result(await bridge.call(name, **params))


async def test_an_agent_is_told_of_its_own_methods(armorclaw_folder: Path) -> None:
    async with opened(armorclaw_folder) as bridge:
        document = await call_local(bridge.registry, "rpc.discover", {}, role=Role.AGENT, agent="echo")
        check(document)
        names = [method["name"] for method in document["methods"]]
        assert names == bridge.registry.names(Role.AGENT)
        assert "get_key" not in names
        assert "secrets.take" in names


def test_a_client_loads_no_store_no_matrix_and_no_http() -> None:
    code = "import armorclaw.client, armorclaw.typed, sys; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    loaded = set(done.stdout.split())
    assert "armorclaw" in loaded
    assert not loaded & {"sqlcipher3", "httpx", "mautrix", "aiortc", "click"}
