"""The list of bad input (vectors.py) over real sockets, each with its one answer; and the same cut at every place."""

from __future__ import annotations

import ast
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from armorclaw.errors import ERRORS
from armorclaw.rpc import outgoing
from armorclaw.rpc.codec import MsgspecCodec
from armorclaw.rpc.framing import PARSE_ERROR, Frame, FrameError, Frames
from armorclaw.rpc.jsoncodec import Codec, JsonCodec
from armorclaw.rpc.jsonrpc import Request
from armorclaw.rpc.registry import EVERYONE, Registry
from armorclaw.testing.handles import BridgeProcess
from tests.rpc.conftest import House, Raw, call
from tests.rpc.test_framing import cut, values
from tests.rpc.test_jsonrpc import EXAMPLES, Server, brief
from tests.rpc.test_unix import listening
from tests.rpc.vectors import ELSEWHERE, REFUSALS, VECTORS, Refusal, Vector
from tests.test_roles import leaks

ROOT = Path(__file__).parent.parent.parent

PROBE = {"jsonrpc": "2.0", "id": "probe", "method": "echo", "params": {"text": "still here"}}
ALIVE = ("probe", {"text": "still here"})

ERROR_BYTES = 8192
"""No error is longer, whatever was sent."""


def name_of(row: Vector | Refusal) -> str:
    return f"{row.number} {row.name if isinstance(row, Vector) else row.method}"


def judged(answer: Any, sent: bytes) -> Any:
    """An answer without the words of its error, once those are found to be in order."""
    for each in answer if isinstance(answer, list) else [answer]:
        if "error" in each:
            in_order(each["error"], sent)
    return brief(answer)


def in_order(error: dict[str, Any], sent: bytes) -> None:
    assert error.keys() == {"code", "message", "data"}
    kind = ERRORS[error["data"]["name"]]
    assert (error["code"], error["data"]["retryable"]) == (kind.code, kind.retryable)
    assert kind.name != "internal"
    text = json.dumps(error)
    assert leaks(text, sent.decode("latin-1")) == []
    assert len(text) < ERROR_BYTES


# -- the list


def test_every_number_has_its_row_or_its_test() -> None:
    rows = {vector.number for vector in VECTORS} | {refusal.number for refusal in REFUSALS}
    assert rows | ELSEWHERE.keys() == set(range(1, 117))


@pytest.mark.parametrize("where", sorted(set(ELSEWHERE.values())))
def test_what_is_shown_elsewhere_is_there(where: str) -> None:
    file, _, name = where.partition("::")
    tree = ast.parse((ROOT / file).read_text(encoding="utf-8"))
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    assert name in {node.name for node in ast.walk(tree) if isinstance(node, functions)}


# -- groups A to D, over a socket


@pytest.mark.parametrize("vector", VECTORS, ids=name_of)
async def test_one_answer(vector: Vector, house: House, short: Path) -> None:
    answers = []
    async with listening(short / "s", house), await trio.open_unix_socket(short / "s") as stream:
        raw = Raw(stream)
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def write() -> None:
                try:
                    await raw.send(vector.sent)
                    if not vector.closes and not vector.ends:
                        await raw.send("\n", PROBE)
                    if vector.ends:
                        await stream.send_eof()
                except trio.BrokenResourceError:
                    assert vector.closes

            if vector.ends or vector.closes:
                answers = [judged(answer, vector.sent) for answer in await raw.rest_lines()]
            else:
                while ALIVE not in answers:
                    answers.append(judged(await raw.line(), vector.sent))
                assert answers.pop() == ALIVE
    assert answers == vector.answers
    assert house.seen == []


@pytest.mark.parametrize("vector", [row for row in VECTORS if len(row.sent) <= 200], ids=name_of)
async def test_one_answer_byte_by_byte(vector: Vector, house: House, short: Path) -> None:
    """Each byte in a read of its own."""
    async with listening(short / "s", house), await trio.open_unix_socket(short / "s") as stream:
        raw = Raw(stream)
        try:
            for place in range(len(vector.sent)):
                await raw.send(vector.sent[place : place + 1])
                await trio.testing.wait_all_tasks_blocked()
            if not vector.closes:
                await stream.send_eof()
        except trio.BrokenResourceError:
            assert vector.closes
        assert [judged(answer, vector.sent) for answer in await raw.rest_lines()] == vector.answers


