"""What a session asks of its homeserver in so many words."""

from __future__ import annotations

import json

from armorclaw.matrix.client import SYNC_FILTER


def test_what_a_sync_asks_for() -> None:
    """Members of large rooms are megabytes: nobody's state but what is kept, and of who spoke no more than that."""
    asked = json.loads(SYNC_FILTER)
    room = asked.pop("room")
    assert asked == {"presence": {"not_types": ["*"]}, "account_data": {"types": ["m.direct"]}}
    assert room.pop("timeline") == {"limit": 100, "lazy_load_members": True}
    state = room.pop("state")
    assert state.pop("lazy_load_members") is True
    kept = ("canonical_alias", "create", "encryption", "name", "tombstone")
    assert {name: sorted(types) for name, types in state.items()} == {"types": [f"m.room.{each}" for each in kept]}
    assert room == {"ephemeral": {"types": ["m.receipt"]}, "account_data": {"not_types": ["*"]}}
