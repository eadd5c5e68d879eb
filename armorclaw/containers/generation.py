"""One life of an agent's container: its session, its secrets, and why it ended."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import structlog
import trio

from armorclaw.containers.runtime import Running
from armorclaw.containers.secrets import SecretGrant
from armorclaw.errors import ArmorclawError
from armorclaw.rpc.peer import Peer

log = structlog.get_logger(__name__)


RECONNECT_PATIENCE = 10.0
"""Seconds an agent whose session broke, while its container lives, has to come back before it is restarted."""


class GenerationEndedError(Exception):
    """The container ended by itself, or had to be ended; the text says why, in a few words for people."""


@attrs.define(eq=False)
class Generation:
    """What is true of the container that runs now.

    The *session* is the connection that called `agent.ready`; the others on the agent's socket come and go
    without meaning. `ready` is set while there is one.
    """

    number: int
    running: Running
    grant: SecretGrant
    adopted: bool
    since_ms: int
    nursery: trio.Nursery
    on_change: Callable[[], None]
    session: Peer | None = None
    ready: trio.Event = attrs.field(factory=trio.Event)
    sessions: int = 0
    stopping: bool = False
    end: str | None = None

    @property
    def is_ready(self) -> bool:
        return self.ready.is_set()

    @property
    def is_suspect(self) -> bool:
        """It had a session, and has none now."""
        return self.sessions > 0 and not self.is_ready and not self.stopping

    def open_session(self, peer: Peer) -> None:
        """`peer` is now the one to talk to; an earlier one is nobody special any more."""
        self.session = peer
        self.sessions += 1
        self.ready.set()
        self.on_change()
        self.nursery.start_soon(self._watch, peer)

    async def _watch(self, peer: Peer) -> None:
        """A session that breaks while the container lives may come back; one that stays away ends the generation."""
        await peer.closed.wait()
        if self.session is not peer:
            return
        self.session = None
        self.ready = trio.Event()
        self.on_change()
        with trio.move_on_after(RECONNECT_PATIENCE):
            await self.ready.wait()
            return
        if not self.stopping:
            self.finish(f"its session broke and did not come back within {RECONNECT_PATIENCE:g} s")

    def finish(self, why: str) -> None:
        """End this generation: everything of it is cancelled and its container removed. The first reason counts."""
        if self.end is None:
            self.end = why
        self.nursery.cancel_scope.cancel(reason=why)

    def ask_stop(self, grace: float) -> None:
        """Ask the agent to end by itself within `grace` seconds: over its session if it has one, else by SIGTERM."""
        self.stopping = True
        self.nursery.start_soon(self._ask_stop, grace)

    async def _ask_stop(self, grace: float) -> None:
        if self.session is None:
            await self.running.stop(grace)
            return
        try:
            await self.session.request("agent.shutdown", timeout=grace)
        except ArmorclawError as error:
            log.info("agent did not say it will stop", why=str(error))
