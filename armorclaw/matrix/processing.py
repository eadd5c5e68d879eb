"""What an answer to /sync brings is taken in: keys, then what gaps left out, then events together with the token.

Nothing is lost or told twice, wherever it is stopped: the token moves in the transaction that journals the last of
what came before it, and an event that comes again is known by its id. Keys go into a store of their own before that,
in which it does no harm if they come again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import attrs
import trio

from armorclaw.clock import Clock
from armorclaw.events.event import Event
from armorclaw.log import get_logger
from armorclaw.matrix import login
from armorclaw.matrix.answer import (
    Answer,
    Echo,
    Raw,
    Receipt,
    RoomUpdate,
    after_own_join,
    is_state,
    own_join,
    to_echo,
)
from armorclaw.matrix.client import MatrixClient
from armorclaw.matrix.facts import Facts
from armorclaw.matrix.gaps import Filled, Gaps
from armorclaw.matrix.intake import Batch, Intake
from armorclaw.matrix.login import Login
from armorclaw.matrix.portions import BREATH, put
from armorclaw.matrix.reading import Item, Late, Reader
from armorclaw.store import Connection

log = get_logger(__name__)

_FOLLOWED = ("m.room.encryption", "m.room.member", "m.room.history_visibility")  # by the encryption


class Follows(Protocol):
    """As `armorclaw.matrix.crypto.encryption.Encryption`: it follows what the homeserver tells of keys and rooms."""

    async def start_over(self) -> object: ...
    async def absorb(self, answer: Answer) -> object: ...
    async def room_state(self, room_id: str, raw: Raw) -> object: ...
    async def forget_members(self, room_id: str) -> object: ...
    def stands(self, since: str | None, next_batch: str) -> object: ...


@attrs.frozen
class _News:
    """What one room brings. `gap` says that something older is missing, and stands before all of it."""

    room_id: str
    gap: Event | None = None
    older: Sequence[Item] = ()
    timeline: Sequence[Raw] = ()


class Processor:
    """Takes in the answers that one account gets, one after the other.

    Of what others say only what the reader's desk has for somebody is journalled; what becomes of our own messages
    counts everywhere. What an answer changes of the `facts` is forgotten before that answer is anybody's. `moved` is
    called when something about the rooms has changed.
    """

    def __init__(
        self,
        client: MatrixClient,
        stored: Login,
        facts: Facts,
        reader: Reader,
        intake: Intake,
        encryption: Follows | None,
        clock: Clock,
        *,
        moved: Callable[[], object],
    ) -> None:
        self.since = stored.next_batch
        """The token of the last answer that was taken in."""
        self.told = stored.told
        """Whether some answer has told all that is kept of rooms; else the next one is to."""
        self.rooms = facts.rooms
        self.undecrypted = reader.undecrypted
        self._account = facts.account
        self._client = client
        self._cache = facts.cache
        self._reader = reader
        self._desk = reader.desk
        self._intake = intake
        self._encryption = encryption
        self._clock = clock
        self._moved = moved
        self._gaps = Gaps(facts.account, client)

    async def start_over(self, reason: str) -> None:
        """The homeserver has forgotten our place: begin anew, and say in every room that events may be missing."""
        log.warning("sync token refused, starting over", account=self._account, why=reason)
        joined = [room for room in self.rooms.joined_ids() if self._desk.covers(room)]
        gaps = [self._gap_event(room, "the homeserver refused the sync token") for room in joined]
        self._cache.clear()
        await self._intake.take(Batch(gaps), also=lambda db: login.save_place(db, self._account, None))
        self.since = None
        self._gaps.done()

    async def take_in(self, answer: Answer) -> None:
        """Keys first, then events with the token. Raises what the client and the store raise: it is to come again."""
        first = self.since is None
        turning: set[str] = set()
        for update in answer.rooms:
            if update.turns_encrypted:  # before anything else: whatever is sent from now on must be encrypted
                before = self.rooms.get(update.room_id)
                if before is None or not before.encrypted:
                    turning.add(update.room_id)
                self.rooms.turned_encrypted(update.room_id)
        self._reader.begin(turning=turning)
        if self._encryption is not None:
            if first:
                await self._encryption.start_over()
            await self._encryption.absorb(answer)
        changes = self.rooms.after(answer, str(self._client.mxid))
        news: list[_News] = []
        receipts: list[Receipt] = []
        self._gaps.begin()
        for update in answer.rooms:
            known = self.rooms.get(update.room_id)
            newly_joined = known is None or known.membership != "join"
            self._cache.follow(update)
            if self._encryption is not None and self.rooms.encrypted(update.room_id):
                await self._tell(self._encryption, update, anew=first or newly_joined)
            # an account that is new here has a past, which is nobody's to answer
            if first or not self._desk.covers(update.room_id):
                after = changes.get(update.room_id, known)
                if not first and self._reader.listens and after is not None and after.direct is not None:
                    news.append(_News(update.room_id, timeline=update.timeline))
                elif echoes := self._echoes(update):
                    news.append(_News(update.room_id, older=echoes))
            elif update.timeline or update.limited:
                news.append(await self._news(update, newly_joined=newly_joined))
            receipts += self._of_others(update)
        if self._encryption is not None:
            self._encryption.stands(self.since, answer.next_batch)
        late = [Late(seq) for seq in await self.undecrypted.candidates()]
        if not (news or receipts or changes or late) and self.told and answer.next_batch == self.since:
            return

        def also(db: Connection) -> None:
            login.save_place(db, self._account, answer.next_batch)
            self.rooms.save(db, changes)

        # last, so that a gap is hardly ever told by a round that is then asked again
        news.sort(key=lambda each: each.gap is not None)
        await put(self._intake, self._items(late, news), receipts, read=self._reader.read, also=also)
        self.since, self.told = answer.next_batch, True
        self._gaps.done()
        self.undecrypted.tried()
        if changes:
            self.rooms.apply(changes)
            self._moved()

    async def _tell(self, encryption: Follows, update: RoomUpdate, *, anew: bool) -> None:
        """Have the encryption follow who is in the room. It must never share a key by an old list."""
        if anew or update.limited:
            await encryption.forget_members(update.room_id)
        for number, raw in enumerate((*update.state, *update.timeline), 1):
            if raw.get("type") in _FOLLOWED and "state_key" in raw:
                await encryption.room_state(update.room_id, raw)
            if number % BREATH == 0:
                await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()  # there may be thousands of rooms

    async def take_late(self) -> None:
        """Keys have come, while the homeserver has nothing new to tell."""
        if late := [Late(seq) for seq in await self.undecrypted.candidates()]:
            self._reader.begin()
            await put(self._intake, late, (), read=self._reader.read)
        self.undecrypted.tried()

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
                item=lambda raw: self._reader.item(raw, room_id),
                stop=lambda raw: newly_joined and own_join(raw, own),
            )
        else:
            filled = Filled(missing="the homeserver did not say where they are")
        gap = None if filled.missing is None else self._gap_event(room_id, filled.missing, again=self.since)
        return _News(room_id, gap, filled.items, update.timeline)

    def _items(self, late: Sequence[Late], news: Sequence[_News]) -> Iterator[Item | None]:
        """All of it in order, made when it is wanted: as objects of JSON it is the larger."""
        yield from late
        for each in news:
            if each.gap is not None:
                yield each.gap
            yield from each.older
            if not any(_turns(raw) for raw in each.timeline):  # it happened before
                self._reader.turned(each.room_id)
            for raw in each.timeline:
                yield self._reader.item(raw, each.room_id)
                if _turns(raw):
                    self._reader.turned(each.room_id)

    def _gap_event(self, room_id: str, reason: str, *, again: str | None = None) -> Event:
        """That something is missing; told once, however often the round from the place `again` is asked."""
        place = "" if again is None else hashlib.sha256(again.encode("utf-8", "replace")).hexdigest()[:32]
        return Event.make(
            "gap",
            {"room_id": room_id, "reason": reason},
            at_ms=self._clock.now_ms(),
            id="" if again is None else f"{self._account}/gap/{room_id}/{place}",
            account=self._account,
            room_id=room_id,
            severity="warning",
        )


def _turns(raw: Raw) -> bool:
    return is_state(raw, "m.room.encryption", "")
