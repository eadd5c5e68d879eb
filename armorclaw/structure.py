"""From tables to frozen values, with every fault named at once: place, reason, fix."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, NewType, TypeVar, get_args, get_origin

import attrs
import cattrs

Size = NewType("Size", int)
"""Bytes; in TOML also text such as "512m" (k, m, g are powers of 1024)."""

Frequency = NewType("Frequency", float)
"""Times a second; in TOML also text such as "500/s" or "30/m" (a minute)."""

T = TypeVar("T")

_SIZE = re.compile(r"(\d{1,15})\s*([kmg]?)(?:i?b)?", re.IGNORECASE)

_FREQUENCY = re.compile(r"(\d{1,9})\s*/\s*([sm])")

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


class Secret:
    """Text that does not show itself: not in repr, not in str, not in an error."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def reveal(self) -> str:
        """The text itself, for the one call that needs it."""
        return self._text

    def __repr__(self) -> str:
        return "Secret(…)"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Secret) and other._text == self._text

    def __hash__(self) -> int:
        return hash((Secret, self._text))


class FaultError(ValueError):
    """One thing wrong with one value, with what to do about it."""

    def __init__(self, why: str, fix: str) -> None:
        self.why = why
        self.fix = fix
        super().__init__(why)


@attrs.frozen
class Fault:
    """What is wrong at one place of the file."""

    place: str
    why: str
    fix: str

    def __str__(self) -> str:
        return f"{self.place or 'top level'}: {self.why} → {self.fix}"


def within(place: str, key: str) -> str:
    """The place of `key` in the table at `place`, as TOML writes it: `agents."odd name"`."""
    shown = key if _BARE_KEY.fullmatch(key) else json.dumps(key, ensure_ascii=False)
    return f"{place}.{shown}" if place else shown


def key_of(field: attrs.Attribute[Any]) -> str:
    """The key of a table that is this value: its name, without the underscore behind words that Python has taken."""
    return field.name.removesuffix("_")


def structure(values_of: cattrs.Converter, cls: type[T], data: Any, place: str, faults: list[Fault]) -> T | None:
    """Build `cls` from a table, value by value, so that one fault does not hide the next.

    A class may have a static `check_together(data)` that raises FaultError for values that do not fit together.

    cattrs turns single values; it would run no validator of a class that has any unusable value.
    """
    if not isinstance(data, Mapping):
        faults.append(Fault(place, "a table is expected here", f"write [{place}] and its keys below it"))
        return None
    attrs.resolve_types(cls)  # type: ignore[type-var]  # checked by attrs.has at the caller
    fields = {key_of(field): field for field in attrs.fields(cls) if field.name != "name"}  # type: ignore[arg-type]
    for key in sorted(data.keys() - fields.keys()):
        known = ", ".join(sorted(fields))
        faults.append(Fault(within(place, key), "there is no such key", f"remove it, or choose from: {known}"))
    before = len(faults)
    values: dict[str, Any] = {}
    for key, field in fields.items():
        here = within(place, key)
        if key not in data:
            if field.default is attrs.NOTHING:
                faults.append(Fault(here, "a required key is missing", f"add {key} = …"))
            continue
        entry, several = _entry_of(field.type)
        if attrs.has(entry):
            build = structure if several is None else several
            values[field.name] = build(values_of, entry, data[key], here, faults)
            continue
        try:
            values[field.name] = values_of.structure(data[key], field.type)
            if field.validator is not None:
                field.validator(None, field, values[field.name])
        except FaultError as fault:
            faults.append(Fault(here, fault.why, fault.fix))
    together = getattr(cls, "check_together", None)
    if together is not None:
        try:
            together(data)
        except FaultError as fault:
            faults.append(Fault(place, fault.why, fault.fix))
    if len(faults) != before:
        return None
    try:
        return cls(**values)
    except FaultError as fault:  # of values that do not fit together, defaults among them
        faults.append(Fault(place, fault.why, fault.fix))
        return None


def _entries(
    values_of: cattrs.Converter, cls: type[T], data: Any, place: str, faults: list[Fault]
) -> dict[str, T | None]:
    if not isinstance(data, Mapping):
        faults.append(Fault(place, "a table is expected here", f"write [{place}.NAME] and its keys below it"))
        return {}
    return {name: structure(values_of, cls, entry, within(place, name), faults) for name, entry in data.items()}


