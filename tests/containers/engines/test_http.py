"""The client against engines that misbehave as no real one does on demand; real engines are in test_engine.py."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from armorclaw.containers.engines import http as engine_http
from armorclaw.containers.engines.container import _ids, _outer_uids
from armorclaw.containers.engines.http import ENDING_TRIES, Engine, EngineFault
from armorclaw.containers.engines.runtime import EngineRuntime
from armorclaw.errors import ArmorclawError

VERSION = {"Version": "27.0", "ApiVersion": "1.46", "MinAPIVersion": "1.24", "Components": [{"Name": "Engine"}]}


class FakeEngine:
    """Answers each path with prepared bytes and then hangs up, as an HTTP/1.1 server may."""

    def __init__(self, socket_path: Path) -> None:
        self.socket_path = str(socket_path)
        self.asked: list[str] = []
        self.answers: dict[str, bytes | None] = {"GET /version": answer(VERSION)}

    async def serve(self, connection: trio.SocketStream) -> None:
        request = b""
        while b"\r\n\r\n" not in request:
            request += await connection.receive_some()
        asked = request.partition(b" HTTP/")[0].decode()
        self.asked.append(asked)
        reply = self.answers.get(asked.partition("?")[0], answer({"message": "no such thing"}, 404))
        if reply is None:
            await trio.sleep_forever()
        else:
            await connection.send_all(reply)
        await connection.aclose()


def answer(value: object, status: int = 200) -> bytes:
    body = value if isinstance(value, bytes) else json.dumps(value).encode()
    return b"HTTP/1.1 %d X\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body)


@pytest.fixture
async def fake(folder: Path, nursery: trio.Nursery) -> AsyncIterator[FakeEngine]:
    engine = FakeEngine(folder / "e.sock")
    listening = trio.socket.socket(trio.socket.AF_UNIX)
    await listening.bind(engine.socket_path)
    listening.listen(16)
    nursery.start_soon(trio.serve_listeners, engine.serve, [trio.SocketListener(listening)])
    yield engine
    listening.close()


# -- versions


@pytest.mark.parametrize(
    "newest, oldest, agreed",
    [("1.41", "1.12", "1.41"), ("1.46", "1.24", "1.46"), ("1.52", "1.44", "1.47"), ("1.47", None, "1.47")],
)
async def test_the_newest_common_version_is_spoken(
    fake: FakeEngine, newest: str, oldest: str | None, agreed: str
) -> None:
    fake.answers["GET /version"] = answer({**VERSION, "ApiVersion": newest, "MinAPIVersion": oldest})
    fake.answers[f"GET /v{agreed}/info"] = answer({})
    async with Engine.open(fake.socket_path) as engine:
        assert engine.version.api == agreed
        assert await engine.info() == {}


@pytest.mark.parametrize("newest, oldest", [("1.40", "1.12"), ("1.9", "1.1"), ("1.60", "1.50")])
async def test_no_common_version(fake: FakeEngine, newest: str, oldest: str) -> None:
    fake.answers["GET /version"] = answer({**VERSION, "ApiVersion": newest, "MinAPIVersion": oldest})
    with pytest.raises(ArmorclawError) as raised:
        async with Engine.open(fake.socket_path):
            pytest.fail("no version in common")
    assert raised.value.name == "engine_unreachable"
    assert newest in raised.value.why
    assert len(raised.value.lines()) == 3


@pytest.mark.parametrize(
    "reply",
    [
        answer(b"<html>not an engine</html>"),
        answer([]),
        answer({}),
        answer({"Version": "1", "ApiVersion": "one"}),
        b"SSH-2.0-OpenSSH\r\n",
        b"",
        b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nshort",
    ],
)
async def test_what_listens_is_no_engine(fake: FakeEngine, reply: bytes) -> None:
    fake.answers["GET /version"] = reply
    with pytest.raises(ArmorclawError) as raised:
        async with Engine.open(fake.socket_path):
            pytest.fail("that is no engine")
    assert raised.value.name == "engine_unreachable"
    assert raised.value.why


# -- sockets


async def test_nobody_listens(folder: Path) -> None:
    path = folder / "stale.sock"
    stale = trio.socket.socket(trio.socket.AF_UNIX)
    await stale.bind(str(path))
    stale.close()
    with pytest.raises(ArmorclawError) as raised:
        async with Engine.open(str(path)):
            pytest.fail("nobody listens")
    assert raised.value.name == "engine_unreachable"
    assert raised.value.why == "nobody listens on that socket"


async def test_a_path_that_is_too_long_for_a_socket(folder: Path) -> None:
    with pytest.raises(ArmorclawError) as raised:
        async with Engine.open(f"{folder}/{'x' * 120}"):
            pytest.fail("nobody can listen there")
    assert raised.value.name == "engine_unreachable"
    assert raised.value.why


def test_permission_denied_says_how_to_get_it() -> None:
    try:
        try:
            raise PermissionError(13, "Permission denied")
        except PermissionError as inner:
            raise RuntimeError("connect failed") from inner
    except RuntimeError as outer:
        why, hint = engine_http._reason(outer)
    assert why == "this user may not connect to it"
    assert "usermod" in hint


# -- answers


@pytest.mark.parametrize(
    "body, message",
    [
        (b'{"message": "out of order"}', "out of order"),
        (b'{"cause": "podman says", "message": ""}', "podman says"),
        (b"plain text\n", "plain text"),
        (b"[1]", "[1]"),
        (b"", "no reason given"),
        (b"\xff\xfe", "\ufffd\ufffd"),
    ],
)
async def test_a_refusal_keeps_the_engines_words(fake: FakeEngine, body: bytes, message: str) -> None:
    fake.answers["GET /v1.46/containers/c/json"] = answer(body, 500)
    async with Engine.open(fake.socket_path) as engine:
        with pytest.raises(EngineFault) as raised:
            await engine.inspect("c")
    assert (raised.value.status, raised.value.message) == (500, message)


async def test_a_process_that_ends_while_podman_reads_of_it(fake: FakeEngine) -> None:
    """It is asked again, a bounded number of times."""
    fake.answers["GET /v1.46/containers/c/json"] = answer({"message": "read /proc/1/cgroup: no such process"}, 500)
    async with Engine.open(fake.socket_path) as engine:
        with pytest.raises(EngineFault):
            await engine.inspect("c")
    assert fake.asked.count("GET /v1.46/containers/c/json") == ENDING_TRIES


async def test_an_engine_that_is_silent(fake: FakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine_http, "CALL_SECONDS", 0.2)
    fake.answers["GET /v1.46/info"] = None
    async with Engine.open(fake.socket_path) as engine:
        with pytest.raises(ArmorclawError) as raised:
            await engine.info()
    assert raised.value.name == "engine_unreachable"
    assert raised.value.why == "no answer in time"


@pytest.mark.parametrize(
    "reply",
    [
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n",  # hung up after the head
        answer(b""),
        answer(b"{}"),
        answer({"StatusCode": "gone"}),
    ],
)
async def test_a_wait_without_a_status_is_no_exit(fake: FakeEngine, reply: bytes) -> None:
    fake.answers["POST /v1.46/containers/c/wait"] = reply
    async with Engine.open(fake.socket_path) as engine:
        async with engine.waiting("c", "next-exit") as ended:
            with pytest.raises(ArmorclawError) as raised:
                await ended()
    assert raised.value.name == "engine_unreachable"


async def test_errors_of_the_callers_block_stay_as_they_are(fake: FakeEngine) -> None:
    import httpx

    fake.answers["POST /v1.46/containers/c/wait"] = answer({"StatusCode": 0})
    async with Engine.open(fake.socket_path) as engine:
        with pytest.raises(httpx.ReadError, match="of somebody else"):
            async with engine.waiting("c", "next-exit"):
                raise httpx.ReadError("of somebody else")


async def test_an_import_that_fails_late(fake: FakeEngine) -> None:
    fake.answers["POST /v1.46/images/create"] = answer(b'{"status":"working"}\n{"error":"no space left"}\n')

    async def tar() -> AsyncIterator[bytes]:
        yield b"x"

    async with Engine.open(fake.socket_path) as engine:
        with pytest.raises(EngineFault, match="no space left"):
            await engine.import_image(tar(), repository="a", tag="b")


@pytest.mark.parametrize("name", ["", "../info", "a/b", "a?b", "a b", "é", "-x"])
async def test_a_containers_name_stays_in_its_place(fake: FakeEngine, name: str) -> None:
    async with Engine.open(fake.socket_path) as engine:
        with pytest.raises(ValueError, match="not a container"):
            await engine.inspect(name)
    assert fake.asked == ["GET /version"]


@pytest.mark.parametrize("name", ["", "../containers/x", "a?b", "a b", "a/../b", "é", "-x"])
async def test_an_images_name_stays_in_its_place(fake: FakeEngine, name: str) -> None:
    async with EngineRuntime.open(fake.socket_path) as runtime:
        with pytest.raises(ArmorclawError) as raised:
            await runtime.check_image(name)
    assert raised.value.name == "image_missing"
    assert fake.asked == ["GET /version"]


# -- identity

A, B = "a" * 64, "b" * 64


@pytest.mark.parametrize(
    "line, ids",
    [
        (f"0::/docker/{A}", [A]),
        (f"0::/system.slice/docker-{A}.scope", [A]),
        (f"9:name=systemd:/libpod_parent/libpod-{A}", [A]),
        (f"0::/machine.slice/libpod-{A}.scope/container", [A]),
        (f"0::/agents/{A}", [A]),  # an engine with a cgroup parent of its own
        (f"0::/docker/{A}/docker/{B}", [A, B]),  # an engine that runs in a container
        ("0::/", []),
        ("0::/user.slice/user-1000.slice", []),
        (f"0::/docker/{A}b", []),
        (f"0::/docker/{A[1:]}", []),
    ],
)
def test_ids_in_a_cgroup(line: str, ids: list[str]) -> None:
    assert _ids(line) == ids


@pytest.mark.parametrize(
    "uid_map, outside",
    [
        ("         0          0 4294967295\n", {10001}),
        ("         0     200000      65536\n", {210001}),  # Docker's userns-remap
        ("         0       1000          1\n         1     100000      65536\n", {110000}),  # rootless
        ("         0       1000          1\n", set()),
        ("", set()),
    ],
)
def test_uid_as_seen_from_the_host(uid_map: str, outside: set[int]) -> None:
    assert _outer_uids(uid_map, 10001) == outside
