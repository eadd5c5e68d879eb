"""The keystore on the wire."""

from __future__ import annotations

from armorclaw.guard.keystore import KeyInfo, KeyStore
from armorclaw.guard.shapes import (
    DeleteKey,
    GetKey,
    KeyDeleted,
    KeyShown,
    KeyStored,
    KeyWithToken,
    ListKeys,
    RotateKey,
    StoreKey,
)
from armorclaw.rpc.admission import Rate
from armorclaw.rpc.call import Call
from armorclaw.rpc.registry import Registry, Role

TOKEN_RATE = Rate(10, 100)
"""How often one user may hand over a token, or be shown one: a script may move a hundred keys at once, and whoever
gets hold of a terminal reads out no more than ten a second."""


def register(registry: Registry, keystore: KeyStore) -> None:
    """Adds the methods of keys, for the operator only: agents are handed their keys once, sealed."""
    operator = {Role.OPERATOR}

    @registry.method(
        "store_key",
        params=StoreKey,
        result=KeyStored,
        roles=operator,
        rate=TOKEN_RATE,
        doc="Store a key, or replace it.",
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
        return [_shown(info) for info in await keystore.list(params.provider)]

    @registry.method(
        "get_key",
        params=GetKey,
        result=KeyWithToken,
        roles=operator,
        rate=TOKEN_RATE,
        doc="One key with its token.",
    )
    async def get_key(call: Call, params: GetKey) -> KeyWithToken:
        key = await keystore.get(params.id, by=f"uid {call.uid}")
        shown = _shown(key)
        return KeyWithToken(
            shown.id, shown.provider, key.token, shown.display_name, shown.created_at, shown.expires_at, shown.tags
        )

    @registry.method("rotate_key", params=RotateKey, result=KeyShown, roles=operator, rate=TOKEN_RATE)
    async def rotate_key(call: Call, params: RotateKey) -> KeyShown:
        """Give a key another token. Agents that run keep the one they have; the next start takes the new one."""
        by = f"uid {call.uid}"
        return _shown(await keystore.rotate(params.id, params.token, expires_at=params.expires_at, by=by))

    @registry.method("delete_key", params=DeleteKey, result=KeyDeleted, roles=operator)
    async def delete_key(call: Call, params: DeleteKey) -> KeyDeleted:
        """Forget a key. Agents that run keep what they have; one that is granted it cannot start without it."""
        await keystore.delete(params.id, by=f"uid {call.uid}")
        return KeyDeleted("deleted", params.id)


def _shown(info: KeyInfo) -> KeyShown:
    tags = None if info.tags is None else list(info.tags)
    return KeyShown(info.id, info.provider, info.display_name, info.created_at, info.expires_at, tags)
