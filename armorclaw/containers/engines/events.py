"""What an engine tells of our containers that we did not do: one stream per engine.

The words differ: Docker says `destroy` and `die`, Podman `remove` and `died`. Reference: GET /events in
https://docs.docker.com/reference/api/engine/version/v1.41/#tag/System/operation/SystemEvents
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, Self

import attrs

from armorclaw.containers.engines.config import LABEL_AGENT
from armorclaw.containers.spec import News

# What they say, in our words. What is not here happens in the course of things, or, as `exec`, for health checks too.
_SAID = {
    "oom": "oom",
    "pause": "paused",
    "unpause": "unpaused",
    "kill": "signalled",
    "stop": "stopped",
    "restart": "restarted",
    "destroy": "removed",
    "remove": "removed",
    "rename": "renamed",
    "update": "updated",
}


@attrs.define
class Marks:
    """What is known of containers beside what they are, by id."""

    ending: set[str] = attrs.field(factory=set)
    """Those that we asked to stop, or remove: what follows is our own doing."""
    staying: set[str] = attrs.field(factory=set)
    """Those that are to stay when their block is left."""
    oom: set[str] = attrs.field(factory=set)
    """Those in which some process was killed for want of memory."""

    def forget(self, container: str) -> None:
        """It is gone, or no affair of ours any more."""
        for marked in (self.ending, self.staying, self.oom):
            marked.discard(container)


class EngineNews:
    """The news in what an engine says; `live` are the containers that are ours now, and in `marks` oom is marked.

    Of a container that we end ourselves only "oom" is news, and of one that is gone nothing.
    """

    def __init__(self, said: AsyncIterator[Mapping[str, Any]], live: AbstractSet[str], marks: Marks) -> None:
        self._said = said
        self._live = live
        self._marks = marks

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> News:
        while True:
            news = _news(await anext(self._said))
            if news is not None and self._is_new(news):
                return news

    def _is_new(self, news: News) -> bool:
        marks = self._marks
        if news.container not in self._live:
            return False
        if news.what != "oom":
            return news.container not in marks.ending
        before = len(marks.oom)
        marks.oom.add(news.container)
        return len(marks.oom) > before  # once is enough: a container at its limit may have hundreds


def _news(event: Mapping[str, Any]) -> News | None:
    actor = event.get("Actor") or {}
    facts = actor.get("Attributes") or {}
    action = event.get("Action")
    what = _SAID.get(action) if isinstance(action, str) else None
    if what is None or not isinstance(actor.get("ID"), str):
        return None
    detail = f"signal {facts['signal']}" if action == "kill" and facts.get("signal") else ""
    return News(actor["ID"], str(facts.get(LABEL_AGENT) or ""), what, detail[:40])
