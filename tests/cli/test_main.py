"""The command line as a whole: what goes where, and with which status."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import click
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from armorclaw import __version__
from armorclaw.cli import root
from armorclaw.cli.root import _VERBS, execute
from armorclaw.errors import ERRORS, ArmorclawError
from armorclaw.testing.handles import wait_until
from tests.cli.conftest import FakeBridge, Run, Stream


def process(*arguments: str, **options: object) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "armorclaw", *arguments]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "stdin": subprocess.DEVNULL, **options}
    return subprocess.run(words, text=True, timeout=30, check=False, **options)  # type: ignore[call-overload, no-any-return]


def test_version(run: Run) -> None:
    done = process("version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"armorclaw {__version__}\n", "")
    assert run("--version").out == done.stdout
    assert json.loads(run("version", "--json").out) == {"version": __version__}


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_help_names_every_verb(run: Run, arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert (done.status, done.err) == (0, "")
    for verb in _VERBS:
        assert f"\n  {verb} " in done.out


def test_the_list_of_verbs_says_what_each_says_itself() -> None:
    """It has lines of its own so that nothing is imported for it."""
    with click.Context(root.armorclaw) as context:
        for name, about in _VERBS.items():
            command = root.armorclaw.get_command(context, name)
            assert command is not None
            assert command.name == name
            assert command.get_short_help_str(200) == about


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["nonsense"], ["armorclaw: No such command 'nonsense'.", "hint: armorclaw --help"]),
        (["config"], ["armorclaw: Missing command.", "hint: armorclaw config --help"]),
        (["keys", "add"], ["armorclaw: Missing argument 'PROVIDER'.", "hint: armorclaw keys add --help"]),
        (["version", "more"], ["armorclaw: Got unexpected extra argument (more)", "hint: armorclaw version --help"]),
        (["call", "x", "--params", "{"], ["armorclaw: --params is not JSON: ", "hint: armorclaw call --help"]),
    ],
)
def test_wrong_usage(run: Run, arguments: list[str], complaint: list[str]) -> None:
    done = run(*arguments)
    assert (done.status, done.out) == (2, "")
    said = done.err.splitlines()
    assert said[0].startswith(complaint[0])
    assert said[-1] == complaint[-1]


def test_an_error_of_the_table(run: Run, fake: FakeBridge) -> None:
    fake.answers["status"] = ArmorclawError("queue_full", "no room", why="one\ntwo", hint="wait")
    done = run("status")
    assert (done.status, done.out, done.err) == (75, "", "armorclaw: no room: one\ntwo\nhint: wait\n")


def test_an_answer_of_another_version(run: Run, fake: FakeBridge) -> None:
    answers: list[object] = [{}, None, 3, "text", []]
    for answer in answers:
        fake.answers["status"] = answer
        done = run("status")
        assert (done.status, done.out) == (1, "")
        assert len(done.err.splitlines()) == 3


def ends_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> int:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(root.armorclaw, "invoke", fail)
    return execute([])


@pytest.mark.parametrize("interrupt", [click.Abort(), KeyboardInterrupt()])
def test_ctrl_c(
    interrupt: BaseException, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ends_with(interrupt, monkeypatch) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("error", [ZeroDivisionError(), OSError(28, "no space"), BrokenPipeError()])
def test_what_nobody_expected_shows_where_it_was(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(type(error)):
        ends_with(error, monkeypatch)


def test_ctrl_c_cancels_and_is_silent(fake: FakeBridge) -> None:
    fake.answers["containers.logs"] = Stream([{"stream": "stdout", "text": "line\n"}], ends=False)
    words = [sys.executable, "-m", "armorclaw", "containers", "logs", "x", "-f", "--socket", fake.path]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "line\n"
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (process.returncode, out, err) == (130, "", "")
    wait_until(lambda: fake.asked[-1] == ("$/cancelRequest", {"id": 1}), 20, "it was cancelled")


@pytest.mark.parametrize("verb", [("--help",), ("status", "--help"), ("version",), ("status",), ("config", "show")])
def test_a_reader_that_has_gone_is_no_traceback(verb: tuple[str, ...], fake: FakeBridge) -> None:
    """`armorclaw --help | head -0`."""
    fake.answers["status"] = dict.fromkeys(("version", "state", "socket", "uptime_s"), "") | {
        "accounts": [],
        "agents": [],
    }
    ours, theirs = os.pipe()
    os.close(ours)
    done = process(*verb, stdout=theirs, env={**os.environ, "ARMORCLAW_SOCKET": fake.path})
    os.close(theirs)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_disk_that_is_full_is_no_traceback() -> None:
    with Path("/dev/full").open("w") as full:
        done = process("version", stdout=full)
    assert done.returncode == 1
    assert done.stderr.splitlines()[0] == "armorclaw: cannot write to stdout"


def test_without_stdin(fake: FakeBridge) -> None:
    fake.answers["store_key"] = {"id": "x"}
    words = f"{sys.executable} -m armorclaw keys add openai --socket {fake.path} <&-"
    done = subprocess.run(["sh", "-c", words], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, fake.asked) == (2, [])
    assert done.stderr.startswith("armorclaw: no key came on stdin\n")


_PLAIN = [
    ["status"],
    ["health"],
    ["call", "x"],
    ["containers", "ls"],
    ["keys", "ls"],
    ["outbox", "ls"],
    ["events", "tail"],
]


@pytest.mark.parametrize("verb", _PLAIN, ids=" ".join)
def test_a_verb_pays_for_itself_only(verb: list[str], fake: FakeBridge) -> None:
    """They are asked often, by scripts: nothing of the daemon is imported for them, nor what a terminal needs."""
    fake.answers = {
        "status": dict.fromkeys(("version", "state", "socket", "uptime_s"), "") | {"accounts": [], "agents": []},
        "health": {"status": "healthy"},
        "x": {},
        "containers.list": [],
        "list_keys": [],
        "delivery.list": [],
        "events.subscribe": {"subscription": "#1", "cursor": 0},
        "events.unsubscribe": {},
    }
    program = (
        "import sys, armorclaw.cli.root\n"
        f"status = armorclaw.cli.root.execute({[*verb, '--socket', fake.path]!r})\n"
        "print(status, *sys.modules)"
    )
    said = subprocess.check_output([sys.executable, "-c", program], text=True).splitlines()[-1]
    status, *modules = said.split()
    assert status == "0"
    heavy = {"trio", "httpx", "mautrix", "aiortc", "attr", "attrs", "cattrs", "rich", "msgspec", "sqlcipher3"}
    heavy |= {"asyncio", "importlib.metadata", "tomllib", "armorclaw.bridge", "armorclaw.config", "armorclaw.errors"}
    assert heavy.isdisjoint(modules)


def test_the_list_of_verbs_needs_no_verb() -> None:
    program = "import sys, armorclaw.cli.root as root; root.execute([]); print(*sys.modules)"
    modules = subprocess.check_output([sys.executable, "-c", program], text=True).splitlines()[-1].split()
    assert not {f"armorclaw.cli.{verb}" for verb in _VERBS} & set(modules)


WORDS = [
    *_VERBS,
    "ls",
    "add",
    "rm",
    "tail",
    "show",
    "check",
    "logs",
    "send",
    "retry",
    "inspect",
    "stats",
    "--json",
    "-f",
    "--since",
    "--tail",
    "--params",
    "--config",
    "--socket",
    "--set",
    "--origin",
    "--limit",
    "--timeout",
    "--",
    "-",
    "",
    "10m",
    "-1",
    "1e999",
    "\x00",
    "\udcff",
    "é",
    "[[[",
    '{"a":',
    "a=b",
    "/nonexistent",
]


@given(words=st.lists(st.sampled_from(WORDS) | st.text(max_size=8), max_size=6))
@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_no_words_make_it_stumble(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody answers; `run` and `demo` would do something, and are tried elsewhere."""
    if {"run", "demo"} & set(words):
        return
    monkeypatch.setenv("ARMORCLAW_SOCKET", "/nonexistent/s")
    monkeypatch.setattr("sys.stdin", None)
    status = execute(words)
    out, err = capsys.readouterr()
    assert status in {0, 2} | {kind.exit_status for kind in ERRORS.values()}
    if status:
        assert err.startswith("armorclaw: ")
        assert "Traceback" not in out + err


def test_the_table_of_exit_statuses_is_documented() -> None:
    """Every status that can occur has a row, and no row is made up."""
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    rows = {int(found) for found in re.findall(r"^\| (\d+) \|", page, re.MULTILINE)}
    own = {0, root.USAGE, root.INTERRUPTED, root.NO_READER}
    assert rows == own | {kind.exit_status for kind in ERRORS.values()}
