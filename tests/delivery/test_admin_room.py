from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from armorclaw.clock import Surroundings
from armorclaw.config import AlertsSection
from armorclaw.delivery.admin_room import (
    CRITICAL_PER_MINUTE,
    MAX_LEFT_OUT,
    MINUTE,
    PER_AGENT,
    PER_MINUTE,
    REPORTS_PER_AGENT,
    REPORTS_PER_MINUTE,
    TEXT_LIMIT,
    AdminRoom,
    composed,
)
from armorclaw.delivery.outbox import Outbox
from armorclaw.delivery.transport import Refused
from armorclaw.errors import ArmorclawError
from armorclaw.events.event import Event
from armorclaw.events.journal import Journal
from armorclaw.events.pushing.subscription import Subscription
from armorclaw.events.subscriptions import Subscriptions
from armorclaw.guard.alerts import Alerts
from armorclaw.guard.audit import AuditLog
from armorclaw.store import Database

ROOM = "!ops:x"


class Membership:
    """The accounts, as far as they matter here."""

    def __init__(self) -> None:
        self.joined = trio.Event()
        self.joined.set()
        self.rooms = {"#ops:x": ROOM}

    async def until_joined(self, account: str, rooms: Iterable[str]) -> None:
        await self.joined.wait()

    def room_id(self, account: str, room: str) -> str | None:
        return self.rooms.get(room) if room.startswith("#") else room


class Bridge:
    """Alerts, the room for them, and the outbox between, on a store that outlives them."""

    def __init__(self, world: Any) -> None:
        self.world = world
        self.membership = Membership()
        self.section = AlertsSection(room=ROOM)
        self.around = Surroundings()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        db = cast(Database, self.world.db)
        journal = Journal(db, self.around.clock)
        subscriptions = Subscriptions(db, journal, self.around)
        audit = AuditLog(self.around)
        self.outbox: Outbox = self.world.reopen()

        async def sink(type: str, content: Any, *, agent: str | None, also: Any) -> None:  # noqa: A002
            await journal.record([Event.make(type, content, at_ms=0, agent=agent)], also=also)

        self.journal = journal
        self.alerts = Alerts(sink, audit)
        self.room = AdminRoom(self.section, subscriptions, self.outbox, self.membership, self.around)
        async with trio.open_nursery() as nursery:
            await nursery.start(self.outbox.serve, "main", self.world.server)
            await nursery.start(self.room.run)
            yield
            nursery.cancel_scope.cancel(reason="the test is over")

    async def raise_alert(self, text: str = "agent echo died", agent: str | None = "echo", **more: Any) -> None:
        name = more.pop("name", "agent_failed")
        await self.alerts.raise_alert(name, more.pop("severity", "error"), text, agent=agent, **more)

    def texts(self) -> list[str]:
        return [body for _, body in self.world.server.visible]

    def firsts(self) -> list[str]:
        """The first lines of what people read."""
        return [text.splitlines()[0] for text in self.texts()]


@pytest.fixture
def bridge(world: Any) -> Bridge:
    return Bridge(world)


async def settled() -> None:
    await trio.sleep(0.5)


@pytest.mark.mission("P0.3")
async def test_an_alert_is_a_message_that_says_what_why_and_what_next(
    bridge: Bridge, autojump_clock: MockClock
) -> None:
    async with bridge.running():
        await bridge.raise_alert("agent echo was given up after 6 starts", why="exit 1")
        await settled()
        (delivery,) = await bridge.outbox.latest(5)
    assert bridge.texts() == [
        "error: agent echo was given up after 6 starts\nwhy: exit 1\nnext: armorclaw containers inspect echo"
    ]
    assert (delivery.state, delivery.room_id, delivery.agent) == ("sent", ROOM, "")


@pytest.mark.parametrize(
    "least, told",
    [
        ("info", ["info", "warning", "error", "critical"]),
        ("warning", ["warning", "error", "critical"]),
        ("error", ["error", "critical"]),
    ],
)
async def test_only_what_is_severe_enough(
    bridge: Bridge, autojump_clock: MockClock, least: Any, told: list[str]
) -> None:
    bridge.section = AlertsSection(room=ROOM, severity=least)
    async with bridge.running():
        for severity in ("info", "warning", "error", "critical"):
            await bridge.raise_alert(severity=severity)
        await settled()
    assert [text.partition(":")[0] for text in bridge.firsts()] == told


