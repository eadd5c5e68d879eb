"""Why each generation of an agent ended: one record for each, of which the last few are kept."""

from __future__ import annotations

import re
import signal
from typing import TYPE_CHECKING, Literal

import attrs

from armorclaw.containers.spec import Exit

if TYPE_CHECKING:  # clients know an end by its shape, and load no store for it
    from armorclaw.store import Connection, Database

KEPT = 20
"""Ends that are kept of each agent, the oldest makes room."""

TEXT = 500
"""Characters of the text of an end."""

Cause = Literal[
    "exit",
    "signal",
    "oom",
    "hang",
    "stalled",
    "lost session",
    "never ready",
    "quota",
    "engine",
    "operator",
    "lifetime",
    "idle",
    "secrets",
    "bridge",
]
"""Who or what ended it: itself (`exit`, `signal`, `oom`), the bridge for its health (`hang`, `stalled`, `lost
session`, `never ready`), for what it used (`quota`) or was granted (`secrets`), somebody who took its container away
(`engine`), an order (`operator`, `lifetime`, `idle`), or a slip or the end of the bridge itself (`bridge`)."""

SUSPECTED = "killed (137), memory limit suspected"
"""Who is killed by nobody we know, on a system that does not say why, was most likely out of memory."""


@attrs.frozen
class End:
    """The end of one generation, `ran_ms` after its start.

    `code` or `signal` of its main process, null where it was removed before it ended by itself. `oom`: whether some
    process in it was killed for want of memory, null where neither engine nor kernel tells. `text` is one line for
    people, and names no place of the host.
    """

    generation: int
    container_id: str
    at_ms: int
    ran_ms: int
    cause: Cause
    code: int | None
    signal: int | None
    oom: bool | None = attrs.field(converter=attrs.converters.optional(bool))  # the store has numbers
    text: str


@attrs.frozen
class Reason:
    """Why a generation ends, before it has: `exit` is that of its main process, if that came first."""

    cause: Cause
    text: str
    exit: Exit | None = None

    @classmethod
    def of_exit(cls, exit: Exit, oom_seen: bool | None) -> Reason:  # noqa: A002
        """Its main process ended by itself. `oom_seen` is what the kernel counted, null where it cannot be asked."""
        oom = True if exit.oom or oom_seen else exit.oom if exit.oom is not None else oom_seen
        if exit.signal is None:
            text = exit.text if exit.oom or not oom else f"{exit.text}, out of memory seen"
            return cls("oom" if oom and exit.code else "exit", text, attrs.evolve(exit, oom=oom))
        text = exit.text
        if oom and not exit.oom:
            text = f"{exit.text}, out of memory"
        elif oom is None and exit.signal == signal.SIGKILL:
            text = SUSPECTED
        return cls("oom" if oom else "signal", text, attrs.evolve(exit, oom=oom))


_WORD = r"""[^\s/:,;'"()…]"""
_LAST = rf"""(?:{_WORD}|[:,;'"()](?={_WORD}))+"""
_PART = rf"""(?:{_WORD}|[:,;'"()](?={_WORD})|\s+(?={_WORD}))+"""
_PATH = re.compile(
    r"(?P<address>\b(?!file:|unix:)[A-Za-z][\w+.-]*://(?=[^\s/])\S*)"  # says nothing of this host
    rf"|(?<![\w./…])/+(?:{_PART}/+)*(?P<last>{_LAST})"
)
"""Paths have spaces in them, too: up to the last slash before a colon, a quote or the like, all is one path."""


def without_paths(text: str) -> str:
    """One line in which a path of the host is its last part alone: for those who need not know where things are.

    Done twice it changes nothing more.
    """
    first = text.partition("\n")[0][: 4 * TEXT]
    return _PATH.sub(lambda found: found["address"] or f"…/{found['last']}", first)[:TEXT]


@attrs.frozen
class Begun:
    """A generation that has begun, and has not ended as far as the store knows. `survives`: its container may."""

    generation: int
    container_id: str
    since_ms: int
    survives: bool = attrs.field(converter=bool)

    def lost(self, now_ms: int) -> End:
        """Its end, found out now, when the bridge that ran it ended without a word; it may have been long ago."""
        ran_ms, text = max(0, now_ms - self.since_ms), "did not outlive its bridge"
        return End(self.generation, self.container_id, now_ms, ran_ms, "bridge", None, None, None, text)


class EndLog:
    """The ends that the store keeps."""

    def __init__(self, db: Database) -> None:
        self._db = db

    async def keep(self, agent: str, end: End) -> None:
        """Add one; beyond KEPT the oldest goes. Raises what the store raises."""

        def work(db: Connection) -> None:
            db.execute("DELETE FROM begun WHERE agent = ? AND container_id = ?", (agent, end.container_id))
            db.execute(
                "INSERT INTO ends (agent, generation, container_id, at_ms, ran_ms, cause, code, signal, oom, text)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (agent, *attrs.astuple(end)),
            )
            db.execute(
                "DELETE FROM ends WHERE agent = ? AND seq <="
                " (SELECT seq FROM ends WHERE agent = ? ORDER BY seq DESC LIMIT 1 OFFSET ?)",
                (agent, agent, KEPT),
            )

        await self._db.write(work)

    async def of(self, agent: str) -> list[End]:
        """The last ends of an agent, the oldest first. Raises what the store raises."""

        def work(db: Connection) -> list[End]:
            rows = db.execute(
                "SELECT generation, container_id, at_ms, ran_ms, cause, code, signal, oom, text"
                " FROM ends WHERE agent = ? ORDER BY seq DESC LIMIT ?",
                (agent, KEPT),
            ).fetchall()
            return [End(*row) for row in reversed(rows)]

        return await self._db.read(work)

    async def begin(self, agent: str, begun: Begun) -> None:
        """Remember a generation until its end is kept. Raises what the store raises."""

        def work(db: Connection) -> None:
            db.execute("INSERT OR REPLACE INTO begun VALUES (?, ?, ?, ?, ?)", (agent, *attrs.astuple(begun)))

        await self._db.write(work)

    async def unfinished(self, agent: str) -> Begun | None:
        """The generation of which no end was kept, if there is one. Raises what the store raises."""

        def work(db: Connection) -> Begun | None:
            found = "SELECT generation, container_id, since_ms, survives FROM begun WHERE agent = ?"
            row = db.execute(found, (agent,)).fetchone()
            return None if row is None else Begun(*row)

        return await self._db.read(work)
