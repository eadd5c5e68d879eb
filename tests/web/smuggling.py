"""What may be sent to a server of HTTP/1.1, and the one answer that each has: statuses, and whether it closes."""

from __future__ import annotations

BODY = b'{"model":"small","messages":[]}'
POST = b"POST /v1/chat HTTP/1.1\r\nHost: x\r\n"
LENGTH = b"Content-Length: %d\r\n" % len(BODY)
CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"
CHUNKS = b"%x\r\n%s\r\n0\r\n\r\n" % (len(BODY), BODY)
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"
GOOD = POST + LENGTH + b"\r\n" + BODY


def post(line: bytes) -> bytes:
    """The good request, with one more line in its head."""
    return POST + line + LENGTH + b"\r\n" + BODY


CASES: dict[str, tuple[bytes, list[int], bool]] = {
    "good": (GOOD, [200], False),
    "good, chunked": (POST + CHUNKED + CHUNKS, [200], False),
    "good, in three chunks": (POST + CHUNKED + b"1\r\na\r\nA\r\n0123456789\r\n01\r\nb\r\n0\r\n\r\n", [200], False),
    "good, two in a row": (GOOD * 2, [200, 200], False),
    "good, chunked and then another": (POST + CHUNKED + CHUNKS + GOOD, [200, 200], False),
    "good, chunked in capitals": (POST + b"TRANSFER-ENCODING: Chunked\r\n\r\n" + CHUNKS, [200], False),
    "it asks to close": (POST + b"Connection: close\r\n" + LENGTH + b"\r\n" + BODY, [200], True),
    "100-continue": (post(b"Expect: 100-continue\r\n"), [200], False),
    "something else expected": (post(b"Expect: the moon\r\n"), [417], True),
    # two lengths
    "length and chunked": (POST + LENGTH + CHUNKED + CHUNKS, [400], True),
    "chunked and length": (POST + b"Transfer-Encoding: chunked\r\n" + LENGTH + b"\r\n" + CHUNKS, [400], True),
    "short length, then smuggled": (
        POST + b"Content-Length: 4\r\n" + CHUNKED + CHUNKS + SMUGGLED,
        [400],
        True,
    ),
    "two lengths that differ": (POST + LENGTH + b"Content-Length: 5\r\n\r\n" + BODY, [400], True),
    "two lengths that agree": (POST + LENGTH + LENGTH + b"\r\n" + BODY, [400], True),
    "a list of lengths": (POST + b"Content-Length: 31, 31\r\n\r\n" + BODY, [400], True),
    "chunked twice": (POST + b"Transfer-Encoding: chunked\r\n" + CHUNKED + CHUNKS, [400], True),
    # odd lengths
    "length +31": (POST + b"Content-Length: +31\r\n\r\n" + BODY, [400], True),
    "length -1": (POST + b"Content-Length: -1\r\n\r\n" + BODY, [400], True),
    "length 0x1f": (POST + b"Content-Length: 0x1f\r\n\r\n" + BODY, [400], True),
    "length 1_0": (POST + b"Content-Length: 1_0\r\n\r\n" + BODY, [400], True),
    "length in other digits": (POST + "Content-Length: ٣\r\n\r\n".encode() + BODY, [400], True),
    "an empty length": (POST + b"Content-Length:\r\n\r\n" + BODY, [400], True),
    "a huge length": (POST + b"Content-Length: 99999999999\r\n\r\n", [413], True),
    "a length of 400 digits": (POST + b"Content-Length: " + b"9" * 400 + b"\r\n\r\n", [400], True),
    # odd encodings
    "xchunked": (POST + b"Transfer-Encoding: xchunked\r\n\r\n" + CHUNKS, [400], True),
    "chunked, identity": (POST + b"Transfer-Encoding: chunked, identity\r\n\r\n" + CHUNKS, [400], True),
    "gzip, chunked": (POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n" + CHUNKS, [400], True),
    "chunked in quotes": (POST + b'Transfer-Encoding: "chunked"\r\n\r\n' + CHUNKS, [400], True),
    "an empty encoding": (POST + b"Transfer-Encoding:\r\n\r\n" + CHUNKS, [400], True),
    "white space before the colon": (POST + b"Transfer-Encoding : chunked\r\n\r\n" + CHUNKS, [400], True),
    "vertical tab before chunked": (POST + b"Transfer-Encoding:\x0bchunked\r\n\r\n" + CHUNKS, [400], True),
    # lines
    "folded": (post(b"X-A: b\r\n  c\r\n"), [400], True),
    "folded encoding": (POST + b"Transfer-Encoding:\r\n chunked\r\n\r\n" + CHUNKS, [400], True),
    "folded before the first": (b"GET / HTTP/1.1\r\n X: y\r\nHost: x\r\n\r\n", [400], True),
    "all lines end in LF": ((POST + LENGTH).replace(b"\r\n", b"\n") + b"\n" + BODY, [400], True),
    "one line ends in LF": (post(b"X-A: 1\nX-B: 2\r\n"), [400], True),
    "the head ends in LF": (b"GET / HTTP/1.1\r\nHost: x\r\n\n", [400], True),
    "CR in a value": (post(b"X-A: 1\rX-B: 2\r\n"), [400], True),
    "CR before CRLF": (post(b"X-A: 1\r\r\n"), [400], True),
    "NUL in a value": (post(b"X-A: a\0b\r\n"), [400], True),
    "NUL in a name": (post(b"X\0A: b\r\n"), [400], True),
    "DEL in a value": (post(b"X-A: a\x7fb\r\n"), [400], True),
    "no colon": (post(b"X-A\r\n"), [400], True),
    "no name": (post(b": b\r\n"), [400], True),
    "a name of another alphabet": (post("ẋ: b\r\n".encode()), [400], True),
    "a value of another alphabet": (post("x: ẋ\r\n".encode()), [200], False),
    "an empty line first": (b"\r\n" + GOOD, [400], True),
    # the request line
    "an absolute target": (POST.replace(b" /", b" http://evil/") + LENGTH + b"\r\n" + BODY, [400], True),
    "CONNECT": (b"CONNECT evil:443 HTTP/1.1\r\nHost: evil\r\n\r\n", [405], True),
    "CONNECT to a path": (b"CONNECT /evil HTTP/1.1\r\nHost: evil\r\n\r\n", [400], True),
    "CONNECT with a body": (b"CONNECT evil:443 HTTP/1.1\r\nHost: e\r\nContent-Length: 3\r\n\r\nabc", [400], True),
    "OPTIONS *": (b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", [400], True),
    "two slashes": (b"GET //evil/ HTTP/1.1\r\nHost: x\r\n\r\n", [400], True),
    "no slash": (b"GET v1 HTTP/1.1\r\nHost: x\r\n\r\n", [400], True),
    "a fragment": (b"GET /a#b HTTP/1.1\r\nHost: x\r\n\r\n", [400], True),
    "a target of another alphabet": ("GET /ẋ HTTP/1.1\r\nHost: x\r\n\r\n".encode(), [400], True),
    "two spaces": (b"GET  / HTTP/1.1\r\nHost: x\r\n\r\n", [400], True),
    "a tab": (b"GET\t/ HTTP/1.1\r\nHost: x\r\n\r\n", [400], True),
    "a space at the end": (b"GET / HTTP/1.1 \r\nHost: x\r\n\r\n", [400], True),
    "a method in small letters": (b"get / HTTP/1.1\r\nHost: x\r\n\r\n", [400], True),
    "HTTP/1.0": (b"GET / HTTP/1.0\r\nHost: x\r\n\r\n", [505], True),
    "HTTP/1.0, chunked": (POST.replace(b"1.1", b"1.0") + CHUNKED + CHUNKS, [505], True),
    "HTTP/1.2": (b"GET / HTTP/1.2\r\nHost: x\r\n\r\n", [505], True),
    "HTTP/11": (b"GET / HTTP/11\r\nHost: x\r\n\r\n", [400], True),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", [505], True),
    "HTTP/0.9": (b"GET /\r\n", [400], True),
    "TLS": (b"\x16\x03\x01\x02\0\x01\0", [400], True),
    "no Host": (b"GET / HTTP/1.1\r\n\r\n", [400], True),
    "two Hosts": (post(b"Host: y\r\n"), [400], True),
    # sizes
    "a header of 1 MB": (post(b"X-A: " + b"a" * 1_000_000 + b"\r\n"), [431], True),
    "a line without an end": (b"GET /" + b"a" * 20_000, [431], True),
    "300 headers": (post(b"".join(b"X-%d: 1\r\n" % number for number in range(300))), [431], True),
    # chunks
    "no chunk size": (POST + CHUNKED + b"zz\r\n", [400], True),
    "an empty chunk size": (POST + CHUNKED + b"\r\n", [400], True),
    "a chunk size of 0x": (POST + CHUNKED + b"0x1f\r\n" + BODY, [400], True),
    "a negative chunk": (POST + CHUNKED + b"-1\r\n", [400], True),
    "a chunk size of 20 digits": (POST + CHUNKED + b"1" * 20 + b"\r\n", [400], True),
    "a chunk larger than a body may be": (POST + CHUNKED + b"ffffffff\r\n" + b"a" * 1_100_000, [413], True),
    "white space behind a chunk size": (POST + CHUNKED + b"1 \r\na\r\n0\r\n\r\n", [400], True),
    "a chunk extension": (POST + CHUNKED + b"1;a=b\r\na\r\n0\r\n\r\n", [400], True),
    "a long chunk extension": (POST + CHUNKED + b"1;" + b"a" * 100_000 + b"\r\na\r\n0\r\n\r\n", [400], True),
    "CR in a chunk extension": (POST + CHUNKED + b"1;\ra\r\na\r\n0\r\n\r\n", [400], True),
    "chunks that end in LF": (POST + CHUNKED + CHUNKS.replace(b"\r\n", b"\n"), [400], True),
    "a chunk longer than it says": (POST + CHUNKED + b"1\r\nab\r\n0\r\n\r\n", [400], True),
    "a chunk without an end, but a size": (POST + CHUNKED + b"1\r\na0\r\n\r\n", [400], True),
    "trailers": (POST + CHUNKED + b"0\r\nX-A: b\r\n\r\n", [400], True),
    "the end of chunks in LF": (POST + CHUNKED + b"0\r\n\n" + SMUGGLED, [400], True),
    # what follows
    "pipelined, the second folded": (GOOD + post(b"X: a\r\n b\r\n"), [200, 400], True),
    "pipelined, the second with two lengths": (GOOD + POST + LENGTH + LENGTH + b"\r\n" + BODY, [200, 400], True),
    "pipelined, the second in LF": (GOOD + b"GET / HTTP/1.1\nHost: x\n\n", [200, 400], True),
    "a body longer than its length": (POST + b"Content-Length: 4\r\n\r\n" + BODY + b"\r\n", [200, 400], True),
    "upgrade to a web socket is not heard": (
        b"GET /v1 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        [200],
        False,
    ),
    "upgrade to HTTP/2 is not heard": (
        b"GET /v1 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\n\r\n",
        [200],
        False,
    ),
    "half a head": (b"POST /x HTTP/1.1\r\nHost:", [], False),
    "half a body": (POST + LENGTH + b"\r\n" + BODY[:5], [], False),
}
