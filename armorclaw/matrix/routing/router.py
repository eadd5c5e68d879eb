"""The desk of one account: what is said becomes a decision, and the decision a mark on the event."""

from __future__ import annotations

import json
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import TypeVar

import attrs

from armorclaw.config import Invites
from armorclaw.events.event import Event
from armorclaw.guard.policy import BRIDGE, Answer, Decision, Level, Place, Policy, Routed, Said
from armorclaw.log import get_logger
from armorclaw.matrix.granted import Granted
from armorclaw.matrix.rooms import Rooms, RoomState
from armorclaw.matrix.routing.said import Relation, read_said
from armorclaw.matrix.routing.table import RouteTable
from armorclaw.store import Connection, Database

log = get_logger(__name__)

T = TypeVar("T")

PLACES = 1_000
"""Rooms whose standing is kept ready; of the others it is put together when something is said there."""

OWN_RECENT = 256
"""Events of our own that came back last, with their transaction ids: the store may not know yet what they are."""

PLACED = 1_000
"""Events placed last, with those they are for: the store has them only when the portion is full that they came in."""

LEFT_OUT = 256
"""Of the events that were nobody's, those that can still be told why."""

_SPOKE = "SELECT agent FROM outbox WHERE account = ? AND event_id = ?"
_SPOKE_BY_TXN = "SELECT agent FROM outbox WHERE txn_id = ?"
_ADDRESSED = "SELECT addressed FROM journal WHERE account = ? AND event_id = ? AND addressed IS NOT NULL"


@attrs.frozen
class LeftOut:
    """An event that was nobody's to hear, and why; it may be kept for operators."""

    event_id: str
    room_id: str
    sender: str | None
    decision: Decision