async def test_none_is_told_twice_and_none_is_forgotten_over_restarts(
    bridge: Bridge, autojump_clock: MockClock
) -> None:
    async with bridge.running():
        await bridge.raise_alert("one")
        await settled()
    async with bridge.running():
        await settled()
        assert bridge.firsts() == ["error: one"]
        bridge.membership.joined = trio.Event()
    async with bridge.running():  # the account is not in the room all the while
        await bridge.raise_alert("two")
        await settled()
        assert bridge.firsts() == ["error: one"]
    bridge.membership.joined.set()
    async with bridge.running():
        await settled()
    assert bridge.firsts() == ["error: one", "error: two"]


class KilledError(Exception):
    """The end of the process: from here on nothing happens any more."""


@pytest.mark.parametrize("commit", range(14))
async def test_killed_at_any_commit_it_tells_each_once(
    bridge: Bridge, autojump_clock: MockClock, commit: int
) -> None:
    async with bridge.running():
        pass  # the cursor is there
    passed = 0

    def point(name: str) -> None:
        nonlocal passed
        passed += 1
        if passed > commit:
            raise KilledError

    bridge.world.db.point = point
    try:
        async with bridge.running():
            await bridge.raise_alert("one")
            await bridge.raise_alert("two")
            await settled()
            raise KilledError
    except* KilledError:
        pass
    bridge.world.db.point = lambda name: None
    async with bridge.running():
        await settled()
    (recorded,) = bridge.world.db.conn.execute("SELECT count(*) FROM journal WHERE type = 'alert'").fetchone()
    assert bridge.firsts() == ["error: one", "error: two"][:recorded]


async def test_of_a_flood_ten_are_told_and_then_how_many_were_not(bridge: Bridge, autojump_clock: MockClock) -> None:
    agents = [f"agent{number}" for number in range(30)]
    async with bridge.running():
        for agent in agents:
            await bridge.raise_alert(f"{agent} died", agent=agent)
        await settled()
        assert bridge.firsts() == [f"error: {agent} died" for agent in agents[:PER_MINUTE]]
        await trio.sleep(MINUTE)
        last = bridge.texts()[-1]
        assert len(bridge.texts()) == PER_MINUTE + 1
        assert last.startswith("20 more alerts were left out here: agent10 1, agent11 1,")
        assert last.endswith(" 15 others\nnext: armorclaw events tail")
        await bridge.raise_alert("later")
        await settled()
    assert bridge.firsts()[-1] == "error: later"
    assert len(bridge.texts()) == PER_MINUTE + 2


async def test_one_agent_leaves_room_for_the_others(bridge: Bridge, autojump_clock: MockClock) -> None:
    async with bridge.running():
        for number in range(40):
            await bridge.raise_alert(f"{number}", agent="echo")
        await bridge.raise_alert("the disk is full", agent=None)
        await bridge.raise_alert("ada died", agent="ada")
        await settled()
        assert bridge.firsts() == [f"error: {number}" for number in range(PER_AGENT)] + [
            "error: the disk is full",
            "error: ada died",
        ]
        await trio.sleep(MINUTE)
    assert bridge.firsts()[-1] == f"{40 - PER_AGENT} more alerts were left out here: echo 35"


async def test_what_agents_report_leaves_room_for_what_the_bridge_says(
    bridge: Bridge, autojump_clock: MockClock
) -> None:
    async with bridge.running():
        for number in range(40):
            await bridge.raise_alert(f"evil {number}", agent="evil", name="agent_error", severity="critical")
        for number in range(40):
            await bridge.raise_alert(f"more {number}", agent=f"evil{number}", name="agent_error")
        await bridge.raise_alert("evil was given up", agent="evil")
        await bridge.raise_alert("ada was given up", agent="ada")
        await settled()
        reported = [text for text in bridge.firsts() if "given up" not in text]
        assert [text for text in bridge.firsts() if "given up" in text] == [
            "error: evil was given up",
            "error: ada was given up",
        ]
        assert sum("evil" in text for text in reported) == REPORTS_PER_AGENT
        assert len(reported) == REPORTS_PER_MINUTE
        await trio.sleep(MINUTE)
    assert bridge.firsts()[-1].startswith("76 more alerts were left out here: evil 38,")


async def test_what_is_critical_goes_ahead(bridge: Bridge, autojump_clock: MockClock) -> None:
    async with bridge.running():
        for number in range(PER_MINUTE + 3):
            await bridge.raise_alert(f"{number}", agent=f"a{number}")
        for number in range(CRITICAL_PER_MINUTE + 1):
            await bridge.raise_alert(f"the disk is full {number}", agent=None, severity="critical")
        await settled()
    assert sum(text.startswith("critical") for text in bridge.firsts()) == CRITICAL_PER_MINUTE


