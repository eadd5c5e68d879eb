"""`armorclaw containers`: agents and their containers."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import click

from armorclaw.cli import show
from armorclaw.cli.options import Bridge, Seconds, client, group, names_of
from armorclaw.cli.tail import AGO, FOLLOW

NOT_HELD = 1
"""Exit status of `isolation` when something that is claimed of an agent does not hold."""

ENGINE_PAUSE = 1.0
"""Seconds before a follower asks again for the log of an agent whose engine is lost."""

MOST_LINES = 100_000
"""Of what was printed meanwhile, that such a follower asks for: all that it may."""

_NAME = click.argument("name", shell_complete=names_of("containers.list", "name"))


@group("containers")
def command() -> None:
    """Agents and their containers."""


@command.command("ls")
@client
def ls(bridge: Bridge) -> None:
    """List all agents and how they stand.

    AGE is that of the container, CPU % of one processor, STATUS the agent's own words; those and the last end are cut
    if need be.
    """
    rows = bridge.call("containers.list")
    bridge.table(
        rows,
        ["NAME", "STATE", "AGE", "RESTARTS", "CPU %", "MEMORY", "STATUS", "LAST END"],
        [
            [
                row["name"],
                row["state"],
                show.ago(row["since_ms"]),
                row.get("restarts"),
                _percent(row.get("cpu_percent")),
                show.size(row.get("memory_bytes")),
                row.get("status"),
                row["last_end"],
            ]
            for row in rows
        ],
        gives=["STATUS", "LAST END"],
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
    """Show everything that is known of an agent: what runs, its health, what it uses and may, how it last ended."""
    answer = bridge.call("containers.inspect", name=name)
    if bridge.as_json:
        show.as_json(answer)
    else:
        from armorclaw.cli.agent_page import page

        page(answer)


@command.command("isolation")
@_NAME
@client
def isolation(bridge: Bridge, name: str) -> None:
    """Show what really confines a running agent: asked of the kernel and its engine.

    HOLDS is yes or NO; ? if it could not be found out, - where nothing is claimed. The exit status is 1 when
    something does not hold.
    """
    rows = bridge.call("containers.isolation", name=name)
    bridge.table(
        rows,
        ["HOLDS", "WHAT", "CLAIMED", "FOUND", "ASKED"],
        [[_holds(row), row["what"], row["claimed"], row["found"], row["source"]] for row in rows],
    )
    if any(row["holds"] is False for row in rows):
        raise click.exceptions.Exit(NOT_HELD)


@command.command("logs")
@_NAME
@FOLLOW
@click.option("--tail", type=click.IntRange(0), metavar="LINES", help="Only the last so many; by default 100.")
@click.option("--since", metavar="TIME", type=AGO, help="From so long ago: 30s, 10m, 2h, 1d.")
@click.option(
    "--timestamps/--no-timestamps",
    "-t/ ",
    "times",
    default=None,
    help="When it was written; on a terminal by default.",
)
@client
def logs(bridge: Bridge, name: str, follow: bool, tail: int | None, since: int | None, times: bool | None) -> None:
    """Show what an agent printed; with -f also what it prints, over its restarts and those of its engine.

    Errors are red on a terminal. What the bridge says in between goes to stderr.
    """
    from armorclaw.cli.log_lines import LogLines

    times = sys.stdout.isatty() if times is None else times
    lines = LogLines(times=times)
    params = {"name": name, "follow": follow, "tail": tail, "since_ms": since, "timestamps": times or None}
    end: dict[str, Any] = {}
    while not end:
        if follow:
            params["timestamps"] = True  # to know where to go on
        try:
            for piece in _pieces(bridge, "containers.logs", params, end):
                if piece.get("at_ms") is not None:
                    params["since_ms"] = piece["at_ms"] + 1
                if bridge.as_json:
                    show.as_json(piece)
                else:
                    lines.show(piece)
        except Exception as error:
            # not by its class: knowing that takes imports, and whoever raised it has paid for them
            if not follow or getattr(error, "name", "") != "engine_unreachable":
                raise
            click.echo("armorclaw: the engine is lost; this goes on when it is back", err=True)
            time.sleep(ENGINE_PAUSE)
            params["tail"] = MOST_LINES
    if end["truncated"]:
        click.echo("armorclaw: some of it is not kept any more", err=True)


@command.command("stats")
@click.argument("name", required=False, shell_complete=names_of("containers.list", "name"))
@click.option(
    "--count", type=click.IntRange(1), metavar="TIMES", help="End after so many readings; else with Ctrl-C."
)
@click.option("--interval", type=Seconds(0.1, 3600), default=1.0, show_default=True, metavar="SECONDS")
@click.option("--history", is_flag=True, help="First the last ten minutes; without --count it ends after those.")
@client
def stats(bridge: Bridge, name: str | None, count: int | None, interval: float, history: bool) -> None:
    """Show what agents use, again and again; each PEAK is since the container started."""
    heads = (
        f"{'NAME':<16} {'STATE':<10} {'CPU %':>6} {'PEAK':>6} {'MEMORY':>9} {'PEAK':>9} {'OF':>9} {'PIDS':>5}"
        f" {'READ':>9} {'WRITTEN':>9}"
    )
    params = {"name": name, "count": count, "interval_ms": round(interval * 1000)}
    if history:
        params |= {"history": True, "count": count or 1}
        heads = f"{'TIME':<8} {heads}"
    for readings in _pieces(bridge, "containers.stats", params, {}):
        if heads and not bridge.as_json:
            show.line(heads)
            heads = ""  # once, and not before what keeps it from being read
        for reading in readings:
            if bridge.as_json:
                show.as_json(reading)
            else:
                at = time.strftime("%H:%M:%S ", time.localtime(reading["at_ms"] / 1000)) if history else ""
                show.line(at + _usage(reading))


def _holds(row: dict[str, Any]) -> str:
    if row["claimed"] is None:
        return "-"
    return {True: "yes", False: "NO", None: "?"}[row["holds"]]


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"


def _usage(reading: dict[str, Any]) -> str:
    percents = [_percent(reading.get(name)) for name in ("cpu_percent", "cpu_peak_percent")]
    names = ("memory_bytes", "memory_peak_bytes", "memory_limit", "read_bytes", "written_bytes")
    used, peak, limit, read, written = (show.size(reading.get(name)) for name in names)
    pids = "" if reading.get("pids") is None else reading["pids"]
    return (
        f"{reading['name']:<16} {reading['state']:<10} {percents[0]:>6} {percents[1]:>6} {used:>9} {peak:>9}"
        f" {limit:>9} {pids:>5} {read:>9} {written:>9}"
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
