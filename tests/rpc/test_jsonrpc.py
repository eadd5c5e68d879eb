from __future__ import annotations

import json
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armorclaw.rpc.codec import MsgspecCodec
from armorclaw.rpc.framing import MAX_DEPTH, MAX_FRAME
from armorclaw.rpc.jsoncodec import Codec, JsonCodec, ascii_only
from armorclaw.rpc.jsonrpc import MAX_BATCH, Core, Notification, Pause, Request, Response, Send

CODECS = [MsgspecCodec, JsonCodec]


class Server:
    """Answers the methods of the specification's examples; says what it wrote and whether it hung up."""

    def __init__(self, codec: Codec) -> None:
        self.core = Core(codec)
        self.codec = codec
        self.wrote: list[bytes] = []
        self.closed = False
        self.later: list[Request] = []

    def hear(self, *pieces: bytes) -> list[Any]:
        for piece in pieces:
            for event in self.core.feed(piece):
                self._act(event)
        for event in self.core.eof():
            self._act(event)
        return self.replies

    @property
    def replies(self) -> list[Any]:
        for data in self.wrote:
            assert data.endswith(b"\n")
            assert data.count(b"\n") == 1
            assert data.isascii()
        return [json.loads(data) for data in self.wrote]

    def _act(self, event: Any) -> None:
        if isinstance(event, Send):
            self.wrote.append(event.data)
            self.closed |= event.fatal
        elif isinstance(event, Request):
            data = self._answer(event)
            if data:
                self.wrote.append(data)

    def _answer(self, request: Request) -> bytes:
        params: Any = None if request.params is None else self.codec.value(request.params)
        if request.method == "subtract":
            a, b = (params["minuend"], params["subtrahend"]) if isinstance(params, dict) else params
            return self.core.result(request, a - b)
        if request.method == "sum":
            return self.core.result(request, sum(params))
        if request.method == "get_data":
            return self.core.result(request, ["hello", 5])
        if request.method == "echo":
            return self.core.result(request, params)
        return self.core.error(request, {"code": -32601, "message": "Method not found"})


@pytest.fixture(params=CODECS)
def server(request: pytest.FixtureRequest) -> Server:
    return Server(request.param())


def brief(reply: Any) -> Any:
    """A reply without the words of its error."""
    if isinstance(reply, list):
        return [brief(each) for each in reply]
    assert reply.pop("jsonrpc") == "2.0"
    if "error" in reply:
        assert set(reply) == {"id", "error"}
        return reply["id"], reply["error"]["code"]
    assert set(reply) == {"id", "result"}
    return reply["id"], reply["result"]


# the examples of the specification, section 7, in its order
EXAMPLES: list[tuple[str, str, list[Any]]] = [
    ("positional", '{"jsonrpc": "2.0", "method": "subtract", "params": [42, 23], "id": 1}', [(1, 19)]),
    ("positional 2", '{"jsonrpc": "2.0", "method": "subtract", "params": [23, 42], "id": 2}', [(2, -19)]),
    (
        "named",
        '{"jsonrpc": "2.0", "method": "subtract", "params": {"subtrahend": 23, "minuend": 42}, "id": 3}',
        [(3, 19)],
    ),
    (
        "named 2",
        '{"jsonrpc": "2.0", "method": "subtract", "params": {"minuend": 42, "subtrahend": 23}, "id": 4}',
        [(4, 19)],
    ),
    ("notification", '{"jsonrpc": "2.0", "method": "update", "params": [1,2,3,4,5]}', []),
    ("notification, unknown", '{"jsonrpc": "2.0", "method": "foobar"}', []),
    ("unknown method", '{"jsonrpc": "2.0", "method": "foobar", "id": "1"}', [("1", -32601)]),
    ("invalid JSON", '{"jsonrpc": "2.0", "method": "foobar, "params": "bar", "baz]', [(None, -32700)]),
    ("invalid request", '{"jsonrpc": "2.0", "method": 1, "params": "bar"}', [(None, -32600)]),
    (
        "batch, invalid JSON",
        '[\n  {"jsonrpc": "2.0", "method": "sum", "params": [1,2,4], "id": "1"},\n  {"jsonrpc": "2.0", "method"\n]',
        [(None, -32700)],
    ),
    ("empty batch", "[]", [(None, -32600)]),
    ("invalid batch", "[1]", [[(None, -32600)]]),
    ("invalid batch 2", "[1,2,3]", [[(None, -32600)] * 3]),
    (
        "batch",
        """[
        {"jsonrpc": "2.0", "method": "sum", "params": [1,2,4], "id": "1"},
        {"jsonrpc": "2.0", "method": "notify_hello", "params": [7]},
        {"jsonrpc": "2.0", "method": "subtract", "params": [42,23], "id": "2"},
        {"foo": "boo"},
        {"jsonrpc": "2.0", "method": "foo.get", "params": {"name": "myself"}, "id": "5"},
        {"jsonrpc": "2.0", "method": "get_data", "id": "9"}
        ]""",
        [[("1", 7), ("2", 19), (None, -32600), ("5", -32601), ("9", ["hello", 5])]],
    ),
    (
        "batch of notifications",
        '[{"jsonrpc": "2.0", "method": "notify_sum", "params": [1,2,4]},\n'
        '{"jsonrpc": "2.0", "method": "notify_hello", "params": [7]}]',
        [],
    ),
]


