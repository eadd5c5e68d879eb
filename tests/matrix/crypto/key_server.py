"""A homeserver's part in encryption, in memory: keys, to-device messages, members. For tests with a mock clock."""

from __future__ import annotations

import copy
import json
from collections import defaultdict
from collections.abc import Callable
from typing import Any
from urllib.parse import unquote

import attrs
import trio
from mautrix.api import Method
from mautrix.errors import MNotFound

from armorclaw.matrix.answer import Answer, DeviceLists
from armorclaw.matrix.client import MatrixClient

ROOM = "!room:hs.test"

_STATE = (
    "device_keys",
    "one_time_keys",
    "fallback_keys",
    "fallback_used",
    "identities",
    "inbox",
    "members",
    "state",
    "changed",
)

Place = tuple[str, str]
"""User and device."""


@attrs.define
class KeyServer:
    """What all clients share. `calls` names every request; `fault` may raise, or wait, before one is served, and
    `lost` after it was."""

    device_keys: dict[Place, dict[str, Any]] = attrs.field(factory=dict)
    one_time_keys: dict[Place, dict[str, Any]] = attrs.field(factory=lambda: defaultdict(dict))
    fallback_keys: dict[Place, dict[str, Any]] = attrs.field(factory=dict)
    fallback_used: set[Place] = attrs.field(factory=set)
    identities: dict[str, dict[str, Any]] = attrs.field(factory=dict)
    """By section of the answer, then by user."""
    inbox: dict[Place, list[dict[str, Any]]] = attrs.field(factory=lambda: defaultdict(list))
    members: dict[str, dict[str, str]] = attrs.field(factory=lambda: defaultdict(dict))
    state: dict[tuple[str, str], dict[str, Any]] = attrs.field(factory=dict)
    away: set[str] = attrs.field(factory=set)
    """Servers that do not answer."""
    calls: list[str] = attrs.field(factory=list)
    fault: Callable[[str], Any] = lambda name: None
    lost: Callable[[str], Any] = lambda name: None
    instead: dict[str, Callable[[Any], Any]] = attrs.field(factory=dict)
    """What a request is answered with, if not by what is here."""
    changed: dict[Place, set[str]] = attrs.field(factory=lambda: defaultdict(set))
    _txns: set[str] = attrs.field(factory=set)
    _count: int = 0

    def client(self, user: str, device: str) -> MatrixClient:
        client = MatrixClient(_Api(self, (user, device)))  # type: ignore[arg-type]
        client.use(user, device, "token")
        return client

    def twin(self) -> KeyServer:
        """Another one that stands where this one does."""
        state = {name: copy.deepcopy(getattr(self, name)) for name in _STATE}
        return attrs.evolve(self, **state, fault=lambda name: None, lost=lambda name: None, calls=[])

    def encrypt_room(self, *users: str, room_id: str = ROOM, **content: Any) -> None:
        self.state[room_id, "m.room.encryption"] = {"algorithm": "m.megolm.v1.aes-sha2", **content}
        for user in users:
            self.members[room_id][user] = "join"

    def answer(self, user: str, device: str) -> Answer:
        """What a sync brings now; to-device messages are gone then, device lists too."""
        place = (user, device)
        messages, self.inbox[place] = self.inbox[place], []
        changed, self.changed[place] = self.changed[place], set()
        self._count += 1
        return Answer(
            f"s{self._count}",
            to_device=messages,
            device_lists=DeviceLists(sorted(changed)),
            one_time_keys={"signed_curve25519": len(self.one_time_keys[place])},
            fallback_keys=["signed_curve25519"] if place in self.fallback_keys.keys() - self.fallback_used else [],
        )

    def tell(self, user: str, device: str, type_: str, sender: str, content: dict[str, Any]) -> None:
        self.inbox[user, device].append({"type": type_, "sender": sender, "content": content})

    def remove_device(self, user: str, device: str) -> None:
        del self.device_keys[user, device]
        self.touch(user)

    def touch(self, user: str) -> None:
        """Tell everybody that the user's keys are others now."""
        for place in self.device_keys:
            self.changed[place].add(user)

    async def serve(self, place: Place, method: str, path: str, body: Any, query: Any) -> Any:
        parts = [unquote(part) for part in path.split("/")[3:]]  # after _matrix/client/v3
        name = "/".join(parts[:2]) if parts[0] == "keys" else parts[0] if parts[0] != "rooms" else parts[2]
        self.calls.append(name)
        await trio.lowlevel.checkpoint()
        if (waiting := self.fault(name)) is not None:
            await waiting
        body = json.loads(json.dumps(body))
        if name in self.instead:
            result = self.instead[name](body)
        else:
            result = getattr(self, "_" + name.replace("/", "_"))(place, parts, body)
        await trio.lowlevel.checkpoint()
        if (waiting := self.lost(name)) is not None:
            await waiting
        return json.loads(json.dumps(result))

    def _keys_upload(self, place: Place, parts: list[str], body: dict[str, Any]) -> Any:
        if "device_keys" in body:
            self.device_keys[place] = body["device_keys"]
            self.touch(place[0])
        for name, key in body.get("one_time_keys", {}).items():
            assert self.one_time_keys[place].get(name, key)["key"] == key["key"], "a one-time key came twice"
            self.one_time_keys[place][name] = key
        if body.get("fallback_keys"):
            self.fallback_keys[place] = body["fallback_keys"]
            self.fallback_used.discard(place)
        return {"one_time_key_counts": {"signed_curve25519": len(self.one_time_keys[place])}}

    def _keys_query(self, place: Place, parts: list[str], body: dict[str, Any]) -> Any:
        answer: dict[str, Any] = {"device_keys": {}, "failures": {}}
        for user in body["device_keys"]:
            server = user.partition(":")[2]
            if server in self.away:
                answer["failures"][server] = {}
                continue
            devices = {device: keys for (who, device), keys in self.device_keys.items() if who == user}
            answer["device_keys"][user] = devices
            for section, keys in self.identities.items():
                if user in keys:
                    answer.setdefault(section, {})[user] = keys[user]
        return answer

    def _keys_claim(self, place: Place, parts: list[str], body: dict[str, Any]) -> Any:
        given: dict[str, Any] = {}
        asked = {user.partition(":")[2] for user in body["one_time_keys"]}
        for user, devices in body["one_time_keys"].items():
            if user.partition(":")[2] in self.away:
                continue
            for device in devices:
                stock = self.one_time_keys[user, device]
                if stock:
                    name = next(iter(stock))
                    given.setdefault(user, {})[device] = {name: stock.pop(name)}
                elif (user, device) in self.fallback_keys:
                    self.fallback_used.add((user, device))
                    given.setdefault(user, {})[device] = self.fallback_keys[user, device]
        return {"one_time_keys": given, "failures": {server: {} for server in self.away & asked}}

    def _sendToDevice(self, place: Place, parts: list[str], body: dict[str, Any]) -> Any:
        if parts[2] not in self._txns:
            self._txns.add(parts[2])
            for user, devices in body["messages"].items():
                for device, content in devices.items():
                    names = [name for who, name in self.device_keys if who == user] if device == "*" else [device]
                    for each in names:
                        if (user, each) != place:
                            self.tell(user, each, parts[1], place[0], content)
        return {}

    def _state(self, place: Place, parts: list[str], body: Any) -> Any:
        content = self.state.get((parts[1], parts[3]))
        if content is None:
            raise MNotFound(404, "there is none")
        return content

    def _members(self, place: Place, parts: list[str], body: Any) -> Any:
        return {
            "chunk": [
                {"type": "m.room.member", "state_key": user, "content": {"membership": membership}}
                for user, membership in self.members[parts[1]].items()
            ]
        }


class _Api:
    def __init__(self, server: KeyServer, place: Place) -> None:
        self._server = server
        self._place = place
        self._count = 0
        self.token = ""
        self.log: Any = None

    def get_txn_id(self) -> str:
        self._count += 1
        return f"{self._place[0]}-{self._place[1]}-{id(self)}-{self._count}"

    async def request(
        self, method: Method, path: Any, content: Any = None, query_params: Any = None, **more: Any
    ) -> Any:
        return await self._server.serve(self._place, str(method), str(path), content, query_params)


def member(user: str, membership: str) -> dict[str, Any]:
    return {"type": "m.room.member", "state_key": user, "content": {"membership": membership}}
