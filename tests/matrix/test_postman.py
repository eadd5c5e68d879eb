"""What leaves: encrypted where the room is, and nothing at all wherever that is in doubt."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from typing import Any

import pytest
import trio
from mautrix.errors import MatrixConnectionError, MatrixError, make_request_error

from armorclaw.clock import Clock
from armorclaw.delivery.transport import Delayed, Refused
from armorclaw.errors import ArmorclawError
from armorclaw.matrix.postman import Postman
from armorclaw.matrix.rooms import Rooms, RoomState

from .fake_encryption import FakeEncryption, sealed

BOT = "@bot:x"
ROOM = "!room:x"
TEXT = b'{"body": "canary", "msgtype": "m.text"}'
MESSAGE = "m.room.message"
ENCRYPTION = {"algorithm": "m.megolm.v1.aes-sha2"}
NOW = 1_000_000
FORBIDDEN = make_request_error(403, "", "M_FORBIDDEN", "you are not in there")
AWAY = make_request_error(502, "", None, "HTTP 502")


class Client:
    """A homeserver where the room's state is `states`, one after the other; `sent` is what it was given."""

    mxid = BOT
    device_id = "DEVICE"

    def __init__(self, *states: dict[str, Any] | MatrixError | None) -> None:
        self.states = list(states)
        self.sent: list[tuple[Any, ...]] = []
        self.timeline: list[dict[str, Any]] = []
        self.asking: Callable[[], object] = lambda: None
        self.filters: list[str] = []

    async def state(self, room_id: str, type_: str, state_key: str) -> dict[str, Any] | None:
        assert (room_id, type_, state_key) == (ROOM, "m.room.encryption", "")
        await trio.lowlevel.checkpoint()
        self.asking()
        found = self.states.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    async def put_event(self, room_id: str, type_: str, txn_id: str, content: bytes) -> str:
        await trio.lowlevel.checkpoint()
        self.sent.append((type_, txn_id, json.loads(content)))
        return "$sent"

    async def redact_event(self, room_id: str, event_id: str, txn_id: str, reason: str | None = None) -> str:
        await trio.lowlevel.checkpoint()
        self.sent.append(("redaction", event_id, txn_id, reason))
        return "$redaction"

    async def latest(self, room_id: str, limit: int, *, start: str | None, filter: str) -> Any:  # noqa: A002
        await trio.lowlevel.checkpoint()
        self.filters.append(filter)
        return self.timeline, None


def postman(
    client: Client,
    *,
    known: RoomState | None = None,
    current: bool = True,
    encryption: FakeEncryption | None = None,
) -> Postman:
    rooms = Rooms("main")
    rooms.replace({} if known is None else {ROOM: known})
    rooms.current_at = Clock().boottime() if current else None
    return Postman(client, rooms, encryption)  # type: ignore[arg-type]


# --- where it is known ---


async def test_in_the_clear_where_the_room_is() -> None:
    client, encryption = Client(), FakeEncryption()
    sender = postman(client, known=RoomState("join"), encryption=encryption)
    assert await sender.put(ROOM, MESSAGE, "t1", TEXT) == "$sent"
    assert client.sent == [(MESSAGE, "t1", json.loads(TEXT))]
    assert encryption.log == []
    assert sender.device_id == "DEVICE"


async def test_encrypted_where_the_room_is() -> None:
    client, encryption = Client(), FakeEncryption()
    sender = postman(client, known=RoomState("join", True), encryption=encryption)
    assert await sender.put(ROOM, MESSAGE, "t1", TEXT) == "$sent"
    assert client.sent == [("m.room.encrypted", "t1", sealed(MESSAGE, json.loads(TEXT)))]


async def test_no_key_before_it_is_known_who_has_left() -> None:
    client, encryption = Client(), FakeEncryption()
    encryption.current = False
    sender = postman(client, known=RoomState("join", True), encryption=encryption)
    with pytest.raises(Delayed, match="who came and went") as raised:
        await sender.put(ROOM, MESSAGE, "t1", TEXT)
    assert raised.value.sure
    assert not raised.value.whole
    assert client.sent == []
    encryption.current = True
    assert await sender.put(ROOM, MESSAGE, "t1", TEXT) == "$sent"


