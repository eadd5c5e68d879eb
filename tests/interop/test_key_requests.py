"""Room keys that one device of a user asks another of, each way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tests.interop.ours import Bot, eventually, joined, room_of
from tests.interop.peers import Peer, Peers
from tests.interop.test_verification import compare


async def knows_only(alice: Peer, own: Peer, room: str) -> None:
    """Alice has spoken with this device of the bot's, and hears of none that comes later."""
    await alice.until_member(room, own.user_id)
    await alice.say(room, "first")
    await own.sees("first")
    await alice.do("pause")


async def test_we_ask_another_device_of_ours(peers: Peers, bot: Bot, tmp_path: Path) -> None:
    """Alice does not know of the bridge's device, but it of another that has the key and that it trusts."""
    alice = await peers("mautrix")
    room = await room_of(bot, alice)
    own = await peers("mautrix", user=(bot.user_id, bot.password))
    recovery_key_file = tmp_path / "recovery key"
    recovery_key_file.write_text(await own.do("cross_sign"))
    await knows_only(alice, own, room)
    async with bot.open(room, recovery_key_file=recovery_key_file) as ours:
        await own.until("trust", _is_signed, user_id=bot.user_id, device_id=ours.device_id)
        await alice.say(room, "not for the bridge")
        assert (await ours.hears("not for the bridge")).sender == alice.user_id


async def test_we_ask_a_device_that_was_compared(peers: Peers, bot: Bot) -> None:
    """matrix-nio passes on to devices that it has verified by emoji what they ask for: it comes late, and once."""
    alice = await peers("nio")
    room = await room_of(bot, alice)
    own = await peers("nio", user=(bot.user_id, bot.password))
    await knows_only(alice, own, room)
    async with bot.open(room) as ours:
        await own.knows(bot.user_id, ours.device_id)
        assert (await compare(ours, own, we_start=True)).result["verified"]
        await alice.say(room, "not for the bridge")
        await own.wait("a key request", lambda seen: seen.get("type") == "m.room_key_request")
        assert (await ours.hears("not for the bridge")).sender == alice.user_id
        await alice.do("sync")
        await alice.knows(bot.user_id, ours.device_id)
        await alice.say(room, "for everybody")
        await ours.hears("for everybody")
        assert ours.read(room) == ["not for the bridge", "for everybody"]
        assert ours.standing.undecryptable_waiting == 0


async def test_another_device_of_ours_asks_us(peers: Peers, bot: Bot) -> None:
    """One that has the recovery key which the bridge made, and with it the trust of the bridge."""
    alice = await peers("mautrix")
    room = await room_of(bot, alice)
    async with bot.open(room) as ours:
        await joined(room, bot, alice)
        await alice.say(room, "before the other device")
        await ours.hears("before the other device")

        async def shown() -> str | None:
            answer = await ours.bridge.call("matrix.recovery_key")
            return str(answer["recovery_key"])

        recovery_key = await eventually(shown, "the recovery key")
        own = await peers("mautrix", user=(bot.user_id, bot.password))
        missing = await own.unreadable(alice)
        order = {name: missing[name] for name in ("room_id", "sender_key", "session_id")}
        await own.do("request_key", **order, devices=[ours.device_id])
        await own.wait("a refusal", lambda seen: seen.get("type") == "m.room_key.withheld")
        await own.do("recover", recovery_key=recovery_key)
        await own.until("trust", _is_signed, user_id=bot.user_id, device_id=ours.device_id)
        await _until_read(own, order, ours.device_id, "before the other device")


async def test_devices_that_were_compared_ask_each_other(peers: Peers, bot: Bot) -> None:
    """matrix-nio knows no cross-signing: the two devices of the same user are verified by emoji."""
    alice = await peers("nio")
    room = await room_of(bot, alice)
    async with bot.open(room) as ours:
        await joined(room, bot, alice)
        await alice.say(room, "before the other device")
        await ours.hears("before the other device")
        own = await peers("nio", user=(bot.user_id, bot.password))
        await own.knows(bot.user_id, ours.device_id)
        missing = await own.unreadable(alice)
        done = await compare(ours, own, we_start=False)
        assert done.result["verified"], done.result
        order = {name: missing[name] for name in ("room_id", "sender_key", "session_id")}
        await own.do("request_key", **order, devices=[ours.device_id])
        await own.sees("before the other device")


def _is_signed(trust: str) -> bool:
    return trust.startswith("cross_signed") or trust == "verified"


async def _until_read(own: Peer, order: dict[str, Any], device_id: str, body: str) -> None:
    """It asks anew until it is trusted: that it is now comes with a sync of the bridge."""

    async def ask() -> bool | None:
        await own.do("request_key", **order, devices=[device_id])
        try:
            await own.sees(body, seconds=1)
        except AssertionError:
            return None
        return True

    await eventually(ask, f"{body!r} is read")
