"""Questions about rooms and people, answered from memory as long as nothing has changed."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import trio

from armorclaw.errors import ArmorclawError
from armorclaw.matrix.cache import Cache, Key, members_of, profile_of, state_of
from armorclaw.matrix.reading import Decrypts
from armorclaw.matrix.rooms import Knows, Rooms

if TYPE_CHECKING:
    from armorclaw.matrix.client import MatrixClient

ANSWER = 3.5
"""Seconds for one question; clients of the wire give up after 5."""

REFUSED = (
    "the homeserver decides that: see that the account is still in the room (armorclaw call matrix.rooms), and that"
    " its power level is enough there"
)
"""What to do about M_FORBIDDEN in a room."""


Raw = Mapping[str, Any]
T = TypeVar("T")


class Reads(Knows, Decrypts, Protocol):
    """As `armorclaw.matrix.crypto.encryption.Encryption`."""


class Facts:
    """What one account can tell. Of rooms it is not in nothing is kept, since no sync tells of their changes.

    All raise unavailable, timed_out, and matrix_refused with the homeserver's words. Values are read, never changed.
    """

    def __init__(self, account: str, rooms: Rooms) -> None:
        self.cache = Cache()
        self.account = account
        """Its name."""
        self.rooms = rooms
        self._client: MatrixClient | None = None
        self._encryption: Reads | None = None

    @contextmanager
    def answered_by(self, client: MatrixClient, encryption: Reads | None = None) -> Iterator[None]:
        """For the length of a block there is somebody who can ask, and read what is encrypted, if there is one for
        that. Somebody else may have been logged in before."""
        self.cache.clear()
        self._client, self._encryption = client, encryption
        try:
            yield
        finally:
            self._client = self._encryption = None

    @property
    def client(self) -> MatrixClient:
        """Who asks, for what is no question. Raises unavailable."""
        if self._client is None:
            raise ArmorclawError("unavailable", f"Matrix account {self.account!r} is not logged in")
        return self._client

    async def must_encrypt(self, room_id: str) -> bool:
        """Whether what is for this room must be encrypted; the homeserver is asked if that is not certain."""

        def ask() -> Awaitable[Raw | None]:
            what = f"encryption of {room_id}"
            return self.done(what, lambda client: client.state(room_id, "m.room.encryption", ""))

        return await self.rooms.find_out(room_id, self._encryption, ask)

    async def content(self, room_id: str, event_id: str) -> Raw:
        """What an event of a room says, decrypted if it is encrypted. Raises not_found for none that we may see, or
        can read."""
        what = f"event {event_id} of {room_id}"
        event = await self.done(what, lambda client: client.event(room_id, event_id))
        if event is None:
            raise ArmorclawError("not_found", what)
        if event.get("type") == "m.room.encrypted" and self._encryption is not None:
            from armorclaw.matrix.crypto.failures import Undecryptable

            try:
                inside: Raw = (await self._encryption.decrypt(room_id, event)).content
                return inside
            except Undecryptable as error:
                raise ArmorclawError("not_found", what, why=f"it cannot be decrypted: {error.reason}") from error
        content = event.get("content")
        return content if isinstance(content, dict) else {}

    async def done(self, what: str, do: Callable[[MatrixClient], Awaitable[T]]) -> T:
        """Have something done in time that is no question. What it was told to do, a homeserver that takes longer may
        do all the same."""
        return await self._told(what, lambda: do(self.client))

    async def members(self, room_id: str) -> Mapping[str, Raw]:
        """Who has joined the room, by user id: `display_name` and `avatar_url` as the homeserver gives them."""
        return await self._ask(members_of(room_id), lambda client: client.members(room_id), room_id=room_id)

    async def state(self, room_id: str, type_: str, state_key: str) -> Raw | None:
        """The content of one piece of the room's state; None if there is none."""
        key = state_of(room_id, type_, state_key)
        return await self._ask(key, lambda client: client.state(room_id, type_, state_key), room_id=room_id)

    async def profile(self, user_id: str) -> Raw | None:
        """What the user's own homeserver says of them; None if there is no such user."""
        return await self._ask(profile_of(user_id), lambda client: client.profile(user_id))

    async def _ask(self, key: Key, ask: Callable[[MatrixClient], Awaitable[T]], *, room_id: str | None = None) -> T:
        what = f"{key[0]} of {key[1]}"
        keep = room_id is None or self.rooms.joined(room_id)
        return await self._told(what, lambda: self.cache.get(key, lambda: ask(self.client), keep=keep))

    async def _told(self, what: str, ask: Callable[[], Awaitable[T]]) -> T:
        from armorclaw.matrix.failures import as_errors

        try:
            with trio.fail_after(ANSWER), as_errors(what, hint=REFUSED):
                return await ask()
        except trio.TooSlowError:
            raise ArmorclawError("timed_out", what, why="the homeserver has not answered in time") from None
