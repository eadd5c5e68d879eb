"""`armorclaw matrix`: accounts and messages."""

from __future__ import annotations

import re
from contextlib import closing
from typing import Any

import click

from armorclaw.cli import show
from armorclaw.cli.options import DECLINED, YES, Bridge, ask, client, confirm, group, secret, stdin
from armorclaw.cli.tail import FOLLOW, SINCE_A_DAY, Event, Since, tail
from armorclaw.errors import ArmorclawError

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


@command.command("verify")
@click.argument("user", required=False)
@click.argument("device", required=False)
@click.option("--room", metavar="ROOM_ID", help="Ask in this room; by default in the direct chat with them.")
@click.option("--direct", is_flag=True, help="Begin at once with DEVICE: for clients that know no requests.")
@_ACCOUNT
@client
def verify(
    bridge: Bridge, user: str | None, device: str | None, room: str | None, direct: bool, account: str | None
) -> None:
    """Verify USER, or one DEVICE of theirs, by comparing emoji; without USER, the next who asks.

    USER may be the account itself: then its devices vouch for each other. What is asked is answered by y or n, on the
    terminal or on stdin.
    """
    params = {"user_id": user, "device_id": device, "room_id": room, "direct": direct or None, "account": account}
    given = {name: value for name, value in params.items() if value is not None}
    result: dict[str, Any] = {}
    with bridge.connect() as connection, closing(connection.stream("matrix.verify", given)) as stream:
        for message in stream:
            if message.get("method") == "$/chunk":
                step = message["params"]["data"]
                bridge.answer(step, _STEPS[step["state"]].format(**step))
                if step["state"] == "compare":
                    _show_strings(bridge, step)
                if question := _QUESTIONS.get(step["state"]):
                    connection.upload({"state": step["state"], "yes": ask(question)})
            elif "result" in message:
                result = message["result"]
    end = "verified" if result["verified"] else f"not verified: {result['reason']} ({result['code']})"
    whom = " ".join(filter(None, (result["user_id"], result["device_id"])))
    bridge.answer(result, f"{whom} is {end}")
    if not result["verified"]:
        raise click.exceptions.Exit(DECLINED)


_STEPS = {
    "waiting": "waiting for somebody to ask",
    "asked": "{user_id} was asked; waiting for them to accept",
    "requested": "{user_id} asks to be verified, with the device {device_id}",
    "agreeing": "{user_id} accepts, with the device {device_id}",
    "compare": "both sides must show the same:",
    "confirmed": "waiting for {user_id} to say the same",
}
_QUESTIONS = {"requested": "Verify them?", "compare": "Is it the same on the other side?"}


def _show_strings(bridge: Bridge, step: dict[str, Any]) -> None:
    if not bridge.as_json:
        show.line("  " + "  ".join(f"{emoji} {name}" for emoji, name in step["emoji"]))
        show.line("  or, in numbers: " + "  ".join(map(str, step["decimals"])))


@command.command("devices")
@click.argument("user", required=False)
@_ACCOUNT
@client
def devices(bridge: Bridge, user: str | None, account: str | None) -> None:
    """List the devices of USER, by default of the account itself, and how far each is trusted."""
    answer = bridge.call("matrix.devices", user_id=user, account=account)
    if not bridge.as_json:
        show.line(f"{answer['user_id']}: identity {answer['identity']}")
        if answer["signed"] is False:
            show.line(f"the device of the bridge is not signed: {answer['hint']}")
    bridge.table(
        answer,
        ["DEVICE", "NAME", "TRUST", "FINGERPRINT", "HERE"],
        [
            [
                device["device_id"],
                device["name"],
                device["trust"],
                _in_groups(device["fingerprint"]),
                "yes" if device["own"] else "",
            ]
            for device in answer["devices"]
        ],
    )


@command.command("accept")
@click.argument("user")
@_ACCOUNT
@YES
@client
def accept(bridge: Bridge, user: str, account: str | None, yes: bool) -> None:
    """Believe the identity that USER has now, after they have reset it. Better: verify them."""
    master = bridge.call("matrix.devices", user_id=user, account=account)["master"]
    if master is None:
        raise ArmorclawError("not_found", f"{user} has no identity")
    key = _in_groups(master)
    confirm(f"Accept the identity of {user}, with the key {key}?", yes=yes)
    answer = bridge.call("matrix.accept_identity", user_id=user, master=master, account=account)
    bridge.answer(answer, f"accepted the identity of {user}: {key}")


@command.command("recovery-key")
@click.argument("account", required=False)
@click.option("--store", metavar="ID", help="Put it into the keystore under this id instead of showing it.")
@click.option("--new", is_flag=True, help="Make another one; the one before opens nothing any more.")
@YES
@client
def recovery_key(bridge: Bridge, account: str | None, store: str | None, new: bool, yes: bool) -> None:
    """Show the recovery key of ACCOUNT's cross-signing identity. It is shown once: write it down."""
    if new:
        confirm("Replace the recovery key? The one before will open nothing any more.", yes=yes)
    answer = bridge.call("matrix.recovery_key", account=account, store=store, new=new or None)
    stored = answer.get("stored")
    bridge.answer(answer, f"stored {stored}" if stored else answer["recovery_key"])


def _in_groups(key: str) -> str:
    """As people compare it."""
    return " ".join(re.findall(".{1,4}", key))


def words(event: Event) -> str:
    """A message on one line: time, room, who, what; or what is missing."""
    if event["type"] == "gap":
        return f"{show.seconds(event['at_ms'] / 1000)}  some messages are gone: {event['content'].get('reason')}"
    when = show.seconds(event["at_ms"] / 1000)
    return f"{when}  {event.get('room_id')}  {event.get('sender')}: {event['content'].get('body')}"
