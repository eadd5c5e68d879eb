"""A person writes in a room; an agent in a container without network answers. On every runtime."""

from __future__ import annotations

import contextlib
import subprocess
from pathlib import Path
from typing import Any

import pytest

from armorclaw.errors import ArmorclawError
from tests.house import KEY, House


@pytest.mark.mission("K.start", "P1.1", "P1.3", "M.sync", "M.send", "M.login", "C.start", "S.2")
def test_a_person_is_answered(house: House) -> None:
    agent = house.start()
    assert house.ask("good morning") == "echo: good morning"
    assert house.ask("и ещё раз 🦀") == "echo: и ещё раз 🦀"
    status = house.bridge.call("status")
    assert status["containers"] == 1
    assert status["container_ids"] == [agent.standing["container_id"]]


@pytest.mark.mission("K.secrets", "K.verify", "S.3", "C.store_key", "C.get_key")
def test_the_key_is_nowhere_but_in_the_agent(house: House) -> None:
    """The agent has its key; no file, argument, environment or log of the host has, nor has the engine."""

    def tell(message: Any) -> None:
        secret = agent.secret("canary").token
        message.reply(f"{len(secret)} {secret[:3]}")

    house.bridge.call("store_key", id="canary", provider="openai", token=KEY)
    agent = house.start(tell, name="holder", keys=["canary"])
    assert house.ask("show me") == f"{len(KEY)} {KEY[:3]}"
    assert house.bridge.call("get_key", id="canary")["token"] == KEY
    folders = [house.bridge.folder]
    if house.image is not None:
        folders.append(house.engine_socket.parent)
        for words in (["inspect"], ["export"], ["logs"], ["top"]):
            said = engine_says(house, *words, agent.standing["container_id"])
            assert KEY.encode() not in said, words
    for path in (path for folder in folders for path in folder.rglob("*")):
        if path.is_file() and not path.is_symlink():
            with contextlib.suppress(OSError):  # a pseudo file of a container's /proc may vanish or refuse
                assert KEY.encode() not in path.read_bytes(), path
    for process in Path("/proc").glob("[0-9]*"):
        for facts in ("cmdline", "environ"):
            with contextlib.suppress(OSError):
                assert KEY.encode() not in (process / facts).read_bytes(), process


def engine_says(house: House, *words: str) -> bytes:
    """What the engine's own command line prints; the bridge has no part in it."""
    where = {"docker": "--host", "podman": "--url"}[house.runtime]
    command = [house.runtime, where, f"unix://{house.engine_socket}", *words]
    return subprocess.run(command, check=True, capture_output=True).stdout


@pytest.mark.mission("S.5")
def test_a_room_that_is_not_granted_any_more(house: House) -> None:
    """The bridge is in the room and hears it; nothing of it reaches the agent, nor the other way round."""
    other = house.person.create_room("another room", invite=[house.bridge.user_id])
    agent = house.start(rooms=[house.room, other])
    house.person.send(other, "while granted")
    assert house.hear_until("echo: while granted") == ["echo: while granted"]
    agent.stop()
    house.start(rooms=[house.room])
    house.person.send(other, "can you hear me?")
    house.person.send(house.room, "and here?")
    assert house.hear_until("echo: and here?") == ["echo: and here?"]


@pytest.mark.mission("C.stop", "K.stop")
def test_stopped_by_hand_it_stays_stopped(house: House) -> None:
    agent = house.start()
    answer = house.bridge.call("stop", name=agent.name)
    assert answer["status"] == "stopped"
    assert agent.standing["state"] == "stopped"
    house.person.send(house.room, "are you there?")
    assert house.person.seen(quiet=1.0) == []
    house.bridge.call("start", name=agent.name)
    # it was declared all the while, so nothing is lost
    assert house.person.wait_for(lambda seen: True).body == "echo: are you there?"


def test_an_image_that_is_not_there(house: House) -> None:
    if house.image is None:
        with pytest.raises(ArmorclawError, match="images"):
            house.bridge.call("start", name="none", runtime="sandbox", image="no-such-image:1")
        return
    with pytest.raises(ArmorclawError) as caught:
        house.bridge.call("start", name="none", runtime=house.runtime, image="no-such-image:1")
    assert caught.value.name == "image_missing"
    assert caught.value.hint.startswith(f"{house.runtime} pull ")
    assert "no-such-image:1" in caught.value.hint
