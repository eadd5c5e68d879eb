from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import attrs
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from armorclaw.errors import ArmorclawError
from armorclaw.rpc.plain import text_reader, text_writer
from armorclaw.rpc.shape import omit_none
from armorclaw.rpc.structure import reader, writer


@attrs.frozen
class Plain:
    name: str
    count: int = attrs.field(default=1, validator=attrs.validators.ge(0))
    share: float = 0.5
    sure: bool = False
    note: str | None = None


@attrs.frozen
class Renamed:
    from_: str = ""


@attrs.frozen
class Inner:
    plain: Plain
    names: tuple[str, ...] = ()


@omit_none
@attrs.frozen
class Sparse:
    note: str | None = None


CLASSES = [Plain, Renamed, Inner, Sparse]

scalars = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=3)
)
names = st.sampled_from(["name", "count", "share", "sure", "note", "from", "from_", "plain", "names", "other"])
objects = st.dictionaries(names, scalars | st.lists(scalars, max_size=3), max_size=6)
params = (
    objects
    | st.builds(lambda rest: {"name": "n", **rest}, objects)
    | st.builds(lambda plain: {"plain": plain}, objects)
    | st.lists(scalars, max_size=7)
)


def outcome(do: Any) -> Any:
    try:
        made = do()
    except ArmorclawError as error:
        return error.payload()
    return made, [type(value) for value in attrs.astuple(made)]


@given(st.sampled_from(CLASSES), params, st.booleans())
def test_text_is_read_as_what_it_decodes_to(cls: type, given_params: Any, lax: bool) -> None:
    read: Callable[[Any], Any] = reader(cls, open=lax)
    text = json.dumps(given_params).encode("utf-8", "surrogatepass")
    assert outcome(lambda: text_reader(cls, read, open=lax)(text)) == outcome(lambda: read(json.loads(text)))


def test_the_shortcut_is_taken_and_not_for_what_it_does_not_know() -> None:
    def never(value: Any) -> Any:
        raise AssertionError("read in two steps")

    assert text_reader(Plain, never)(b'{"name":"n","share":1}') == Plain("n", share=1.0)
    for cls in (Renamed, Inner):
        with pytest.raises(AssertionError):
            text_reader(cls, never)(b"{}")
    with pytest.raises(AssertionError):
        text_reader(Plain, never)(None)


def test_out_of_range_is_a_parse_error() -> None:
    with pytest.raises(ArmorclawError) as caught:
        text_reader(Plain, reader(Plain))(b'{"name":"n","share":1e400}')
    assert caught.value.name == "parse_error"


@pytest.mark.parametrize(
    "value",
    [
        Plain("é\n", note="x"),
        Plain("n", share=2),
        Renamed("x"),
        Inner(Plain("n"), ("a",)),
        Sparse(),
        Sparse("x"),
        None,
    ],
)
def test_what_is_written_is_what_the_two_steps_write(value: Any) -> None:
    write = writer(type(value))
    text = text_writer(type(value), write)(value)
    assert text.isascii()
    assert json.loads(text) == json.loads(msgspec.json.encode(write(value)))


def test_another_class_than_was_announced() -> None:
    assert text_writer(Plain, writer(Plain))(Sparse()) == b"{}"
    assert text_writer(None, writer(None))(Sparse()) == b"{}"
    assert text_writer(None, writer(None))(msgspec.Raw(b'{\n"a":1}')) == b'{ "a":1}'
