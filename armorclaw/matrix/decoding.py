"""The body of an answer, read and made into JSON, however large, deep or broken.

One event must not stop a whole sync.
"""

from __future__ import annotations

import json
import re
import zlib
from typing import Any

import httpx
import msgspec
import trio
from mautrix.errors import MatrixConnectionError, MatrixResponseError

MAX_ANSWER = 64 * 1024 * 1024
"""Bytes of one answer, decoded; a first sync of an account in thousands of rooms has a few MiB."""

_DECODE_INLINE = 1024 * 1024  # bytes; more is unpacked and decoded in a thread, since 1 MiB costs about 5 ms
_DEEP = 256  # brackets open at once; an answer that cannot be read otherwise has null for what is deeper


class NotJSONError(MatrixResponseError):
    """The homeserver, or something in front of it, said yes and then gave something else than a JSON object."""


class _TooLargeError(MatrixConnectionError):
    """The answer is larger than was asked for."""


async def read(response: httpx.Response) -> bytes:
    """The body as it came. Raises MatrixConnectionError if it is too large, and what httpx raises."""
    body = bytearray()
    async for chunk in response.aiter_raw():
        if len(body) + len(chunk) > MAX_ANSWER:
            await response.aclose()  # the iteration then ends by itself; left half-way it would litter
        body += chunk
    if len(body) > MAX_ANSWER:
        raise MatrixConnectionError(f"the answer is larger than {MAX_ANSWER} bytes")
    return bytes(body)


def is_packed(response: httpx.Response) -> bool:
    """Whether it must be unpacked first."""
    return str(response.headers.get("content-encoding", "")).lower() == "gzip"


def unpack(body: bytes, limit: int) -> bytes:
    """Raises MatrixConnectionError if there is more than that, and NotJSONError if it is no gzip."""
    inflate = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        whole = inflate.decompress(body, limit)
    except zlib.error as error:
        raise NotJSONError("the answer is not what its gzip header says") from error
    if inflate.unconsumed_tail:
        raise _TooLargeError(f"the answer is larger than {limit} bytes")
    return whole


async def decode(body: bytes, *, packed: bool) -> Any:
    """What it says, read in a thread if that takes long. Raises NotJSONError, and MatrixConnectionError if it is too
    large."""
    try:
        if len(body) <= _DECODE_INLINE:
            try:
                return _loads(unpack(body, _DECODE_INLINE) if packed else body)
            except (_TooLargeError, RecursionError):
                pass
        return await trio.to_thread.run_sync(_read_whole, body, packed, abandon_on_cancel=True)
    except (ValueError, RecursionError):
        raise NotJSONError("the answer is not JSON") from None


def _read_whole(body: bytes, packed: bool) -> Any:
    """In a thread: however large it is, however deep."""
    text = unpack(body, MAX_ANSWER) if packed else body
    try:
        return _loads(text)
    except RecursionError:
        return _loads(_pruned(text))


_QUOTED_OR_BRACKET = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)


def _pruned(text: bytes) -> bytes:
    """The same JSON without what is too deep for any reader: one such event must not stop a whole sync."""
    kept: list[bytes] = []
    depth = begin = 0
    for found in _QUOTED_OR_BRACKET.finditer(text):
        byte = text[found.start()]
        if byte in b"[{":
            depth += 1
            if depth == _DEEP + 1:
                kept += (text[begin : found.start()], b"null")
        elif byte in b"]}":
            depth -= 1
            if depth == _DEEP:
                begin = found.end()
    return b"".join((*kept, text[begin:])) if depth == 0 else b""


def _loads(body: bytes) -> Any:
    """Strict JSON first. Half a surrogate pair in one message must not stop a whole sync: mend it."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return _mended(json.loads(body.decode("utf-8", "replace")))


def _mended(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {_mended(name): _mended(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_mended(entry) for entry in value]
    return value