async def test_what_was_left_out_comes_again_if_nobody_was_told_of_it(
    bridge: Bridge, autojump_clock: MockClock
) -> None:
    texts = [f"{number}" for number in range(PER_AGENT + 3)]
    async with bridge.running():
        for text in texts:
            await bridge.raise_alert(text)
        await settled()
        assert len(bridge.texts()) == PER_AGENT
    async with bridge.running():
        await settled()
        assert bridge.firsts() == [f"error: {text}" for text in texts]
        await trio.sleep(2 * MINUTE)
    async with bridge.running():
        await settled()
    assert len(bridge.texts()) == len(texts), "and no summary of them"


async def test_what_was_left_out_is_told_once(bridge: Bridge, autojump_clock: MockClock) -> None:
    async with bridge.running():
        for number in range(PER_AGENT + 10):
            await bridge.raise_alert(f"{number}")
        await trio.sleep(2 * MINUTE)
        assert bridge.firsts()[-1] == "10 more alerts were left out here: echo 10"
        for number in range(PER_AGENT + 1):
            await bridge.raise_alert(f"later {number}")
        await trio.sleep(3 * MINUTE)
        assert bridge.firsts()[-1] == "1 more alert was left out here: echo 1"
    count = len(bridge.texts())
    async with bridge.running():
        await trio.sleep(120 * MINUTE)
    assert len(bridge.texts()) == count


