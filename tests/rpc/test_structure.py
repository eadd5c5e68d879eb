from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import attrs
import pytest

from armorclaw.errors import ArmorclawError
from armorclaw.rpc.shape import between, omit_none
from armorclaw.rpc.structure import reader, writer


@attrs.frozen
class Inner:
    size: int
    tags: tuple[str, ...] = ()


@attrs.frozen
class Params:
    text: str
    whole: int = 0
    number: float = 0.0
    flag: bool = False
    maybe: str | None = None
    from_: Literal["now"] | int = "now"
    kind: Literal["raw", "base64"] = "raw"
    names: list[str] = attrs.field(factory=list)
    inner: Inner | None = None
    inners: Sequence[Inner] = ()
    table: dict[str, int] = attrs.field(factory=dict)
    map: Mapping[str, str] = attrs.field(factory=dict)
    anything: Any = None


read = reader(Params)


def refusal(params: Any) -> ArmorclawError:
    with pytest.raises(ArmorclawError) as caught:
        read(params)
    assert caught.value.name == "invalid_params"
    return caught.value


def test_by_name_and_by_position() -> None:
    assert read({"text": "a", "whole": 5, "from": 7}) == Params("a", 5, from_=7)
    assert read(["a", 5, 1]) == Params("a", 5, 1.0)
    assert read({"text": "a", "inner": {"size": 1, "tags": ["x"]}}) == Params("a", inner=Inner(1, ("x",)))
    assert read({"text": "a", "inner": None, "maybe": None, "anything": [1, {}]}) == Params("a", anything=[1, {}])
    assert read({"text": "a", "inners": [{"size": 1}]}).inners[0] == Inner(1)


def test_absent_params_are_an_empty_object() -> None:
    assert refusal(None).data["fields"] == ["text"]
    assert reader(Inner)({"size": 3}) == Inner(3)


@pytest.mark.parametrize(
    "field, value, text",
    [
        ("text", 5, "text must be text, not a whole number"),
        ("text", None, "text must be text, not null"),
        ("whole", True, "whole must be a whole number, not true or false"),
        ("whole", "5", "whole must be a whole number, not text"),
        ("whole", 5.0, "whole must be a whole number, not a number"),
        ("number", "5", "number must be a number, not text"),
        ("number", 10**400, "number is too large"),
        ("flag", 1, "flag must be true or false, not a whole number"),
        ("maybe", [], "maybe must be text, not an array"),
        ("from", "then", 'from must be "now" or a whole number, not text'),
        ("from", True, 'from must be "now" or a whole number, not true or false'),
        ("kind", "zip", "kind must be one of raw, base64"),
        ("names", "abc", "names must be an array, not text"),
        ("names", ["a", 5], "names[1] must be text, not a whole number"),
        ("inner", [], "inner must be an object, not an array"),
        ("inner", {"size": "x"}, "inner.size must be a whole number, not text"),
        ("inner", {"size": 1, "tags": [[]]}, "inner.tags[0] must be text, not an array"),
        ("inner", {}, "inner.size is missing"),
        ("inners", [{"size": 1}, {"size": 1, "x": 2}], "inners[1].x is not known"),
        ("table", {"a": "b"}, "table.a must be a whole number, not text"),
        ("table", [], "table must be an object, not an array"),
        ("map", {"a": 1}, "map.a must be text, not a whole number"),
        ("from_", 1, "from_ is not known"),
        ("extra", 1, "extra is not known"),
        ("__proto__", {}, "__proto__ is not known"),
    ],
)
def test_a_fault_is_named_with_its_field(field: str, value: Any, text: str) -> None:
    assert str(refusal({"text": "a", field: value})) == text


def test_every_fault_is_named() -> None:
    error = refusal({"whole": "x", "flag": 0, "more": 1})
    assert error.data["fields"] == ["flag", "more", "text", "whole"]


def test_no_fault_repeats_a_value() -> None:
    for params in ({"text": 5, "kind": "canary"}, {"text": "a", "inner": "canary"}, {"text": "a", "from": "canary"}):
        assert "canary" not in str(refusal(params).payload())


def test_too_many_by_position() -> None:
    assert "at most 13" in str(refusal(["a"] * 14))


def test_a_validator_of_the_class_speaks_for_itself() -> None:
    @attrs.frozen
    class Checked:
        limit: int = attrs.field(default=1, validator=attrs.validators.ge(1))

    with pytest.raises(ArmorclawError, match="'limit' must be >= 1"):
        reader(Checked)({"limit": 0})


@attrs.frozen
class Bounded:
    limit_: int = attrs.field(default=1, validator=between(1, 9))


@attrs.frozen
class Outer:
    inner: Bounded = attrs.field(factory=Bounded)


@pytest.mark.parametrize(
    "cls, params, field",
    [(Bounded, {"limit": 10**400}, "limit"), (Outer, {"inner": {"limit": 0}}, "inner.limit")],
)
def test_a_field_out_of_bounds_is_named(cls: type, params: Any, field: str) -> None:
    with pytest.raises(ArmorclawError) as caught:
        reader(cls)(params)
    assert str(caught.value) == f"{field} must be from 1 to 9"
    assert caught.value.data["fields"] == [field]


def test_an_open_method_ignores_what_it_does_not_know() -> None:
    assert reader(Inner, open=True)({"size": 1, "cursor": ""}) == Inner(1)


@attrs.frozen
class Result:
    id: str
    from_: int
    note: str | None = None
    inner: Inner | None = None


@omit_none
@attrs.frozen
class Short:
    id: str
    note: str | None = None
    must: str | None = attrs.field(kw_only=True)
    count: int = 0


def test_results() -> None:
    assert writer(Result)(Result("a", 1, inner=Inner(2, ("x",)))) == {
        "id": "a",
        "from": 1,
        "note": None,
        "inner": {"size": 2, "tags": ["x"]},
    }
    assert writer(list[Result])([Result("a", 1)]) == [{"id": "a", "from": 1, "note": None, "inner": None}]
    assert writer(None)(None) == {}
    assert writer(dict)({"a": None}) == {"a": None}
    assert writer(Result)(Short("a", must=None)) == {"id": "a", "must": None, "count": 0}
    assert writer(Short)(Short("a", "b", must="c", count=1)) == {"id": "a", "note": "b", "must": "c", "count": 1}
