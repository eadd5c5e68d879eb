"""Who gets in, and as what, when groups are named."""

from __future__ import annotations

import grp
import json
import os
import pwd
import re
import stat
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import trio

from armorclaw import Bridge, listeners, open_bridge
from armorclaw.config import BridgeSection, Config, LimitsSection, ServerSection
from armorclaw.errors import ArmorclawError
from armorclaw.listeners import Members, groups_of
from armorclaw.rpc import blocking
from armorclaw.rpc.registry import Role
from armorclaw.rpc.unix import PeerCredentials
from armorclaw.structure import Frequency
from tests.test_roles import registry_of

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user for a moment: sudo pytest")

# a user and his group that every Linux has, and another group
USER = pwd.getpwnam("daemon")
GROUP = grp.getgrgid(USER.pw_gid).gr_name
OTHER = next(each for each in grp.getgrall() if each.gr_gid not in (0, USER.pw_gid))


def config_in(folder: Path, **sections: Any) -> Config:
    return Config(bridge=BridgeSection(state_dir=folder / "state", runtime_dir=folder / "run"), **sections)


def ask_as(path: Path, *methods: str, uid: int = USER.pw_uid, gid: int, groups: list[int] | None = None) -> list[Any]:
    """The answers another user gets; the name of the exception if he cannot connect."""
    code = (
        "import os, socket, sys\n"
        f"os.setgroups({groups or []}); os.setgid({gid}); os.setuid({uid})\n"
        "s = socket.socket(socket.AF_UNIX)\n"
        "s.settimeout(20)\n"
        "try: s.connect(sys.argv[1])\n"
        "except OSError as e: print(repr(type(e).__name__).replace(chr(39), chr(34))); sys.exit()\n"
        "s.sendall(sys.stdin.buffer.read()); s.shutdown(1)\n"
        "while d := s.recv(65536): sys.stdout.write(d.decode())\n"
    )
    asked = "".join(json.dumps({"jsonrpc": "2.0", "id": 1, "method": method}) + "\n" for method in methods)
    done = subprocess.run(
        [sys.executable, "-I", "-c", code, str(path)],
        input=asked,
        capture_output=True,
        text=True,
        cwd="/",
        timeout=60,
        check=True,
    )
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    return [each if isinstance(each, str) else each.get("result", each.get("error", {})) for each in answers]


def mode_and_group(path: Path) -> tuple[int, int]:
    found = path.stat()
    return stat.S_IMODE(found.st_mode), found.st_gid


async def test_without_groups_there_is_one_socket_for_its_user(armorclaw_folder: Path) -> None:
    async with open_bridge(config_in(armorclaw_folder)) as bridge:
        assert mode_and_group(bridge.config.bridge.socket) == (0o600, os.getegid())
        assert not bridge.config.bridge.observer_socket.exists()


@as_root
async def test_members_of_the_group_are_operators(armorclaw_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = config_in(armorclaw_folder, server=ServerSection(group=GROUP))
    async with open_bridge(config) as bridge:
        path = bridge.config.bridge.socket
        assert mode_and_group(path) == (0o660, USER.pw_gid)

        async def ask(gid: int, *groups: int) -> list[Any]:
            return await trio.to_thread.run_sync(
                lambda: ask_as(path, "list_keys", gid=gid, groups=list(groups)), abandon_on_cancel=True
            )

        assert await ask(USER.pw_gid) == [[]]
        assert await ask(OTHER.gr_gid) == ["PermissionError"]
        # the session still has the group, but the system's records do not say so any more
        refused = await ask(OTHER.gr_gid, USER.pw_gid)
        assert [answer["data"]["name"] for answer in refused] == ["denied"]
        assert GROUP in refused[0]["data"]["hint"], "it says how to get in"
        monkeypatch.setattr(listeners, "groups_of", lambda peer: [USER.pw_gid] if peer.uid == USER.pw_uid else [])
        assert await ask(OTHER.gr_gid, USER.pw_gid) == [[]]


@as_root
async def test_observers_have_a_socket_of_their_own_and_see_no_keys(armorclaw_folder: Path) -> None:
    config = config_in(armorclaw_folder, server=ServerSection(observer_group=GROUP))
    async with open_bridge(config) as bridge:
        where = bridge.config.bridge
        assert where.observer_socket == where.socket.with_name("observer.sock")
        assert mode_and_group(where.observer_socket) == (0o660, USER.pw_gid)
        assert mode_and_group(where.socket)[0] == 0o600
        await bridge.call("store_key", id="k", provider="openai", token="secret")

        async def ask(path: Path, *methods: str) -> list[Any]:
            return await trio.to_thread.run_sync(lambda: ask_as(path, *methods, gid=USER.pw_gid))

        health, agents, keys, key = await ask(
            where.observer_socket, "health", "containers.list", "list_keys", "get_key"
        )
        assert health["status"] == "healthy"
        assert agents == []
        assert keys["data"]["name"] == key["data"]["name"] == "denied"
        assert await ask(where.socket, "health") == ["PermissionError"]
        (status,) = await ask(where.observer_socket, "status")
        assert (status["state"], status["socket"]) == ("running", "")
        assert str(where.runtime_dir) not in str(status)
        assert (await bridge.call("status"))["socket"] == str(where.socket)
    assert not where.observer_socket.exists()


async def test_whom_a_group_lets_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listeners, "groups_of", lambda peer: [4242] if peer.uid == USER.pw_uid else [])

    async def refused(uid: int, gid: int, wanted: int) -> bool:
        try:
            await Members("g", wanted).have(PeerCredentials(1, uid, gid))
        except ArmorclawError as error:
            return error.name == "denied"
        return False

    assert not await refused(os.geteuid(), 7, 4242)
    assert not await refused(0, 7, 4242)
    assert not await refused(987_654, 4242, 4242)
    assert not await refused(USER.pw_uid, 7, 4242)
    assert await refused(USER.pw_uid, 7, 4243)
    assert await refused(987_654, 7, 4242)


