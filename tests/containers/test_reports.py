from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, cast

import attrs
import pytest
import trio
from trio.testing import MockClock

from armorclaw.clock import Clock, Surroundings
from armorclaw.config import AgentQuota
from armorclaw.containers import reports
from armorclaw.containers.reports import CLOSING, ERRORS, MAX_TASKS, PROGRESS_EVERY, REPORT_BYTES, Reports
from armorclaw.errors import ArmorclawError
from armorclaw.events.event import Event
from armorclaw.events.journal import Journal
from armorclaw.guard import alerts
from armorclaw.guard.alerts import Alerts
from armorclaw.guard.audit import AuditLog
from armorclaw.guard.quotas import MAX_AGENTS, SLOT, WINDOW, Quotas
from armorclaw.rpc.local import call_local
from armorclaw.rpc.registry import Registry, Role
from armorclaw.store import Database
from tests.events.inline_store import InlineDatabase

pytestmark = pytest.mark.mission("P1.4", "P1.5", "P1.6")


@attrs.define
class Agent:
    """What the fleet knows of one."""

    works: int = 0
    text: str = ""

    def worked(self) -> None:
        self.works += 1

    def tell_status(self, text: str) -> None:
        self.text = text


class Bridge:
    """Reports on a store without a thread."""

    def __init__(self, severity: str = "error") -> None:
        self.db = InlineDatabase()
        self.agents = {"ada": Agent(), "bob": Agent()}
        self.quota: AgentQuota | None = None
        self.alerts: list[tuple[str, Mapping[str, Any]]] = []
        around = Surroundings()
        journal = Journal(cast(Database, self.db), around.clock)

        async def sink(type: str, content: Mapping[str, Any], *, agent: str | None, also: object) -> None:  # noqa: A002
            await trio.lowlevel.checkpoint()
            assert agent is not None
            self.alerts.append((agent, content))

        async def note(*_: object, **__: object) -> None:
            await trio.lowlevel.checkpoint()

        audit = AuditLog(around)
        raised = Alerts(sink, audit)
        quotas = Quotas(lambda agent: self.quota, note=note, alerts=raised, stop=lambda *_: None, clock=Clock())
        self.reports = Reports(
            find=self.agents.get,
            journal=journal,
            audit=audit,
            alerts=raised,
            quotas=quotas,
            severity=severity,
            clock=around.clock,
        )
        self.registry = Registry()
        self.reports.register(self.registry)

    async def call(self, method: str, agent: str = "ada", **params: Any) -> Any:
        return await call_local(self.registry, method, params, role=Role.AGENT, agent=agent)

    async def report_until_refused(self) -> ArmorclawError:
        for _ in range(200):
            try:
                await self.call("agent.event", name="n", data="x" * 48_000)
            except ArmorclawError as error:
                return error
        raise AssertionError("nothing was refused")

    def events(self, kind: str = "%") -> list[tuple[str, str, dict[str, Any]]]:
        rows = self.db.conn.execute(
            "SELECT type, agent, content FROM journal WHERE type LIKE ? ORDER BY seq", (kind,)
        )
        return [(type_, agent, json.loads(content)) for type_, agent, content in rows]

    def done(self, task: str = "", agent: str = "ada") -> list[float]:
        """What was recorded of the progress of a task."""
        found = self.events("agent.progress")
        return [content["done"] for _, who, content in found if (who, content["task"]) == (agent, task)]

    def audited(self) -> list[dict[str, Any]]:
        bodies = [json.loads(body) for (body,) in self.db.conn.execute("SELECT body FROM audit ORDER BY seq")]
        return [{name: value for name, value in body.items() if name != "at_ms"} for body in bodies]


@pytest.fixture
def bridge() -> Bridge:
    return Bridge()


async def test_each_report_is_an_event_about_its_agent_and_a_sign_of_work(bridge: Bridge) -> None:
    await bridge.call("agent.status", text="reading the news")
    await bridge.call("agent.error", message="no feed", severity="info", traceback="Traceback …")
    await bridge.call("agent.event", name="feed.read", data={"items": [1, None, "ä"]})
    await bridge.call("agent.event", agent="bob", name="plain")
    assert bridge.events() == [
        ("agent.status", "ada", {"text": "reading the news"}),
        ("agent.error", "ada", {"severity": "info", "message": "no feed", "traceback": "Traceback …"}),
        ("agent.event", "ada", {"name": "feed.read", "data": {"items": [1, None, "ä"]}}),
        ("agent.event", "bob", {"name": "plain", "data": None}),
    ]
    assert (bridge.agents["ada"].works, bridge.agents["bob"].works) == (3, 1)


