"""JSON by msgspec: the envelope is opened, its members stay text until somebody wants them.

A bridge forwards most params and contents unread, so they are never decoded; and an id comes back as it was written.
"""

from __future__ import annotations

import gc
import re
from typing import Annotated, Any, Literal, NewType

import msgspec
from msgspec import Raw

from armorclaw.rpc.framing import MAX_DEPTH, is_shallow, opens_few
from armorclaw.rpc.jsoncodec import EnvelopeError, ascii_only
from armorclaw.rpc.jsonrpc import MAX_BATCH, MAX_METHOD

Text = NewType("Text", bytes)
"""A member of a message: its JSON text, syntactically valid and UTF-8."""


class _Call(msgspec.Struct, forbid_unknown_fields=True, gc=False):
    """What most messages are. Members that are absent are empty, which no JSON text is."""

    jsonrpc: Literal["2.0"]
    method: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_METHOD)]
    id: Raw = Raw()
    params: Raw = Raw()


_LONG = 1024  # bytes
_HEAD = 32  # bytes of long params to look for
_LARGE = 64 * 1024  # bytes

_PLAIN_TEXT = re.compile(rb'"[ !#-\[\]-~]*"').fullmatch

_decode_calls = msgspec.json.Decoder(_Call).decode_lines
_decode_envelope = msgspec.json.Decoder(dict[str, Raw] | list[Raw]).decode
_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


class MsgspecCodec:
    """`armorclaw.rpc.jsonrpc.Codec` on msgspec. Members and items are `bytes` (`Text`).

    Stricter than the library: raw bytes that are not UTF-8 are refused at once rather than when decoded, and so is an
    envelope that names a member twice.
    """

    def calls(self, text: bytes) -> list[tuple[Any, bytes | None, str, bytes | None]] | None:
        try:
            if not text.isascii():
                text.decode("utf-8")
            calls = _decode_calls(text)
        except (ValueError, RecursionError):
            return None
        found: list[tuple[Any, bytes | None, str, bytes | None]] = []
        few = opens_few(text)
        # a member that is there twice brings more quotation marks than those of the members we are given
        quotes = 0
        outside: list[bytes] = []  # of long params
        place = 0  # what lies before it is in `outside`, or in long params
        for call in calls:
            params = bytes(call.params)
            if params:
                if params[0] not in b"{[" or not (few or is_shallow(params, MAX_DEPTH - 1)):
                    return None
                if len(params) < _LONG:
                    quotes += params.count(b'"') + 2
                else:  # finding the place takes less time than counting
                    start = text.find(params[:_HEAD], place)
                    if not text.startswith(params, start):
                        return None
                    outside.append(text[place:start])
                    place = start + len(params)
                    quotes += 2
            id_text = bytes(call.id)
            number: Any = None
            if not id_text:
                quotes += 8
            elif len(id_text) < 16 and id_text.isdigit():
                number = int(id_text)
                quotes += 10
            elif len(id_text) < 128 and _PLAIN_TEXT(id_text):
                number = id_text[1:-1].decode("ascii")
                quotes += 12
            else:
                return None
            found.append((number, id_text or None, call.method, params or None))
        outside.append(text[place:])
        return found if b"".join(outside).count(b'"') == quotes else None

    def decode(self, text: bytes) -> Any:
        """Raises ValueError."""
        if not text.isascii():
            text.decode("utf-8")
        try:
            message = _decode_envelope(text)
        except msgspec.ValidationError:
            return self.value(text)  # neither object nor array; or no value at all, such as 1e400
        if type(message) is list:  # of a batch that is too large, nobody opens the items
            return message if len(message) > MAX_BATCH else [bytes(item) for item in message]
        members = {name: bytes(member) for name, member in message.items()}
        # every quotation mark belongs to one name or one value, or there are more names than we got
        quotes = 2 * len(members)
        for member in members.values():
            quotes += member.count(b'"')
        if text.count(b'"') != quotes:
            raise EnvelopeError("a member is named twice")
        return members

    def item(self, item: bytes) -> Any:
        """Raises ValueError."""
        return self.decode(item)

    def value(self, member: bytes) -> Any:
        """Raises ValueError: a number may be out of range."""
        if len(member) < _LARGE:
            return _decode(member)
        # else the collector would look at all that is made, again and again: 1 MiB of brackets would take 100 ms
        enabled = gc.isenabled()
        gc.disable()
        try:
            return _decode(member)
        finally:
            if enabled:
                gc.enable()

    def text(self, member: bytes) -> bytes:
        return member

    def encode(self, value: Any) -> bytes:
        """Raises ValueError or TypeError. `msgspec.Raw` is copied as it is, non-ASCII escaped like the rest."""
        text = bytes(value) if type(value) is Raw else _encode(value)
        if not text.isascii():
            text = ascii_only(text)
        return text.replace(b"\n", b" ")  # only what is copied can have any, and there they are white space
