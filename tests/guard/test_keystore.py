from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
import structlog

from armorclaw.clock import Surroundings
from armorclaw.errors import ArmorclawError
from armorclaw.guard.audit import AuditLog
from armorclaw.guard.keystore import PROVIDERS, KeyStore, StoredKey
from armorclaw.store import Database

CANARY = "sk-canary-7f3a91c2"


@pytest.fixture
def audit(around: Surroundings) -> AuditLog:
    return AuditLog(around)


@pytest.fixture
def keys(db: Database, audit: AuditLog, around: Surroundings) -> KeyStore:
    return KeyStore(db, audit, around)


async def test_stored_and_read(keys: KeyStore) -> None:
    info = await keys.store(
        id="work", provider="openai", token=CANARY, display_name="Work key", expires_at=2_000_000_000, tags=["a", "b"]
    )
    assert attrs.asdict(info) == {
        "id": "work",
        "provider": "openai",
        "display_name": "Work key",
        "created_at": 1_770_000_000,
        "expires_at": 2_000_000_000,
        "tags": ("a", "b"),
    }
    assert await keys.get("work") == StoredKey(token=CANARY, **attrs.asdict(info))
    assert await keys.list() == [info]


async def test_the_id_defaults_to_the_provider(keys: KeyStore) -> None:
    for provider in (*PROVIDERS, "my-own_llm2"):
        info = await keys.store(provider=provider, token="t")
        assert info.id == f"{provider}-default"
        assert info.tags is None
    assert [info.id for info in await keys.list("gemini")] == ["gemini-default"]
    assert await keys.list("unknown") == []
    assert len(await keys.list()) == 7


async def test_storing_again_replaces(keys: KeyStore, hands: Any) -> None:
    await keys.store(provider="xai", token="old", tags=["x"])
    hands.now += 60
    await keys.store(provider="xai", token="new")
    key = await keys.get("xai-default")
    assert (key.token, key.created_at, key.tags) == ("new", 1_770_000_060, None)
    assert len(await keys.list()) == 1


async def test_a_missing_key(keys: KeyStore) -> None:
    for key_id in ("nobody", "", "'; DROP TABLE keys"):
        with pytest.raises(ArmorclawError) as caught:
            await keys.get(key_id)
        assert caught.value.name == "key_not_found"
        assert repr(key_id) in caught.value.what


async def test_an_expired_key_is_listed_and_not_given(keys: KeyStore, hands: Any) -> None:
    await keys.store(id="k", provider="xai", token=CANARY, expires_at=1_770_000_100)
    hands.now = 1_770_000_099.9
    assert (await keys.get("k")).token == CANARY
    hands.now = 1_770_000_100.0
    with pytest.raises(ArmorclawError) as caught:
        await keys.get("k")
    assert caught.value.name == "key_not_found"
    assert caught.value.why == "expired"
    assert [info.id for info in await keys.list()] == ["k"]


async def test_rotating_keeps_the_rest(keys: KeyStore, hands: Any) -> None:
    await keys.store(id="k", provider="xai", token="old", display_name="K", tags=["x"])
    hands.now += 60
    info = await keys.rotate("k", CANARY)
    assert attrs.asdict(info) == {
        "id": "k",
        "provider": "xai",
        "display_name": "K",
        "created_at": 1_770_000_060,
        "expires_at": 0,
        "tags": ("x",),
    }
    assert (await keys.get("k")).token == CANARY


async def test_deleted(keys: KeyStore) -> None:
    await keys.store(id="k", provider="xai", token="t")
    await keys.delete("k")
    assert await keys.list() == []
    with pytest.raises(ArmorclawError) as caught:
        await keys.delete("k")
    assert caught.value.name == "key_not_found"


@pytest.mark.parametrize(
    "field, value",
    [
        ("provider", ""),
        ("provider", "Open AI"),
        ("provider", "x" * 33),
        ("id", "../key"),
        ("id", "a\nb"),
        ("id", "x" * 65),
        ("token", ""),
        ("token", "  "),
        ("token", "a\x00b"),
        ("token", "x" * 16_385),
        ("display_name", "two\nlines"),
        ("display_name", "x" * 201),
        ("expires_at", -1),
        ("expires_at", 2**53),
        ("tags", ["x"] * 33),
        ("tags", [""]),
    ],
)
async def test_what_is_refused_names_its_field(keys: KeyStore, field: str, value: Any) -> None:
    good: dict[str, Any] = {"id": "k", "provider": "openai", "token": CANARY}
    with pytest.raises(ArmorclawError) as caught:
        await keys.store(**{**good, field: value})
    assert caught.value.name == "invalid_params"
    assert caught.value.data == {"fields": [field]}
    assert CANARY not in str(caught.value.payload())
    assert await keys.list() == []


async def test_every_change_and_reading_is_audited(keys: KeyStore, db: Database, audit: AuditLog) -> None:
    await keys.store(provider="xai", token=CANARY, by="operator 1000")
    await keys.store(provider="xai", token=CANARY)
    await keys.get("xai-default", by="agent echo")
    await keys.list()
    await keys.delete("xai-default")
    records = await db.read(lambda c: audit.tail(c, 9))
    assert [(record.kind, record.fields["by"]) for record in records] == [
        ("key_stored", "operator 1000"),
        ("key_stored", "operator"),
        ("key_read", "agent echo"),
        ("key_deleted", "operator"),
    ]
    assert [record.fields.get("replaced") for record in records] == [False, True, None, None]
    assert CANARY not in str(records)


async def test_a_token_is_nowhere_in_clear(keys: KeyStore, db: Database) -> None:
    with structlog.testing.capture_logs() as logs:
        for n in range(50):
            await keys.store(id=f"k{n}", provider="openai", token=CANARY)
        key = await keys.get("k7")
    assert CANARY not in repr(key)
    assert CANARY not in str(logs)
    seen = []
    for file in sorted(db.path.parent.iterdir()):
        seen.append(file.name)
        data = read(file)
        assert CANARY.encode() not in data, file
        assert b"openai" not in data, file
    assert seen == [f"bridge.db{ending}" for ending in ("", "-shm", "-wal", ".ballast", ".check", ".lock")]


def read(file: Path) -> bytes:
    return file.read_bytes()
