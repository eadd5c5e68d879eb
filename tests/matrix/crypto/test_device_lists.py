"""Lists of devices: what is believed of them, when they are asked for, and what odd answers do: nothing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from mautrix.errors import MatrixConnectionError, MatrixResponseError, MForbidden, MInvalidParam
from structlog.testing import capture_logs
from trio.testing import MockClock, wait_all_tasks_blocked

from armorclaw.matrix.answer import Answer, DeviceLists
from armorclaw.matrix.crypto.device_lists import FIRST_PAUSE_MS
from armorclaw.matrix.crypto.machine import QUERY_USERS
from armorclaw.matrix.crypto.olm import PkSigning
from armorclaw.matrix.crypto.upstream import canonical_json
from tests.matrix.crypto.conftest import ANN, BEN, EVE, Party, Raw, Time, Town
from tests.matrix.crypto.identities import identify, sign
from tests.matrix.crypto.key_server import ROOM


def ids(party: Party, user: str) -> set[str]:
    return {device.device_id for device in party.encryption.standing.devices(user)}


def trust(party: Party, user: str, device: str) -> str:
    found = party.encryption.standing.device(user, device)
    assert found is not None
    return found.trust


async def test_users_are_followed_from_when_they_matter(town: Town) -> None:
    ann, _ = await town.pair()
    devices = ann.encryption.devices
    devices.changed([BEN])
    assert devices.due() == []
    devices.follow([BEN])
    assert devices.due() == [BEN]
    await devices.refresh([BEN])
    assert ids(ann, BEN) == {"B"}
    town.server.calls.clear()
    await devices.refresh([BEN])
    assert town.server.calls == []
    devices.changed([BEN])
    assert devices.is_pending(BEN)
    await devices.refresh([BEN])
    assert town.server.calls == ["keys/query"]


async def test_what_changes_while_we_ask_is_asked_for_again(town: Town) -> None:
    ann, _ = await town.pair()
    devices = ann.encryption.devices

    async def change() -> None:
        town.server.lost = lambda name: None
        devices.changed([BEN])

    await devices.refresh([BEN])
    devices.changed([BEN])
    town.server.lost = lambda name: change()
    await devices.refresh([BEN])
    assert devices.is_pending(BEN)


async def test_what_changes_while_another_life_asks_is_asked_for_again(town: Town) -> None:
    """The row it finds has the number of the life before."""
    ann, _ = await town.pair()
    await ann.encryption.devices.refresh([BEN])
    ann.encryption.devices.changed([BEN])
    ann.encryption.db.run("UPDATE outdated SET mark = 1 WHERE user_id = ?", BEN)  # as in a life that only began
    ann = await town.restart(ann)
    devices = ann.encryption.devices

    async def change() -> None:
        town.server.lost = lambda name: None
        devices.changed([BEN])

    town.server.lost = lambda name: change()
    await devices.refresh([BEN])
    assert devices.is_pending(BEN)


async def test_who_left_is_asked_for_when_they_are_back(town: Town) -> None:
    ann, _ = await town.pair()
    devices = ann.encryption.devices
    await devices.refresh([BEN])
    await ann.encryption.absorb(Answer("s", device_lists=DeviceLists(left=[BEN])))
    assert devices.due() == []
    assert devices.is_pending(BEN)
    town.server.calls.clear()
    await ann.say()
    assert "keys/query" in town.server.calls
    assert not devices.is_pending(BEN)


async def test_a_sync_from_nothing_has_everything_asked_for_anew(town: Town) -> None:
    ann, ben = await town.pair()
    await ann.say()
    del town.server.members[ROOM][BEN]
    await ann.encryption.start_over()
    assert ann.encryption.devices.due() == []
    town.server.calls.clear()
    raw = await ann.say()
    assert {"members", "keys/query"} <= set(town.server.calls)
    await ben.catch_up()
    assert (await ben.why_not(raw)).reason == "no_key"


async def test_a_server_that_is_away_is_asked_ever_more_rarely(town: Town, time: Time) -> None:
    ann, _ = await town.pair()
    await town.device(EVE, "E")
    town.server.away.add("away.test")
    devices = ann.encryption.devices
    asked = 0
    devices.follow([EVE])
    for _ in range(24 * 60):
        town.server.calls.clear()
        if users := devices.due():
            await devices.ask(users)
        asked += len(town.server.calls)
        time.ahead += 60
    assert 20 < asked < 40
    town.server.away.clear()
    time.ahead += 3600
    await devices.refresh([EVE])
    assert ids(ann, EVE) == {"E"}


async def test_a_change_does_not_hurry_a_server_that_is_away(town: Town, time: Time) -> None:
    ann, _ = await town.pair()
    town.server.away.add("away.test")
    devices = ann.encryption.devices
    await devices.refresh([EVE])
    devices.follow([EVE])
    assert devices.due() == []
    due = devices.next_due_ms()
    assert due is not None
    assert due - time() * 1000 == pytest.approx(FIRST_PAUSE_MS, abs=1000)


async def test_many_are_asked_for_in_parts(town: Town) -> None:
    ann, _ = await town.pair()
    users = [f"@{number}:hs.test" for number in range(2 * QUERY_USERS + 1)]
    town.server.calls.clear()
    await ann.encryption.devices.refresh(users)
    assert town.server.calls == ["keys/query"] * 3


async def test_one_name_that_is_not_liked_does_not_hide_the_others(town: Town) -> None:
    ann, _ = await town.pair()

    def picky(body: Any) -> Any:
        if "@bad:hs.test" in body["device_keys"]:
            raise MInvalidParam(400, "no such name")
        return town.server._keys_query((ANN, "A"), [], body)

    town.server.instead["keys/query"] = picky
    devices = ann.encryption.devices
    await devices.refresh([ANN, "@bad:hs.test", BEN, "@carl:hs.test"])
    assert ids(ann, BEN) == {"B"}
    assert [devices.is_pending(user) for user in (ANN, "@bad:hs.test", BEN)] == [False, True, False]
    assert devices.due() == []


async def test_two_who_want_the_same_ask_once(town: Town) -> None:
    ann, _ = await town.pair()
    town.server.calls.clear()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(ann.encryption.devices.refresh, [BEN])
        nursery.start_soon(ann.encryption.devices.refresh, [BEN])
    assert town.server.calls == ["keys/query"]


async def one_gives_up(town: Town, ann: Party, *, others: int) -> None:
    """The first who asks for Ben's devices hears nothing and goes, while so many others wait for what that brings."""
    first = trio.CancelScope()

    async def hang() -> None:
        town.server.fault = lambda name: None
        await trio.sleep_forever()

    async def refresh_first() -> None:
        with first:
            await ann.encryption.devices.refresh([BEN])

    town.server.fault = lambda name: hang()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(refresh_first)
        await wait_all_tasks_blocked()
        for _ in range(others):
            nursery.start_soon(ann.encryption.devices.refresh, [BEN])
        await wait_all_tasks_blocked()
        first.cancel()


