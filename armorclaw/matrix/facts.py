"""Questions about rooms and people, answered from memory as long as nothing has changed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import trio

from armorclaw.errors import ArmorclawError
from armorclaw.matrix.cache import Cache, Key, members_of, profile_of, state_of
from armorclaw.matrix.rooms import Rooms

if TYPE_CHECKING:
    from armorclaw.matrix.client import MatrixClient

ANSWER = 3.5
"""Seconds for one question; clients of the wire give up after 5."""

Raw = Mapping[str, Any]


class Facts:
    """What one account can tell. Of rooms it is not in nothing is kept, since no sync tells of their changes.

    All raise unavailable, timed_out, and matrix_refused with the homeserver's words. Values are read, never changed.
    """

    def __init__(self, account: str, rooms: Rooms) -> None:
        self.cache = Cache()
        self._account = account
        self._rooms = rooms
        self._client: MatrixClient | None = None

    @contextmanager
    def answered_by(self, client: MatrixClient) -> Iterator[None]:
        """For the length of a block there is somebody who can ask. Somebody else may have been logged in before."""
        self.cache.clear()
        self._client = client
        try:
            yield
        finally:
            self._client = None

    async def members(self, room_id: str) -> Mapping[str, Raw]:
        """Who has joined the room, by user id: `display_name` and `avatar_url` as the homeserver gives them."""
        found: Mapping[str, Raw] = await self._ask(
            members_of(room_id), lambda client: client.members(room_id), room_id=room_id
        )
        return found

    async def state(self, room_id: str, type_: str, state_key: str) -> Raw | None:
        """The content of one piece of the room's state; None if there is none."""
        found: Raw | None = await self._ask(
            state_of(room_id, type_, state_key),
            lambda client: client.state(room_id, type_, state_key),
            room_id=room_id,
        )
        return found

    async def profile(self, user_id: str) -> Raw | None:
        """What the user's own homeserver says of them; None if there is no such user."""
        found: Raw | None = await self._ask(profile_of(user_id), lambda client: client.profile(user_id))
        return found

    async def _ask(
        self, key: Key, ask: Callable[[MatrixClient], Awaitable[Any]], *, room_id: str | None = None
    ) -> Any:
        from mautrix.errors import MatrixError

        from armorclaw.matrix.transport import judge

        async def fetch() -> Any:
            if self._client is None:
                raise ArmorclawError("unavailable", f"Matrix account {self._account!r} is not logged in")
            return await ask(self._client)

        what = f"{key[0]} of {key[1]}"
        try:
            with trio.fail_after(ANSWER):
                return await self.cache.get(key, fetch, keep=room_id is None or self._rooms.joined(room_id))
        except trio.TooSlowError:
            raise ArmorclawError("timed_out", what, why="the homeserver has not answered in time") from None
        except MatrixError as error:
            verdict = judge(error)
            raise ArmorclawError(
                "unavailable" if verdict.again else "matrix_refused", what, why=verdict.reason
            ) from error
