"""Orders to the bridge in encrypted rooms: given, asked back, confirmed and answered."""

from __future__ import annotations

from typing import Any

from tests.interop.ours import EARS, Bot, joined, room_of
from tests.interop.peers import Kind, Peer, Peers


async def answer(peer: Peer, *words: str) -> dict[str, Any]:
    """The first notice with these words in it."""

    def fits(seen: dict[str, Any]) -> bool:
        content = seen.get("content", {})
        return content.get("msgtype") == "m.notice" and all(word in content["body"] for word in words)

    return await peer.wait(f"an answer with {words}", fits)


async def test_an_order_is_given_confirmed_and_answered(peers: Peers, bot: Bot, kind: Kind) -> None:
    alice, mallory = await peers(kind), await peers(kind, "mallory")
    room = await room_of(bot, alice, mallory)
    async with bot.open(room, commands=[alice.user_id]) as ours:
        await joined(room, bot, alice, mallory)
        await mallory.say(room, "!claw status")  # for the agent, as anything she says
        asked = await alice.say(room, "!claw who")
        told = await answer(alice, EARS, "always")
        assert told["content"]["m.relates_to"]["m.in_reply_to"]["event_id"] == asked
        await alice.say(room, "!claw stop ears")
        question = await answer(alice, "Stop agent ears?")
        await mallory.do("react", room_id=room, event_id=question["event_id"], key="✅")
        await alice.do("react", room_id=room, event_id=question["event_id"], key="✅")
        await answer(alice, "did not work")  # this agent is one of a program's own
        heard = await ours.hears("!claw status")
        assert heard.sender == mallory.user_id
        orders = [event.content for event in ours.heard if event.type == "bridge.order"]
        assert [(order["order"], order["by"]) for order in orders] == [("stop ears", alice.user_id)]
    assert not [seen for seen in mallory.seen if "The bridge is" in str(seen.get("content"))]
