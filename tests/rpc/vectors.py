"""The list of bad input: each vector has a number and one defined answer. test_vectors.py sends them.

Groups: A framing 1-18, B syntax of JSON 19-38, C Unicode 39-50, D envelope 51-74, E params 75-88, F paths of
attach_config 89-106, G names 107-116. What no row can show is shown by the test that `ELSEWHERE` names.
"""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from armorclaw.rpc.framing import MAX_FRAME

PARSE = (None, -32700)
INVALID = (None, -32600)


class Vector(NamedTuple):
    """Bytes to send. `answers` are (id, result or code of the error), a list of them for a batch.

    `ends`: the client half-closes behind it. `closes`: the bridge then ends the connection by itself; else a call
    that comes behind it, on a line of its own, is answered.
    """

    number: int
    name: str
    sent: bytes
    answers: list[Any]
    ends: bool = False
    closes: bool = False


class Refusal(NamedTuple):
    """A call of a method of the bridge, and the error it is answered with; `fields` as the error names them."""

    number: int
    method: str
    params: Any
    code: int = -32602
    fields: list[str] | None = None


def call(**members: Any) -> bytes:
    return json.dumps({"jsonrpc": "2.0", "id": 1, "method": "echo", **members}).encode()


def saying(text: bytes) -> bytes:
    """A call with these bytes inside a string of its params."""
    return b'{"jsonrpc":"2.0","id":1,"method":"echo","params":{"text":"' + text + b'"}}'


ONE = call(params={"text": "x"})
SAID = (1, {"text": "x"})
EMPTY = (1, {"text": ""})

# what a TLS client says first, cut to the parts that every one has; without a byte 0A, which would be a newline
CLIENT_HELLO = (
    b"\x16\x03\x01\x00\x43\x01\x00\x00\x3f\x03\x03"
    + bytes(range(0x20, 0x40))
    + b"\x00\x00\x04\x13\x01\x13\x02\x01\x00"
)

FRAMING = [
    Vector(1, "nothing", b"", [], ends=True),
    Vector(2, "a million newlines", b"\n" * 1_000_000, []),
    Vector(3, "white space", b" \t\n", []),
    Vector(4, "no newline, too large", b'{"a":"' + b"x" * (MAX_FRAME - 5), [INVALID], closes=True),
    Vector(4, "too large a line", b'{"a":"' + b"x" * (MAX_FRAME - 5) + b'"}\n', [INVALID], closes=True),
    Vector(6, "half a frame, then half-closed", ONE[:20], [PARSE], ends=True),
    Vector(8, "carriage returns", ONE + b"\r\n" + ONE + b"\r\n", [SAID, SAID]),
    Vector(9, "NUL between frames", ONE + b"\n\0\n" + ONE, [SAID, PARSE, SAID]),
    Vector(10, "one value, nothing behind it", ONE, [SAID], ends=True),
    Vector(10, "pretty-printed, twice", json.dumps(json.loads(ONE), indent=2).encode() * 2, [SAID, SAID]),
    Vector(11, "64 frames in one write", (ONE + b"\n") * 64, [SAID] * 64),
    Vector(13, "HTTP", b"GET / HTTP/1.1\r\nHost: x\r\nAccept: */*\r\n\r\n", [PARSE] * 3, closes=True),
    Vector(14, "TLS", CLIENT_HELLO, [PARSE], ends=True),
    Vector(15, "a header of LSP", b"Content-Length: %d\r\n\r\n" % len(ONE) + ONE, [PARSE, SAID]),
    Vector(16, "byte order mark", b"\xef\xbb\xbf" + ONE + b"\n" + ONE, [PARSE, SAID]),
]

