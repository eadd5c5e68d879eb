from __future__ import annotations

import grp
import os
import pwd
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import armorclaw.rpc.denied
from armorclaw.rpc.denied import why_denied

as_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be another user for a moment: sudo pytest")

USER = pwd.getpwnam("daemon")
GROUP = grp.getgrgid(USER.pw_gid).gr_name
OTHER = next(each for each in grp.getgrall() if each.gr_gid not in (0, USER.pw_gid))


def listen(path: Path, mode: int, gid: int) -> socket.socket:
    sock = socket.socket(socket.AF_UNIX)
    sock.bind(str(path))
    sock.listen()
    os.chown(path, -1, gid)
    path.chmod(mode)
    return sock


def as_daemon(path: Path) -> str:
    """What that user is told, by the module alone."""
    source = Path(armorclaw.rpc.denied.__file__).read_text(encoding="utf-8")
    become = f"os.setgroups([]); os.setgid({USER.pw_gid}); os.setuid({USER.pw_uid})"
    ask = f"print(*why_denied({str(path)!r}), sep=chr(10))"
    code = f"import __future__, os, grp, pwd, stat, collections.abc, typing\n{become}\nexec({source!r})\n{ask}"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code],
        capture_output=True,
        text=True,
        cwd="/",
        timeout=20,
        check=True,
    )
    return done.stdout


@as_root
def test_a_socket_of_its_owner_alone(armorclaw_folder: Path) -> None:
    with listen(armorclaw_folder / "s", 0o600, 0):
        told = as_daemon(armorclaw_folder / "s")
    assert told.startswith("it is for its owner alone\nrun as the user that owns the bridge: sudo -u root …")


@as_root
def test_a_socket_of_another_group(armorclaw_folder: Path) -> None:
    with listen(armorclaw_folder / "s", 0o660, OTHER.gr_gid):
        told = as_daemon(armorclaw_folder / "s")
    assert told == (
        f"it is for the group {OTHER.gr_name}\n"
        f"join it: sudo usermod -aG {OTHER.gr_name} daemon, then log out and in again\n"
    )


@as_root
def test_a_group_that_was_joined_since(armorclaw_folder: Path) -> None:
    """The records have it, the process does not."""
    with listen(armorclaw_folder / "s", 0o660, USER.pw_gid):
        told = as_daemon(armorclaw_folder / "s")
    assert told == f"it is for the group {GROUP}, which you joined after you logged in\nlog out and in again\n"


@as_root
def test_a_folder_in_the_way(armorclaw_folder: Path) -> None:
    inner = armorclaw_folder / "run"
    inner.mkdir(mode=0o700)
    with listen(inner / "s", 0o666, 0):
        told = as_daemon(inner / "s")
    assert told.startswith(f"this user may not pass {inner}\nrun as the user that owns the bridge: sudo -u root")


def test_nothing_there_and_numbers_without_names(armorclaw_folder: Path) -> None:
    assert why_denied(armorclaw_folder / "none") == ("this user may not open it", "")
    if os.geteuid() == 0:
        with listen(armorclaw_folder / "s", 0o660, 54_321):
            assert why_denied(armorclaw_folder / "s")[0] == "it is for the group 54321"


def test_it_costs_the_command_line_next_to_nothing() -> None:
    code = "import armorclaw.rpc.denied, sys; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"attrs", "attr", "trio", "structlog"} & set(done.stdout.split())
