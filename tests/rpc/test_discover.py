"""The document of rpc.discover: valid, and true of what is called."""

from __future__ import annotations

from typing import Any, Literal

import attrs
import pytest
from jsonschema import ValidationError

from armorclaw.errors import ERRORS, ArmorclawError
from armorclaw.rpc.call import Call
from armorclaw.rpc.discover import document, register
from armorclaw.rpc.local import call_local
from armorclaw.rpc.registry import Registry, Role
from armorclaw.rpc.shape import omit_none
from tests.rpc.openrpc import Promises, check

Json = dict[str, Any]


@attrs.frozen
class Place:
    x: int
    y: int = 0


@attrs.frozen
class Ask:
    """`from_` is where to begin."""

    name: str
    from_: Literal["now"] | int = "now"
    places: list[Place] = attrs.field(factory=list)
    note: str | None = None


@omit_none
@attrs.frozen
class Answer:
    """What there was."""

    in_: Place
    size: int = 3
    maybe: Place | None = None
    null: int | None = attrs.field(default=attrs.Factory(lambda: None))


@attrs.frozen
class Piece:
    text: str


@pytest.fixture
def registry() -> Registry:
    made = Registry()
    register(made)

    @made.method("plain", params=Ask, result=Answer, roles=[Role.OPERATOR])
    def plain(call: Call, params: Ask) -> Answer:
        """Says
        it all."""
        return Answer(Place(1), maybe=None if params.note is None else Place(2))

    @made.method("many", params=Place, result=list[Place], roles=[Role.OPERATOR, Role.AGENT], open=True)
    def many(call: Call, params: Place) -> list[Place]:
        return [params, params]

    @made.method("stream", chunk=Piece, upload=bytes, roles=[Role.OPERATOR])
    async def stream(call: Call, params: object) -> None:
        raise NotImplementedError

    return made


def schemas(doc: Json) -> Json:
    found: Json = doc["components"]["schemas"]
    return found


def method(doc: Json, name: str) -> Json:
    (found,) = [each for each in doc["methods"] if each["name"] == name]
    return dict(found)


def test_a_document_is_valid(registry: Registry) -> None:
    for role in Role:
        check(document(registry, role))


def test_everybody_is_told_what_it_may_call_and_no_more(registry: Registry) -> None:
    names = {role: [each["name"] for each in document(registry, role)["methods"]] for role in Role}
    assert names[Role.OPERATOR] == ["many", "plain", "rpc.discover", "stream"]
    assert names[Role.AGENT] == ["many", "rpc.discover"]
    assert names[Role.OBSERVER] == names[Role.REMOTE] == ["rpc.discover"]
    assert "Answer" not in schemas(document(registry, Role.AGENT)), "nor of its shapes"
    assert method(document(registry, Role.AGENT), "many")["x-roles"] == ["agent", "operator"]


def test_params_are_named_as_on_the_wire(registry: Registry) -> None:
    plain = method(document(registry, Role.OPERATOR), "plain")
    assert [(each["name"], each["required"]) for each in plain["params"]] == [
        ("name", True),
        ("from", False),
        ("places", False),
        ("note", False),
    ]
    assert plain["params"][1]["schema"] == {"anyOf": [{"enum": ["now"]}, {"type": "integer"}], "default": "now"}
    assert plain["params"][2]["schema"]["default"] == []
    assert plain["description"] == "Says it all.\n\n`from_` is where to begin."


def test_results_say_what_is_always_there(registry: Registry) -> None:
    doc = document(registry, Role.OPERATOR)
    answer = schemas(doc)["Answer"]
    assert answer["required"] == ["in", "size", "null"], "what has a default is there all the same"
    assert answer["properties"]["maybe"] == {"$ref": "#/components/schemas/Place"}, "absent, but never null"
    assert {"type": "null"} in answer["properties"]["null"]["anyOf"]
    assert answer["description"] == "What there was."
    assert method(doc, "many")["result"]["schema"]["items"] == {"$ref": "#/components/schemas/Place"}


def test_streams_name_their_pieces(registry: Registry) -> None:
    stream = method(document(registry, Role.OPERATOR), "stream")
    assert stream["x-streaming"] == {
        "chunk": {"$ref": "#/components/schemas/Piece"},
        "upload": {"type": "string", "contentEncoding": "base64"},
    }
    assert stream["result"]["schema"] == {"type": "object"}
    assert "x-streaming" not in method(document(registry, Role.OPERATOR), "plain")


def test_every_error_is_a_component(registry: Registry) -> None:
    errors = document(registry, Role.REMOTE)["components"]["errors"]
    assert {name: each["code"] for name, each in errors.items()} == {k.name: k.code for k in ERRORS.values()}
    assert errors["rate_limited"]["data"]["retryable"] is True


async def test_it_grows_with_the_registry(registry: Registry) -> None:
    async def discover() -> list[str]:
        doc = await call_local(registry, "rpc.discover", {}, role=Role.AGENT)
        return [each["name"] for each in doc["methods"]]

    before = await discover()
    assert await discover() == before
    registry.method("late", roles=[Role.AGENT])(lambda call, params: None)
    assert await discover() == sorted([*before, "late"])


async def test_what_is_called_is_what_was_promised(registry: Registry) -> None:
    doc = document(registry, Role.OPERATOR)
    for name, params in (
        ("plain", {"name": "a"}),
        ("plain", {"name": "a", "from": 5, "places": [{"x": 1}], "note": "b"}),
        ("many", {"x": 1, "y": 2}),
        ("rpc.discover", {}),
    ):
        promises = Promises(doc, name)
        promises.params(params)
        promises.result(await call_local(registry, name, params, role=Role.OPERATOR))


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"name": 1},
        {"name": "a", "from": "then"},
        {"name": "a", "places": [{"x": 1, "z": 1}]},
        {"name": "a", "b": 1},
    ],
)
def test_what_is_refused_does_not_fit_the_document(registry: Registry, wrong: Json) -> None:
    promises = Promises(document(registry, Role.OPERATOR), "plain")
    with pytest.raises((ValidationError, AssertionError)):
        promises.params(wrong)
    found = registry.get("plain")
    assert found is not None
    with pytest.raises(ArmorclawError):
        found.read(wrong)
