"""The methods that tell of rooms and people, for operators and agents; answered from memory where that is right."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from armorclaw.errors import ArmorclawError
from armorclaw.events.event import ascii_json
from armorclaw.matrix.accounts import Accounts
from armorclaw.matrix.answer import DEPTH_LIMIT
from armorclaw.matrix.facts import Facts
from armorclaw.matrix.permission import Permission
from armorclaw.matrix.shapes import (
    Member,
    Members,
    MembersParams,
    Profile,
    ProfileParams,
    RoomStateContent,
    RoomStateParams,
)
from armorclaw.rpc.registry import Registry, Role

if TYPE_CHECKING:
    from armorclaw.rpc.call import Call

ANSWER_BYTES = 256 * 1024
"""Of one answer: names can be long, and homeservers can say anything."""

_NAME_LIMIT = 1024  # characters of a name or an address that are passed on
_ROLES = frozenset({Role.OPERATOR, Role.AGENT})


class Lookups:
    """The handlers; `register` gives them their names."""

    def __init__(self, accounts: Accounts, permission: Permission) -> None:
        self._accounts = accounts
        self._permission = permission

    def register(self, registry: Registry) -> None:
        """Add them to the table."""
        method = registry.method
        method("matrix.members", params=MembersParams, result=Members, roles=_ROLES)(self.members)
        method("matrix.profile", params=ProfileParams, result=Profile, roles=_ROLES)(self.profile)
        method("matrix.state", params=RoomStateParams, result=RoomStateContent, roles=_ROLES)(self.state)

    async def members(self, call: Call, params: MembersParams) -> Members:
        """Who has joined a room, page by page. An agent may ask for the rooms that are granted to it."""
        found = await self._facts_of(call, params.room_id, params.account).members(params.room_id)
        page: list[Member] = []
        size = 0
        for user_id in sorted(user for user in found if user > params.after):
            member = Member(user_id, *_seen(found[user_id], "display_name"))
            size += 4 * sum(len(text or "") for text in (user_id, member.display_name, member.avatar_url))
            if len(page) == params.limit or (page and size > ANSWER_BYTES):
                return Members(params.room_id, page, len(found), page[-1].user_id)
            page.append(member)
        return Members(params.room_id, page, len(found), None)

    async def profile(self, call: Call, params: ProfileParams) -> Profile:
        """What is known of a person. An agent asks for one of the rooms that are granted to it, and must name it."""
        if params.room_id is None:
            if call.agent is not None:  # the question goes to any server that the agent would name: a way out
                hint = "name a room that is granted to the agent"
                raise ArmorclawError("invalid_params", "room_id is missing", hint=hint, fields=["room_id"])
            facts = self._accounts.facts(params.account)
            found = await facts.profile(params.user_id)
            return Profile(params.user_id, *_seen(found or {}, "displayname"), None)
        facts = self._facts_of(call, params.room_id, params.account)
        member = await facts.state(params.room_id, "m.room.member", params.user_id) or {}
        membership = member.get("membership")
        return Profile(
            params.user_id, *_seen(member, "displayname"), membership if isinstance(membership, str) else None
        )

    async def state(self, call: Call, params: RoomStateParams) -> RoomStateContent:
        """One piece of a room's state, as it is now. An agent may ask for the rooms that are granted to it."""
        facts = self._facts_of(call, params.room_id, params.account)
        content = await facts.state(params.room_id, params.type, params.state_key)
        what = f"{params.type} of {params.room_id}"
        try:
            size = 0 if _is_deeper(content, DEPTH_LIMIT) else len(ascii_json(content))
        except ValueError:
            size = 0
        if not size:  # too deep, or with numbers that JSON has not
            why, hint = "the homeserver's answer cannot be passed on", "have somebody in the room set it anew"
            raise ArmorclawError("matrix_refused", what, why=why, hint=hint)
        if size > ANSWER_BYTES:
            why, hint = f"it has {size} bytes, and {ANSWER_BYTES} fit", "read it with a Matrix client"
            raise ArmorclawError("too_large", what, why=why, hint=hint)
        return RoomStateContent(
            params.room_id, params.type, params.state_key, None if content is None else dict(content)
        )

    def _facts_of(self, call: Call, room_id: str, account: str | None) -> Facts:
        return self._accounts.facts(self._permission.account_for(call, room_id, account))


def _seen(facts: Mapping[str, Any], name: str) -> tuple[str | None, str | None]:
    """A name and the address of a picture, as far as they are texts."""
    texts = (facts.get(name), facts.get("avatar_url"))
    display_name, avatar_url = (text[:_NAME_LIMIT] if isinstance(text, str) else None for text in texts)
    return display_name, avatar_url


def _is_deeper(value: Any, depth: int) -> bool:
    """Level by level: what is to be found out here is whether recursion would do."""
    level = [value]
    for _ in range(depth + 1):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
        if not level:
            return False
    return True
