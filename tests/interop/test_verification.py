"""People and devices that compare what both show, and identities that vouch for devices."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import pytest
import trio

from tests.interop.ours import Bot, Ours, joined, room_of
from tests.interop.peers import Peer, Peers

Answer = Callable[[dict[str, Any]], Awaitable[bool]]


class Side(Protocol):
    """Ours, in this loop or as a process."""

    @property
    def bot(self) -> Bot: ...
    @property
    def bridge(self) -> Any: ...
    @property
    def device_id(self) -> str: ...


class Verifying:
    """One `matrix.verify` at work."""

    def __init__(self) -> None:
        self.steps: list[dict[str, Any]] = []
        self.result: dict[str, Any] = {}
        self.compared = trio.Event()
        self.say = trio.Event()
        self.same = True

    async def run(self, ours: Side, *, task_status: trio.TaskStatus[None], **params: Any) -> None:
        async with ours.bridge.stream("matrix.verify", **params) as stream:
            task_status.started()
            async for step in stream:
                self.steps.append(step)
                if step["state"] == "requested":
                    await stream.send({"state": "requested", "yes": True})
                elif step["state"] == "compare":
                    self.compared.set()
                    await self.say.wait()
                    await stream.send({"state": "compare", "yes": self.same})
            self.result = await stream.result()

    @property
    def emoji(self) -> list[str]:
        """What is shown; what it is called in English differs between clients."""
        (step,) = (step for step in self.steps if step["state"] == "compare")
        return [emoji for emoji, _ in step["emoji"]]


async def compare(
    ours: Side, alice: Peer, *, we_start: bool, same: bool = True, who_differs: str = "us"
) -> Verifying:
    """Both sides up to the end; whoever differs says that what is shown is not the same."""
    verifying = Verifying()
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            device = {"user_id": alice.user_id, "device_id": alice.device_id, "direct": True} if we_start else {}
            await nursery.start(lambda task_status: verifying.run(ours, task_status=task_status, **device))
            if we_start:
                begun = await alice.wait("a start", lambda seen: seen.get("kind") == "KeyVerificationStart")
                transaction = begun["transaction_id"]
                await alice.do("sas_accept", transaction_id=transaction)
            else:
                transaction = await alice.do("sas_start", user_id=ours.bot.user_id, device_id=ours.device_id)
            await verifying.compared.wait()
            await has_our_key(alice, transaction)
            assert await alice.do("sas_emoji", transaction_id=transaction) == verifying.emoji
            verifying.same = same or who_differs == "them"
            verifying.say.set()
            if same:
                await alice.do("sas_confirm", transaction_id=transaction)
            elif who_differs == "them":
                await alice.do("sas_cancel", transaction_id=transaction, reject=True)
    return verifying


async def has_our_key(alice: Peer, transaction: str) -> None:
    """Until it can show something."""

    def wanted(seen: dict[str, Any]) -> bool:
        return seen.get("kind") == "KeyVerificationKey" and seen["transaction_id"] == transaction

    await alice.wait("the key", wanted)


@pytest.mark.parametrize("we_start", [True, False], ids=["we start", "they start"])
async def test_emoji_are_compared(peers: Peers, bot: Bot, we_start: bool) -> None:
    alice = await peers("nio")
    room = await room_of(bot, alice)
    async with bot.open(room) as ours:
        await acquainted(ours, alice, room)
        done = await compare(ours, alice, we_start=we_start)
        assert done.result["verified"], done.result
        await alice.until("trust", lambda trust: trust == "verified", user_id=bot.user_id, device_id=ours.device_id)
        assert await trust_in(ours, alice) == "verified"


@pytest.mark.parametrize("who", ["us", "them"])
async def test_what_is_shown_differs(peers: Peers, bot: Bot, who: str) -> None:
    alice = await peers("nio")
    room = await room_of(bot, alice)
    async with bot.open(room) as ours:
        await acquainted(ours, alice, room)
        done = await compare(ours, alice, we_start=who == "us", same=False, who_differs=who)
        assert (done.result["verified"], done.result["code"]) == (False, "m.mismatched_sas")
        await alice.until("trust", lambda trust: trust != "verified", user_id=bot.user_id, device_id=ours.device_id)
        assert await trust_in(ours, alice) != "verified"


async def test_identities_vouch_for_devices(peers: Peers, bot: Bot) -> None:
    """Ours is signed by the identity that the bridge made at its first login, theirs by their own."""
    alice = await peers("mautrix")
    room = await room_of(bot, alice)
    await alice.do("cross_sign")
    async with bot.open(room) as ours:
        await acquainted(ours, alice, room)
        await alice.until("trust", _is_tofu, user_id=bot.user_id, device_id=ours.device_id)
        assert await trust_in(ours, alice) == "tofu"


def _is_tofu(trust: str) -> bool:
    return trust == "cross_signed_tofu"


async def acquainted(ours: Ours, alice: Peer, room: str) -> None:
    """Both know each other's devices."""
    await joined(room, ours.bot, alice)
    await ours.say(room, "hello")
    await alice.sees("hello")
    await alice.say(room, "hello yourself")
    await ours.hears("hello yourself")
    await alice.knows(ours.bot.user_id, ours.device_id)


async def trust_in(ours: Side, alice: Peer) -> str:
    answer = await ours.bridge.call("matrix.devices", user_id=alice.user_id)
    (trust,) = (device["trust"] for device in answer["devices"] if device["device_id"] == alice.device_id)
    return str(trust)
