"""`armorclaw outbox`: messages on their way out."""

from __future__ import annotations

import click

from armorclaw.cli import show
from armorclaw.cli.options import YES, Bridge, client, confirm, group

STATES = ("queued", "unknown", "sent", "delivered", "read", "failed", "cancelled")

_ID = click.argument("delivery", metavar="DELIVERY_ID")


@group("outbox")
def command() -> None:
    """Messages on their way out."""


@command.command("ls")
@click.option("--state", type=click.Choice(STATES), help="Only those.")
@click.option("--room", "room_id", metavar="ROOM_ID", help="Only those to this room.")
@click.option("--limit", type=click.IntRange(1, 1000), help="At most so many, the newest; by default 100.")
@client
def ls(bridge: Bridge, state: str | None, room_id: str | None, limit: int | None) -> None:
    """List messages and what became of them."""
    rows = bridge.call("delivery.list", state=state, room_id=room_id, limit=limit)
    bridge.table(
        rows,
        ["DELIVERY_ID", "STATE", "ACCEPTED", "ROOM", "AGENT", "TRIES", "REASON"],
        [
            [
                row["delivery_id"],
                row["state"],
                show.seconds(row["created_ms"] / 1000),
                row["room_id"],
                row["agent"],
                row["attempts"],
                row["reason"],
            ]
            for row in rows
        ],
    )


@command.command("retry")
@_ID
@client
def retry(bridge: Bridge, delivery: str) -> None:
    """Try a message again, now."""
    answer = bridge.call("delivery.retry", delivery_id=delivery)
    bridge.answer(answer, f"{answer['state']} {delivery}")


@command.command("drop")
@_ID
@YES
@client
def drop(bridge: Bridge, delivery: str, yes: bool) -> None:
    """Take a message back that has not been sent yet."""
    confirm(f"Drop the message {delivery}?", yes=yes)
    answer = bridge.call("delivery.cancel", delivery_id=delivery)
    bridge.answer(answer, f"{answer['state']} {delivery}")
