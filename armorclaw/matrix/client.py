"""mautrix's ClientAPI, natively on Trio as far as a session uses it."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any, TypeGuard
from urllib.parse import quote

import trio
from mautrix.api import Method, Path, PathBuilder
from mautrix.client import ClientAPI
from mautrix.errors import MatrixError, MatrixResponseError, MNotFound
from mautrix.types import DeviceID, RoomAlias, RoomID, SerializerError, UserID

from armorclaw.matrix.answer import Raw, events_in, is_room_id
from armorclaw.matrix.failures import judge
from armorclaw.matrix.tokens import Tokens, read_tokens
from armorclaw.matrix.transport import TrioHTTPAPI
from armorclaw.matrix.versions import Versions, ask

POLL_SECONDS = 30.0
"""How long the homeserver holds a /sync back when nothing happens."""

VERSIONS_KEPT = 3600.0
"""Seconds for which it is remembered what a homeserver speaks."""

POLL_MARGIN = 10.0
"""Seconds of silence after that before the connection counts as dead."""

SYNC_FILTER = json.dumps(
    {
        "presence": {"not_types": ["*"]},
        "account_data": {"types": ["m.direct"]},
        "room": {
            "timeline": {"limit": 100, "lazy_load_members": True},
            # all we keep of a room's state; members of large rooms are megabytes
            "state": {
                "types": [
                    *("m.room.canonical_alias", "m.room.create", "m.room.encryption"),
                    *("m.room.name", "m.room.tombstone"),
                ],
                "lazy_load_members": True,
            },
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
        self._negotiated: tuple[float, Versions] | None = None
        self._negotiating = trio.Lock()

    async def log_in(self, user: str, password: str, device_id: str) -> Tokens:
        """Log in with a password, as one device, and use what it brings. `user` may be `name`, `@name` or
        `@name:server`."""
        body = {
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": user_identifier(user)},
            "password": password,
            "device_id": device_id,
            "initial_device_display_name": "armorclaw",
            "refresh_token": True,  # homeservers that know of none ignore it
        }
        answer = await self.api.request(Method.POST, Path.v3.login, body, authorized=False)
        tokens, user_id, device = read_tokens(answer), answer.get("user_id"), answer.get("device_id")
        if tokens is None or not (is_user_id(user_id) and is_device_id(device)):
            raise MatrixResponseError("the answer to /login is not complete")
        self.use(user_id, device, tokens.access_token)
        return tokens

    async def refresh(self, refresh_token: str) -> Tokens:
        """A new access token for a refresh token. It is not used yet: as long as it is not, the old ones are good."""
        answer = await self.api.request(
            Method.POST, Path.v3.refresh, {"refresh_token": refresh_token}, authorized=False
        )
        tokens = read_tokens(answer)
        if tokens is None:
            raise MatrixResponseError("the answer to /refresh is not complete")
        return tokens

    async def log_out(self) -> None:
        """End this login, and with it the device and its keys."""
        await self.api.request(Method.POST, Path.v3.logout)

    async def take_token(self, token: str) -> None:
        """Use an access token from elsewhere and learn whose it is."""
        self.api.token = token
        who = await self.api.request(Method.GET, Path.v3.account.whoami)
        user_id, device = who.get("user_id"), who.get("device_id")
        if not is_user_id(user_id):
            raise MatrixResponseError("the answer to /account/whoami is not complete")
        self.use(user_id, device if is_device_id(device) else "", token)

    async def negotiated(self) -> Versions:
        """What the homeserver speaks; asked once an hour at most. Raises MatrixError."""
        async with self._negotiating:
            if self._negotiated is None or trio.current_time() - self._negotiated[0] > VERSIONS_KEPT:
                try:
                    self._negotiated = trio.current_time(), await ask(self.api)
                except MatrixError as error:
                    # it still speaks what it spoke, unless it says otherwise
                    if self._negotiated is None or not judge(error).again:
                        raise
            return self._negotiated[1]

    async def check_login(self) -> None:
        """Ask the homeserver who we are, for nothing but whether it answers."""
        await self.api.request(Method.GET, Path.v3.account.whoami)

    def use(self, user_id: str, device_id: str, token: str) -> None:
        """Go on with a login from before."""
        self.mxid = UserID(user_id)
        self.device_id = DeviceID(device_id)
        self.api.token = token

    async def poll(self, since: str | None, seconds: float, *, full_state: bool = False) -> dict[str, Any]:
        """/sync, waiting up to `seconds` for something to happen. Without `since` it tells the present state only.

        With `full_state` it tells that state as well as what has happened, at once.
        """
        path = f"{_SYNC}&timeout={int(seconds * 1000)}" + ("" if since is None else f"&since={quote(since, safe='')}")
        if full_state and since is not None:
            path += "&full_state=true"
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

    async def redact_event(self, room_id: str, event_id: str, txn_id: str, reason: str | None = None) -> str:
        """Take an event's content away; the same `txn_id` does it once. Returns the id of the event that says so."""
        path = Path.v3.rooms[room_id].redact[event_id][txn_id]
        answer = await self.api.request(Method.PUT, path, {} if reason is None else {"reason": reason})
        redaction = answer.get("event_id")
        if not isinstance(redaction, str) or not redaction:
            raise MatrixResponseError("the answer to a redaction has no event_id")
        return redaction

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

    async def event(self, room_id: str, event_id: str) -> Raw | None:
        """One event of a room, as it stands there; None if there is none that we may see."""
        return await self._found(Path.v3.rooms[room_id].event[event_id])

    async def _found(self, path: PathBuilder) -> Raw | None:
        try:
            answer: Raw = await self.api.request(Method.GET, path)
        except MNotFound:
            return None
        return answer

    async def enter(self, room_id: str) -> None:
        """Join a room by its id. Joining twice is joining once."""
        await self.join_room_by_id(RoomID(room_id))

    async def join(self, room: str, via: Sequence[str] = ()) -> str:
        """Join a room by its id, or by an alias; returns the id."""
        query = "&".join(f"via={quote(each, safe='')}" for each in via)
        answer = await self.api.request(Method.POST, f"{Path.v3.join[room]}" + (f"?{query}" if query else ""), {})
        room_id = answer.get("room_id")
        if not is_room_id(room_id):
            raise MatrixResponseError("the answer to a join is no room id")
        return room_id

    async def note_direct(self, room_id: str, person: str) -> None:
        """Write down, for all clients of this account, that a room is a direct chat with somebody."""
        path = Path.v3.user[self.mxid].account_data["m.direct"]
        known = dict(await self._found(path) or {})
        before = known.get(person)
        rooms = before if isinstance(before, list) else []
        if room_id not in rooms:
            await self.api.request(Method.PUT, path, {**known, person: [*rooms, room_id]})

    async def leave(self, room_id: str, reason: str | None = None) -> None:
        """Leave a room, or refuse an invite."""
        body = {} if reason is None else {"reason": reason}
        await self.api.request(Method.POST, Path.v3.rooms[room_id].leave, body)

    async def show_typing(self, room_id: str, seconds: float) -> None:
        """Show everybody in the room that we are writing, for so long at most; 0 for no more."""
        timeout = {"timeout": int(seconds * 1000)} if seconds > 0 else {}
        path = Path.v3.rooms[room_id].typing[self.mxid]
        await self.api.request(Method.PUT, path, {"typing": seconds > 0, **timeout})

    async def resolve(self, alias: str) -> str:
        """The id of the room that an alias names now."""
        try:
            room_id = str((await self.resolve_room_alias(RoomAlias(alias))).room_id)
        except (SerializerError, TypeError) as error:
            raise MatrixResponseError("the answer to an alias look-up is not complete") from error
        if not is_room_id(room_id):
            raise MatrixResponseError("the answer to an alias look-up is no room id")
        return room_id


def is_user_id(value: object) -> TypeGuard[str]:
    """Whether it may be the id of a user, as a homeserver writes it."""
    return isinstance(value, str) and re.fullmatch(r"@[^\s:@]*:[^\s@/]+", value) is not None and len(value) <= 255


def is_device_id(value: object) -> TypeGuard[str]:
    """Whether it may be the id of a device."""
    return isinstance(value, str) and 0 < len(value) <= 255 and value.isprintable()


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
