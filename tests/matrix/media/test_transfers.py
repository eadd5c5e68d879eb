"""Files on their way, over real HTTP: nothing is held, everything is counted, and what breaks leaves nothing."""

from __future__ import annotations

import gc
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any, Self

import attrs
import pytest
import trio

from armorclaw.clock import Clock
from armorclaw.errors import ArmorclawError
from armorclaw.matrix.client import MatrixClient
from armorclaw.matrix.media import transfers
from armorclaw.matrix.media.attachment import FileKey, Opening, Sealing
from armorclaw.matrix.media.content import Description, Source
from armorclaw.matrix.media.transfers import PER_ACCOUNT, PER_AGENT, Transfers
from armorclaw.matrix.pools import Pools
from armorclaw.matrix.transport import open_api
from armorclaw.rpc.flow import BYTES_MAX

from .media_server import Download, MediaServer, media_server

MIB = 1024 * 1024
URI = "mxc://hs.test/f"


@attrs.define
class Caller:
    agent: str | None = None
    told: list[tuple[float, float | None]] = attrs.field(factory=list)

    def progress(self, done: float, total: float | None = None, message: str = "") -> None:
        self.told.append((done, total))


@attrs.define
class Allowance:
    used: list[tuple[str, str, int]] = attrs.field(factory=list)
    refuses: bool = False

    def require(self, agent: str, kind: str) -> None:
        if self.refuses:
            raise ArmorclawError("rate_limited", agent, quota=kind)

    def spend(self, agent: str, kind: str, amount: int) -> None:
        self.used.append((agent, kind, amount))


class Pieces:
    """An upload as its caller sends it; `hold` keeps the next piece back until it is set."""

    def __init__(self, pieces: Iterator[bytes], *, hold_at: int = -1) -> None:
        self._pieces = pieces
        self._hold_at = hold_at
        self.taken = 0
        self.held = trio.Event()

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> bytes:
        await trio.lowlevel.checkpoint()
        if self.taken == self._hold_at:
            self.held.set()
            await trio.sleep_forever()
        try:
            piece = next(self._pieces)
        except StopIteration:
            raise StopAsyncIteration from None
        self.taken += 1
        return piece


@attrs.define
class World:
    server: MediaServer
    client: MatrixClient
    transfers: Transfers
    allowance: Allowance
    caller: Caller = attrs.field(factory=Caller)
    got: list[bytes] = attrs.field(factory=list)

    async def upload(
        self, pieces: Iterator[bytes] | Pieces, size: int, *, encrypted: bool = False, caller: Caller | None = None
    ) -> tuple[str, FileKey | None]:
        given = pieces if isinstance(pieces, Pieces) else Pieces(pieces)
        what = Description("ä b.png", "image/png", size, "image")
        return await self.transfers.upload(
            "main", self.client, what, given, caller or self.caller, encrypted=encrypted
        )

    async def download(self, source: Source | None = None, send: Callable[[bytes], Any] | None = None) -> int:
        async def take(piece: bytes) -> None:
            self.got.append(piece)

        return await self.transfers.download("main", self.client, source or Source(URI), send or take, self.caller)

    async def refusal(self, doing: Any) -> ArmorclawError:
        with pytest.raises(ArmorclawError) as caught:
            await doing
        return caught.value

    async def until(self, wanted: Callable[[], bool]) -> None:
        with trio.fail_after(10):
            while not wanted():
                await self.server.changed.wait()


@asynccontextmanager
async def opened(largest: int = 8 * MIB) -> AsyncIterator[World]:
    allowance = Allowance()
    async with media_server() as server, open_api(server.url, Clock()) as api:
        api.token = "secret"
        yield World(server, MatrixClient(api), Transfers(allowance, largest), allowance)


@pytest.fixture
async def world() -> AsyncIterator[World]:
    async with opened() as made:
        yield made


# --- up


