"""From the agent's socket to a host and back: what is let through, what is refused, and what is kept of it."""

from __future__ import annotations

import os
import socket
import ssl
from collections.abc import Callable
from ipaddress import IPv4Address, ip_address

import pytest
import structlog
import trio
import trio.testing

from armorclaw.egress import proxy
from armorclaw.egress.door import CONNECTIONS
from armorclaw.egress.ledger import MAX_TARGETS, WINDOW
from armorclaw.errors import ArmorclawError
from armorclaw.hosts import Address
from armorclaw.rpc.unix import PeerCredentials
from tests.egress.conftest import Certificate, Host, House


async def until(condition: Callable[[], bool]) -> None:
    with trio.fail_after(20):
        while not condition():  # noqa: ASYNC110 - what it waits for is in other processes or in a database
            await trio.sleep(0.005)


# -- what is let through


async def test_a_named_host(house: House, host: Host) -> None:
    house.names.answers["api.test"] = [["127.0.0.1"]]
    await house.open(f"api.test:{host.port}", f"127.0.0.1:{host.port}")
    stream, head = await house.connect(f"API.test.:{host.port}")
    assert head == "HTTP/1.1 200 Connection established\r\n\r\n"
    async with stream:
        await stream.send_all(b"hello")
        assert await stream.receive_some() == b"HELLO"
        await stream.send_eof()
        assert await stream.receive_some() == b""
    await until(lambda: len(house.records()) == 2)
    opened, closed = house.records()
    where = {"agent": "ada", "target": f"api.test:{host.port}", "address": "127.0.0.1"}
    assert opened == {"kind": "egress.opened", **where}
    assert closed.pop("ms") >= 0
    assert closed == {"kind": "egress.closed", **where, "up": 5, "down": 5, "why": "closed"}
    assert house.door.counts() == {
        ("ada", "opened"): (1, 10),
        ("ada", "refused"): (0, 0),
        ("ada", "failed"): (0, 0),
    }
    assert set(house.worked) == {"ada"}


async def test_what_is_sent_ahead_arrives(house: House, host: Host) -> None:
    await house.open(f"127.0.0.1:{host.port}")
    async with await house.dial() as stream:
        await stream.send_all(f"CONNECT 127.0.0.1:{host.port} HTTP/1.0\r\n\r\nahead".encode())
        said = b""
        while not said.endswith(b"AHEAD"):
            said += await stream.receive_some()
    assert said.startswith(b"HTTP/1.1 200 ")


async def test_tls_through_it(house: House, certificate: Certificate) -> None:
    """The bridge sees neither what is said nor the key; the client checks the host's certificate itself."""
    house.names.answers["api.test"] = [["127.0.0.1"]]
    listeners = await trio.open_ssl_over_tcp_listeners(0, certificate.context(), host="127.0.0.1")
    port = listeners[0].transport_listener.socket.getsockname()[1]  # type: ignore[attr-defined]

    async def answer(stream: trio.SSLStream[trio.SocketStream]) -> None:
        await stream.receive_some()
        await stream.send_all(b"HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\nsecret")

    house.nursery.start_soon(trio.serve_listeners, answer, listeners)
    await house.open(f"api.test:{port}", f"127.0.0.1:{port}")
    raw, _ = await house.connect(f"api.test:{port}")
    client = ssl.create_default_context(cafile=certificate.path)
    async with trio.SSLStream(raw, client, server_hostname="api.test", https_compatible=True) as stream:
        await stream.send_all(b"GET / HTTP/1.1\r\nHost: api.test\r\n\r\n")
        assert (await stream.receive_some()).endswith(b"secret")


async def test_much_data_arrives_whole(house: House, host: Host) -> None:
    await house.open(f"127.0.0.1:{host.port}")
    stream, _ = await house.connect(f"127.0.0.1:{host.port}")
    sent = os.urandom(1 << 20).hex().encode()
    back = bytearray()
    async with stream, trio.open_nursery() as nursery:

        async def send() -> None:
            await stream.send_all(sent)
            await stream.send_eof()

        nursery.start_soon(send)
        async for data in stream:
            back += data
    assert bytes(back) == sent.upper()
    await until(lambda: house.records()[-1]["kind"] == "egress.closed")
    assert (house.records()[-1]["up"], house.records()[-1]["down"]) == (len(sent), len(sent))


