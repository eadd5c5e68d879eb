"""Params and results between JSON and attrs classes, by cattrs.

Strict on the way in: no unknown field, no text for a number, no truth value for an integer. Every fault is named with
its field, and never with its value, which may be a secret. A field called `from_` is `from` on the wire, both ways.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from heapq import nsmallest
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import attrs
import cattrs
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, override

from armorclaw.errors import ArmorclawError
from armorclaw.rpc.shape import FieldError, omits_none, wire_name

T = TypeVar("T")

MAX_FAULTS = 20
"""Faults that are named; once so many elements of an array or object are wrong, no more of it are looked at."""

MAX_ELEMENTS = 10_000
"""Elements of one array or object whose elements have a type. A frame could hold half a million."""

_KINDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}


class _MismatchError(ValueError):
    """What is wrong with one value, in words that do not repeat it."""


def reader(cls: type[T], *, open: bool = False) -> Callable[[Any], T]:  # noqa: A002
    """A function that builds `cls` from decoded params: an object, an array in the order of the fields, or None.

    It raises ArmorclawError("invalid_params") naming every field at fault. `open`: unknown fields are ignored.
    """
    build = (_OPEN if open else _STRICT).get_structure_hook(cls)
    names = [wire_name(field.name) for field in attrs.fields(cls)]  # type: ignore[arg-type]  # an attrs class

    def read(params: Any) -> T:
        if params is None:
            params = {}
        elif type(params) is list:
            if len(params) > len(names):
                raise _refused([("", f"takes at most {len(names)} params, not {len(params)}")])
            params = dict(zip(names, params, strict=False))
        try:
            made: T = build(params, cls)
        except (cattrs.BaseValidationError, _MismatchError) as error:
            raise _refused(list(_faults(error, ""))) from None
        return made

    return read


def piece_reader(kind: Any, *, open: bool = False) -> Callable[[Any], Any]:  # noqa: A002
    """A function that builds one value of any type from decoded JSON; `open` and what it raises are as `reader`'s."""
    if kind in (Any, None):
        return lambda value: value
    build = (_OPEN if open else _STRICT).get_structure_hook(kind)

    def read(value: Any) -> Any:
        try:
            return build(value, kind)
        except (cattrs.BaseValidationError, _MismatchError) as error:
            raise _refused(list(_faults(error, ""))) from None

    return read


def writer(result: Any) -> Callable[[Any], Any]:
    """A function that turns a handler's result into what the codec can write; None becomes an empty object."""
    if result in (None, type(None)):
        return lambda value: {} if value is None else _STRICT.unstructure(value)
    if _is_mapping(result):
        return lambda value: value
    if attrs.has(result):
        hook = _STRICT.get_unstructure_hook(result)
        return lambda value: hook(value) if type(value) is result else _STRICT.unstructure(value)
    return _STRICT.unstructure


def _refused(faults: list[tuple[str, str]]) -> ArmorclawError:
    text = "; ".join(f"{place} {what}" if place else what for place, what in faults[:5])
    fields = sorted({place for place, _ in faults if place})[:MAX_FAULTS]
    return ArmorclawError("invalid_params", text, fields=fields)


def _faults(error: BaseException, place: str) -> Iterator[tuple[str, str]]:
    """Every leaf of cattrs' tree of errors, with the path of names to it."""
    if isinstance(error, cattrs.BaseValidationError):
        for inner in error.exceptions:
            yield from _faults(inner, _place(place, inner))
    elif isinstance(error, cattrs.ForbiddenExtraKeysError):
        for name in nsmallest(MAX_FAULTS, error.extra_fields):
            yield f"{place}.{name:.64}".lstrip("."), "is not known"
    elif isinstance(error, _MismatchError):
        yield place, str(error)
    elif isinstance(error, KeyError):
        yield place, "is missing"
    elif isinstance(error, FieldError):
        yield f"{place}.{error.field}".lstrip("."), str(error)
    else:  # a validator of the class: its first argument is its sentence
        yield place, str(error.args[0]) if error.args else "has an unusable value"


def _place(place: str, error: BaseException) -> str:
    for note in getattr(error, "__notes__", ()):
        if isinstance(note, cattrs.AttributeValidationNote):
            return f"{place}.{wire_name(note.name)}".lstrip(".")
        if isinstance(note, cattrs.IterableValidationNote):
            return f"{place}.{note.index:.64}" if isinstance(note.index, str) else f"{place}[{note.index}]"
    return place


def _mismatch(value: Any, wanted: str) -> _MismatchError:
    got = _KINDS.get(type(value), "an array" if isinstance(value, list) else "an object")
    return _MismatchError(f"must be {wanted}, not {got}")


def _exactly(kind: type) -> Callable[[Any, Any], Any]:
    def check(value: Any, _: Any) -> Any:
        if type(value) is kind:
            return value
        raise _mismatch(value, _KINDS[kind])

    return check


