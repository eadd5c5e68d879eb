"""What an order says. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping

import attrs

from armorclaw.config import is_name

LONGEST = 300
"""Characters of an order that are looked at; none needs more."""


class MisreadError(ValueError):
    """It is no order that there is; the text tells the person what would be one."""


@attrs.frozen
class Verb:
    """`usage` is what may stand behind it, `least` to `most` words; the first is an agent if `of_agent`.

    One that `changes` something is carried out once, and not when it comes late.
    """

    usage: str
    what: str
    least: int = 0
    most: int = 0
    of_agent: bool = False
    changes: bool = False


_USE = "have an agent answer in this room, to: always, mention, reply or command; - to go by the configuration"

VERBS: Mapping[str, Verb] = {
    "help": Verb("", "this"),
    "status": Verb("", "how the bridge is"),
    "agents": Verb("", "the agents, and how they are"),
    "who": Verb("", "who answers in this room, and by which rule"),
    "use": Verb("AGENT [RESPOND]", _USE, 1, 2, changes=True),
    "start": Verb("AGENT", "start an agent", 1, 1, of_agent=True, changes=True),
    "stop": Verb("AGENT", "stop an agent; it stays stopped", 1, 1, of_agent=True, changes=True),
    "restart": Verb("AGENT", "stop an agent and start it again", 1, 1, of_agent=True, changes=True),
    "logs": Verb("AGENT [LINES]", "what an agent printed last", 1, 2, of_agent=True),
    "budget": Verb("", "what was spent"),
    "approve": Verb("ID", "allow what waits for it", 1, 1, changes=True),
    "deny": Verb("ID", "refuse it", 1, 1, changes=True),
}


@attrs.frozen
class Order:
    """One that there is, with as many words as it needs."""

    name: str
    words: tuple[str, ...] = ()

    @property
    def verb(self) -> Verb:
        return VERBS[self.name]

    @property
    def agent(self) -> str | None:
        """Whom it is about, if it is about an agent."""
        return self.words[0] if self.verb.of_agent else None

    def __str__(self) -> str:
        return " ".join((self.name, *self.words))


def read_order(body: str, user_id: str | None = None, display_name: str | None = None) -> Order:
    """From a message that begins with `!claw`. Raises MisreadError.

    An order may say by the account's names whom it asks. A user id is nothing else; of a display name, what is an
    order as it stands is that, since an agent may have the same name.
    """
    body = _without(body[:LONGEST], user_id)
    try:
        return _read(body)
    except MisreadError:
        without = _without(body, display_name)
        if without == body:
            raise
        return _read(without)


def _without(body: str, name: str | None) -> str:
    """The text without a name that stands by itself, however it is capitalised, with the colon or comma behind it."""
    return body if not name else re.sub(rf"(?<!\S){re.escape(name)}[:,]?(?!\S)", " ", body, flags=re.IGNORECASE)


def _read(body: str) -> Order:
    _, *words = [each for each in body.split() if each.strip(":,")] or [""]
    if not words:
        return Order("help")
    name, *rest = words
    verb = VERBS.get(name.casefold())
    if verb is None:
        raise MisreadError("I do not know that order. These there are: " + ", ".join(VERBS))
    order = Order(name.casefold(), tuple(rest))
    if not verb.least <= len(rest) <= verb.most:
        raise MisreadError(f"Say it so: {usage(order.name)}")
    if verb.of_agent and not is_name(rest[0]):
        raise MisreadError("That is not the name of an agent. !claw agents lists them.")
    return order


def usage(name: str) -> str:
    """How an order is given."""
    return f"!claw {name} {VERBS[name].usage}".rstrip()
