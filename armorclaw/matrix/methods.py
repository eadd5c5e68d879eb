"""The Matrix methods of the bridge, for operators and agents.

Their shapes are those of the original bridge, with members added; its clients give up after 5 seconds, so each answer
comes within 4.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import attrs

from armorclaw.delivery.outbox import Outbox
from armorclaw.errors import ArmorclawError
from armorclaw.events.event import Event
from armorclaw.events.methods import hears
from armorclaw.events.subscriptions import MAIN, Subscriptions
from armorclaw.guard.grants import Grants
from armorclaw.matrix.accounts import Accounts
from armorclaw.matrix.lookups import Lookups
from armorclaw.matrix.message_methods import MessageMethods
from armorclaw.matrix.permission import Permission
from armorclaw.matrix.room_methods import RoomMethods
from armorclaw.matrix.shapes import (
    LoggedIn,
    LoginParams,
    MatrixStatus,
    Received,
    ReceivedEvent,
    ReceiveParams,
)
from armorclaw.matrix.status import SessionStatus
from armorclaw.rpc.admission import Rate
from armorclaw.rpc.registry import Registry, Role
from armorclaw.structure import Secret

if TYPE_CHECKING:
    from armorclaw.rpc.call import Call

LOGIN_RATE = Rate(5 / 60, 5)
"""Five attempts, then one each twelve seconds: homeservers refuse those who try more often, and lock the account."""

POLL_LIMIT = 3.5
"""Seconds that matrix.receive waits at most, whatever is asked for."""

_WRITERS = frozenset({Role.OPERATOR, Role.AGENT})
_READERS = _WRITERS | {Role.OBSERVER}


_Consumer = tuple[str, str]
"""Who polls: an agent, or "" for operators, and the name of the cursor."""


class MatrixMethods:
    """The handlers; `register` gives them their names."""

    def __init__(self, accounts: Accounts, outbox: Outbox, subscriptions: Subscriptions, grants: Grants) -> None:
        self._accounts = accounts
        self._subscriptions = subscriptions
        self._grants = grants
        permission = Permission(accounts, grants, outbox)
        self._parts = (
            MessageMethods(accounts, outbox, permission),
            RoomMethods(accounts, grants, permission),
            Lookups(accounts, permission),
        )
        self._given: dict[_Consumer, str] = {}  # the cursor given last
        self._polling: set[_Consumer] = set()  # those that have a receive under way

    def register(self, registry: Registry) -> None:
        """Add them to the table."""
        method = registry.method
        method("matrix.login", params=LoginParams, result=LoggedIn, roles={Role.OPERATOR}, rate=LOGIN_RATE)(
            self.login
        )
        method("matrix.status", result=MatrixStatus, roles=_READERS)(self.status)
        # clients of other versions send what this one does not know
        method("matrix.receive", params=ReceiveParams, result=Received, roles=_WRITERS, open=True)(self.receive)
        for part in self._parts:
            part.register(registry)

    async def login(self, call: Call, params: LoginParams) -> LoggedIn:
        """Log a Matrix account in with a password. A session that runs goes on if this fails."""
        if not params.username or not params.password:
            empty = [field for field in ("username", "password") if not getattr(params, field)]
            raise ArmorclawError("invalid_params", f"{' and '.join(empty)} must not be empty", fields=empty)
        status = await self._accounts.login(params.account, params.username, Secret(params.password))
        if status is None:
            return LoggedIn("logging_in", None)
        return LoggedIn("logged_in", status.user_id)

    def status(self, call: Call, params: object) -> MatrixStatus:
        """Whether the Matrix account works: an agent's own, else the main one and a list of all."""
        status = self._accounts.status(self._grants.account_of(call.agent) if call.agent else None)
        if status is None:
            return MatrixStatus(False, "not_configured", None, False)
        short = _short(status)
        if call.role is Role.AGENT:
            return short
        return attrs.evolve(short, reason=status.reason, accounts=self._accounts.reports())

    async def receive(self, call: Call, params: ReceiveParams) -> Received:
        """Poll for events of granted rooms.

        Each call acknowledges the batch before. Without a cursor, a batch whose answer was lost on its way is lost;
        a call with the cursor of the last answer that did arrive has it again. Each consumer has all events from its
        first call on: an agent is one, and operators are one for each `consumer` they name, or for each uid. A
        consumer has one call at a time. Events that are pushed to a connection of an agent cannot be polled as well.
        """
        consumer = _consumer(call, params)
        if consumer in self._polling:
            what = f"{_in_words(consumer)} has a matrix.receive under way"
            hint = f"wait for its answer, {POLL_LIMIT:g} s at most"
            raise ArmorclawError("conflict", what, hint=hint)
        self._polling.add(consumer)
        try:
            return await self._receive(call, consumer, params)
        finally:
            self._polling.discard(consumer)

    async def _receive(self, call: Call, consumer: _Consumer, params: ReceiveParams) -> Received:
        owner, name = consumer
        if params.cursor and self._given.get(consumer) not in (None, params.cursor):
            self._subscriptions.forget_batch(owner, name)  # the answer with the other cursor has not arrived

        def allowed(event: Event) -> bool:
            if event.event_id is None or event.room_id is None:
                return False
            # two accounts may be in one room, and then each has the event: an agent hears its own account's
            return call.agent is None or hears(self._grants, call.agent, event)

        wait = min(params.timeout_ms / 1000, POLL_LIMIT)
        events = await self._subscriptions.take(owner, params.limit, name=name, allowed=allowed, wait=wait)
        if events:
            self._given[consumer] = str(events[-1].seq)
        cursor = self._given.get(consumer, params.cursor)
        return Received([_received(event) for event in events], len(events), cursor)


def _consumer(call: Call, params: ReceiveParams) -> _Consumer:
    """Whose cursor moves, and its name."""
    if call.agent is None:
        return "", f"receive.{params.consumer or f'uid-{call.uid}'}"
    if params.consumer:
        hint = "leave it out"
        raise ArmorclawError("invalid_params", "an agent is one consumer", hint=hint, fields=["consumer"])
    return call.agent, MAIN


def _in_words(consumer: _Consumer) -> str:
    owner, name = consumer
    return owner or f"the consumer {name.removeprefix('receive.')}"


def _short(status: SessionStatus) -> MatrixStatus:
    return MatrixStatus(
        enabled=True,
        status="connected" if status.connected else "disconnected",
        user_id=status.user_id,
        logged_in=status.user_id is not None and status.state != "logged_out",
    )


def _received(event: Event) -> ReceivedEvent:
    """An event in the original's words. `origin_server` was always empty there; here it is the sender's server."""
    sender = event.sender or ""
    return ReceivedEvent(
        type=event.type,
        room_id=event.room_id or "",
        sender=sender,
        content=json.loads(event.content),
        origin_server=sender.partition(":")[2],
        event_id=event.event_id or "",
    )
