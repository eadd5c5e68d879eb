"""The keystore on the wire: the shapes clients depend on, and tokens only where they were asked for."""

from __future__ import annotations

from typing import Any

import pytest

from armorclaw.clock import Surroundings
from armorclaw.errors import ArmorclawError
from armorclaw.guard.audit import AuditLog
from armorclaw.guard.keystore import KeyStore
from armorclaw.guard.methods import register
from armorclaw.guard.shapes import KeyWithToken, RotateKey, StoreKey
from armorclaw.rpc.local import call_local
from armorclaw.rpc.registry import Registry, Role
from armorclaw.store import Database

pytestmark = pytest.mark.mission("K.secrets")

Hands = Any  # the class of conftest.py
TOKEN = "sk-canary-0123456789"
CREATED = 1_770_000_000


class Wire:
    def __init__(self, db: Database, around: Surroundings) -> None:
        self.db = db
        self.audit = AuditLog(around)
        self.registry = Registry()
        register(self.registry, KeyStore(db, self.audit, around))

    async def call(self, method: str, **params: Any) -> Any:
        return await call_local(self.registry, method, params, role=Role.OPERATOR)

    async def refusal(self, method: str, **params: Any) -> ArmorclawError:
        with pytest.raises(ArmorclawError) as caught:
            await self.call(method, **params)
        return caught.value


@pytest.fixture
def wire(db: Database, around: Surroundings) -> Wire:
    return Wire(db, around)


async def test_store_and_list_and_get(wire: Wire) -> None:
    assert await wire.call("list_keys") == []
    assert await wire.call("store_key", provider="openai", token=TOKEN) == {
        "id": "openai-default",
        "key_id": "openai-default",
        "provider": "openai",
        "created_at": CREATED,
    }
    await wire.call(
        "store_key", id="work", provider="xai", token=TOKEN, display_name="Work", expires_at=CREATED + 9, tags=["a"]
    )
    first = {
        "id": "openai-default",
        "provider": "openai",
        "display_name": "",
        "created_at": CREATED,
        "expires_at": 0,
        "tags": None,
    }
    second = {
        "id": "work",
        "provider": "xai",
        "display_name": "Work",
        "created_at": CREATED,
        "expires_at": CREATED + 9,
        "tags": ["a"],
    }
    assert await wire.call("list_keys") == [first, second]  # a bare array, and no token in it
    assert await wire.call("list_keys", provider="xai") == [second]
    assert await wire.call("list_keys", provider="unheard-of") == []
    assert await wire.call("get_key", id="work") == {**second, "token": TOKEN}


async def test_storing_again_replaces(wire: Wire) -> None:
    for token in ("one", "two"):
        await wire.call("store_key", provider="openai", token=token)
    assert len(await wire.call("list_keys")) == 1
    assert (await wire.call("get_key", id="openai-default"))["token"] == "two"


async def test_missing_and_expired(wire: Wire, hands: Hands) -> None:
    missing = await wire.refusal("get_key", id="none")
    assert (missing.name, missing.kind.code) == ("key_not_found", -3)
    await wire.call("store_key", provider="openai", token=TOKEN, expires_at=CREATED + 1)
    hands.now += 1
    expired = await wire.refusal("get_key", id="openai-default")
    assert (expired.name, expired.why) == ("key_not_found", "expired")
    assert [key["id"] for key in await wire.call("list_keys")] == ["openai-default"]


@pytest.mark.mission("C.store_key")
async def test_rotated(wire: Wire, hands: Hands) -> None:
    """Another token under the same id; all else stays, unless it is said."""
    await wire.call(
        "store_key", id="k", provider="xai", token="old", display_name="K", expires_at=CREATED + 60, tags=["a"]
    )
    hands.now += 9
    shown = await wire.call("rotate_key", id="k", token=TOKEN)
    assert shown == {
        "id": "k",
        "provider": "xai",
        "display_name": "K",
        "created_at": CREATED + 9,
        "expires_at": CREATED + 60,
        "tags": ["a"],
    }
    assert await wire.call("get_key", id="k") == {**shown, "token": TOKEN}
    assert await wire.call("list_keys") == [shown]
    assert (await wire.call("rotate_key", id="k", token="x", expires_at=0))["expires_at"] == 0


async def test_an_expired_key_is_rotated_with_another_end(wire: Wire, hands: Hands) -> None:
    await wire.call("store_key", id="k", provider="xai", token="old", expires_at=CREATED + 1)
    hands.now += 1
    for params in ({}, {"expires_at": CREATED + 1}, {"expires_at": -1}):
        error = await wire.refusal("rotate_key", id="k", token=TOKEN, **params)
        assert (error.name, error.data["fields"]) == ("invalid_params", ["expires_at"])
        assert TOKEN not in str(error.payload())
    assert (await wire.refusal("get_key", id="k")).why == "expired"
    await wire.call("rotate_key", id="k", token=TOKEN, expires_at=CREATED + 9)
    assert (await wire.call("get_key", id="k"))["token"] == TOKEN