def _number(value: Any, _: Any) -> float:
    if type(value) is float or type(value) is int:
        try:
            return float(value)
        except OverflowError:
            raise _MismatchError("is too large") from None
    raise _mismatch(value, "a number")


def _one_of(value: Any, wanted: Any) -> Any:
    for choice in get_args(wanted):
        if type(choice) is type(value) and choice == value:
            return value
    raise _MismatchError("must be one of " + ", ".join(str(choice) for choice in get_args(wanted)))


def _is_union(wanted: Any) -> bool:
    return get_origin(wanted) in (Union, types.UnionType)


def _is_literal(wanted: Any) -> bool:
    return get_origin(wanted) is Literal


def _named(wanted: Any) -> str:
    if _is_literal(wanted):
        return " or ".join(f'"{choice}"' for choice in get_args(wanted))
    origin = get_origin(wanted) or wanted
    return _KINDS.get(origin, "an array" if origin in (list, tuple) else "an object")


def _make(*, forbid_extra_keys: bool) -> cattrs.Converter:
    made = cattrs.Converter(forbid_extra_keys=forbid_extra_keys, detailed_validation=True)

    def renames(cls: type) -> dict[str, Any]:
        return {field.name: override(rename=wire_name(field.name)) for field in attrs.fields(cls)}

    def build(cls: Any) -> Callable[[Any, Any], Any]:
        attrs.resolve_types(cls)
        inner = make_dict_structure_fn(cls, made, _cattrs_forbid_extra_keys=forbid_extra_keys, **renames(cls))

        def structure(value: Any, wanted: Any) -> Any:
            if type(value) is not dict:
                raise _mismatch(value, "an object")
            return inner(value, wanted)

        return structure

    def flatten(cls: Any) -> Callable[[Any], Any]:
        attrs.resolve_types(cls)
        omits = omits_none(cls)
        fields: dict[str, Any] = {
            field.name: override(rename=wire_name(field.name), omit_if_default=omits and field.default is None)
            for field in attrs.fields(cls)
        }
        return make_dict_unstructure_fn(cls, made, **fields)

    def union(value: Any, wanted: Any) -> Any:
        members = get_args(wanted)
        if value is None and type(None) in members:
            return None
        rest = [member for member in members if member is not type(None)]
        for member in rest:
            try:
                return made.structure(value, member)
            except (cattrs.BaseValidationError, _MismatchError):
                if len(rest) == 1:
                    raise
        raise _mismatch(value, " or ".join(_named(member) for member in rest))

    def array(wanted: Any) -> Callable[[Any, Any], Any]:
        """cattrs' own would take the characters of a text for a list."""
        item = (get_args(wanted) or (Any,))[0]
        hook = made.get_structure_hook(item)
        finish: Any = list if list in (wanted, get_origin(wanted)) else tuple

        def check(value: Any, _: Any) -> Any:
            if type(value) is not list:
                raise _mismatch(value, "an array")
            return finish(_each(len(value), enumerate(value), hook, item, wanted))

        return check

    def mapping(wanted: Any) -> Callable[[Any, Any], Any]:
        item = (get_args(wanted) or (str, Any))[1]
        hook = made.get_structure_hook(item)

        def check(value: Any, _: Any) -> Any:
            if type(value) is not dict:
                raise _mismatch(value, "an object")
            return dict(zip(value, _each(len(value), value.items(), hook, item, wanted), strict=True))

        return check

    made.register_structure_hook_func(_is_union, union)
    made.register_structure_hook_func(_is_literal, _one_of)
    for kind in (str, int, bool):
        made.register_structure_hook(kind, _exactly(kind))
    made.register_structure_hook(float, _number)
    made.register_structure_hook_factory(attrs.has, build)
    made.register_structure_hook_factory(_is_array, array)
    made.register_structure_hook_factory(_is_mapping, mapping)
    made.register_unstructure_hook_factory(attrs.has, flatten)
    return made


def _each(
    size: int, items: Iterable[tuple[Any, Any]], hook: Callable[[Any, Any], Any], item: Any, wanted: Any
) -> list[Any]:
    """Every element built; the first that cannot be are named."""
    if size > MAX_ELEMENTS:
        raise _MismatchError(f"must have at most {MAX_ELEMENTS} elements")
    made = []
    errors: list[Exception] = []
    for index, value in items:
        try:
            made.append(hook(value, item))
        except (cattrs.BaseValidationError, _MismatchError) as error:
            error.add_note(cattrs.IterableValidationNote("", index, item))
            errors.append(error)
            if len(errors) == MAX_FAULTS:
                break
    if errors:
        raise cattrs.IterableValidationError("elements", errors, wanted)
    return made


def _is_array(wanted: Any) -> bool:
    kinds: list[Any] = [list, tuple, Sequence]
    return wanted in kinds or get_origin(wanted) in kinds


def _is_mapping(wanted: Any) -> bool:
    kinds: list[Any] = [dict, Mapping]
    return wanted in kinds or get_origin(wanted) in kinds


_STRICT = _make(forbid_extra_keys=True)
_OPEN = _make(forbid_extra_keys=False)