@pytest.mark.parametrize("sent, expected", [e[1:] for e in EXAMPLES], ids=[e[0] for e in EXAMPLES])
@pytest.mark.parametrize("ending", ["\n", ""])
def test_example_of_the_specification(server: Server, sent: str, expected: list[Any], ending: str) -> None:
    assert [brief(reply) for reply in server.hear((sent + ending).encode())] == expected


@pytest.mark.parametrize("sent, expected", [e[1:] for e in EXAMPLES], ids=[e[0] for e in EXAMPLES])
def test_example_of_the_specification_at_every_split(sent: str, expected: list[Any]) -> None:
    data = sent.encode() + b"\n"
    for place in range(len(data)):
        assert [brief(reply) for reply in Server(MsgspecCodec()).hear(data[:place], data[place:])] == expected


def call(**members: Any) -> str:
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": "echo", **members})


BAD_ID = -32600
LONG = "x" * 300

# §8.2 of the notes, C and D: one line, and (id, code or result) of its one answer
ENVELOPES: list[tuple[str, str | bytes, Any]] = [
    ("no jsonrpc", '{"id":1,"method":"echo"}', (1, -32600)),
    ("jsonrpc 1.0", call(jsonrpc="1.0"), (1, -32600)),
    ("jsonrpc as number", call(jsonrpc=2.0), (1, -32600)),
    ("no method", '{"jsonrpc":"2.0","id":1}', (1, -32600)),
    ("method null", call(method=None), (1, -32600)),
    ("method a number", call(method=5), (1, -32600)),
    ("method empty", call(method=""), (1, -32600)),
    ("method of 256 KiB", call(method="m" * 262144), (1, -32600)),
    ("method __class__", call(method="__class__"), (1, -32601)),
    ("method rpc.x", call(method="rpc.x"), (1, -32601)),
    ("method with a blank", call(method="echo "), (1, -32601)),
    ("method in capitals", call(method="Echo"), (1, -32601)),
    ("params text", call(params="x"), (1, -32600)),
    ("params a number", call(params=5), (1, -32600)),
    ("params null", call(params=None), (1, None)),
    ("no params", call(), (1, None)),
    ("id null", call(id=None, params=[1]), (None, [1])),
    ("id object", call(id={}), (None, BAD_ID)),
    ("id array", call(id=[]), (None, BAD_ID)),
    ("id true", call(id=True), (None, BAD_ID)),
    ("id 1.5", call(id=1.5), (None, BAD_ID)),
    ("id 2^53", call(id=2**53, params=[]), (2**53, [])),
    ("id 2^53 + 1", call(id=2**53 + 1), (2**53 + 1, BAD_ID)),
    ("id -2^53", call(id=-(2**53), params=[]), (-(2**53), [])),
    ("id 2^64", call(id=2**64), (2**64, BAD_ID)),
    ("id of 1,000 digits", call(id=10**1000), (None, BAD_ID)),
    ("id of 128 bytes", call(id="x" * 128, params=[]), ("x" * 128, [])),
    ("id of 129 bytes", call(id="x" * 129), (None, BAD_ID)),
    ("id of 300,000 bytes", call(id="x" * 300_000), (None, BAD_ID)),
    ("id not ASCII", call(id="é€😀", params=[]), ("é€😀", [])),
    ("id not ASCII, raw", call(params=[]).replace('"id": 1', '"id": "é€😀"'), ("é€😀", [])),
    ("unknown members", call(extra={"id": 5}, params=[]), (1, [])),
    ("nested batch", f"[[{call()}]]", [(None, -32600)]),
    ("batch of identical ids", "[" + ",".join([call(params=[])] * 1000) + "]", [(1, [])] * 1000),
    ("batch of 1,001", "[" + ",".join(["1"] * 1001) + "]", (None, -32600)),
    ("batch of 100,001", "[" + ",".join(["1"] * 100_001) + "]", (None, -32600)),
    ("a number", "5", (None, -32600)),
    ("a text", '"x"', (None, -32600)),
    ("null", "null", (None, -32600)),
    ("large exponent", "1e400", (None, -32700)),
    ("id of large exponent", call(id=5).replace("5", "1e400"), (None, -32700)),
    ("half a surrogate pair", call(params=["\ud800"]), (None, -32700)),
    ("surrogates in the wrong order", call(params=["\udc00\ud800"]), (None, -32700)),
    ("raw surrogate", call(params=["?"]).encode().replace(b"?", b"\xed\xa0\x80"), (None, -32700)),
    ("raw FF", call(params=["?"]).encode().replace(b"?", b"\xff"), (None, -32700)),
    ("overlong", call(params=["?"]).encode().replace(b"?", b"\xc0\x80"), (None, -32700)),
    ("beyond Unicode", call(params=["?"]).encode().replace(b"?", b"\xf4\x90\x80\x80"), (None, -32700)),
    ("raw NUL", call(params=["?"]).encode().replace(b"?", b"\x00"), (None, -32700)),
    ("bad escape", call(params=["?"]).encode().replace(b"?", b"\\q"), (None, -32700)),
    ("NaN", call(params=["?"]).replace('"?"', "NaN"), (None, -32700)),
    ("a pair of surrogates", call(params=["😀"]), (1, ["😀"])),
]


