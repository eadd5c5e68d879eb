"""`containers.inspect`: all that is known of one agent, but no secret."""

from __future__ import annotations

import attrs
import trio

from armorclaw.containers.agent import Agent
from armorclaw.containers.resources.history import Peaks
from armorclaw.containers.resources.usage import Reading
from armorclaw.containers.shapes import DataLimits, Figures, HealthFacts, Inspection, Limits, QuotaLimits


def inspected(
    agent: Agent, *, container_name: str, rooms: list[str], reading: Reading | None, peaks: Peaks
) -> Inspection:
    """How it is declared, and how it stands now. Of its environment the names alone: values may be meant for it."""
    declared, generation = agent.declared, agent.generation
    return Inspection(
        name=agent.name,
        state=agent.state.value,
        wanted=agent.wanted,
        ready=generation.is_ready if generation else False,
        generation=agent.generations,
        restarts=agent.restarts,
        last_end=agent.last_end,
        status=agent.status_text,
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
        patience=declared.health,
        restart_policy=declared.restart,
        on_restart=declared.on_restart,
        lifetime=declared.lifetime,
        idle_timeout=declared.idle_timeout,
        on_idle=declared.on_idle,
        python=str(declared.python) if declared.python else None,
        egress=list(declared.egress),
        data=DataLimits(**attrs.asdict(declared.data)),
        quota=QuotaLimits(**attrs.asdict(declared.quota)),
        health=health_of(agent, reading),
        usage=None if reading is None else _figures(reading),
        peaks=Figures(**attrs.asdict(peaks)),
        ends=list(agent.ends),
    )


def _figures(reading: Reading) -> Figures:
    usage = reading.usage
    return Figures(reading.cpu_percent, usage.memory_bytes, usage.pids, reading.tmp_bytes, reading.data_bytes)


def health_of(agent: Agent, reading: Reading | None) -> HealthFacts | None:
    """The facts of the generation that runs, and how old they are; None between two."""
    generation, heartbeat = agent.generation, agent.heartbeat
    if generation is None or heartbeat is None:
        return None
    now = trio.current_time()

    def age(at: float) -> int:
        return round((now - at) * 1000)

    unacknowledged, since = agent.unsettled()
    return HealthFacts(
        engine="lost" if generation.engine_lost else "running",
        engine_age_ms=age(generation.engine_at),
        session="open" if generation.is_ready else "lost" if generation.sessions else "none",
        session_age_ms=age(generation.session_at),
        ping_ms=None if heartbeat.ping is None else round(heartbeat.ping * 1000, 3),
        ping_age_ms=None if heartbeat.answered_at is None else age(heartbeat.answered_at),
        pings_missed=heartbeat.missed,
        unacknowledged=unacknowledged,
        oldest_unacknowledged_ms=None if since is None else age(since),
        work_age_ms=age(agent.last_work),
        reading_age_ms=None if reading is None else age(reading.at),
    )
