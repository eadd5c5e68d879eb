"""A homeserver with a memory, for faults: rooms, people, transaction ids, receipts; no database and no start-up time.

`Town.answer` is the whole of it: over HTTP by `tests.matrix.fake_homeserver`, or called where no socket is wanted. As
a homeserver does, it takes a transaction id once for each device, and tells it to the device that used it.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable
from typing import Any
from urllib.parse import parse_qs, unquote

import attrs
import trio

from armorclaw.clock import Clock
from tests.faults.citizen import Citizen
from tests.faults.keys import Keys
from tests.faults.logins import Logins
from tests.matrix.fake_homeserver import Asked, Raw, Reply, refusal

BOT = "@bot:town"
PERSON = "@person:town"
PASSWORD = "open sesame"
SYNC_LIMIT = 100

Meddle = Callable[[Asked], Awaitable[Reply | Raw | None]]


@attrs.define
class Room:
    """Its timeline, each event with its place in the stream of the town; and its state, by type and key."""

    members: set[str] = attrs.field(factory=set)
    events: list[tuple[int, dict[str, Any]]] = attrs.field(factory=list)
    state: dict[tuple[str, str], dict[str, Any]] = attrs.field(factory=dict)


class Town:
    """`asked` counts requests by their kind; `meddle`, if set, may answer in its place.

    `lose_next` takes a kind, such as "PUT send": the next of those is carried out, and its answer lost.
    """

    def __init__(self, clock: Clock | None = None) -> None:
        self.rooms: dict[str, Room] = {}
        self.asked: Counter[str] = Counter()
        self.asked_at: defaultdict[str, list[float]] = defaultdict(list)
        self.meddle: Meddle | None = None
        self.hold_longest = 30.0
        self._lose: Counter[str] = Counter()
        self._clock = clock or Clock()
        self.logins = Logins(self._clock, {BOT: PASSWORD})
        self._place = 0
        self.keys = Keys(self._step)
        self._citizen: Citizen | None = None
        self._receipts: list[tuple[int, str, str, str]] = []  # place, room, event, reader
        self._taken: dict[tuple[str, str, str, str], str] = {}  # event ids by device, room, type and transaction id
        self._txn_of: dict[str, tuple[str, str]] = {}  # by event id: the device that sent it, and the transaction id
        self._news = trio.Event()
        self.synced = trio.Event()
        """Set by each poll that goes on from an earlier one: what is said from now on is for agents."""

    # -- people

    @property
    def citizen(self) -> Citizen:
        """Who speaks in encrypted rooms for `PERSON`; there is nobody before somebody asks."""
        if self._citizen is None:
            self._citizen = Citizen(PERSON, self.keys, BOT)
        return self._citizen

    def add_room(self, room_id: str, *, encrypted: bool = False) -> str:
        self.rooms[room_id] = Room({BOT, PERSON})
        if encrypted:
            self.change(room_id, "m.room.encryption", "", {"algorithm": "m.megolm.v1.aes-sha2"})
            assert self.citizen.complaints == []
        return room_id

    def say(self, room_id: str, body: str, *, sender: str = PERSON) -> str:
        """A message of somebody's, encrypted where the room is; its event id."""
        type_, content = "m.room.message", {"msgtype": "m.text", "body": body}
        if sender == PERSON and self.is_encrypted(room_id):
            type_, content = "m.room.encrypted", self.citizen.encrypt(room_id, type_, content)
        return self._append(room_id, sender, type_, content)

    def is_encrypted(self, room_id: str) -> bool:
        return ("m.room.encryption", "") in self.rooms[room_id].state

    def change(self, room_id: str, type_: str, state_key: str, content: dict[str, Any]) -> str:
        """Somebody changes a piece of the room's state; the event's id."""
        self.rooms[room_id].state[type_, state_key] = content
        return self._append(room_id, PERSON, type_, content, state_key=state_key)

    def read(self, room_id: str, event_id: str, *, reader: str = PERSON) -> None:
        """Somebody has read up to here."""
        self._receipts.append((self._step(), room_id, event_id, reader))

    def said(self, room_id: str, *, by: str = BOT) -> list[str]:
        """What people in the room see of one of them, in order; what they cannot read is None to them."""
        return [body for event_id, body in self._bodies(room_id, by)]

    def wrongs(self) -> list[str]:
        """What somebody who is careful finds wrong with what was encrypted, or was not."""
        clear = [
            f"{event['event_id']} is in the clear"
            for room_id, room in self.rooms.items()
            if self.is_encrypted(room_id)
            for _, event in room.events
            if event["sender"] == BOT and event["type"] == "m.room.message"
        ]
        twice = [f"{key} was handed out {times} times" for key, times in self.keys.handed_out.items() if times > 1]
        return clear + twice + (self._citizen.complaints if self._citizen is not None else [])

    def receipts(self, *, by: str = BOT) -> list[tuple[str, str]]:
        """What somebody says to have read: rooms and event ids, in order."""
        return [(room, event) for _, room, event, reader in self._receipts if reader == by]

    def event_of(self, room_id: str, body: str) -> str | None:
        return next((event_id for event_id, said in self._bodies(room_id) if said == body), None)

    def _bodies(self, room_id: str, by: str | None = None) -> list[tuple[str, Any]]:
        """Event ids and bodies of messages."""
        found = []
        for _, event in self.rooms[room_id].events:
            if "state_key" in event or (by is not None and event["sender"] != by):
                continue
            inner: dict[str, Any] | None = event
            if event["type"] == "m.room.encrypted" and event["sender"] == BOT:
                inner = self.citizen.read(room_id, event)
            found.append((event["event_id"], None if inner is None else inner["content"].get("body")))
        return found

    async def until(self, true: Callable[[], Any]) -> Any:
        """The first true answer, asked whenever something has happened here."""
        while not (answer := true()):
            await self._news.wait()
        return answer

    def forget_logins(self, *, transactions: bool = False) -> None:
        """Nobody is logged in any more; with `transactions` it has forgotten those too, as after a day."""
        self.logins.clear()
        if transactions:
            self._taken.clear()

    def lose_next(self, kind: str, times: int = 1) -> None:
        self._lose[kind] += times

    # -- the API

    async def answer(self, asked: Asked) -> Reply | Raw:
        kind = self.kind(asked)
        self.asked[kind] += 1
        self.asked_at[kind].append(trio.current_time())
        if self.meddle is not None and (instead := await self.meddle(asked)) is not None:
            return instead
        reply = await self._do(kind, asked)
        if self._lose[kind] > 0:
            self._lose[kind] -= 1
            return Raw(b"")
        return reply

    @staticmethod
    def kind(asked: Asked) -> str:
        """A request's kind: its method and the word that tells what it is about."""
        words = asked.path.strip("/").split("/")[3:] or asked.path.rsplit("/", 1)[1:]
        word = words[2] if words[0] == "rooms" and len(words) > 2 else words[0]
        return f"{asked.method} {word}/{words[1]}" if word == "keys" and len(words) > 1 else f"{asked.method} {word}"

    async def _do(self, kind: str, asked: Asked) -> Reply:
        words = [unquote(word) for word in asked.path.strip("/").split("/")[3:]]
        if asked.path == "/_matrix/client/versions":
            return Reply({"versions": ["v1.11"]})
        if kind == "POST login":
            return self.logins.log_in(asked.json)
        if kind == "POST refresh":
            return self.logins.refresh(asked.json)
        who = self.logins.whose(asked.headers)
        if isinstance(who, Reply):
            return who
        user, device = who
        if (of_keys := self.keys.answer(kind, words, asked, user, device)) is not None:
            return of_keys
        match kind, words:
            case "POST logout", _:
                self.logins.remove(device)
                self.keys.remove(user, device)
                return Reply({})
            case "GET account", _:
                return Reply({"user_id": user, "device_id": device})
            case "GET sync", _:
                return await self._sync(asked, user, device)
            case "PUT send", ["rooms", room_id, _, type_, txn]:
                return Reply({"event_id": self._send(room_id, user, device, type_, txn, asked.json)})
            case "GET messages", ["rooms", room_id, _]:
                return self._messages(room_id, asked, device)
            case "POST receipt", ["rooms", room_id, _, _, event_id]:
                self.read(room_id, event_id, reader=user)
                return Reply({})
            case "POST join", _:
                room_id = words[1]
                if room_id not in self.rooms:
                    return refusal(404, "M_NOT_FOUND")
                self.rooms[room_id].members.add(user)
                return Reply({"room_id": room_id})
            case "GET joined_members", ["rooms", room_id, _]:
                return Reply(
                    {"joined": {member: {"display_name": member[1:]} for member in self.rooms[room_id].members}}
                )
            case "GET members", ["rooms", room_id, _]:
                return Reply({"chunk": [_member(member) for member in sorted(self.rooms[room_id].members)]})
            case "GET state", ["rooms", room_id, _, type_, *rest]:
                content = self.rooms[room_id].state.get((type_, "".join(rest)))
                return refusal(404, "M_NOT_FOUND") if content is None else Reply(content)
            case "GET profile", _:
                return Reply({"displayname": words[1][1:]})
        return refusal(404, "M_NOT_FOUND")

    def _send(self, room_id: str, user: str, device: str, type_: str, txn: str, content: dict[str, Any]) -> str:
        key = (device, room_id, type_, txn)
        if key not in self._taken:
            # known before anybody is told of it: a poll that waits must be able to tell whose it is
            self._taken[key] = event_id = f"$e{self._place + 1}"
            self._txn_of[event_id] = (device, txn)
            assert self._append(room_id, user, type_, content) == event_id
        return self._taken[key]

    async def _sync(self, asked: Asked, user: str, device: str) -> Reply:
        query = parse_qs(asked.target.partition("?")[2])
        timeout = min(int(query.get("timeout", ["0"])[0]) / 1000, self.hold_longest)
        if "since" not in query:
            joined = {
                room_id: _part([], False, self._place, room)
                for room_id, room in self.rooms.items()
                if user in room.members
            }
            return Reply(self._whole(None, user, device, joined))
        since = int(query["since"][0][1:])
        self.synced.set()
        with trio.move_on_after(timeout):
            await self.until(lambda: self._place > since)
        return Reply(self._whole(since, user, device, self._since(since, user, device)))

    def _whole(self, since: int | None, user: str, device: str, joined: dict[str, Any]) -> dict[str, Any]:
        keys = self.keys.in_sync(since, user, device)
        return {"next_batch": f"s{self._place}", "rooms": {"join": joined}, **keys}

    def _since(self, since: int, user: str, device: str) -> dict[str, Any]:
        joined: dict[str, Any] = {}
        for room_id, room in self.rooms.items():
            new = []
            for place, event in reversed(room.events):
                if place <= since:
                    break
                new.append((place, event))
            receipts: dict[str, Any] = {}
            for place, where, event_id, reader in self._receipts:
                if place > since and where == room_id:
                    receipts.setdefault(event_id, {"m.read": {}})["m.read"][reader] = {"ts": self._clock.now_ms()}
            if user in room.members and (new or receipts):
                shown = new[:SYNC_LIMIT][::-1]
                part = _part(
                    [self._shown(e, device) for _, e in shown], len(new) > SYNC_LIMIT, shown[0][0] if shown else 0
                )
                if receipts:
                    part["ephemeral"] = {"events": [{"type": "m.receipt", "content": receipts}]}
                joined[room_id] = part
        return joined

    def _messages(self, room_id: str, asked: Asked, device: str) -> Reply:
        """Backwards only: events before `from` and after `to`, newest first."""
        query = parse_qs(asked.target.partition("?")[2])
        start = int(query["from"][0][1:]) if "from" in query else self._place + 1
        end = int(query["to"][0][1:]) if "to" in query else 0
        limit = int(query.get("limit", ["10"])[0])
        found = [(place, event) for place, event in reversed(self.rooms[room_id].events) if end < place < start]
        chunk = [self._shown(event, device) for _, event in found[:limit]]
        more = {"end": f"s{found[limit - 1][0]}"} if len(found) > limit else {}
        return Reply({"start": f"s{start}", "chunk": chunk, **more})

    def _shown(self, event: dict[str, Any], device: str) -> dict[str, Any]:
        sent_by, txn = self._txn_of.get(event["event_id"], ("", ""))
        return {**event, "unsigned": {"transaction_id": txn}} if sent_by == device else event

    def _append(self, room_id: str, sender: str, type_: str, content: dict[str, Any], **more: Any) -> str:
        place = self._step()
        event = {
            "type": type_,
            "sender": sender,
            "event_id": f"$e{place}",
            "origin_server_ts": self._clock.now_ms(),
            "content": content,
            **more,
        }
        self.rooms[room_id].events.append((place, event))
        return str(event["event_id"])

    def _step(self) -> int:
        self._place += 1
        self._news.set()
        self._news = trio.Event()
        return self._place


def _part(events: list[dict[str, Any]], limited: bool, first: int, room: Room | None = None) -> dict[str, Any]:
    """Of a room, with its whole state if that is given."""
    state = [] if room is None else [_state(*piece, content) for piece, content in room.state.items()]
    return {"timeline": {"events": events, "limited": limited, "prev_batch": f"s{first}"}, "state": {"events": state}}


def _state(type_: str, state_key: str, content: dict[str, Any]) -> dict[str, Any]:
    known = {"type": type_, "state_key": state_key, "content": content, "sender": PERSON}
    return {**known, "event_id": f"$state-{type_}-{state_key}", "origin_server_ts": 0}


def _member(user: str) -> dict[str, Any]:
    return {**_state("m.room.member", user, {"membership": "join"}), "sender": user}


def limited(retry_after_ms: int | None, *, header: str | None = None) -> Reply:
    """That one asks too often; with the time to wait in the body, in a header, or untold."""
    body: dict[str, Any] = {"errcode": "M_LIMIT_EXCEEDED", "error": "too fast"}
    if retry_after_ms is not None:
        body["retry_after_ms"] = retry_after_ms
    headers = {} if header is None else {"retry-after": header}
    return Reply(json.dumps(body).encode(), status=429, headers=headers)