@pytest.mark.parametrize("sent, expected", [e[1:] for e in ENVELOPES], ids=[e[0] for e in ENVELOPES])
def test_envelope_has_one_answer(server: Server, sent: str | bytes, expected: Any) -> None:
    data = sent if isinstance(sent, bytes) else sent.encode()
    [reply] = server.hear(data + b"\n")
    assert brief(reply) == expected
    assert not server.closed


@pytest.mark.parametrize(
    "sent",
    [
        '{"jsonrpc":"2.0","id":1,"id":2,"method":"echo"}',
        '{"jsonrpc":"2.0","id":1,"method":"echo","method":"admin"}',
        '{"jsonrpc":"2.0","id":1,"method":"echo","params":{},"params":[]}',
        '{"jsonrpc":"2.0","id":1,"method":"echo","\\u0069d":2}',
        '{"id":1, "x":"\\"", "jsonrpc":"2.0","method":"echo", "x" : "y"}',
    ],
)
def test_a_member_named_twice_is_refused_by_the_bridge(sent: str) -> None:
    assert [brief(reply) for reply in Server(MsgspecCodec()).hear(sent.encode() + b"\n")] == [(None, -32600)]
    inside = Server(MsgspecCodec()).hear(b"[" + sent.encode() + b"]")
    assert [brief(reply) for reply in inside] == [[(None, -32600)]]


def test_a_member_named_twice_inside_params_is_not_the_envelopes_business() -> None:
    sent = b'{"jsonrpc":"2.0","id":1,"method":"echo","params":{"id":1,"id":"\\"2"}}'
    assert [brief(reply) for reply in Server(MsgspecCodec()).hear(sent)] == [(1, {"id": '"2'})]


@pytest.mark.parametrize("text", ["-0", "0", '"\\u0041"', '"a\\/b"', "9007199254740992"])
def test_an_id_comes_back_byte_for_byte(text: str) -> None:
    server = Server(MsgspecCodec())
    server.hear(b'{"jsonrpc":"2.0","id":' + text.encode() + b',"method":"get_data"}')
    assert server.wrote == [b'{"jsonrpc":"2.0","id":' + text.encode() + b',"result":["hello",5]}\n']