async def test_an_address_that_does_not_answer_and_one_that_does(house: House, host: Host) -> None:
    house.names.answers["two.test"] = [["127.0.0.2", "127.0.0.1"]]
    await house.open(f"two.test:{host.port}", f"127.0.0.0/8:{host.port}")
    stream, head = await house.connect(f"two.test:{host.port}")
    assert head.startswith("HTTP/1.1 200 ")
    await stream.aclose()
    assert house.records()[0]["address"] == "127.0.0.1"


# -- what is refused


async def test_a_host_that_is_not_named(house: House) -> None:
    await house.open("api.test:443")
    line = await house.refused("evil.test:443")
    assert line == '403 armorclaw: evil.test:443 is not allowed; add "evil.test:443" to egress in [agents.ada]'
    assert house.names.asked == []  # not even its name leaves
    assert house.notes == [
        ("egress.refused", {"target": "evil.test:443", "verdict": "not allowed", "why": line[15:]}, "ada")
    ]
    assert house.door.counts()["ada", "refused"] == (1, 0)


@pytest.mark.parametrize(
    "target", ["api.test:80", "a.api.test:443", "127.0.0.1:443", "[::1]:443", "[::ffff:102:304]:443"]
)
async def test_other_ports_and_hosts(target: str, house: House) -> None:
    await house.open("api.test:443")
    assert (await house.refused(target)).startswith(f"403 armorclaw: {target} is not allowed; add ")


@pytest.mark.parametrize("target", ["127.1:443", "0x7f000001:443", "010.0.0.1:443", "a..b:443", "api.test:0"])
async def test_targets_with_two_meanings(target: str, house: House) -> None:
    await house.open("api.test:443")
    assert (await house.refused(target)).startswith("400 ")


@pytest.mark.parametrize(
    "address", ["127.0.0.1", "10.0.0.5", "169.254.169.254", "100.64.0.1", "::1", "::ffff:127.0.0.1", "fd00::1"]
)
async def test_a_name_that_leads_inside(address: str, house: House, host: Host) -> None:
    house.names.answers["api.test"] = [[address]]
    await house.open(f"*.test:{host.port}", f"0.0.0.0/0:{host.port}", f"[::/0]:{host.port}")
    line = await house.refused(f"api.test:{host.port}")
    assert line.startswith("403 ")
    assert line.endswith("if it is meant, add that address to egress, too, in [agents.ada]")
    assert address not in line  # what the network inside looks like is not the agent's to know
    assert ip_address(str(house.notes[0][1]["address"])) == ip_address(address)  # but the operator's
    assert host.connections == 0


async def test_an_everything_pattern_is_no_way_inside(house: House, host: Host) -> None:
    await house.open(f"0.0.0.0/0:{host.port}")
    assert (await house.refused(f"127.0.0.1:{host.port}")).startswith("403 ")
    assert host.connections == 0


async def test_of_several_addresses_only_the_allowed(house: House, host: Host) -> None:
    house.names.answers["api.test"] = [["169.254.169.254", "127.0.0.1", "::1"]]
    await house.open(f"api.test:{host.port}", f"127.0.0.1:{host.port}")
    stream, _ = await house.connect(f"api.test:{host.port}")
    await stream.aclose()
    assert [each["address"] for each in house.records()] == ["127.0.0.1"] * len(house.records())