@pytest.mark.parametrize("membership", ["join", "invite", "leave"])
async def test_once_encrypted_it_is_never_in_the_clear(membership: str) -> None:
    client = Client()
    sender = postman(client, known=RoomState(membership, True), current=False, encryption=FakeEncryption())
    await sender.put(ROOM, MESSAGE, "t1", TEXT)
    assert client.sent[0][0] == "m.room.encrypted"


# --- where it is not ---


@pytest.mark.parametrize("known", [None, RoomState("join"), RoomState("invite"), RoomState("leave")], ids=repr)
@pytest.mark.parametrize("encrypted", [True, False])
async def test_what_is_not_known_for_certain_is_asked(known: RoomState | None, encrypted: bool) -> None:
    client, encryption = Client(ENCRYPTION if encrypted else None), FakeEncryption()
    sender = postman(client, known=known, current=False, encryption=encryption)
    await sender.put(ROOM, MESSAGE, "t1", TEXT)
    assert client.sent[0][0] == ("m.room.encrypted" if encrypted else MESSAGE)
    assert client.states == []
    told = ("state", ROOM, "m.room.encryption", "")
    assert (told in encryption.log) is encrypted  # it must know how, as well


async def test_a_yes_is_remembered_and_a_no_is_not() -> None:
    client = Client(None, None, ENCRYPTION)
    sender = postman(client, known=RoomState("join"), current=False, encryption=FakeEncryption())
    for number in range(5):
        await sender.put(ROOM, MESSAGE, f"t{number}", TEXT)
    assert [type_ for type_, *_ in client.sent] == [MESSAGE] * 2 + ["m.room.encrypted"] * 3


async def test_a_no_that_a_sync_has_overtaken_does_not_count() -> None:
    client = Client(None)
    rooms = Rooms("main")
    sender = Postman(client, rooms, FakeEncryption())  # type: ignore[arg-type]
    client.asking = lambda: rooms.turned_encrypted(ROOM)
    await sender.put(ROOM, MESSAGE, "t1", TEXT)
    assert client.sent[0][0] == "m.room.encrypted"


@pytest.mark.parametrize("current", [True, False])
@pytest.mark.parametrize("known", [None, RoomState("join"), RoomState("leave")], ids=repr)
async def test_a_yes_outlasts_the_life_that_heard_it(known: RoomState | None, current: bool) -> None:
    """The keys remember what the table does not have yet, and a homeserver that says no now is not asked."""
    encryption, client = FakeEncryption(), Client(ENCRYPTION)
    await postman(client, known=known, current=False, encryption=encryption).put(ROOM, MESSAGE, "t1", TEXT)
    client = Client(None)
    await postman(client, known=known, current=current, encryption=encryption).put(ROOM, MESSAGE, "t2", TEXT)
    assert [what for what, *_ in client.sent] == ["m.room.encrypted"]
    assert client.states == [None]


# --- nothing is sent ---


async def test_with_encryption_switched_off_nothing_goes_into_an_encrypted_room() -> None:
    client = Client()
    with pytest.raises(Refused, match="room_encrypted") as caught:
        await postman(client, known=RoomState("join", True)).put(ROOM, MESSAGE, "t1", TEXT)
    assert not caught.value.sure  # an earlier attempt may have been made when the room was not encrypted
    assert client.sent == []


@pytest.mark.parametrize(
    "trouble, again, whole",
    [(FORBIDDEN, False, False), (AWAY, True, True), (MatrixConnectionError("lost"), True, True)],
    ids=repr,
)
@pytest.mark.parametrize("at", ["state", "share"])
async def test_trouble_before_anything_is_sent(trouble: Exception, again: bool, whole: bool, at: str) -> None:
    """Neither the state that is not told, nor the key that cannot be shared, lets anything out."""
    client, encryption = Client(), FakeEncryption()
    known = None
    if at == "state":
        client.states = [trouble]  # type: ignore[list-item]
    else:
        known, encryption.fail = RoomState("join", True), trouble
    with pytest.raises(Delayed if again else Refused) as caught:
        await postman(client, known=known, encryption=encryption).put(ROOM, MESSAGE, "t1", TEXT)
    assert client.sent == []
    assert isinstance(caught.value, Delayed | Refused)
    assert caught.value.sure is again  # a delay surely sent nothing; of earlier attempts a refusal knows nothing
    if isinstance(caught.value, Delayed):
        assert caught.value.whole is whole


