"""JSON by msgspec: the envelope is opened, its members stay text until somebody wants them.

A bridge forwards most params and contents unread, so they are never decoded; and an id comes back as it was written.
"""

from __future__ import annotations

from typing import Any, NewType

import msgspec
from msgspec import Raw

from armorclaw.rpc.jsonrpc import EnvelopeError, ascii_only

Text = NewType("Text", bytes)
"""A member of a message: its JSON text, syntactically valid and UTF-8."""

_decode_envelope = msgspec.json.Decoder(dict[str, Raw] | list[Raw]).decode
_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


class MsgspecCodec:
    """`armorclaw.rpc.jsonrpc.Codec` on msgspec. Members and items are `bytes` (`Text`).

    Stricter than the library: raw bytes that are not UTF-8 are refused at once rather than when decoded, and so is an
    envelope that names a member twice.
    """

    def decode(self, text: bytes) -> Any:
        """Raises ValueError."""
        if not text.isascii():
            text.decode("utf-8")
        try:
            message = _decode_envelope(text)
        except msgspec.ValidationError:
            return _decode(text)  # neither object nor array; or no value at all, such as 1e400
        if type(message) is list:
            return [bytes(item) for item in message]
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
        return _decode(member)

    def text(self, member: bytes) -> bytes:
        return member

    def encode(self, value: Any) -> bytes:
        """Raises ValueError or TypeError. `msgspec.Raw` is copied as it is, non-ASCII escaped like the rest."""
        text = _encode(value)
        return text if text.isascii() else ascii_only(text)