async def test_each_that_is_left_out_is_counted_once_whatever_the_store_does(
    bridge: Bridge, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bridge.running():
        ack, fails = Subscription.ack, 3

        async def sometimes(self: Subscription, seq: int, *, cumulative: bool = False) -> None:
            nonlocal fails
            if len(bridge.room._left_out) > 4 and fails:
                fails -= 1
                raise ArmorclawError("unavailable", "later")
            if cumulative and fails > -1:
                fails -= 1
                raise ArmorclawError("unavailable", "later")
            await ack(self, seq, cumulative=cumulative)

        monkeypatch.setattr(Subscription, "ack", sometimes)
        for number in range(PER_AGENT + 10):
            await bridge.raise_alert(f"{number}")
            await bridge.raise_alert("nobody cares", severity="info")
        await trio.sleep(5 * MINUTE)
    assert fails == -1
    assert [text for text in bridge.firsts() if "left out" in text] == ["10 more alerts were left out here: echo 10"]
    assert len(bridge.texts()) == PER_AGENT + 1


async def test_of_very_many_left_out_the_number_is_kept(
    bridge: Bridge, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bridge.running():
        for _ in range(PER_AGENT + MAX_LEFT_OUT + 20):
            await bridge.raise_alert()
        await settled()
        assert len(bridge.room._left_out) == MAX_LEFT_OUT
        await bridge.raise_alert("ada died", agent="ada")
        await settled()
        assert bridge.firsts()[-1] == "error: ada died"
        await trio.sleep(2 * MINUTE)
    assert bridge.firsts()[-1] == f"{MAX_LEFT_OUT + 20} more alerts were left out here: echo {MAX_LEFT_OUT + 20}"


async def test_no_minute_has_more_than_ten(bridge: Bridge, autojump_clock: MockClock) -> None:
    async with bridge.running():
        for number in range(400):
            await bridge.raise_alert(agent=f"a{number % 7}")
            await trio.sleep(1)
        await trio.sleep(2 * MINUTE)
    times = [at for at, _, _, _ in bridge.world.server.attempts]
    assert len(times) > 50
    assert all(later - earlier >= MINUTE - 0.1 for earlier, later in zip(times, times[PER_MINUTE:], strict=False))


async def test_a_room_that_refuses_makes_no_loop(bridge: Bridge, autojump_clock: MockClock) -> None:
    refused = Refused("room_encrypted: it is encrypted")
    bridge.world.server.trouble[ROOM].extend([refused] * 5)
    async with bridge.running():
        await bridge.raise_alert()
        await trio.sleep(600)
        (delivery,) = await bridge.outbox.latest(5)
    assert delivery.state == "failed"
    assert len(bridge.world.server.attempts) == 1
    async with bridge.running():
        await trio.sleep(600)
    assert len(bridge.world.server.attempts) == 1


async def test_a_store_that_restarts_is_waited_for(bridge: Bridge, autojump_clock: MockClock) -> None:
    async with bridge.running():
        bridge.membership.joined = trio.Event()
        await bridge.raise_alert("one")
        bridge.world.db.down = True
        bridge.membership.joined.set()
        await trio.sleep(20)
        bridge.world.db.down = False
        await trio.sleep(60)
    assert bridge.firsts() == ["error: one"]


async def test_a_full_outbox_is_waited_for(
    bridge: Bridge, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with bridge.running():
        full = ArmorclawError("queue_full", "too many messages")
        enqueue = bridge.outbox.enqueue

        async def refuse(out: object) -> None:
            await trio.lowlevel.checkpoint()
            raise full

        monkeypatch.setattr(bridge.outbox, "enqueue", refuse)
        await bridge.raise_alert("one")
        await trio.sleep(10)
        monkeypatch.setattr(bridge.outbox, "enqueue", enqueue)
        await trio.sleep(60)
    assert bridge.firsts() == ["error: one"]


async def test_an_alias_is_the_room_it_names_by_then(bridge: Bridge, autojump_clock: MockClock) -> None:
    bridge.section = AlertsSection(room="#ops:x")
    bridge.membership.rooms = {}
    async with bridge.running():
        await bridge.raise_alert("one")
        await trio.sleep(5)
        assert bridge.texts() == []
        bridge.membership.rooms = {"#ops:x": ROOM}
        await trio.sleep(60)
    assert bridge.world.server.bodies(ROOM) == bridge.texts() != []


@pytest.mark.parametrize("wait", ["for the room", "for an alert", "to say what was left out", "for the store"])
async def test_cancelled_while_it_waits(bridge: Bridge, autojump_clock: MockClock, wait: str) -> None:
    if wait == "for the room":
        bridge.membership.joined = trio.Event()
    async with bridge.running():
        for _ in range(PER_AGENT + 1 if wait.startswith("to say") else 0):
            await bridge.raise_alert()
        await settled()
        if wait == "for the store":
            await bridge.raise_alert()
            bridge.world.db.down = True
            await settled()


async def test_nobody_can_call_a_whole_room_by_an_alert(bridge: Bridge, autojump_clock: MockClock) -> None:
    async with bridge.running():
        contents: list[bytes] = []
        enqueue = bridge.outbox.enqueue

        async def watched(out: Any) -> Any:
            contents.append(out.content)
            return await enqueue(out)

        bridge.outbox.enqueue = watched  # type: ignore[method-assign]
        await bridge.raise_alert("@room look!")
        await settled()
    assert b'"m.mentions":{}' in contents[0]


@pytest.mark.parametrize("severity", [[], {}, None, 5, "dire"])
async def test_a_severity_that_is_none_is_the_least(bridge: Bridge, severity: Any, autojump_clock: MockClock) -> None:
    async with bridge.running():
        odd = Event.make("alert", {"severity": severity, "text": [1], "why": {"x": 1}}, at_ms=0)
        await bridge.journal.record([odd])
        await bridge.raise_alert("and the next")
        await settled()
    assert bridge.firsts() == ["error: and the next"]


async def test_what_somebody_says_in_a_room_is_no_alert(bridge: Bridge, autojump_clock: MockClock) -> None:
    """Nor does it come again, or keep a later one from being told."""
    whose = {"account": "main", "room_id": "!r:x", "sender": "@evil:x"}
    contents: list[dict[str, Any]] = [{"severity": "critical", "text": "lies"}, {"severity": []}, {}]
    said = [
        Event.make("alert", each, at_ms=0, event_id=f"${number}", **whose) for number, each in enumerate(contents)
    ]
    for _ in range(2):
        async with bridge.running():
            await bridge.journal.record(said)
            await bridge.raise_alert("the truth")
            await settled()
    assert bridge.firsts() == ["error: the truth"] * 2


@pytest.mark.parametrize(
    "content, agent, text",
    [
        ({"text": "it died"}, "ada", "error: it died\nagent: ada\nnext: armorclaw containers inspect ada"),
        ({"severity": "warning", "text": "no disk"}, None, "warning: no disk\nnext: armorclaw status"),
        ({"text": "x", "next": "armorclaw matrix login"}, None, "error: x\nnext: armorclaw matrix login"),
        ({"name": "odd"}, None, "error: odd\nnext: armorclaw status"),
    ],
)
def test_the_words(content: dict[str, Any], agent: str | None, text: str) -> None:
    assert composed({"severity": "error", **content}, agent) == text


def test_words_without_end_keep_what_to_do_next() -> None:
    text = composed({"severity": "error", "text": "x" * 10_000}, "ada")
    assert len(text) == TEXT_LIMIT
    assert text.endswith("…\nnext: armorclaw containers inspect ada")