async def test_without_its_keys_an_account_keeps_what_is_for_encrypted_rooms() -> None:
    client = Client()
    rooms = Rooms("main")
    rooms.replace({ROOM: RoomState("join", True), "!plain:x": RoomState("join")})
    rooms.current_at = Clock().boottime()
    sender = Postman(client, rooms, None, lost=True)  # type: ignore[arg-type]
    with pytest.raises(Delayed, match="lost its keys") as caught:
        await sender.put(ROOM, MESSAGE, "t1", TEXT)
    assert caught.value.sure
    assert client.sent == []
    await sender.put("!plain:x", MESSAGE, "t2", TEXT)
    assert len(client.sent) == 1


async def test_a_disk_that_is_full_is_waited_for() -> None:
    encryption = FakeEncryption()
    encryption.fail = ArmorclawError("storage_full", "no space left")
    client = Client()
    with pytest.raises(Delayed, match="no space left") as caught:
        await postman(client, known=RoomState("join", True), encryption=encryption).put(ROOM, MESSAGE, "t1", TEXT)
    assert caught.value.sure
    assert client.sent == []


async def test_what_the_encryption_says_itself_is_passed_on() -> None:
    encryption = FakeEncryption()
    sender = postman(Client(), known=RoomState("join", True), encryption=encryption)
    encryption.fail = Delayed(7.0, "device keys are not published yet")
    with pytest.raises(Delayed, match="published") as delayed:
        await sender.put(ROOM, MESSAGE, "t1", TEXT)
    assert (delayed.value.seconds, delayed.value.sure) == (7.0, True)
    encryption.fail = Refused("nobody there may read it")
    with pytest.raises(Refused, match="nobody") as refused:
        await sender.put(ROOM, MESSAGE, "t1", TEXT)
    assert not refused.value.sure


async def test_on_no_path_is_a_word_of_it_in_the_clear() -> None:
    """Every knowledge of an encrypted room, with every way the rest can go: what is sent does not hold the body."""
    states: list[Any] = [ENCRYPTION, FORBIDDEN, AWAY]
    knowledge = [None, RoomState("join"), RoomState("join", True), RoomState("leave"), RoomState("invite", True)]
    failures: list[Any] = [None, AWAY, FORBIDDEN, Delayed(None, "later"), Refused("never")]
    sent = 0
    for known, state, fail, has in itertools.product(knowledge, states, failures, [True, False]):
        for type_ in (MESSAGE, "m.sticker", "org.example.any"):
            client, encryption = Client(state), FakeEncryption()
            encryption.fail = fail
            sender = postman(client, known=known, current=False, encryption=encryption if has else None)
            try:
                await sender.put(ROOM, type_, "t1", TEXT)
                sent += 1
            except (Delayed, Refused):
                pass
            assert all(what == "m.room.encrypted" for what, *_ in client.sent)
    assert sent == 3 * (2 * 3 + 3)  # known to be encrypted, whatever the state says, or told so


# --- what is never encrypted ---


@pytest.mark.parametrize("encrypted", [True, False])
async def test_reactions_are_for_the_homeserver_to_count(encrypted: bool) -> None:
    client = Client()
    relation = {"m.relates_to": {"rel_type": "m.annotation", "event_id": "$1", "key": "👍"}}
    sender = postman(client, known=RoomState("join", encrypted), encryption=FakeEncryption())
    await sender.put(ROOM, "m.reaction", "t1", json.dumps(relation).encode())
    assert client.sent == [("m.reaction", "t1", relation)]


@pytest.mark.parametrize("encrypted, reason", [(True, None), (False, "canary")])
async def test_a_redaction_has_its_own_request_and_gives_no_reason_away(encrypted: bool, reason: str | None) -> None:
    client = Client()
    sender = postman(client, known=RoomState("join", encrypted), encryption=FakeEncryption())
    content = b'{"redacts": "$1", "reason": "canary"}'
    assert await sender.put(ROOM, "m.room.redaction", "t1", content) == "$redaction"
    assert client.sent == [("redaction", "$1", "t1", reason)]


async def test_a_redaction_of_nothing_is_refused() -> None:
    client = Client()
    with pytest.raises(Refused, match="redacts"):
        await postman(client, known=RoomState("join")).put(ROOM, "m.room.redaction", "t1", b'{"reason": "x"}')
    assert client.sent == []


