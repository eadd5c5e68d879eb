"""The fault proxy alone, between a plain client and a server that counts."""

from __future__ import annotations

import socket
import struct
import time
from collections.abc import AsyncIterator
from functools import partial

import attrs
import httpx
import pytest
import trio

from armorclaw.errors import ArmorclawError
from armorclaw.testing.proxy import FaultProxy, kind_of
from tests.matrix.fake_homeserver import Asked, FakeHomeserver, Reply, fake_homeserver

SEND = "/_matrix/client/v3/rooms/!a:x/send/m.room.message/t1"


@attrs.frozen
class Both:
    proxy: FaultProxy
    server: FakeHomeserver

    async def put(self, client: httpx.AsyncClient, body: str = "{}") -> httpx.Response:
        return await client.put(self.proxy.url + SEND, content=body)


@pytest.fixture
async def both() -> AsyncIterator[Both]:
    async def script(asked: Asked) -> Reply:
        if "slow" in asked.target:
            await trio.sleep(60)
        return Reply({"event_id": f"${len(asked.body)}"})

    async with fake_homeserver(script) as server:
        proxy = FaultProxy(server.url)
        await trio.to_thread.run_sync(proxy.__enter__)
        try:
            yield Both(proxy, server)
        finally:
            await trio.to_thread.run_sync(partial(proxy.__exit__, None, None, None))


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(trust_env=False, timeout=20) as made:
        yield made


async def test_it_passes_on_what_comes_and_what_is_answered(both: Both, client: httpx.AsyncClient) -> None:
    for length in (0, 2, 300_000):
        answer = await both.put(client, "x" * length)
        assert (answer.status_code, answer.json()) == (200, {"event_id": f"${length}"})
    assert [len(asked.body) for asked in both.server.asked] == [0, 2, 300_000]
    assert both.server.asked[0].headers["host"] == f"127.0.0.1:{both.proxy.port}"


async def test_a_lost_answer_is_to_a_request_that_was_carried_out(both: Both, client: httpx.AsyncClient) -> None:
    both.proxy.lose_next_response()
    assert (await client.get(both.proxy.url + "/_matrix/client/v3/sync?timeout=0")).status_code == 200
    with pytest.raises(httpx.RemoteProtocolError):
        await both.put(client)
    assert len(both.server.to("send")) == 1
    assert both.proxy.lost == {"PUT send": 1}
    assert (await both.put(client)).status_code == 200


async def test_one_that_is_silent_answers_when_it_is_back(both: Both, client: httpx.AsyncClient) -> None:
    answers: list[httpx.Response] = []

    async def ask() -> None:
        answers.append(await both.put(client))

    async with trio.open_nursery() as nursery:
        with both.proxy.pause():
            nursery.start_soon(ask)
            await trio.sleep(0.2)
            assert not answers
            assert not both.server.asked
    assert answers[0].status_code == 200


async def test_one_that_is_down_refuses_and_comes_back_on_its_port(both: Both, client: httpx.AsyncClient) -> None:
    failed: list[Exception] = []

    async def poll() -> None:
        try:
            await client.get(both.proxy.url + "/slow")
        except httpx.TransportError as error:
            failed.append(error)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(poll)
        while not both.server.asked:  # noqa: ASYNC110 - until the poll is under way
            await trio.sleep(0.01)
        with both.proxy.pause("down"):
            with pytest.raises(httpx.ConnectError):
                await both.put(client)
    assert len(failed) == 1
    assert (await both.put(client)).status_code == 200


async def test_a_gateway_answers_at_once_for_one_that_is_away(both: Both, client: httpx.AsyncClient) -> None:
    with both.proxy.pause("bad_gateway"):
        began = time.monotonic()
        assert [(await both.put(client)).status_code for _ in range(5)] == [502] * 5
        assert time.monotonic() - began < 30
    assert not both.server.asked
    assert (await both.put(client)).status_code == 200


async def test_a_poll_that_nobody_waits_for_any_more_is_given_up(both: Both, client: httpx.AsyncClient) -> None:
    with trio.move_on_after(0.3):
        await client.get(both.proxy.url + "/slow")
    with trio.fail_after(20):
        while both.proxy._connections:  # noqa: ASYNC110 - it notices by itself
            await trio.sleep(0.01)


async def test_a_homeserver_that_dies_over_a_request_takes_only_that_connection_along(
    client: httpx.AsyncClient,
) -> None:
    async def die(stream: trio.SocketStream) -> None:
        await stream.receive_some()
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset, not an end

    async with trio.open_nursery() as nursery:
        (listener,) = await nursery.start(partial(trio.serve_tcp, die, 0, host="127.0.0.1"))
        proxy = FaultProxy(f"http://127.0.0.1:{listener.socket.getsockname()[1]}")
        await trio.to_thread.run_sync(proxy.__enter__)
        try:
            for _ in range(2):  # the second would find nobody any more
                with pytest.raises(httpx.RemoteProtocolError):
                    await client.get(proxy.url + "/dead")
        finally:
            await trio.to_thread.run_sync(partial(proxy.__exit__, None, None, None))
            nursery.cancel_scope.cancel(reason="the test is done")


async def test_it_may_be_used_from_inside_a_trio_loop_and_outside(both: Both) -> None:
    both.proxy.lose_next_response()
    await trio.to_thread.run_sync(both.proxy.lose_next_response)
    assert both.proxy._lose == {"PUT send": 2}


def test_it_speaks_plain_http_only() -> None:
    with pytest.raises(ArmorclawError, match="plain HTTP") as caught:
        FaultProxy("https://matrix.org")
    assert caught.value.name == "invalid_params"


@pytest.mark.parametrize(
    ("method", "target", "kind"),
    [
        ("PUT", SEND, "PUT send"),
        ("GET", "/_matrix/client/v3/sync?timeout=30000", "GET sync"),
        ("POST", "/_matrix/client/v3/rooms/!a:x/receipt/m.read/$1", "POST receipt"),
        ("POST", "/_matrix/client/v3/join/!a:x", "POST join"),
        ("POST", "/_matrix/client/v3/keys/claim", "POST keys_claim"),
        ("POST", "/_matrix/client/v3/keys/device_signing/upload", "POST keys_device_signing"),
        ("GET", "/", "GET "),
    ],
)
def test_a_request_in_two_words(method: str, target: str, kind: str) -> None:
    assert kind_of(method, target) == kind


@pytest.mark.parametrize("kind", ["send", "PUTsend", "", "PUT send now"])
def test_what_is_no_kind_of_request_is_refused(kind: str) -> None:
    with FaultProxy("http://127.0.0.1:1") as proxy:
        with pytest.raises(ArmorclawError, match="no kind of request"):
            proxy.lose_next_response(kind)


def test_there_is_no_other_way_of_being_away() -> None:
    with FaultProxy("http://127.0.0.1:1") as proxy:
        with pytest.raises(ArmorclawError, match="gone"), proxy.pause("gone"):  # type: ignore[arg-type]
            pass
