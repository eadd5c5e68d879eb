"""Who is heard, and by whom: one decision for each thing that is said, by the first rule that applies.

The same function decides for the sync and for `armorclaw explain`. It is pure: what it knows of the world comes as
values (`Place`: how the room stands; `Said`: what was said and by whom), so every decision can be told again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import attrs

from armorclaw.config import AccessSection, Invites, Respond
from armorclaw.user_ids import UserPattern, Users

BRIDGE = "@bridge"
"""Stands among those addressed for the bridge itself; no agent can have that name."""

COMMAND = "!claw"
"""How orders to the bridge begin."""

Rule = Literal[
    "own", "elsewhere", "program", "talk", "order", "stranger", "bridge", "chosen", "route", "dm", "unrouted", "clear"
]  # fmt: skip

Level = Literal["chosen", "route", "dm"]

Answer = Literal["accept", "ignore", "decline"]


@attrs.frozen
class Routed:
    """One agent that may answer in a room: what of it it hears, and where that is written."""

    agent: str
    respond: Respond
    origin: str


@attrs.frozen
class Place:
    """How one room of an account stands.

    `user_id` is who the account is, None before its first login, `display_name` what people call it. `lineage` are
    the room and those that it replaced, by id. `direct` is with whom it is a direct chat. `by_name` tells that the
    room, or one that it replaced, is granted by name. `routed` are the agents of the one `level` of the table that
    is used here; `hearing` all that may hear the room.
    """

    account: str
    lineage: Sequence[str]
    user_id: str | None = None
    display_name: str | None = None
    direct: str | None = None
    by_name: bool = False
    level: Level | None = None
    routed: Sequence[Routed] = ()
    hearing: frozenset[str] = frozenset()


@attrs.frozen
class Said:
    """What was said, as far as it matters here.

    `sender` is None for a word of the bridge that is about nobody; `is_own_word` marks those of the bridge.
    `is_text`: a message of text that is no edit of an earlier one. `mentions` are the users that it mentions, None if
    it does not say; `body` is its text, without what it quotes. `is_notice`: said by a program, as Matrix marks it;
    `speaker` is the agent that a bridge says it comes from, "" for one without a name. `sender_account` is the
    account of this bridge that sent it. `answers` are agents to whose messages it relates, as reply, in a thread, or
    by a reaction, or who were addressed where that thread began; BRIDGE is among them for a message of the bridge
    itself. `follows` are those to whom the message was addressed that this one changes or removes. `in_clear`: it
    should be encrypted, as the room is, and is not, so that only the homeserver says who said it. `answered_by` is
    another account of this bridge in the room, to which it falls to answer what the bridge is asked there.
    """

    sender: str | None
    is_text: bool = False
    is_reaction: bool = False
    body: str = ""
    mentions: frozenset[str] | None = None
    is_notice: bool = False
    speaker: str | None = None
    sender_account: str | None = None
    answers: frozenset[str] = frozenset()
    follows: frozenset[str] = frozenset()
    is_own_word: bool = False
    in_clear: bool = False
    answered_by: str | None = None


@attrs.frozen
class Decision:
    """What was decided, by which rule, why, and `where` that rule is written.

    `addressed` is for the journal: None for all who may hear the room. `kept` tells whether it is for the journal at
    all; `tell` that the room may be told, once, that nobody answers here.
    """

    rule: Rule
    why: str
    where: str = ""
    kept: bool = False
    addressed: tuple[str, ...] | None = ()
    tell: bool = False


@attrs.frozen
class _Talk:
    agent: str | None
    people: UserPattern | None
    to: str
    where: str

    def allows(self, said: Said) -> bool:
        if self.people is not None:
            return said.sender is not None and self.people.matches(said.sender)
        # who says so must be us: anybody can write the name of an agent into a message
        return said.sender_account is not None and said.speaker == self.agent


class Policy:
    """The rules of a configuration."""

    def __init__(self, access: AccessSection) -> None:
        self._strangers = access.strangers
        self._trusted = Users(access.trusted)
        self._commanders = Users(access.commands)
        self._rooms = frozenset(access.rooms)
        self._talk = tuple(
            _Talk(
                None if each.from_.startswith(("@", "*")) else each.from_,
                UserPattern.parse(each.from_) if each.from_.startswith(("@", "*")) else None,
                each.to,
                f"access.talk[{at}]",
            )
            for at, each in enumerate(access.talk)
        )
        self._rules: Sequence[Callable[[Place, Said], Decision | None]] = (
            self._own,
            self._elsewhere,
            self._program,
            self._order,
            self._stranger,
            self._bridge,
            self._routed,
        )

    @property
    def hears_all_rooms(self) -> bool:
        """Whether something said in a room that is no agent's may be for anybody: an order, or a question that is
        answered with how to route it."""
        return bool(self._trusted or self._commanders)

    def knows(self, user_id: str) -> bool:
        """Whether this person is trusted by name; whoever may give orders is."""
        return user_id in self._trusted or user_id in self._commanders

    def may_command(self, user_id: str) -> bool:
        """Whether this person may give orders."""
        return user_id in self._commanders

    def somebody(self, place: Place) -> str:
        """A person that may be heard in a room, as an example: whom it is a direct chat with, or of those named."""
        return place.direct or self._trusted.example() or self._commanders.example() or "@anybody:anywhere"

    def is_open(self, lineage: Sequence[str]) -> bool:
        """Whether anybody may be heard in a room, that of `lineage`'s first id."""
        return not self._rooms or not self._rooms.isdisjoint(lineage)

    def decide(self, place: Place, said: Said) -> Decision:
        """The decision of the first rule that applies. There always is one.

        What is in the clear where it should not be is for nobody, whoever would have heard it.
        """
        decision = next((found for rule in self._rules if (found := rule(place, said))), None)
        decision = decision or _unrouted(place, said)
        if said.in_clear and (decision.tell or decision.addressed != ()):
            why = "it is in the clear, though the room is encrypted: only the homeserver says who said it"
            return Decision("clear", why, kept=decision.kept)
        return decision

    def listens(self, place: Place, sender: str) -> bool:
        """Whether anything that this person says in a room may be heard."""
        told = any(each.people is not None and each.people.matches(sender) for each in self._talk)
        return self.is_open(place.lineage) and (told or self._trusts(place, sender))

    def invited(self, invites: Invites, inviter: str | None, lineage: Sequence[str], *, granted: bool) -> Answer:
        """What becomes of an invitation to a room, by an account that follows `invites`; `granted` tells whether the
        room, or one that it replaced, is to be joined anyhow."""
        known = inviter is not None and self.knows(inviter)
        if invites != "none" and (granted or (invites == "trusted" and known and self.is_open(lineage))):
            return "accept"
        return "decline" if self._strangers == "reject" and not known and not granted else "ignore"

    # -- the rules, in their order

    def _own(self, place: Place, said: Said) -> Decision | None:
        if said.sender is not None and said.sender == place.user_id and not said.is_own_word:
            return Decision("own", "an account does not hear itself")
        return None

    def _elsewhere(self, place: Place, said: Said) -> Decision | None:
        if self.is_open(place.lineage):
            return None
        return _silenced(said, "elsewhere", "the room is not among those in which people are heard", "access.rooms")

    def _program(self, place: Place, said: Said) -> Decision | None:
        """What programs say goes only to those who are to hear that program, or two of them could go on for ever."""
        if said.is_own_word or said.sender is None:
            return None
        is_program = said.is_notice or said.speaker is not None or said.sender_account is not None
        if not is_program and self._trusts(place, said.sender):
            return None
        allowed = {each.to: each.where for each in self._talk if each.allows(said)}
        routed = [each for each in place.routed if each.agent in allowed]
        if routed:
            heard = [each for each in routed if _concerns(place, each, said)]
            where = ", ".join(dict.fromkeys(allowed[each.agent] for each in heard or routed))
            if not heard:
                return Decision("talk", "it is not for the agents that may hear who said it", where)
            return Decision("talk", "who said it is one that these agents hear", where, True, _names(heard))
        if not is_program or (said.sender_account is None and not self._trusts(place, said.sender)):
            return None  # a stranger is one, whoever he says he is
        why = "it is said by a program, and no agent here is to hear that one"
        # as it is no stranger's, nobody fills the journal with what is kept for operators to see
        return Decision("program", why, "access.talk", kept=bool(place.hearing))

    def _order(self, place: Place, said: Said) -> Decision | None:
        if said.sender is None or said.is_own_word or not self.may_command(said.sender):
            return None
        if said.is_text and _begins_with(said.body, COMMAND):
            if said.answered_by is not None:
                return Decision("order", f"an order that account {said.answered_by} answers", "access.commands")
            return Decision("order", "an order of somebody who may give some", "access.commands", True, (BRIDGE,))
        if said.is_reaction and BRIDGE in said.answers:
            return Decision("order", "a reaction to what the bridge said", "access.commands", True, (BRIDGE,))
        return None

    def _stranger(self, place: Place, said: Said) -> Decision | None:
        if said.sender is None:
            return None if said.is_own_word else Decision("stranger", "nobody says who said it", "access.trusted")
        if self._trusts(place, said.sender):
            return None
        if self._trusted:
            why = f"{said.sender} is not among those trusted"
        else:
            why = "nobody is trusted by name, and the room is not granted by name"
        return _silenced(said, "stranger", why, "access.trusted")

    def _bridge(self, place: Place, said: Said) -> Decision | None:
        if not said.is_own_word:
            return None
        return Decision("bridge", "the bridge says it to all who hear the room", "", True, None)

    def _routed(self, place: Place, said: Said) -> Decision | None:
        if place.level is None:
            return None
        heard = [each for each in place.routed if _concerns(place, each, said)]
        where = ", ".join(dict.fromkeys(each.origin for each in heard or place.routed))
        if not heard:
            return Decision(place.level, "nothing in it is for an agent of this room", where)
        names = _names(heard)
        everybody = place.hearing <= set(names) and all(each.respond == "always" for each in heard)
        why = "the room is routed so"
        return Decision(place.level, why, where, True, None if everybody else names)

    def _trusts(self, place: Place, sender: str) -> bool:
        return self.knows(sender) or (not self._trusted and place.by_name)


