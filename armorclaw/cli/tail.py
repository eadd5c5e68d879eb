"""Following the journal: what `events tail` and `matrix tail` share."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from functools import partial
from typing import Any

import click

from armorclaw.cli.options import Bridge

RECENT = 20
"""Events that are shown when nothing is said about since when."""

Event = dict[str, Any]

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_AGO = re.compile(r"([0-9]{1,9})([smhd])")

Since = tuple[int | None, int]
"""After which number, None for the last few; and from which time, in milliseconds since the epoch."""

LAST_FEW: Since = (None, 0)


def tail(bridge: Bridge, since: Since, *, follow: bool, types: list[str], rooms: list[str]) -> Iterator[Event]:
    """Events since then, oldest first, until now or without end.

    A subscription that the bridge ends is an error.
    """
    number, at_ms = since
    with bridge.connect() as connection:
        now = connection.call("events.subscribe", {"from": "now"})
        head = now["cursor"]
        if number is None:
            number = max(head - RECENT, 0)
        connection.call("events.unsubscribe", {"subscription": now["subscription"]})
        if not follow and number >= head:
            return
        # without a filter when it must end: else nothing would tell that the last one has passed
        wanted = {"types": types, "rooms": rooms} if follow else {}
        opened = connection.call("events.subscribe", {"from": number, "filter": wanted})
        while True:
            message = connection.notification()
            event = message["params"]
            if event.get("subscription") != opened["subscription"]:
                continue
            if message["method"] != "event":
                from armorclaw.errors import ArmorclawError

                raise ArmorclawError("unavailable", "the bridge ended the subscription", why=str(event.get("reason")))
            if event["at_ms"] >= at_ms and _wanted(event, types, rooms):
                yield {name: event[name] for name in event if name not in ("subscription", "redelivered")}
            if not follow and event["seq"] >= head:
                return


def _wanted(event: Event, types: list[str], rooms: list[str]) -> bool:
    return (not types or event["type"] in types) and (not rooms or event.get("room_id") in rooms)


class Ago(click.ParamType):  # type: ignore[type-arg]  # not generic in older versions of click
    """So long ago, as milliseconds since the epoch."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        found = _AGO.fullmatch(value)
        if found is None:
            self.fail(f"{value!r} is no time such as 30s, 10m, 2h or 1d", param, ctx)
        return max(round((time.time() - int(found[1]) * _UNITS[found[2]]) * 1000), 0)


class SeqOrAgo(Ago):
    """The number of an event and the beginning of time, or no number and so long ago."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if re.fullmatch(r"[0-9]{1,15}", value):
            return int(value), 0
        return 0, super().convert(value, param, ctx)


AGO = Ago()

_SINCE = partial(click.option, "--since", type=SeqOrAgo(), metavar="SEQ|TIME")
SINCE = _SINCE(help="After this number, or from so long ago: 30s, 10m, 2h, 1d.")
SINCE_A_DAY = _SINCE(default="1d", help="From so long ago, or after the event of this number; by default 1d.")
FOLLOW = click.option("--follow", "-f", is_flag=True, help="Go on with what comes.")
