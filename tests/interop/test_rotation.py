"""New Megolm sessions: after 100 messages, and when somebody leaves."""

from __future__ import annotations

from tests.interop.ours import Bot, Ours, joined, room_of
from tests.interop.peers import Kind, Peer, Peers

PERIOD = 100
"""Messages of one session, where the room says nothing else."""


async def test_ours_ends_after_100_messages(peers: Peers, bot: Bot, kind: Kind) -> None:
    alice = await peers(kind)
    room = await room_of(bot, alice)
    async with bot.open(room) as ours:
        await joined(room, bot, alice)
        said = [f"{number}" for number in range(PERIOD + 1)]
        deliveries = [await ours.send(room, body) for body in said]
        for delivery in deliveries:
            await ours.sent(delivery)
        sessions = [(await alice.sees(body))["session_id"] for body in said]
        assert len(set(sessions[:PERIOD])) == 1
        assert sessions[PERIOD] != sessions[0]
        assert alice.read(room) == said
        assert alice.unread() == []


async def test_theirs_ends_after_100_messages(peers: Peers, bot: Bot, kind: Kind) -> None:
    alice = await peers(kind)
    room = await room_of(bot, alice)
    async with bot.open(room) as ours:
        await joined(room, bot, alice)
        sessions = []
        for start in range(0, PERIOD + 1, 20):
            await alice.do("send_at_once", room_id=room, bodies=[f"{start + number}" for number in range(20)])
            sessions.append(await alice.do("outbound", room_id=room))
        assert sessions[0] != sessions[-1]
        for number in range(PERIOD + 20):
            await ours.hears(f"{number}")
            await alice.sees(f"{number}")
        assert ours.read(room) == alice.read(room)


async def test_the_period_of_the_room_counts(peers: Peers, bot: Bot) -> None:
    alice = await peers("mautrix")
    room = await room_of(bot, alice, messages=3)
    async with bot.open(room) as ours:
        await joined(room, bot, alice)
        for number in range(7):
            await ours.say(room, f"{number}")
        sessions = [(await alice.sees(f"{number}"))["session_id"] for number in range(7)]
        assert [sessions.index(session) for session in sessions] == [0, 0, 0, 3, 3, 3, 6]


async def test_whoever_leaves_cannot_read_on(peers: Peers, bot: Bot, kind: Kind) -> None:
    """Neither what we say nor what they say, whether somebody went or was sent away."""
    alice = await peers(kind, "alice")
    room = await room_of(bot, alice)
    async with bot.open(room) as ours:
        await joined(room, bot, alice)
        sessions = await _both_speak(ours, alice, room, "two of us")
        for how in ("leave", "kick"):
            other = await peers(kind, how)
            await alice.do("invite", room_id=room, user_id=other.user_id)
            for peer in (alice, other):
                await peer.until_member(room, other.user_id)
            sessions |= await _both_speak(ours, alice, room, f"three of us, {how}")
            for whose in ("theirs", "ours"):
                assert (await other.sees(f"three of us, {how}, {whose}"))["encrypted"]
            if how == "leave":
                await other.do("leave", room_id=room)
            else:
                await alice.do("kick", room_id=room, user_id=other.user_id)
            await alice.until_member(room, other.user_id, "leave")
            without = await _both_speak(ours, alice, room, f"two again, {how}")
            assert not without & sessions
            sessions |= without


async def _both_speak(ours: Ours, alice: Peer, room: str, words: str) -> set[str]:
    """They first, so that we know what they know; the sessions of both."""
    await alice.say(room, f"{words}, theirs")
    await ours.hears(f"{words}, theirs")
    await ours.say(room, f"{words}, ours")
    mine = (await alice.sees(f"{words}, ours"))["session_id"]
    return {mine, await alice.do("outbound", room_id=room)}
