"""What is known of each room of an account: whether we are in it, and whether it is encrypted."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from armorclaw.store import Connection


@attrs.frozen
class RoomState:
    """`membership` is ours: join, invite or leave. `encrypted` never goes back to false, as the specification says.

    For a room we are not in, `encrypted` is only what was last seen.
    """

    membership: str
    encrypted: bool = False


class Rooms:
    """The rooms of one account, in memory as in the table `rooms`, which moves together with the sync token."""

    def __init__(self, account: str) -> None:
        self._account = account
        self._rooms: dict[str, RoomState] = {}

    def get(self, room_id: str) -> RoomState | None:
        return self._rooms.get(room_id)

    def joined(self, room_id: str) -> bool:
        state = self._rooms.get(room_id)
        return state is not None and state.membership == "join"

    def joined_ids(self) -> list[str]:
        return [room_id for room_id, state in self._rooms.items() if state.membership == "join"]

    def encrypted(self, room_id: str) -> bool | None:
        """True if a message there must be encrypted; None if only the homeserver can tell."""
        state = self._rooms.get(room_id)
        if state is None:
            return None
        return state.encrypted or (False if state.membership == "join" else None)

    def load(self, db: Connection) -> dict[str, RoomState]:
        """Read the table; runs in the store. Hand the result to `replace`."""
        query = "SELECT room_id, membership, encrypted FROM rooms WHERE account = ?"
        return {
            room: RoomState(membership, bool(bit)) for room, membership, bit in db.execute(query, [self._account])
        }

    def save(self, db: Connection, changes: Mapping[str, RoomState]) -> None:
        """Write changes; runs in the store, in the transaction of the sync token."""
        query = (
            "INSERT INTO rooms (account, room_id, membership, encrypted) VALUES (?, ?, ?, ?)"
            " ON CONFLICT (account, room_id)"
            " DO UPDATE SET membership = excluded.membership, encrypted = max(encrypted, excluded.encrypted)"
        )
        rows = [(self._account, room, state.membership, int(state.encrypted)) for room, state in changes.items()]
        db.executemany(query, rows)

    def replace(self, rooms: Mapping[str, RoomState]) -> None:
        """Forget what was known and take what `load` read."""
        self._rooms = dict(rooms)

    def apply(self, changes: Mapping[str, RoomState]) -> None:
        """Take changes that `save` has committed."""
        self._rooms.update(changes)
