"""One life of an agent's container: its session, its secrets, and why it ended."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import trio

from armorclaw.containers.runtime import Running, Runtime
from armorclaw.containers.secrets import SecretGrant
from armorclaw.errors import ArmorclawError
from armorclaw.log import get_logger
from armorclaw.rpc.peer import Peer

log = get_logger(__name__)

RECONNECT_PATIENCE = 10.0
"""Seconds an agent whose session broke, while its container lives, has to come back before it is restarted."""

ANSWER_PATIENCE = 1.0
"""Seconds an agent has to say that it will shut down; the library says so at once, then finishes. Then SIGTERM."""


class GenerationEndedError(Exception):
    """The container ended by itself, or had to be ended; the text says why, in a few words for people."""


@attrs.define(eq=False)
class Generation:
    """What is true of the container that runs now.

    The *session* is the connection that called `agent.ready`; the others on the agent's socket come and go
    without meaning. `ready` is set while there is one. `nursery` holds all that belongs to this generation.
    """

    number: int
    runtime: Runtime
    running: Running
    digest: str
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
    _watched: set[Peer] = attrs.field(factory=set, init=False, repr=False)

    @property
    def is_ready(self) -> bool:
        return self.ready.is_set()

    @property
    def is_suspect(self) -> bool:
        """It had a session, and has none now."""
        return self.sessions > 0 and not self.is_ready and not self.stopping

    def open_session(self, peer: Peer) -> None:
        """`peer` is now the one to talk to; an earlier one is nobody special any more. Twice is harmless."""
        if self.session is peer:
            return
        self.session = peer
        self.sessions += 1
        self.ready.set()
        self.on_change()
        if peer not in self._watched:  # one watcher per connection, however often two take turns
            self._watched.add(peer)
            self.nursery.start_soon(self._watch, peer)

    async def _watch(self, peer: Peer) -> None:
        """A session that breaks while the container lives may come back; one that stays away ends the generation."""
        await peer.closed.wait()
        self._watched.discard(peer)
        if self.session is not peer:
            return
        self.session = None
        self.ready = back = trio.Event()
        self.on_change()
        with trio.move_on_after(RECONNECT_PATIENCE):
            await back.wait()
            return
        if not self.stopping:
            self.finish(f"its session broke and did not come back within {RECONNECT_PATIENCE:g} s")

    def finish(self, why: str) -> None:
        """End this generation: everything of it is cancelled and its container removed. The first reason counts."""
        if self.end is None:
            self.end = why
        self.grant.revoke()
        self.nursery.cancel_scope.cancel(reason=why)

    def ask_stop(self, grace: float) -> None:
        """Ask it to end by itself within `grace` seconds: over its session if it answers there, else by SIGTERM.

        Returns at once; whoever asks makes sure of the end. Asking again changes nothing.
        """
        if not self.stopping:
            self.stopping = True
            self.nursery.start_soon(self._ask_stop, trio.current_time() + grace)

    async def _ask_stop(self, deadline: float) -> None:
        try:
            if self.session is None or not await _agrees_to_end(self.session):
                await self.running.stop(max(0.0, deadline - trio.current_time()))
        except ArmorclawError as error:  # such as a lost engine: its removal is what is left to try
            log.warning("container cannot be asked to stop", container=self.running.id, why=str(error))


async def _agrees_to_end(session: Peer) -> bool:
    try:
        await session.request("agent.shutdown", timeout=ANSWER_PATIENCE)
    except ArmorclawError as error:
        log.info("agent did not say it will stop", agent=session.agent, why=str(error))
        return False
    return True