# -- the same without a socket, cut wherever it can be


class Answering(Server):
    """As a peer does it: params that hold a value out of range are the caller's fault."""

    def _answer(self, request: Request) -> bytes:
        try:
            return super()._answer(request)
        except ValueError:
            return self.core.error(request, {"code": PARSE_ERROR, "message": "m"})


def heard(codec: type[Codec], pieces: list[bytes], ends: bool) -> tuple[list[Any], bool]:
    """All answers, and whether the stream was given up."""
    server = Answering(codec())
    return [brief(answer) for answer in server.hear(*pieces, *([] if ends else [PROBE_LINE]))], server.closed


PROBE_LINE = b"\n" + json.dumps(PROBE).encode() + b"\n"


def places_in(size: int) -> list[int]:
    """Every place, where there are few; else the first and last, and those around the sizes that reads come in."""
    if size <= 400:
        return list(range(size + 1))
    edges = [0, 1, 2, 63, 64, 65, 4095, 4096, 4097, 65535, 65536, 65537]
    return [place for place in [*edges, size // 2, *range(size - 3, size + 1)] if place <= size]


@pytest.mark.parametrize("vector", VECTORS, ids=name_of)
@pytest.mark.parametrize("codec", [MsgspecCodec, JsonCodec])
def test_wherever_it_is_cut(vector: Vector, codec: type[Codec]) -> None:
    whole = heard(codec, [vector.sent], vector.ends)
    answers, closed = whole
    if codec is MsgspecCodec:
        expected = vector.answers if vector.ends or vector.closes else [*vector.answers, ALIVE]
        assert codes(answers) == codes(expected)
        assert closed is vector.closes
    for place in places_in(len(vector.sent)):
        assert heard(codec, cut(vector.sent, place), vector.ends) == whole
    if len(vector.sent) <= 400:
        assert heard(codec, cut(vector.sent, *range(1, len(vector.sent))), vector.ends) == whole


def codes(answers: list[Any]) -> list[Any]:
    """What both this server and a peer say: results of "echo" differ where there are no params."""
    return [
        codes(each) if isinstance(each, list) else each if isinstance(each[1], int) else each[0] for each in answers
    ]


TRIPLE = b'{"jsonrpc":"2.0","id":1,"method":"echo"}\r\n[1,] {"a":"\\\\\\""}5 \x00\n"\xc3\xa9"\n'


def test_cut_at_any_two_places() -> None:
    whole = heard(MsgspecCodec, [TRIPLE], True)
    assert [answer[1] for answer in whole[0]] == [None, PARSE_ERROR, -32600]
    for first in range(len(TRIPLE)):
        for second in range(first, len(TRIPLE)):
            assert heard(MsgspecCodec, cut(TRIPLE, first, second), True) == whole


# -- any bytes


@st.composite
def lines(draw: st.DrawFn) -> tuple[bytes, list[bytes | None]]:
    """Lines with a value each, or with one that is cut off by a byte which cannot follow: what a plain decoder makes
    of them is known by how they were made. None stands for one parse error."""
    stream = b""
    expected: list[bytes | None] = []
    for value in draw(st.lists(values, max_size=6)):
        text = json.dumps(value, ensure_ascii=draw(st.booleans())).encode("utf-8", "surrogatepass")
        if draw(st.booleans()):
            stream += text + b"\n"
            expected.append(text)
        else:
            rubbish = draw(st.binary(max_size=10)).replace(b"\n", b"").replace(b'"', b"")
            stream += text[: draw(st.integers(0, len(text) - 1))] + b"\0" + rubbish + b"\n"
            expected.append(None)
    return stream, expected


@given(lines(), st.data())
def test_a_bad_line_costs_one_error_and_nothing_else(
    made: tuple[bytes, list[bytes | None]], data: st.DataObject
) -> None:
    stream, expected = made
    frames = Frames()
    places = data.draw(st.lists(st.integers(0, len(stream)), max_size=6))
    found: list[Frame] = [frame for piece in cut(stream, *places) for frame in frames.feed(piece)]
    assert [None if isinstance(frame, FrameError) else frame for frame in [*found, *frames.eof()]] == expected


anything = st.one_of(
    st.binary(max_size=200),
    st.lists(st.sampled_from([row.sent for row in VECTORS if len(row.sent) <= 100]), max_size=6).map(b"\n".join),
    st.text('{}[]",:\\ntru1e-.\n \x00é', max_size=100).map(str.encode),
)


@given(anything, st.data())
def test_any_bytes_in_any_pieces(sent: bytes, data: st.DataObject) -> None:
    """They never crash, each answer is a line of ASCII, and there are no more of them than values and errors."""
    places = data.draw(st.lists(st.integers(0, len(sent)), max_size=6))
    frames = Frames()
    most = len(frames.feed(sent)) + len(frames.eof())
    for codec in (MsgspecCodec, JsonCodec):
        server = Answering(codec())
        answers = server.hear(*cut(sent, *places))  # looks at the form of each
        assert len(answers) <= most
        assert server.closed or len(server.replies) == len(answers)
        assert [brief(answer) for answer in answers] == [brief(answer) for answer in Answering(codec()).hear(sent)]


# -- what a table cannot say


async def test_half_a_frame_and_a_reset(house: House, short: Path, open_fds: Any) -> None:
    """Closed with an answer unread, which is a reset on this kind of socket: nobody else notices, nothing is left."""
    async with listening(short / "s", house), await trio.open_unix_socket(short / "s") as other:
        await Raw(other).ask("echo")
        before = open_fds()
        for _ in range(20):
            stream = await trio.open_unix_socket(short / "s")
            await Raw(stream).send(call("echo"))
            await trio.lowlevel.wait_readable(stream.socket)
            await Raw(stream).send('{"jsonrpc":"2.0",')
            await stream.aclose()
        assert "result" in await Raw(other).ask("echo")
        await trio.testing.wait_all_tasks_blocked(0.01)
        assert open_fds() == before


async def test_ten_thousand_calls_and_nothing_read(
    house: House, short: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The bridge stops reading; once it is read from, every call is answered, once and in order."""
    count = 10_000
    async with listening(short / "s", house), await trio.open_unix_socket(short / "s") as stream:
        raw = Raw(stream)
        done = trio.Event()
        async with trio.open_nursery() as nursery:

            @nursery.start_soon
            async def write() -> None:
                await raw.send(*[call("echo", id=number, text="x" * 100) for number in range(count)])
                done.set()

            await trio.testing.wait_all_tasks_blocked(0.05)
            assert not done.is_set()
            async with await trio.open_unix_socket(short / "s") as other:
                assert "result" in await Raw(other).ask("echo")
            assert [(await raw.line())["id"] for _ in range(count)] == list(range(count))
        assert done.is_set()
    monkeypatch.setattr(outgoing, "WRITE_DEADLINE", 0.05)
    async with listening(short / "s", house), await trio.open_unix_socket(short / "s") as stream:
        with pytest.raises(trio.BrokenResourceError), trio.fail_after(10):  # who never reads is cut
            await Raw(stream).send(*[call("echo", id=number, text="x" * 100) for number in range(count)])


async def test_other_kinds_of_sockets(house: House, short: Path) -> None:
    async with listening(short / "s", house):
        for kind in (socket.SOCK_SEQPACKET, socket.SOCK_DGRAM):
            with socket.socket(socket.AF_UNIX, kind) as other, pytest.raises(OSError, match="wrong type"):
                other.connect(str(short / "s"))
        with socket.socket(socket.AF_UNIX) as abstract, pytest.raises(ConnectionRefusedError):
            abstract.connect(f"\0{short}/s")
        async with await trio.open_unix_socket(short / "s") as stream:
            assert "result" in await Raw(stream).ask("echo")


# -- the examples of the specification, section 7


@pytest.fixture
def examples() -> House:
    """With the methods that the specification calls, as it does: by position and by name."""
    house = House()
    house.registry = Registry()
    method = house.registry.method

    def subtract(call: object, params: Any) -> int:
        given = json.loads(params)
        first, second = (given["minuend"], given["subtrahend"]) if isinstance(given, dict) else given
        return int(first - second)

    method("subtract", result=int, raw=True, roles=EVERYONE)(subtract)
    method("sum", result=int, raw=True, roles=EVERYONE)(lambda call, params: sum(json.loads(params)))
    method("get_data", result=list, raw=True, roles=EVERYONE)(lambda call, params: ["hello", 5])
    for name in ("update", "notify_hello", "notify_sum"):
        method(name, raw=True, roles=EVERYONE)(lambda call, params: None)
    return house


@pytest.mark.parametrize("sent, expected", [each[1:] for each in EXAMPLES], ids=[each[0] for each in EXAMPLES])
async def test_example_of_the_specification(sent: str, expected: list[Any], examples: House, short: Path) -> None:
    async with listening(short / "s", examples), await trio.open_unix_socket(short / "s") as stream:
        raw = Raw(stream)
        await raw.send(sent)
        await stream.send_eof()
        assert [judged(answer, sent.encode()) for answer in await raw.rest_lines()] == expected


def test_there_are_fifteen() -> None:
    assert len(EXAMPLES) == 15


# -- groups E to G, to a daemon


@pytest.fixture(scope="module")
def bridge(tmp_path_factory: pytest.TempPathFactory) -> Iterator[BridgeProcess]:
    """A daemon whose homeserver is away, with an agent that was declared and never started."""
    folder = tmp_path_factory.mktemp("vectors")
    (folder / "password").write_text("canary-of-the-password")
    account = {"homeserver": "http://127.0.0.1:9", "user": "@bot:x", "password_file": folder / "password"}
    made = BridgeProcess(folder, {"accounts": {"main": account}, "agents": {"ada": {"runtime": "attached"}}})
    made.start(connected=False)
    yield made
    assert made.stop() == 0
    assert "Traceback" not in made.log.read_text()


def ask(bridge: BridgeProcess, method: str, params: Any) -> dict[str, Any]:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(20)
        sock.connect(str(bridge.socket))
        sent = json.dumps(call(method) | {"params": params}).encode() + b"\n"
        sock.sendall(sent)
        with sock.makefile("rb") as answers:
            line = answers.readline()
    assert line.isascii()
    answer: dict[str, Any] = json.loads(line)
    if "error" in answer:
        in_order(answer["error"], sent)
    return answer


@pytest.mark.mission("S.6")
@pytest.mark.parametrize("row", REFUSALS, ids=name_of)
def test_refused(row: Refusal, bridge: BridgeProcess) -> None:
    answer = ask(bridge, row.method, row.params)
    assert answer.get("error", {}).get("code") == row.code, answer
    if row.code == -32602:
        assert answer["error"]["data"]["fields"] == row.fields
    assert bridge.call("list_configs") == bridge.call("list_keys") == bridge.call("containers.list") == []


def test_nothing_is_answered_at_length(bridge: BridgeProcess) -> None:
    """Whatever comes is not sent back: an error is short, with a text of any length in any place."""
    methods = bridge.call("rpc.discover")["methods"]
    assert len(methods) > 20
    for method in methods:
        names = [each["name"] for each in method["params"]]
        for length in (300, 100_000):
            for text in ("x" * length, "!" + "é" * length, "\n" * length):
                ask(bridge, method["name"], dict.fromkeys(names, text))  # looks at the length


@pytest.mark.parametrize(
    "bomb",
    [
        "a: &a [x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b]\n" * 100,
        "\x1f\x8b" + "\0" * 100_000,
    ],
    ids=["yaml", "gzip"],
)
def test_a_bomb_is_a_file_like_others(bomb: str, bridge: BridgeProcess) -> None:
    """What is attached is kept as it is: nobody unpacks it."""
    answer = ask(bridge, "attach_config", {"name": "bomb", "content": bomb})
    assert answer["result"]["size"] == len(bomb.encode())
    kept = bridge.folder / "state" / "configs" / "_shared" / "bomb"
    assert kept.read_bytes() == bomb.encode()
    os.unlink(kept)