async def test_the_status_stands_beside_the_state_as_harmless_text(bridge: Bridge) -> None:
    await bridge.call("agent.status", text="reading\x1b[31m \ud800 more\nand more")
    assert bridge.agents["ada"].text == "reading [31m   more and more"
    await bridge.call("agent.status", text="x" * 500)
    assert bridge.agents["ada"].text == "x" * 500
    await bridge.call("agent.status", text="")
    assert bridge.agents["ada"].text == ""


async def test_status_and_errors_are_audited_and_nothing_else(bridge: Bridge) -> None:
    await bridge.call("agent.status", text="busy")
    await bridge.call("agent.error", message="no feed", severity="warning", traceback="where it was")
    await bridge.call("agent.event", name="n")
    assert bridge.audited() == [
        {"kind": "agent.status", "agent": "ada", "text": "busy"},
        {"kind": "agent.error", "agent": "ada", "severity": "warning", "message": "no feed"},
    ]


@pytest.mark.parametrize("least, told", [("info", 4), ("warning", 3), ("error", 2)])
async def test_an_error_as_severe_as_alerts_is_one(least: str, told: int) -> None:
    bridge = Bridge(least)
    severities = ["critical", "error", "warning", "info"]
    for severity in severities:
        await bridge.call("agent.error", message=f"it is {severity}\nreally", severity=severity)
    assert [content["severity"] for _, content in bridge.alerts] == severities[:told]
    assert bridge.alerts[0][0] == "ada"
    assert bridge.alerts[0][1]["text"] == "agent ada reports: it is critical really"
    assert len(bridge.events("agent.error")) == 4


@pytest.mark.parametrize(
    "method, params, field",
    [
        ("agent.status", {"text": "x" * 501}, "text"),
        ("agent.status", {}, "text"),
        ("agent.error", {"message": ""}, "message"),
        ("agent.error", {"message": "ä" * 2049}, "message"),
        ("agent.error", {"message": "m", "traceback": "x" * (32 * 1024 + 1)}, "traceback"),
        ("agent.error", {"message": "m", "severity": "fatal"}, "severity"),
        ("agent.event", {"name": ""}, "name"),
        ("agent.event", {"name": "x" * 65}, "name"),
        ("agent.event", {"name": "Upper"}, "name"),
        ("agent.event", {"name": "n\n"}, "name"),
        ("agent.event", {"name": "n", "data": "x" * (48 * 1024)}, "data"),
        ("agent.event", {"name": "n", "data": "ä" * 8_192}, "data"),
        ("agent.event", {"name": "n", "data": object()}, "data"),
        ("agent.progress", {"done": "one"}, "done"),
        ("agent.progress", {"done": float("nan")}, "done"),
        ("agent.progress", {"done": 1, "total": float("inf")}, "total"),
        ("agent.progress", {"done": 1, "message": "x" * 501}, "message"),
        ("agent.progress", {"done": 1, "task": "x" * 65}, "task"),
    ],
)
async def test_what_is_too_large_or_odd_is_refused_by_the_name_of_its_field(
    bridge: Bridge, method: str, params: dict[str, Any], field: str
) -> None:
    with pytest.raises(ArmorclawError) as caught:
        await bridge.call(method, **params)
    assert caught.value.name == "invalid_params"
    assert field in str(caught.value)
    assert "xxxx" not in str(caught.value)
    assert bridge.events() == []


@pytest.mark.parametrize(
    "method, params",
    [
        ("agent.status", {"text": "x" * 500}),
        ("agent.error", {"message": "ä" * 2048, "traceback": "x" * 32 * 1024}),
        ("agent.event", {"name": "az09._-", "data": "x" * (48 * 1024 - 2)}),
    ],
)
async def test_what_just_fits_is_taken(bridge: Bridge, method: str, params: dict[str, Any]) -> None:
    await bridge.call(method, **params)
    assert len(bridge.events()) == 1


