"""`containers.inspect`: all that is known of one agent, but no secret."""

from __future__ import annotations

import attrs

from armorclaw.containers.agent import Agent
from armorclaw.containers.shapes import Inspection, Limits


def inspected(agent: Agent, *, container_name: str, rooms: list[str], restarts: int) -> Inspection:
    """How it is declared, and how it stands now. Of its environment the names alone: values may be meant for it."""
    declared, generation = agent.declared, agent.generation
    return Inspection(
        name=agent.name,
        state=agent.state.value,
        wanted=agent.wanted,
        ready=generation.is_ready if generation else False,
        generation=agent.generations,
        restarts=restarts,
        last_end=agent.last_end,
        container_name=container_name,
        container_id=generation.running.id if generation else None,
        since_ms=generation.since_ms if generation else None,
        digest=generation.digest if generation else None,
        adopted=generation.adopted if generation else None,
        runs_on=generation.runtime.kind if generation else None,
        runtime=declared.runtime,
        image=declared.image,
        command=list(declared.command),
        code=str(declared.code) if declared.code else None,
        uid=agent.socket.uid,
        socket=str(agent.socket.path),
        account=declared.account,
        rooms=rooms,
        keys=list(declared.keys),
        env=sorted(declared.env),
        limits=Limits(**attrs.asdict(declared.limits)),
        ready_timeout=declared.ready_timeout,
    )
