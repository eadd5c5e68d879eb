"""How far a device is trusted, and whether that is enough in a room."""

from __future__ import annotations

import enum
from collections.abc import Mapping

import attrs


class Trust(enum.StrEnum):
    """What is known of a device. A person's identity is their master cross-signing key."""

    BLACKLISTED = "blacklisted"  # by hand
    UNVERIFIED = "unverified"  # its owner has an identity, which has not signed it
    CHANGED = "changed"  # signed by an identity that is not the one we saw first
    UNKNOWN_DEVICE = "unknown_device"  # not, or no longer, in its owner's list
    FORWARDED = "forwarded"  # of the key alone: a verified device of our own passed it on
    NO_IDENTITY = "no_identity"  # its owner has none, so there is nothing to hold it against
    TOFU = "tofu"  # signed by the identity that we saw first
    VERIFIED = "verified"  # by hand, or signed by an identity that is


@attrs.frozen
class DevicePolicy:
    """Which devices may read, and are believed: `yes` all but those blacklisted, `no` only verified ones, `tofu`
    those that the identity seen first has signed, or whose owner has none.

    `default`, and by room id where it differs.
    """

    default: str = "tofu"
    rooms: Mapping[str, str] = attrs.field(factory=dict)

    def for_room(self, room_id: str) -> str:
        """`yes`, `no` or `tofu`."""
        return self.rooms.get(room_id, self.default)


def is_enough(trust: Trust, policy: str, *, identity: bool = True) -> bool:
    """Whether a device, or a message of it, is accepted; `identity` tells if its owner has one."""
    if policy == "yes":
        return trust is not Trust.BLACKLISTED
    if policy == "tofu":
        known = (Trust.NO_IDENTITY, Trust.TOFU, Trust.FORWARDED, Trust.VERIFIED)
        return trust in known or (trust is Trust.UNKNOWN_DEVICE and not identity)
    return trust is Trust.VERIFIED