async def test_deleted(wire: Wire) -> None:
    await wire.call("store_key", id="k", provider="xai", token=TOKEN)
    assert await wire.call("delete_key", id="k") == {"status": "deleted", "id": "k"}
    assert await wire.call("list_keys") == []
    for method, params in (("get_key", {}), ("delete_key", {}), ("rotate_key", {"token": TOKEN})):
        error = await wire.refusal(method, id="k", **params)
        assert (error.name, error.kind.code) == ("key_not_found", -3)


@pytest.mark.parametrize(
    ("field", "params"),
    [
        ("provider", {"token": TOKEN}),
        ("provider", {"provider": "Open AI", "token": TOKEN}),
        ("provider", {"provider": 1, "token": TOKEN}),
        ("token", {"provider": "openai"}),
        ("token", {"provider": "openai", "token": ""}),
        ("token", {"provider": "openai", "token": [TOKEN]}),
        ("id", {"provider": "openai", "token": TOKEN, "id": "../x"}),
        ("display_name", {"provider": "openai", "token": TOKEN, "display_name": "a\nb"}),
        ("expires_at", {"provider": "openai", "token": TOKEN, "expires_at": -1}),
        ("expires_at", {"provider": "openai", "token": TOKEN, "expires_at": "never"}),
        ("expires_at", {"provider": "openai", "token": TOKEN, "expires_at": True}),
        ("tags", {"provider": "openai", "token": TOKEN, "tags": "a"}),
        ("tags", {"provider": "openai", "token": TOKEN, "tags": ["a"] * 33}),
        ("secret", {"provider": "openai", "token": TOKEN, "secret": "x"}),
    ],
)
async def test_wrong_params_are_named_and_not_repeated(wire: Wire, field: str, params: dict[str, Any]) -> None:
    error = await wire.refusal("store_key", **params)
    assert error.name == "invalid_params"
    assert field in str(error)
    assert TOKEN not in str(error.payload())
    assert await wire.call("list_keys") == []


@pytest.mark.parametrize(
    ("method", "params"),
    [
        ("get_key", {}),
        ("get_key", {"id": 1}),
        ("list_keys", {"provider": 1}),
        ("delete_key", {}),
        ("rotate_key", {"id": "k"}),
        ("rotate_key", {"id": "k", "token": ""}),
        ("rotate_key", {"id": "k", "token": "t", "provider": "xai"}),
    ],
)
async def test_wrong_params_of_the_others(wire: Wire, method: str, params: dict[str, Any]) -> None:
    await wire.call("store_key", id="k", provider="xai", token=TOKEN)
    assert (await wire.refusal(method, **params)).name == "invalid_params"


def test_no_repr_shows_a_token() -> None:
    assert TOKEN not in repr(StoreKey(provider="openai", token=TOKEN))
    assert TOKEN not in repr(KeyWithToken("i", "p", TOKEN, "", 0, 0, None))
    assert TOKEN not in repr(RotateKey("i", TOKEN))


@pytest.mark.mission("K.socket")
async def test_only_operators_may(wire: Wire) -> None:
    assert wire.registry.names(Role.OPERATOR) == [
        "delete_key",
        "get_key",
        "list_keys",
        "rotate_key",
        "store_key",
    ]
    for role in (Role.AGENT, Role.OBSERVER, Role.REMOTE):
        for method in wire.registry.names():
            with pytest.raises(ArmorclawError) as caught:
                await call_local(wire.registry, method, {}, role=role, agent="ada")
            assert caught.value.name == "denied"


async def test_reading_a_token_is_on_record_and_the_token_is_not(wire: Wire) -> None:
    await wire.call("store_key", provider="openai", token=TOKEN)
    await wire.call("get_key", id="openai-default")
    await wire.call("list_keys")
    await wire.call("rotate_key", id="openai-default", token=TOKEN + "2")
    await wire.call("delete_key", id="openai-default")
    rows = await wire.db.read(lambda db: [bytes(row[0]) for row in db.execute("SELECT body FROM audit ORDER BY seq")])
    kinds = (b'"key_stored"', b'"key_read"', b'"key_rotated"', b'"key_deleted"')
    assert [kind in row for kind, row in zip(kinds, rows, strict=True)] == [True] * 4
    assert all(b'"uid ' in row and TOKEN.encode() not in row for row in rows)
