"""Identities: made at the first login, taken over by a second device, reset, verified; and what a policy makes of
them."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from typing import Any

import httpx
import pytest
import trio

from armorclaw.agent.events import Event
from armorclaw.errors import ArmorclawError
from armorclaw.structure import Secret
from armorclaw.testing.homeserver import Homeserver
from tests.interop.ours import Bot, Ours, eventually, joined, room_of
from tests.interop.peers import Peers
from tests.interop.test_verification import Verifying, compare


async def standing(ours: Ours, user_id: str | None = None) -> Any:
    return await ours.bridge.call("matrix.devices", **({} if user_id is None else {"user_id": user_id}))


async def settled(ours: Ours) -> Any:
    """How our own device stands, once that is known."""

    async def look() -> Any:
        answer = await standing(ours)
        return answer if answer["signed"] is not None else None

    return await eventually(look, "cross-signing is settled")


async def recovery_key(ours: Ours, **more: Any) -> Any:
    """Once it is stored."""

    async def look() -> Any:
        try:
            return await ours.bridge.call("matrix.recovery_key", **more)
        except ArmorclawError as error:
            if error.name != "unavailable":
                raise
            return None

    return await eventually(look, "there is a recovery key")


def alerts(ours: Ours, name: str) -> list[Any]:
    return [alert for alert in ours.alerts() if alert["name"] == name]


def _is_alert(name: str, event: Event) -> bool:
    return event.type == "alert" and event.content["name"] == name


@pytest.mark.mission("M.e2ee")
async def test_the_first_login_makes_an_identity_that_others_see(peers: Peers, bot: Bot) -> None:
    alice = await peers("nio")
    room = await room_of(bot, alice)
    async with bot.open(room) as ours:
        own = await settled(ours)
        assert (own["signed"], own["identity"]) == (True, "verified")
        (here,) = (device for device in own["devices"] if device["own"])
        assert (here["device_id"], here["trust"]) == (ours.device_id, "verified")
        assert await alice.do("vouched", user_id=bot.user_id, device_id=ours.device_id)
        assert len(alerts(ours, "matrix_recovery_key")) == 1


async def test_the_recovery_key_is_shown_once_and_opens_what_is_kept(peers: Peers, bot: Bot) -> None:
    async with bot.open() as ours:
        key = (await recovery_key(ours))["recovery_key"]
        assert key.startswith("E")
        with pytest.raises(ArmorclawError, match="no recovery key") as shown:
            await ours.bridge.call("matrix.recovery_key")
        assert shown.value.name == "not_found"
        # another client of the same user, another program
        own = await peers("mautrix", user=(bot.user_id, bot.password))
        await own.do("recover", recovery_key=key)

        async def signed() -> bool | None:
            (trust,) = (
                device["trust"]
                for device in (await standing(ours))["devices"]
                if device["device_id"] == own.device_id
            )
            return trust == "verified" or None

        await eventually(signed, "the other device is signed")
        newer = (await ours.bridge.call("matrix.recovery_key", new=True, store="bot-recovery"))["stored"]
        stored = await ours.bridge.call("get_key", id=newer)
        assert stored["token"].startswith("E")
        assert stored["token"] != key
    assert key.split()[0].encode() not in b"".join(file.read_bytes() for file in bot.keys)


async def test_a_second_device_is_signed_by_the_recovery_key(bot: Bot) -> None:
    async with bot.open() as first:
        master = (await settled(first))["master"]
        key = (await recovery_key(first))["recovery_key"]
        async with bot.elsewhere("second").open(recovery_key=Secret(key)) as second:
            own = await settled(second)
            assert (own["signed"], own["master"]) == (True, master)
            assert {device["trust"] for device in own["devices"]} == {"verified"}
        async with bot.elsewhere("third").open() as third:
            own = await settled(third)
            assert (own["signed"], own["master"]) == (False, master)
            assert "recovery_key_file" in own["hint"]
            assert (third.standing.signed, third.standing.hint) == (False, own["hint"])


async def test_a_second_device_reads_the_recovery_key_of_the_keystore(bot: Bot) -> None:
    async with bot.open() as first:
        key = (await recovery_key(first))["recovery_key"]
    there = bot.elsewhere("second")
    async with there.open(recovery_key_id="bot-recovery") as second:
        own = await settled(second)
        assert not own["signed"]
        assert "bot-recovery" in own["hint"]
        await second.bridge.call("store_key", provider="matrix", token=key, id="bot-recovery")
    async with there.open(recovery_key_id="bot-recovery") as second:
        assert (await settled(second))["signed"]


async def test_it_stays_signed_over_a_restart_and_is_not_made_anew(bot: Bot) -> None:
    async with bot.open() as ours:
        first = await settled(ours)
    async with bot.open() as ours:
        again = await settled(ours)
        assert (again["signed"], again["master"]) == (True, first["master"])
        assert len(alerts(ours, "matrix_recovery_key")) == 1  # that of the first life
        assert not alerts(ours, "matrix_identity_reset")


async def test_another_device_of_ours_signs_us_after_comparing(bot: Bot) -> None:
    async with bot.open() as first, bot.elsewhere("second").open() as second:
        await settled(first)
        assert not (await settled(second))["signed"]
        one, two = Verifying(), Verifying()
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                await nursery.start(lambda task_status: one.run(first, task_status=task_status))
                ask = partial(two.run, second, user_id=bot.user_id)
                await nursery.start(lambda task_status: ask(task_status=task_status))
                await one.compared.wait()
                await two.compared.wait()
                assert one.emoji == two.emoji
                one.say.set()
                two.say.set()
        assert one.result["verified"]
        assert two.result["verified"]

        async def signed() -> Any:
            own = await standing(second)
            return own if own["signed"] else None

        own = await eventually(signed, "the second device is signed")
        assert own["identity"] == "verified"


async def test_people_are_verified_in_their_room_and_their_new_devices_are_too(
    homeserver: Homeserver, bot: Bot, armorclaw_folder: Any, peers: Peers
) -> None:
    """Two bridges, each somebody's: what they say to verify each other is encrypted like all else there."""
    other = await Bot.register(homeserver, armorclaw_folder / "other")
    alice = await peers("mautrix")
    room = await alice.create_room(bot.user_id, other.user_id)
    async with bot.open(room) as ours, other.open(room) as theirs:
        await settled(ours)
        await settled(theirs)
        one, two = Verifying(), Verifying()
        with trio.fail_after(90):
            async with trio.open_nursery() as nursery:
                ask = partial(one.run, ours, user_id=other.user_id, room_id=room)
                await nursery.start(lambda task_status: ask(task_status=task_status))
                await theirs.wait("an alert", partial(_is_alert, "matrix_verification_requested"))
                await nursery.start(lambda task_status: two.run(theirs, task_status=task_status))
                await one.compared.wait()
                await two.compared.wait()
                assert one.emoji == two.emoji
                one.say.set()
                two.say.set()
        assert one.result["verified"], one.result
        assert two.result["verified"], two.result
        for mine, person in ((ours, other), (theirs, bot)):
            assert (await standing(mine, person.user_id))["identity"] == "verified"
        key = (await recovery_key(theirs))["recovery_key"]
        async with other.elsewhere("second").open(recovery_key=Secret(key)) as second:
            await settled(second)

            async def known() -> Any:
                devices = (await standing(ours, other.user_id))["devices"]
                return devices if len(devices) == 2 and {each["trust"] for each in devices} == {"verified"} else None

            await eventually(known, "the new device is believed")


