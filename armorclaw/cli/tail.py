"""Following the journal: what `events tail` and `matrix tail` share."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any

import click

from armorclaw.cli.options import Bridge

RECENT = 20
"""Events that are shown when nothing is said about since when."""

TOO_SLOW = "too slow"
"""How the reason begins for which the bridge ends a subscription that may go on at once."""

Event = dict[str, Any]

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_AGO = re.compile(r"([0-9]{1,9})([smhd])")

Since = int | str | None
"""After which number, or from which time (RFC 3339); None for the last few."""


def tail(
    bridge: Bridge,
    since: Since,
    *,
    follow: bool,
    types: Sequence[str] = (),
    rooms: Sequence[str] = (),
    severities: Sequence[str] = (),
) -> Iterator[Event]:
    """Events since then, oldest first, until now or without end, and where some are missing, an event `gap`.

    A subscription that the bridge ends because nothing was read is begun again; one that it ends otherwise is an
    error.
    """
    wanted = {"types": list(types), "rooms": list(rooms), "severities": list(severities)}
    wanted = {field: patterns for field, patterns in wanted.items() if patterns}
    with bridge.connect() as connection:
        now = connection.call("events.subscribe", {"from": "now"})
        head = now["cursor"]
        connection.call("events.unsubscribe", {"subscription": now["subscription"]})
        # without a filter when it must end: else nothing would tell that the last one has passed
        chosen = wanted if follow else {}
        opened = {"cursor": max(head - RECENT, 0) if since is None else since}
        if not follow and isinstance(opened["cursor"], int) and opened["cursor"] >= head:
            return
        opened = connection.call("events.subscribe", {"from": opened["cursor"], "filter": chosen})
        if not follow and opened["cursor"] >= head:
            return
        while True:
            message = connection.notification()
            event = message["params"]
            if event.get("subscription") != opened["subscription"]:
                continue
            if message["method"] == "event":
                if _wanted(event, wanted):
                    yield {name: event[name] for name in event if name not in ("subscription", "redelivered")}
                if not follow and event["seq"] >= head:
                    return
            elif str(event.get("reason")).startswith(TOO_SLOW) and event.get("cursor") is not None:
                opened = connection.call("events.subscribe", {"from": event["cursor"], "filter": chosen})
            else:
                from armorclaw.errors import ArmorclawError

                raise ArmorclawError("unavailable", "the bridge ended the subscription", why=str(event.get("reason")))


def _wanted(event: Event, wanted: Mapping[str, list[str]]) -> bool:
    values = {"types": event["type"], "rooms": event.get("room_id"), "severities": event.get("severity")}
    return event["type"] == "gap" or all(values[field] in patterns for field, patterns in wanted.items())


class Ago(click.ParamType):  # type: ignore[type-arg]  # not generic in older versions of click
    """So long ago, as milliseconds since the epoch."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        found = _AGO.fullmatch(value)
        if found is None:
            self.fail(f"{value!r} is no time such as 30s, 10m, 2h or 1d", param, ctx)
        return max(round((time.time() - int(found[1]) * _UNITS[found[2]]) * 1000), 0)


class SeqOrAgo(Ago):
    """The number of an event, or so long ago as a time."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, str) and re.fullmatch(r"[0-9]{1,15}", value):
            return int(value)
        at = datetime.fromtimestamp(super().convert(value, param, ctx) / 1000, UTC)
        return at.isoformat(timespec="milliseconds")


AGO = Ago()

_SINCE = partial(click.option, "--since", type=SeqOrAgo(), metavar="SEQ|TIME")
SINCE = _SINCE(help="After this number, or from so long ago: 30s, 10m, 2h, 1d.")
SINCE_A_DAY = _SINCE(default="1d", help="From so long ago, or after the event of this number; by default 1d.")
FOLLOW = click.option("--follow", "-f", is_flag=True, help="Go on with what comes.")
