"""Who may do what in which room, as far as the Matrix methods go: an agent in its rooms, with its own messages."""

from __future__ import annotations

from typing import TYPE_CHECKING

import attrs

from armorclaw.delivery.outbox import Outbox
from armorclaw.errors import ArmorclawError
from armorclaw.guard.grants import Grants
from armorclaw.matrix.accounts import Accounts
from armorclaw.matrix.answer import is_room_id

if TYPE_CHECKING:
    from armorclaw.rpc.call import Call


@attrs.frozen
class Target:
    """An event that another one is about. `event_id` is the id of its delivery where it has none yet: `refers`."""

    event_id: str
    refers: str | None = None


def account_for(accounts: Accounts, grants: Grants, call: Call, room_id: str, account: str | None) -> str:
    """The account that the caller speaks for in a room; `account` is an operator's choice.

    Raises invalid_params, room_denied, matrix_not_configured.
    """
    if not is_room_id(room_id):
        what, hint = f"room_id {room_id[:80]!r} is no room id", "see the room's settings, advanced"
        raise ArmorclawError("invalid_params", what, hint=hint, fields=["room_id"])
    if call.agent is None:
        return accounts.account_for(room_id) if account is None else accounts.facts(account).account
    own = grants.account_of(call.agent)
    if own is None or not grants.may(call.agent, room_id):
        raise ArmorclawError("room_denied", f"agent {call.agent!r} has no grant for room {room_id}")
    return own


class Permission:
    """Asked by handlers before anything else. What an agent may not know of, and what is not there, look alike."""

    def __init__(self, accounts: Accounts, grants: Grants, outbox: Outbox) -> None:
        self._accounts = accounts
        self._grants = grants
        self._outbox = outbox

    def account_for(self, call: Call, room_id: str, account: str | None) -> str:
        """As the function of that name."""
        return account_for(self._accounts, self._grants, call, room_id, account)

    async def target(
        self, call: Call, account: str, room_id: str, event_id: str | None, delivery_id: str | None, *, own: bool
    ) -> Target:
        """The event that is meant, by one of the two ids. `own`: an agent may only mean what it sent itself.

        Raises invalid_params, not_found for a delivery that the caller may not know of, and message_denied.
        """
        if (event_id is None) == (delivery_id is None):
            fields = ["event_id", "delivery_id"]
            raise ArmorclawError("invalid_params", "one of event_id and delivery_id must be given", fields=fields)
        if delivery_id is not None:
            sent = await self._outbox.status(delivery_id)
            if call.agent not in (None, sent.agent) or (sent.account, sent.room_id) != (account, room_id):
                raise ArmorclawError("not_found", f"there is no delivery {delivery_id[:80]!r} to room {room_id}")
            if sent.event_id is not None:
                return Target(sent.event_id)
            if not sent.waiting:
                raise ArmorclawError("conflict", f"delivery {delivery_id}", why=f"it is {sent.state}")
            return Target(delivery_id, delivery_id)
        assert event_id is not None
        if own and call.agent is not None:
            known = await self._outbox.of_event(account, event_id)
            if known is None or (known.agent, known.room_id) != (call.agent, room_id):
                raise ArmorclawError("message_denied", f"event {event_id[:80]} is no message of agent {call.agent!r}")
        return Target(event_id)