async def test_an_identity_of_somebody_that_was_reset_is_told_and_not_believed_until_accepted(
    peers: Peers, bot: Bot
) -> None:
    alice = await peers("mautrix")
    await alice.do("cross_sign")
    room = await room_of(bot, alice)
    async with bot.open(room) as ours:
        await joined(room, bot, alice)
        await settled(ours)
        await ours.say(room, "hello")
        await alice.sees("hello")
        await alice.say(room, "before")
        await ours.hears("before")
        assert (await standing(ours, alice.user_id))["identity"] == "tofu"

        await alice.do("reset_identity", password=alice.password)
        await ours.wait("an alert", partial(_is_alert, "matrix_identity_changed"))
        answer = await standing(ours, alice.user_id)
        assert answer["identity"] == "changed"
        assert {device["trust"] for device in answer["devices"]} == {"changed"}
        await alice.say(room, "who am I")
        await ours.wait("a message not believed", lambda event: event.type == "matrix.undecryptable")
        told = await ours.say(room, "not for that one")
        await alice.cannot_read(told)

        await ours.bridge.call("matrix.accept_identity", user_id=alice.user_id, master=answer["master"])
        assert (await standing(ours, alice.user_id))["identity"] == "tofu"
        await alice.say(room, "it is me")
        await ours.hears("it is me")
        await ours.say(room, "good")
        await alice.sees("good")
        assert len(alerts(ours, "matrix_identity_changed")) == 1