async def test_an_upload_as_the_homeserver_sees_it(world: World) -> None:
    assert await world.upload(iter([b"abc", b"", b"def"]), 6) == ("mxc://hs.test/kept", None)
    (upload,) = world.server.uploads
    assert upload.target == "/_matrix/media/v3/upload?filename=%C3%A4%20b.png"
    assert upload.headers["content-length"] == "6"
    assert upload.headers["content-type"] == "image/png"
    assert upload.headers["authorization"] == "Bearer secret"
    assert "transfer-encoding" not in upload.headers
    assert (bytes(upload.data), upload.complete) == (b"abcdef", True)


async def test_an_empty_file(world: World) -> None:
    await world.upload(iter([]), 0)
    assert (world.server.uploads[0].headers["content-length"], world.server.uploads[0].complete) == ("0", True)


async def test_of_an_encrypted_file_the_homeserver_is_told_nothing(world: World) -> None:
    text = b"the secret of the room" * 100
    uri, key = await world.upload(iter([text]), len(text), encrypted=True)
    assert uri == "mxc://hs.test/kept"
    assert key is not None
    (upload,) = world.server.uploads
    assert upload.target == "/_matrix/media/v3/upload"
    assert upload.headers["content-type"] == "application/octet-stream"
    assert b"secret" not in upload.data
    assert "png" not in str(upload.headers)
    opening = Opening(key)
    assert opening.open(bytes(upload.data)) == text
    assert opening.is_whole()


