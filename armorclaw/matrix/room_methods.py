"""The methods about rooms: which there are, getting into them and out."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from armorclaw.guard.grants import Grants
from armorclaw.matrix.accounts import Accounts
from armorclaw.matrix.permission import Permission
from armorclaw.matrix.room_shapes import Joined, JoinParams, LeaveParams, RoomShown, RoomsParams
from armorclaw.matrix.rooms import RoomState
from armorclaw.rpc.registry import Registry, Role

if TYPE_CHECKING:
    from armorclaw.rpc.call import Call

_OPERATOR = frozenset({Role.OPERATOR})


class RoomMethods:
    """The handlers; `register` gives them their names."""

    def __init__(self, accounts: Accounts, grants: Grants, permission: Permission) -> None:
        self._accounts = accounts
        self._grants = grants
        self._permission = permission

    def register(self, registry: Registry) -> None:
        """Add them to the table."""
        method = registry.method
        method("matrix.rooms", params=RoomsParams, result=list[RoomShown], roles=_OPERATOR | {Role.AGENT})(self.rooms)
        method("matrix.join", params=JoinParams, result=Joined, roles=_OPERATOR)(self.join)
        method("matrix.leave", params=LeaveParams, roles=_OPERATOR)(self.leave)

    def rooms(self, call: Call, params: RoomsParams) -> list[RoomShown]:
        """The rooms that are known, those we were invited to or have left among them; for an agent, those granted."""
        return list(self._rooms(call, params))

    def _rooms(self, call: Call, params: RoomsParams) -> Iterator[RoomShown]:
        if call.agent is not None:
            own = self._grants.account_of(call.agent)
            granted = self._grants.rooms_of(call.agent)
            for room_id, state in sorted(self._accounts.rooms(own).items() if own is not None else ()):
                if room_id in granted:
                    yield _shown(room_id, own or "", state, None)
            return
        for name in self._accounts.names() if params.account is None else [params.account]:
            for room_id, state in sorted(self._accounts.rooms(name).items()):
                yield _shown(room_id, name, state, sorted(self._grants.agents_in(name, room_id)))

    async def join(self, call: Call, params: JoinParams) -> Joined:
        """Join a room. Agents hear and answer there only once it is granted to them."""
        facts = self._accounts.facts(params.account)
        room_id = await facts.done(f"joining {params.room}", lambda client: client.join(params.room, params.via))
        return Joined(room_id, facts.account)

    async def leave(self, call: Call, params: LeaveParams) -> None:
        """Leave a room, or refuse an invite. If it is granted to an agent, only an invite brings the account back."""
        account = self._permission.account_for(call, params.room_id, params.account)
        facts = self._accounts.facts(account)
        await facts.done(f"leaving {params.room_id}", lambda client: client.leave(params.room_id, params.reason))


def _shown(room_id: str, account: str, state: RoomState, agents: list[str] | None) -> RoomShown:
    return RoomShown(
        room_id=room_id,
        account=account,
        membership=state.membership,
        encrypted=state.encrypted,
        name=state.name,
        alias=state.alias,
        direct=state.direct,
        inviter=state.inviter,
        successor=state.successor,
        agents=agents,
    )
