"""Who is writing: what agents say of it, as the people in a room are shown it."""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Iterator

import trio

from armorclaw.clock import Surroundings
from armorclaw.delivery.transport import Delayed, Refused
from armorclaw.log import get_logger
from armorclaw.matrix.pacing import Pacing

log = get_logger(__name__)

ROOMS = 256
"""Rooms of one account in which somebody writes at a time. Beyond, nothing is shown in others."""

SHOWN = 30.0
"""Seconds for which a homeserver is told at a time: as long it shows it after a bridge that died."""

AHEAD = 5.0
"""Seconds before the end of those that it is told again."""

PAUSE = 1.0
"""Seconds, at least, between two words about one room: an agent may change its mind often."""

POST_TIMEOUT = 5.0

Post = Callable[[str, float], Awaitable[object]]


class Typists:
    """Those of one account, several of which may write in one room: people are shown the account while any does.

    Nothing of it is kept: what could not be told in time is out of date.
    """

    def __init__(self, account: str, around: Surroundings) -> None:
        self._account = account
        self._around = around
        self._until: dict[str, dict[str, float]] = {}  # by room and agent
        self._shown: dict[str, float] = {}  # until when the homeserver shows it
        self._told: dict[str, float] = {}  # when it was told last, while that counts
        self._changed = trio.Event()

    def note(self, room_id: str, agent: str, seconds: float) -> None:
        """An agent writes, for so long at most; 0 for no more. Never waits."""
        writers = self._until.get(room_id)
        if seconds > 0:
            if writers is None:
                if len(self._until) >= ROOMS and not self._forget_past():
                    log.info("not shown as typing", account=self._account, room=room_id, why="in too many rooms")
                    return
                writers = self._until[room_id] = {}
            writers[agent] = trio.current_time() + seconds
        elif writers is None or writers.pop(agent, None) is None:
            return
        self._changed.set()

    async def run(self, post: Post) -> None:
        """Tell the homeserver, one word at a time, until cancelled. `post(room_id, seconds)` raises Delayed or
        Refused."""
        self._shown.clear()
        self._told.clear()
        pacing = Pacing(self._around.random, cap=60.0)
        while True:
            self._changed = trio.Event()
            now = trio.current_time()
            room_id, at = min(self._due(now), key=lambda due: due[1], default=("", math.inf))
            if at > now:
                with trio.move_on_at(at):
                    await self._changed.wait()
                continue
            until = min(self._writes_until(room_id), now + SHOWN)
            self._told[room_id] = now
            try:
                with trio.fail_after(POST_TIMEOUT):
                    await post(room_id, max(until - now, 0.0))
            except (trio.TooSlowError, Delayed) as delay:
                await trio.sleep(pacing.next(delay.seconds if isinstance(delay, Delayed) else None))
                continue
            except Refused as refusal:
                log.info("not shown as typing", account=self._account, room=room_id, why=refusal.reason)
                self._until.pop(room_id, None)
            pacing.reset()
            if until > now and room_id in self._until:
                self._shown[room_id] = until
            else:
                self._shown.pop(room_id, None)

    def _due(self, now: float) -> Iterator[tuple[str, float]]:
        """Of each room that there is something to say about: when."""
        self._forget_past()
        for room_id in self._told.keys() | self._until.keys():
            until, shown = self._writes_until(room_id), self._shown.get(room_id, 0.0)
            not_before = self._told.get(room_id, -math.inf) + PAUSE
            if until > max(now, shown):
                yield room_id, max(not_before, shown - AHEAD)
            elif until <= now < shown:
                yield room_id, not_before
            elif shown <= now and not_before <= now:
                self._told.pop(room_id, None)
                self._shown.pop(room_id, None)

    def _writes_until(self, room_id: str) -> float:
        return max(self._until.get(room_id, {}).values(), default=-math.inf)

    def _forget_past(self) -> bool:
        """Those whose time is over; whether there were any."""
        now = trio.current_time()
        before = len(self._until)
        for room_id, writers in list(self._until.items()):
            for agent in [agent for agent, until in writers.items() if until <= now]:
                del writers[agent]
            if not writers:
                del self._until[room_id]
        return len(self._until) < before
