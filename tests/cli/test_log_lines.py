"""What `containers logs` makes of the pieces of a log."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from armorclaw.cli import containers
from armorclaw.cli.log_lines import LogLines
from armorclaw.errors import ArmorclawError
from tests.cli.conftest import FakeBridge, Run, Stream

TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3} ")
END = {"lines": 1, "bytes": 1, "truncated": False}


def lines(capsys: pytest.CaptureFixture[str], *pieces: tuple[str, str, int | None], times: bool = True) -> str:
    shown = LogLines(times=times)
    for stream, text, at_ms in pieces:
        shown.show({"stream": stream, "text": text, **({} if at_ms is None else {"at_ms": at_ms})})
    return capsys.readouterr().out


def test_each_line_has_its_time(capsys: pytest.CaptureFixture[str]) -> None:
    out = lines(capsys, ("stdout", "one\ntw", 1_700_000_000_123), ("stdout", "o\nthree\n", 1_700_000_001_000))
    assert [TIME.sub("T ", line) for line in out.splitlines()] == ["T one", "T two", "T three"]
    assert out.splitlines()[0][19:24] == ".123 "


def test_another_stream_begins_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    out = lines(capsys, ("stdout", "half", 0), ("stderr", "oh\n", 0), ("stdout", "er\n", 0))
    assert [TIME.sub("", line) for line in out.splitlines()] == ["half", "oh", "er"]


def test_a_time_that_is_not_known(capsys: pytest.CaptureFixture[str]) -> None:
    assert lines(capsys, ("output", "x\n", None)) == " " * 24 + "x\n"


def test_without_times_it_is_as_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    pieces = [("stdout", "half", 1), ("stderr", "\x1b[1moh\u2028\n", 1)]
    assert lines(capsys, *pieces, times=False) == "half\x1b[1moh\u2028\n"


def test_errors_are_red_on_a_terminal(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    out = lines(capsys, ("stdout", "fine\n", 0), ("stderr", "\x1b[2Joh\n", 0), times=False)
    assert out == "fine\n\x1b[31m�[2Joh\x1b[0m\n"


@pytest.mark.parametrize("word", ["-t", "--timestamps"])
def test_times_are_asked_for(run: Run, fake: FakeBridge, word: str) -> None:
    fake.answers["containers.logs"] = Stream([{"stream": "stdout", "text": "a\n", "at_ms": 1_700_000_000_000}], END)
    assert TIME.match(run("containers", "logs", "a", word).out)
    assert fake.asked == [("containers.logs", {"name": "a", "follow": False, "timestamps": True})]
    assert run("containers", "logs", "a", "--no-timestamps").out == "a\n"


def test_a_follower_goes_on_when_the_engine_is_back(
    run: Run, fake: FakeBridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(containers, "ENGINE_PAUSE", 0.01)
    answers: list[Any] = [
        Stream([{"stream": "stdout", "text": "a\n", "at_ms": 5000}], ends=True),
        ArmorclawError("engine_unreachable", "gone"),
        Stream([{"stream": "stdout", "text": "b\n", "at_ms": 9000}], END),
    ]
    answers[0] = ArmorclawError("engine_unreachable", "gone")
    fake.answers["containers.logs"] = lambda params: answers.pop(0)
    done = run("containers", "logs", "a", "-f", "--since", "1000000d")
    assert (done.status, done.out) == (0, "b\n")
    assert done.err.count("the engine is lost") == 2
    assert fake.asked[-1][1] == {
        "name": "a",
        "follow": True,
        "tail": containers.MOST_LINES,
        "since_ms": 0,
        "timestamps": True,
    }
    answers.append(ArmorclawError("engine_unreachable", "gone"))
    assert run("containers", "logs", "a").status == 75  # who does not follow is told


def test_json_is_as_it_came(run: Run, fake: FakeBridge) -> None:
    piece = {"stream": "stdout", "text": "a\n", "at_ms": 1}
    fake.answers["containers.logs"] = Stream([piece], END)
    assert json.loads(run("containers", "logs", "a", "-f", "--json").out) == piece
