"""`armorclaw call`: any method of the wire."""

from __future__ import annotations

import json
from contextlib import closing
from typing import Any

import click

from armorclaw.cli import show
from armorclaw.cli.options import TIMEOUT, Bridge, Seconds, client, stdin


@click.command("call")
@click.argument("method")
@click.option("--params", "text", metavar="JSON|-", help="An object or an array; - reads it from stdin.")
@click.option(
    "--timeout",
    type=Seconds(0.001, 86_400),
    default=TIMEOUT,
    show_default=True,
    help="Seconds to wait for an answer to begin.",
)
@client
def command(bridge: Bridge, method: str, text: str | None, timeout: float) -> None:
    """Call a method of the bridge.

    `armorclaw call rpc.discover` has them all, with what each takes. The result is JSON on one line; a method that
    streams has a line for each piece before it, and Ctrl-C cancels it.
    """
    params = _parsed(text)
    with (
        bridge.connect(timeout) as connection,
        closing(connection.stream(method, params, patience=timeout)) as stream,
    ):
        for message in stream:
            if "result" in message:
                show.as_json(message["result"])
            elif message["method"] == "$/chunk":
                show.as_json(message["params"].get("data"))
            elif message["method"] == "$/progress":
                click.echo(_progress(message["params"]), err=True)


def _parsed(text: str | None) -> Any:
    if text is None:
        return None
    try:
        params = json.loads(stdin() if text == "-" else text)
    except (ValueError, RecursionError) as error:
        why = str(error) if isinstance(error, ValueError) else "it is nested too deeply"
        raise click.UsageError(f"--params is not JSON: {why}", click.get_current_context()) from None
    if not isinstance(params, dict | list):
        raise click.UsageError("--params must be an object or an array", click.get_current_context())
    return params


def _progress(params: dict[str, Any]) -> str:
    total = f" of {params['total']}" if params.get("total") is not None else ""
    return show.plain(f"{params.get('done')}{total} {params.get('message') or ''}".rstrip())
