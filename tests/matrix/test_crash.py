"""What is logged when a session ends by an error; that it is started again is the supervisor's part."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing
from structlog.testing import capture_logs

from armorclaw.clock import Surroundings
from armorclaw.config import Account
from armorclaw.errors import ArmorclawError
from armorclaw.guard.grants import Grants
from armorclaw.matrix.accounts import Accounts


async def _logs_of(error: Exception, monkeypatch: pytest.MonkeyPatch) -> Any:
    nothing: Any = None

    class Database:
        async def read(self, work: object) -> dict[str, str]:
            return {}  # no alias was ever looked up

    empty: Any = Database()
    accounts = Accounts(
        {"main": Account(homeserver="http://x", user="bot")},
        db=empty,
        journal=nothing,
        outbox=nothing,
        grants=Grants(),
        around=Surroundings(),
    )

    class Session:
        runs = 0

        async def run(self) -> None:
            Session.runs += 1
            await trio.sleep(1)
            if Session.runs == 1:
                raise error
            await trio.sleep_forever()

    monkeypatch.setattr(accounts, "_session", lambda entry: Session())
    with capture_logs() as logs:
        async with trio.open_nursery() as nursery:
            await nursery.start(accounts.run)
            await trio.sleep(10)
            nursery.cancel_scope.cancel(reason="seen enough")
    assert Session.runs == 2
    return [line for line in logs if line["log_level"] == "error"]


async def test_a_known_failure_is_one_line(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    error = ArmorclawError("storage_failed", "the database", why="no space left")
    assert await _logs_of(error, monkeypatch) == [
        {
            "event": "child failed",
            "log_level": "error",
            "supervisor": "matrix",
            "child": "main",
            "why": "the database: no space left",
        }
    ]


async def test_a_bug_is_logged_with_its_traceback(
    autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    (line,) = await _logs_of(ValueError("odd"), monkeypatch)
    assert (line["event"], line["supervisor"], line["child"]) == ("child crashed", "matrix", "main")
    assert line["trace"].startswith("Traceback")
    assert "in run" in line["trace"]
    assert "ValueError: odd" in line["trace"]
