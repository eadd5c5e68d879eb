"""mautrix's ClientAPI, natively on Trio as far as a session uses it."""

from __future__ import annotations

import json
from typing import Any
from urllib.parse import quote

from mautrix.api import Method, Path, PathBuilder
from mautrix.client import ClientAPI
from mautrix.errors import MatrixResponseError, MNotFound
from mautrix.types import DeviceID, RoomAlias, RoomID, SerializerError, UserID

from armorclaw.matrix.answer import Raw, events_in, is_room_id
from armorclaw.matrix.transport import TrioHTTPAPI

POLL_SECONDS = 30.0
"""How long the homeserver holds a /sync back when nothing happens."""

POLL_MARGIN = 10.0
"""Seconds of silence after that before the connection counts as dead."""

SYNC_FILTER = json.dumps(
    {
        "presence": {"not_types": ["*"]},
        "account_data": {"not_types": ["*"]},
        "room": {
            "timeline": {"limit": 100, "lazy_load_members": True},
            # all we keep of a room's state; members of large rooms are megabytes
            "state": {"types": ["m.room.encryption"], "lazy_load_members": True},
            "ephemeral": {"types": ["m.receipt"]},
            "account_data": {"not_types": ["*"]},
        },
    },
    separators=(",", ":"),
)

# encoded once: it is asked in every round
_SYNC = f"{Path.v3.sync}?set_presence=offline&filter={quote(SYNC_FILTER, safe='')}"


