"""JSON-RPC 2.0 without input or output: what came in, and the bytes that go out.

Standard library only, Python 3.9: the bridge, its clients and the library inside containers share it. The codec is
passed in: msgspec in the bridge (`armorclaw.rpc.codec`), `armorclaw.rpc.jsoncodec` in a container.

Both ends are equal: either may call, notify and answer. A driver owns the socket and does this:

    core = Core(JsonCodec())
    for event in core.feed(bytes_read):     # at end of stream: core.eof(); when `pending` for 10 s: core.expire()
        if isinstance(event, Request):      # answer it, now or later, exactly once:
            write(core.result(event, value))            # or core.error(event, payload)
        elif isinstance(event, Notification): ...       # never answered, whatever happens
        elif isinstance(event, Response): ...           # to a request of ours: waiting.pop(event.id, None)
        elif isinstance(event, Send):                   # an error the core answers by itself
            write(event.data)
            if event.fatal: close()
        # else a Pause: a moment to look after others, if there are any

    number, data = core.request("status", {...})        # write data; the Response will carry .id == number
    write(core.notification("event", {...}))

`feed` is a generator: use it up before the next `feed`, and pause between its events to be fair to others. Every
`bytes` to write is whole messages, newline included; it may be empty (an answer inside a batch waits for the others:
the array is returned with the last). A transport that has its own framing gives each message to `receive` instead.

Decisions where the specification leaves room (docs/protocol.md, "Envelope"):

* An `id` is a string of up to 128 bytes or a whole number within ±2^53, and comes back as it was written. `null` is
  an id like others: the call is answered. Any other is an invalid request; a whole number is echoed even then.
* `params` may be absent, null, an object or an array. Unknown members are ignored; repeated ones the bridge refuses.
* An invalid request is answered with its id if that can be told, else with null.
* An object without `method` but with `result` or `error` is an answer, and is never answered, wrong as it may be.
* Answers of a batch come in the order of its calls, in one array. More than `MAX_BATCH` items: one invalid request.
* Three parse errors with nothing valid between: whoever is talking speaks something else; the stream is given up.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Optional, Union

from armorclaw.rpc.framing import (
    INVALID_REQUEST,
    MAX_FRAME,
    PARSE_ERROR,
    WHITE,
    Frame,
    FrameError,
    Frames,
    is_shallow,
    skip_white,
)
from armorclaw.rpc.jsoncodec import Codec, EnvelopeError, ascii_only

INTERNAL_ERROR = -32603
TOO_LARGE = -32006

MAX_RESULT = MAX_FRAME - 1024
"""Bytes of JSON of a result: what a message carries beside the envelope and the id."""

MAX_BATCH = 1000
"""Items of one batch."""

MAX_ID = 128
"""Bytes of an id that is a string, in UTF-8."""

MAX_METHOD = 128
"""Characters of a method's name."""

MAX_WRONG = 3
"""Parse errors in a row."""

_LARGEST_ID = 2**53
_SLICE = 4096  # bytes that are scanned at a time, so that `feed` returns to its caller often
_FEW = 256  # the same behind a string and at the beginning of a value, most of which may be a long string
_ABSENT = object()
_VERSION = ("2.0", b'"2.0"')  # as it comes, decoded or not

_BATCH_ROOM = MAX_FRAME - 256 * MAX_BATCH  # bytes of answers in a batch; the rest is to say that others do not fit
_HINTS = {
    PARSE_ERROR: ("parse_error", "send one JSON value per request"),
    TOO_LARGE: ("too_large", "ask for less at a time"),
}
_ENVELOPE_HINT = ("invalid_request", "see docs/protocol.md for the envelope")


class Request:
    """A call to answer. `params` is as the codec left it, None if there were none."""

    __slots__ = ("_batch", "_place", "_text", "id", "method", "params")

    def __init__(self, id: Any, text: bytes, method: str, params: Any, batch: Optional[_Batch], place: int) -> None:  # noqa: A002
        self.id: Union[str, int, None] = id
        self.method = method
        self.params = params
        self._text = text
        self._batch = batch
        self._place = place

    @property
    def text(self) -> bytes:
        """The id as it was written, ASCII only."""
        return self._text

    @property
    def in_batch(self) -> bool:
        return self._batch is not None

    def __repr__(self) -> str:
        return "Request(id=%r, method=%r)" % (self.id, self.method)


