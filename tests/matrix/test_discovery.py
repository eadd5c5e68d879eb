"""From a server name to a homeserver: over real TLS on loopback, with names that only the test resolves."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from structlog.testing import capture_logs

from armorclaw.clock import Clock
from armorclaw.config import Account
from armorclaw.matrix.discovery import MAX_ANSWER, DiscoveryError, discover, read_base_url
from armorclaw.matrix.outside import Outside
from armorclaw.matrix.pools import Pools
from armorclaw.matrix.status import SessionState
from armorclaw.structure import Secret
from tests.faults.town import PASSWORD, Town

from .certificates import Authority
from .conftest import Bench, running, until
from .fake_homeserver import Asked, FakeHomeserver, Raw, Reply, fake_homeserver

NAME, WHERE = "town.test", "matrix.town.test"
WELL_KNOWN = {"m.homeserver": {"base_url": f"https://{WHERE}"}}


@attrs.define
class Names(trio.abc.HostnameResolver):
    """The system's resolver in this test: hosts, and where they really are. `asked` remembers what was looked up."""

    known: dict[str, list[tuple[str, int]]]
    asked: list[str] = attrs.field(factory=list)
    hold: trio.Event | None = None
    """Set when it is asked, and then it never answers."""

    async def getaddrinfo(self, host: Any, port: Any, *_: Any, **__: Any) -> Any:
        await trio.lowlevel.checkpoint()
        if self.hold is not None:
            self.hold.set()
            await trio.sleep_forever()
        name = host.decode() if isinstance(host, bytes) else host
        self.asked.append(name)
        if name not in self.known:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", address) for address in self.known[name]]

    async def getnameinfo(self, *_: Any) -> Any:
        raise NotImplementedError


@attrs.define
class Net:
    """A town behind TLS that is both the server name and its homeserver. `well_known` is what its file says."""

    town: Town
    fake: FakeHomeserver
    names: Names
    well_known: Reply | Raw = attrs.field(factory=lambda: Reply(WELL_KNOWN))
    versions: Reply | Raw | None = None

    async def meddle(self, asked: Asked) -> Reply | Raw | None:
        await trio.lowlevel.checkpoint()
        if asked.path == "/.well-known/matrix/client":
            return self.well_known
        return self.versions if asked.path.endswith("/versions") else None

    async def without_homeserver(self, asked: Asked) -> Reply | Raw:
        """It is no longer where it was."""
        return Raw(b"") if asked.headers["host"] == WHERE else await self.town.answer(asked)


@pytest.fixture
async def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Net]:
    authority = Authority(tmp_path)
    monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
    town = Town()
    async with fake_homeserver(town.answer, authority.server(NAME, WHERE)) as fake:
        here = ("127.0.0.1", int(fake.url.rpartition(":")[2]))
        net = Net(town, fake, Names({NAME: [here], WHERE: [here], "other.test": [here]}))
        town.meddle = net.meddle
        trio.socket.set_custom_hostname_resolver(net.names)
        yield net


async def find(name: str = NAME) -> str:
    return await discover(name, Clock(), Pools(), allow_private=True)


async def refused(passing: bool, match: str) -> None:
    with pytest.raises(DiscoveryError, match=match) as caught:
        await find()
    assert caught.value.passing is passing


async def test_what_the_file_says_is_asked_for_its_versions(net: Net) -> None:
    assert await find() == f"https://{WHERE}"
    assert [(asked.path, asked.headers["host"]) for asked in net.fake.asked] == [
        ("/.well-known/matrix/client", NAME),
        ("/_matrix/client/versions", WHERE),
    ]
    assert not any("authorization" in asked.headers for asked in net.fake.asked)


async def test_a_name_that_says_nothing_is_its_own_homeserver(net: Net) -> None:
    net.well_known = Reply(b"no such page", 404)
    assert await find() == f"https://{NAME}"


