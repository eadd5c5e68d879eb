"""Grants: which agent speaks for which account, in which rooms. Nothing is granted that is not in this table.

The configuration and operators write it; features ask it. It lives in memory, since the configuration is its source;
only where each grant begins outlives the bridge (`guard.beginnings`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import attrs


@attrs.frozen
class Grant:
    """What one agent may: the account it speaks for, and the rooms it hears and answers.

    `since` has a number of the journal for each room: what was said up to there was said before the grant.
    """

    account: str
    rooms: frozenset[str]
    since: Mapping[str, int]

    def has(self, account: str, room: str) -> bool:
        """Whether it is for this room of this account."""
        return account == self.account and room in self.rooms


Begun = Mapping[tuple[str, str], int]
"""By account and room: the number behind which a grant holds."""


class Grants:
    """The table, looked up from both sides: by agent for what it sends, by room for who hears an event.

    `head` is the highest number of the journal: a grant made now begins there. It lasts until it is taken back, and
    one that is made anew begins anew.
    """

    def __init__(self, head: Callable[[], int] = lambda: 0) -> None:
        self._head = head
        self._grants: dict[str, Grant] = {}
        self._recalled: dict[str, dict[tuple[str, str], int]] = {}  # of what is not granted again yet
        self._agents: dict[tuple[str, str], frozenset[str]] = {}
        self._listeners: list[Callable[[str], object]] = []

    def set(self, agent: str, account: str, rooms: Iterable[str]) -> None:
        """Grants `agent` exactly these rooms of `account`, in place of what it had."""
        wanted = frozenset(rooms)
        old, recalled = self._grants.get(agent), self._recalled.get(agent, {})
        since = dict(old.since) if old is not None and old.account == account else {}
        self._change(
            agent,
            Grant(
                account,
                wanted,
                {
                    room: since[room] if room in since else recalled.pop((account, room), self._head())
                    for room in wanted
                },
            ),
        )

    def recall(self, agent: str, begun: Begun) -> None:
        """Grants of `agent` that were never taken back, from an earlier bridge: when it is granted these again, they
        go on from where they began."""
        self._recalled[agent] = dict(begun)

    def begun(self, agent: str) -> Begun:
        """Where its grants began, with those that are recalled and not granted again yet, as of an alias."""
        grant = self._grants.get(agent)
        active = {} if grant is None else {(grant.account, room): since for room, since in grant.since.items()}
        return {**self._recalled.get(agent, {}), **active}

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

    def hears(self, agent: str, account: str | None, room: str, seq: int) -> bool:
        """Whether `agent` may hear event `seq` of the journal, said in `room` as `account` sees it.

        Not what was said before it was granted the room. 0 stands for what is happening now. For any thread.
        """
        grant = self._grants.get(agent)
        if grant is None or grant.account != account:
            return False
        since = grant.since.get(room)
        return since is not None and (seq == 0 or seq > since)

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
        recalled = self._recalled.setdefault(agent, {})
        before = {} if old is None else {(old.account, room): since for room, since in old.since.items()}
        left = {key: since for key, since in before.items() if new is None or not new.has(*key)}
        recalled.update(left)  # until all have heard: one may grant a room again, by its alias
        for listener in tuple(self._listeners):
            listener(agent)
        for key in left:
            recalled.pop(key, None)
        if new is None or not recalled:
            self._recalled.pop(agent, None)

    def _list(self, account: str, room: str, agents: frozenset[str]) -> None:
        if agents:
            self._agents[account, room] = agents
        else:
            del self._agents[account, room]