@pytest.mark.parametrize("encrypted", [True, False])
async def test_no_file_is_ever_held_whole(encrypted: bool) -> None:
    size, piece = 48 * MIB, bytes(BYTES_MAX)
    async with opened(largest=size) as world:
        world.server.keep = False
        await world.upload(iter([b"x"]), 1, encrypted=encrypted)  # what is imported first
        gc.collect()
        tracemalloc.start()
        try:
            await world.upload((piece for _ in range(size // len(piece))), size, encrypted=encrypted)
            world.server.files["f"] = Download((piece for _ in range(size // len(piece))), size)
            taken = 0

            async def take(given: bytes) -> None:
                nonlocal taken
                taken += len(given)

            assert await world.download(send=take) == taken == size
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert world.server.uploads[-1].size == size
    assert peak < 6 * MIB


async def test_an_upload_goes_no_faster_than_the_homeserver_takes_it(world: World) -> None:
    """Or a slow homeserver would have the whole file wait here."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    read = trio.Event()

    async def slow(stream: trio.SocketStream) -> None:
        async with stream:
            head = b""
            while b"\r\n\r\n" not in head:
                head += await stream.receive_some(1024)
            if head.startswith(b"GET"):
                body = b'{"versions": ["v1.11"]}'
                head = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: close\r\n\r\n" % len(body)
                await stream.send_all(head + body)
                return
            await read.wait()

    pieces = Pieces(bytes(BYTES_MAX) for _ in range(1000))
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, slow, [listener])
        url = f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        async with open_api(url, Clock()) as api:
            world.client = MatrixClient(api)
            with trio.move_on_after(1):
                await Transfers(Allowance(), 1000 * MIB).upload(
                    "main",
                    world.client,
                    Description("a", "a/b", 1000 * BYTES_MAX, "file"),
                    pieces,
                    world.caller,
                    encrypted=False,
                )
        nursery.cancel_scope.cancel()
    assert 1 <= pieces.taken < 100  # what sockets take at most, some MiB


@pytest.mark.parametrize(("pieces", "why"), [([b"abc"], "only 3 of 6"), ([b"abcdef", b"g"], "more than the 6")])
async def test_another_number_of_bytes_than_announced(world: World, pieces: list[bytes], why: str) -> None:
    error = await world.refusal(world.upload(iter(pieces), 6))
    assert (error.name, error.data["fields"]) == ("invalid_params", ["size"])
    assert why in error.why
    await world.until(lambda: bool(world.server.uploads))
    assert not world.server.uploads[0].complete


async def test_all_bytes_without_an_end_are_no_file(world: World) -> None:
    """The last are held back until the caller has said that they are: it may be cancelled instead."""
    pieces = Pieces(iter([b"abc", b"def"]), hold_at=2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.upload, pieces, 6)
        await pieces.held.wait()
        await world.until(lambda: bool(world.server.uploads))
        nursery.cancel_scope.cancel()
    assert not world.server.uploads[0].complete


async def test_an_upload_whose_caller_fails_is_cut_off(world: World) -> None:
    def failing() -> Iterator[bytes]:
        yield b"abc"
        raise ArmorclawError("invalid_params", "the upload was cut short")

    assert (await world.refusal(world.upload(failing(), 6))).what == "the upload was cut short"
    await world.until(lambda: bool(world.server.uploads))
    assert not world.server.uploads[0].complete
    assert await world.upload(iter([b"abc"]), 3)  # and the next one has its turn


async def test_a_cancelled_upload_leaves_nothing(world: World) -> None:
    for _ in range(PER_ACCOUNT + 1):  # each gives its place back
        pieces = Pieces(iter([b"abc"] * 3), hold_at=2)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(world.upload, pieces, 9)
            await pieces.held.wait()
            await world.until(lambda: world.server.uploads[-1].size == 3)
            nursery.cancel_scope.cancel()
        assert not world.server.uploads[-1].complete
    gc.collect()  # and no generator left half-way, which would be a warning
    assert await world.upload(iter([b"abc"]), 3)


async def test_the_homeservers_own_limit_is_known_before_a_byte_goes(world: World) -> None:
    world.server.largest = 5
    error = await world.refusal(world.upload(iter([b"abcdef"]), 6))
    assert (error.name, error.data["limit"]) == ("too_large", 5)
    assert "homeserver's limit" in error.hint
    await world.upload(iter([b"abcde"]), 5)
    assert len(world.server.uploads) == 1
    assert len(world.server.asked) == 1  # asked once


async def test_the_bridges_limit(world: World) -> None:
    error = await world.refusal(world.upload(iter([]), 8 * MIB + 1))
    assert (error.name, error.data["limit"]) == ("too_large", 8 * MIB)
    assert "media.max_size" in error.hint
    assert not world.server.asked


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        ((413, {"errcode": "M_TOO_LARGE", "error": "big"}), "too_large"),
        ((403, {"errcode": "M_FORBIDDEN", "error": "no"}), "matrix_refused"),
        ((429, {"errcode": "M_LIMIT_EXCEEDED", "error": "slow", "retry_after_ms": 1500}), "unavailable"),
        ((502, {}), "unavailable"),
        ((200, {}), "matrix_refused"),
        ((200, {"content_uri": "https://elsewhere.test/a"}), "matrix_refused"),
        ((200, {"content_uri": ["mxc://a/b"]}), "matrix_refused"),
    ],
)
async def test_what_the_homeserver_may_say(world: World, answer: Any, name: str) -> None:
    world.server.answer = answer
    error = await world.refusal(world.upload(iter([b"abc"]), 3))
    assert error.name == name
    assert error.data.get("retry_after") == (1.5 if answer[0] == 429 else None)
    assert error.hint


async def test_a_caller_that_stops_sending(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfers, "PIECE_WAIT", 0.05)
    error = await world.refusal(world.upload(Pieces(iter([b"abc"]), hold_at=1), 6))
    assert error.name == "timed_out"
    assert not world.server.uploads[0].complete


# --- down


async def test_a_file_in_pieces(world: World) -> None:
    data = bytes(range(256)) * 3000
    world.server.files["f"] = Download([data[:100_000], data[100_000:]], len(data))
    assert await world.download() == len(data)
    assert b"".join(world.got) == data
    assert [len(piece) for piece in world.got] == [BYTES_MAX] * 3 + [len(data) - 3 * BYTES_MAX]
    ((target, headers),) = world.server.asked
    assert target == "/_matrix/client/v1/media/download/hs.test/f"
    assert headers["authorization"] == "Bearer secret"
    assert headers["accept-encoding"] == "identity"


async def test_a_file_whose_length_nobody_says(world: World) -> None:
    world.server.files["f"] = Download([b"abc", b"def"])
    assert await world.download() == 6
    assert world.got == [b"abcdef"]


async def test_an_old_homeserver_is_asked_as_of_old_and_told_no_token(world: World) -> None:
    world.server.old = True
    world.server.files["f"] = Download([b"abc"], 3)
    assert await world.download() == await world.download() == 3
    targets = [target for target, _ in world.server.asked]
    assert targets == ["/_matrix/media/v3/download/hs.test/f?allow_redirect=false"] * 2
    assert all("authorization" not in headers for _, headers in world.server.asked)


async def test_an_encrypted_file(world: World) -> None:
    data = bytes(range(256)) * 2000
    sealing = Sealing()
    sealed = sealing.seal(data)
    world.server.files["f"] = Download([sealed[:70_000], sealed[70_000:]], len(sealed))
    assert await world.download(Source(URI, sealing.key())) == len(data)
    assert b"".join(world.got) == data


@pytest.mark.parametrize("size", [10, BYTES_MAX, 3 * BYTES_MAX, 3 * BYTES_MAX + 1])
async def test_of_a_damaged_file_the_end_is_never_given(world: World, size: int) -> None:
    sealing = Sealing()
    sealed = bytearray(sealing.seal(bytes(size)))
    sealed[5] ^= 1
    world.server.files["f"] = Download([bytes(sealed)], size)
    error = await world.refusal(world.download(Source(URI, sealing.key())))
    assert error.name == "media_damaged"
    assert sum(map(len, world.got)) < size
    assert sum(map(len, world.got)) == (size - 1) // BYTES_MAX * BYTES_MAX


async def test_a_truncated_file_is_not_taken_for_a_whole_one(world: World) -> None:
    world.server.files["f"] = Download([b"abc"], 10, cut=True)
    assert (await world.refusal(world.download())).name == "unavailable"
    assert world.got == []
    sealing = Sealing()
    world.server.files["f"] = Download([sealing.seal(bytes(100))[:50]], 50)
    assert (await world.refusal(world.download(Source(URI, sealing.key())))).name == "media_damaged"
    assert world.got == []


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_no_redirect_is_followed(world: World, status: int) -> None:
    async with media_server() as elsewhere:
        target = {"Location": f"{elsewhere.url}/steal"}
        world.server.files["f"] = Download((), 0, status=status, headers=target)
        error = await world.refusal(world.download())
    assert error.name == "matrix_refused"
    assert "elsewhere" in error.why
    assert error.hint
    assert elsewhere.asked == []


async def test_one_that_is_not_there(world: World) -> None:
    assert (await world.refusal(world.download())).name == "not_found"


async def test_one_that_comes_packed(world: World) -> None:
    world.server.files["f"] = Download([b"x"], 1, headers={"Content-Encoding": "gzip"})
    error = await world.refusal(world.download())
    assert error.name == "matrix_refused"
    assert error.hint


async def test_a_file_that_says_it_is_too_large(world: World) -> None:
    world.server.files["f"] = Download((bytes(MIB) for _ in range(100)), 100 * MIB)
    assert (await world.refusal(world.download())).name == "too_large"
    assert (await world.refusal(world.download(Source(URI, size=8 * MIB + 1)))).name == "too_large"
    assert len(world.server.asked) == 1  # the second said so itself


async def test_a_file_that_goes_on_and_on(world: World) -> None:
    def endless() -> Iterator[bytes]:
        while True:
            yield bytes(64 * 1024)

    world.server.files["f"] = Download(endless())
    assert (await world.refusal(world.download())).name == "too_large"
    assert sum(map(len, world.got)) <= 8 * MIB


async def test_a_download_goes_no_faster_than_its_caller_takes_it(world: World) -> None:
    world.server.files["f"] = Download((bytes(64 * 1024) for _ in range(120)), 120 * 64 * 1024)
    first = trio.Event()

    async def stuck(piece: bytes) -> None:
        first.set()
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(world.download, None, stuck)
        await first.wait()
        before = -1
        with trio.fail_after(10):
            while before != world.server.sent:  # until nothing moves
                before = world.server.sent
                await trio.sleep(0.1)
        nursery.cancel_scope.cancel()
    assert world.server.sent < 100 * 64 * 1024
    gc.collect()


async def test_a_caller_that_takes_nothing_is_given_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfers, "PIECE_WAIT", 0.05)

    async def stuck(piece: bytes) -> None:
        await trio.sleep_forever()

    world.server.files["f"] = Download([b"abc"], 3)
    assert (await world.refusal(world.download(send=stuck))).name == "timed_out"


async def test_a_homeserver_that_dribbles_is_given_up(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transfers, "WHOLE", 0.3)
    world.server.files["f"] = Download((b"x" for _ in range(1000)), 1000, pause=0.02)
    with trio.fail_after(5):
        assert (await world.refusal(world.download())).name == "timed_out"


@pytest.mark.parametrize("at", range(5))
async def test_a_cancelled_download_leaves_nothing(world: World, at: int) -> None:
    """Neither a generator left half-way, nor a place, nor a connection that others would get the rest from."""
    world.server.files["f"] = Download((bytes(BYTES_MAX) for _ in range(6)), 6 * BYTES_MAX)
    world.server.files["g"] = Download([b"abc"], 3)
    with trio.CancelScope() as scope:

        async def take(piece: bytes) -> None:
            world.got.append(piece)
            if len(world.got) > at:
                scope.cancel()
            await trio.lowlevel.checkpoint()

        await world.download(send=take)
    assert scope.cancelled_caught
    assert len(world.got) == at + 1
    world.got.clear()
    gc.collect()
    assert await world.download(Source("mxc://hs.test/g")) == 3
    assert world.got == [b"abc"]


async def test_what_the_caller_raises_comes_out(world: World) -> None:
    world.server.files["f"] = Download((bytes(BYTES_MAX) for _ in range(6)), 6 * BYTES_MAX)

    async def broken(piece: bytes) -> None:
        raise ArmorclawError("unavailable", "the caller has left")

    assert (await world.refusal(world.download(send=broken))).what == "the caller has left"
    gc.collect()


# --- who may


async def test_what_an_agent_uses_is_counted_either_way(world: World) -> None:
    world.caller.agent = "echo"
    await world.upload(iter([b"abc", b"def"]), 6)
    world.server.files["f"] = Download([b"abcd"], 4)
    await world.download()
    assert world.allowance.used == [("echo", "media", 3), ("echo", "media", 3), ("echo", "media", 4)]
    world.allowance.refuses = True
    assert (await world.refusal(world.download())).name == "rate_limited"
    assert (await world.refusal(world.upload(iter([]), 0))).name == "rate_limited"
    world.caller.agent = None
    await world.download()  # operators have no quota
    assert len(world.allowance.used) == 3


@pytest.mark.parametrize(("agents", "most"), [([None] * 9, PER_ACCOUNT), (["echo"] * 9, PER_AGENT)])
async def test_how_many_at_once(world: World, agents: list[str | None], most: int) -> None:
    refused: list[ArmorclawError] = []
    async with trio.open_nursery() as nursery:

        async def one(agent: str | None) -> None:
            try:
                await world.upload(Pieces(iter([b"a"]), hold_at=1), 2, caller=Caller(agent))
            except ArmorclawError as error:
                refused.append(error)

        for agent in agents:
            nursery.start_soon(one, agent)
        await world.until(lambda: len(world.server.uploads) == most and len(refused) == len(agents) - most)
        nursery.cancel_scope.cancel()
    assert {error.name for error in refused} == {"queue_full"}


async def test_agents_leave_each_other_room(world: World) -> None:
    async with trio.open_nursery() as nursery:
        for _ in range(PER_AGENT):
            nursery.start_soon(world.upload, Pieces(iter([b"a"]), hold_at=1), 2)
        await world.until(lambda: len(world.server.uploads) == PER_AGENT)
        assert await world.upload(iter([b"a"]), 1, caller=Caller("other"))
        nursery.cancel_scope.cancel()


async def test_progress_is_told_now_and_then(world: World) -> None:
    size = 3 * MIB
    await world.upload((bytes(MIB // 8) for _ in range(24)), size)
    assert world.caller.told == [(n * MIB, size) for n in (1, 2, 3)]


async def test_what_a_homeserver_takes_is_asked_anew_with_another_login(world: World) -> None:
    await world.upload(iter([b"a"]), 1)
    async with open_api(world.server.url, Clock(), Pools()) as api:
        world.client = MatrixClient(api)
        world.server.largest = 0
        assert (await world.refusal(world.upload(iter([b"a"]), 1))).name == "too_large"
