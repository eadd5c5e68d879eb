"""What the methods of the keystore take and answer."""

from __future__ import annotations

from typing import Literal

import attrs


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


@attrs.frozen
class RotateKey:
    """`token` is the new one; `expires_at` says until when it holds, if that changes: 0 is for ever."""

    id: str
    token: str = attrs.field(repr=False)
    expires_at: int | None = None


@attrs.frozen
class DeleteKey:
    id: str


@attrs.frozen
class KeyDeleted:
    status: Literal["deleted"]
    id: str
