"""`armorclaw events`: what happened, and what happens."""

from __future__ import annotations

import json

from armorclaw.cli import show
from armorclaw.cli.options import Bridge, client, group
from armorclaw.cli.tail import FOLLOW, LAST_FEW, SINCE, Event, Since, tail


@group("events")
def command() -> None:
    """What happened, and what happens."""


@command.command("tail")
@SINCE
@FOLLOW
@client
def events_tail(bridge: Bridge, since: Since | None, follow: bool) -> None:
    """Show events, oldest first: the last 20, or those since then."""
    for event in tail(bridge, since or LAST_FEW, follow=follow, types=[], rooms=[]):
        if bridge.as_json:
            show.as_json(event)
        else:
            show.line(words(event))


def words(event: Event) -> str:
    """An event on one line: number, time, type, what it is about, content."""
    about = [event[name] for name in ("agent", "room_id", "sender") if event.get(name)]
    content = json.dumps(event["content"], ensure_ascii=False, separators=(",", ":"))
    return "  ".join([str(event["seq"]), show.seconds(event["at_ms"] / 1000), event["type"], *about, content])
