"""Every method there is: its handler, its shapes, and who may call it.

One table serves dispatch, discovery, the documentation and the generated parts of clients. A method that names no
role can be called by nobody.
"""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import attrs

from armorclaw.rpc.structure import reader, writer

if TYPE_CHECKING:
    from armorclaw.rpc.peer import Call

H = TypeVar("H", bound=Callable[..., Any])


class Role(enum.StrEnum):
    """What a connection may do. It follows from where the connection came in, never from what it says."""

    OPERATOR = "operator"  # the bridge's own socket, its uid checked
    OBSERVER = "observer"  # may look at health and figures; never at keys or messages
    AGENT = "agent"  # the socket of one container
    REMOTE = "remote"  # a WebSocket with a token


EVERYONE = frozenset(Role)


@attrs.frozen
class NoParams:
    """The params of a method that takes none."""


@attrs.frozen
class Method:
    """One row of the table.

    `handler(call, params)` is plain or async. Plain ones run inside the reader, between two messages, and so must not
    take long (a millisecond). It returns an instance of `result`, a list of them, a dict of JSON values, or None,
    which is sent as an empty object. `open`: unknown params are ignored, for methods that field clients call with
    params of other versions.
    """

    name: str
    handler: Callable[[Call, Any], Any]
    params: type = NoParams
    result: Any = None
    roles: frozenset[Role] = frozenset()
    doc: str = ""
    open: bool = False
    is_async: bool = attrs.field(init=False)
    read: Callable[[Any], Any] = attrs.field(init=False, repr=False, eq=False)
    write: Callable[[Any], Any] = attrs.field(init=False, repr=False, eq=False)

    @is_async.default
    def _is_async(self) -> bool:
        return inspect.iscoroutinefunction(self.handler)

    @read.default
    def _read(self) -> Callable[[Any], Any]:
        return reader(self.params, open=self.open)

    @write.default
    def _write(self) -> Callable[[Any], Any]:
        return writer(self.result)


class Registry:
    """The methods of one kind of listener."""

    def __init__(self, methods: Iterable[Method] = ()) -> None:
        self._methods: dict[str, Method] = {}
        self._tables: dict[Role, dict[str, Method]] = {role: {} for role in Role}
        for method in methods:
            self.add(method)

    def add(self, method: Method) -> None:
        """A name can be added once. Names beginning with "rpc." are the protocol's own, such as `rpc.discover`."""
        if method.name in self._methods:
            raise ValueError(f"the method {method.name} is there already")
        self._methods[method.name] = method
        for role in method.roles:
            self._tables[role][method.name] = method

    def method(
        self,
        name: str,
        *,
        params: type = NoParams,
        result: Any = None,
        roles: Iterable[Role],
        doc: str = "",
        open: bool = False,  # noqa: A002
    ) -> Callable[[H], H]:
        """Decorator: add the function as the handler of `name`; its docstring is the doc unless one is given."""

        def register(handler: H) -> H:
            text = doc or inspect.getdoc(handler) or ""
            self.add(Method(name, handler, params, result, frozenset(roles), text, open))
            return handler

        return register

    def get(self, name: str) -> Method | None:
        return self._methods.get(name)

    def table(self, role: Role) -> Mapping[str, Method]:
        """What `role` may call, by name; it grows with the registry."""
        return self._tables[role]

    def names(self, role: Role | None = None) -> list[str]:
        """The names that `role` may call, or all, sorted."""
        return sorted(self._methods if role is None else self._tables[role])

    def __iter__(self) -> Iterator[Method]:
        return iter(sorted(self._methods.values(), key=lambda method: method.name))
