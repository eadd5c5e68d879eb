"""What stands in the place of events that a subscriber will never get: an event of its own, so that it can know."""

from __future__ import annotations

from armorclaw.events.event import Event

GAP = "gap"
"""The type of such an event. It is not in the journal; a named subscriber acknowledges it like any other."""


def is_gap(event: Event) -> bool:
    """Whether an event is such a one, and none that somebody has sent by that name."""
    return event.type == GAP and event.event_id is None and event.id.startswith("gap/")


def deleted(subscriber: str, first: int, last: int, at_ms: int) -> Event:
    """Events from `first` to `last` were deleted before `subscriber` had them; some may have been for it."""
    content = {"from": first, "to": last, "reason": "retention"}
    return _gap(f"gap/{subscriber}/{first}-{last}", content, last, at_ms)


def missed(subscriber: str, count: int, total: int, position: int, at_ms: int) -> Event:
    """`count` events that are kept nowhere found no room with `subscriber`, `total` of them so far."""
    return _gap(f"gap/{subscriber}/missed-{total}", {"missed": count, "reason": "slow"}, position, at_ms)


def _gap(id: str, content: dict[str, object], seq: int, at_ms: int) -> Event:  # noqa: A002
    event = Event.make(GAP, content, at_ms=at_ms, id=id, severity="warning")
    object.__setattr__(event, "seq", seq)
    return event
