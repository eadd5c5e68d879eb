"""What verbs share, where a person sits at the terminal."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
import termios

import pytest

from armorclaw.errors import ERRORS, ArmorclawError
from tests.cli.conftest import FakeBridge, Run


def at_terminal(fake: FakeBridge, typed: str, *words: str) -> tuple[int, str]:
    """How a command ends, and what is then on the terminal."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "armorclaw", *words, "--socket", fake.path]
    with subprocess.Popen(
        command,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
        env={**os.environ, "COLUMNS": "100"},
    ) as process:
        os.close(theirs)
        shown = b""
        typed_yet = not typed
        while True:
            try:
                data = os.read(ours, 4096)
            except OSError:  # the last one who had the other end has closed it
                break
            shown += data
            if not typed_yet and shown.rstrip().endswith(b":"):
                if words[0] != "outbox":
                    assert not termios.tcgetattr(ours)[3] & termios.ECHO, "a secret must not be seen"
                os.write(ours, typed.encode())
                typed_yet = True
        status = process.wait(30)
    os.close(ours)
    return status, shown.decode()


def test_a_key_is_typed_unseen(fake: FakeBridge) -> None:
    fake.answers["store_key"] = {"id": "x"}
    status, shown = at_terminal(fake, "canary\n", "keys", "add", "openai")
    assert (status, fake.asked) == (0, [("store_key", {"provider": "openai", "token": "canary"})])
    assert "canary" not in shown


@pytest.mark.parametrize("typed, status, calls", [("y\n", 0, 1), ("n\n", 1, 0), ("\n", 1, 0)])
def test_a_person_is_asked(fake: FakeBridge, typed: str, status: int, calls: int) -> None:
    fake.answers["delivery.cancel"] = {"state": "cancelled"}
    ended, shown = at_terminal(fake, typed, "outbox", "drop", "d_1")
    assert (ended, len(fake.asked)) == (status, calls)
    assert "Drop the message d_1?" in shown


@pytest.mark.parametrize(
    "words",
    [
        ["matrix", "recovery-key", "--new"],
        ["outbox", "drop", "d_1"],
        ["keys", "rm", "x"],
        ["events", "drop", "archive", "7"],
    ],
    ids=lambda words: words[0],
)
def test_where_nobody_can_be_asked_nothing_is_done(run: Run, fake: FakeBridge, words: list[str]) -> None:
    done = run(*words)
    assert (done.status, done.out, fake.asked) == (2, "", [])
    assert done.err.splitlines() == [
        "armorclaw: nothing was done",
        "why: a person is asked first, and there is no terminal to ask on",
        "hint: give --yes to have it done",
    ]


def test_a_person_who_said_yes_is_not_asked(fake: FakeBridge) -> None:
    fake.answers["delivery.cancel"] = {"state": "cancelled"}
    status, shown = at_terminal(fake, "", "outbox", "drop", "d_1", "--yes")
    assert (status, shown) == (0, "cancelled d_1\r\n")


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["explain", "lobby"], "hint: armorclaw explain --help"),
        (["matrix", "devices", "alice"], "hint: armorclaw matrix devices --help"),
        (["call", "policy.explain"], "hint: " + ERRORS["invalid_params"].hint),
    ],
)
def test_whoever_mistook_a_verb_is_told_what_to_run(fake: FakeBridge, run: Run, words: list[str], hint: str) -> None:
    for method in ("policy.explain", "matrix.devices"):
        fake.answers[method] = ArmorclawError("invalid_params", "that is no room")
    done = run(*words)
    assert (done.status, done.err.splitlines()) == (2, ["armorclaw: that is no room", hint])
    for method in ("policy.explain", "matrix.devices"):
        fake.answers[method] = ArmorclawError("invalid_params", "that is no room", hint="give its id")
    assert run(*words).err.splitlines()[-1] == "hint: give its id"


def test_states_have_colours_on_a_terminal(fake: FakeBridge) -> None:
    row = {"name": "ready", "since_ms": None, "last_end": "x" * 200}
    fake.answers["containers.list"] = [{**row, "state": "failed"}, {**row, "state": "ready"}]
    status, shown = at_terminal(fake, "", "containers", "ls")
    assert status == 0
    assert "\x1b[31mfailed" in shown
    assert shown.count("\x1b[32mready") == 1, "a name is no state"
    assert shown.count("…") == 2


def test_a_table_on_a_terminal_is_as_wide_as_it(fake: FakeBridge) -> None:
    row = {"delivery_id": "[red]echo", "state": "sent", "room_id": "!r", "attempts": 1, "created_ms": 1}
    fake.answers["delivery.list"] = [{**row, "agent": None, "reason": "\x1b[31m" + "x" * 200}]
    status, shown = at_terminal(fake, "", "outbox", "ls")
    assert status == 0
    assert "[red]echo" in shown
    assert "\x1b[31m" not in shown
    assert shown.count("x") == 200