async def test_rebinding_gains_nothing(house: House, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    """The name is asked for once, and what was checked is what is dialled, whatever the name means by then."""
    dialled: list[str] = []

    async def dial(address: Address, port: int) -> trio.SocketStream:
        dialled.append(f"{address}:{port}")
        assert isinstance(address, IPv4Address)  # no name that could be resolved anew
        raise ConnectionRefusedError(111, "Connection refused")

    house.names.answers["rebind.test"] = [["93.184.216.34"], ["127.0.0.1"]]
    await house.open(f"rebind.test:{host.port}")
    with monkeypatch.context() as patch:
        patch.setattr(proxy, "_dial", dial)
        assert (await house.refused(f"rebind.test:{host.port}")).startswith("502 ")
    assert dialled == [f"93.184.216.34:{host.port}"]
    assert house.names.asked == ["rebind.test"]
    assert (await house.refused(f"rebind.test:{host.port}")).startswith("403 ")
    assert host.connections == 0


@pytest.mark.parametrize(
    "request_line",
    [
        "GET http://api.test/secret?token=t0k3n",
        "POST https://api.test:443/secret?token=t0k3n",
        "GET /secret?token=t0k3n",
        "DELETE /",
    ],
)
async def test_anything_but_connect(request_line: str, house: House) -> None:
    await house.open("api.test:443")
    async with await house.dial() as stream:
        await stream.send_all(f"{request_line} HTTP/1.1\r\nHost: api.test\r\n\r\n".encode())
        said = b"".join([bytes(data) async for data in stream]).decode()
    assert said.startswith("HTTP/1.1 405 armorclaw: only https:// leads out of here")
    assert "t0k3n" not in repr(house.notes) + repr(house.records())
    assert house.notes[0][1]["verdict"] == "method"


async def test_a_name_without_address(house: House) -> None:
    house.names.answers["empty.test"] = [[]]
    await house.open("*.test:443")
    assert await house.refused("nowhere.test:443") == "502 armorclaw: nowhere.test has no address"
    assert await house.refused("empty.test:443") == "502 armorclaw: empty.test has no address"
    assert house.door.counts()["ada", "failed"] == (2, 0)


async def test_nobody_listens(house: House) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    await house.open(f"127.0.0.1:{port}")
    line = await house.refused(f"127.0.0.1:{port}")
    assert line == f"502 armorclaw: 127.0.0.1:{port} cannot be reached: Connection refused"


async def test_no_answer(house: House, host: Host, monkeypatch: pytest.MonkeyPatch) -> None:
    house.names.hangs = True
    monkeypatch.setattr(proxy, "CONNECT_PATIENCE", 0.05)
    await house.open("api.test:443")
    assert await house.refused("api.test:443") == "504 armorclaw: api.test:443 did not answer within 0.05 s"


async def test_who_is_not_of_the_container(house: House, host: Host) -> None:
    seen: list[PeerCredentials] = []

    def nobody(peer: PeerCredentials) -> bool:
        seen.append(peer)
        return False

    house.allow = nobody
    await house.open(f"127.0.0.1:{host.port}")
    stream, head = await house.connect(f"127.0.0.1:{host.port}")
    await stream.aclose()
    assert head.startswith("HTTP/1.1 403 ")
    assert seen[0].pid == os.getpid()
    assert host.connections == 0
    assert house.door.counts()["ada", "opened"] == (0, 0)


# -- bounds


async def test_one_connection_too_many(house: House, host: Host) -> None:
    await house.open(f"127.0.0.1:{host.port}")
    streams = [await house.dial() for _ in range(CONNECTIONS)]
    stream, head = await house.connect(f"127.0.0.1:{host.port}")
    await stream.aclose()
    assert head.startswith("HTTP/1.1 503 ")
    for each in streams:
        await each.aclose()
    await trio.testing.wait_all_tasks_blocked(0.01)
    stream, head = await house.connect(f"127.0.0.1:{host.port}")
    await stream.aclose()
    assert head.startswith("HTTP/1.1 200 ")


async def test_too_many_of_all_agents(house: House, host: Host) -> None:
    house.door._tunnels = trio.Semaphore(1)
    await house.open(f"127.0.0.1:{host.port}")
    stream, _ = await house.connect(f"127.0.0.1:{host.port}")
    assert (await house.refused(f"127.0.0.1:{host.port}")).startswith("503 armorclaw: agents have ")
    await stream.aclose()
    await until(lambda: house.records()[-1]["kind"] == "egress.closed")
    stream, head = await house.connect(f"127.0.0.1:{host.port}")
    assert head.startswith("HTTP/1.1 200 ")
    await stream.aclose()


async def test_refusals_of_a_flood_are_counted(house: House, autojump_clock: trio.testing.MockClock) -> None:
    await house.open("api.test:443")
    for _ in range(50):
        await house.refused("evil.test:443")
    await house.refused("other.test:443")
    assert [content["target"] for _, content, _ in house.notes] == ["evil.test:443", "other.test:443"]
    assert house.records() == []
    await trio.sleep(WINDOW + 15)
    (record,) = house.records()
    assert (record["kind"], record["target"], record["times"]) == ("egress.refused", "evil.test:443", 49)
    await house.refused("evil.test:443")
    assert len(house.notes) == 3
    assert house.door.counts()["ada", "refused"] == (52, 0)


async def test_refusals_of_many_targets_share_an_entry(house: House, autojump_clock: object) -> None:
    await house.open("api.test:443")
    for number in range(MAX_TARGETS + 20):
        await house.refused(f"evil{number}.test:443")
    assert len(house.notes) == MAX_TARGETS + 1
    assert house.notes[-1][1]["target"] == "others"
    house.scope.cancel()
    await house.ended.wait()  # what is left is recorded at the end
    assert [(each["target"], each["times"]) for each in house.records()] == [("others", 19)]


async def test_a_flood_of_connections_is_slowed(house: House, autojump_clock: trio.testing.MockClock) -> None:
    await house.open("api.test:443")
    for _ in range(300):
        await house.refused("evil.test:443")
    assert trio.current_time() >= 4.5  # 200 at once, then 20 a second


# -- the store, and the end


async def test_what_cannot_be_recorded_is_not_made(house: House, host: Host) -> None:
    await house.open(f"127.0.0.1:{host.port}")
    house.inline.down = True
    house.fails = ArmorclawError("unavailable", "the store restarts")
    line = await house.refused(f"127.0.0.1:{host.port}")
    assert line == "503 armorclaw: no connection is made that cannot be recorded"
    assert not host.heard


async def test_an_end_that_cannot_be_recorded_is_logged(house: House, host: Host) -> None:
    await house.open(f"127.0.0.1:{host.port}")
    stream, _ = await house.connect(f"127.0.0.1:{host.port}")
    house.inline.down = True
    with structlog.testing.capture_logs() as logs:
        await stream.aclose()
        await until(lambda: bool(logs))
    assert [(each["event"], each["kind"]) for each in logs] == [("egress not recorded", "egress.closed")]


async def test_its_end_is_the_end_of_all_connections(house: House, host: Host) -> None:
    await house.open(f"127.0.0.1:{host.port}")
    streams = [(await house.connect(f"127.0.0.1:{host.port}"))[0] for _ in range(5)]
    await streams[0].send_all(b"abc")
    await streams[0].receive_some()
    house.scope.cancel()
    with trio.fail_after(20):
        await house.ended.wait()
    for stream in streams:
        assert await stream.receive_some() == b""
        await stream.aclose()
    await until(lambda: host.open == 0)
    closed = [each for each in house.records() if each["kind"] == "egress.closed"]
    assert len(closed) == 5
    assert {each["why"] for each in closed} == {"ended by the bridge"}
    assert sum(each["up"] for each in closed) == 3


@pytest.mark.parametrize("phase", ["resolving", "connecting"])
async def test_an_agent_that_leaves_while_it_waits(
    phase: str, house: House, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    entered, left = trio.Event(), trio.Event()

    async def hang(*_: object) -> trio.SocketStream:
        entered.set()
        try:
            await trio.sleep_forever()
        finally:
            left.set()
        raise AssertionError

    if phase == "connecting":
        monkeypatch.setattr(proxy, "_dial", hang)
    else:
        house.door._resolve = hang  # type: ignore[assignment]
    house.names.answers["api.test"] = [["93.184.216.34"]]
    await house.open("api.test:443")
    stream = await house.dial()
    await stream.send_all(b"CONNECT api.test:443 HTTP/1.1\r\nHost: x\r\n\r\n")
    await entered.wait()
    await stream.aclose()
    with trio.fail_after(20):
        await left.wait()
    assert house.records() == []
