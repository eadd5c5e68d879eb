"""`armorclaw status`: ask the running bridge how it is."""

from __future__ import annotations

from typing import Any

import click

from armorclaw.cli import show
from armorclaw.cli.options import Bridge, client


@click.command("status")
@client
def command(bridge: Bridge) -> None:
    """Show how the bridge, its Matrix sessions and its agents are."""
    status = bridge.call("status")
    if bridge.as_json:
        show.as_json(status)
    else:
        for line in lines(status):
            show.line(line)


def lines(status: dict[str, Any]) -> list[str]:
    """Status for people: a line for the bridge, one per account, one per agent."""
    shown = [
        f"bridge   {status['state']}, version {status['version']}, up {status['uptime_s']} s, {status['socket']}"
    ]
    for account in status["accounts"]:
        who = account.get("user_id") or ""
        why = f"  {account['reason']}" if account["reason"] else ""
        shown.append(f"matrix   {account['account']:<16} {account['state']:<12} {who}{why}")
        shown += [f"         not in the granted room {room}" for room in account["rooms_missing"]]
        if account.get("encryption") == "lost":
            shown.append("         the keys of its device are lost: encrypted rooms cannot be used")
            shown.append(f"         {account['hint']}")
        if account.get("deaf"):
            shown.append(f"         it cannot decrypt: {account['decrypt_failures']} messages in the last hour")
    for agent in status["agents"]:
        why = f"  last end: {agent['last_end']}" if agent["last_end"] else ""
        shown.append(
            f"agent    {agent['name']:<16} {agent['state']:<12} generation {agent['generation']}"
            f"  {agent['runtime']}{why}"
        )
    return shown
