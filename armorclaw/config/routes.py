"""Which agent answers where: the list `[[routes]]`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import attrs

from armorclaw.config.checks import check_rooms
from armorclaw.structure import FaultError

if TYPE_CHECKING:
    from armorclaw.config.agent import Agent

Respond = Literal["always", "mention", "reply", "command"]
"""What of a room an agent hears. `command`: what begins with `!NAME`. `reply`: also answers to what it said, and the
threads that it takes part in. `mention`: also what mentions its account. `always`: all of it."""


def _room(instance: object, attribute: attrs.Attribute[Any], value: str) -> None:
    if value:
        check_rooms([value])


@attrs.frozen
class Route:
    """That `agent` answers in a room, by id or alias, or with `dm` in direct chats with trusted people.

    It is granted the room by that. `account` is, and is by default, the one the agent speaks for. `respond` is what
    of the room it hears.
    """

    agent: str = attrs.field()
    room: str = attrs.field(default="", validator=_room)
    dm: bool = False
    account: str = ""
    respond: Respond = "always"

    def __attrs_post_init__(self) -> None:
        self.check_together(attrs.asdict(self))

    def account_among(self, agents: Mapping[str, Agent]) -> str:
        """The account it is for, with these agents declared."""
        declared = agents.get(self.agent)
        return self.account or ("main" if declared is None else declared.account)

    @staticmethod
    def check_together(given: Mapping[str, Any]) -> None:
        """What no single value can tell."""
        if bool(given.get("room")) == bool(given.get("dm")):
            why = "it says neither a room nor dm = true" if not given.get("room") else "it has a room, and dm = true"
            raise FaultError(why, 'write room = "!opaque:server", or dm = true')