ODD_FILES: dict[str, tuple[Reply | Raw, bool, str]] = {
    "elsewhere": (Reply(b"", 302, {"location": f"https://{WHERE}/.well-known/matrix/client"}), False, "HTTP 302"),
    "forbidden": (Reply(b"", 403), False, "HTTP 403"),
    "away": (Reply(b"<html>", 502), True, "HTTP 502"),
    "too often": (Reply(b"", 429), True, "HTTP 429"),
    "cut": (Raw(b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n{"), True, "connection lost"),
    "nothing": (Raw(b""), True, "connection lost"),
    "a page": (Reply(b"<html>"), False, "names no homeserver"),
    "a list": (Reply([]), False, "names no homeserver"),
    "without it": (Reply({"m.identity_server": {}}), False, "names no homeserver"),
    "deep": (Reply(b"[" * 50_000), False, "names no homeserver"),
    "long": (Reply({**WELL_KNOWN, "x": "x" * MAX_ANSWER}), False, "larger than"),
    "endless": (Raw(b"HTTP/1.1 200 OK\r\n\r\n" + b" " * MAX_ANSWER * 4), False, "larger than"),
    "a number": (Reply({"m.homeserver": {"base_url": 5}}), False, "no URL"),
}


@pytest.mark.parametrize("name", sorted(ODD_FILES))
async def test_odd_files(net: Net, name: str) -> None:
    net.well_known, passing, match = ODD_FILES[name]
    await refused(passing, match)
    assert len(net.fake.asked) == 1, "nobody else was asked"


@pytest.mark.parametrize(
    "url",
    [
        "http://matrix.town.test",
        "matrix.town.test",
        "ftp://matrix.town.test",
        "https://",
        "https://user@matrix.town.test",
        "https://@matrix.town.test",
        "https://matrix.town.test?x=y",
        "https://matrix.town.test#x",
        "https://matrix.town.test:0",
        "https://matrix.town.test:99999",
        "https://matrix town.test",
        "https://matrix.town.test/\n",
        "https://mätrix.town.test",
        "https://" + "x" * 3000,
        "https://[::1",
        "javascript:alert(1)",
        "file:///etc/passwd",
        "",
    ],
)
def test_urls_that_are_none_of_a_homeserver(url: str) -> None:
    with pytest.raises(DiscoveryError) as caught:
        read_base_url(json.dumps({"m.homeserver": {"base_url": url}}).encode(), "there")
    assert not caught.value.passing


@pytest.mark.parametrize("url", ["https://a.test", "https://a.test/", "https://a.test:8448", "https://a.test/sub/"])
def test_urls_of_homeservers(url: str) -> None:
    assert read_base_url(json.dumps({"m.homeserver": {"base_url": url}}).encode(), "") == url.rstrip("/")


ODD_VERSIONS: dict[str, tuple[Reply | Raw, bool, str]] = {
    "none": (Reply({}), True, "names none"),
    "of old": (Reply({"versions": ["r0.6.1"]}), False, "no version of Matrix"),
    "a page": (Reply(b"<html>"), True, "not JSON"),
    "elsewhere": (Reply(b"", 301, {"location": "https://other.test/_matrix/client/versions"}), True, "HTTP 301"),
    "no homeserver": (Reply({"errcode": "M_UNRECOGNIZED", "error": "what?"}, 404), False, "M_UNRECOGNIZED"),
}


@pytest.mark.parametrize("name", sorted(ODD_VERSIONS))
async def test_what_does_not_say_what_it_speaks_is_no_homeserver(net: Net, name: str) -> None:
    net.versions, passing, match = ODD_VERSIONS[name]
    await refused(passing, match)
    assert len(net.fake.asked) == 2


async def test_a_certificate_of_another_name_is_refused(net: Net) -> None:
    with capture_logs(), pytest.raises(DiscoveryError, match=r"[Cc]ertificate"):
        await find("other.test")
    assert net.fake.asked == []


async def test_a_name_that_nobody_knows_may_be_known_later(net: Net) -> None:
    del net.names.known[NAME]
    await refused(True, "cannot connect")


# -- addresses


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "10.1.2.3", "169.254.169.254", "192.168.1.1", "100.64.0.1", "0.0.0.0", "224.0.0.1",
        "::1", "fe80::1", "fe80::1%eth0", "fd00::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::",
    ],
)  # fmt: skip
async def test_a_name_must_not_lead_inside(net: Net, address: str) -> None:
    net.names.known[NAME] = [(address, 443)]
    with pytest.raises(DiscoveryError, match="no address of the Internet") as caught:
        await discover(NAME, Clock(), Pools())
    assert caught.value.passing, "names change"
    assert net.fake.asked == []


async def test_nor_must_the_homeserver_that_it_names(net: Net) -> None:
    outside = Outside(check=lambda address: address == "127.0.0.9")
    net.names.known[WHERE] = [("127.0.0.9", 443)]
    net.names.known[NAME].insert(0, ("127.0.0.9", 443))
    with pytest.raises(DiscoveryError, match=f"https://{WHERE}: .*no address of the Internet"):
        await discover(NAME, Clock(), Pools(outside=outside))
    assert [asked.path for asked in net.fake.asked] == ["/.well-known/matrix/client"]


async def test_each_connection_checks_anew_what_the_name_means(net: Net) -> None:
    """DNS rebinding: the name means an address outside when it is checked, and one inside a moment later."""
    pools = Pools(outside=Outside(check=lambda address: address == "127.0.0.9"))
    assert await discover(NAME, Clock(), pools) == f"https://{WHERE}"
    net.names.known[WHERE] = [("127.0.0.9", 443)]
    with pytest.raises(DiscoveryError, match="no address of the Internet"):
        await discover(NAME, Clock(), pools)


async def test_the_next_address_is_tried(net: Net) -> None:
    (here,) = net.names.known[NAME]
    with socket.socket() as unused:
        unused.bind(("127.0.0.3", 0))
        closed = unused.getsockname()
        outside = Outside(check=lambda address: False)
        net.names.known |= {NAME: [closed, here], WHERE: [closed, here]}
        assert await discover(NAME, Clock(), Pools(outside=outside)) == f"https://{WHERE}"
        net.names.known[NAME] = [closed] * 3
        with pytest.raises(DiscoveryError, match="cannot connect"):
            await discover(NAME, Clock(), Pools(outside=outside))


# -- sessions


def account(**more: Any) -> Account:
    given = {
        "homeserver": NAME,
        "user": "bot",
        "password": Secret(PASSWORD),
        "allow_private": True,
        "encryption": False,
    }
    return Account(**{**given, **more})


async def test_a_session_finds_its_homeserver_and_remembers_where_it_was(net: Net, bench: Bench) -> None:
    room = net.town.add_room("!room:town")
    bench.grants.set("echo", "main", [room])
    async with running(bench.accounts(account())):
        await net.town.synced.wait()
        net.town.say(room, "hello")
        await until(lambda: bench.messages() == ["hello"])
    net.well_known = Reply(b"<html>", 502)
    net.town.say(room, "while you were away")
    with capture_logs() as logs:
        async with running(bench.accounts(account(password=None))):
            await until(lambda: bench.messages() == ["hello", "while you were away"])
    assert "discovery failed, using what is known" in [entry["event"] for entry in logs]


async def test_a_session_waits_for_a_name_that_cannot_be_asked(net: Net, bench: Bench) -> None:
    net.well_known = Reply(b"<html>", 502)
    async with running(bench.accounts(account()), connected=False) as accounts:
        status = accounts.status()
        assert status is not None
        await until(lambda: status.state is SessionState.WAITING)
        assert "502" in status.reason
        net.well_known = Reply(WELL_KNOWN)
        await until(lambda: status.connected)


@pytest.mark.parametrize("private", [True, False])
async def test_a_session_that_a_person_must_help(net: Net, bench: Bench, private: bool) -> None:
    net.well_known = Reply(b"<html>")
    async with running(bench.accounts(account(allow_private=private)), connected=False) as accounts:
        status = accounts.status()
        assert status is not None
        wanted = SessionState.LOGGED_OUT if private else SessionState.WAITING
        await until(lambda: status.state is wanted)
        assert ("names no homeserver" if private else "allow_private") in status.reason


async def test_a_homeserver_that_moved_is_followed(net: Net, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("armorclaw.matrix.session.MOVED_SECONDS", 0.3)
    net.town.hold_longest = 0.2
    async with running(bench.accounts(account())) as accounts:
        status = accounts.status()
        assert status is not None
        net.fake.script = net.without_homeserver
        await until(lambda: status.state is SessionState.WAITING)
        net.well_known = Reply({"m.homeserver": {"base_url": f"https://{NAME}"}})
        await until(lambda: status.connected)
        assert await bench.db.read(where) == f"https://{NAME}"


def where(db: Any) -> Any:
    return db.execute("SELECT base_url FROM accounts").fetchone()[0]


# -- the end of it

HALF = b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{ " + b" " * 500


@pytest.mark.parametrize("phase", ["name", "handshake", "file", "half the file", "versions"])
async def test_discovery_ends_at_once_in_the_middle_of(net: Net, phase: str) -> None:
    reached = trio.Event()

    async def hold(asked: Asked) -> Reply | Raw | None:
        await trio.lowlevel.checkpoint()
        if (phase == "versions") is not asked.path.endswith("/versions"):
            return await net.meddle(asked)
        reached.set()
        return Raw(HALF if phase == "half the file" else b"", hold=60.0)

    async def silent(stream: trio.SocketStream) -> None:
        async with stream:
            reached.set()
            await trio.sleep_forever()

    net.town.meddle = hold
    async with trio.open_nursery() as nursery:
        if phase == "handshake":
            listeners = await nursery.start(trio.serve_tcp, silent, 0)
            net.names.known[NAME] = [("127.0.0.1", listeners[0].socket.getsockname()[1])]
        if phase == "name":
            net.names.hold = reached
        with trio.CancelScope() as scope:
            async with trio.open_nursery() as inner:
                inner.start_soon(find)
                await reached.wait()
                await trio.sleep(0.02)
                began = time.perf_counter()
                scope.cancel(reason="the phase is reached")
        assert time.perf_counter() - began < 20
        nursery.cancel_scope.cancel(reason="measured")
