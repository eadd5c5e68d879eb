"""What the example agents say and do, as people in the room see it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from armorclaw.agent.answers import PACE
from armorclaw.testing.handles import AgentFactory, BridgeProcess
from armorclaw.testing.person import Person, Seen

HERE = Path(__file__).parent


def eventually(true: Callable[[], Any], seconds: float = 20.0) -> Any:
    deadline = time.monotonic() + seconds
    while not (answer := true()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.05)
    return answer


def sent_ms(alice: Person, room: str, seen: Seen) -> int:
    """When the homeserver took it."""
    return int(alice.event(room, seen.event_id)["origin_server_ts"])


@pytest.mark.mission("M.send")
def test_a_story_in_a_thread(
    bridge: BridgeProcess, agent: AgentFactory, matrix_user: Callable[[str], Person]
) -> None:
    alice = matrix_user("alice")
    room = alice.create_room("stories", invite=[bridge.user_id])
    agent(HERE / "story/main.py", rooms=[room], name="story")
    asked = alice.send(room, "a <dragon>")

    first = alice.wait_for(lambda seen: seen.sender == bridge.user_id)
    assert first.body.startswith("Once there")
    assert first.body.endswith(" …")  # the rest is being written
    relation = first.content["m.relates_to"]
    assert (relation["rel_type"], relation["event_id"]) == ("m.thread", asked)
    edits: list[dict[str, Any]] = []
    last = first
    while not edits or edits[-1]["body"].endswith(" …"):
        last = alice.wait_for(lambda seen: seen.sender == bridge.user_id)
        assert last.content["m.relates_to"] == {"rel_type": "m.replace", "event_id": first.event_id}
        edits.append(last.content["m.new_content"])
    took = (sent_ms(alice, room, last) - sent_ms(alice, room, first)) / 1000
    assert len(edits) <= took / PACE + 3  # the last, and what a busy machine held up and lets go together
    text = edits[-1]["body"]
    assert text.endswith("And it lived *happily ever after*. ")
    assert [text.startswith(edit["body"].removesuffix(" …")) for edit in edits] == [True] * len(edits)
    html = edits[-1]["formatted_body"]
    assert "<strong>a &lt;dragon&gt;</strong>" in html
    assert "<li>It saw.</li>" in html
    # what a client shows that comes later
    shown = alice.event(room, first.event_id)["unsigned"]["m.relations"]["m.replace"]["content"]
    assert shown["m.new_content"]["body"] == text

    def reactions() -> list[str]:
        related = [each["content"].get("m.relates_to", {}) for each in alice.relations(room, asked)]
        return [relation["key"] for relation in related if relation.get("rel_type") == "m.annotation"]

    eventually(lambda: reactions() == ["📖"])  # the eyes are gone


@pytest.mark.mission("M.send")
def test_files_there_and_back_and_what_people_do_not_like(
    bridge: BridgeProcess, agent: AgentFactory, matrix_user: Callable[[str], Person]
) -> None:
    alice = matrix_user("alice")
    room = alice.create_room("a shelf", invite=[bridge.user_id])
    agent(HERE / "keeper/main.py", rooms=[room], name="keeper")
    data = b"\x89PNG" + bytes(range(256)) * 3_000
    alice.send_file(room, "cat.png", data, "image/png")
    got = alice.wait_for(lambda seen: seen.sender == bridge.user_id)
    assert got.content["formatted_body"] == f"I have <strong>{len(data)} bytes</strong> of yours."
    assert got.content["m.mentions"] == {"user_ids": [alice.user_id]}
    asked = alice.send(room, "give it back")
    back = alice.wait_for(lambda seen: seen.sender == bridge.user_id)
    assert (back.content["msgtype"], back.content["filename"], back.body) == ("m.file", "yours", "here it is")
    assert back.content["m.relates_to"] == {"m.in_reply_to": {"event_id": asked}}
    found = alice.download(back.content["url"])
    assert hashlib.sha256(found).digest() == hashlib.sha256(data).digest()

    alice.react(room, asked, "👎")  # her own: nothing happens
    alice.react(room, got.event_id, "👎")
    eventually(lambda: "body" not in alice.event(room, got.event_id)["content"])
    assert alice.event(room, asked)["content"]["body"] == "give it back"
    assert alice.event(room, back.event_id)["content"]["body"] == "here it is"