async def test_who_waited_for_another_asks_if_that_came_to_nothing(town: Town) -> None:
    """A message must not go out as if everybody were known."""
    ann, _ = await town.pair()
    await one_gives_up(town, ann, others=1)
    assert ids(ann, BEN) == {"B"}
    assert not ann.encryption.devices.is_pending(BEN)


async def test_of_many_who_wait_for_one_that_comes_to_nothing_one_asks(town: Town) -> None:
    ann, _ = await town.pair()
    town.server.calls.clear()
    await one_gives_up(town, ann, others=2)
    assert town.server.calls == ["keys/query"] * 2


async def test_who_was_asked_for_while_many_are_is_not_asked_for_once_more(town: Town) -> None:
    """An answer that is older must not come after one that is newer."""
    ann, _ = await town.pair()
    devices = ann.encryption.devices
    users = [f"@{number}:hs.test" for number in range(QUERY_USERS)]
    held: list[trio.Event] = []

    async def hold() -> None:
        held.append(trio.Event())
        await held[-1].wait()

    town.server.fault = lambda name: hold()
    town.server.calls.clear()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(devices.refresh, [*users, BEN, EVE])
        await wait_all_tasks_blocked()
        nursery.start_soon(devices.refresh, [BEN])
        nursery.start_soon(devices.refresh, [EVE])
        await wait_all_tasks_blocked()
        assert len(held) == 3
        held[1].set()
        await wait_all_tasks_blocked()
        held[0].set()
        await wait_all_tasks_blocked()
        assert len(held) == 3, "Ben's devices are known, and Eve's are being asked for"
        held[2].set()
    assert town.server.calls == ["keys/query"] * 3