@pytest.mark.parametrize("name", ["agent.status", "agent.error", "agent.event", "agent.progress"])
async def test_nobody_else_speaks_for_an_agent(bridge: Bridge, name: str) -> None:
    method = bridge.registry.get(name)
    assert method is not None
    assert method.roles == {Role.AGENT}


async def test_a_store_that_is_away_is_told_to_who_reports(bridge: Bridge) -> None:
    bridge.db.down = True
    with pytest.raises(ArmorclawError, match="not running"):
        await bridge.call("agent.status", text="busy")
    assert bridge.agents["ada"].text == ""


# -- how much of it


async def test_an_agent_that_reports_too_many_bytes_is_refused_until_a_minute_is_over(
    bridge: Bridge, autojump_clock: MockClock
) -> None:
    refused = await bridge.report_until_refused()
    assert "reported 4 MiB within a minute" in str(refused)
    assert (refused.name, refused.data["quota"]) == ("rate_limited", "report_bytes")
    taken = len(bridge.events())
    (kept,) = bridge.db.conn.execute("SELECT sum(length(content)) FROM journal").fetchone()
    assert REPORT_BYTES <= kept <= REPORT_BYTES + 50_000
    for method, params in (("agent.status", {"text": "t"}), ("agent.error", {"message": "m"})):
        with pytest.raises(ArmorclawError, match="within a minute"):
            await bridge.call(method, **params)
    await bridge.call("agent.event", agent="bob", name="n")
    assert len(bridge.events()) == taken + 1
    await trio.sleep(refused.data["retry_after"] + 0.001)
    await bridge.call("agent.event", name="n")


