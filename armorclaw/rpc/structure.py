"""Params and results between JSON and attrs classes, by cattrs.

Strict on the way in: no unknown field, no text for a number, no truth value for an integer. Every fault is named with
its field, and never with its value, which may be a secret. A field called `from_` is `from` on the wire, both ways.
"""

from __future__ import annotations

import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, TypeVar, Union, get_args, get_origin

import attrs
import cattrs
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn, override

from armorclaw.errors import ArmorclawError

T = TypeVar("T")

_KINDS = {str: "text", int: "a whole number", float: "a number", bool: "true or false", type(None): "null"}
_OMITS_NONE = "__armorclaw_omits_none__"


class _MismatchError(ValueError):
    """What is wrong with one value, in words that do not repeat it."""


def omit_none(cls: type[T]) -> type[T]:
    """Class decorator for results: a field whose default is None is left out while it is None."""
    setattr(cls, _OMITS_NONE, True)
    return cls


def reader(cls: type[T], *, open: bool = False) -> Callable[[Any], T]:  # noqa: A002
    """A function that builds `cls` from decoded params: an object, an array in the order of the fields, or None.

    It raises ArmorclawError("invalid_params") naming every field at fault. `open`: unknown fields are ignored.
    """
    build = (_OPEN if open else _STRICT).get_structure_hook(cls)
    names = [_wire_name(field.name) for field in attrs.fields(cls)]  # type: ignore[arg-type]  # an attrs class

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
    fields = sorted({place for place, _ in faults if place})[:20]
    return ArmorclawError("invalid_params", text, fields=fields)


def _faults(error: BaseException, place: str) -> Iterator[tuple[str, str]]:
    """Every leaf of cattrs' tree of errors, with the path of names to it."""
    if isinstance(error, cattrs.BaseValidationError):
        for inner in error.exceptions:
            yield from _faults(inner, _place(place, inner))
    elif isinstance(error, cattrs.ForbiddenExtraKeysError):
        for name in sorted(error.extra_fields)[:20]:
            yield f"{place}.{name:.64}".lstrip("."), "is not known"
    elif isinstance(error, _MismatchError):
        yield place, str(error)
    elif isinstance(error, KeyError):
        yield place, "is missing"
    else:  # a validator of the class: its first argument is its sentence
        yield place, str(error.args[0]) if error.args else "has an unusable value"


def _place(place: str, error: BaseException) -> str:
    for note in getattr(error, "__notes__", ()):
        if isinstance(note, cattrs.AttributeValidationNote):
            return f"{place}.{_wire_name(note.name)}".lstrip(".")
        if isinstance(note, cattrs.IterableValidationNote):
            return f"{place}.{note.index:.64}" if isinstance(note.index, str) else f"{place}[{note.index}]"
    return place


def _wire_name(name: str) -> str:
    return name[:-1] if name.endswith("_") else name


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
        return {field.name: override(rename=_wire_name(field.name)) for field in attrs.fields(cls)}

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
        omits = getattr(cls, _OMITS_NONE, False)
        fields: dict[str, Any] = {
            field.name: override(rename=_wire_name(field.name), omit_if_default=bool(omits and field.default is None))
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
            return finish(_each(enumerate(value), hook, item, wanted))

        return check

    def mapping(wanted: Any) -> Callable[[Any, Any], Any]:
        item = (get_args(wanted) or (str, Any))[1]
        hook = made.get_structure_hook(item)

        def check(value: Any, _: Any) -> Any:
            if type(value) is not dict:
                raise _mismatch(value, "an object")
            return dict(zip(value, _each(value.items(), hook, item, wanted), strict=True))

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


def _each(items: Iterable[tuple[Any, Any]], hook: Callable[[Any, Any], Any], item: Any, wanted: Any) -> list[Any]:
    """Every element built; all that cannot be are named."""
    made = []
    errors = []
    for index, value in items:
        try:
            made.append(hook(value, item))
        except (cattrs.BaseValidationError, _MismatchError) as error:
            error.add_note(cattrs.IterableValidationNote("", index, item))
            errors.append(error)
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