class Router:
    """Decides for one account, as `armorclaw.matrix.routing.desk.Desk`.

    `ours` names the account of this bridge that a user id is of, `who` the user that this account is; `on_unrouted`
    is called with the room in which nobody answers a person who asked, `speaker` gives the account that answers for
    the bridge what is said in a room.
    """

    def __init__(
        self,
        account: str,
        *,
        policy: Policy,
        table: RouteTable,
        granted: Granted,
        rooms: Rooms,
        db: Database,
        invites: Invites,
        ours: Callable[[str], str | None],
        who: Callable[[], str | None],
        on_unrouted: Callable[[str, str, bool], object],
        speaker: Callable[[Place, Said], str],
    ) -> None:
        self.display_name: str | None = None
        """What people call the account, where a message does not say by itself whom it mentions."""
        self.counts: Counter[tuple[str, bool]] = Counter()
        """Events by the rule that decided, and whether they were kept."""
        self._account = account
        self._policy = policy
        self._table = table
        self._granted = granted
        self._rooms = rooms
        self._db = db
        self._invites: Invites = invites
        self._ours = ours
        self._who = who
        self._on_unrouted = on_unrouted
        self._speaker = speaker
        self._places: dict[str, Place] = {}
        self._as_of: tuple[object, ...] = ()
        self._own: OrderedDict[str, str | None] = OrderedDict()
        self._placed: OrderedDict[str, Sequence[str]] = OrderedDict()
        self._left_out: deque[LeftOut] = deque(maxlen=LEFT_OUT)
        self._told_clear: OrderedDict[str, None] = OrderedDict()  # rooms

    # -- as a desk

    def covers(self, room_id: str) -> bool:
        if not self._granted.covers(room_id) and not self._policy.hears_all_rooms:
            return False
        return self._policy.is_open(self._granted.lineage(room_id))

    def hears(self, room_id: str, sender: str) -> bool:
        if not self.covers(room_id):
            return False
        return self._ours(sender) is not None or self._policy.listens(self.standing(room_id), sender)

    def own(self, event_id: str, txn_id: str | None) -> None:
        _remember(self._own, event_id, txn_id, OWN_RECENT)

    def follows(self, event: Event) -> str | None:
        assert event.room_id is not None, "what is said, is said in a room"
        said, relation = self._read(event)
        root = relation.thread or relation.changes
        if root is None or said.sender is None or not self.hears(event.room_id, said.sender):
            return None
        place = self.standing(event.room_id)
        if not _narrowed(place) or self._policy.decide(place, said).kept:
            return None
        return root

    async def place(self, event: Event, *, in_clear: bool = False) -> Event | None:
        assert event.room_id is not None, "what is said, is said in a room"
        place = self.standing(event.room_id)
        said = attrs.evolve(await self.said(event, place), in_clear=in_clear)
        decision = self.decide(place, said)
        self.counts[decision.rule, decision.kept] += 1
        if decision.tell:
            self._on_unrouted(self._account, event.room_id, place.direct is not None)
        if decision.rule == "clear":
            self._say_clear(event)
        if event.event_id is not None and (not decision.kept or decision.rule == "clear"):
            self._left_out.append(LeftOut(event.event_id, event.room_id, event.sender, decision))
        if decision.kept:
            if decision.addressed is None:
                return event
            if event.event_id is not None:
                _remember(self._placed, event.event_id, decision.addressed, PLACED)
            return attrs.evolve(event, addressed=decision.addressed)
        log.debug(
            "event is nobody's", account=self._account, room=event.room_id, rule=decision.rule, why=decision.why
        )
        return None

    # -- for whoever asks

    def decide(self, place: Place, said: Said) -> Decision:
        """What the policy decides. Of several accounts of this bridge in a room one answers what the bridge is asked;
        which one that is, is looked up only where it matters."""
        decision = self._policy.decide(place, said)
        if decision.tell or (decision.rule == "order" and said.is_text):
            speaker = self._speaker(place, said)
            if speaker != self._account:
                return self._policy.decide(place, attrs.evolve(said, answered_by=speaker))
        return decision

    def standing(self, room_id: str) -> Place:
        """How a room stands now."""
        as_of = (self._granted.version, self._who(), self.display_name)
        if as_of != self._as_of or len(self._places) >= PLACES:
            self._places.clear()
            self._as_of = as_of
        place = self._places.get(room_id)
        if place is None:
            place = self._places[room_id] = self._look(room_id)
        return place

    async def said(self, event: Event, place: Place) -> Said:
        """What an event says, with what the store knows of those that it relates to, as far as that matters here.

        Raises what the store raises.
        """
        said, relation = self._read(event)
        if not relation or not self._matters(place, said):
            return said
        sent = {event_id: self._own.get(event_id) for event_id in relation.answers}
        about = [event_id for event_id in (relation.thread, relation.changes) if event_id is not None]
        placed = {event_id: self._placed[event_id] for event_id in about if event_id in self._placed}
        answers, follows = await self._db.read(lambda conn: self._related(conn, relation, sent, placed))
        return attrs.evolve(said, answers=answers, follows=follows)

    def _read(self, event: Event) -> tuple[Said, Relation]:
        said, relation = read_said(event)
        if said.sender is not None and not said.is_own_word:
            said = attrs.evolve(said, sender_account=self._ours(said.sender))
        return said, relation

    def left_out(self, room_id: str, event_id: str) -> LeftOut | None:
        """An event that was nobody's to hear, if that was not long ago."""
        return next((each for each in self._left_out if (each.room_id, each.event_id) == (room_id, event_id)), None)

    def invited(self, room_id: str, state: RoomState, *, wanted: Collection[str]) -> Answer:
        """What becomes of an invitation; `wanted` are the rooms to be in anyhow."""
        lineage = self._granted.lineage(room_id)
        return self._policy.invited(self._invites, state.inviter, lineage, granted=room_id in wanted)

    def _matters(self, place: Place, said: Said) -> bool:
        """Whether it makes a difference what an event relates to."""
        if _narrowed(place):
            return True
        return said.is_reaction and said.sender is not None and self._policy.may_command(said.sender)

    def _look(self, room_id: str) -> Place:
        lineage = self._granted.lineage(room_id)
        named = self._granted.named_in(lineage)
        direct = self._granted.direct(lineage)
        level, routed = self._routed(lineage, named, direct)
        return Place(
            self._account,
            lineage,
            user_id=self._who(),
            display_name=self.display_name,
            direct=direct,
            by_name=bool(named),
            level=level,
            routed=routed,
            hearing=self._granted.hearing(room_id),
        )

    def _routed(
        self, lineage: Sequence[str], named: Collection[str], direct: str | None
    ) -> tuple[Level | None, Sequence[Routed]]:
        chosen = self._table.chosen(self._account, lineage)
        if chosen is not None:
            return "chosen", [Routed(chosen.agent, chosen.respond, chosen.origin)]
        routed = [
            each
            for room, answering in self._table.of_rooms(self._account).items()
            if not self._granted.line(room).isdisjoint(lineage)
            for each in answering
        ]
        said_more = {each.agent for each in routed}
        routed += [
            Routed(agent, "always", self._table.origin(agent)) for agent in sorted(named) if agent not in said_more
        ]
        if routed:
            return "route", routed
        if direct is not None and (answering := self._table.of_direct(self._account)):
            return "dm", answering
        return None, ()

    def _related(
        self,
        conn: Connection,
        relation: Relation,
        sent: Mapping[str, str | None],
        placed: Mapping[str, Sequence[str]],
    ) -> tuple[frozenset[str], frozenset[str]]:
        """Whom it answers, and whom it follows; `sent` has the transaction ids of events that are ours, `placed` for
        whom those are that the store may not have yet."""

        def addressed(event_id: str | None) -> set[str]:
            if event_id is None:
                return set()
            return set(placed[event_id]) if event_id in placed else self._addressed(conn, event_id)

        answers = {agent for event_id, txn_id in sent.items() for agent in self._spoke(conn, event_id, txn_id)}
        answers |= addressed(relation.thread) - {BRIDGE}
        return frozenset(answers), frozenset(addressed(relation.changes))

    def _spoke(self, conn: Connection, event_id: str, txn_id: str | None) -> set[str]:
        rows = conn.execute(_SPOKE, (self._account, event_id)).fetchall()
        if not rows and txn_id is not None:
            rows = conn.execute(_SPOKE_BY_TXN, (txn_id,)).fetchall()
        return {agent or BRIDGE for (agent,) in rows}

    def _addressed(self, conn: Connection, event_id: str) -> set[str]:
        row = conn.execute(_ADDRESSED, (self._account, event_id)).fetchone()
        return set() if row is None else set(json.loads(row[0]))

    def _say_clear(self, event: Event) -> None:
        assert event.room_id is not None
        if event.room_id not in self._told_clear:
            _remember(self._told_clear, event.room_id, None, PLACES)
            facts = {"account": self._account, "room": event.room_id, "event_id": event.event_id, "by": event.sender}
            log.warning("message in the clear is nobody's, as the room is encrypted", **facts)


def _narrowed(place: Place) -> bool:
    """Whether some agent there hears only what concerns it."""
    return any(each.respond != "always" for each in place.routed)


def _remember(kept: OrderedDict[str, T], key: str, value: T, limit: int) -> None:
    kept[key] = value
    if len(kept) > limit:
        kept.popitem(last=False)