def test_a_large_whole_number_comes_back_exactly_though_refused() -> None:
    server = Server(MsgspecCodec())
    server.hear(b'{"jsonrpc":"2.0","id":18446744073709551616,"method":"get_data"}')
    assert server.wrote[0].startswith(b'{"jsonrpc":"2.0","id":18446744073709551616,"error":{"code":-32600,')


@pytest.mark.parametrize(
    "sent",
    [
        '{"jsonrpc":"2.0","id":7,"result":1}',
        '{"jsonrpc":"2.0","id":7,"result":1,"error":{"code":1,"message":"m"}}',
        '{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"m"}}',
        '{"jsonrpc":"2.0","id":{"a":1},"result":1}',
        '{"id":7,"error":5}',
        '{"result":1}',
    ],
)
def test_an_answer_is_never_answered(server: Server, sent: str) -> None:
    assert server.hear(f"{sent}\n[{sent}]\n".encode()) == []


def test_three_parse_errors_in_a_row_and_the_stream_is_given_up(server: Server) -> None:
    codes = [brief(reply) for reply in server.hear(b"GET / HTTP/1.1\r\nHost: x\r\nAccept: */*\r\nA: b\r\n\r\n")]
    assert codes == [(None, -32700)] * 3
    assert server.closed


def test_parse_errors_with_something_valid_between_are_forgiven(server: Server) -> None:
    ok = call(params=[]).encode()
    replies = server.hear(b"?\n?\n" + ok + b"\n?\n?\n" + ok)
    assert [brief(reply)[1] for reply in replies] == [-32700, -32700, [], -32700, -32700, []]
    assert not server.closed


def test_too_large_a_value_is_answered_once_and_ends_the_stream(server: Server) -> None:
    [reply] = server.hear(*[b'{"a":"' + b"x" * 65536] + [b"x" * 65536] * 20)
    assert reply["error"]["data"]["limit"] == MAX_FRAME
    assert brief(reply) == (None, -32600)
    assert server.closed


def test_too_large_a_line_in_one_piece_is_the_same(server: Server) -> None:
    [reply] = server.hear(call(params=["x" * MAX_FRAME]).encode() + b"\n")
    assert brief(reply) == (None, -32600)
    assert server.closed


@pytest.mark.parametrize("ending", [b"\n", b""])
def test_too_deep_a_value_in_one_line_is_refused(server: Server, ending: bytes) -> None:
    deep = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    [reply] = server.hear(call().replace("1", deep).encode() + ending)
    assert brief(reply) == (None, -32700)
    ok = Server(JsonCodec()).hear(call(params=[]).replace("[]", deep[1:-1]).encode() + ending)
    assert ok[0]["result"] is not None


def test_brackets_in_strings_are_no_depth(server: Server) -> None:
    text = "[{" * 1000
    assert [brief(reply) for reply in server.hear(call(params=[text]).encode() + b"\n")] == [(1, [text])]


def test_half_a_value_at_the_end_of_the_stream(server: Server) -> None:
    assert [brief(reply) for reply in server.hear(b'{"jsonrpc":')] == [(None, -32700)]


def test_the_deadline(server: Server) -> None:
    pending = [server.core.pending]
    assert list(server.core.feed(b'{"jsonrpc":')) == []
    pending.append(server.core.pending)
    assert pending == [False, True]
    [event] = server.core.expire()
    assert isinstance(event, Send)
    assert event.fatal
    assert json.loads(event.data)["error"]["code"] == -32700
    assert list(server.core.feed(call().encode())) == []


def test_batch_answers_given_out_of_order_come_in_the_order_of_the_calls() -> None:
    core = Core(JsonCodec())
    batch = [json.loads(call(id=i)) for i in range(3)]
    batch.insert(1, 5)
    events = list(core.feed(json.dumps(batch).encode()))
    first, second, third = [event for event in events if isinstance(event, Request)]
    assert all(request.in_batch for request in (first, second, third))
    assert core.result(third, "third") == b""
    assert core.error(first, {"code": 1, "message": "m"}) == b""
    replies = json.loads(core.result(second, "second"))
    assert [brief(reply) for reply in replies] == [(0, 1), (None, -32600), (1, "second"), (2, "third")]


