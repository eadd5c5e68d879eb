"""Agents on the wire: started and stopped by operators; their own two calls."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import attrs

from armorclaw import config
from armorclaw.config import is_name
from armorclaw.containers.agent import RUNS, Agent, Standing
from armorclaw.containers.fleet import Fleet
from armorclaw.errors import ArmorclawError
from armorclaw.rpc.peer import Call
from armorclaw.rpc.registry import Registry, Role
from armorclaw.structure import FaultError

PROTOCOL = 1
"""The version of the wire that the agent library speaks."""

_FINGERPRINT = re.compile(r"[0-9a-f]{64}")

T = TypeVar("T")


@attrs.frozen
class Start:
    """What to start: a declared agent by `name` (or `agent_type`), or a new one.

    A new one lasts as long as the bridge; if it cannot be started nothing of it is kept. One that is at rest may be
    described anew. `code` is a file or folder of the host that becomes /agent. `key_id` is one more key to grant,
    `keys` are all of them.
    """

    name: str = ""
    key_id: str = ""
    agent_type: str = ""
    image: str | None = None
    runtime: config.RuntimeName = "auto"
    command: list[str] = attrs.field(factory=list)
    code: str | None = None
    rooms: list[str] = attrs.field(factory=list)
    keys: list[str] = attrs.field(factory=list)
    account: str = "main"
    env: dict[str, str] = attrs.field(factory=dict)


_NOTHING = Start()


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

    via: Literal["fd", "inline"] = "fd"


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
        agent, is_new = await _wanted(fleet, params)
        try:
            await fleet.start(agent)
        except ArmorclawError:
            if is_new:  # what never ran leaves nothing behind
                await fleet.forget(agent)
            raise
        generation = agent.generation
        return Started(
            container_id=generation.running.id if generation else "",
            container_name=fleet.container_name(agent),
            status="running" if agent.state in RUNS else agent.state.value,
            endpoint=str(agent.socket.path),
            name=agent.name,
            ready=generation.is_ready if generation else False,
        )

    @registry.method("stop", params=Stop, result=Stopped, roles=operator, doc="Stop an agent; it stays stopped.")
    async def stop(call: Call, params: Stop) -> Stopped:
        if not (params.name or params.container_id):
            raise _invalid("name", "name or container_id is required")
        agent = fleet.get(params.name or params.container_id)
        container_id = agent.generation.running.id if agent.generation else ""
        done = await fleet.stop(agent)
        return Stopped("stopped" if done else "stopping", container_id, fleet.container_name(agent), agent.name)

    @registry.method(
        "containers.list", result=list[Standing], roles={Role.OPERATOR, Role.OBSERVER}, doc="All agents."
    )
    def containers_list(call: Call, params: object) -> list[Standing]:
        return fleet.standings()

    @registry.method(
        "secrets.take", params=TakeSecrets, result=dict, roles=agents, doc="The agent's keys, once per start."
    )
    def secrets_take(call: Call, params: TakeSecrets) -> dict[str, object]:
        return _own(fleet, call).take_secrets(call, params.via)

    @registry.method("agent.ready", params=Ready, result=Welcome, roles=agents, doc="This connection is the session.")
    def agent_ready(call: Call, params: Ready) -> Welcome:
        if params.protocol != PROTOCOL:
            raise _invalid(
                "protocol", f"protocol {params.protocol} is not spoken here: this bridge speaks {PROTOCOL}"
            )
        if params.fingerprint is not None and not _FINGERPRINT.fullmatch(params.fingerprint):
            raise _invalid("fingerprint", "fingerprint must be 64 hex digits, or null")
        agent = _own(fleet, call)
        agent.become_ready(call, params.fingerprint)
        return Welcome(PROTOCOL, agent.name, fleet.rooms_of(agent))


def _own(fleet: Fleet, call: Call) -> Agent:
    assert call.agent is not None, "only agents may call this"
    return fleet.get(call.agent)


async def _wanted(fleet: Fleet, params: Start) -> tuple[Agent, bool]:
    """The declared agent that is meant, or one as described; and whether nobody knew it before."""
    name = params.name or params.agent_type
    if not name:
        raise _invalid("name", "name (or agent_type) is required")
    known = fleet.find(name)
    if not (params.command or params.code or params.image):
        if known is None:
            hint = "name a declared agent, or give an image, a command or code"
            raise _invalid("name", f"name {name[:80]!r}: there is no such agent to start", hint)
        for field in ("runtime", "rooms", "keys", "account", "env"):
            if getattr(params, field) != getattr(_NOTHING, field):
                raise _invalid(field, f"{field} can only be given with an image, a command or code")
        if params.key_id:
            await fleet.add_key(known, params.key_id)
        return known, False
    if not is_name(name):
        raise _invalid("name", f"name {name[:80]!r} is not usable: 1 to 32 of a-z, 0-9, - and _ are allowed")
    described = _described(name, params)
    if known is not None and known.declared == described:
        return known, False  # said again, as by a client that did not wait for the answer
    return await fleet.describe(described), known is None


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
    if params.code and not Path(params.code).is_absolute():
        raise _invalid("code", "code must be an absolute path")
    for field, texts in (("command", params.command), ("env", params.env.values()), ("code", [params.code or ""])):
        if any("\0" in text for text in texts):
            raise _invalid(field, f"{field} must not hold a NUL")
    for attribute in attrs.fields(config.Agent):
        if attribute.validator is not None and attribute.name in given:
            _check(attribute.name, partial(attribute.validator, None, attribute, given[attribute.name]))
    return _check("runtime", partial(config.Agent, name=name, **given))


def _check(field: str, make: Callable[[], T]) -> T:
    """What `make` makes; what it finds wrong is said of `field`."""
    try:
        return make()
    except FaultError as fault:
        raise _invalid(field, f"{field}: {fault.why}", fault.fix) from None


def _invalid(field: str, what: str, hint: str = "") -> ArmorclawError:
    return ArmorclawError("invalid_params", what, hint=hint, fields=[field])
