"""JSON as a core wants it: what a codec has to do, and one of the standard library.

Standard library only, Python 3.9, as `armorclaw.rpc.jsonrpc` is; the bridge's own codec is `armorclaw.rpc.codec`.
"""

from __future__ import annotations

import json
import re
from json.encoder import encode_basestring_ascii
from typing import Any, Optional, Protocol


class EnvelopeError(ValueError):
    """From a codec's `decode`: valid JSON, but no message can be meant by it."""


class Codec(Protocol):
    """JSON in one library's terms. Whatever is wrong with the text, `decode` and `value` raise a ValueError.

    `decode` gives an object as a dict and an array as a list. Their members may be left undecoded, in any type of the
    codec's own; `item` opens an item of a batch as `decode` would, `value` makes a member plain Python, `text` gives
    its JSON text. `encode` writes compact ASCII without newline, and raises ValueError or TypeError if it cannot.

    `calls` is a shortcut, for a codec that knows one, through a text of whole lines that hold nothing but calls and
    notifications with which nothing is special: id, text of the id (None: a notification), method and params of each.
    It raises nothing. None means that framing, `decode` and the rules of the envelope are to say what the text is;
    of what `calls` takes they would say the same.
    """

    def calls(self, text: bytes) -> Optional[list[tuple[Any, Optional[bytes], str, Any]]]: ...
    def decode(self, text: bytes) -> Any: ...
    def item(self, item: Any) -> Any: ...
    def value(self, member: Any) -> Any: ...
    def text(self, member: Any) -> bytes: ...
    def encode(self, value: Any) -> bytes: ...


class JsonCodec:
    """The standard library's json, made strict: no NaN, no infinity, no half of a surrogate pair."""

    def __init__(self) -> None:
        self._decode = json.JSONDecoder(parse_constant=_refuse, parse_float=_finite).decode
        self._encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode

    def calls(self, text: bytes) -> Optional[list[tuple[Any, Optional[bytes], str, Any]]]:
        return None

    def decode(self, text: bytes) -> Any:
        try:
            value = self._decode(text.decode("utf-8"))
            if _HALF_SURROGATE(text):  # perhaps one of a proper pair: only encoding tells
                json.dumps(value, ensure_ascii=False).encode("utf-8")
        except RecursionError:
            raise ValueError("nested too deep") from None
        return value

    def item(self, item: Any) -> Any:
        return item

    def value(self, member: Any) -> Any:
        return member

    def text(self, member: Any) -> bytes:
        return self._encode(member).encode("ascii")

    def encode(self, value: Any) -> bytes:
        return self._encode(value).encode("ascii")


_HALF_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]").search


def _refuse(word: str) -> Any:
    raise ValueError("%s is not JSON" % word)


def _finite(text: str) -> float:
    number = float(text)
    if number - number != 0.0:
        raise ValueError("the number is too large")
    return number


def ascii_only(text: bytes) -> bytes:
    """The same JSON with everything beyond ASCII, which only strings can hold, as `\\uXXXX`."""
    if text.isascii():
        return text
    return _BEYOND_ASCII(_escaped, text.decode("utf-8")).encode("ascii")


_BEYOND_ASCII = re.compile("[^\x00-\x7f]+").sub


def _escaped(match: re.Match[str]) -> str:
    return encode_basestring_ascii(match[0])[1:-1]
