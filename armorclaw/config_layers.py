"""The whole configuration from all its layers, and where each value comes from.

Defaults < /etc < the user's own file < variables < flags. Tables are merged key by key, any other value replaces the
weaker one. Relative paths are relative to the folder of their file or, in variables and flags, to the current one.
"""

from __future__ import annotations

import difflib
import os
import shlex
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin

import attrs

from armorclaw.config import Config
from armorclaw.errors import ArmorclawError
from armorclaw.layers import PREFIX, Environ, read_toml, usual_files
from armorclaw.structure import Fault, Secret, key_of, within

NOT_CONFIGURATION = frozenset({"ARMORCLAW_SOCKET", "ARMORCLAW_AGENT", "ARMORCLAW_REQUIRE_ALL"})
"""Variables of clients, agents and tests."""

LINES_LIMIT = 300
"""Lines of a file in which those of its keys are looked for: it takes a parse for each."""

DEFAULT = "default"
"""The origin of what nobody said."""

Keys = tuple[str, ...]


@attrs.frozen
class Layer:
    """What one source says, and where in it."""

    data: Mapping[str, Any]
    origin_of: Callable[[str], str]


@attrs.frozen
class Effective:
    """A configuration, the files it was read from, and the layer of each place that somebody wrote."""

    config: Config
    files: tuple[str, ...]
    _writers: Mapping[str, Layer] = attrs.field(repr=False)

    def values(self) -> Iterator[tuple[str, Any]]:
        """Each place with its value, as JSON has it; a secret is shown as "…"."""
        yield from _values(self.config, "")

    def origin_of(self, place: str) -> str:
        """`default`, a file with the line if it is not too long, a variable or a flag."""
        layer = self._writers.get(place)
        return DEFAULT if layer is None else layer.origin_of(place)


def effective(file: Path | None = None, *, flags: Sequence[str] = (), environ: Environ = os.environ) -> Effective:
    """Put all layers together; `file` replaces the two usual ones, `flags` are `section.key=value`.

    Raises config_invalid naming every fault: origin, place, reason, fix.
    """
    files = usual_files(environ) if file is None else [str(file)]
    faults: list[Fault] = []
    layers = [*map(_file_layer, files), _variables(environ, faults), *map(_flag_layer, flags)]
    data: dict[str, Any] = {}
    writers: dict[str, Layer] = {}
    for layer in layers:
        _merge(data, layer.data, "", layer, writers)
    config, found = Config.examine(data)
    if config is None or faults or found:
        lines = [str(fault) for fault in faults] + [_with_origin(fault, writers) for fault in found]
        count = f"{len(lines)} fault{'s' if len(lines) > 1 else ''}"
        given = "" if file is None else f" --config {shlex.quote(str(file))}"
        hint = f"mend this and see with: armorclaw config check{given}"
        what = f"{files[0] if len(files) == 1 else 'configuration'}: {count}"
        raise ArmorclawError("config_invalid", what, why="\n".join(lines), hint=hint, faults=lines)
    return Effective(config, tuple(files), writers)


def _merge(
    into: dict[str, Any], data: Mapping[str, Any], place: str, layer: Layer, writers: dict[str, Layer]
) -> None:
    for key, value in data.items():
        here = within(place, key)
        writers[here] = layer
        if isinstance(value, Mapping):
            below = into[key] = dict(into[key]) if isinstance(into.get(key), Mapping) else {}
            _merge(below, value, here, layer, writers)
        else:
            into[key] = value


def _with_origin(fault: Fault, writers: Mapping[str, Layer]) -> str:
    """A fault, with who wrote what is wrong; what is missing is missing in the table around it."""
    around = [place for place in writers if f"{fault.place}.".startswith(f"{place}.")]
    if not around:
        return str(fault)
    nearest = max(around, key=len)
    return f"{writers[nearest].origin_of(nearest)}: {fault}"


# -- files


def _file_layer(file: str) -> Layer:
    data = read_toml(file)

    @cache
    def lines() -> dict[str, int]:
        return key_lines(Path(file).read_text(encoding="utf-8"))

    def origin_of(place: str) -> str:
        line = lines().get(place)
        return file if line is None else f"{file}:{line}"

    return Layer(_anchored(data, Config, Path(file).resolve().parent), origin_of)


def key_lines(text: str) -> dict[str, int]:
    """The line at which each key of a TOML text begins; nothing for a text of more than LINES_LIMIT lines.

    A key is where the text up to there first has it, so this is right whatever strings and arrays hold.
    """
    lines = text.split("\n")
    found: dict[str, int] = {}
    begin = 1
    for number in range(1, len(lines) + 1 if len(lines) <= LINES_LIMIT else 0):
        try:
            data = tomllib.loads("\n".join(lines[:number]))
        except tomllib.TOMLDecodeError:
            continue  # in the middle of a value
        for place in _places(data, ""):
            found.setdefault(place, begin)
        begin = number + 1
    return found


def _places(data: Mapping[str, Any], place: str) -> Iterator[str]:
    for key, value in data.items():
        here = within(place, key)
        yield here
        if isinstance(value, Mapping):
            yield from _places(value, here)


# -- variables and flags


