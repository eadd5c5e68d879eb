"""`armorclaw status`: ask the running bridge how it is."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from armorclaw.cli.files import FILE
from armorclaw.errors import ArmorclawError
from armorclaw.rpc.blocking import call


def socket_of(config: Path | None, socket: Path | None) -> Path:
    """Where the bridge listens: as told, as the configuration says, or the usual place."""
    if socket is not None:
        return socket
    from armorclaw.config import BridgeSection, Config  # only now: reading a configuration takes imports

    return (Config.load(config).bridge if config is not None else BridgeSection()).socket


@click.command("status")
@click.option("--config", type=FILE, help="The configuration file of the bridge.")
@click.option("--socket", type=FILE, help="The socket of the bridge.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def command(config: Path | None, socket: Path | None, as_json: bool) -> None:
    """Show how the bridge, its Matrix sessions and its agents are."""
    path = socket_of(config, socket)
    status = call(str(path), "status", {}, timeout=5.0)
    if as_json:
        click.echo(json.dumps(status))
        return
    if not isinstance(status, dict):
        raise ArmorclawError("internal", f"what listens at {path} is not armorclaw")
    for line in lines(status):
        click.echo(line)
    sys.stdout.flush()


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
    for agent in status["agents"]:
        why = f"  last end: {agent['last_end']}" if agent["last_end"] else ""
        shown.append(
            f"agent    {agent['name']:<16} {agent['state']:<12} generation {agent['generation']}"
            f"  {agent['runtime']}{why}"
        )
    return shown
