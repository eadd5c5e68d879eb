"""What `policy.explain` takes and answers."""

from __future__ import annotations

from typing import Literal

import attrs

from armorclaw.rpc.shape import omit_none


@attrs.frozen
class ExplainParams:
    """`room` is an id or an alias. `sender` says `text` there, by default somebody who is heard, and a few words; or
    `event` names what was said. `account` is by default the one that is in the room, of several the one that answers
    orders there."""

    room: str
    account: str | None = None
    sender: str | None = None
    text: str = "hello"
    event: str | None = None


@attrs.frozen
class RouteShown:
    """An agent that answers there: what of the room it hears, and where that is written."""

    agent: str
    respond: Literal["always", "mention", "reply", "command"]
    where: str


@omit_none
@attrs.frozen
class Explained:
    """How a room stands, and what is decided there.

    `membership` is null for a room that is not known, `direct` with whom it is a direct chat, as far as that person
    is trusted; `replaces` are the rooms it replaced. `routes` are those of the one part of the table that counts
    here, `level`, null if no agent is routed. Of what `sender` says `rule` decides, the first that applies; it is
    written at `where`. `agents` hear it; "@bridge" is the bridge itself. `kept` tells whether it is for the journal
    at all. For an `event` that is in the journal, `was_for` are those to whom it was addressed when it came, null if
    that was everybody who heard the room; with `as_it_was` all is what was decided then. `deaf` tells why nobody
    hears anything of the room for now, whatever the rules say, and what would change that.
    """

    room_id: str
    account: str
    membership: str | None
    direct: str | None
    replaces: list[str]
    level: Literal["chosen", "route", "dm"] | None
    routes: list[RouteShown]
    hearing: list[str]
    sender: str | None
    is_trusted: bool
    may_command: bool
    rule: str
    where: str
    why: str
    kept: bool
    agents: list[str]
    as_it_was: bool = False
    was_for: list[str] | None = None
    deaf: str | None = None
