"""Why generations ended: what an exit means, what is kept, and what must not be told."""

from __future__ import annotations

from typing import cast

import attrs
import pytest

from armorclaw.containers.ends import KEPT, SUSPECTED, TEXT, End, EndLog, Reason, without_paths
from armorclaw.containers.spec import Exit
from armorclaw.store import Database
from tests.events.inline_store import InlineDatabase

pytestmark = pytest.mark.mission("P0.2")


@pytest.mark.parametrize(
    ("exit", "seen", "cause", "oom", "text"),
    [
        (Exit.of(0), None, "exit", None, "exit 0"),
        (Exit.of(3), False, "exit", False, "exit 3"),
        (Exit.of(3), True, "oom", True, "exit 3, out of memory seen"),
        (Exit.of(3, oom=True), None, "oom", True, "exit 3, out of memory seen"),
        (Exit.of(3, oom=False), True, "oom", True, "exit 3, out of memory seen"),
        (Exit.of(0), True, "exit", True, "exit 0, out of memory seen"),
        (Exit.of(137), None, "signal", None, SUSPECTED),
        (Exit.of(137), False, "signal", False, "killed by SIGKILL"),
        (Exit.of(137, oom=False), None, "signal", False, "killed by SIGKILL"),
        (Exit.of(137, oom=True), None, "oom", True, "killed by SIGKILL, out of memory"),
        (Exit.of(137), True, "oom", True, "killed by SIGKILL, out of memory"),
        (Exit.of(139), None, "signal", None, "killed by SIGSEGV"),
    ],
)
def test_what_an_exit_means(exit: Exit, seen: bool | None, cause: str, oom: bool | None, text: str) -> None:  # noqa: A002
    reason = Reason.of_exit(exit, seen)
    assert reason.exit is not None
    assert (reason.cause, reason.exit.oom, reason.text) == (cause, oom, text)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("exit 3", "exit 3"),
        ("cannot read /srv/agents/echo/main.py: it is not there", "cannot read …/main.py: it is not there"),
        ("'/var/lib/armorclaw/x' and /etc", "'…/x' and …/etc"),
        ("ratio 3/4, docker.io/library/python, https://a.b/c", "ratio 3/4, docker.io/library/python, https://a.b/c"),
        ("first\nTraceback: /srv", "first"),
        ("x" * 2000, "x" * TEXT),
    ],
)
def test_no_place_of_the_host_is_told(text: str, told: str) -> None:
    assert without_paths(text) == told


async def test_the_last_are_kept_for_each_agent() -> None:
    db = InlineDatabase()
    log = EndLog(cast(Database, db))
    end = End(1, "c", 5, 6, "oom", None, 9, True, "killed")
    for number in range(KEPT + 5):
        await log.keep("ada", attrs.evolve(end, generation=number))
    other = attrs.evolve(end, oom=None, code=0, signal=None)
    await log.keep("bob", other)
    assert [each.generation for each in await log.of("ada")] == list(range(5, KEPT + 5))
    assert await log.of("ada") == [attrs.evolve(end, generation=number) for number in range(5, KEPT + 5)]
    assert await log.of("bob") == [other]
    assert await log.of("eve") == []
    assert db.conn.execute("SELECT count(*) FROM ends").fetchone() == (KEPT + 1,)
    db.close()
