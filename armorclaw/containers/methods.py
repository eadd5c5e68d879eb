"""Agents on the wire: started and stopped by operators; their own two calls."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, TypeVar

import attrs

from armorclaw import config
from armorclaw.config import is_name
from armorclaw.containers.agent import Agent
from armorclaw.containers.calls import relay
from armorclaw.containers.fleet import Fleet
from armorclaw.containers.isolation.examine import isolation_of
from armorclaw.containers.logs import tell
from armorclaw.containers.printed import LogWanted
from armorclaw.containers.resources.stats import Readings
from armorclaw.containers.shapes import (
    PROTOCOL,
    AgentCall,
    AgentStats,
    Inspection,
    IsolationFact,
    LogChunk,
    Logs,
    LogsEnd,
    Ready,
    Standing,
    Start,
    Started,
    Stats,
    StatsEnd,
    Stop,
    Stopped,
    TakeSecrets,
    Welcome,
    Which,
)
from armorclaw.errors import ArmorclawError
from armorclaw.rpc.admission import Rate
from armorclaw.rpc.call import Call
from armorclaw.rpc.registry import Registry, Role
from armorclaw.structure import FaultError

READY_RATE = Rate(2.0, 10)
"""Sessions that an agent may open: each is a change of its state, logged and recorded."""

_FINGERPRINT = re.compile(r"[0-9a-f]{64}")

T = TypeVar("T")


_NOTHING = Start()
_NOBODY: Mapping[str, Attached] = MappingProxyType({})


class Attached(Protocol):
    """An agent in this very program, which has no connection to be called on."""

    async def answer(self, call: Call, method: str, params: Any) -> Any: ...


def register(registry: Registry, fleet: Fleet, attached: Mapping[str, Attached] = _NOBODY) -> None:
    """Adds what operators may do with agents, and what agents say of themselves; `attached` are those that run."""
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
        return _started(fleet, agent, agent.state.value)

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

    @registry.method("containers.inspect", params=Which, result=Inspection, roles=operator)
    def containers_inspect(call: Call, params: Which) -> Inspection:
        """All that is known of one agent, but no secret."""
        return fleet.inspect(fleet.get(params.name))

    @registry.method("containers.isolation", params=Which, result=list[IsolationFact], roles=operator)
    async def containers_isolation(call: Call, params: Which) -> list[IsolationFact]:
        """What really confines a running agent: asked of the kernel and its engine, not of what it was told to be.

        Raises unavailable when no container of it runs.
        """
        return await isolation_of(fleet.get(params.name), fleet.folders)

    @registry.method("containers.restart", params=Which, result=Started, roles=operator)
    async def containers_restart(call: Call, params: Which) -> Started:
        """Stop an agent if it runs, and start it with a clear record, also one that was stopped or given up.

        `status` is "running", or "restarting" when that takes longer than the caller would wait.
        """
        agent = fleet.get(params.name)
        await fleet.restart(agent)
        return _started(fleet, agent, "restarting")

    @registry.method("containers.logs", params=Logs, result=LogsEnd, chunk=LogChunk, roles=operator)
    async def containers_logs(call: Call, params: Logs) -> LogsEnd:
        """What an agent printed and, with `follow`, prints: over its restarts, until it is removed.

        Ends with engine_unreachable when the engine is lost: call again, with since_ms.
        """
        wanted = LogWanted(params.tail, params.since_ms, params.follow, params.timestamps)
        return await tell(fleet.get(params.name), wanted, call.send)

    @registry.method("containers.stats", params=Stats, result=StatsEnd, chunk=list[AgentStats], roles=operator)
    async def containers_stats(call: Call, params: Stats) -> StatsEnd:
        """What agents use: each chunk is one reading of the agent named, until it is removed, or of all."""
        one = None if params.name is None else fleet.get(params.name)
        agents = fleet.agents if one is None else lambda: None if one.removed else [one]
        readings = Readings(agents, fleet.around.clock, fleet.resources)
        if params.history:
            await readings.tell_history(call.send)
        return await readings.tell(params.interval_ms / 1000, params.count, call.send)

    @registry.method("agent.call", params=AgentCall, result=Any, chunk=Any, roles=operator)
    async def agent_call(call: Call, params: AgentCall) -> Any:
        """Call a method that an agent offers; its pieces, its progress and its answer are the agent's own words.

        One that sleeps is woken for it. Ends with unavailable when the agent has no session or goes meanwhile,
        method_not_found if it offers no such, remote_failed if its handler fails.
        """
        here = attached.get(params.agent)
        if here is not None:
            return await here.answer(call, params.method, {} if params.params is None else params.params)
        agent = fleet.get(params.agent)
        with fleet.asking(agent):
            await fleet.until_awake(agent)
            return await relay(agent, call, params)

    taken = (
        "The agent's keys, once per start: {size, fds} with a file descriptor, or {secrets}, the same as text. "
        "docs/agent.md has the form."
    )

    @registry.method("secrets.take", params=TakeSecrets, result=dict, roles=agents, doc=taken, quota="nothing")
    def secrets_take(call: Call, params: TakeSecrets) -> dict[str, object]:
        return _own(fleet, call).take_secrets(call, params.via)

    doc = "This connection is the session."

    @registry.method(
        "agent.ready", params=Ready, result=Welcome, roles=agents, doc=doc, rate=READY_RATE, quota="nothing"
    )
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


def _started(fleet: Fleet, agent: Agent, otherwise: str) -> Started:
    generation = agent.generation
    return Started(
        container_id=generation.running.id if generation else "",
        container_name=fleet.container_name(agent),
        status="running" if agent.runs else otherwise,
        endpoint=str(agent.socket.path),
        name=agent.name,
        ready=generation.is_ready if generation else False,
    )


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
            hint = (
                "name one that armorclaw containers ls shows; in a call of start, or give an image, a command or code"
            )
            raise ArmorclawError("container_not_found", f"there is no agent {name[:80]!r} to start", hint=hint)
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