# --- looking for what may have been sent ---


def in_room(event_id: str, type_: str, content: Any, **more: Any) -> dict[str, Any]:
    return {
        "type": type_,
        "content": content,
        "sender": BOT,
        "event_id": event_id,
        "origin_server_ts": NOW,
        **more,
    }


async def look(client: Client, encryption: FakeEncryption | None, *claimed: str, type_: str = MESSAGE) -> str | None:
    async def is_claimed(event_id: str) -> bool:
        return event_id in claimed

    sender = postman(client, encryption=encryption)
    content = TEXT if type_ == MESSAGE else b'{"redacts": "$1", "reason": "why"}'
    return await sender.find_echo(ROOM, type_, content, NOW, is_claimed)


async def test_found_though_it_is_encrypted() -> None:
    client = Client()
    mine = sealed(MESSAGE, json.loads(TEXT))
    client.timeline = [
        in_room("$5", "m.room.encrypted", mine),
        in_room("$4", "m.room.encrypted", sealed(MESSAGE, {"body": "another"})),
        in_room("$3", "m.room.encrypted", sealed("m.sticker", json.loads(TEXT))),
        in_room("$2", "m.room.encrypted", mine, sender="@else:x"),
        in_room("$1", MESSAGE, json.loads(TEXT)),  # from before the room was encrypted
    ]
    encryption = FakeEncryption((ROOM, "s"))
    assert await look(client, encryption) == "$1"
    assert await look(client, encryption, "$1") == "$5"
    assert await look(client, encryption, "$1", "$5") is None
    assert json.loads(client.filters[0])["types"] == [MESSAGE, "m.room.encrypted"]


async def test_one_that_cannot_be_read_may_be_it_unless_it_is_known() -> None:
    client = Client()
    client.timeline = [in_room("$1", "m.room.encrypted", sealed(MESSAGE, {}, "other") | {"sender_key": "own"})]
    with pytest.raises(Refused, match="cannot be read: no_key"):
        await look(client, FakeEncryption())
    assert await look(client, FakeEncryption(), "$1") is None


@pytest.mark.parametrize("said", [{"sender_key": "another"}, {}], ids=["another", "none"])
async def test_one_of_another_client_of_ours_is_not_it(said: dict[str, str]) -> None:
    """We always say which device it was."""
    client = Client()
    client.timeline = [
        in_room("$2", "m.room.encrypted", sealed(MESSAGE, {}, "other") | said),
        in_room("$1", "m.room.encrypted", sealed(MESSAGE, json.loads(TEXT))),
    ]
    encryption = FakeEncryption((ROOM, "s"))
    encryption.device_made_ms = NOW
    assert await look(client, encryption) == "$1"
    assert await look(client, encryption, "$1") is None


async def test_one_of_another_device_may_be_of_the_one_we_were() -> None:
    client = Client()
    client.timeline = [in_room("$1", "m.room.encrypted", sealed(MESSAGE, {}, "other") | {"sender_key": "before"})]
    encryption = FakeEncryption()
    encryption.device_made_ms = NOW + 1
    with pytest.raises(Refused, match="cannot be read"):
        await look(client, encryption)


async def test_without_encryption_only_what_is_in_the_clear_is_looked_at() -> None:
    client = Client()
    client.timeline = [in_room("$1", MESSAGE, json.loads(TEXT))]
    assert await look(client, None) == "$1"
    assert json.loads(client.filters[0])["types"] == [MESSAGE]


@pytest.mark.parametrize(
    "content, more",
    [({"redacts": "$1"}, {}), ({}, {"redacts": "$1"}), ({"redacts": "$1", "reason": "why"}, {})],
    ids=["content", "beside it", "reason"],
)
async def test_a_redaction_is_known_by_what_it_is_about(content: dict[str, Any], more: dict[str, Any]) -> None:
    client = Client()
    client.timeline = [
        in_room("$9", "m.room.redaction", {"redacts": "$2"}),
        in_room("$8", "m.room.redaction", content, **more),
    ]
    assert await look(client, FakeEncryption(), type_="m.room.redaction") == "$8"
    assert await look(client, FakeEncryption(), "$8", type_="m.room.redaction") is None
