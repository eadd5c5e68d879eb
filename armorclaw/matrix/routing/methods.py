"""`policy.explain`: which rule decides who hears what, asked of the same function that decides."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import attrs

from armorclaw.errors import ArmorclawError
from armorclaw.events.event import Event
from armorclaw.events.journal import Journal
from armorclaw.guard.policy import Decision, Place
from armorclaw.matrix.answer import is_room_id
from armorclaw.matrix.routing.router import Router
from armorclaw.matrix.routing.service import Routing
from armorclaw.matrix.routing.shapes import Explained, ExplainParams, RouteShown
from armorclaw.rpc.registry import Registry, Role

if TYPE_CHECKING:
    from collections.abc import Mapping

    from armorclaw.matrix.rooms import RoomState
    from armorclaw.rpc.call import Call

_TEXT_LIMIT = 4_000


class Homes(Protocol):
    """What it asks the accounts: as `armorclaw.matrix.accounts.Accounts`."""

    def names(self) -> list[str]: ...
    def room_id(self, account: str, room: str) -> str | None: ...
    def account_for(self, room_id: str) -> str: ...
    def rooms(self, account: str) -> Mapping[str, RoomState]: ...


class PolicyMethods:
    """The handler; `register` gives it its name."""

    def __init__(self, routing: Routing, accounts: Homes, journal: Journal) -> None:
        self._routing = routing
        self._accounts = accounts
        self._journal = journal

    def register(self, registry: Registry) -> None:
        """Add it to the table."""
        method = registry.method
        method("policy.explain", params=ExplainParams, result=Explained, roles={Role.OPERATOR})(self.explain)

    async def explain(self, call: Call, params: ExplainParams) -> Explained:
        """Which rule decides who hears what is said in a room.

        Raises not_found for a room that the account is not in, unless it is asked about an event of it.
        """
        account, room_id = self._where(params)
        router = self._routing.routers[account]
        place = router.standing(room_id)
        if params.event is not None:
            return await self._of_event(router, place, params.event)
        state = self._accounts.rooms(account).get(room_id)
        if state is None or state.membership != "join":
            raise self._outside(params, account, room_id, "" if state is None else state.membership)
        sender = params.sender or self._routing.policy.somebody(place)
        said = Event.make(
            "m.room.message",
            {"msgtype": "m.text", "body": params.text[:_TEXT_LIMIT]},
            at_ms=0,
            account=account,
            room_id=room_id,
            sender=sender,
            event_id="$hypothetical",
        )
        found = self._explained(place, sender, router.decide(place, await router.said(said, place)))
        if deaf := self._routing.deaf(account, room_id):
            return attrs.evolve(found, deaf=deaf, kept=False, agents=[])
        return found

    def _where(self, params: ExplainParams) -> tuple[str, str]:
        """Raises matrix_not_configured, invalid_params, not_found."""
        names = self._accounts.names() if params.account is None else [params.account]
        if params.room.startswith("#"):
            for name in names:
                if (room_id := self._accounts.room_id(name, params.room)) is not None:
                    return params.account or self._account_in(room_id) or name, room_id
            what = f"the room of {params.room[:300]} is not known"
            raise ArmorclawError("not_found", what, hint="give its id; aliases are known where they are granted")
        if not is_room_id(params.room):
            what = f"{params.room[:300]!r} is neither a room id nor an alias"
            raise ArmorclawError("invalid_params", what, fields=["room"])
        if params.account is None:
            return self._account_in(params.room) or self._accounts.account_for(params.room), params.room
        self._accounts.rooms(params.account)  # raises matrix_not_configured
        return params.account, params.room

    def _account_in(self, room_id: str) -> str | None:
        """The one that answers orders there."""
        return next((place.account for place in self._routing.in_room(room_id)), None)

    def _outside(self, params: ExplainParams, account: str, room_id: str, membership: str) -> ArmorclawError:
        whose = "no account of the bridge is" if params.account is None else f"account {account} is not"
        user = self._routing.routers[account].standing(room_id).user_id or f"account {account}"
        return ArmorclawError(
            "not_found",
            f"{whose} in room {room_id[:300]}",
            why=f"account {account}: {membership}" if membership else "",
            hint=f"compare it with: armorclaw call matrix.rooms; or grant it to an agent and invite {user} there",
        )

    async def _of_event(self, router: Router, place: Place, event_id: str) -> Explained:
        """Raises not_found for one that is neither in the journal nor among those that were left out last."""
        left_out = router.left_out(place.lineage[0], event_id)
        if left_out is not None:
            was = self._explained(place, left_out.sender, left_out.decision)
            return attrs.evolve(was, as_it_was=True, was_for=[] if was.kept else None)
        event = await self._journal.of_matrix(place.account, event_id)
        if event is None or event.room_id != place.lineage[0]:
            what = f"event {event_id[:300]} of room {place.lineage[0]} is not kept"
            hint = "it was nobody's, or of another room; ask with sender and text instead"
            raise ArmorclawError("not_found", what, hint=hint)
        decision = router.decide(place, await router.said(event, place))
        was_for = None if event.addressed is None else list(event.addressed)
        return attrs.evolve(self._explained(place, event.sender, decision), was_for=was_for)

    def _explained(self, place: Place, sender: str | None, decision: Decision) -> Explained:
        policy = self._routing.policy
        state = self._accounts.rooms(place.account).get(place.lineage[0])
        agents = sorted(place.hearing) if decision.addressed is None else list(decision.addressed)
        return Explained(
            room_id=place.lineage[0],
            account=place.account,
            membership=None if state is None else state.membership,
            direct=place.direct,
            replaces=list(place.lineage[1:]),
            level=place.level,
            routes=[RouteShown(each.agent, each.respond, each.origin) for each in place.routed],
            hearing=sorted(place.hearing),
            sender=sender,
            is_trusted=sender is not None and policy.knows(sender),
            may_command=sender is not None and policy.may_command(sender),
            rule=decision.rule,
            where=decision.where,
            why=decision.why,
            kept=decision.kept,
            agents=agents if decision.kept else [],
        )
