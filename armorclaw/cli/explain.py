"""`armorclaw explain`: which rule decides who hears what is said in a room."""

from __future__ import annotations

from typing import Any

import click

from armorclaw.cli import show
from armorclaw.cli.options import Bridge, client


@click.command("explain")
@click.argument("room", metavar="ROOM")
@click.option("--sender", metavar="USER", help="Who says something there; by default somebody who is heard.")
@click.option("--text", metavar="WORDS", help="What they say.")
@click.option("--event", metavar="EVENT_ID", help="What was said, in place of that.")
@click.option("--account", metavar="NAME", help="As which account hears it; by default the one that is in there.")
@client
def command(
    bridge: Bridge, room: str, sender: str | None, text: str | None, event: str | None, account: str | None
) -> None:
    """Show which rule decides who hears what is said in a room."""
    answer = bridge.call("policy.explain", room=room, sender=sender, text=text, event=event, account=account)
    if bridge.as_json:
        show.as_json(answer)
        return
    for line in lines(answer):
        show.line(line)


def lines(answer: dict[str, Any]) -> list[str]:
    """For people: how the room stands, then what is decided."""
    facts = [answer.get("membership") or "not known", f"account {answer['account']}"]
    if direct := answer.get("direct"):
        facts.append(f"direct chat with {direct}")
    shown = [f"room     {answer['room_id']}  {', '.join(facts)}"]
    shown += [f"         in place of {room}" for room in answer["replaces"]]
    shown += [f"route    {each['agent']:<16} {each['respond']:<9} {each['where']}" for each in answer["routes"]]
    if not answer["routes"]:
        shown.append("route    none")
    person = "trusted" if answer["is_trusted"] else "not trusted by name"
    orders = ", may give orders" if answer["may_command"] else ""
    shown.append(f"said by  {answer.get('sender') or 'the bridge'}  {person}{orders}")
    where = f" ({answer['where']})" if answer["where"] else ""
    then = "decided then" if answer["as_it_was"] else "decides"
    shown.append(f"rule     {answer['rule']} {then}{where}: {answer['why']}")
    kept = "nobody; it is kept for operators" if answer["kept"] else "nobody; it is not kept"
    if deaf := answer.get("deaf"):
        kept = f"nobody: {deaf}"
    shown.append(f"heard by {', '.join(answer['agents']) or kept}")
    if (was_for := answer.get("was_for")) is not None:
        shown.append(f"         when it came it was for {', '.join(was_for) or 'nobody'}")
    return shown
