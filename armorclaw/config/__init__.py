"""What a bridge is told: frozen values, read from TOML or built in Python.

A wrong file is refused whole: every fault is named at once, each with its place, the reason and the fix. Unknown keys
are faults, because a misspelt limit is no limit. Secrets are given by reference (a file), never by value in the file.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from armorclaw.config.access import AccessSection, Invites, Talk
from armorclaw.config.account import Account
from armorclaw.config.agent import (
    EGRESS,
    MIB,
    Agent,
    AgentData,
    AgentHealth,
    AgentLimits,
    AgentQuota,
    AgentRestart,
    RestartPolicy,
    RuntimeName,
)
from armorclaw.config.checks import check_name, check_rooms, is_name
from armorclaw.config.routes import Respond, Route
from armorclaw.config.sections import (
    AlertsSection,
    BridgeSection,
    DeliverySection,
    EventsSection,
    LimitsSection,
    MediaSection,
    ServerSection,
)
from armorclaw.errors import ArmorclawError
from armorclaw.layers import read_toml
from armorclaw.structure import Fault, FaultError, converter, structure, within

__all__ = [
    "CONFIGS_INSIDE",
    "EGRESS",
    "MIB",
    "SHARED_CONFIGS",
    "SHARED_INSIDE",
    "AccessSection",
    "Account",
    "Agent",
    "AgentData",
    "AgentHealth",
    "AgentLimits",
    "AgentQuota",
    "AgentRestart",
    "AlertsSection",
    "BridgeSection",
    "Config",
    "DeliverySection",
    "EventsSection",
    "Invites",
    "LimitsSection",
    "MediaSection",
    "Respond",
    "RestartPolicy",
    "Route",
    "RuntimeName",
    "ServerSection",
    "Talk",
    "check_rooms",
    "configs_root",
    "is_name",
]

CONFIGS_INSIDE = "/config"
"""Where an agent finds the files attached for it."""


SHARED_INSIDE = "shared"
"""The folder there with those that are for all agents."""


SHARED_CONFIGS = "_shared"
"""What holds those on the host, beside the folders of agents; no agent can have that name."""


def configs_root(state_dir: Path) -> Path:
    """Where files attached for agents are kept: a folder for each agent, and SHARED_CONFIGS."""
    return state_dir.absolute() / "configs"


@attrs.frozen
class Config:
    """Everything a bridge is told."""

    bridge: BridgeSection = attrs.field(factory=BridgeSection)
    server: ServerSection = attrs.field(factory=ServerSection)
    limits: LimitsSection = attrs.field(factory=LimitsSection)
    alerts: AlertsSection = attrs.field(factory=AlertsSection)
    events: EventsSection = attrs.field(factory=EventsSection)
    delivery: DeliverySection = attrs.field(factory=DeliverySection)
    media: MediaSection = attrs.field(factory=MediaSection)
    access: AccessSection = attrs.field(factory=AccessSection)
    accounts: Mapping[str, Account] = attrs.field(factory=dict)
    agents: Mapping[str, Agent] = attrs.field(factory=dict)
    routes: tuple[Route, ...] = ()

    def __attrs_post_init__(self) -> None:
        # each entry carries its own name, so that it can travel alone
        object.__setattr__(self, "accounts", _named(self.accounts))
        object.__setattr__(self, "agents", _named(self.agents))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Config:
        """Read a TOML file; relative paths in it are relative to its folder.

        Raises config_invalid with one line per fault.
        """
        data = read_toml(path)
        file = Path(path)
        return cls.parse(data, source=str(file), folder=file.resolve().parent)

    @classmethod
    def parse(cls, data: Mapping[str, Any], *, source: str = "configuration", folder: Path | None = None) -> Config:
        """Structure what TOML gave. Raises config_invalid naming every fault: place, reason, fix."""
        config, faults = cls.examine(data, folder=folder)
        if faults or config is None:
            lines = [str(fault) for fault in faults]
            raise ArmorclawError(
                "config_invalid",
                f"{source}: {len(lines)} fault{'s' if len(lines) > 1 else ''}",
                why="\n".join(lines),
                hint=f"mend {source} and try again",
                faults=lines,
            )
        return config

    @classmethod
    def examine(cls, data: Mapping[str, Any], *, folder: Path | None = None) -> tuple[Config | None, list[Fault]]:
        """Structure what TOML gave, or say everything that is wrong with it."""
        faults: list[Fault] = []
        config = structure(converter(folder or Path.cwd()), cls, data, "", faults)
        faults += _faults_between(data)
        return config, faults


def _named(entries: Mapping[str, Any]) -> dict[str, Any]:
    return {name: attrs.evolve(entry, name=name) for name, entry in entries.items()}


def _faults_between(data: Mapping[str, Any]) -> list[Fault]:
    """What no single value can know: names of entries, and references from one to another."""
    faults = []
    tables = {section: data.get(section) for section in ("accounts", "agents")}
    entries = {section: table if isinstance(table, Mapping) else {} for section, table in tables.items()}
    for section, table in entries.items():
        for name in table:
            try:
                check_name(name, section[:-1])
            except FaultError as fault:
                faults.append(Fault(within(section, name), fault.why, fault.fix))
    accounts = entries["accounts"]
    alerts = data.get("alerts")
    if isinstance(alerts, Mapping) and (alerts.get("room") or "account" in alerts):
        wanted = alerts.get("account", "main")
        if isinstance(wanted, str) and wanted not in accounts:
            fix = f"add [accounts.{wanted}], or name one of: {', '.join(accounts) or 'none yet'}"
            faults.append(Fault("alerts.account", f"there is no account {wanted!r}", fix))
    own = entries["agents"].get(EGRESS)
    if isinstance(own, Mapping) and own.get("egress"):
        why = "the socket of an agent of that name would be where agents find their way out"
        faults.append(Fault(within("agents", EGRESS), why, "give it another name, or remove egress"))
    for name, agent in entries["agents"].items():
        if not isinstance(agent, Mapping) or not ("account" in agent or agent.get("rooms")):
            continue
        wanted = agent.get("account", "main")
        if wanted not in accounts:
            fix = f"add [accounts.{wanted}], or name one of: {', '.join(accounts) or 'none yet'}"
            faults.append(Fault(within("agents", name) + ".account", f"there is no account {wanted!r}", fix))
    faults += _faults_of_routes(data.get("routes"), data.get("access"), entries)
    faults += _faults_of_talk(data.get("access"), entries["agents"])
    return faults


def _faults_of_routes(routes: Any, access: Any, entries: Mapping[str, Mapping[str, Any]]) -> Iterator[Fault]:
    """Routes to agents that there are, from accounts they speak for, and no two that say the same place."""
    knows_people = isinstance(access, Mapping) and (access.get("trusted") or access.get("commands"))
    taken: dict[tuple[Any, ...], str] = {}
    for at, route in enumerate(routes if isinstance(routes, list) else ()):
        if not isinstance(route, Mapping) or not isinstance(name := route.get("agent"), str):
            continue
        place = f"routes[{at}]"
        agent = entries["agents"].get(name)
        if not isinstance(agent, Mapping):
            yield Fault(f"{place}.agent", f"there is no agent {name!r}", _declare(name, entries["agents"]))
            continue
        speaks_for = agent.get("account", "main")
        if (given := route.get("account") or speaks_for) != speaks_for:
            why = f"agent {name} speaks for account {speaks_for!r}, not {given!r}"
            yield Fault(f"{place}.account", why, f"remove it, or declare another agent with account = {given!r}")
        elif speaks_for not in entries["accounts"]:
            fix = f"add [accounts.{speaks_for}]"
            yield Fault(f"{place}.account", f"there is no account {speaks_for!r}", fix)
        if route.get("dm") and not knows_people:
            why = "direct chats are answered for trusted people only, and there are none"
            yield Fault(f"{place}.dm", why, 'name them: [access] trusted = ["@name:server"]')
        key = (name, route.get("room") or None, bool(route.get("dm")))
        if key in taken:
            yield Fault(place, f"it is for the same place and agent as {taken[key]}", "remove one of them")
        taken.setdefault(key, place)


def _faults_of_talk(access: Any, agents: Mapping[str, Any]) -> Iterator[Fault]:
    talk = access.get("talk") if isinstance(access, Mapping) else None
    for at, each in enumerate(talk if isinstance(talk, list) else ()):
        if not isinstance(each, Mapping):
            continue
        place, speaker, hearer = f"access.talk[{at}]", each.get("from"), each.get("to")
        named = [(key, name) for key, name in (("from", speaker), ("to", hearer)) if isinstance(name, str)]
        for key, name in named:
            if (key == "to" or is_name(name)) and name not in agents:
                yield Fault(f"{place}.{key}", f"there is no agent {name!r}", _declare(name, agents))
        pair = [agents[name] for _, name in named if isinstance(agents.get(name), Mapping)]
        if len(pair) == 2 and pair[0].get("account", "main") == pair[1].get("account", "main"):
            why = f"{speaker} and {hearer} speak for one account, which does not hear itself"
            yield Fault(place, why, "give one of them an account of its own")


def _declare(name: str, agents: Mapping[str, Any]) -> str:
    return f"add {within('[agents', name)}], or name one of: {', '.join(agents) or 'none yet'}"
