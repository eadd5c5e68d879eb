"""Alerts in a room of people that is encrypted."""

from __future__ import annotations

import pytest

from armorclaw.delivery.message import Delivery
from tests.interop.ours import Bot, eventually, joined, room_of
from tests.interop.peers import Kind, Peers

WRONG = "something is wrong"


@pytest.mark.mission("M.e2ee")
async def test_an_alert_arrives_encrypted_and_once(peers: Peers, bot: Bot, kind: Kind) -> None:
    alice = await peers(kind)
    ops = await room_of(bot, alice)
    async with bot.open(alerts=ops) as ours:
        await joined(ops, bot, alice)
        await ours.bridge.alerts.raise_alert("test", "error", WRONG)
        seen = await alice.wait("the alert", lambda seen: WRONG in str(seen.get("content")))
        assert (seen["type"], seen["room_id"], seen["sender"]) == ("m.room.message", ops, bot.user_id)
        assert seen["encrypted"]

        async def delivered() -> Delivery | None:
            found = await ours.bridge.outbox.latest(5, state="delivered")
            return next((each for each in found if each.event_id == seen["event_id"]), None)

        await eventually(delivered, "the alert is known to be there")
        assert not await ours.bridge.outbox.latest(5, state="failed")
        assert len([body for body in alice.read(ops) if WRONG in body]) == 1
        assert alice.unread() == []
