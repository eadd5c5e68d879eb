"""`armorclaw config`: what the configuration is, and what is wrong with it."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from armorclaw.cli import show
from armorclaw.cli.options import CONFIG, JSON, SETTINGS, group

if TYPE_CHECKING:
    from armorclaw.config import Config, Route
    from armorclaw.config_layers import Effective


@group("config")
def command() -> None:
    """See what the configuration is, and what is wrong with it."""


@command.command("check")
@CONFIG
@SETTINGS
@JSON
def check(config: str | None, settings: tuple[str, ...], as_json: bool) -> None:
    """Say what would run. What is wrong is said with place, reason and fix; the exit status is then 11."""
    found = _effective(config, settings)
    if as_json:
        made = found.config
        names = {"accounts": list(made.accounts), "agents": list(made.agents)}
        show.as_json({"files": found.files, **names, "routes": [_route(made, each) for each in made.routes]})
    else:
        for line in lines(found):
            show.line(line)


@command.command("show")
@CONFIG
@SETTINGS
@click.option("--origin", is_flag=True, help="Where each value comes from.")
@JSON
def show_values(config: str | None, settings: tuple[str, ...], origin: bool, as_json: bool) -> None:
    """Show every value as it is in effect, as TOML."""
    found = _effective(config, settings)
    for place, value in found.values():
        whence = {"origin": found.origin_of(place)} if origin else {}
        if as_json:
            show.as_json({"key": place, "value": value, **whence})
            continue
        # JSON's strings, numbers and lists are TOML's too
        words = f"# {place} is not set" if value is None else f"{place} = {json.dumps(value, ensure_ascii=False)}"
        show.line(f"{words}  # {whence['origin']}" if origin else words)


def _effective(config: str | None, settings: tuple[str, ...]) -> Effective:
    from armorclaw.config_layers import effective  # only now: the list of verbs needs none of it

    return effective(None if config is None else Path(config), flags=settings)


def lines(found: Effective) -> list[str]:
    """What would run, for people."""
    config = found.config
    shown = [f"files    {', '.join(found.files) or 'none: defaults'}", f"bridge   {config.bridge.socket}"]
    shown += [f"matrix   {each.name:<16} {each.user} at {each.homeserver}" for each in config.accounts.values()]
    for agent in config.agents.values():
        work = agent.image or agent.code or " ".join(agent.command) or "of the embedding program"
        granted = f"{show.count(len(agent.rooms), 'room')}, {show.count(len(agent.keys), 'key')}"
        shown.append(f"agent    {agent.name:<16} {agent.runtime:<12} {granted}  {work}")
    for route in map(partial(_route, config), config.routes):
        where = route.get("room", "direct chats")
        shown.append(f"route    {route['account']:<16} {where} → {route['agent']}  {route['respond']}")
    return shown


def _route(config: Config, route: Route) -> dict[str, Any]:
    """As it works: with the account that it is for."""
    place: dict[str, Any] = {"dm": True} if route.dm else {"room": route.room}
    return {"account": route.account_among(config.agents), **place, "agent": route.agent, "respond": route.respond}