def _listed(values_of: cattrs.Converter, cls: type[T], data: Any, place: str, faults: list[Fault]) -> tuple[Any, ...]:
    if not isinstance(data, list):
        faults.append(Fault(place, "a list of tables is expected here", f"write [[{place}]] and its keys below it"))
        return ()
    return tuple(structure(values_of, cls, entry, f"{place}[{at}]", faults) for at, entry in enumerate(data))


def _entry_of(kind: Any) -> tuple[Any, Callable[..., Any] | None]:
    """The type of what is in a table of tables, or in a list, and what builds the whole; else the type itself."""
    if get_origin(kind) is Mapping:
        return get_args(kind)[-1], _entries
    if get_origin(kind) is tuple:
        return get_args(kind)[0], _listed
    return kind, None


def _is_literal(wanted: Any) -> bool:
    return get_origin(wanted) is Literal


def _is_mapping(wanted: Any) -> bool:
    return get_origin(wanted) is Mapping


def converter(folder: Path) -> cattrs.Converter:
    """Turns single values of a TOML file; relative paths are relative to `folder`."""
    made = cattrs.Converter(detailed_validation=False)

    def text(value: Any, _: Any) -> str:
        if not isinstance(value, str):
            raise FaultError(f"{value!r} is not text", 'put it in quotes: "…"')
        if "\x00" in value:
            raise FaultError("the text holds a NUL character", "remove it")
        return value

    def integer(value: Any, _: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise FaultError(f"{value!r} is not a whole number", "write digits without quotes")
        return value

    def truth(value: Any, _: Any) -> bool:
        if not isinstance(value, bool):
            raise FaultError(f"{value!r} is neither true nor false", "write true or false, without quotes")
        return value

    def number(value: Any, _: Any) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool) or math.isnan(value):
            raise FaultError(f"{value!r} is not a number", "write digits without quotes")
        if abs(value) >= 1e12:
            raise FaultError(f"{value!r} is too large", "give a smaller number")
        return float(value)

    def size(value: Any, _: Any) -> Size:
        match = _SIZE.fullmatch(value) if isinstance(value, str) else None
        if match:
            return Size(int(match[1]) * 1024 ** " kmg".index(match[2].lower() or " "))
        if isinstance(value, int) and not isinstance(value, bool):
            return Size(value)
        raise FaultError(f"{value!r} is not a size", 'write bytes, or text such as "512m"')

    def frequency(value: Any, _: Any) -> Frequency:
        match = _FREQUENCY.fullmatch(value) if isinstance(value, str) else None
        if match:
            return Frequency(int(match[1]) / (60 if match[2] == "m" else 1))
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 1e9:
            return Frequency(value)
        raise FaultError(f"{value!r} is not a frequency", 'write how many times a second: "500/s"')

    def path(value: Any, _: Any) -> Path:
        try:
            return folder / Path(text(value, str)).expanduser()
        except RuntimeError:
            raise FaultError(f"{value!r}: there is no such user", "write the path in full") from None

    def secret(value: Any, _: Any) -> Secret:
        raise FaultError(
            "a secret does not belong into this file", "put it into a file of mode 0400 and name that: …_file"
        )

    def texts(value: Any, _: Any) -> tuple[str, ...]:
        if not isinstance(value, list):
            raise FaultError(f"{value!r} is not a list", 'write ["…", "…"]')
        return tuple(text(item, str) for item in value)

    made.register_structure_hook(str, text)
    made.register_structure_hook(int, integer)
    made.register_structure_hook(bool, truth)  # else it would be taken for the number that it is to Python
    made.register_structure_hook(float, number)
    made.register_structure_hook(Size, size)
    made.register_structure_hook(Frequency, frequency)
    made.register_structure_hook(Path, path)
    made.register_structure_hook(Secret, secret)

    def one_of(value: Any, wanted: Any) -> Any:
        if value not in get_args(wanted):
            raise FaultError(f"{value!r} is not known here", f"choose from: {', '.join(get_args(wanted))}")
        return value

    def mapping(value: Any, wanted: Any) -> Mapping[str, Any]:
        if not isinstance(value, Mapping):
            raise FaultError(f"{value!r} is not a table", 'write { NAME = "value" }')
        _, kind = get_args(wanted)
        return {name: made.structure(item, kind) for name, item in value.items()}

    made.register_structure_hook_func(_is_literal, one_of)
    made.register_structure_hook_func(_is_mapping, mapping)
    made.register_structure_hook_func(lambda wanted: wanted == tuple[str, ...], texts)
    return made
