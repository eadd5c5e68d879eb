"""`rpc.discover`: the registry as an OpenRPC document, for programs that generate clients or forms from one.

It lists what the caller's role may call, and no more. What OpenRPC has no word for stands in extensions: `x-roles`
says who may call a method, `x-streaming` has the shapes of the chunks of its result and of its upload
(docs/protocol.md, "Streams"; bytes are base64 text).

A member of a result that may be left out is never null.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from typing import Any, get_args

import attrs
import msgspec
import trio

from armorclaw._version import __version__
from armorclaw.errors import ERRORS, ErrorKind
from armorclaw.rpc.call import Call
from armorclaw.rpc.registry import EVERYONE, Method, Registry, Role
from armorclaw.rpc.shape import bounds, omits_none, wire_name

OPENRPC = "1.3.2"
"""The version of the specification that the document follows."""

_SCHEMAS = "#/components/schemas/"

_ABOUT = (
    "JSON-RPC 2.0 over a Unix socket. The methods are those that the role of this connection may call; each may "
    "answer any of the errors. docs/protocol.md has the rules of the wire, of streams and of events."
)

Json = dict[str, Any]


def register(registry: Registry) -> None:
    """Adds rpc.discover, for everybody."""
    documents: dict[Role, tuple[int, Json]] = {}  # with the number of methods there were: a registry only grows

    @registry.method("rpc.discover", result=dict, roles=EVERYONE)
    async def discover(call: Call, params: object) -> Json:
        """This description of the methods that the caller may call, as an OpenRPC document."""
        size = len(registry.table(call.role))
        known = documents.get(call.role)
        if known is None or known[0] != size:
            made = await trio.to_thread.run_sync(document, registry, call.role)  # 10 ms and more
            known = documents[call.role] = size, made
        return known[1]


def document(registry: Registry, role: Role) -> Json:
    """The OpenRPC document of what `role` may call."""
    methods = [method for method in registry if role in method.roles]
    schemas = _Schemas(methods)
    return {
        "openrpc": OPENRPC,
        "info": {"title": "armorclaw", "version": __version__, "description": _ABOUT},
        "methods": [_method(method, schemas) for method in methods],
        "components": {
            "schemas": schemas.components,
            "errors": {kind.name: _error(kind) for kind in ERRORS.values()},
        },
    }


def _method(method: Method, schemas: _Schemas) -> Json:
    streaming = {
        part: schemas.of(shape)
        for part, shape in (("chunk", method.chunk), ("upload", method.upload))
        if shape is not None
    }
    return {
        "name": method.name,
        "description": "\n\n".join(filter(None, [_flat(method.doc), schemas.about(method)])),
        "paramStructure": "either",
        "params": schemas.params(method),
        "result": {"name": "result", "schema": schemas.of(method.result)},
        "x-roles": sorted(method.roles),
        **({"x-streaming": streaming} if streaming else {}),
    }


def _error(kind: ErrorKind) -> Json:
    data = {"name": kind.name, "hint": kind.hint, "retryable": kind.retryable}
    return {"code": kind.code, "message": kind.name.replace("_", " "), "data": data}


class _Schemas:
    """JSON Schemas of the shapes of these methods, as the wire has them. `components` are those with a name."""

    def __init__(self, methods: list[Method]) -> None:
        params = {method.params for method in methods}
        sent = _classes(shape for method in methods for shape in (method.result, method.chunk))
        inner = _classes(
            [*(field.type for cls in params for field in _fields(cls)), *(method.upload for method in methods)]
        )
        whole = [shape for method in methods for shape in (method.result, method.chunk, method.upload)]
        shapes = list(dict.fromkeys([*whole, *params, *sent, *inner]))
        found, self.components = msgspec.json.schema_components(shapes, ref_template=_SCHEMAS + "{name}")
        self._found = dict(zip(shapes, found, strict=True))
        for cls in {*params, *sent, *inner}:
            _as_on_the_wire(self._component(cls), cls, whole=cls in sent and cls not in params | inner)
        for method in methods:
            if not method.open:
                for cls in _classes([method.params]):
                    self._component(cls)["additionalProperties"] = False
        self._params = {cls: self._component(cls) for cls in params}
        for cls in params - sent - inner:  # theirs stand in the methods, field by field
            del self.components[self._name(cls)]

    def of(self, shape: Any) -> Json:
        """The schema of a result, a chunk or an upload."""
        found: Json = {"type": "object"} if shape is None else self._found[shape]
        return found

    def params(self, method: Method) -> list[Json]:
        """The params of a method, in their order."""
        schema = self._params[method.params]
        return [
            {"name": name, "required": name in schema["required"], "schema": each}
            for name, each in schema["properties"].items()
        ]

    def about(self, method: Method) -> str:
        """What its class of params says of them."""
        text: str = self._params[method.params].get("description", "")
        return text

    def _name(self, cls: type) -> str:
        name: str = self._found[cls]["$ref"]
        return name.removeprefix(_SCHEMAS)

    def _component(self, cls: type) -> Json:
        component: Json = self.components[self._name(cls)]
        return component


def _as_on_the_wire(schema: Json, cls: type, *, whole: bool) -> None:
    """What msgspec cannot know: our names, made defaults, bounds, and what is always there in a `whole` result."""
    for field in _fields(cls):
        factory = getattr(field.default, "factory", None)
        member = schema["properties"][field.name]
        if factory is not None:
            member["default"] = factory()
        if (between := bounds(field)) is not None:
            for kind in (member, *member.get("anyOf", ())):
                if kind.get("type") == "integer":
                    kind.update(minimum=between.low, maximum=between.high)
    schema["properties"] = {wire_name(name): each for name, each in schema["properties"].items()}
    schema["required"] = [wire_name(name) for name in schema["required"]]
    if "description" in schema:
        schema["description"] = _flat(schema["description"])
    if whole:
        absent = {wire_name(f.name) for f in _fields(cls) if f.default is None} if omits_none(cls) else set()
        schema["required"] = [name for name in schema["properties"] if name not in absent]
        for name in absent:
            schema["properties"][name] = _never_null(schema["properties"][name])


def _never_null(schema: Json) -> Json:
    kinds = [kind for kind in schema.get("anyOf", ()) if kind != {"type": "null"}]
    rest = {key: value for key, value in schema.items() if key not in ("anyOf", "default")}
    return {**rest, **kinds[0]} if len(kinds) == 1 else {**rest, "anyOf": kinds}


def _classes(shapes: Iterable[Any]) -> set[type]:
    """All attrs classes among these and in what they are made of."""
    found: set[type] = set()
    waiting = list(shapes)
    while waiting:
        shape = waiting.pop()
        if not attrs.has(shape):
            waiting += get_args(shape)
        elif shape not in found:
            found.add(shape)
            waiting += [field.type for field in _fields(shape)]
    return found


@lru_cache(maxsize=1024)  # it is asked several times for each, and resolving takes long
def _fields(cls: Any) -> tuple[attrs.Attribute[Any], ...]:
    attrs.resolve_types(cls)
    fields: tuple[attrs.Attribute[Any], ...] = attrs.fields(cls)
    return fields


def _flat(text: str) -> str:
    return " ".join(text.split())