class Notification:
    """A message that wants no answer. `params` is as the codec left it, None if there were none."""

    __slots__ = ("method", "params")
    in_batch = False

    def __init__(self, method: str, params: Any) -> None:
        self.method = method
        self.params = params

    def __repr__(self) -> str:
        return "Notification(method=%r)" % self.method


class Response:
    """An answer. `id` is the number `Core.request` gave, or whatever the other side made of it.

    `error` is None or a dict with `code` (int), `message` (str) and perhaps `data`, all plain Python. `result` is as
    the codec left it.
    """

    __slots__ = ("error", "id", "result")

    def __init__(self, id: Any, result: Any, error: Optional[dict[str, Any]]) -> None:  # noqa: A002
        self.id = id
        self.result = result
        self.error = error

    def __repr__(self) -> str:
        return "Response(id=%r, %s)" % (self.id, "result" if self.error is None else "error")


class Send:
    """Bytes the core wants written, as answer to what was no proper message; after a `fatal` one, close."""

    __slots__ = ("data", "fatal")

    def __init__(self, data: bytes, fatal: bool = False) -> None:
        self.data = data
        self.fatal = fatal

    def __repr__(self) -> str:
        return "Send(%r, fatal=%r)" % (self.data, self.fatal)


class Pause:
    """Nothing came of some bytes, but the look at them took a while: a driver that serves others lets them go on."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "PAUSE"


PAUSE = Pause()

Event = Union[Request, Notification, Response, Send, Pause]


class _Batch:
    """Answers of a batch, kept until the last is there."""

    __slots__ = ("_answers", "_missing", "size")

    def __init__(self) -> None:
        self.size = 0
        """Bytes of the answers there are."""
        self._answers: list[bytes] = []
        self._missing = 1  # the reading of the batch itself

    def place(self) -> int:
        """Room for one more answer."""
        self._answers.append(b"")
        self._missing += 1
        return len(self._answers) - 1

    def fill(self, place: int, answer: bytes) -> bytes:
        self._answers[place] = answer
        self.size += len(answer)
        return self.read()

    def read(self) -> bytes:
        """One thing less to wait for; the whole array when there is nothing more."""
        self._missing -= 1
        if self._missing or not self._answers:
            return b""
        return b"[" + b",".join(self._answers) + b"]\n"


class Core:
    """One end of one connection.

    It keeps the framing, the numbers of our own requests and the unfinished batches; which requests still wait for
    an answer is the driver's to know.
    """

    def __init__(self, codec: Codec) -> None:
        self._codec = codec
        self._frames = Frames()
        self._number = 0
        self._wrong = 0  # parse errors in a row
        self._closed = False
        self.pending = False
        """Whether the stream stands inside a value; see `expire`."""
        self.bulk: Optional[Callable[[Union[bytes, bytearray]], Optional[Notification]]] = None
        """A shortcut of the driver's through a value that came in several reads: what it means, if that is told."""

    def feed(self, data: bytes) -> Iterator[Event]:
        """What these bytes of the stream brought."""
        frames = self._frames
        decode = self._codec.decode
        pos = 0
        size = len(data)
        looked = 0  # bytes scanned since the last pause
        lines = 0 if self.pending or self._closed else data.rfind(b"\n") + 1
        calls = self._codec.calls(data[:lines]) if 0 < lines <= MAX_FRAME else None
        if calls is not None:
            pos = lines
            yield from self._plain(calls)
        while pos < size and not self._closed:
            if not self.pending and data[pos] in WHITE:
                pos = skip_white(data, pos)
                continue
            end = data.find(b"\n", pos, pos + _SLICE if self.pending else size)
            if end >= 0 and not self.pending:
                # the usual case, without the scanner: a line that decodes is one value by the rule of framing, too
                line = data[pos:end]
                if len(line) <= MAX_FRAME:
                    try:
                        value = decode(line)
                    except (ValueError, RecursionError):
                        pass
                    else:
                        if is_shallow(line):
                            pos = end + 1
                            yield from self._received(value)
                            continue
            end = size if end < 0 else end + 1
            slow = pos  # where scanning costs steps: a string that is open is passed as fast as its end is found
            step = _SLICE
            if frames.in_string:
                slow = data.find(b'"', pos, end)
                slow = end if slow < 0 else slow
                step = _FEW
            elif not self.pending:
                step = _FEW
            end = min(end, slow + step)
            looked += end - slow
            found = frames.feed(data[pos:end])
            self.pending = frames.pending
            for frame in found:
                yield from self.receive(frame)
            pos = end
            if looked >= _SLICE and pos < size:
                looked = 0
                yield PAUSE

    def eof(self) -> Iterator[Event]:
        """The other side will send no more; it may still read."""
        self.pending = False
        for frame in self._frames.eof():
            yield from self.receive(frame)

    def expire(self) -> Iterator[Event]:
        """A value was begun and not finished in the driver's time: the stream is given up."""
        self.pending = False
        for frame in self._frames.expire():
            yield from self.receive(frame)
        self._closed = True

    def receive(self, frame: Frame) -> Iterator[Event]:
        """What one frame brought: for transports with a framing of their own."""
        if self._closed:
            return
        if isinstance(frame, FrameError):
            yield self._unreadable(frame)
            return
        if self.bulk is not None:
            bulk = self.bulk(frame)
            if bulk is not None:
                self._wrong = 0
                yield bulk
                return
        frame = bytes(frame)
        calls = self._codec.calls(frame)
        if calls is not None and len(calls) == 1:
            yield from self._plain(calls)
            return
        try:
            value = self._codec.decode(frame)
        except EnvelopeError as error:
            yield Send(self._refusal(b"null", INVALID_REQUEST, str(error)) + b"\n")
        except (ValueError, RecursionError):
            yield self._unreadable(FrameError(PARSE_ERROR, "this is not JSON"))
        else:
            yield from self._received(value)

    def request(self, method: str, params: Any = None) -> tuple[int, bytes]:
        """A call of ours: its number and the bytes to write."""
        self._number += 1
        head = b'{"jsonrpc":"2.0","id":%d,"method":' % self._number
        return self._number, head + self._call(method, params)

    def notification(self, method: str, params: Any = None) -> bytes:
        """A notification of ours: the bytes to write."""
        return b'{"jsonrpc":"2.0","method":' + self._call(method, params)

    def result(self, request: Request, value: Any) -> bytes:
        """The answer to a request: bytes to write. One that is too large, alone or in its batch, becomes an error.

        Raises ValueError or TypeError if the codec cannot write `value`; the request is then still to be answered.
        """
        return self.result_text(request, self._codec.encode(value))

    def result_text(self, request: Request, text: bytes) -> bytes:
        """The same from ready JSON text (compact, ASCII)."""
        batch = request._batch
        if len(text) > (MAX_RESULT if batch is None else _BATCH_ROOM - batch.size):
            what = "the answer is larger than a message may be"
            return self._answer(request, self._refusal(request._text, TOO_LARGE, what, MAX_FRAME))
        if batch is None:
            return b"".join((b'{"jsonrpc":"2.0","id":', request._text, b',"result":', text, b"}\n"))
        return self._answer(request, b'{"jsonrpc":"2.0","id":' + request._text + b',"result":' + text + b"}")

    def error(self, request: Request, payload: dict[str, Any]) -> bytes:
        """The answer to a request that failed: `payload` has `code`, `message` and perhaps `data`."""
        text = self._codec.encode(payload)
        return self._answer(request, b'{"jsonrpc":"2.0","id":' + request._text + b',"error":' + text + b"}")

    def _call(self, method: str, params: Any) -> bytes:
        name = self._codec.encode(method)
        if params is None:
            return name + b"}\n"
        return name + b',"params":' + self._codec.encode(params) + b"}\n"

    def _answer(self, request: Request, answer: bytes) -> bytes:
        if request._batch is None:
            return answer + b"\n"
        return request._batch.fill(request._place, answer)

    def _refusal(self, text: bytes, code: int, message: str, limit: Optional[int] = None) -> bytes:
        name, hint = _HINTS.get(code, _ENVELOPE_HINT)
        data: dict[str, Any] = {"name": name, "hint": hint, "retryable": False}
        if limit is not None:
            data["limit"] = limit
        payload = self._codec.encode({"code": code, "message": message, "data": data})
        return b'{"jsonrpc":"2.0","id":' + text + b',"error":' + payload + b"}"

    def _unreadable(self, error: FrameError) -> Send:
        self._wrong += 1
        fatal = error.fatal or self._wrong >= MAX_WRONG
        self._closed = fatal
        return Send(self._refusal(b"null", error.code, error.message, error.limit) + b"\n", fatal)

    def _plain(self, calls: list[tuple[Any, Optional[bytes], str, Any]]) -> Iterator[Event]:
        """What the codec's `calls` found."""
        if calls:
            self._wrong = 0
        for number, text, method, params in calls:
            if text is None:
                yield Notification(method, params)
            else:
                yield Request(number, text, method, params, None, 0)

    def _received(self, value: Any) -> Iterator[Event]:
        self._wrong = 0
        if type(value) is not list:
            yield self._message(value, None)
            return
        if not value or len(value) > MAX_BATCH:
            message = "a batch of more than %d" % MAX_BATCH if value else "an empty batch"
            limit = MAX_BATCH if value else None
            yield Send(self._refusal(b"null", INVALID_REQUEST, message, limit) + b"\n")
            return
        batch = _Batch()
        events: list[Event] = []
        for item in value:
            event = self._message(item, batch)
            if isinstance(event, Send):
                batch.fill(batch.place(), event.data)
            else:
                events.append(event)
        whole = batch.read()
        if whole:  # nothing in it waits for an answer
            events.append(Send(whole))
        yield from events

    def _message(self, value: Any, batch: Optional[_Batch]) -> Event:
        """What one value means. In a batch, the data of a Send has no newline: it becomes an item."""
        try:
            message = value if batch is None else self._codec.item(value)
            if type(message) is not dict:
                return self._invalid(b"null", "a request is an object", batch)
            if "method" not in message and ("result" in message or "error" in message):
                return self._response(message)
            return self._call_of(message, batch)
        except EnvelopeError as error:
            return self._invalid(b"null", str(error), batch)
        except (ValueError, RecursionError):  # a member that only looked like JSON, such as 1e400
            refusal = self._refusal(b"null", PARSE_ERROR, "this is not JSON")
            return Send(refusal if batch is not None else refusal + b"\n")

    def _call_of(self, message: dict[str, Any], batch: Optional[_Batch]) -> Event:
        codec = self._codec
        number: Any = None
        text = b"null"
        raw = message.get("id", _ABSENT)
        if raw is not _ABSENT:
            text = codec.text(raw)
            if text.isdigit() and len(text) < 16:
                number = int(text)
            else:
                number = codec.value(raw) if len(text) <= 6 * MAX_ID + 2 else 0.5
                if not _is_id(number):
                    whole = type(number) is int and len(text) <= MAX_ID
                    why = "the id is neither a short string nor a safe integer"
                    return self._invalid(text if whole else b"null", why, batch)
                text = ascii_only(text)
        raw_version = message.get("jsonrpc", _ABSENT)
        if raw_version not in _VERSION and (raw_version is _ABSENT or codec.value(raw_version) != "2.0"):
            return self._invalid(text, 'the member "jsonrpc" is not "2.0"', batch)
        raw_method = message.get("method", _ABSENT)
        method = None if raw_method is _ABSENT else codec.value(raw_method)
        if type(method) is not str or not 0 < len(method) <= MAX_METHOD:
            why = 'the member "method" is not a string of 1 to %d characters' % MAX_METHOD
            return self._invalid(text, why, batch)
        params = message.get("params")
        if params is not None and type(params) is not dict and type(params) is not list:
            first = codec.text(params)[:1]
            if first == b"n":
                params = None
            elif first != b"{" and first != b"[":
                return self._invalid(text, 'the member "params" is neither an object nor an array', batch)
        if raw is _ABSENT:
            return Notification(method, params)
        return Request(number, text, method, params, batch, 0 if batch is None else batch.place())

    def _invalid(self, text: bytes, message: str, batch: Optional[_Batch]) -> Send:
        refusal = self._refusal(text, INVALID_REQUEST, message)
        return Send(refusal if batch is not None else refusal + b"\n")

    def _response(self, message: dict[str, Any]) -> Response:
        codec = self._codec
        number = None
        if "id" in message and len(codec.text(message["id"])) <= 6 * MAX_ID + 2:
            number = codec.value(message["id"])
            if not _is_id(number):
                number = None
        error = codec.value(message["error"]) if "error" in message else None
        if error is None and "result" in message:  # some write the unused member as null
            return Response(number, message["result"], None)
        return Response(number, None, _error_of(error))


def _is_id(value: Any) -> bool:
    if type(value) is int:
        return -_LARGEST_ID <= value <= _LARGEST_ID
    return value is None or (type(value) is str and len(value.encode("utf-8")) <= MAX_ID)


def _error_of(error: Any) -> dict[str, Any]:
    """An error object to rely on, whatever the other side sent."""
    if isinstance(error, dict) and type(error.get("code")) is int and isinstance(error.get("message"), str):
        return error
    return {"code": INTERNAL_ERROR, "message": "the other side answered with a malformed error"}
