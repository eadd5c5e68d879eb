"""Why generations ended: what an exit means, what is kept, and what must not be told."""

from __future__ import annotations

from typing import cast

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from armorclaw.containers.ends import KEPT, SUSPECTED, TEXT, Begun, End, EndLog, Reason, without_paths
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
        (Exit.of(137), False, "signal", False, "killed by SIGKILL (or exit 137)"),
        (Exit.of(137, oom=False), None, "signal", False, "killed by SIGKILL (or exit 137)"),
        (Exit.of(137, oom=True), None, "oom", True, "killed by SIGKILL, out of memory"),
        (Exit.of(137), True, "oom", True, "killed by SIGKILL (or exit 137), out of memory"),
        (Exit.of(139), None, "signal", None, "killed by SIGSEGV (or exit 139)"),
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
        ("no unix:///run/user/1000/docker.sock", "no unix:…/docker.sock"),
        ("file:///home/ann/x, file://localhost/home/ann/x", "file:…/x, file:…/x"),
        ("//home/ann///x", "…/x"),
        ("/home/ann lee/x: no", "…/x: no"),
        ("/home/ann o'lee/x and (/etc/y)", "…/x and (…/y)"),
        ("tcp://10.0.0.1/a/b", "tcp://10.0.0.1/a/b"),
        ("first\nTraceback: /srv", "first"),
        ("x" * 2000, "x" * TEXT),
    ],
)
def test_no_place_of_the_host_is_told(text: str, told: str) -> None:
    assert without_paths(text) == told


@given(st.text("/…a :'\"(x.hfile", max_size=60))
def test_told_twice_it_is_the_same(text: str) -> None:
    told = without_paths(text)
    assert without_paths(told) == told


async def test_what_has_no_end_is_remembered_until_it_has() -> None:
    db = InlineDatabase()
    log = EndLog(cast(Database, db))
    assert await log.unfinished("ada") is None
    for container in ("a", "b"):
        await log.begin("ada", Begun(2, container, 1000, False))
    await log.keep("ada", Begun(1, "a", 0, False).lost(5))  # of another one: it says nothing of this
    begun = await log.unfinished("ada")
    assert begun == Begun(2, "b", 1000, False)
    assert begun.lost(4000) == End(2, "b", 4000, 3000, "bridge", None, None, None, "did not outlive its bridge")
    await log.keep("ada", begun.lost(4000))
    assert await log.unfinished("ada") is None
    db.close()


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
