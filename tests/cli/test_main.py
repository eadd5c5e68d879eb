"""The command line as a whole: what goes where, and with which status."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from armorclaw import __version__, cli
from armorclaw.errors import ArmorclawError


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "armorclaw", *arguments]
    return subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)


def test_version() -> None:
    done = run("version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"armorclaw {__version__}\n", "")
    assert json.loads(run("version", "--json").stdout) == {"version": __version__}


@pytest.mark.parametrize("arguments", [(), ("--help",), ("-h",)])
def test_help_names_every_verb(arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    for verb in ("demo", "run", "status", "version"):
        assert f"\n  {verb} " in done.stdout


@pytest.mark.parametrize(
    "arguments, complaint",
    [
        (["nonsense"], ["armorclaw: No such command 'nonsense'.", "hint: armorclaw --help"]),
        (["run"], ["armorclaw: Missing option '--config'.", "hint: armorclaw run --help"]),
        (["version", "more"], ["armorclaw: Got unexpected extra argument (more)", "hint: armorclaw version --help"]),
    ],
)
def test_wrong_usage(arguments: list[str], complaint: list[str]) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout, done.stderr.splitlines()) == (2, "", complaint)


def ends_with(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> object:
    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr(cli.armorclaw, "main", fail)
    with pytest.raises(SystemExit) as caught:
        cli.main([])
    return caught.value.code


def test_an_error_of_the_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    error = ArmorclawError("queue_full", "no room", why="one\ntwo", hint="wait")
    assert ends_with(error, monkeypatch) == 75
    assert capsys.readouterr() == ("", "armorclaw: no room\nwhy: one\n     two\nhint: wait\n")


def test_ctrl_c(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert ends_with(click.Abort(), monkeypatch) == 130
    assert capsys.readouterr() == ("", "")


def test_what_nobody_expected_shows_where_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError):
        ends_with(ZeroDivisionError(), monkeypatch)


def test_a_reader_that_has_gone_is_no_traceback() -> None:
    """`armorclaw --help | head -0`."""
    ours, theirs = os.pipe()
    os.close(ours)
    words = [sys.executable, "-m", "armorclaw", "--help"]
    done = subprocess.run(words, stdout=theirs, stderr=subprocess.PIPE, text=True, timeout=30, check=False)
    os.close(theirs)
    assert (done.returncode, done.stderr) == (1, "")


def test_a_verb_pays_for_itself_only(tmp_path: Path) -> None:
    """`status` is asked often, by scripts: nothing of the daemon is imported for it."""
    program = (
        "import sys, armorclaw.cli\n"
        f"try: armorclaw.cli.main(['status', '--socket', {str(tmp_path / 'none')!r}])\n"
        "except SystemExit as end: print(end.code, *sys.modules)"
    )
    status, *modules = subprocess.check_output(
        [sys.executable, "-c", program], text=True, stderr=subprocess.DEVNULL
    ).split()
    assert status == "3"
    assert {"trio", "httpx", "mautrix", "rich", "sqlcipher3", "armorclaw.bridge"}.isdisjoint(modules)
