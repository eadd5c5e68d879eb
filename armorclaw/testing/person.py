"""A person on Matrix: the other side of every conversation in the demo, the fixtures and the benchmarks.

Plain and synchronous on httpx, and deliberately not built on the bridge's own Matrix code: what it sees is what any
client sees.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import attrs
import httpx

from armorclaw.errors import ArmorclawError

POLL_MS = 10_000
"""How long one /sync waits for something to happen, in milliseconds."""


_FILTER = '{"room":{"timeline":{"limit":1000}}}'
"""Without it a homeserver leaves out all but the last 10 messages since the last look."""


@attrs.frozen
class Seen:
    """A message as it came out of a room."""

    room_id: str
    event_id: str
    sender: str
    body: str
    content: Mapping[str, Any]
    at: float
    """time.perf_counter() when its /sync answer was read."""


@attrs.define(eq=False)
class Person:
    """One logged-in user. Use it as a context manager, or call `close`."""

    user_id: str
    password: str = attrs.field(repr=False)
    homeserver: str
    _client: httpx.Client = attrs.field(repr=False)
    _since: str | None = None
    _waiting: list[Seen] = attrs.field(factory=list, repr=False)

    @classmethod
    def login(cls, homeserver: str, user: str, password: str) -> Self:
        """Log in by password. Raises matrix_login_failed, unavailable."""
        client = httpx.Client(
            base_url=homeserver, trust_env=False, timeout=httpx.Timeout(10, read=POLL_MS / 1000 + 10)
        )
        identifier = {"type": "m.id.user", "user": user}
        body = {"type": "m.login.password", "identifier": identifier, "password": password}
        try:
            with _mapped(f"log in {user} at {homeserver}", "matrix_login_failed"):
                answer = client.post("/_matrix/client/v3/login", json=body).raise_for_status().json()
        except BaseException:
            client.close()
            raise
        client.headers["Authorization"] = f"Bearer {answer['access_token']}"
        return cls(answer["user_id"], password, homeserver, client)

    def close(self) -> None:
        self._client.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def create_room(self, name: str, *, invite: list[str] | None = None, encrypted: bool = False) -> str:
        """A private room of its own; returns the room id."""
        body: dict[str, Any] = {"name": name, "preset": "trusted_private_chat", "invite": invite or []}
        if encrypted:
            content = {"algorithm": "m.megolm.v1.aes-sha2"}
            body["initial_state"] = [{"type": "m.room.encryption", "state_key": "", "content": content}]
        return str(self._call("POST", "createRoom", body)["room_id"])

    def invite(self, room_id: str, user_id: str) -> None:
        self._call("POST", f"rooms/{quote(room_id)}/invite", {"user_id": user_id})

    def join(self, room_id: str) -> None:
        self._call("POST", f"join/{quote(room_id)}", {})

    def members(self, room_id: str) -> set[str]:
        """Who has joined."""
        return set(self._call("GET", f"rooms/{quote(room_id)}/joined_members")["joined"])

    def send(self, room_id: str, body: str, **content: Any) -> str:
        """Send a text; returns its event id."""
        path = f"rooms/{quote(room_id)}/send/m.room.message/{secrets.token_hex(8)}"
        return str(self._call("PUT", path, {"msgtype": "m.text", "body": body, **content})["event_id"])

    def react(self, room_id: str, event_id: str, key: str) -> str:
        """Put a reaction, such as "👍", to a message; returns the reaction's event id."""
        path = f"rooms/{quote(room_id)}/send/m.reaction/{secrets.token_hex(8)}"
        relation = {"rel_type": "m.annotation", "event_id": event_id, "key": key}
        return str(self._call("PUT", path, {"m.relates_to": relation})["event_id"])

    def send_file(self, room_id: str, name: str, data: bytes, mimetype: str) -> str:
        """Send a file, an image as such; returns the event id."""
        msgtype = "m.image" if mimetype.startswith("image/") else "m.file"
        with _mapped(f"upload as {self.user_id}", "matrix_refused"):
            headers = {"Content-Type": mimetype}
            answer = self._client.post("/_matrix/media/v3/upload", content=data, headers=headers).raise_for_status()
        info = {"size": len(data), "mimetype": mimetype}
        return self.send(room_id, name, msgtype=msgtype, url=answer.json()["content_uri"], info=info)

    def download(self, uri: str) -> bytes:
        """The file behind an mxc:// URI, as the homeserver has it."""
        with _mapped(f"download as {self.user_id}", "matrix_refused"):
            path = f"/_matrix/client/v1/media/download/{uri.removeprefix('mxc://')}"
            return self._client.get(path).raise_for_status().content

    def event(self, room_id: str, event_id: str) -> dict[str, Any]:
        """An event as the homeserver gives it now: without its content if it was redacted, with its last edit."""
        return self._call("GET", f"rooms/{quote(room_id)}/event/{quote(event_id)}")

    def relations(self, room_id: str, event_id: str) -> list[dict[str, Any]]:
        """The events that relate to one: reactions, edits, those of its thread; the newest 100, newest first."""
        with _mapped(f"relations as {self.user_id}", "matrix_refused"):
            path = f"/_matrix/client/v1/rooms/{quote(room_id)}/relations/{quote(event_id)}"
            answer = self._client.get(path, params={"limit": 100}).raise_for_status()
            found: list[dict[str, Any]] = answer.json()["chunk"]
        return found

    def wait_for(self, wanted: Callable[[Seen], bool], *, timeout: float = 20.0) -> Seen:
        """The next message of somebody else that is `wanted`, in seconds at most; others before it are passed over.

        Nothing is seen twice. Raises timed_out.
        """
        deadline = time.monotonic() + timeout
        while True:
            while self._waiting:
                seen = self._waiting.pop(0)
                if wanted(seen):
                    return seen
            left = deadline - time.monotonic()
            if left <= 0:
                raise ArmorclawError("timed_out", f"{self.user_id} saw no such message within {timeout:g} s")
            self._waiting += self._sync(min(int(left * 1000) + 1, POLL_MS))

    def seen(self, *, quiet: float = 0.5) -> list[Seen]:
        """All messages of others not seen yet, once nothing more has come for `quiet` seconds."""
        found, self._waiting = self._waiting, []
        until = time.monotonic() + quiet
        while (left := until - time.monotonic()) > 0:  # an answer without messages, such as one's own echo, is quiet
            if more := self._sync(int(left * 1000) + 1):
                found += more
                until = time.monotonic() + quiet
        return found

    def catch_up(self) -> None:
        """Count everything there is up to now as seen."""
        self._sync(0)
        self._waiting.clear()

    def _sync(self, wait_ms: int) -> list[Seen]:
        first = self._since is None
        parameters = {"timeout": "0" if first else str(wait_ms), "filter": _FILTER}
        if self._since is not None:
            parameters["since"] = self._since
        answer = self._call("GET", "sync", parameters=parameters)
        self._since = answer["next_batch"]
        at = time.perf_counter()
        return list(_messages(answer, self.user_id, at))

    def _call(
        self, method: str, path: str, body: Any = None, *, parameters: Mapping[str, str] | None = None
    ) -> dict[str, Any]:
        with _mapped(f"{method} {path.partition('/')[0]} as {self.user_id}", "matrix_refused"):
            answer = self._client.request(method, f"/_matrix/client/v3/{path}", json=body, params=parameters)
            result: dict[str, Any] = answer.raise_for_status().json()
        return result


def _messages(answer: Mapping[str, Any], own: str, at: float) -> Iterator[Seen]:
    for room_id, room in answer.get("rooms", {}).get("join", {}).items():
        for event in room["timeline"]["events"]:
            if event["type"] == "m.room.message" and event["sender"] != own:
                content = event["content"]
                yield Seen(room_id, event["event_id"], event["sender"], content.get("body", ""), content, at)


@contextmanager
def _mapped(what: str, refused: str) -> Iterator[None]:
    try:
        yield
    except httpx.HTTPStatusError as error:
        why = f"{error.response.status_code} {error.response.text[:200]}"
        raise ArmorclawError(refused, what, why=why) from None
    except httpx.TransportError as error:
        raise ArmorclawError("unavailable", what, why=str(error) or type(error).__name__) from error
