from __future__ import annotations

import attrs
import pytest
import trio
import trio.testing

from armorclaw.clock import Surroundings
from armorclaw.errors import ArmorclawError
from armorclaw.rpc.call import Call
from armorclaw.rpc.local import call_local, stream_local
from armorclaw.rpc.peer import Peer
from armorclaw.rpc.registry import EVERYONE, Method, NoParams, Registry, Role
from tests.rpc.conftest import Raw


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


async def test_what_is_closed_is_refused_on_connections_that_are_there() -> None:
    """With params or without, however they look; other roles, and what stays, do not notice."""
    registry = filled()
    ours, theirs = trio.testing.memory_stream_pair()
    peer = Peer(ours, registry, role=Role.OPERATOR, around=Surroundings())
    async with trio.open_nursery() as nursery:
        await nursery.start(peer.serve)
        raw = Raw(theirs)
        assert (await raw.ask("greet", name="x"))["result"] == {"name": "x"}
        registry.close(Role.OPERATOR, but={"status"}, error=lambda name: ArmorclawError("draining", name))
        for params in ({"name": "x"}, {"nonsense": 1}, {}):
            error = (await raw.ask("greet", **params))["error"]
            assert (error["message"], error["data"]["name"]) == ("greet", "draining")
        assert (await raw.ask("status"))["result"] == {}
        assert (await raw.ask("secret"))["error"]["data"]["name"] == "denied"
        nursery.cancel_scope.cancel()
    assert registry.table(Role.AGENT)["greet"].roles == {Role.OPERATOR, Role.AGENT}
    assert [method.name for method in registry] == ["greet", "secret", "status"]
    assert registry.get("greet") is registry.table(Role.AGENT)["greet"]


async def test_calls_that_are_being_answered_are_counted() -> None:
    """Those of connections and of this program, whether they stream or not; to the end, whatever it is."""
    registry = Registry()
    ends = trio.Event()

    @registry.method("wait", roles=[Role.OPERATOR])
    async def wait(call: Call, params: NoParams) -> None:
        await ends.wait()
        raise ValueError("it went wrong")

    @registry.method("pieces", roles=[Role.OPERATOR], chunk=int)
    async def pieces(call: Call, params: NoParams) -> None:
        await ends.wait()

    async def ignore(method: str) -> None:
        with pytest.raises(ValueError, match="wrong"):
            await call_local(registry, method, {}, role=Role.OPERATOR)

    ours, theirs = trio.testing.memory_stream_pair()
    peer = Peer(ours, registry, role=Role.OPERATOR, around=Surroundings())
    async with trio.open_nursery() as nursery:
        await nursery.start(peer.serve)
        raw = Raw(theirs)
        await raw.send(*({"jsonrpc": "2.0", "id": name, "method": name} for name in ("wait", "pieces")))
        async with trio.open_nursery() as local, stream_local(registry, "pieces", {}, role=Role.OPERATOR):
            local.start_soon(ignore, "wait")
            await trio.testing.wait_all_tasks_blocked()
            assert registry.answering == {"wait": 2, "pieces": 2}
            ends.set()
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert not +registry.answering
