"""`armorclaw health`: for probes and for `&&`."""

from __future__ import annotations

import click

from armorclaw.cli.options import Bridge, client


@click.command("health")
@client
def command(bridge: Bridge) -> None:
    """Say whether all is well.

    The exit status is 8 when it is not.
    """
    health = bridge.call("health")
    bridge.answer(health, health["status"])
    if health["status"] != "healthy":
        from armorclaw.errors import ArmorclawError

        raise ArmorclawError("degraded", f"the bridge is {health['status']}", why="\n".join(health["reasons"]))
