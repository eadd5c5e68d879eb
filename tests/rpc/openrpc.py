"""What the OpenRPC specification, 1.3, demands of a document, for the parts that ours uses; as a JSON Schema.

Objects have the members that are named here and, where the specification allows extensions, those beginning "x-".
What a schema cannot say is in `check`.
"""

from __future__ import annotations

from typing import Any

from jsonschema import Draft202012Validator

Json = dict[str, Any]

_TEXT = {"type": "string"}
_NAME = {"type": "string", "minLength": 1}
_SCHEMA = {"type": ["object", "boolean"]}  # checked as a schema in `check`


def _object(needed: list[str], /, *, extensible: bool = True, **members: Any) -> Json:
    made: Json = {
        "type": "object",
        "required": needed,
        "properties": members,
        "additionalProperties": False,
    }
    return made | ({"patternProperties": {"^x-": True}} if extensible else {})


_REFERENCE = _object(["$ref"], extensible=False, **{"$ref": _TEXT})


def _or_reference(name: str) -> Json:
    return {"oneOf": [{"$ref": f"#/$defs/{name}"}, _REFERENCE]}


def _keyed(value: Json) -> Json:
    """Components have names of letters, digits, points, hyphens and underscores."""
    return {"type": "object", "patternProperties": {"^[a-zA-Z0-9.\\-_]+$": value}, "additionalProperties": False}


DOCUMENT = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    **_object(
        ["openrpc", "info", "methods"],
        openrpc={"type": "string", "pattern": r"^1\.3\.[0-9]+$"},
        info=_object(["title", "version"], title=_TEXT, version=_TEXT, description=_TEXT),
        methods={"type": "array", "items": _or_reference("method")},
        components=_object(
            [],
            schemas=_keyed(_SCHEMA),
            errors=_keyed({"$ref": "#/$defs/error"}),
            contentDescriptors=_keyed({"$ref": "#/$defs/descriptor"}),
        ),
    ),
    "$defs": {
        "method": _object(
            ["name", "params"],
            name=_NAME,
            summary=_TEXT,
            description=_TEXT,
            params={"type": "array", "items": _or_reference("descriptor")},
            result=_or_reference("descriptor"),
            errors={"type": "array", "items": _or_reference("error")},
            paramStructure={"enum": ["by-name", "by-position", "either"]},
            deprecated={"type": "boolean"},
        ),
        "descriptor": _object(
            ["name", "schema"],
            name=_NAME,
            summary=_TEXT,
            description=_TEXT,
            required={"type": "boolean"},
            deprecated={"type": "boolean"},
            schema=_SCHEMA,
        ),
        "error": _object(
            ["code", "message"],
            extensible=False,
            code={"type": "integer"},
            message=_TEXT,
            data=True,
        ),
    },
}


def check(document: Json) -> None:
    """Raises where the document is none."""
    Draft202012Validator(DOCUMENT).validate(document)
    names = [method["name"] for method in document["methods"]]
    assert len(names) == len(set(names)), "names of methods are unique"
    codes = [error["code"] for error in document["components"]["errors"].values()]
    assert len(codes) == len(set(codes)), "codes of errors are unique"
    for method in document["methods"]:
        params = method["params"]
        assert len({param["name"] for param in params}) == len(params), "names of params are unique"
        wanted = [param["required"] for param in params]
        assert wanted == sorted(wanted, reverse=True), "by position, required params come first"
    schemas = list(_schemas(document))
    for schema in schemas:
        Draft202012Validator.check_schema(schema)
        for target in _references(schema):
            assert target.removeprefix("#/components/schemas/") in document["components"]["schemas"], target


def _schemas(document: Json) -> Any:
    yield from document["components"]["schemas"].values()
    for method in document["methods"]:
        yield from (param["schema"] for param in method["params"])
        yield method["result"]["schema"]
        yield from method.get("x-streaming", {}).values()


def _references(value: Any) -> Any:
    if isinstance(value, dict):
        if isinstance(value.get("$ref"), str):
            yield value["$ref"]
        for each in value.values():
            yield from _references(each)
    elif isinstance(value, list):
        for each in value:
            yield from _references(each)


class Promises:
    """What a document says of one method's params, result and pieces, to hold real ones against."""

    def __init__(self, document: Json, method: str) -> None:
        self._components = document["components"]
        (self.method,) = [each for each in document["methods"] if each["name"] == method]

    def params(self, params: Json) -> None:
        """Raises if these do not fit."""
        descriptors = {each["name"]: each for each in self.method["params"]}
        assert set(params) <= set(descriptors), "unknown params"
        assert {name for name, each in descriptors.items() if each["required"]} <= set(params), "missing params"
        for name, value in params.items():
            self._fits(value, descriptors[name]["schema"])

    def result(self, result: Any) -> None:
        """Raises if it does not fit, or has members that nothing is said of."""
        self._fits(result, self.method["result"]["schema"])
        self._said(result, self.method["result"]["schema"])

    def piece(self, part: str, value: Any) -> None:
        """Raises if it does not fit; `part` is "chunk" or "upload"."""
        self._fits(value, self.method["x-streaming"][part])

    def _fits(self, value: Any, schema: Json) -> None:
        Draft202012Validator({**schema, "components": self._components}).validate(value)

    def _said(self, value: Any, schema: Json) -> None:
        if "$ref" in schema:
            schema = self._components["schemas"][schema["$ref"].rpartition("/")[2]]
        if isinstance(value, list):
            for each in value:
                self._said(each, schema.get("items", {}))
        elif isinstance(value, dict) and "properties" in schema:
            assert set(value) <= set(schema["properties"]), set(value) - set(schema["properties"])
            for name, each in value.items():
                self._said(each, schema["properties"][name])