def test_a_result_that_cannot_be_written_leaves_the_request_to_be_answered() -> None:
    for codec in (JsonCodec(), MsgspecCodec()):
        core = Core(codec)
        [request] = core.feed(call().encode() + b"\n")
        assert isinstance(request, Request)
        with pytest.raises((ValueError, TypeError)):
            core.result(request, object())
        assert b"-32603" in core.error(request, {"code": -32603, "message": "m"})


def test_calls_of_ours_and_their_answers() -> None:
    ours, theirs = Core(JsonCodec()), Core(MsgspecCodec())
    first, one = ours.request("echo", {"text": "é\n"})
    second, two = ours.request("nothing")
    assert first != second
    requests = [event for event in theirs.feed(one + two) if isinstance(event, Request)]
    answers = theirs.result(requests[0], {"text": "é\n"})
    answers += theirs.error(requests[1], {"code": 5, "message": "m", "data": {"name": "x"}})
    good, bad = ours.feed(answers)
    assert isinstance(good, Response)
    assert isinstance(bad, Response)
    assert (good.id, good.result, good.error) == (first, {"text": "é\n"}, None)
    assert (bad.id, bad.error) == (second, {"code": 5, "message": "m", "data": {"name": "x"}})


def test_a_notification_of_ours() -> None:
    [event] = Core(MsgspecCodec()).feed(Core(JsonCodec()).notification("event", [1]))
    assert isinstance(event, Notification)
    assert event.method == "event"


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("error", ["5", "{}", '{"code":"x","message":"m"}', '{"code":1}', "[]", '"x"'])
def test_a_malformed_error_is_still_an_error(codec: type[Codec], error: str) -> None:
    [event] = Core(codec()).feed(b'{"jsonrpc":"2.0","id":1,"error":' + error.encode() + b"}\n")
    assert isinstance(event, Response)
    assert event.error is not None
    assert event.error["code"] == -32603


def test_the_answer_of_a_peer_that_writes_an_unused_error_as_null() -> None:
    [event] = Core(JsonCodec()).feed(b'{"jsonrpc":"2.0","id":1,"result":[],"error":null}\n')
    assert isinstance(event, Response)
    assert event.error is None