async def test_what_is_no_user_is_never_asked_for(town: Town) -> None:
    ann, _ = await town.pair()
    ann.encryption.devices.follow(["", "ben", "@ben", "!room:hs.test"])
    assert ann.encryption.devices.due() == []


@pytest.mark.parametrize("error", [MatrixConnectionError("away"), MForbidden(403, "no")])
async def test_when_our_own_homeserver_does_not_answer_nothing_is_taken_for_known(
    town: Town, error: Exception
) -> None:
    ann, _ = await town.pair()

    async def fail() -> None:
        raise error

    town.server.fault = lambda name: fail() if name == "keys/query" else None
    with pytest.raises(type(error)):
        await ann.say()
    assert ann.encryption.devices.is_pending(BEN)


# -- what is believed --


async def test_a_device_keeps_its_keys(town: Town) -> None:
    """Other keys under its name are an attack, or a program that lost them: neither gets what the device gets."""
    ann, ben = await town.pair()
    await ann.encryption.devices.refresh([BEN])
    other = await town.device("@other:hs.test", "B")
    forged = copy.deepcopy(town.server.device_keys[other.user, "B"])
    forged["user_id"] = BEN
    body = {name: value for name, value in forged.items() if name != "signatures"}
    forged["signatures"] = {BEN: {"ed25519:B": other.encryption.channels.account.sign(canonical_json(body))}}
    town.server.device_keys[BEN, "B"] = forged
    for _ in range(2):
        town.server.touch(BEN)
        with capture_logs() as logs:
            await ann.catch_up()
        assert [log["event"] for log in logs] == ["a device came with other keys, which are not taken"]
        device = ann.encryption.standing.device(BEN, "B")
        assert device is not None
        assert device.key == ben.encryption.identity_key
    assert await ben.hear(await ann.say()) == "hello"


@pytest.mark.parametrize("change", ["signature", "user_id", "device_id", "keys"])
async def test_a_device_that_does_not_hold_together_is_none(town: Town, change: str) -> None:
    ann, _ = await town.pair()
    keys = town.server.device_keys[BEN, "B"]
    if change == "signature":
        keys["signatures"][BEN]["ed25519:B"] = "A" * 86
    elif change == "keys":
        keys["keys"]["curve25519:B"] = "A" * 43
    else:
        keys[change] = "@other:hs.test"
    await ann.encryption.devices.refresh([BEN])
    assert ids(ann, BEN) == set()


async def test_an_identity_signs_devices(town: Town) -> None:
    ann, ben = await town.pair()
    await town.device(BEN, "B2")
    identify(ben)
    await ann.encryption.devices.refresh([BEN])
    assert (trust(ann, BEN, "B"), trust(ann, BEN, "B2")) == ("tofu", "unverified")


async def test_an_identity_that_is_left_out_is_not_forgotten(town: Town) -> None:
    """A homeserver cannot make a signed person an unsigned one by silence."""
    ann, ben = await town.pair()
    identify(ben)
    await ann.encryption.devices.refresh([BEN])
    town.server.identities.clear()
    await town.device(BEN, "B2")
    town.server.touch(BEN)
    await ann.catch_up()
    assert (trust(ann, BEN, "B"), trust(ann, BEN, "B2")) == ("tofu", "unverified")


async def test_a_signature_of_the_identity_before_is_worth_nothing(town: Town) -> None:
    ann, ben = await town.pair()
    identify(ben)
    await ann.encryption.devices.refresh([BEN])
    identify(ben, signed=False)
    await ann.catch_up()
    assert trust(ann, BEN, "B") == "unverified"


@pytest.mark.parametrize("section", ["master_keys", "self_signing_keys"])
@pytest.mark.parametrize("change", [{"user_id": EVE}, {"usage": ["user_signing"]}, {"usage": None}, {"usage": 5}])
async def test_a_key_serves_for_what_it_says_and_for_whom(town: Town, section: str, change: Raw) -> None:
    ann, ben = await town.pair()
    identify(ben)
    town.server.identities[section][BEN].update(change)
    await ann.encryption.devices.refresh([BEN])
    assert trust(ann, BEN, "B") in ("no_identity", "unverified")