SYNTAX = [
    Vector(19, "an opening brace", b"{", [PARSE], ends=True),
    Vector(19, "an opening brace on a line of its own", b"{\n" + ONE + b"\n" + ONE, [PARSE], closes=True),
    Vector(19, "a stranger's lines in a broken value", b'{"params":\n[NaN,\n' + ONE + b"\n]}", [PARSE], closes=True),
    Vector(20, "a closing brace", b"}", [PARSE]),
    Vector(21, "a million opening brackets", b"[" * 1_000_000, [PARSE]),
    Vector(22, "100,000 opening objects", b'{"a":' * 100_000, [PARSE]),
    Vector(23, "comma before a bracket", b"[1,]", [PARSE]),
    Vector(24, "comma before a brace", b'{"a":1,}', [PARSE]),
    Vector(25, "single quotes", b"{'a':1}", [PARSE]),
    Vector(26, "comment", b"/**/{}", [PARSE]),
    Vector(27, "leading zero", b"01", [PARSE]),
    Vector(28, "plus", b"+1", [PARSE]),
    Vector(29, "leading point", b".5", [PARSE]),
    Vector(30, "hexadecimal", b"0x1", [PARSE]),
    Vector(31, "NaN", b"NaN", [PARSE]),
    Vector(31, "NaN in params", call(params=["?"]).replace(b'"?"', b"NaN"), [PARSE]),
    Vector(32, "minus infinity", b"-Infinity", [PARSE]),
    Vector(33, "too large an exponent", b"1e400", [PARSE]),
    Vector(34, "minus zero", b"-0", [INVALID]),  # JSON, but no request
    Vector(35, "rubbish behind a value", b"{} x", [INVALID, PARSE]),
    Vector(36, "raw NUL in a string", b'"\0"', [PARSE]),
    Vector(36, "raw NUL in params", saying(b"\0"), [PARSE]),
    Vector(37, "raw newline in a string", saying(b"\n"), [PARSE, PARSE]),  # it splits the frame
    Vector(38, "5,000 digits", b"1" * 5000, [PARSE]),
    Vector(38, "5,000 digits in params", call(params=["?"]).replace(b'"?"', b"1" * 5000), [(1, -32700)]),
]

UNICODE = [
    Vector(39, "half a pair of surrogates", saying(rb"\ud800"), [PARSE]),
    Vector(40, "surrogates the wrong way round", saying(rb"\udc00\ud800"), [PARSE]),
    Vector(41, "a surrogate in UTF-8", saying(b"\xed\xa0\x80"), [PARSE]),
    Vector(42, "FF", saying(b"\xff"), [PARSE]),
    Vector(43, "overlong", saying(b"\xc0\x80"), [PARSE]),
    Vector(44, "beyond Unicode", saying(b"\xf4\x90\x80\x80"), [PARSE]),
    Vector(50, "4 MiB of combining marks", saying("\u0301".encode() * (2 << 20)), [INVALID], closes=True),
]

ENVELOPE = [
    Vector(51, "no jsonrpc", b'{"id":1,"method":"echo"}', [(1, -32600)]),
    Vector(52, "jsonrpc 1.0", call(jsonrpc="1.0"), [(1, -32600)]),
    Vector(53, "jsonrpc a number", call(jsonrpc=2.0), [(1, -32600)]),
    Vector(54, "no method", b'{"jsonrpc":"2.0","id":1}', [(1, -32600)]),
    Vector(54, "method null", call(method=None), [(1, -32600)]),
    Vector(54, "method a number", call(method=5), [(1, -32600)]),
    Vector(54, "method empty", call(method=""), [(1, -32600)]),
    Vector(54, "method of 256 KiB", call(method="m" * (256 << 10)), [(1, -32600)]),
    Vector(55, "method __class__", call(method="__class__"), [(1, -32601)]),
    Vector(56, "method rpc.x", call(method="rpc.x"), [(1, -32601)]),
    Vector(57, "method with a blank", call(method="echo "), [(1, -32601)]),
    Vector(58, "params text", call(params="x"), [(1, -32600)]),
    Vector(59, "params null", call(params=None), [EMPTY]),
    Vector(60, "id an object", call(id={}), [INVALID]),
    Vector(61, "id an array", call(id=[]), [INVALID]),
    Vector(62, "id true", call(id=True), [INVALID]),
    Vector(63, "id 1.5", call(id=1.5), [INVALID]),
    Vector(64, "id 2^53 + 1", call(id=2**53 + 1), [(2**53 + 1, -32600)]),
    Vector(65, "id 2^64", call(id=2**64), [(2**64, -32600)]),
    Vector(65, "id 2^53", call(id=2**53), [(2**53, {"text": ""})]),
    Vector(66, "id of 900 kB", call(id="x" * 900_000), [INVALID]),
    Vector(66, "id of 1 MiB", call(id="x" * MAX_FRAME), [INVALID], closes=True),
    Vector(67, "id twice", b'{"jsonrpc":"2.0","id":1,"id":2,"method":"echo"}', [INVALID]),
    Vector(68, "method twice", b'{"jsonrpc":"2.0","id":1,"method":"echo","method":"operators"}', [INVALID]),
    Vector(69, "an answer to nothing", b'{"jsonrpc":"2.0","id":7,"result":1}', []),
    Vector(70, "result and error", b'{"jsonrpc":"2.0","id":7,"result":1,"error":{"code":1,"message":"m"}}', []),
    Vector(70, "a call with a result", call(result=1, error={"code": 1}), [EMPTY]),
    Vector(71, "empty batch", b"[]", [INVALID]),
    Vector(72, "batch in a batch", b"[[]]", [[INVALID]]),
    Vector(72, "a call two batches deep", b"[[" + ONE + b"]]", [[INVALID]]),
    Vector(73, "batch of 1,001", b"[" + b",".join([b"1"] * 1001) + b"]", [INVALID]),
    Vector(73, "batch of 100,001", b"[" + b",".join([b"1"] * 100_001) + b"]", [INVALID]),
    Vector(74, "1,000 times the same id", b"[" + b",".join([ONE] * 1000) + b"]", [[SAID] * 1000]),
    Vector(74, "the same id twice", ONE + b"\n" + ONE, [SAID, SAID]),
]

