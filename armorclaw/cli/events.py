"""`armorclaw events`: what happened, what happens, and who follows it."""

from __future__ import annotations

import json

import click

from armorclaw.cli import show
from armorclaw.cli.options import YES, Bridge, client, confirm, group
from armorclaw.cli.tail import FOLLOW, SINCE, Event, Since, tail

SEVERITIES = ("info", "warning", "error", "critical")

_AGENT = click.option("--agent", metavar="NAME", help="Whose subscription it is; by default it is the operators'.")
_SUBSCRIPTION = click.argument("subscription")
_SEQ = click.argument("seq", type=click.IntRange(1))


@group("events")
def command() -> None:
    """What happened, what happens, and who follows it."""


@command.command("tail")
@SINCE
@FOLLOW
@click.option(
    "--severity",
    "severities",
    type=click.Choice(SEVERITIES),
    multiple=True,
    help="Only of this severity; may be given more than once.",
)
@client
def events_tail(bridge: Bridge, since: Since, follow: bool, severities: tuple[str, ...]) -> None:
    """Show events, oldest first: the last 20, or those since then."""
    for event in tail(bridge, since, follow=follow, severities=severities):
        if bridge.as_json:
            show.as_json(event)
        else:
            show.line(words(event))


def words(event: Event) -> str:
    """An event on one line: number, time, type, what it is about, content."""
    about = [event[name] for name in ("severity", "agent", "room_id", "sender") if event.get(name)]
    erased = event.get("erased")
    content = "(erased)" if erased else json.dumps(event["content"], ensure_ascii=False, separators=(",", ":"))
    return "  ".join([str(event["seq"]), show.seconds(event["at_ms"] / 1000), event["type"], *about, content])


@command.command("ls")
@client
def ls(bridge: Bridge) -> None:
    """List subscriptions: who follows, how far each is behind, what is in its hands."""
    rows = bridge.call("events.stats")
    bridge.table(
        rows,
        ["OWNER", "SUBSCRIPTION", "CONNECTED", "BEHIND", "IN HAND", "SINCE", "AGAIN", "MISSED", "DEAD"],
        [
            [
                row["owner"] or "(operators)",
                row["subscription"],
                "yes" if row["connected"] else "no",
                row["behind"],
                row["in_hand"],
                show.span(row.get("oldest_s")),
                row["redelivered"],
                row["missed"],
                row["dead"],
            ]
            for row in rows
        ],
    )


@command.command("dead")
@click.option("--agent", metavar="NAME", help="Only those of this agent.")
@click.option("--limit", type=click.IntRange(1, 1000), help="At most so many; by default 100.")
@client
def dead(bridge: Bridge, agent: str | None, limit: int | None) -> None:
    """List dead letters: events that were given up, because they were given too often without an answer."""
    rows = bridge.call("events.dead_letters", agent=agent, limit=limit)
    bridge.table(
        rows,
        ["OWNER", "SUBSCRIPTION", "SEQ", "SINCE", "GIVEN", "LOST", "TYPE", "ROOM", "AGAIN", "REASON"],
        [
            [
                row["owner"] or "(operators)",
                row["subscription"],
                row["seq"],
                show.seconds(row["at_ms"] / 1000),
                row["given"],
                row["lost"],
                row.get("type"),
                row.get("room_id"),
                "yes" if row["again"] else "no",
                row["reason"],
            ]
            for row in rows
        ],
    )


@command.command("redrive")
@_AGENT
@_SUBSCRIPTION
@_SEQ
@client
def redrive(bridge: Bridge, agent: str | None, subscription: str, seq: int) -> None:
    """Give a dead letter once more: now, or when its subscription is connected. Of an agent: `--agent NAME main`."""
    answer = bridge.call("events.redrive", agent=agent, subscription=subscription, seq=seq)
    bridge.answer(answer, f"to be given again: {seq}")


@command.command("drop")
@_AGENT
@_SUBSCRIPTION
@_SEQ
@YES
@client
def drop(bridge: Bridge, agent: str | None, subscription: str, seq: int, yes: bool) -> None:
    """Delete a dead letter. The event stays in the journal as long as any."""
    confirm(f"Drop the dead letter {seq}?", yes=yes)
    answer = bridge.call("events.drop", agent=agent, subscription=subscription, seq=seq)
    bridge.answer(answer, f"dropped {seq}")