def _unrouted(place: Place, said: Said) -> Decision:
    asks = said.is_text and (place.direct is not None or mentions(place, said))
    return Decision("unrouted", "no agent is routed here", "routes", tell=asks and said.answered_by is None)


def _silenced(said: Said, rule: Rule, why: str, where: str) -> Decision:
    """What is said is dropped; a word of the bridge about it stays for operators."""
    return Decision(rule, why, where, kept=said.is_own_word)


def _names(heard: Sequence[Routed]) -> tuple[str, ...]:
    return tuple(sorted({each.agent for each in heard}))


def _concerns(place: Place, routed: Routed, said: Said) -> bool:
    """Whether an agent hears this, by what it responds to."""
    if routed.respond == "always" or routed.agent in said.follows:
        return True
    if said.is_text and _begins_with(said.body, f"!{routed.agent}"):
        return True
    if routed.respond == "command":
        return False
    return routed.agent in said.answers or (routed.respond == "mention" and mentions(place, said))


def mentions(place: Place, said: Said) -> bool:
    """Whether the account is mentioned: as the message says, or in words where it says nothing of it."""
    if said.mentions is not None:
        return place.user_id in said.mentions
    return any(name is not None and _has_word(said.body, name) for name in (place.user_id, place.display_name))


def _has_word(text: str, name: str) -> bool:
    """Whether the text has the name by itself, not within a longer word; however it is capitalised."""
    text, name = text.casefold(), name.casefold()
    at = text.find(name) if name else -1
    while at >= 0:
        before, after = text[at - 1 : at], text[at + len(name) : at + len(name) + 1]
        if not _is_wordly(before) and not _is_wordly(after):
            return True
        at = text.find(name, at + 1)
    return False


def _is_wordly(char: str) -> bool:
    return char.isalnum() or char == "_"


def _begins_with(body: str, command: str) -> bool:
    first, *_ = body.split(None, 1) or [""]
    return first.casefold() == command.casefold()
