from __future__ import annotations

import os
import socket
import stat
from pathlib import Path
from typing import Any

import pytest
import trio

from armorclaw.containers.agent_socket import AgentSocket
from armorclaw.containers.runtime import Runtime
from armorclaw.errors import ArmorclawError
from armorclaw.rpc.unix import MAX_PATH

pytestmark = pytest.mark.mission("P0.1")

ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs root: gives files to another uid")


def about(path: Path) -> tuple[str, int, int]:
    found = path.lstat()
    return stat.filemode(found.st_mode), found.st_uid, found.st_gid


def connect(path: Path | str) -> None:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(str(path))


@ROOT
async def test_layout(folder: Path) -> None:
    place = AgentSocket(folder / "run", "ada", 10001)
    assert not (folder / "run").exists()
    old = os.umask(0o077)
    try:
        listener = place.listen()
    finally:
        os.umask(old)
    async with listener:
        run = folder / "run"
        assert about(run / "mounts") == ("drwx--x--x", 0, 0)
        assert about(run / "mounts/ada") == ("drwx--x---", 0, 10001)
        assert about(run / "mounts/ada/ada.sock") == ("srw-rw----", 0, 10001)
        assert (run / "containers/ada.sock").readlink() == run / "mounts/ada/ada.sock"
        assert os.listdir(run / "mounts/ada") == ["ada.sock"]
        assert place.inside == "/run/armorclaw/containers/ada.sock"
        assert (place.directory, place.path) == (run / "mounts/ada", run / "mounts/ada/ada.sock")
        connect(place.path)
        connect(place.link)


async def test_the_next_generation_gets_the_same_directory(folder: Path) -> None:
    place = AgentSocket(folder, "ada", 10001)
    async with place.listen():
        before = place.directory.stat().st_ino
    # as after a crash: the socket is there, and nobody listens
    async with place.listen() as listener:
        assert place.directory.stat().st_ino == before
        connect(place.link)
        with trio.fail_after(30):
            await (await listener.accept()).aclose()


async def test_an_ordinary_bridge(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It cannot give files away: open sockets, behind folders that only it may pass."""
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    async with AgentSocket(folder, "ada", 10001).listen(), AgentSocket(folder, "bob", 12345).listen():
        assert about(folder / "mounts")[0] == about(folder / "containers")[0] == "drwx------"
        assert about(folder / "mounts/ada")[0] == "drwx--x--x"
        assert about(folder / "mounts/ada/ada.sock")[0] == "srw-rw-rw-"
        assert about(folder / "mounts/bob")[0] == "drwx------"
        assert about(folder / "mounts/bob/bob.sock")[0] == "srw-------"


async def test_remove_leaves_nothing(folder: Path) -> None:
    place = AgentSocket(folder, "ada", 10001)
    async with place.listen():
        pass
    place.remove()
    place.remove()
    assert os.listdir(folder / "mounts") == os.listdir(folder / "containers") == []


async def test_another_socket_beside_it(folder: Path) -> None:
    place = AgentSocket(folder, "ada", 10001)
    async with place.listen(), place.listen_also("egress") as listener:
        assert about(folder / "mounts/ada/egress.sock") == about(place.path)
        connect(folder / "mounts/ada/egress.sock")
        with trio.fail_after(30):
            await (await listener.accept()).aclose()
    async with place.listen(), place.listen_also("egress"):  # as after a crash
        connect(folder / "mounts/ada/egress.sock")
    place.remove()
    assert os.listdir(folder / "mounts") == os.listdir(folder / "containers") == []


async def test_what_an_earlier_bridge_had_beside_it_is_removed_with_it(folder: Path) -> None:
    place = AgentSocket(folder, "ada", 10001)
    async with place.listen(), place.listen_also("egress"):
        pass
    AgentSocket(folder, "ada", 10001).remove()
    assert os.listdir(folder / "mounts") == []


async def test_another_socket_cannot_take_the_place_of_its_own(folder: Path) -> None:
    place = AgentSocket(folder, "egress", 10001)
    async with place.listen():
        with pytest.raises(ArmorclawError) as caught:
            place.listen_also("egress")
        assert caught.value.name == "conflict"


async def test_another_socket_with_a_longer_name(folder: Path) -> None:
    deep = folder / ("x" * (MAX_PATH - len(f"{folder}//mounts/ada/ada.sock.new")))
    async with AgentSocket(deep, "ada", 1).listen():
        with pytest.raises(ArmorclawError) as caught:
            AgentSocket(deep, "ada", 1).listen_also("egress")
        assert caught.value.name == "path_too_long"


def test_too_long_on_the_host(folder: Path) -> None:
    deep = folder / ("x" * (MAX_PATH - len(f"{folder}//mounts/ada/ada.sock.new")))
    AgentSocket(deep, "ada", 1)
    with pytest.raises(ArmorclawError) as caught:
        AgentSocket(deep.with_name(deep.name + "x"), "ada", 1)
    assert caught.value.name == "path_too_long"
    assert "108 bytes" in caught.value.why
    assert "runtime_dir" in caught.value.hint


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "A", "a\0b", "x" * 64])
def test_a_name_is_no_path(folder: Path, name: str) -> None:
    with pytest.raises(ArmorclawError) as caught:
        AgentSocket(folder, name, 1)
    assert caught.value.name == "invalid_params"


async def test_a_folder_that_cannot_be_made(folder: Path) -> None:
    (folder / "mounts").write_text("")
    with pytest.raises(ArmorclawError) as caught:
        AgentSocket(folder, "ada", 1).listen()
    assert caught.value.name == "storage_failed"


@pytest.mark.parametrize("runtime_kind", ["sandbox", "process"], indirect=True)
async def test_an_agent_reaches_its_own_and_no_other(
    runtime: Runtime, runtime_kind: str, make_spec: Any, folder: Path
) -> None:
    ada, bob = AgentSocket(folder, "ada", 10001), AgentSocket(folder, "bob", 10002)
    script = f"""
    import os, socket
    def reach(path):
        try:
            socket.socket(socket.AF_UNIX).connect(path)
            return "yes"
        except OSError as error:
            return error.strerror
    own = os.environ["ARMORCLAW_SOCKET"]
    print(reach(own), reach(own.replace("ada", "bob")), reach({str(bob.path)!r}), sep="; ")
    try:
        print(os.listdir(os.path.dirname(own)))
    except OSError as error:
        print(error.strerror)
    """
    async with ada.listen(), bob.listen():
        spec = make_spec(script, hello=False, socket_dir=ada.directory)
        async with runtime.launch(spec) as running:
            await running.start()
            with trio.fail_after(30):
                assert (await running.wait()).code == 0
    said = (folder / "logs" / "ada.log").read_text().splitlines()
    reached = said[0].split("; ")
    assert reached[0] == "yes"
    assert "yes" not in reached[1:]
    assert said[1] == "Permission denied"
