"""`armorclaw matrix`: accounts and messages."""

from __future__ import annotations

import click

from armorclaw.cli import show
from armorclaw.cli.options import Bridge, client, group, secret, stdin
from armorclaw.cli.tail import FOLLOW, SINCE_A_DAY, Event, Since, tail

_ACCOUNT = click.option("--account", metavar="NAME", help="One of the configuration.")


@group("matrix")
def command() -> None:
    """Accounts and messages."""


@command.command("login")
@click.argument("user")
@_ACCOUNT
@client
def login(bridge: Bridge, user: str, account: str | None) -> None:
    """Log an account in. Its password is asked for, or is the first line of stdin."""
    answer = bridge.call("matrix.login", username=user, password=secret("Password"), account=account)
    bridge.answer(answer, f"{answer['status']} {answer['user_id'] or ''}".rstrip())


@command.command("send")
@click.argument("room")
@click.argument("message", required=False)
@click.option("--key", "idempotency_key", metavar="KEY", help="The same key again sends nothing.")
@_ACCOUNT
@client
def send(bridge: Bridge, room: str, message: str | None, idempotency_key: str | None, account: str | None) -> None:
    """Send a text to a room; without MESSAGE, that of stdin."""
    if message is None:
        message = stdin().rstrip("\n")
        if not message.strip():
            raise click.UsageError("no message came on stdin", click.get_current_context())
    answer = bridge.call(
        "matrix.send", room_id=room, message=message, idempotency_key=idempotency_key, account=account
    )
    bridge.answer(answer, f"{answer['status']} {answer['event_id'] or answer['delivery_id']}")


@command.command("tail")
@SINCE_A_DAY
@FOLLOW
@click.option("--room", "rooms", metavar="ROOM_ID", multiple=True, help="Only this one; may be given more than once.")
@client
def matrix_tail(bridge: Bridge, since: Since, follow: bool, rooms: tuple[str, ...]) -> None:
    """Show messages of the rooms that agents are granted: those of the last day, or since then."""
    messages = tail(bridge, since, follow=follow, types=["m.room.message"], rooms=rooms)
    for event in messages:
        if bridge.as_json:
            show.as_json(event)
        else:
            show.line(words(event))


def words(event: Event) -> str:
    """A message on one line: time, room, who, what; or what is missing."""
    if event["type"] == "gap":
        return f"{show.seconds(event['at_ms'] / 1000)}  some messages are gone: {event['content'].get('reason')}"
    when = show.seconds(event["at_ms"] / 1000)
    return f"{when}  {event.get('room_id')}  {event.get('sender')}: {event['content'].get('body')}"
