"""`armorclaw config`: what is wrong, what would run, and where each value comes from."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from armorclaw.config import Config
from armorclaw.config_layers import effective
from tests.cli.conftest import Run

FILE = """\
[bridge]
state_dir = "state"
[accounts.main]
homeserver = "https://m.here.org"
user = "@bot:here.org"
[agents.echo]
code = "/srv/echo"
rooms = ["!a:here.org"]
keys = ["openai-default"]
env = { "odd name" = "é\\" \\u0007" }
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "c.toml"
    made.write_text(FILE.replace('"odd name"', "ODD"))
    return made


def test_what_would_run(run: Run, file: Path) -> None:
    done = run("config", "check", "--config", str(file), "--set", "bridge.socket=/s")
    assert (done.status, done.err) == (0, "")
    assert done.out.splitlines() == [
        f"files    {file}",
        "bridge   /s",
        "matrix   main             @bot:here.org at https://m.here.org",
        "agent    echo             auto         1 room, 1 key  /srv/echo",
    ]
    said = json.loads(run("config", "check", "--config", str(file), "--json").out)
    assert said == {"files": [str(file)], "accounts": ["main"], "agents": ["echo"], "routes": []}


ROUTES = """
[access]
trusted = ["@alice:here.org"]
[accounts.second]
homeserver = "https://m.here.org"
user = "@two:here.org"
[agents.other]
code = "/srv/other"
account = "second"
[[routes]]
room = "#books:here.org"
agent = "other"
respond = "mention"
[[routes]]
dm = true
agent = "echo"
"""


def test_who_would_answer_where(run: Run, file: Path) -> None:
    file.write_text(file.read_text() + ROUTES)
    assert run("config", "check", "--config", str(file)).out.splitlines()[-2:] == [
        "route    second           #books:here.org → other  mention",
        "route    main             direct chats → echo  always",
    ]
    said = json.loads(run("config", "check", "--config", str(file), "--json").out)
    assert said["routes"] == [
        {"account": "second", "room": "#books:here.org", "agent": "other", "respond": "mention"},
        {"account": "main", "dm": True, "agent": "echo", "respond": "always"},
    ]


def test_what_is_wrong(run: Run, file: Path) -> None:
    file.write_text('[bridge]\nuid_base = "low"\ncolour = 1\n')
    for verb in ("check", "show"):
        done = run("config", verb, "--config", str(file))
        assert (done.status, done.out) == (11, "")
        first, one, two, hint = done.err.splitlines()
        assert first == f"armorclaw: {file}: 2 faults"
        assert one.startswith(f"why: {file}:3: bridge.colour: there is no such key → remove it")
        assert two.startswith(f"     {file}:2: bridge.uid_base: 'low' is not a whole number → ")
        assert hint.startswith("hint: ")


@pytest.mark.parametrize("words", [["config", "check"], ["config", "show"], ["run"], ["status"]])
def test_a_file_that_is_not_there(run: Run, words: list[str]) -> None:
    done = run(*words, "--config", "/nonexistent/c.toml")
    assert (done.status, done.out) == (11, "")
    assert done.err.startswith("armorclaw: cannot read /nonexistent/c.toml\nwhy: No such file or directory\nhint: ")


def test_what_is_shown_is_a_configuration_of_the_same_effect(run: Run, file: Path) -> None:
    shown = run("config", "show", "--origin", "--config", str(file)).out
    assert "\x07" not in shown
    assert Config.parse(tomllib.loads(shown)) == effective(file, environ={}).config


def test_origins(run: Run, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ARMORCLAW_BRIDGE_UID_BASE", "20000")
    words = ["config", "show", "--config", str(file), "--set", "agents.echo.limits.pids=9"]
    lines = run(*words, "--origin").out.splitlines()
    assert f'bridge.state_dir = "{file.parent}/state"  # {file}:2' in lines
    assert "bridge.uid_base = 20000  # ARMORCLAW_BRIDGE_UID_BASE" in lines
    assert "agents.echo.limits.pids = 9  # --set agents.echo.limits.pids" in lines
    assert "# bridge.engine_socket is not set  # default" in lines
    assert "#" not in run(*words).out.replace("# bridge.", "").replace("# agents.", "").replace("# accounts.", "")
    rows = [json.loads(line) for line in run(*words, "--origin", "--json").out.splitlines()]
    assert {"key": "bridge.uid_base", "value": 20000, "origin": "ARMORCLAW_BRIDGE_UID_BASE"} in rows
    assert {"key": "bridge.uid_base", "value": 20000} in [
        json.loads(line) for line in run(*words, "--json").out.splitlines()
    ]
