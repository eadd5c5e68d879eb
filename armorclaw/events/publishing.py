"""Events of one's own: agents and operators publish them, operators hear them."""

from __future__ import annotations

import math

from armorclaw.clock import Clock
from armorclaw.errors import ArmorclawError
from armorclaw.events.event import Event
from armorclaw.events.journal import Journal
from armorclaw.events.shapes import PUBLISH_LIMIT, Publish, Published
from armorclaw.events.subscriptions import Subscriptions
from armorclaw.guard.quotas import Window
from armorclaw.rpc.admission import Rate
from armorclaw.rpc.call import Call
from armorclaw.rpc.registry import Registry, Role

PUBLISH_RATE = Rate(100, 200)
"""Events that each caller may publish: an agent, or a user of the operators' socket."""

PUBLISH_BYTES = 4 * 1024 * 1024
"""Bytes of those that are kept, of one caller in any minute, and one event more: they take the journal's room."""

MAX_CALLERS = 4_096
"""Callers whose bytes are counted apart; any more share one count."""


def register(registry: Registry, subscriptions: Subscriptions, journal: Journal, clock: Clock) -> None:
    """Adds events.publish for operators and agents."""
    windows: dict[str | int, Window] = {}

    def charge(call: Call, size: int) -> None:
        now = clock.monotonic()
        who = call.agent if call.agent is not None else call.uid or 0
        window = windows.get(who)
        if window is None:
            if len(windows) >= MAX_CALLERS:
                for key in [key for key, each in windows.items() if not _used(each, now)]:
                    del windows[key]
            window = windows.setdefault(who if len(windows) < MAX_CALLERS else "", Window(PUBLISH_BYTES))
        if wait := window.wait(now):
            what = f"{PUBLISH_BYTES // 1024 // 1024} MiB of events published within a minute"
            raise ArmorclawError("rate_limited", what, retry_after=math.ceil(wait * 1000) / 1000)
        window.add(now, size)

    def made(call: Call, params: Publish) -> Event:
        at_ms = clock.now_ms()
        try:
            event = Event.make(params.type, params.content, at_ms=at_ms, agent=call.agent, severity=params.severity)
        except ValueError:  # numbers that JSON does not have, or far too much
            raise ArmorclawError("invalid_params", "content", why="it is no JSON", fields=["content"]) from None
        if len(event.content) > PUBLISH_LIMIT:
            why = f"{PUBLISH_LIMIT} bytes are allowed, as JSON in ASCII"
            raise ArmorclawError("too_large", f"content of {len(event.content)} bytes", why=why, fields=["content"])
        return event

    def publish_ephemeral(call: Call, params: Publish) -> Published | None:
        if not params.ephemeral:
            return None
        event = made(call, params)
        subscriptions.publish_ephemeral(event)
        return Published(event.id, 0)

    doc = (
        "Publish an event of your own, for operators to hear; an agent does not hear those about itself, nor of "
        "others. It is kept like any event, unless it is ephemeral: then it goes to those who follow at this moment, "
        "and who is slow hears how many were missed."
    )

    @registry.method(
        "events.publish",
        params=Publish,
        result=Published,
        roles={Role.OPERATOR, Role.AGENT},
        doc=doc,
        rate=PUBLISH_RATE,
        quota="events",
        quick=publish_ephemeral,
    )
    async def publish(call: Call, params: Publish) -> Published:
        if (published := publish_ephemeral(call, params)) is not None:
            return published
        event = made(call, params)
        charge(call, len(event.content))
        (kept,) = await journal.record([event])
        return Published(kept.id, kept.seq)


def _used(window: Window, now: float) -> int:
    window.add(now, 0)
    return window.used
