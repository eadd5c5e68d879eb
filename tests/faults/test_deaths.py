"""Real processes die by SIGKILL in mid-conversation; nothing is lost and nothing is visibly answered twice."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from armorclaw.testing.handles import AgentFactory, BridgeProcess
from armorclaw.testing.homeserver import Homeserver
from armorclaw.testing.plugin import missing
from tests.house import House


def processes_of(house: House) -> list[int]:
    """The processes of its agents, as the host sees them: those that have its folder mounted, and run its code."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            command = (entry / "cmdline").read_bytes().split(b"\0")
            mounts = (entry / "mountinfo").read_text()
        except OSError:
            continue
        if b"/agent/main.py" in command and b"--" not in command and f"{house.bridge.folder}/" in mounts:
            found.append(int(entry.name))
    return found


@pytest.mark.mission("P0.1", "P0.2", "P0.3")
def test_an_agent_that_is_killed(house: House) -> None:
    agent = house.start()
    house.person.send(house.room, "one")
    assert house.hear_until("echo: one") == ["echo: one"]
    victims = processes_of(house)
    assert victims
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    house.person.send(house.room, "two")
    assert house.hear_until("echo: two") == ["echo: two"]
    assert agent.standing["generation"] == 2
    assert "SIGKILL" in agent.standing["last_end"]


@pytest.mark.mission("P3.1", "P3.3")
def test_killed_between_reply_and_acknowledgement(house: House) -> None:
    """The event comes again to the next generation, which answers again; the person sees one answer."""

    def once(message: Any) -> None:
        import os

        message.reply(f"heard: {message.body} {'again' if message.redelivered else ''}".strip())
        if message.body == "hello" and not message.redelivered:
            os._exit(1)  # at once; a SIGKILL of its own the first process of a container would survive

    agent = house.start(once, name="once")
    house.person.send(house.room, "hello")
    agent.wait_ready(generation=2)
    # the second generation has handled it when it has answered what came later
    house.person.send(house.room, "later")
    assert house.hear_until("heard: later") == ["heard: hello", "heard: later"]


@pytest.mark.mission("P0.3", "P3.1")
def test_a_bridge_that_is_killed(house: House) -> None:
    """Containers are adopted and go on; what was said meanwhile is answered, each once, in order."""
    house.bridge.config["agents"] = {}
    agent = house.start()
    assert house.ask("before") == "echo: before"
    first = agent.standing
    declare(house)
    house.bridge.kill()
    for word in ("while", "it", "was", "away"):
        house.person.send(house.room, word)
    house.bridge.start()
    agent.wait_ready()
    assert house.hear_until("echo: away") == ["echo: while", "echo: it", "echo: was", "echo: away"]
    if house.runtime != "sandbox":  # the sandbox ends with its bridge
        assert agent.standing["container_id"] == first["container_id"]
    assert house.ask("after") == "echo: after"


def declare(house: House) -> None:
    """Put the agent that runs into the configuration, as it was started."""
    house.bridge.config["agents"] = {
        "echo": {
            "runtime": house.runtime,
            "code": house.bridge.folder / "agents" / "echo",
            "rooms": [house.room],
            **({"image": house.image} if house.image else {}),
        }
    }


@pytest.mark.parametrize("house_runtime", ["docker", "podman"], indirect=True)
def test_containers_nobody_declares_are_removed(house: House) -> None:
    """No orphan is left: what a killed bridge ran, and the next one is not told of, goes."""
    house.start()
    house.bridge.kill()
    assert processes_of(house)
    house.bridge.start()
    deadline = time.monotonic() + 20
    while processes_of(house) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert processes_of(house) == []


@pytest.mark.mission("C.stop")
def test_sigterm_leaves_nothing(house: House) -> None:
    house.start()
    assert house.bridge.stop() == 0
    assert processes_of(house) == []
    assert not house.bridge.socket.exists()


@pytest.mark.mission("M.sync", "P3.3")
def test_a_homeserver_that_is_killed(tmp_path: Path, armorclaw_folder: Path) -> None:
    """The session recovers by itself when it returns; what was to be sent meanwhile goes out, once."""
    from armorclaw.testing.handles import new_person

    with Homeserver(tmp_path / "synapse") as homeserver, new_person(homeserver, "alice") as person:
        with BridgeProcess.for_homeserver(homeserver, armorclaw_folder) as bridge:
            room = person.create_room("room", invite=[bridge.user_id])
            slow = AgentFactory(bridge, missing)
            slow(late_echo, rooms=[room], name="late")
            person.catch_up()
            person.send(room, "hello")
            assert person.wait_for(lambda seen: True).body == "got it"
            homeserver.kill()  # the agent answers in a second
            time.sleep(2.0)
            homeserver.start()
            answer = person.wait_for(lambda seen: True, timeout=30)
            assert answer.body == "late: hello"
            person.send(room, "again")
            assert person.wait_for(lambda seen: True).body == "got it"
            assert person.wait_for(lambda seen: True).body == "late: again"
            assert person.seen(quiet=1.0) == []


def late_echo(message: Any) -> None:
    import time

    message.reply("got it")
    time.sleep(1.0)
    message.reply(f"late: {message.body}")
