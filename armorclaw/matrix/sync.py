"""The sync loop: ask, fill gaps, commit events together with the token, ask again.

Nothing is lost or told twice, wherever it is stopped: the token moves in the transaction that journals the last of
what came before it, and an event that comes again is known by its id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence

import attrs
import trio
from mautrix.errors import MatrixError, MatrixRequestError

from armorclaw.clock import Surroundings
from armorclaw.errors import ArmorclawError
from armorclaw.events.event import Event
from armorclaw.log import get_logger
from armorclaw.matrix import login
from armorclaw.matrix.answer import (
    Answer,
    BadAnswerError,
    Echo,
    Raw,
    Receipt,
    RoomUpdate,
    after_own_join,
    own_join,
    read_answer,
    to_echo,
    to_event,
)
from armorclaw.matrix.cache import Cache
from armorclaw.matrix.client import POLL_SECONDS, MatrixClient
from armorclaw.matrix.gaps import Filled, Gaps
from armorclaw.matrix.granted import Granted
from armorclaw.matrix.intake import Batch, Intake
from armorclaw.matrix.pacing import Pacing
from armorclaw.matrix.portions import Entry, put
from armorclaw.matrix.rooms import Rooms, RoomState
from armorclaw.matrix.status import SessionStatus
from armorclaw.matrix.transport import Verdict, judge
from armorclaw.store import Connection

log = get_logger(__name__)

REFUSED_PAUSE = 30.0
"""Seconds before asking again what the homeserver refused for a reason that does not pass by itself."""

_HOT = 3  # answers in a row that hold nothing, and come at once, before the loop slows down
_AT_ONCE = 1.0  # seconds; a poll that lasted longer than this has been held back


@attrs.frozen
class _News:
    """What one room brings. `gap` says that something older is missing, and stands before all of it."""

    room_id: str
    gap: Event | None = None
    older: Sequence[Entry] = ()
    timeline: Sequence[Raw] = ()


class SyncLoop:
    """One account's sync; `since` is where the loop stands.

    Of what others say only rooms that are granted to an agent are journalled; what becomes of our own messages counts
    everywhere. What an answer changes of the `cache` is forgotten before that answer is anybody's. `connected` is
    called when the homeserver answers for the first time, and again after each time it did not.
    """

    def __init__(
        self,
        account: str,
        client: MatrixClient,
        since: str | None,
        *,
        intake: Intake,
        cache: Cache,
        rooms: Rooms,
        granted: Granted,
        status: SessionStatus,
        around: Surroundings,
        connected: Callable[[], object],
    ) -> None:
        self.since = since
        self._account = account
        self._client = client
        self._intake = intake
        self._cache = cache
        self._rooms = rooms
        self._granted = granted
        self._status = status
        self._around = around
        self._connected = connected
        self._gaps = Gaps(account, client)
        self._pacing = Pacing(around.random)
        self._hot = 0

    async def run(self) -> None:
        """Sync until the homeserver no longer knows the access token, then return.

        Everything else it waits out: a homeserver that is away, slow, or answers nonsense, and a store that restarts.
        """
        held = False  # after a pause the first answer is wanted at once, not after a long poll
        while True:
            try:
                hot = await self._once(POLL_SECONDS if held else 0.0)
            except MatrixError as error:
                verdict = judge(error)
                if verdict.unknown_token:
                    return
                if self.since is not None and _token_refused(error):
                    await self._start_over(verdict.reason)
                    verdict = Verdict(again=True, reason=verdict.reason)
                await self._pause(verdict)
                held = False
            except BadAnswerError as error:
                await self._pause(Verdict(again=True, reason=str(error)))
                held = False
            except ArmorclawError as error:
                if not error.kind.retryable:
                    raise
                log.warning("the store does not take events", account=self._account, why=str(error))
                await trio.sleep(self._pacing.next())
            else:
                if self._status.synced():
                    self._connected()
                if hot:
                    await trio.sleep(self._pacing.next())
                else:
                    self._pacing.reset()
                held = True

    async def _once(self, seconds: float) -> bool:
        """One round; true if the homeserver seems to answer faster than anything happens."""
        asked = self._around.clock.monotonic()
        answer = read_answer(await self._client.poll(self.since, seconds))
        took = self._around.clock.monotonic() - asked
        stuck = answer.next_batch == self.since and not answer.empty
        if seconds and took < _AT_ONCE and (answer.empty or stuck):
            self._hot += 1
        else:
            self._hot = 0
        await self._take_in(answer)
        return stuck or self._hot > _HOT

    async def _pause(self, verdict: Verdict) -> None:
        told = verdict.after if verdict.again else REFUSED_PAUSE
        self._status.waiting(verdict.reason)
        await trio.sleep(self._pacing.next(told))

    async def _start_over(self, reason: str) -> None:
        """The homeserver has forgotten our place: begin anew, and say in every room that events may be missing."""
        log.warning("sync token refused, starting over", account=self._account, why=reason)
        joined = [room for room in self._rooms.joined_ids() if self._granted.covers(room)]
        gaps = [self._gap_event(room, "the homeserver refused the sync token") for room in joined]
        self._cache.clear()
        await self._intake.take(Batch(gaps), also=lambda db: login.save_place(db, self._account, None))
        self.since = None
        self._gaps.done()

    async def _take_in(self, answer: Answer) -> None:
        first = self.since is None
        changes: dict[str, RoomState] = {}
        news: list[_News] = []
        receipts: list[Receipt] = []
        self._gaps.begin()
        for update in answer.rooms:
            known = self._rooms.get(update.room_id)
            self._cache.follow(update)
            if (state := _state_after(update, known)) != known:
                changes[update.room_id] = state
            # an account that is new here has a past, which is nobody's to answer
            if first or not self._granted.covers(update.room_id):
                if echoes := self._echoes(update):
                    news.append(_News(update.room_id, older=echoes))
            elif update.timeline or update.limited:
                news.append(await self._news(update, newly_joined=known is None or known.membership != "join"))
            receipts += self._of_others(update)
        if not news and not receipts and not changes and answer.next_batch == self.since:
            return

        def also(db: Connection) -> None:
            login.save_place(db, self._account, answer.next_batch)
            self._rooms.save(db, changes)

        # last, so that a gap is hardly ever told by a round that is then asked again
        news.sort(key=lambda each: each.gap is not None)
        await put(self._intake, self._entries(news), receipts, also=also)
        self.since = answer.next_batch
        self._gaps.done()
        if changes:
            self._rooms.apply(changes)
            self._granted.poke()

    def _echoes(self, update: RoomUpdate) -> list[Echo]:
        own = str(self._client.mxid)
        found = (to_echo(raw, update.room_id) for raw in update.timeline if raw.get("sender") == own)
        return [echo for echo in found if echo is not None]

    def _of_others(self, update: RoomUpdate) -> list[Receipt]:
        """Each event once: that a second one has read it too tells nothing new."""
        own = str(self._client.mxid)
        return list({each.event_id: each for each in update.receipts if each.reader != own}.values())

    async def _news(self, update: RoomUpdate, *, newly_joined: bool) -> _News:
        """What one room brings, once what its timeline left out is fetched."""
        own, room_id = str(self._client.mxid), update.room_id
        if newly_joined and (since_join := after_own_join(update.timeline, own)) is not None:
            return _News(room_id, timeline=since_join)  # what was said before we came is not ours either
        if not update.limited:
            return _News(room_id, timeline=update.timeline)
        if update.prev_batch:
            assert self.since is not None
            filled = await self._gaps.fill(
                room_id,
                update.prev_batch,
                self.since,
                read=lambda raw: self._entry(raw, room_id),
                stop=lambda raw: newly_joined and own_join(raw, own),
            )
        else:
            filled = Filled(missing="the homeserver did not say where they are")
        gap = None if filled.missing is None else self._gap_event(room_id, filled.missing, again=self.since)
        return _News(room_id, gap, filled.entries, update.timeline)

    def _entries(self, news: Sequence[_News]) -> Iterator[Entry | None]:
        """All of it in order, made when it is wanted: as objects of JSON it is the larger."""
        for each in news:
            if each.gap is not None:
                yield each.gap
            yield from each.older
            for raw in each.timeline:
                yield self._entry(raw, each.room_id)

    def _entry(self, raw: Raw, room_id: str) -> Entry | None:
        if raw.get("sender") == str(self._client.mxid):
            return to_echo(raw, room_id)
        event = to_event(raw, room_id, self._account, self._around.clock.now_ms())
        if event is None:
            log.warning("malformed event left out", account=self._account, room=room_id)
        elif event.event_id is None:
            log.warning("event too deep to be read left out", account=self._account, room=room_id)
        return event

    def _gap_event(self, room_id: str, reason: str, *, again: str | None = None) -> Event:
        """That something is missing; told once, however often the round from the place `again` is asked."""
        place = "" if again is None else hashlib.sha256(again.encode("utf-8", "replace")).hexdigest()[:32]
        return Event.make(
            "gap",
            {"room_id": room_id, "reason": reason},
            at_ms=self._around.clock.now_ms(),
            id="" if again is None else f"{self._account}/gap/{room_id}/{place}",
            account=self._account,
            room_id=room_id,
            severity="warning",
        )


def _state_after(update: RoomUpdate, known: RoomState | None) -> RoomState:
    encrypted = update.turns_encrypted or (known is not None and known.encrypted)
    return RoomState(update.membership, encrypted)


def _token_refused(error: MatrixError) -> bool:
    """Synapse says M_UNKNOWN or M_INVALID_PARAM, others M_UNKNOWN_POS; nothing else in the request can be wrong."""
    return isinstance(error, MatrixRequestError) and error.http_status == 400 and error.errcode is not None