VECTORS = FRAMING + SYNTAX + UNICODE + ENVELOPE

A_KEY = {"provider": "openai", "token": "t"}
ROOM = {"room_id": "!a:x", "message": "m"}

PARAMS = [
    Refusal(75, "health", {"colour": "red"}, fields=["colour"]),
    Refusal(75, "store_key", {**A_KEY, "secret": "s"}, fields=["secret"]),
    Refusal(76, "delivery.list", {"limit": True}, fields=["limit"]),
    Refusal(76, "store_key", {**A_KEY, "expires_at": False}, fields=["expires_at"]),
    Refusal(77, "get_key", {"id": 5}, fields=["id"]),
    Refusal(78, "store_key", {**A_KEY, "expires_at": -1}, fields=["expires_at"]),
    Refusal(79, "store_key", {**A_KEY, "expires_at": 10**18}, fields=["expires_at"]),
    Refusal(79, "store_key", {**A_KEY, "expires_at": 1e18}, fields=["expires_at"]),
    # no method takes money yet: the same of what is counted, and named
    Refusal(80, "containers.stats", {"count": 0.1 + 0.2}, fields=["count"]),
    Refusal(81, "containers.stats", {"count": -1}, fields=["count"]),
    Refusal(82, "store_key", {"provider": "usd\0", "token": "t"}, fields=["provider"]),
    Refusal(83, "delivery.list", {"limit": 0}, fields=["limit"]),
    Refusal(83, "delivery.list", {"limit": 10**9}, fields=["limit"]),
    Refusal(83, "matrix.receive", {"limit": 0}, fields=["limit"]),
    Refusal(84, "matrix.receive", {"cursor": "1" * 65536}, fields=["cursor"]),
    Refusal(85, "get_key", {"id": ["k"]}, fields=["id"]),
    Refusal(86, "get_key", {"id": ""}, -3),
    Refusal(86, "delete_key", {"id": ""}, -3),
    Refusal(87, "get_key", {"$ref": "#/id"}, fields=["$ref", "id"]),
    Refusal(88, "health", {"__proto__": {"role": "operator"}}, fields=["__proto__"]),
    Refusal(88, "health", {"__class__": "x"}, fields=["__class__"]),
]


def attaching(name: str, number: int) -> Refusal:
    return Refusal(number, "attach_config", {"name": name, "content": "x"}, fields=["name"])


