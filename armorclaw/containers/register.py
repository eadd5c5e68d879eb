"""What the store keeps of each agent beside its events: its number, and whether it was stopped by hand."""

from __future__ import annotations

from armorclaw import config
from armorclaw.containers.agent import Agent
from armorclaw.guard.audit import AuditLog
from armorclaw.store import Connection, Database


class Register:
    """The table `agents`. Everything raises what the store raises."""

    def __init__(self, db: Database, audit: AuditLog, uid_base: int) -> None:
        self._db = db
        self._audit = audit
        self._uid_base = uid_base

    async def uid_of(self, declared: config.Agent) -> int:
        """Its own uid, kept with its name, so that agents cannot touch each other's processes or files."""

        def work(db: Connection) -> int:
            row = db.execute("SELECT number FROM agents WHERE name = ?", (declared.name,)).fetchone()
            if row is None:
                (number,) = db.execute("SELECT coalesce(max(number) + 1, 0) FROM agents").fetchone()
                db.execute("INSERT INTO agents (name, number) VALUES (?, ?)", (declared.name, number))
                return int(number)
            return int(row[0])

        number = await self._db.write(work)
        return declared.uid if declared.uid is not None else self._uid_base + number

    async def mark(self, agent: Agent, *, stopped: bool, why: str = "") -> None:
        """Record, durably, that it is to stay stopped, or is wanted; `agent.wanted` follows in the same order."""

        def work(db: Connection) -> None:
            db.execute("UPDATE agents SET stopped = ? WHERE name = ?", (int(stopped), agent.name))
            facts = {"why": why} if why else {}
            self._audit.append(db, "agent_stopped" if stopped else "agent_wanted", agent=agent.name, **facts)

        def then(_: None) -> None:
            agent.wanted = not stopped

        await self._db.write(work, durable=True, then=then)

    async def stopped(self) -> set[str]:
        """The names of those that are to stay stopped."""

        def work(db: Connection) -> set[str]:
            return {name for (name,) in db.execute("SELECT name FROM agents WHERE stopped")}

        return await self._db.read(work)