async def test_our_own_identity_that_was_reset_is_told(bot: Bot, peers: Peers) -> None:
    async with bot.open() as ours:
        before = (await settled(ours))["master"]
        own = await peers("mautrix", user=(bot.user_id, bot.password))
        await own.do("reset_identity", password=bot.password)
        await ours.wait("an alert", partial(_is_alert, "matrix_identity_reset"))

        async def look() -> Any:
            answer = await standing(ours)
            return answer if not answer["signed"] else None

        answer = await eventually(look, "the device is not signed any more")
        assert answer["master"] != before
        assert "recovery" in answer["hint"]


async def test_only_verified_devices_read_and_are_read_where_that_is_wanted(peers: Peers, bot: Bot) -> None:
    alice = await peers("nio")
    room = await room_of(bot, alice)
    async with bot.open(room, unverified_devices_in={room: "no"}) as ours:
        await joined(room, bot, alice)
        await settled(ours)
        secret = await ours.say(room, "for nobody yet")
        await alice.cannot_read(secret)
        await alice.say(room, "from nobody yet")
        await ours.wait("a message not believed", lambda event: event.type == "matrix.undecryptable")
        await alice.knows(bot.user_id, ours.device_id)
        done = await compare(ours, alice, we_start=True)
        assert done.result["verified"]
        await ours.say(room, "for you")
        await alice.sees("for you")
        await alice.say(room, "from me")
        await ours.hears("from me")
        assert "from nobody yet" not in ours.read(room)


async def test_a_request_is_answered_by_one_device_and_taken_back_from_the_others(peers: Peers, bot: Bot) -> None:
    alice = await peers("nio")
    tablet = await peers("nio", of=alice)
    room = await room_of(bot, alice)
    async with bot.open(room) as ours:
        await joined(room, bot, alice)
        await settled(ours)
        await alice.knows(bot.user_id, ours.device_id)
        await alice.do("answer_requests")
        verifying = Verifying()
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                ask = partial(verifying.run, ours, user_id=alice.user_id)
                await nursery.start(lambda task_status: ask(task_status=task_status))
                begun = await alice.wait("a start", lambda seen: seen.get("kind") == "KeyVerificationStart")
                transaction = begun["transaction_id"]
                await alice.do("sas_accept", transaction_id=transaction)
                await verifying.compared.wait()
                await alice.wait("the key", lambda seen: seen.get("kind") == "KeyVerificationKey")
                assert await alice.do("sas_emoji", transaction_id=transaction) == verifying.emoji
                verifying.say.set()
                await alice.do("sas_confirm", transaction_id=transaction)
        assert verifying.result["verified"]
        assert verifying.result["device_id"] == alice.device_id
        assert verifying.steps[0]["state"] == "asked"
        cancel = await tablet.wait("a cancel", lambda seen: seen.get("kind") == "KeyVerificationCancel")
        assert cancel["content"]["code"] == "m.accepted"


