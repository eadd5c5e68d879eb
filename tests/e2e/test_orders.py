"""Orders from a chat to the daemon, with agents that really run: what people see, and what becomes of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from armorclaw.testing.handles import BridgeProcess, wait_until
from armorclaw.testing.homeserver import Homeserver
from armorclaw.testing.person import Person, Seen

SECRET = "sk-canary-5d2e9b71"
PRINTING = f"import time; print('hello from /opt/agents/main.py with {SECRET}', flush=True); time.sleep(3600)"


class Room:
    """Where orders are given."""

    def __init__(self, bridge: BridgeProcess, person: Person, room_id: str) -> None:
        self.bridge = bridge
        self.person = person
        self.room_id = room_id

    def order(self, text: str) -> Seen:
        """Give one; the answer to it."""
        asked = self.person.send(self.room_id, text)
        return self.person.wait_for(lambda seen: _answers(seen, asked), timeout=30)

    def state(self, agent: str) -> str:
        (standing,) = [each for each in self.bridge.call("containers.list") if each["name"] == agent]
        return str(standing["state"])


def _answers(seen: Seen, asked: str) -> bool:
    relation = seen.content.get("m.relates_to", {})
    return bool(relation.get("m.in_reply_to", {}).get("event_id") == asked)


@pytest.fixture
def room(homeserver: Homeserver, armorclaw_folder: Path, matrix_user: Callable[[str], Person]) -> Iterator[Room]:
    person = matrix_user("admin")
    agents = {
        "talker": {"runtime": "process", "command": ["python3", "-c", PRINTING], "ready_timeout": 0},
        "other": {"runtime": "process", "command": ["sleep", "3600"], "ready_timeout": 0},
    }
    bridge = BridgeProcess.for_homeserver(homeserver, armorclaw_folder, agents=agents)
    room_id = person.create_room("ops", invite=[bridge.user_id])
    bridge.config["alerts"] = {"room": room_id}
    bridge.config["access"] = {"commands": [person.user_id]}
    with bridge:
        wait_until(lambda: bridge.user_id in person.members(room_id), 30, "the bridge is in the room")
        yield Room(bridge, person, room_id)


def test_agents_are_looked_at_stopped_and_started(room: Room) -> None:
    status = room.order("!claw status").body
    assert "The bridge is " in status
    assert "• talker: " in status
    assert room.order("!claw agents").content["msgtype"] == "m.notice"
    assert room.order("!claw use other mention").body == "other answers here from now on, to: mention."
    who = room.order("!claw who").body.splitlines()[-1]
    assert who == f"• other, to: mention (!claw use, by {room.person.user_id})"

    question = room.order("!claw stop talker")
    assert question.body.startswith("Stop agent talker?")
    assert room.state("talker") != "stopped"
    room.person.react(room.room_id, question.event_id, "✅")
    room.person.wait_for(lambda seen: seen.body in ("talker: stopped", "talker: stopping"), timeout=30)
    wait_until(lambda: room.state("talker") == "stopped", 30, "it is stopped")
    assert room.order("!claw start talker").body in ("talker: running", "talker: starting", "talker: ready")
    wait_until(lambda: room.state("talker") in ("running", "ready"), 30, "it runs again")

    question = room.order("!claw restart talker")
    room.person.react(room.room_id, question.event_id, "❌")
    room.person.wait_for(lambda seen: seen.body == "!claw restart talker is off.", timeout=30)


def test_what_an_agent_printed_has_no_secret_and_no_folder(room: Room) -> None:
    room.bridge.call("store_key", provider="test", token=SECRET, id="test-key")
    room.bridge.call("stop", name="talker")
    room.bridge.call("start", name="talker", key_id="test-key")

    def printed() -> str | None:
        body = room.order("!claw logs talker 5").body
        return body if "hello" in body else None

    text = wait_until(printed, 30, "it has printed")
    assert "hello from …/main.py with [secret]" in text
    assert SECRET not in text


def test_orders_of_others_are_none(room: Room, matrix_user: Callable[[str], Person]) -> None:
    other = matrix_user("mallory")
    room.person.invite(room.room_id, other.user_id)
    other.join(room.room_id)
    other.send(room.room_id, "!claw status")
    question = room.order("!claw stop talker")
    other.react(room.room_id, question.event_id, "✅")
    assert [seen for seen in room.person.seen(quiet=1.5) if seen.sender == room.bridge.user_id] == []
    assert room.state("talker") != "stopped"


@pytest.mark.parametrize("how", ["stop", "kill"])
def test_orders_over_a_restart(room: Room, how: str) -> None:
    """What waited for a reaction is off; what was said meanwhile is answered once."""
    question = room.order("!claw stop talker")
    getattr(room.bridge, how)()
    room.person.react(room.room_id, question.event_id, "✅")
    asked = room.person.send(room.room_id, "!claw who")
    room.bridge.start()
    first = room.person.wait_for(lambda seen: seen.content["msgtype"] == "m.notice", timeout=30)
    assert first.body == "Nothing waits for that any more. Give the order again."
    second = room.person.wait_for(lambda seen: seen.content["msgtype"] == "m.notice", timeout=30)
    assert _answers(second, asked)
    assert room.person.seen(quiet=1.5) == []
    assert room.state("talker") != "stopped"
