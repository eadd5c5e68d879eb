"""Grants: which agent speaks for which account, in which rooms. Nothing is granted that is not in this table.

The configuration and operators write it; features ask it. It lives in memory, since the configuration is its source.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import attrs


@attrs.frozen
class Grant:
    """What one agent may: the account it speaks for, and the rooms it hears and answers."""

    account: str
    rooms: frozenset[str]


class Grants:
    """The table, looked up from both sides: by agent for what it sends, by room for who hears an event."""

    def __init__(self) -> None:
        self._grants: dict[str, Grant] = {}
        self._agents: dict[tuple[str, str], frozenset[str]] = {}
        self._listeners: list[Callable[[str], object]] = []

    def set(self, agent: str, account: str, rooms: Iterable[str]) -> None:
        """Grants `agent` exactly these rooms of `account`, in place of what it had."""
        self._change(agent, Grant(account, frozenset(rooms)))

    def forget(self, agent: str) -> None:
        """Takes back all that `agent` had; nothing happens if it had nothing."""
        self._change(agent, None)

    def account_of(self, agent: str) -> str | None:
        """The account that `agent` speaks for, None if it has no grant."""
        grant = self._grants.get(agent)
        return grant.account if grant else None

    def rooms_of(self, agent: str) -> frozenset[str]:
        """The rooms `agent` may hear and answer; empty if it has no grant."""
        grant = self._grants.get(agent)
        return grant.rooms if grant else frozenset()

    def may(self, agent: str, room: str) -> bool:
        """Whether `agent` may hear and answer `room`, on the account it speaks for."""
        return room in self.rooms_of(agent)

    def agents_in(self, account: str, room: str) -> frozenset[str]:
        """The agents that may hear an event of `room` that came through `account`."""
        return self._agents.get((account, room), frozenset())

    def on_change(self, listener: Callable[[str], object]) -> Callable[[], None]:
        """Calls `listener` with the agent's name after each change of its grant; returns what ends that."""
        self._listeners.append(listener)
        return lambda: self._listeners.remove(listener)

    def _change(self, agent: str, new: Grant | None) -> None:
        old = self._grants.get(agent)
        if old == new:
            return
        if old is not None:
            for room in old.rooms:
                self._list(old.account, room, self.agents_in(old.account, room) - {agent})
        if new is None:
            del self._grants[agent]
        else:
            self._grants[agent] = new
            for room in new.rooms:
                self._list(new.account, room, self.agents_in(new.account, room) | {agent})
        for listener in tuple(self._listeners):
            listener(agent)

    def _list(self, account: str, room: str, agents: frozenset[str]) -> None:
        if agents:
            self._agents[account, room] = agents
        else:
            del self._agents[account, room]
