"""A shortcut between JSON text and attrs classes of plain values, as most params and results are.

msgspec knows attrs classes, and takes a third of the time of decoding first and structuring then. It is asked only
where it decides as `structure` does; what it refuses is read again there, which has words for what is wrong.
"""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any, TypeVar, Union, get_args, get_origin

import attrs
import msgspec

from armorclaw.errors import ArmorclawError
from armorclaw.rpc.codec import MsgspecCodec
from armorclaw.rpc.shape import omits_none, wire_name

T = TypeVar("T")

_decode = MsgspecCodec().value
_encode = MsgspecCodec().encode
_PLAIN = (str, int, bool, float)


def text_reader(cls: type[T], read: Callable[[Any], T], *, open: bool = False) -> Callable[[bytes | None], T]:  # noqa: A002
    """`read`, which `structure.reader` made for `cls`, from JSON text; None is no params.

    Raises `parse_error` for a value that is out of range, else as `read` does.
    """

    def read_text(text: bytes | None) -> T:
        if text is None:
            return read(None)
        try:
            value = _decode(text)
        except ValueError as error:
            raise ArmorclawError("parse_error", "the params hold a value that is out of range") from error
        return read(value)

    if not _is_plain(cls) or any(field.converter or not field.init for field in attrs.fields(cls)):  # type: ignore[arg-type]
        return read_text
    check = None if open else _names_of(cls)
    build: Callable[[bytes], T] = msgspec.json.Decoder(cls).decode

    def quick(text: bytes | None) -> T:
        if text is not None:
            try:
                if check is not None:
                    check(text)
                return build(text)
            except Exception:  # noqa: BLE001, S110 - read again, to say what is wrong
                pass
        return read_text(text)

    return quick


def text_writer(result: Any, write: Callable[[Any], Any]) -> Callable[[Any], bytes]:
    """`write`, which `structure.writer` made for `result`, to JSON text: compact ASCII in one line.

    Raises ValueError or TypeError if the value cannot be written.
    """
    if not (isinstance(result, type) and attrs.has(result)) or omits_none(result) or not _is_plain(result):
        return lambda value: _encode(value if type(value) is msgspec.Raw else write(value))
    return lambda value: _encode(value if type(value) is result else write(value))


def _names_of(cls: type) -> Callable[[bytes], object]:
    """What raises when an object has other members; msgspec has no word for an attrs class that refuses them."""
    members = [(field.name, msgspec.Raw, msgspec.Raw()) for field in attrs.fields(cls)]
    return msgspec.json.Decoder(msgspec.defstruct(cls.__name__, members, forbid_unknown_fields=True, gc=False)).decode


def _is_plain(cls: Any) -> bool:
    attrs.resolve_types(cls)
    fields = attrs.fields(cls)
    return all(field.name == field.alias == wire_name(field.name) and _is_plain_type(field.type) for field in fields)


def _is_plain_type(kind: Any) -> bool:
    if get_origin(kind) in (Union, types.UnionType):
        members = [member for member in get_args(kind) if member is not type(None)]
        return len(members) == 1 and members[0] in _PLAIN
    return kind in _PLAIN