@given(st.text())
def test_ascii_only_changes_no_meaning(text: str) -> None:
    try:
        raw = json.dumps([text, {text: 1}], ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return
    escaped = ascii_only(raw)
    assert escaped.isascii()
    assert json.loads(escaped) == [text, {text: 1}]


fragments = st.sampled_from(
    [
        call(), call(params=[1]), '{"jsonrpc":"2.0","method":"note"}', "[]", "[1]", "{}", "5", "?", "\n", " ", "\r\n",
        f"[{call()}]", '{"a":', "}", '"', "\\", '{"jsonrpc":"2.0","id":1,"result":1}', "tru", "é", "[" * 70,
    ]
)  # fmt: skip


@given(st.lists(fragments, max_size=8).map("".join), st.lists(st.integers(0, 400), max_size=5))
def test_the_shortcut_for_lines_changes_nothing(text: str, places: list[int]) -> None:
    """Line by line, in any pieces and byte by byte: the same answers, by either codec."""
    data = text.encode()
    edges = [0, *sorted(min(place, len(data)) for place in places), len(data)]
    whole = Server(MsgspecCodec()).hear(data)
    pieces = [data[a:b] for a, b in pairwise(edges)]
    assert Server(MsgspecCodec()).hear(*pieces) == whole
    assert Server(MsgspecCodec()).hear(*[data[i : i + 1] for i in range(len(data))]) == whole
    assert Server(JsonCodec()).hear(*pieces) == whole


class WithoutCalls(MsgspecCodec):
    """The same without its shortcut."""

    def calls(self, text: bytes) -> None:
        return None


members = st.sampled_from(
    [
        '"jsonrpc":"2.0"', '"jsonrpc" : "2.0"', '"jsonrpc":"1.0"', '"jsonrpc":2.0', '"id":1', '"id":-0', '"id":007',
        '"id":"a-b"', '"id":"\\u0041"', '"id":"é"', '"id":"\t"', '"id":null', '"id":1.0', '"id":9007199254740993',
        '"id":"' + "x" * 130 + '"', "", '"\\u0069d":2', '"method":"echo"', '"method":"é"', '"method":""',
        '"method":"e\\"o"', '"method":1', '"method":"' + "m" * 129 + '"', '"params":[1]', '"params":{"a":"\\"}"}',
        '"params":"x"',
        '"params":null', '"params":["\n"]', '"params":["\\ud800"]', '"params":["' + "x" * 2000 + '"]',
        '"params":' + "[" * 63 + "]" * 63, '"params":' + "[" * 64 + "]" * 64, '"params":["' + "[" * 70 + '"]',
        '"params":[' + "[]," * 70 + "1]", '"result":1', '"error":{"code":1,"message":"m"}', '"x":1', '"":{}',
    ]
)  # fmt: skip
usual = st.sampled_from(['"jsonrpc":"2.0","id":1,"method":"echo"', '"jsonrpc":"2.0","method":"echo"', ""])
messages = st.builds(
    lambda head, rest, ending: "{" + ",".join(part for part in [head, *rest] if part) + "}" + ending,
    usual,
    st.lists(members, max_size=4),
    st.sampled_from(["\n", "\n", "\r\n", "", " ", "\n\n", "x\n", ",\n"]),
)


@given(st.lists(messages, max_size=6).map("".join))
def test_the_shortcut_for_calls_changes_nothing(text: str) -> None:
    data = text.encode("utf-8", "surrogatepass")
    quick, plain = Server(MsgspecCodec()), Server(WithoutCalls())
    quick.hear(data)
    plain.hear(data)
    assert quick.wrote == plain.wrote
    assert quick.closed == plain.closed


def test_the_shortcut_is_taken() -> None:
    params = json.dumps({"text": "x" * 2000, "n": [1]})
    text = "".join(
        f'{{"jsonrpc":"2.0","id":{number},"method":"echo","params":{params}}}\n' for number in (1, '"a"', 10**14)
    )
    found = MsgspecCodec().calls(text.encode() + '{"jsonrpc":"2.0","method":"é"}\n'.encode())
    assert found is not None
    assert [call[:3] for call in found] == [
        (1, b"1", "echo"), ("a", b'"a"', "echo"), (10**14, b"100000000000000", "echo"), (None, None, "é"),
    ]  # fmt: skip
    assert found[0][3] == params.encode()


@pytest.mark.parametrize("unit", [b"[", b"[[[[]]]],", b'{"":[{}]},'])
def test_a_long_look_is_interrupted_by_pauses(unit: bytes) -> None:
    """One read of brackets takes tens of milliseconds; others are let go on every few."""
    core = Core(MsgspecCodec())
    pauses = [event for event in core.feed(b"[" + unit * (65536 // len(unit))) if isinstance(event, Pause)]
    assert len(pauses) >= 10 or unit == b"["  # too deep: refused at once


def test_the_largest_batch_is_the_largest() -> None:
    assert MAX_BATCH == 1000


@pytest.mark.parametrize("codec", CODECS)
def test_no_answer_is_larger_than_a_message(codec: type[Any]) -> None:
    """Alone it is an error; in a batch, those that no longer fit are."""
    core = Core(codec())
    [alone] = core.feed(b'{"jsonrpc":"2.0","id":"a","method":"m"}\n')
    assert isinstance(alone, Request)
    answer = json.loads(core.result(alone, "x" * MAX_FRAME))
    assert (answer["id"], answer["error"]["code"], answer["error"]["data"]["limit"]) == ("a", -32006, MAX_FRAME)
    calls = json.dumps([{"jsonrpc": "2.0", "id": number, "method": "m"} for number in range(MAX_BATCH)]).encode()
    requests = [event for event in core.feed(calls + b"\n") if isinstance(event, Request)]
    whole = b"".join([core.result(request, "x" * 300_000) for request in requests])
    assert len(whole) < MAX_FRAME
    answers = json.loads(whole)
    assert [answer["id"] for answer in answers] == list(range(MAX_BATCH))
    assert ["result" in answer for answer in answers] == [True] * 2 + [False] * (MAX_BATCH - 2)
