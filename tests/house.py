"""The whole house with real parts: a person on Synapse, the daemon, an agent in each kind of container."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs

from armorclaw.testing.handles import AgentFactory, AgentHandle, BridgeProcess
from armorclaw.testing.person import Person

RUNTIMES = ["sandbox", "docker", "podman"]

KEY = "sk-canary-6f1d0a7e5b3c4829"
"""Looked for wherever it must not be."""


def echo(message: Any) -> None:
    """Answers what it hears; the agent of most tests here."""
    message.reply(f"echo: {message.body}")


@attrs.frozen
class House:
    """A daemon, a person, a room of theirs, and how to start an agent in it."""

    bridge: BridgeProcess
    person: Person
    room: str
    runtime: str
    image: str | None
    factory: AgentFactory

    @property
    def engine_socket(self) -> Path:
        """Of the engine that its agents run in, where there is one."""
        return Path(self.bridge.config["bridge"]["engine_socket"])

    def start(
        self,
        function: Callable[[Any], Any] = echo,
        *,
        name: str = "echo",
        keys: list[str] | None = None,
        rooms: list[str] | None = None,
    ) -> Any:
        handle: AgentHandle = self.factory(
            function, rooms=rooms or [self.room], name=name, keys=keys, runtime=self.runtime, image=self.image
        )
        return handle

    def hear_until(self, last: str) -> list[str]:
        """All that the person sees of others until `last`, and until it is quiet after it; nothing is passed over."""
        heard: list[Any] = []

        def listen(seen: Any) -> bool:
            heard.append(seen)
            return bool(seen.body == last)

        self.person.wait_for(listen, timeout=30.0)
        return [seen.body for seen in [*heard, *self.person.seen(quiet=1.0)]]

    def ask(self, text: str, *, timeout: float = 30.0) -> str:
        """Send, and the body of the answer to just that message."""
        event_id = self.person.send(self.room, text)

        def answers(seen: Any) -> bool:
            relation = seen.content.get("m.relates_to", {})
            return bool(relation.get("m.in_reply_to", {}).get("event_id") == event_id)

        return self.person.wait_for(answers, timeout=timeout).body
