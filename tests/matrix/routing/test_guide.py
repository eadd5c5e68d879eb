from __future__ import annotations

import json

import trio
import trio.testing
from structlog.testing import capture_logs

from armorclaw.config import AccessSection
from armorclaw.matrix.routing.guide import TELLING_MS, WAITING
from tests.events.inline_store import InlineDatabase
from tests.matrix.routing.house import ALICE, STRANGER, House

TRUSTED = AccessSection(trusted=(ALICE,))
ORDERS = AccessSection(trusted=(ALICE,), commands=(ALICE,))


def house(access: AccessSection = TRUSTED, db: InlineDatabase | None = None) -> House:
    made = House({"echo": []}, access=access, db=db)
    made.be_in("!dm:x", direct=ALICE)
    made.be_in("!group:x")
    return made


async def test_a_person_who_asks_where_nobody_answers_is_told_once(autojump_clock: trio.testing.MockClock) -> None:
    here = house()
    async with trio.open_nursery() as nursery:
        await nursery.start(here.routing.run)
        for _ in range(3):
            assert await here.heard_by("!dm:x", "hello?") is None
            await trio.sleep(1)
        (told,) = here.outbox.sent
        content = json.loads(told.content)
        assert (told.account, told.agent, told.room_id, told.type) == ("main", "", "!dm:x", "m.room.message")
        assert content["msgtype"] == "m.notice"
        assert "[[routes]]\ndm = true" in content["body"]
        assert "!claw" not in content["body"]  # nobody may give orders here
        nursery.cancel_scope.cancel()
    assert here.router.counts == {("unrouted", False): 3}


async def test_in_a_group_only_a_mention_asks(autojump_clock: trio.testing.MockClock) -> None:
    here = house(ORDERS)
    async with trio.open_nursery() as nursery:
        await nursery.start(here.routing.run)
        await here.hear("!group:x", "hello?")
        await here.hear("!group:x", "hello @bot:x", sender=STRANGER)
        await here.hear("!dm:x", "hello", sender=STRANGER)
        await here.hear("!dm:x", {"msgtype": "m.notice", "body": "hello"})
        await trio.sleep(1)
        assert here.outbox.sent == []
        await here.hear("!group:x", "hello @bot:x")
        await trio.sleep(1)
        (told,) = here.outbox.sent
        body = json.loads(told.content)["body"]
        assert 'room = "!group:x"' in body
        assert "!claw use AGENT" in body
        nursery.cancel_scope.cancel()


async def test_once_is_once_over_restarts(autojump_clock: trio.testing.MockClock) -> None:
    first = house()
    async with trio.open_nursery() as nursery:
        await nursery.start(first.routing.run)
        await first.hear("!dm:x", "hello")
        await trio.sleep(1)
        nursery.cancel_scope.cancel()
    (sent,) = first.outbox.sent
    for later_ms, known in ((1_000, [sent.idempotency_key]), (TELLING_MS + 1, [])):
        again = house(db=first.db)
        again.wall += later_ms / 1000
        async with trio.open_nursery() as nursery:
            await nursery.start(again.routing.run)
            await again.hear("!dm:x", "hello")
            await trio.sleep(1)
            nursery.cancel_scope.cancel()
        # the same key says nothing twice: the bridge may have been killed before the outbox had it
        assert [each.idempotency_key for each in again.outbox.sent] == known


async def test_trouble_is_waited_out_until_somebody_asks_again(autojump_clock: trio.testing.MockClock) -> None:
    here = house()
    async with trio.open_nursery() as nursery:
        await nursery.start(here.routing.run)
        here.outbox.full = True
        with capture_logs() as logs:
            await here.hear("!dm:x", "hello")
            await trio.sleep(60)
        assert [line["event"] for line in logs if line["log_level"] == "warning"] == [
            "room not told that nobody answers"
        ]
        here.outbox.full = False
        here.db.down = True
        await here.hear("!dm:x", "hello")
        await trio.sleep(60)
        here.db.down = False
        assert here.outbox.sent == []
        await here.hear("!dm:x", "hello")
        await trio.sleep(1)
        assert len(here.outbox.sent) == 1
        nursery.cancel_scope.cancel()


async def test_when_a_choice_ends_it_is_news_again(autojump_clock: trio.testing.MockClock) -> None:
    here = house()
    async with trio.open_nursery() as nursery:
        await nursery.start(here.routing.run)
        await here.hear("!dm:x", "hello")
        await trio.sleep(1)
        await here.routing.table.use("main", "!dm:x", "echo", "always", by=ALICE)
        assert await here.heard_by("!dm:x", "hello") == ["*"]
        await here.routing.table.unuse("main", "!dm:x")
        here.wall += 1
        await here.hear("!dm:x", "hello")
        await trio.sleep(1)
        assert len({each.idempotency_key for each in here.outbox.sent}) == 2
        nursery.cancel_scope.cancel()


async def test_too_many_at_once_are_not_all_told(autojump_clock: trio.testing.MockClock) -> None:
    here = house()
    for at in range(WAITING + 1):
        here.be_in(f"!{at}:x", direct=ALICE)
    with capture_logs() as logs:
        for at in range(WAITING + 1):
            await here.hear(f"!{at}:x", "hello")
    assert [line["why"] for line in logs if line["log_level"] == "warning"] == ["too many wait"]
    async with trio.open_nursery() as nursery:
        await nursery.start(here.routing.run)
        await trio.sleep(1)
        assert len(here.outbox.sent) == WAITING
        nursery.cancel_scope.cancel()


async def test_the_guide_can_be_stopped_anywhere() -> None:
    for checkpoints in range(8):
        here = house()
        await here.hear("!dm:x", "hello")
        async with trio.open_nursery() as nursery:
            await nursery.start(here.routing.run)
            for _ in range(checkpoints):
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        async with trio.open_nursery() as nursery:  # and be started again, with what it had not done
            await nursery.start(here.routing.run)
            await trio.testing.wait_all_tasks_blocked()
            nursery.cancel_scope.cancel()
        assert len(here.outbox.sent) == 1
