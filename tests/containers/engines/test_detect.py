from __future__ import annotations

import socket
from pathlib import Path

import pytest
import trio

from armorclaw.containers.engines import detect
from armorclaw.containers.engines.detect import Candidate, candidates
from armorclaw.testing.engines import EngineWithImage


@pytest.fixture(autouse=True)
def no_engine_of_this_host(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """What this very machine runs must not change the outcome."""
    if "usual" not in request.node.name:
        places = detect._places
        usual = ("/var/run/docker.sock", "/run/podman/podman.sock")
        monkeypatch.setattr(detect, "_places", lambda env: [p for p in places(env) if p[1] not in usual])


def test_usual_places_in_order() -> None:
    environ = {"DOCKER_HOST": "unix:///d", "CONTAINER_HOST": "unix:///c", "XDG_RUNTIME_DIR": "/run/user/7"}
    assert [(kind, path) for kind, path, _ in detect._places(environ)] == [
        ("docker", "unix:///d"),
        ("podman", "unix:///c"),
        ("docker", "/var/run/docker.sock"),
        ("docker", "/run/user/7/docker.sock"),
        ("podman", "/run/user/7/podman/podman.sock"),
        ("podman", "/run/podman/podman.sock"),
    ]


@pytest.mark.parametrize("runtime_kind", ["docker", "podman"], indirect=True)
async def test_a_real_engine_is_found_whatever_it_is_called(runtime_kind: str, private: EngineWithImage) -> None:
    socket_path = private.socket_path
    found = await candidates({"DOCKER_HOST": f"unix://{socket_path}", "CONTAINER_HOST": socket_path})
    assert [(one.kind, one.socket_path, one.source, one.usable) for one in found] == [
        (runtime_kind, socket_path, "DOCKER_HOST", True)
    ]
    assert runtime_kind in found[0].text.lower()


async def test_what_is_not_usable_says_why(folder: Path) -> None:
    environ = {"DOCKER_HOST": "tcp://127.0.0.1:2375", "XDG_RUNTIME_DIR": str(folder)}
    (folder / "podman").mkdir()
    (folder / "podman/podman.sock").write_text("no socket at all")
    tcp, docker, podman = await candidates(environ)
    assert (tcp.usable, tcp.text) == (False, "only a Unix socket of this machine will do")
    assert docker == Candidate(
        "docker",
        f"{folder}/docker.sock",
        "rootless Docker's usual place",
        False,
        "there is no such socket",
        "apt-get install docker.io",
    )
    assert not podman.usable
    assert podman.text == "nobody listens on that socket"


async def test_podmans_hint_is_the_users_own_service(folder: Path) -> None:
    *_, podman = await candidates({"XDG_RUNTIME_DIR": str(folder)})
    assert podman.hint == "apt-get install podman && systemctl --user enable --now podman.socket"


async def test_an_engine_that_hangs_holds_up_the_others_for_a_while_only(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(detect, "TRY_SECONDS", 0.2)
    path = folder / "docker.sock"
    with socket.socket(socket.AF_UNIX) as hangs:
        hangs.bind(str(path))
        hangs.listen()
        with trio.fail_after(30):
            found, *_ = await candidates({"DOCKER_HOST": str(path)})
    assert (found.usable, found.text) == (False, "it did not answer within 0.2 s")