PATHS = [
    attaching("../../etc/shadow", 89),
    attaching("/etc/passwd", 90),
    attaching("a/../../b", 91),
    attaching("..%2f", 92),
    attaching("a\0.json", 93),
    attaching("/dev/zero", 98),
    attaching("/proc/self/environ", 99),
    attaching("file:///etc/passwd", 100),
    attaching("http://169.254.169.254/latest/", 100),
    Refusal(100, "attach_config", {"name": "a", "url": "http://169.254.169.254/"}, fields=["url"]),
    attaching("x" * 256, 101),
    attaching("-rf", 102),
    attaching("~root/x", 103),
]

NAMES = [
    Refusal(45, "start", {"name": "a\0", "command": ["x"]}, fields=["name"]),
    Refusal(46, "matrix.send", {**ROOM, "room_id": "!a\u202e:x"}, fields=["room_id"]),
    Refusal(46, "start", {"name": "a", "command": ["x"], "rooms": ["!a\u202e:x"]}, fields=["rooms"]),
    Refusal(107, "start", {"name": "../x", "command": ["x"]}, fields=["name"]),
    Refusal(107, "agent.call", {"agent": "../x", "method": "m"}, -2),
    Refusal(108, "start", {"name": "x.sock/../bridge.sock", "command": ["x"]}, fields=["name"]),
    Refusal(109, "start", {"name": "x" * 33, "command": ["x"]}, fields=["name"]),
    Refusal(110, "start", {"name": "x;reboot", "command": ["x"]}, fields=["name"]),
    Refusal(110, "stop", {"name": "x;reboot"}, -2),
    Refusal(112, "matrix.send", {**ROOM, "type": "m.room.power_levels"}, fields=["type"]),
    Refusal(112, "matrix.send", {**ROOM, "event_type": "m.room.power_levels"}, fields=["event_type"]),
    Refusal(115, "start", {"name": "\u0430da", "command": ["x"]}, fields=["name"]),  # not the letter a
]

REFUSALS = PARAMS + PATHS + NAMES

ELSEWHERE = {
    2: "tests/rpc/test_stalls.py::test_what_takes_one_turn",
    5: "tests/rpc/test_peer.py::test_a_frame_that_is_not_finished_ends_the_connection",
    7: "tests/rpc/test_vectors.py::test_half_a_frame_and_a_reset",
    10: "tests/rpc/test_vectors.py::test_wherever_it_is_cut",
    12: "tests/rpc/test_vectors.py::test_ten_thousand_calls_and_nothing_read",
    17: "tests/rpc/test_peer.py::test_descriptors_sent_to_us_are_dropped",
    18: "tests/rpc/test_vectors.py::test_other_kinds_of_sockets",
    47: "tests/cli/test_process.py::test_no_value_makes_a_line_of_its_own",
    48: "tests/cli/test_process.py::test_no_value_makes_a_line_of_its_own",
    49: "tests/configs/test_library.py::test_the_same_name_composed_and_decomposed",
    94: "tests/configs/test_files.py::test_what_lies_under_the_name_is_replaced_and_never_opened",
    95: "tests/configs/test_files.py::test_a_file_swapped_for_a_link_ten_thousand_times",
    96: "tests/configs/test_files.py::test_what_lies_under_the_name_is_replaced_and_never_opened",
    97: "tests/configs/test_files.py::test_what_lies_under_the_name_is_replaced_and_never_opened",
    98: "tests/configs/test_files.py::test_a_device_is_replaced",
    104: "tests/configs/test_methods.py::test_size_is_looked_at_before_decoding",
    105: "tests/rpc/test_vectors.py::test_a_bomb_is_a_file_like_others",
    106: "tests/configs/test_library.py::test_names_that_differ_in_case_alone",
    109: "tests/rpc/test_unix.py::test_a_path_may_have_so_many_bytes",
    111: "tests/matrix/test_transport.py::test_what_comes_from_outside_is_percent_encoded_in_the_path",
    112: "tests/matrix/test_methods.py::test_what_an_agent_may_not",
    113: "tests/matrix/test_parts.py::test_users_as_login_takes_them",
    114: "tests/matrix/test_transport.py::test_what_comes_from_outside_is_percent_encoded_in_the_path",
    115: "tests/guard/test_grants.py::test_a_room_is_its_very_id",
    116: "tests/test_config.py::test_a_homeserver_is_a_plain_url_or_a_server_name",
}
"""Number → the test that shows it, or shows more of it than its row."""