async def test_progress_beyond_the_bytes_waits_and_its_last_is_kept(
    bridge: Bridge, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    await nursery.start(bridge.reports.run)
    await bridge.report_until_refused()
    for done in range(5):
        await bridge.call("agent.progress", done=done)
        await trio.sleep(1)
    assert bridge.done() == []
    await trio.sleep(WINDOW + SLOT)
    assert bridge.done() == [4]


async def test_of_errors_without_end_ten_a_minute_are_alerts_and_the_rest_are_counted(
    bridge: Bridge, autojump_clock: MockClock
) -> None:
    for number in range(ERRORS + 7):
        await bridge.call("agent.error", message=f"no {number}")
    await bridge.call("agent.error", agent="bob", message="mine")
    assert [who for who, _ in bridge.alerts] == ["ada"] * ERRORS + ["bob"]
    assert len(bridge.events("agent.error")) == ERRORS + 8, "each is recorded"
    await trio.sleep(WINDOW + SLOT)
    await bridge.call("agent.error", message="again")
    await bridge.call("agent.error", message="and again")
    assert [content["text"] for _, content in bridge.alerts[-2:]] == [
        "agent ada reports: again (7 more since the last that was told)",
        "agent ada reports: and again",
    ]
    assert bridge.alerts[-2][1]["left_out"] == 7


@pytest.mark.parametrize("severity", ["info", "error"])
async def test_of_errors_without_end_the_log_has_ten_lines_a_minute(
    bridge: Bridge, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, severity: str
) -> None:
    lines: list[dict[str, Any]] = []
    for log in (reports.log, alerts.log):
        for level in ("warning", "error"):
            monkeypatch.setattr(log, level, lambda event, **fields: lines.append(fields))
    for _ in range(ERRORS + 7):
        await bridge.call("agent.error", message="no", severity=severity)
    assert len(lines) == ERRORS
    await trio.sleep(WINDOW + SLOT)
    await bridge.call("agent.error", message="again", severity=severity)
    assert "'left_out': 7" in str(lines[-1])


async def test_those_who_report_no_more_are_forgotten(bridge: Bridge, autojump_clock: MockClock) -> None:
    for number in range(3 * MAX_AGENTS):
        await bridge.call("agent.error", agent=f"a{number}", message="m")
        if number % MAX_AGENTS == 0:
            await trio.sleep(WINDOW + SLOT)
    assert len(bridge.reports._agents) <= 2 * MAX_AGENTS


# -- progress


async def test_of_progress_two_a_second_are_kept_and_always_the_last(
    bridge: Bridge, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    await nursery.start(bridge.reports.run)
    for done in range(100):
        await bridge.call("agent.progress", done=done, total=99, message=f"page {done}")
        await trio.sleep(0.02)  # 2 s in all
    await trio.sleep(2 * PROGRESS_EVERY)
    kept = bridge.done()
    assert 4 <= len(kept) <= 6
    assert kept == sorted(kept)
    assert (kept[0], kept[-1]) == (0, 99)
    assert bridge.events()[-1][2] == {"done": 99, "total": 99, "message": "page 99", "task": ""}
    await trio.sleep(10)
    assert bridge.done() == kept, "nothing is told twice"


async def test_tasks_and_agents_do_not_displace_each_other(
    bridge: Bridge, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    await nursery.start(bridge.reports.run)
    for done in (1, 2):
        for agent, task in (("ada", "one"), ("ada", "two"), ("bob", "one")):
            await bridge.call("agent.progress", agent=agent, done=done, task=task)
        await trio.sleep(0.1)
    await trio.sleep(1)
    assert bridge.done("one") == bridge.done("two") == bridge.done("one", "bob") == [1, 2]


async def test_of_too_many_tasks_at_once_the_next_is_refused_until_one_rests(
    bridge: Bridge, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    await nursery.start(bridge.reports.run)
    for number in range(MAX_TASKS):
        await bridge.call("agent.progress", done=1, task=f"t{number}")
    with pytest.raises(ArmorclawError, match="tells of 64 tasks at once"):
        await bridge.call("agent.progress", done=1, task="one more")
    await bridge.call("agent.progress", done=2, task="t3")
    await bridge.call("agent.progress", agent="bob", done=1, task="of another")
    await trio.sleep(5)
    await bridge.call("agent.progress", done=1, task="one more")
    await trio.sleep(1)
    assert bridge.done("one more") == [1]
    assert bridge.done("t3")[-1] == 2


async def test_progress_waits_for_a_store_that_is_away(
    bridge: Bridge, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    await nursery.start(bridge.reports.run)
    bridge.db.down = True
    await bridge.call("agent.progress", done=1)
    await trio.sleep(5.3)
    await bridge.call("agent.progress", done=2)
    bridge.db.down = False
    await trio.sleep(5)
    assert bridge.done() == [2]


async def test_progress_beyond_the_quota_of_events_waits_and_its_last_is_kept(
    bridge: Bridge, nursery: trio.Nursery, autojump_clock: MockClock
) -> None:
    bridge.quota = AgentQuota(events=3)
    await nursery.start(bridge.reports.run)
    for done in range(20):
        await bridge.call("agent.progress", done=done)
        await trio.sleep(1)
    assert bridge.done() == [0, 1, 2]
    await trio.sleep(60)
    assert bridge.done() == [0, 1, 2, 19]


async def test_when_all_is_stopped_the_last_progress_is_recorded(bridge: Bridge, autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(bridge.reports.run)
        await bridge.call("agent.progress", done=1)
        await trio.sleep(0.1)
        await bridge.call("agent.progress", done=2)
        nursery.cancel_scope.cancel(reason="the bridge stops")
    assert bridge.done() == [1, 2]
    async with trio.open_nursery() as nursery:  # and it goes on where it was
        await nursery.start(bridge.reports.run)
        await bridge.call("agent.progress", done=3)
        await trio.sleep(1)
        nursery.cancel_scope.cancel(reason="the bridge stops")
    assert bridge.done() == [1, 2, 3]


async def test_a_store_that_hangs_does_not_keep_the_bridge_from_stopping(
    bridge: Bridge, monkeypatch: pytest.MonkeyPatch, autojump_clock: MockClock
) -> None:
    async def hang(*_: object, **__: object) -> None:
        await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        await nursery.start(bridge.reports.run)
        monkeypatch.setattr(bridge.db, "write", hang)
        await bridge.call("agent.progress", done=1)
        await trio.sleep(0.1)
        began = trio.current_time()
        nursery.cancel_scope.cancel(reason="the bridge stops")
    assert trio.current_time() - began <= CLOSING


def test_events_of_reports_are_small_enough_for_everybody() -> None:
    """The largest that is taken still fits into an event."""
    Event.make("agent.error", {"message": "ä" * 2048, "traceback": "ä" * 16 * 1024}, at_ms=0)
