"""A person who asks where nobody answers is told so, once in each room, and how to change that."""

from __future__ import annotations

from collections import OrderedDict

import trio

from armorclaw.clock import Clock
from armorclaw.delivery.message import Outgoing
from armorclaw.delivery.outbox import Outbox
from armorclaw.errors import ArmorclawError
from armorclaw.events.event import ascii_json
from armorclaw.log import get_logger
from armorclaw.store import Connection, Database

log = get_logger(__name__)

WAITING = 64
"""Rooms that are to be told and are not yet. Whoever asks in one more has to ask again."""

TOLD = 1_000
"""Rooms of which it is known without asking the store that they were told."""

TELLING_MS = 3_600_000
"""How long after a room was noted as told it may be that the outbox does not have the message: the bridge may have
been killed in between. After that it has been sent, or was not to be."""

_NOTE = "INSERT INTO unrouted (account, room_id, at_ms) VALUES (?, ?, ?) ON CONFLICT DO NOTHING"
_WHEN = "SELECT at_ms FROM unrouted WHERE account = ? AND room_id = ?"


class Guide:
    """Tells rooms; `commands` says whether people can choose an agent from there."""

    def __init__(self, db: Database, outbox: Outbox, clock: Clock, *, commands: bool) -> None:
        self._db = db
        self._outbox = outbox
        self._clock = clock
        self._commands = commands
        self._waiting: OrderedDict[tuple[str, str], bool] = OrderedDict()
        self._told: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._asked = trio.Event()

    def ask(self, account: str, room_id: str, direct: bool) -> None:
        """Somebody has asked in a room where nobody answers. Never waits."""
        key = account, room_id
        if key in self._told or key in self._waiting:
            return
        if len(self._waiting) >= WAITING:
            log.warning("room not told that nobody answers", account=account, room=room_id, why="too many wait")
            return
        self._waiting[key] = direct
        self._asked.set()

    def forget(self, account: str, room_id: str) -> None:
        """If nobody answers there again, it is news."""
        self._told.pop((account, room_id), None)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Until cancelled. A room that cannot be told now is told when somebody asks there the next time."""
        task_status.started()
        while True:
            while not self._waiting:
                self._asked = trio.Event()
                await self._asked.wait()
            (account, room_id), direct = next(iter(self._waiting.items()))
            try:
                await self._tell(account, room_id, direct)
            except ArmorclawError as error:
                log.warning("room not told that nobody answers", account=account, room=room_id, why=str(error))
            else:
                self._told[account, room_id] = None
                if len(self._told) > TOLD:
                    self._told.popitem(last=False)
            self._waiting.pop((account, room_id), None)

    async def _tell(self, account: str, room_id: str, direct: bool) -> None:
        now = self._clock.now_ms()

        def work(conn: Connection) -> int:
            conn.execute(_NOTE, (account, room_id, now))
            return int(conn.execute(_WHEN, (account, room_id)).fetchone()[0])

        at_ms = await self._db.write(work, grows=True)
        if now - at_ms > TELLING_MS:
            return
        content = {"msgtype": "m.notice", "body": self._words(room_id, direct), "m.mentions": {}}
        key = f"unrouted:{room_id}:{at_ms}"  # the same again, if a bridge was killed just here
        await self._outbox.enqueue(
            Outgoing(account=account, agent="", room_id=room_id, content=ascii_json(content), idempotency_key=key)
        )

    def _words(self, room_id: str, direct: bool) -> str:
        place = "dm = true" if direct else f'room = "{room_id}"'
        lines = ["No agent answers here yet."]
        if self._commands:
            lines.append("Whoever may give orders can choose one: !claw use AGENT")
        lines.append(f'In the configuration of the bridge it is:\n\n[[routes]]\n{place}\nagent = "AGENT"')
        return "\n".join(lines)
