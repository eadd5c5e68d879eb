"""What operators are answered when the session ends under their call, and of recovery keys that nobody could keep."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
import trio

from armorclaw.errors import ArmorclawError
from armorclaw.matrix.trust.methods import register
from armorclaw.matrix.trust.shapes import Verified, VerifyStep
from armorclaw.matrix.trust.trust import Trust
from armorclaw.matrix.trust.verifications import SESSION_ENDED
from armorclaw.rpc.registry import Registry, Role

from .test_recovery_key import opened_with
from .test_trust import Api, made, no_threads
from .test_verification import BOB
from .test_verifications import home

__all__ = ["no_threads"]


@attrs.define
class Safe:
    """A keystore; `trouble` is what it raises."""

    trouble: Exception | None = None
    kept: dict[str, str] = attrs.field(factory=dict)

    async def store(self, *, token: str, id: str, **more: Any) -> None:  # noqa: A002
        await trio.lowlevel.checkpoint()
        if self.trouble is not None:
            raise self.trouble
        self.kept[id] = token


@attrs.define
class Caller:
    """Is sent the steps of a verification, and answers none."""

    steps: list[str] = attrs.field(factory=list)

    async def send(self, step: VerifyStep) -> None:
        await trio.lowlevel.checkpoint()
        self.steps.append(step.state)

    async def uploads(self) -> AsyncIterator[Any]:
        await trio.Event().wait()
        yield


def calls(trust: Any, keystore: Safe | None = None) -> Callable[..., Awaitable[Any]]:
    """Calls of an operator, by name and params."""
    registry, ports = Registry(), SimpleNamespace(trust=lambda account: SimpleNamespace(get=lambda: trust))
    safe: Any = keystore or Safe()
    register(registry, ports, safe)

    async def call(name: str, caller: Any = None, **params: Any) -> Any:
        method = registry.table(Role.OPERATOR)[f"matrix.{name}"]
        return await method.handler(caller, method.read(params))

    return call


async def test_a_call_does_not_outlive_the_session_it_verifies_in(autojump_clock: trio.testing.MockClock) -> None:
    answers: list[Verified | str] = []
    callers = [Caller(), Caller(), Caller()]

    async def verify(alice: Any, caller: Caller, **params: Any) -> None:
        try:
            answers.append(
                await calls(SimpleNamespace(verifications=alice.verifications))("verify", caller, **params)
            )
        except ArmorclawError as error:
            answers.append(error.name)

    with trio.fail_after(5):
        async with trio.open_nursery() as operators:
            async with home() as alice:
                alice.asked_by(BOB.user_id)
                operators.start_soon(verify, alice, callers[0])
                await trio.testing.wait_all_tasks_blocked()
                operators.start_soon(verify, alice, callers[1])
                operators.start_soon(lambda: verify(alice, callers[2], user_id=BOB.user_id))
                await trio.testing.wait_all_tasks_blocked()
    assert [caller.steps for caller in callers] == [["waiting", "requested"], ["waiting"], ["asked"]]
    ended = [answer for answer in answers if not isinstance(answer, str)]
    assert [(each.verified, each.reason) for each in ended] == [(False, SESSION_ENDED)] * 2
    assert [answer for answer in answers if isinstance(answer, str)] == ["unavailable"]


# -- recovery keys


async def settled(trust: Trust, nursery: trio.Nursery) -> None:
    """And the first recovery key is shown."""
    nursery.start_soon(trust.run)
    await trust.introduced.wait()
    trust.recovery_key_shown(trust.recovery_key())


@pytest.mark.usefixtures("no_threads")
async def test_a_new_recovery_key_that_the_keystore_does_not_take_is_still_there(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    api, safe = Api(), Safe(ArmorclawError("storage_full", "no room"))
    async with made(tmp_path, api) as (trust, _, _), trio.open_nursery() as nursery:
        await settled(trust, nursery)
        call = calls(trust, safe)
        for new in (True, False):
            with pytest.raises(ArmorclawError, match="no room"):
                await call("recovery_key", new=new, store="safe")
        safe.trouble = None
        await call("recovery_key", store="safe")
        assert opened_with(api.home, safe.kept["safe"]) == trust.standing.master
        with pytest.raises(ArmorclawError) as shown:
            await call("recovery_key")
        assert shown.value.name == "not_found"
        nursery.cancel_scope.cancel(reason="the test is done")


@pytest.mark.usefixtures("no_threads")
async def test_a_new_recovery_key_whose_caller_has_gone_is_still_there(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    api = Api()
    async with made(tmp_path, api) as (trust, _, _), trio.open_nursery() as nursery:
        await settled(trust, nursery)
        call, renew = calls(trust), trust._cross_signing.renew_recovery_key
        with trio.CancelScope() as scope:

            async def renew_and_go() -> str:
                key = await renew()
                scope.cancel(reason="the caller has gone")
                return key

            trust._cross_signing.renew_recovery_key = renew_and_go  # type: ignore[method-assign]
            await call("recovery_key", new=True)
        assert scope.cancelled_caught
        key = (await call("recovery_key")).recovery_key
        assert opened_with(api.home, key) == trust.standing.master
        nursery.cancel_scope.cancel(reason="the test is done")


@pytest.mark.usefixtures("no_threads")
async def test_a_renewal_that_was_cut_short_is_completed_and_told(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    api = Api()
    async with made(tmp_path, api) as (trust, _, told), trio.open_nursery() as nursery:
        await settled(trust, nursery)
        call, master = calls(trust), trust.standing.master
        await trio.sleep(60)
        told.clear()
        api.home.fail_at = len(api.home.requests) + 2
        with pytest.raises(ArmorclawError) as away:
            await call("recovery_key", new=True)
        with pytest.raises(ArmorclawError) as not_yet:
            await call("recovery_key")
        assert (away.value.name, not_yet.value.name) == ("unavailable", "unavailable")
        await trio.sleep(60)
        assert told == ["matrix_recovery_key"]
        key = (await call("recovery_key")).recovery_key
        assert opened_with(api.home, key) == master
        nursery.cancel_scope.cancel(reason="the test is done")


@pytest.mark.usefixtures("no_threads")
async def test_who_was_shown_a_recovery_key_has_not_seen_a_newer_one(
    tmp_path: Path, autojump_clock: trio.testing.MockClock
) -> None:
    api = Api()
    async with made(tmp_path, api) as (trust, _, _), trio.open_nursery() as nursery:
        await settled(trust, nursery)
        old = await trust.new_recovery_key()
        new = await trust.new_recovery_key()
        trust.recovery_key_shown(old)
        assert trust.recovery_key() == new
        nursery.cancel_scope.cancel(reason="the test is done")
