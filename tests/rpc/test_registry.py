from __future__ import annotations

import attrs
import pytest

from armorclaw.rpc.call import Call
from armorclaw.rpc.registry import EVERYONE, Method, NoParams, Registry, Role


@attrs.frozen
class Name:
    name: str


def filled() -> Registry:
    registry = Registry()

    @registry.method("greet", params=Name, result=Name, roles=[Role.OPERATOR, Role.AGENT])
    async def greet(call: Call, params: Name) -> Name:
        """Say hello."""
        return params

    @registry.method("status", roles=EVERYONE, doc="How things are.")
    def status(call: Call, params: NoParams) -> None:
        """Not this."""

    @registry.method("secret", roles=())
    def secret(call: Call, params: NoParams) -> None: ...

    return registry


def test_deny_is_the_default() -> None:
    registry = filled()
    assert registry.names(Role.OPERATOR) == ["greet", "status"]
    assert registry.names(Role.OBSERVER) == ["status"]
    assert registry.names(Role.REMOTE) == ["status"]
    assert registry.names() == ["greet", "secret", "status"]
    for role in Role:
        assert "secret" not in registry.table(role)


def test_a_row_knows_its_handler() -> None:
    registry = filled()
    greet, status = registry.get("greet"), registry.get("status")
    assert greet is not None
    assert status is not None
    assert (greet.is_async, greet.doc) == (True, "Say hello.")
    assert (status.is_async, status.doc) == (False, "How things are.")
    assert [method.name for method in registry] == ["greet", "secret", "status"]


def test_a_name_is_given_once() -> None:
    registry = filled()
    with pytest.raises(ValueError, match="status"):
        registry.add(Method("status", lambda call, params: None))


def test_a_table_grows_with_its_registry() -> None:
    registry = filled()
    table = registry.table(Role.AGENT)
    registry.add(Method("late", lambda call, params: None, roles=frozenset({Role.AGENT})))
    assert "late" in table
