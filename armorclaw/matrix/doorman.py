"""Into the granted rooms: aliases become ids, invites are followed, public rooms are joined."""

from __future__ import annotations

import trio
from mautrix.errors import MatrixError

from armorclaw.clock import Surroundings
from armorclaw.log import get_logger
from armorclaw.matrix.client import MatrixClient
from armorclaw.matrix.granted import Granted
from armorclaw.matrix.pacing import Pacing
from armorclaw.matrix.rooms import Rooms
from armorclaw.matrix.transport import judge

log = get_logger(__name__)

FIRST_LOOK = 10.0
"""Seconds that the first look-up of aliases may hold the sync back: events of a room not known by its id are lost."""


class Doorman:
    """Keeps one account in the rooms that are granted on it.

    A room that refuses is asked again after an invite; one that we were put out of, only then.
    """

    def __init__(self, client: MatrixClient, granted: Granted, rooms: Rooms, around: Surroundings) -> None:
        self._client = client
        self._granted = granted
        self._rooms = rooms
        self._pacing = Pacing(around.random, first=1.0, cap=60.0)
        self._refused: set[str] = set()
        self._tried: dict[str, str | None] = {}

    async def look_up_aliases(self) -> None:
        """Resolve what can be resolved within `FIRST_LOOK` seconds; `run` goes on with the rest."""
        with trio.move_on_after(FIRST_LOOK):
            while not await self._resolve_all():  # noqa: ASYNC110 - it is a server that is waited for
                await trio.sleep(self._pacing.next())
        self._pacing.reset()

    async def run(self) -> None:
        """Follow changes of the grants and of the account's rooms until cancelled."""
        while True:
            changed = self._granted.changed
            if await self._resolve_all() and await self._join_all():
                self._pacing.reset()
                await changed.wait()
            else:
                with trio.move_on_after(self._pacing.next()):
                    await changed.wait()

    async def _resolve_all(self) -> bool:
        """Whether nothing is left that may succeed later."""
        done = True
        for alias in self._granted.unresolved():
            if alias in self._refused:
                continue
            try:
                self._granted.resolved(alias, await self._client.resolve(alias))
            except MatrixError as error:
                if judge(error).again:
                    done = False
                    continue
                self._refused.add(alias)
                log.warning("granted alias names no room", alias=alias, why=judge(error).reason)
        return done

    async def _join_all(self) -> bool:
        """Try each room once for each membership that we find ourselves in: not yet, and invited."""
        done = True
        for room_id in self._granted.room_ids():
            known = self._rooms.get(room_id)
            membership = known.membership if known else None
            if membership in ("join", "leave"):
                self._tried.pop(room_id, None)
                continue
            if self._tried.get(room_id, "") == membership:
                continue
            try:
                await self._client.enter(room_id)
                log.info("room joined", room=room_id)
            except MatrixError as error:
                verdict = judge(error)
                if verdict.again:
                    done = False
                    continue
                log.warning("granted room cannot be entered", room=room_id, membership=membership, why=verdict.reason)
            self._tried[room_id] = membership
        return done
