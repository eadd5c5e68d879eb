"""Verification, devices and recovery keys on the wire, for operators."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import TYPE_CHECKING, Protocol

import trio

from armorclaw.errors import one_error
from armorclaw.guard.keystore import KeyStore
from armorclaw.matrix.trust.port import TrustPort
from armorclaw.matrix.trust.shapes import (
    AcceptParams,
    DevicesParams,
    MatrixDevices,
    RecoveryKey,
    RecoveryKeyParams,
    Verified,
    VerifyAnswer,
    VerifyParams,
    VerifyStep,
)
from armorclaw.rpc.registry import Registry, Role

if TYPE_CHECKING:
    from armorclaw.matrix.trust.exchange import Exchange
    from armorclaw.rpc.call import Call

PROVIDER = "matrix"
"""Under which a recovery key is put into the keystore."""


class Ports(Protocol):
    """Where accounts are found: `armorclaw.matrix.accounts.Accounts`."""

    def trust(self, account: str | None) -> TrustPort: ...


def register(registry: Registry, accounts: Ports, keystore: KeyStore) -> None:
    """Adds them to the table."""
    operator = {Role.OPERATOR}

    @registry.method(
        "matrix.verify", params=VerifyParams, result=Verified, chunk=VerifyStep, upload=VerifyAnswer, roles=operator
    )
    async def verify(call: Call, params: VerifyParams) -> Verified:
        """Verify somebody, or another device of the account, by comparing emoji or numbers.

        Each chunk is how it stands; those of state `requested` and `compare` want an answer, as a piece of the
        upload. Whoever ends the call cancels the verification. It ends by itself within ten minutes.
        """
        trust = accounts.trust(params.account).get()
        if params.user_id is None:
            await call.send(VerifyStep("waiting"))
            exchange = await trust.verifications.next_request()
        else:
            exchange = await trust.verifications.ask(
                params.user_id, params.device_id, params.room_id, direct=params.direct
            )
        try:
            with one_error():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_take_answers, call, exchange)
                    await _tell_steps(call.send, exchange)
                    nursery.cancel_scope.cancel(reason="the verification is over")
        finally:
            exchange.cancel()  # nothing once it is over
        return _outcome(exchange)

    @registry.method("matrix.devices", params=DevicesParams, result=MatrixDevices, roles=operator)
    async def devices(call: Call, params: DevicesParams) -> MatrixDevices:
        """The devices of a user, and how far each is trusted."""
        return await accounts.trust(params.account).get().devices(params.user_id)

    @registry.method("matrix.accept_identity", params=AcceptParams, roles=operator)
    def accept_identity(call: Call, params: AcceptParams) -> None:
        """Believe the cross-signing identity that somebody has now, although it is not the first that was seen.

        Its key is named, lest another one be believed than the one that was looked at.
        """
        accounts.trust(params.account).get().accept_identity(params.user_id, params.master)

    @registry.method("matrix.recovery_key", params=RecoveryKeyParams, result=RecoveryKey, roles=operator)
    async def recovery_key(call: Call, params: RecoveryKeyParams) -> RecoveryKey:
        """The recovery key of the account's cross-signing identity, which is told once: then it is forgotten here."""
        trust = accounts.trust(params.account).get()
        key = await trust.new_recovery_key() if params.new else trust.recovery_key()
        if params.store is None:
            await trio.lowlevel.checkpoint()  # a caller that has gone meanwhile is not shown it
            trust.recovery_key_shown(key)
            return RecoveryKey(trust.account, key)
        name = f"recovery key of {trust.account}"
        await keystore.store(provider=PROVIDER, token=key, id=params.store, display_name=name)
        trust.recovery_key_shown(key)
        return RecoveryKey(trust.account, stored=params.store)


async def _take_answers(call: Call, exchange: Exchange) -> None:
    async for answer in call.uploads():
        step = _step(exchange)
        if step is None or answer.state != step.state:
            continue  # it was said to a step that is past
        if step.state == "compare":
            exchange.confirm(answer.yes)
        elif answer.yes:
            exchange.accept()
        else:
            exchange.cancel()


async def _tell_steps(send: Callable[[VerifyStep], Awaitable[None]], exchange: Exchange) -> None:
    """Each once, in order; what passed while one was being sent is left out."""
    told: VerifyStep | None = None
    while (step := _step(exchange)) is not None:
        if step == told:
            await exchange.changed()
        else:
            await send(step)
            told = step


def _step(exchange: Exchange) -> VerifyStep | None:
    """How it stands; None at the end."""
    v = exchange.verification
    if exchange.over:
        return None
    step = partial(VerifyStep, user_id=v.their_user, device_id=v.their_device)
    if v.asks_us:
        return step("requested")
    if v.phase == "requested":
        return step("asked")
    if v.phase == "shown" and v.shown is not None:
        return step("compare", emoji=[list(each) for each in v.shown.emoji], decimals=list(v.shown.decimals))
    return step("confirmed" if v.phase in ("confirmed", "done") else "agreeing")


def _outcome(exchange: Exchange) -> Verified:
    v = exchange.verification
    keys = sorted(v.proven) if exchange.concluded else []
    code = "" if exchange.concluded else v.code or "m.user"
    reason = "" if exchange.concluded else exchange.failure or v.reason
    return Verified(exchange.concluded, v.their_user, v.their_device, keys, code, reason)
