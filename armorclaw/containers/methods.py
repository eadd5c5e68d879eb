"""Agents on the wire: started and stopped by operators; their own two calls."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs

from armorclaw import config
from armorclaw.config import is_name
from armorclaw.containers.agent import Agent, Standing
from armorclaw.containers.fleet import Fleet
from armorclaw.errors import ArmorclawError
from armorclaw.rpc.peer import Call
from armorclaw.rpc.registry import Registry, Role
from armorclaw.structure import FaultError

PROTOCOL = 1
"""The version of the wire that the agent library speaks."""


@attrs.frozen
class Start:
    """What to start: a declared agent by `name` (or `agent_type`), or a new one.

    A new one lasts as long as the bridge. `code` is a file or folder of the host that becomes /agent. `key_id` is one
    more key to grant, `keys` are all of them.
    """

    name: str = ""
    key_id: str = ""
    agent_type: str = ""
    image: str | None = None
    runtime: str = "auto"
    command: list[str] = attrs.field(factory=list)
    code: str | None = None
    rooms: list[str] = attrs.field(factory=list)
    keys: list[str] = attrs.field(factory=list)
    account: str = "main"
    env: dict[str, str] = attrs.field(factory=dict)


@attrs.frozen
class Started:
    """`endpoint` is the agent's own socket; `ready` is whether it has said so already."""

    container_id: str
    container_name: str
    status: str
    endpoint: str
    name: str
    ready: bool


@attrs.frozen
class Stop:
    container_id: str = ""
    name: str = ""


@attrs.frozen
class Stopped:
    """`status` is "stopped", or "stopping" when that takes longer than the caller would wait."""

    status: str
    container_id: str
    container_name: str
    name: str


@attrs.frozen
class TakeSecrets:
    """`via` "fd": sealed memory comes with the answer as a file descriptor; "inline": as text in it."""

    via: str = "fd"


@attrs.frozen
class Ready:
    """`fingerprint` is the SHA-256 of the secrets taken, in hex, or null when none were."""

    protocol: int = PROTOCOL
    library: str = ""
    fingerprint: str | None = None


@attrs.frozen
class Welcome:
    protocol: int
    agent: str
    rooms: list[str]


def register(registry: Registry, fleet: Fleet) -> None:
    """Adds start, stop and containers.list for operators, secrets.take and agent.ready for agents."""
    operator = {Role.OPERATOR}
    agents = {Role.AGENT}

    @registry.method("start", params=Start, result=Started, roles=operator, doc="Start an agent.")
    async def start(call: Call, params: Start) -> Started:
        agent = await _wanted(fleet, params)
        await fleet.start(agent)
        generation = agent.generation
        return Started(
            container_id=generation.running.id if generation else "",
            container_name=f"armorclaw-{agent.name}",
            status=fleet.state_of(agent) if generation is None else "running",
            endpoint=str(agent.socket.path),
            name=agent.name,
            ready=generation.is_ready if generation else False,
        )

    @registry.method("stop", params=Stop, result=Stopped, roles=operator, doc="Stop an agent; it stays stopped.")
    async def stop(call: Call, params: Stop) -> Stopped:
        agent = fleet.get(params.name or params.container_id)
        container_id = agent.generation.running.id if agent.generation else ""
        done = await fleet.stop(agent)
        return Stopped("stopped" if done else "stopping", container_id, f"armorclaw-{agent.name}", agent.name)

    @registry.method(
        "containers.list", result=list[Standing], roles={Role.OPERATOR, Role.OBSERVER}, doc="All agents."
    )
    def containers_list(call: Call, params: object) -> list[Standing]:
        return fleet.standings()

    @registry.method(
        "secrets.take", params=TakeSecrets, result=dict, roles=agents, doc="The agent's keys, once per start."
    )
    def secrets_take(call: Call, params: TakeSecrets) -> dict[str, object]:
        if params.via not in ("fd", "inline"):
            raise ArmorclawError("invalid_params", f"via {params.via!r}", why='it must be "fd" or "inline"')
        return _own(fleet, call).take_secrets(call, params.via)

    @registry.method("agent.ready", params=Ready, result=Welcome, roles=agents, doc="This connection is the session.")
    def agent_ready(call: Call, params: Ready) -> Welcome:
        if params.protocol != PROTOCOL:
            why = f"this bridge speaks {PROTOCOL}"
            raise ArmorclawError("invalid_params", f"protocol {params.protocol}", why=why)
        agent = _own(fleet, call)
        agent.become_ready(call, params.fingerprint)
        return Welcome(PROTOCOL, agent.name, fleet.rooms_of(agent))


def _own(fleet: Fleet, call: Call) -> Agent:
    assert call.agent is not None, "only agents may call this"
    return fleet.get(call.agent)


async def _wanted(fleet: Fleet, params: Start) -> Agent:
    """The declared agent that is meant, or a new one as described."""
    name = params.name or params.agent_type
    described = params.command or params.code or params.image
    try:
        known = fleet.get(name)
    except ArmorclawError:
        known = None
    if known is not None and not described:
        if params.key_id:
            keys = dict.fromkeys((*known.declared.keys, params.key_id))
            known.declared = attrs.evolve(known.declared, keys=tuple(keys))
        return known
    if not described:
        hint = "name a declared agent, or give an image, a command or code"
        raise ArmorclawError("invalid_params", f"there is no agent {name!r} to start", hint=hint)
    if not is_name(name):
        raise ArmorclawError("invalid_params", f"name {name[:80]!r}", why="1 to 32 of a-z, 0-9, - and _ are allowed")
    if known is not None and known.generation is not None:
        raise ArmorclawError("conflict", f"agent {name} runs already", hint="stop it first")
    return await fleet.declare(_described(name, params))


def _described(name: str, params: Start) -> config.Agent:
    given: dict[str, Any] = {
        "image": params.image,
        "runtime": params.runtime,
        "command": tuple(params.command),
        "code": Path(params.code) if params.code else None,
        "rooms": tuple(params.rooms),
        "keys": tuple(dict.fromkeys((*params.keys, *([params.key_id] if params.key_id else [])))),
        "account": params.account,
        "env": dict(params.env),
    }
    try:
        return config.Agent(name=name, **given)
    except FaultError as fault:
        raise ArmorclawError("invalid_params", f"agent {name}: {fault.why}", hint=fault.fix) from None