def variables() -> dict[str, Keys]:
    """The variables that are configuration: one for each plain value of a section whose name is fixed."""
    return {
        f"{PREFIX}{section.name}_{key.name}".upper(): (section.name, key.name)
        for section in _fields(Config)
        if _is_section(section)
        for key in _fields(section.type)
        if _is_plain(key.type)
    }


def _variables(environ: Environ, faults: list[Fault]) -> Layer:
    known = variables()
    data: dict[str, Any] = {}
    names = {}
    for name in sorted(environ):
        text = environ[name]
        if not name.startswith(PREFIX) or not text or name in NOT_CONFIGURATION:
            continue
        keys = known.get(name)
        if keys is not None:
            _put(data, keys, _typed(text, _kind_at(keys)))
            names[_place(keys)] = name
        elif fix := _meant(name, known):
            faults.append(Fault(name, "no key of the configuration has this variable", fix))

    def origin_of(place: str) -> str:
        return names.get(place, "environment")

    return Layer(_anchored(data, Config, Path.cwd()), origin_of)


def _meant(name: str, known: Mapping[str, Keys]) -> str:
    """What to do about a variable that looks like configuration and is none; "" for any other."""
    if close := difflib.get_close_matches(name, known, 1, 0.85):
        return f"write {close[0]}, or unset it"
    section = next((field for field in _fields(Config) if name.startswith(f"{PREFIX}{field.name.upper()}_")), None)
    if section is None:
        return ""
    if _is_section(section):
        choices = [each for each in known if known[each][0] == section.name]
        return f"unset it, or choose from: {', '.join(choices)}"
    return f"unset it, and write [{section.name}.NAME] into a file; secrets are never taken from the environment"


def _flag_layer(flag: str) -> Layer:
    name, equals, text = flag.partition("=")
    try:
        if not equals or "\n" in name:
            raise ValueError
        keys = tuple(_only_keys(tomllib.loads(f"{name} = 0")))
    except (ValueError, RecursionError):
        hint = "write it as --set section.key=value"
        raise ArmorclawError("config_invalid", f"--set {name}: this is no key with a value", hint=hint) from None
    data: dict[str, Any] = {}
    _put(data, keys, _typed(text, _kind_at(keys)))
    place = _place(keys)
    return Layer(_anchored(data, Config, Path.cwd()), lambda _: f"--set {place}")


def _only_keys(data: Any) -> Iterator[str]:
    while isinstance(data, dict):
        (key,) = data  # ValueError for what is more than one
        yield key
        data = data[key]


def _put(data: dict[str, Any], keys: Keys, value: Any) -> None:
    for key in keys[:-1]:
        data = data.setdefault(key, {})
    data[keys[-1]] = value


def _place(keys: Keys) -> str:
    place = ""
    for key in keys:
        place = within(place, key)
    return place


def _typed(text: str, kind: Any) -> Any:
    """A text as the type of its place has it: words and paths as they are, all else as TOML writes it."""
    if {str, Path, Secret} & set(_alternatives(kind)) or get_origin(kind) is Literal or "\n" in text:
        return text
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except (ValueError, RecursionError):
        return text  # it is said later what is wrong with it


# -- what the classes of config.py say about a place


def _fields(cls: Any) -> list[attrs.Attribute[Any]]:
    """Those that a file may have: `name` is the key of the table."""
    attrs.resolve_types(cls)
    return [field for field in attrs.fields(cls) if field.name != "name"]


def _is_section(field: attrs.Attribute[Any]) -> bool:
    """Whether it is one table, not a table of tables that users name."""
    return isinstance(field.type, type) and attrs.has(field.type)


def _kind_at(keys: Keys) -> Any:
    kind: Any = Config
    for key in keys:
        kind = _kind_below(kind, key)
    return kind


def _kind_below(kind: Any, key: str) -> Any:
    """The type of the value at `key` of a table of that kind; None if there is no such key."""
    if get_origin(kind) is Mapping:
        return get_args(kind)[-1]
    if attrs.has(kind):
        return next((field.type for field in _fields(kind) if field.name == key), None)
    return None


def _alternatives(kind: Any) -> tuple[Any, ...]:
    return get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)


def _is_plain(kind: Any) -> bool:
    """Whether a variable can hold it: no table, no list, no secret."""
    return not any(
        attrs.has(each) or each is Secret or get_origin(each) in (Mapping, tuple) for each in _alternatives(kind)
    )


def _anchored(data: Any, kind: Any, folder: Path) -> Any:
    """The same with relative paths made absolute, so that layers of different folders can be merged."""
    if isinstance(data, Mapping):
        return {key: _anchored(value, _kind_below(kind, key), folder) for key, value in data.items()}
    if isinstance(data, str) and Path in _alternatives(kind) and not data.startswith("~"):
        return str(folder / data)
    return data


def _values(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    if attrs.has(type(value)):
        for field in _fields(type(value)):
            yield from _values(getattr(value, field.name), within(place, field.name))
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _values(entry, within(place, key))
    else:
        yield place, _shown(value)


def _shown(value: Any) -> Any:
    if isinstance(value, Secret):
        return "…"
    if isinstance(value, tuple):
        return [_shown(item) for item in value]
    if attrs.has(type(value)):  # in a list of tables
        return {key_of(field): _shown(getattr(value, field.name)) for field in _fields(type(value))}
    return str(value) if isinstance(value, Path) else value
