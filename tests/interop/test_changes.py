"""What may change under a conversation: the room becomes encrypted, and channels between devices break."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from tests.interop.ours import Bot, eventually, joined, room_of
from tests.interop.peers import Kind, Peers

PERIOD = 40
"""Messages of one room key, where that is to be waited for: more than there are attempts to mend a channel."""


async def test_a_room_becomes_encrypted(peers: Peers, bot: Bot, kind: Kind) -> None:
    alice = await peers(kind)
    room = await room_of(bot, alice, encrypted=False)
    async with bot.open(room) as ours:
        await joined(room, bot, alice)
        await alice.say(room, "in the clear")
        await ours.hears("in the clear")
        await ours.say(room, "you too")
        assert not (await alice.sees("you too"))["encrypted"]
        await alice.do("encrypt", room_id=room)
        await alice.until("encrypts", bool, room_id=room)
        await alice.say(room, "between us")
        await ours.hears("between us")
        await ours.say(room, "only us")
        assert (await alice.sees("only us"))["encrypted"]


async def test_a_broken_channel_to_them_mends_itself(peers: Peers, bot: Bot, kind: Kind) -> None:
    """They lose their Olm sessions, and cannot read what a room key came for; after a moment they have the key."""
    alice = await peers(kind)
    room = await room_of(bot, alice, messages=PERIOD)
    async with bot.open(room) as ours:
        await joined(room, bot, alice)
        await alice.say(room, "before")
        await ours.hears("before")
        for number in range(PERIOD):
            await ours.say(room, f"before, too {number}")
        await alice.sees(f"before, too {PERIOD - 1}")
        await alice.do("forget_channels")
        lost = await alice.cannot_read(await ours.say(room, "lost to them"))

        async def speak(words: str) -> Callable[[str], Awaitable[object]]:
            await ours.say(room, words)
            return lambda body: alice.sees(body, seconds=1)

        seen = await alice.sees(await _until_heard(speak))
        assert seen["session_id"] == lost["session_id"], "they got the same key again, and need not wait for the next"


async def test_a_broken_channel_to_us_mends_itself(peers: Peers, bot: Bot, kind: Kind) -> None:
    alice = await peers(kind)
    room = await room_of(bot, alice)
    async with bot.open(room) as ours:
        await joined(room, bot, alice)
        await alice.say(room, "before")
        await ours.hears("before")
    bot.forget_channels()
    async with bot.open(room) as ours:
        await alice.do("forget_session", room_id=room)
        await alice.say(room, "lost to us")

        async def speak(words: str) -> Callable[[str], Awaitable[object]]:
            await alice.do("forget_session", room_id=room)
            await alice.say(room, words)
            return lambda body: ours.hears(body, seconds=1)

        await _until_heard(speak)
        assert "lost to us" not in ours.read(room)
        assert ours.standing.undecryptable_waiting >= 1


async def _until_heard(speak: Callable[[str], Awaitable[Callable[[str], Awaitable[object]]]]) -> str:
    """The other side must notice first, and make a new channel; returns the first body that came through."""
    attempts = 0

    async def attempt() -> str | None:
        nonlocal attempts
        attempts += 1
        hear = await speak(f"attempt {attempts}")
        try:
            await hear(f"attempt {attempts}")
        except AssertionError:
            return None
        return f"attempt {attempts}"

    return await eventually(attempt, "the channel is mended")
