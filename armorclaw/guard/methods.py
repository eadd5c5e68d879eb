"""The keystore on the wire."""

from __future__ import annotations

import attrs

from armorclaw.guard.keystore import KeyInfo, KeyStore
from armorclaw.rpc.peer import Call
from armorclaw.rpc.registry import Registry, Role


@attrs.frozen
class StoreKey:
    """Without `id` it is `<provider>-default`; `expires_at` is seconds since the epoch, 0 for never."""

    provider: str
    token: str = attrs.field(repr=False)
    id: str = ""
    display_name: str = ""
    expires_at: int = 0
    tags: list[str] | None = None


@attrs.frozen
class KeyStored:
    id: str
    key_id: str
    provider: str
    created_at: int


@attrs.frozen
class ListKeys:
    provider: str = ""


@attrs.frozen
class KeyShown:
    """What may be shown of a key; times are seconds since the epoch."""

    id: str
    provider: str
    display_name: str
    created_at: int
    expires_at: int
    tags: list[str] | None

    @classmethod
    def of(cls, info: KeyInfo) -> KeyShown:
        tags = None if info.tags is None else list(info.tags)
        return cls(info.id, info.provider, info.display_name, info.created_at, info.expires_at, tags)


@attrs.frozen
class GetKey:
    id: str


@attrs.frozen
class KeyWithToken:
    id: str
    provider: str
    token: str = attrs.field(repr=False)
    display_name: str
    created_at: int
    expires_at: int
    tags: list[str] | None


def register(registry: Registry, keystore: KeyStore) -> None:
    """Adds store_key, list_keys and get_key, for the operator only: agents are handed their keys once, sealed."""
    operator = {Role.OPERATOR}

    @registry.method(
        "store_key", params=StoreKey, result=KeyStored, roles=operator, doc="Store a key, or replace it."
    )
    async def store_key(call: Call, params: StoreKey) -> KeyStored:
        info = await keystore.store(
            id=params.id,
            provider=params.provider,
            token=params.token,
            display_name=params.display_name,
            expires_at=params.expires_at,
            tags=params.tags,
            by=f"uid {call.uid}",
        )
        return KeyStored(info.id, info.id, info.provider, info.created_at)

    @registry.method("list_keys", params=ListKeys, result=list[KeyShown], roles=operator, doc="The keys there are.")
    async def list_keys(call: Call, params: ListKeys) -> list[KeyShown]:
        return [KeyShown.of(info) for info in await keystore.list(params.provider)]

    @registry.method("get_key", params=GetKey, result=KeyWithToken, roles=operator, doc="One key with its token.")
    async def get_key(call: Call, params: GetKey) -> KeyWithToken:
        key = await keystore.get(params.id, by=f"uid {call.uid}")
        shown = KeyShown.of(key)
        return KeyWithToken(
            shown.id, shown.provider, key.token, shown.display_name, shown.created_at, shown.expires_at, shown.tags
        )
