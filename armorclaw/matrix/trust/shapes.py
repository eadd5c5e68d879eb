"""What the methods of trust take and answer."""

from __future__ import annotations

from typing import Literal

import attrs

from armorclaw.rpc.shape import FieldError, omit_none


def _is_user(_params: object, field: attrs.Attribute[str | None], value: str | None) -> None:
    if value is not None and (not value.startswith("@") or ":" not in value or len(value) > 255):
        raise FieldError(field, "must be a user id, like @name:server")


@attrs.frozen
class VerifyParams:
    """Whom to verify: `user_id`, which may be the account's own, or one `device_id` of theirs; in the room `room_id`,
    by default the direct chat with them if there is one, else from device to device. Without `user_id` the next who
    asks to be verified is waited for. `direct` begins without asking first, as old clients want it; it takes a
    `device_id`."""

    user_id: str | None = attrs.field(default=None, validator=_is_user)
    device_id: str | None = None
    room_id: str | None = None
    direct: bool = False
    account: str | None = None


@omit_none
@attrs.frozen
class VerifyStep:
    """`waiting`: for somebody to ask. `asked`: for the other side to accept. `requested`: the other side asks; answer
    yes or no. `agreeing`: both are at it. `compare`: both sides show `emoji` (with their English names), or
    `decimals`; answer whether they are the same. `confirmed`: for the other side to say the same."""

    state: Literal["waiting", "asked", "requested", "agreeing", "compare", "confirmed"]
    user_id: str | None = None
    device_id: str | None = None
    emoji: list[list[str]] | None = None
    decimals: list[int] | None = None


@attrs.frozen
class VerifyAnswer:
    """What the person says to a step that asks. `state` is that of the step; what comes too late is ignored."""

    state: Literal["requested", "compare"]
    yes: bool


@attrs.frozen
class Verified:
    """`verified` tells whether it came to a good end, else `code` and `reason` tell why not: a code of Matrix, such
    as m.mismatched_sas or m.timeout. `keys` are the ids of the keys that were proven."""

    verified: bool
    user_id: str
    device_id: str | None
    keys: list[str]
    code: str
    reason: str


@attrs.frozen
class DevicesParams:
    """`user_id` is the account's own by default."""

    user_id: str | None = attrs.field(default=None, validator=_is_user)
    account: str | None = None


@attrs.frozen
class MatrixDevice:
    """`fingerprint` is its Ed25519 key. `trust` is verified, tofu (signed by the identity seen first), no_identity
    (its owner has none), changed (signed by an identity that is not the first), unverified (not signed) or
    blacklisted."""

    device_id: str
    name: str
    fingerprint: str
    trust: str
    own: bool


@attrs.frozen
class MatrixDevices:
    """`master` is the public key of the user's cross-signing identity, null if they have none; `identity` is
    verified, tofu, changed or none. `signed` and `hint` are of this very device of the bridge: whether the account's
    identity has signed it (null: not known yet), and else what helps."""

    user_id: str
    master: str | None
    identity: str
    devices: list[MatrixDevice]
    signed: bool | None
    hint: str


@attrs.frozen
class RecoveryKeyParams:
    """`store` is the id of a key in the keystore to put it into instead of showing it. `new` makes another one; the
    one before opens nothing from then on."""

    account: str | None = None
    store: str | None = None
    new: bool = False


@omit_none
@attrs.frozen
class RecoveryKey:
    """`recovery_key`, or the id under which it is `stored`."""

    account: str
    recovery_key: str | None = attrs.field(default=None, repr=False)
    stored: str | None = None


@attrs.frozen
class AcceptParams:
    """Whose identity is to count as it is now; `master` is its key, as matrix.devices tells it."""

    user_id: str = attrs.field(validator=_is_user)  # type: ignore[assignment]
    master: str
    account: str | None = None