async def test_a_self_signing_key_that_its_master_has_not_signed_signs_nothing(town: Town) -> None:
    ann, ben = await town.pair()
    identify(ben)
    other = PkSigning(PkSigning.generate_seed())
    key = town.server.identities["self_signing_keys"][BEN]
    key["signatures"] = {}
    town.server.identities["self_signing_keys"][BEN] = sign(key, BEN, other)
    await ann.encryption.devices.refresh([BEN])
    assert trust(ann, BEN, "B") == "unverified"


async def test_people_we_verified_are_verified(town: Town) -> None:
    """By the signature of our user-signing key, if that belongs to the identity that is known to be ours."""
    ann, ben = await town.pair()
    own, theirs = identify(ann), identify(ben)
    masters = town.server.identities["master_keys"]
    masters[BEN] = sign(masters[BEN], ANN, own.user_signing)
    await ann.encryption.devices.refresh([ANN, BEN])
    assert trust(ann, BEN, "B") == "tofu"
    assert not ann.encryption.standing.is_verified(BEN)
    ann.encryption.db.run("INSERT INTO facts VALUES ('master_key', ?)", own.master.public_key)
    assert trust(ann, BEN, "B") == "verified"
    assert ann.encryption.standing.is_verified(BEN)
    ann.encryption.db.run("UPDATE facts SET value = ? WHERE name = 'master_key'", theirs.master.public_key)
    assert trust(ann, BEN, "B") == "tofu"


async def test_our_other_devices_are_verified_by_the_identity_that_is_ours(town: Town) -> None:
    ann = await town.device(ANN, "A")
    second = await town.device(ANN, "A2")
    own = identify(second)
    await ann.encryption.devices.refresh([ANN])
    assert trust(ann, ANN, "A2") == "tofu"
    ann.encryption.db.run("INSERT INTO facts VALUES ('master_key', ?)", own.master.public_key)
    assert trust(ann, ANN, "A2") == "verified"
    assert trust(ann, ANN, "A") == "unverified"


# -- odd answers --

_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=50),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=5,
)


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    found = [path] if path else []
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, entry in items:
        found += _paths(entry, (*path, name))
    return found


async def test_an_odd_answer_about_one_harms_nobody_else(town: Town, autojump_clock: MockClock) -> None:
    ann, ben = await town.pair()
    eve = await town.device(EVE, "E")
    identify(ben)
    identify(eve)
    whole = town.server._keys_query((ANN, "A"), [], {"device_keys": {BEN: [], EVE: []}})
    paths = [path for path in _paths(whole) if EVE in path]
    cases: list[Any] = []

    @settings(max_examples=150, suppress_health_check=list(HealthCheck), database=None, derandomize=True)
    @given(st.sampled_from(paths), _VALUES)
    def collect(path: tuple[Any, ...], value: Any) -> None:
        case = place = copy.deepcopy(whole)
        for name in path[:-1]:
            place = place[name]
        place[path[-1]] = value
        cases.append(case)

    collect()
    for case in cases:
        town.server.instead["keys/query"] = lambda body, case=case: case  # type: ignore[misc]
        ann.encryption.devices.follow([BEN, EVE])
        ann.encryption.devices.changed([BEN, EVE])
        ann.encryption.db.run("UPDATE outdated SET next_ms = 0")
        await ann.encryption.devices.refresh([BEN, EVE])
        assert trust(ann, BEN, "B") == "tofu"
        assert not ann.encryption.devices.is_pending(BEN)


@pytest.mark.parametrize("answer", [{}, {"device_keys": None}, {"device_keys": []}])
async def test_an_answer_that_is_none_is_no_news(town: Town, answer: Raw) -> None:
    ann, _ = await town.pair()
    town.server.instead["keys/query"] = lambda body: answer
    with pytest.raises(MatrixResponseError):
        await ann.encryption.devices.refresh([BEN])
    assert ann.encryption.devices.is_pending(BEN)


async def test_news_of_somebody_else_is_no_news(town: Town) -> None:
    ann, _ = await town.pair()
    town.server.instead["keys/query"] = lambda body: {"device_keys": {"@x:y": {}, BEN: 5}}
    await ann.encryption.devices.refresh([BEN])
    assert ann.encryption.devices.is_pending(BEN)
    assert ann.encryption.devices.is_pending("@x:y")