@pytest.mark.parametrize("yes", [True, False], ids=["same", "not the same"])
async def test_the_command_line_verifies(peers: Peers, bot: Bot, yes: bool) -> None:
    alice = await peers("nio")
    room = await room_of(bot, alice)
    with bot.daemon(room) as daemon:
        (account,) = daemon.call("status")["accounts"]
        await joined(room, bot, alice)
        await alice.knows(bot.user_id, account["device_id"])
        words = ["matrix", "verify", alice.user_id, alice.device_id, "--direct", "--socket", str(daemon.socket)]
        command = [sys.executable, "-m", "armorclaw", *words]
        async with trio.open_nursery() as nursery:
            process = await nursery.start(
                partial(trio.run_process, command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, check=False)
            )
            with trio.fail_after(60):
                begun = await alice.wait("a start", lambda seen: seen.get("kind") == "KeyVerificationStart")
                transaction = begun["transaction_id"]
                await alice.do("sas_accept", transaction_id=transaction)
                await alice.wait("the key", lambda seen: seen.get("kind") == "KeyVerificationKey")
                shown = await alice.do("sas_emoji", transaction_id=transaction)
                said = b""
                while b"in numbers" not in said:
                    said += await process.stdout.receive_some()
                assert [each for each in said.decode().split() if each in shown] == shown
                await alice.do("sas_confirm", transaction_id=transaction)
                await process.stdin.send_all(b"y\n" if yes else b"n\n")
                while data := await process.stdout.receive_some():
                    said += data
        assert process.returncode == (0 if yes else 1)
        last = said.decode().splitlines()[-1]
        assert last.startswith(f"{alice.user_id} {alice.device_id} is {'verified' if yes else 'not verified'}")


async def test_a_verb_that_is_interrupted_tells_the_other_side(peers: Peers, bot: Bot) -> None:
    alice = await peers("nio")
    room = await room_of(bot, alice)
    async with bot.open(room) as ours:
        await joined(room, bot, alice)
        await settled(ours)
        async with ours.bridge.stream(
            "matrix.verify", user_id=alice.user_id, device_id=alice.device_id, direct=True
        ) as stream:
            async for _ in stream:
                await alice.wait("a start", lambda seen: seen.get("kind") == "KeyVerificationStart")
                break
        cancel = await alice.wait("a cancel", lambda seen: seen.get("kind") == "KeyVerificationCancel")
        assert cancel["content"]["code"] == "m.user"


async def test_who_is_not_there_cannot_be_verified(bot: Bot) -> None:
    async with bot.open() as ours:
        await settled(ours)
        for params in (
            {"user_id": "@nobody:nowhere"},
            {"user_id": bot.user_id, "device_id": "NONE"},
            {"user_id": bot.user_id},
        ):
            with pytest.raises(ArmorclawError) as refused:
                await ours.bridge.call("matrix.verify", **params)
            assert refused.value.name == "not_found"


async def test_whoever_answers_401_for_the_keys_gets_the_password_once_more(bot: Bot, peers: Peers) -> None:
    """Synapse asks for the password when keys are replaced: that is never done, whoever made them."""
    own = await peers("mautrix", user=(bot.user_id, bot.password))
    await own.do("cross_sign")
    async with httpx.AsyncClient(base_url=bot.homeserver.url, trust_env=False) as http, bot.open() as ours:
        answer = await settled(ours)
        assert not answer["signed"]
        login = {
            "type": "m.login.password",
            "identifier": {"type": "m.id.user", "user": bot.user_id},
            "password": bot.password,
        }
        token = (await http.post("/_matrix/client/v3/login", json=login)).json()["access_token"]
        keys = await http.post(
            "/_matrix/client/v3/keys/query",
            json={"device_keys": {bot.user_id: []}},
            headers={"Authorization": f"Bearer {token}"},
        )
        (master,) = keys.json()["master_keys"][bot.user_id]["keys"].values()
        assert master == answer["master"]