def test_the_groups_are_those_of_the_system() -> None:
    for user in pwd.getpwall():
        found = groups_of(PeerCredentials(1, user.pw_uid, 4242))
        name = pwd.getpwuid(user.pw_uid).pw_name  # several may have one uid
        assert sorted(found) == sorted(os.getgrouplist(name, 4242))
    assert groups_of(PeerCredentials(1, 987_654, 7)) == []  # a uid without a name


async def test_a_user_database_that_does_not_answer_stops_nobody_else(
    armorclaw_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the bridge nor a caller about whom nothing need be asked, nor the end."""
    asked, answer = threading.Event(), threading.Event()

    def groups_of_slowly(peer: PeerCredentials) -> list[int]:
        asked.set()
        answer.wait(60)
        return []

    known = [False, True]
    monkeypatch.setattr(listeners, "groups_of", groups_of_slowly)
    monkeypatch.setattr(listeners, "same_user", lambda peer: known.pop(0))
    monkeypatch.setattr(os, "chown", lambda path, uid, gid: None)
    config = config_in(armorclaw_folder, server=ServerSection(group=OTHER.gr_name))
    try:
        with trio.fail_after(50):
            async with open_bridge(config) as bridge:
                path = str(bridge.config.bridge.socket)
                async with await trio.open_unix_socket(path):
                    await trio.to_thread.run_sync(asked.wait, 20)
                    assert asked.is_set()
                    health = await trio.to_thread.run_sync(blocking.call, path, "health")
                    assert health["status"] == "healthy"
        assert not answer.is_set()
    finally:
        answer.set()


@pytest.mark.parametrize("page", ["operations.md", "configuration.md"])
def test_what_observers_may_call_is_documented(page: str, tmp_path: Path) -> None:
    text = (Path(__file__).parents[1] / "docs" / page).read_text()
    (sentence,) = [line for line in text.splitlines() if "`rpc.discover`" in line]
    named = set(re.findall(r"`([a-z._]+)`", sentence)) - {"observer_group", "observer.sock", "socket"}
    assert named == set(registry_of(tmp_path).names(Role.OBSERVER))


async def test_a_change_of_group_that_is_not_permitted(
    armorclaw_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: object, uid: int, gid: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    config = config_in(armorclaw_folder, server=ServerSection(group=GROUP))
    monkeypatch.setattr(os, "chown", refuse)
    with pytest.raises(ArmorclawError) as caught:
        async with open_bridge(config):
            raise AssertionError("it started")
    assert (caught.value.name, caught.value.why) == ("config_invalid", "the bridge is not in it")
    assert GROUP in caught.value.hint


async def test_limits_of_the_configuration_hold_at_the_socket(armorclaw_folder: Path) -> None:
    config = config_in(armorclaw_folder, limits=LimitsSection(operator_calls=Frequency(1)))
    async with open_bridge(config) as bridge:
        names, took = await trio.to_thread.run_sync(_call_often, bridge)
    assert names[:2] == ["done", "done"]  # a connection may begin with two
    assert "rate_limited" in names
    assert names.count("done") <= 8 + 4 * took + 1  # and its user with eight, and four a second


def _call_often(bridge: Bridge) -> tuple[list[str], float]:
    """What became of each call, and how many seconds they took."""
    names = []
    began = time.monotonic()
    for _ in range(40):
        try:
            blocking.call(bridge.config.bridge.socket, "health")
            names.append("done")
        except ArmorclawError as error:
            names.append(error.name)
    return names, time.monotonic() - began
