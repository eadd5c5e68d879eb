"""What an account can tell beside what is looked up: whether a room is encrypted, and what an old event says."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import trio
from mautrix.errors import MatrixConnectionError, make_request_error
from trio.testing import MockClock

from armorclaw.clock import Clock
from armorclaw.errors import ArmorclawError
from armorclaw.matrix.crypto.failures import Undecryptable
from armorclaw.matrix.facts import Facts
from armorclaw.matrix.rooms import Rooms, RoomState

ROOM = "!r:x"
ENCRYPTED = {"type": "m.room.encrypted", "content": {"ciphertext": "…"}}


class Client:
    """The homeserver's answers."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.asked = 0

    async def state(self, room_id: str, type_: str, state_key: str) -> Any:
        assert (room_id, type_, state_key) == (ROOM, "m.room.encryption", "")
        return await self._answer()

    async def event(self, room_id: str, event_id: str) -> Any:
        assert (room_id, event_id) == (ROOM, "$e")
        return await self._answer()

    async def _answer(self) -> Any:
        self.asked += 1
        await trio.lowlevel.checkpoint()
        if isinstance(self.answer, Exception):
            raise self.answer
        if self.answer == "hang":
            await trio.sleep_forever()
        return self.answer


class Encryption:
    """Reads with `outcome`; `told` is what it was told of rooms' states."""

    def __init__(self, outcome: Any = None, *, knows: bool = False) -> None:
        self.outcome = outcome
        self.told: list[Any] = []
        self._knows = knows

    def knows(self, room_id: str) -> bool:
        return self._knows

    async def room_state(self, room_id: str, raw: Any) -> None:
        await trio.lowlevel.checkpoint()
        self.told.append((room_id, raw))

    async def decrypt(self, room_id: str, raw: Any) -> Any:
        await trio.lowlevel.checkpoint()
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return SimpleNamespace(content=self.outcome)


def rooms_of(state: RoomState | None, *, current: bool = True) -> Rooms:
    rooms = Rooms("main")
    if state is not None:
        rooms.apply({ROOM: state})
    rooms.current_at = Clock().boottime() if current else None
    return rooms


async def told(rooms: Rooms, client: Any, encryption: Any = None) -> bool:
    facts = Facts("main", rooms)
    with facts.answered_by(client, encryption):
        return await facts.must_encrypt(ROOM)


@pytest.mark.parametrize("encrypted", [True, False])
async def test_what_the_sync_has_told_is_not_asked(encrypted: bool) -> None:
    client = Client({})
    assert await told(rooms_of(RoomState("join", encrypted)), client) is encrypted
    assert client.asked == 0


@pytest.mark.parametrize(
    "rooms", [rooms_of(None), rooms_of(RoomState("leave")), rooms_of(RoomState("join"), current=False)]
)
@pytest.mark.parametrize("answer", [{"algorithm": "m.megolm.v1.aes-sha2"}, {}, None])
async def test_what_is_not_certain_is_asked(rooms: Rooms, answer: Any) -> None:
    client = Client(answer)
    room = rooms.get(ROOM)
    fresh = rooms_of(room, current=rooms.current_at is not None)
    assert await told(fresh, client) is (answer is not None)
    assert client.asked == 1
    if answer is not None:
        assert await told(fresh, client), "an encrypted room stays so"
        assert client.asked == 1


@pytest.mark.parametrize("current", [True, False])
async def test_what_the_keys_know_to_be_encrypted_stays_so(current: bool) -> None:
    """Whatever is in the table, and whatever the homeserver says by now."""
    client = Client(None)
    assert await told(rooms_of(RoomState("join"), current=current), client, Encryption(knows=True))
    assert client.asked == 0


async def test_what_it_was_told_the_keys_are_told_too() -> None:
    """They remember it, whatever becomes of this life."""
    answer, encryption = {"algorithm": "m.megolm.v1.aes-sha2", "rotation_period_msgs": 5}, Encryption()
    assert await told(rooms_of(None), Client(answer), encryption)
    assert encryption.told == [(ROOM, {"type": "m.room.encryption", "state_key": "", "content": answer})]


@pytest.mark.parametrize(
    ("answer", "name"),
    [
        (MatrixConnectionError("away"), "unavailable"),
        (make_request_error(403, "no", "M_FORBIDDEN", "no"), "matrix_refused"),
        ("hang", "timed_out"),
    ],
)
async def test_without_an_answer_nothing_is_taken_for_granted(
    autojump_clock: MockClock, answer: Any, name: str
) -> None:
    with pytest.raises(ArmorclawError) as caught:
        await told(rooms_of(None), Client(answer))
    assert caught.value.name == name
    assert ("power level" in caught.value.hint) is (name == "matrix_refused")
    assert caught.value.hint


async def said(client: Client, encryption: Encryption | None = None) -> Any:
    facts: Any = Facts("main", rooms_of(None))
    with facts.answered_by(client, encryption):
        return await facts.content(ROOM, "$e")


async def test_what_an_event_says() -> None:
    assert await said(Client({"type": "m.room.message", "content": {"body": "hi"}})) == {"body": "hi"}
    assert await said(Client(ENCRYPTED), Encryption({"body": "secret"})) == {"body": "secret"}
    assert await said(Client(ENCRYPTED)) == ENCRYPTED["content"]  # encryption is switched off
    assert await said(Client({"type": "m.room.message", "content": []})) == {}


@pytest.mark.parametrize(
    ("client", "encryption"), [(Client(None), None), (Client(ENCRYPTED), Encryption(Undecryptable("no_key")))]
)
async def test_an_event_that_cannot_be_had(client: Client, encryption: Encryption | None) -> None:
    with pytest.raises(ArmorclawError) as caught:
        await said(client, encryption)
    assert caught.value.name == "not_found"


async def test_nobody_can_ask_before_the_login() -> None:
    facts = Facts("main", rooms_of(None))
    for ask in (facts.must_encrypt(ROOM), facts.content(ROOM, "$e")):
        with pytest.raises(ArmorclawError) as caught:
            await ask
        assert caught.value.name == "unavailable"
    with pytest.raises(ArmorclawError):
        _ = facts.client