class MatrixClient(ClientAPI):
    """The calls of one session. Errors are those of TrioHTTPAPI; `judge` tells what they mean.

    Not natively on Trio, and so not to be used: `join_room` with retries, `download_media`, `download_thumbnail`,
    `discover`, `upload_media` with async_upload.
    """

    api: TrioHTTPAPI

    def __init__(self, api: TrioHTTPAPI) -> None:
        super().__init__(api=api)

    async def log_in(self, user: str, password: str, device_id: str) -> None:
        """Log in with a password, as one device. `user` may be `name`, `@name` or `@name:server`."""
        try:
            await self.login(
                UserID(user_identifier(user)), password=password, device_id=device_id, device_name="armorclaw"
            )
        except (SerializerError, ValueError, TypeError) as error:
            raise MatrixResponseError("the answer to /login is not complete") from error

    async def take_token(self, token: str) -> None:
        """Use an access token from elsewhere and learn whose it is."""
        self.api.token = token
        try:
            who = await self.whoami()
            self.mxid = who.user_id
        except (SerializerError, ValueError, TypeError) as error:
            raise MatrixResponseError("the answer to /account/whoami is not complete") from error
        self.device_id = who.device_id or DeviceID("")

    async def check_login(self) -> None:
        """Ask the homeserver who we are, for nothing but whether it answers."""
        await self.api.request(Method.GET, Path.v3.account.whoami)

    def use(self, user_id: str, device_id: str, token: str) -> None:
        """Go on with a login from before."""
        self.mxid = UserID(user_id)
        self.device_id = DeviceID(device_id)
        self.api.token = token

    async def poll(self, since: str | None, seconds: float) -> dict[str, Any]:
        """/sync, waiting up to `seconds` for something to happen. Without `since` it tells the present state only."""
        path = f"{_SYNC}&timeout={int(seconds * 1000)}" + ("" if since is None else f"&since={quote(since, safe='')}")
        answer: dict[str, Any] = await self.api.request(Method.GET, path, read_timeout=seconds + POLL_MARGIN)
        return answer

    async def put_event(self, room_id: str, type_: str, txn_id: str, content: bytes) -> str:
        """Send an event; the same `txn_id` sends it once. Returns the event id."""
        path = Path.v3.rooms[room_id].send[type_][txn_id]
        answer = await self.api.request(Method.PUT, path, content)
        event_id = answer.get("event_id")
        if not isinstance(event_id, str) or not event_id:
            raise MatrixResponseError("the answer to a send has no event_id")
        return event_id

    async def is_encrypted(self, room_id: str) -> bool:
        """Ask the homeserver, who must not be guessed about: no such state means no encryption."""
        return await self.state(room_id, "m.room.encryption", "") is not None

    async def page_back(self, room_id: str, start: str, end: str, limit: int) -> tuple[list[Raw], str | None]:
        """Events before `start` and after `end`, newest first, and where to go on; None at the end."""
        query = {"dir": "b", "from": start, "to": end, "limit": limit}
        answer = await self.api.request(Method.GET, Path.v3.rooms[room_id].messages, query_params=query)
        chunk, further = events_in(answer.get("chunk")), answer.get("end")
        return chunk, further if chunk and isinstance(further, str) else None

    async def latest(
        self,
        room_id: str,
        limit: int,
        *,
        start: str | None,
        filter: str,  # noqa: A002 - the word of the API
    ) -> tuple[list[Raw], str | None]:
        """Events that fit a filter, from now back or from `start`, newest first, and where to go on.

        None only at the end of what we may see; a page may be empty long before that.
        """
        query = {"dir": "b", "from": start, "limit": limit, "filter": filter}
        answer = await self.api.request(Method.GET, Path.v3.rooms[room_id].messages, query_params=query)
        further = answer.get("end")
        return events_in(answer.get("chunk")), further if isinstance(further, str) and further != start else None

    async def mark_read(self, room_id: str, event_id: str) -> None:
        """Show everybody in the room that we have read it up to this event."""
        await self.api.request(Method.POST, Path.v3.rooms[room_id].receipt["m.read"][event_id], {})

    async def members(self, room_id: str) -> dict[str, Raw]:
        """Who has joined the room: `display_name` and `avatar_url` of each, as the homeserver says."""
        answer = await self.api.request(Method.GET, Path.v3.rooms[room_id].joined_members)
        joined = answer.get("joined")
        if not isinstance(joined, dict):
            raise MatrixResponseError("the answer about members has none")
        return {user: facts for user, facts in joined.items() if isinstance(facts, dict)}

    async def profile(self, user_id: str) -> Raw | None:
        """What the user's own homeserver says of them; None if it knows no such user."""
        return await self._found(Path.v3.profile[user_id])

    async def state(self, room_id: str, type_: str, state_key: str) -> Raw | None:
        """The content of one piece of a room's state; None if there is none."""
        # without a key the path must not end in a slash, which some homeservers take for another one
        path = Path.v3.rooms[room_id].state[type_]
        return await self._found(path[state_key] if state_key else path)

    async def _found(self, path: PathBuilder) -> Raw | None:
        try:
            answer: Raw = await self.api.request(Method.GET, path)
        except MNotFound:
            return None
        return answer

    async def enter(self, room_id: str) -> None:
        """Join a room by its id. Joining twice is joining once."""
        await self.join_room_by_id(RoomID(room_id))

    async def resolve(self, alias: str) -> str:
        """The id of the room that an alias names now."""
        try:
            room_id = str((await self.resolve_room_alias(RoomAlias(alias))).room_id)
        except (SerializerError, TypeError) as error:
            raise MatrixResponseError("the answer to an alias look-up is not complete") from error
        if not is_room_id(room_id):
            raise MatrixResponseError("the answer to an alias look-up is no room id")
        return room_id


def user_identifier(user: str) -> str:
    """A user as /login takes it: the whole id, or the local part alone."""
    name = user.removeprefix("@")
    return f"@{name}" if ":" in name else name


def may_be_same(one: str, other: str) -> bool:
    """Whether two users, each a name or a whole id, can be the same one; a name alone is of any server."""
    (name, _, server), (name2, _, server2) = (each.removeprefix("@").lower().partition(":") for each in (one, other))
    return name == name2 and (not server or not server2 or server == server2)


def same_user(configured: str, user_id: str) -> bool:
    """Whether a configured user may be `user_id`; local parts are compared without case, as homeservers make them."""
    wanted, found = user_identifier(configured), user_id.removeprefix("@")
    return found.lower() == (wanted[1:] if wanted.startswith("@") else f"{wanted}:{found.partition(':')[2]}").lower()
