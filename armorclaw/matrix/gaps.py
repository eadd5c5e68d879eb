"""What a limited timeline left out: fetched back within bounds; what is beyond them is told, never lost in silence.

One room that cannot be fetched must not hold up the account, nor a long absence fill the memory. So the attempts of a
room are counted over the rounds of the sync, and what all rooms of one answer hold in hand is bounded in bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import attrs
import trio
from mautrix.errors import MatrixError

from armorclaw.log import get_logger
from armorclaw.matrix.answer import Raw
from armorclaw.matrix.client import MatrixClient
from armorclaw.matrix.failures import judge
from armorclaw.matrix.portions import BREATH, BREATH_BYTES, size_of
from armorclaw.matrix.reading import Item

log = get_logger(__name__)

GAP_PAGE = 200
GAP_LIMIT = 5_000
"""Missed events of one room that are fetched; older ones are given up, and an event of type `gap` says so."""

HAND_LIMIT = 16 * 1024 * 1024
"""Bytes of missed events, of all rooms of one answer, that are fetched; older ones are given up likewise."""

GAP_ATTEMPTS = 5
"""Rounds that one room may fail; then its gap is told, and the others go on. A few seconds, unless it is silent."""

ROUND_ATTEMPTS = 12
"""Rounds that may fail from one place, whichever rooms they fail on."""


@attrs.frozen
class Filled:
    """What was fetched for one room, oldest first, and why older ones are missing; None if none is."""

    items: Sequence[Item] = ()
    missing: str | None = None


class Gaps:
    """Fills gaps, round by round: `begin`, `fill` for each room, and `done` when the place has moved on.

    A homeserver that is away as a whole costs no attempt: then no round gets this far.
    """

    def __init__(self, account: str, client: MatrixClient) -> None:
        self._account = account
        self._client = client
        self._failed: dict[str, int] = {}  # rounds, by room, since it worked
        self._rounds = 0  # that failed from this place
        self._cut: dict[tuple[str, str], Filled] = {}  # by room and start; perhaps told: no older ones may follow
        self._left = HAND_LIMIT
        self._enough: str | None = None  # why no other room is tried in this round

    def begin(self) -> None:
        """A round begins."""
        self._left = HAND_LIMIT
        self._enough = None

    def done(self) -> None:
        """The round is in the store."""
        self._rounds = 0
        self._cut.clear()

    async def fill(
        self,
        room_id: str,
        start: str,
        end: str,
        *,
        item: Callable[[Raw], Item | None],
        stop: Callable[[Raw], bool],
    ) -> Filled:
        """Events before `start` and after `end`, or after the first one on the way back that is to `stop` at.

        `item` makes ours of them. Raises what the client raises as long as the whole round is to be asked again.
        """
        if (cut := self._cut.get((room_id, start))) is not None:
            return cut
        if self._enough is not None:
            return self._without(room_id, start, [], self._enough)
        found: list[Item] = []
        try:
            missing = await self._fetch(room_id, start, end, found, item, stop)
        except MatrixError as error:
            verdict = judge(error)
            if verdict.unknown_token or (verdict.again and not self._exhausted(room_id, verdict.reason)):
                raise
            return self._without(room_id, start, found, f"the homeserver did not give them: {verdict.reason}")
        self._failed.pop(room_id, None)
        if missing is not None:
            return self._without(room_id, start, found, missing)
        return Filled(found[::-1])

    async def _fetch(
        self,
        room_id: str,
        start: str,
        end: str,
        found: list[Item],
        item: Callable[[Raw], Item | None],
        stop: Callable[[Raw], bool],
    ) -> str | None:
        """Adds to `found`, newest first; returns why there is more than that."""
        at: str | None = start
        count = since_breath = 0
        while at is not None:
            if count >= GAP_LIMIT:
                return f"more than {GAP_LIMIT} events were missed"
            chunk, at = await self._client.page_back(room_id, at, end, GAP_PAGE)
            for raw in chunk:
                if stop(raw):
                    return None
                one = item(raw)
                count += 1
                size = 0 if one is None else size_of(one)
                since_breath += size
                if count % BREATH == 0 or since_breath > BREATH_BYTES:
                    since_breath = 0
                    await trio.lowlevel.checkpoint()
                if size > self._left:
                    self._left = 0  # a smaller one of another room would not make it whole
                    return f"more than {HAND_LIMIT} bytes were missed"
                self._left -= size
                if one is not None:
                    found.append(one)
        return None

    def _exhausted(self, room_id: str, reason: str) -> bool:
        """Counts a failure; whether it was one too many."""
        self._rounds += 1
        self._failed[room_id] = self._failed.get(room_id, 0) + 1
        if self._rounds >= ROUND_ATTEMPTS:
            self._enough = f"the homeserver did not give them: {reason}"
        elif self._failed[room_id] < GAP_ATTEMPTS:
            return False
        self._failed[room_id] = GAP_ATTEMPTS - 1  # until it works again, it gets one attempt
        return True

    def _without(self, room_id: str, start: str, found: Sequence[Item], reason: str) -> Filled:
        log.warning("gap not filled", account=self._account, room=room_id, fetched=len(found), why=reason)
        self._cut[room_id, start] = filled = Filled(found[::-1], reason)
        return filled
