"""`armorclaw containers`: agents and their containers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import click

from armorclaw.cli import show
from armorclaw.cli.options import Bridge, Seconds, client, group, names_of
from armorclaw.cli.tail import AGO, FOLLOW

_NAME = click.argument("name", shell_complete=names_of("containers.list", "name"))


@group("containers")
def command() -> None:
    """Agents and their containers."""


@command.command("ls")
@client
def ls(bridge: Bridge) -> None:
    """List all agents and how they stand."""
    rows = bridge.call("containers.list")
    bridge.table(
        rows,
        ["NAME", "STATE", "READY", "RUNTIME", "GENERATION", "SINCE", "LAST END"],
        [
            [
                row["name"],
                row["state"],
                "yes" if row["ready"] else "no",
                row["runtime"],
                row["generation"],
                show.seconds(row["since_ms"] / 1000 if row["since_ms"] else None),
                row["last_end"],
            ]
            for row in rows
        ],
    )


@command.command("start")
@_NAME
@client
def start(bridge: Bridge, name: str) -> None:
    """Start an agent that is declared."""
    answer = bridge.call("start", name=name)
    bridge.answer(answer, f"{name} {answer['status']}, {'ready' if answer['ready'] else 'not ready yet'}")


@command.command("stop")
@_NAME
@client
def stop(bridge: Bridge, name: str) -> None:
    """Stop an agent; it stays stopped."""
    answer = bridge.call("stop", name=name)
    bridge.answer(answer, f"{name} {answer['status']}")


@command.command("restart")
@_NAME
@client
def restart(bridge: Bridge, name: str) -> None:
    """Stop an agent and start it again."""
    answer = bridge.call("containers.restart", name=name)
    bridge.answer(answer, f"{name} {answer['status']}")


@command.command("inspect")
@_NAME
@client
def inspect(bridge: Bridge, name: str) -> None:
    """Show everything that is known of an agent, as JSON."""
    answer = bridge.call("containers.inspect", name=name)
    if bridge.as_json:
        show.as_json(answer)
    else:
        show.text(json.dumps(answer, indent=2))


@command.command("logs")
@_NAME
@FOLLOW
@click.option("--tail", type=click.IntRange(0), metavar="LINES", help="Only the last so many; by default 100.")
@click.option("--since", metavar="TIME", type=AGO, help="From so long ago: 30s, 10m, 2h, 1d.")
@client
def logs(bridge: Bridge, name: str, follow: bool, tail: int | None, since: int | None) -> None:
    """Show what an agent printed. What the bridge says in between goes to stderr."""
    params = {"name": name, "follow": follow, "tail": tail, "since_ms": since}
    end: dict[str, Any] = {}
    for piece in _pieces(bridge, "containers.logs", params, end):
        if bridge.as_json:
            show.as_json(piece)
        elif piece["stream"] == "bridge":
            click.echo(f"armorclaw: {piece['text']}", nl=False, err=True)
        else:
            show.raw(piece["text"])
    if end["truncated"]:
        click.echo("armorclaw: some of it is not kept any more", err=True)


@command.command("stats")
@click.argument("name", required=False, shell_complete=names_of("containers.list", "name"))
@click.option(
    "--count", type=click.IntRange(1), metavar="TIMES", help="End after so many readings; else with Ctrl-C."
)
@click.option("--interval", type=Seconds(0.1, 3600), default=1.0, show_default=True, metavar="SECONDS")
@client
def stats(bridge: Bridge, name: str | None, count: int | None, interval: float) -> None:
    """Show what agents use, again and again."""
    heads = (
        f"{'NAME':<16} {'STATE':<10} {'CPU %':>6} {'MEMORY':>10} {'OF':>10} {'PIDS':>5} {'READ':>10} {'WRITTEN':>10}"
    )
    params = {"name": name, "count": count, "interval_ms": round(interval * 1000)}
    for readings in _pieces(bridge, "containers.stats", params, {}):
        if heads and not bridge.as_json:
            show.line(heads)
            heads = ""  # once, and not before what keeps it from being read
        for reading in readings:
            if bridge.as_json:
                show.as_json(reading)
            else:
                show.line(_usage(reading))


def _usage(reading: dict[str, Any]) -> str:
    percent, pids = reading.get("cpu_percent"), reading.get("pids")
    sizes = [show.size(reading.get(f"{which}_bytes")) for which in ("memory", "read", "written")]
    return (
        f"{reading['name']:<16} {reading['state']:<10} {'' if percent is None else f'{percent:.1f}':>6}"
        f" {sizes[0]:>10} {show.size(reading.get('memory_limit')):>10} {'' if pids is None else pids:>5}"
        f" {sizes[1]:>10} {sizes[2]:>10}"
    )


def _pieces(bridge: Bridge, method: str, params: dict[str, Any], end: dict[str, Any]) -> Iterator[Any]:
    """The pieces of a stream; its result is put into `end`. Leaving early cancels it."""
    given = {name: value for name, value in params.items() if value is not None}
    with bridge.connect() as connection, closing(connection.stream(method, given)) as stream:
        for message in stream:
            if "result" in message:
                end.update(message["result"])
            elif message["method"] == "$/chunk":
                yield message["params"]["data"]
