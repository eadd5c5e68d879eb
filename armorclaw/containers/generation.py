"""One life of an agent's container: its session, its secrets, and why it ends."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import trio

from armorclaw.containers.ends import Cause, Reason
from armorclaw.containers.health import in_time
from armorclaw.containers.resources.usage import Reading
from armorclaw.containers.runtime import Running, Runtime
from armorclaw.containers.secrets import SecretGrant
from armorclaw.containers.spec import Exit
from armorclaw.containers.states import Fact
from armorclaw.errors import ArmorclawError
from armorclaw.log import get_logger
from armorclaw.rpc.peer import Peer

log = get_logger(__name__)

STOP_GRACE = 4.5
"""Seconds a container has to end after it was asked to; then it is killed. Its handlers get 4."""

ANSWER_PATIENCE = 1.0
"""Seconds an agent has to say that it will shut down; the library says so at once, then finishes. Then SIGTERM."""

FRESH = 0.05
"""Seconds that a reading may be old to be taken for that of the moment."""

_TELLS_OF_END: dict[Cause, Fact] = {"hang": Fact.HUNG, "oom": Fact.OOM}


class GenerationEndedError(Exception):
    """The container ended by itself, or had to be ended; the text says why, in a few words for people."""


@attrs.define(eq=False)
class Generation:
    """What is true of the container that runs now.

    The *session* is the connection that called `agent.ready`; the others on the agent's socket come and go
    without meaning. `ready` is set while there is one. `nursery` holds all that belongs to this generation, `learn`
    is told what becomes known of it, `reconnect` is how many seconds its session may be away.
    """

    number: int
    runtime: Runtime
    running: Running
    digest: str
    grant: SecretGrant
    adopted: bool
    since_ms: int
    nursery: trio.Nursery
    learn: Callable[[Fact, str], None]
    reconnect: float
    look: Callable[[], Reading | None] = lambda: None
    """What it uses this moment."""
    session: Peer | None = None
    session_at: float = attrs.field(factory=trio.current_time)
    """Since when it has its session, or has none, on Trio's clock."""
    ready: trio.Event = attrs.field(factory=trio.Event)
    sessions: int = 0
    stopping: bool = False
    ordered: Reason | None = None
    """Why it was told to end, if it was for something of its own, such as to sleep."""
    reason: Reason | None = None
    """Why it ends, once that is so."""
    engine_lost: bool = False
    engine_at: float = attrs.field(factory=trio.current_time)
    """When its engine last told of it, or since when that is lost."""
    oom_before: int = 0
    """Processes killed for want of memory before it was adopted."""
    oom_seen: bool | None = None
    """Whether there were more since; None: cannot be told."""
    _watched: set[Peer] = attrs.field(factory=set, init=False, repr=False)

    @property
    def is_ready(self) -> bool:
        return self.ready.is_set()

    @property
    def is_suspect(self) -> bool:
        """It had a session, and has none now."""
        return self.sessions > 0 and not self.is_ready and not self.stopping

    def tell(self, fact: Fact, why: str = "") -> None:
        """Something became known of it; of one that has ended nothing does."""
        if self.reason is None:
            self.learn(fact, why)

    def open_session(self, peer: Peer) -> None:
        """`peer` is now the one to talk to; an earlier one is nobody special any more. Twice is harmless."""
        if self.session is peer:
            return
        self.session, self.session_at = peer, trio.current_time()
        self.sessions += 1
        self.oom_seen = self.oom_seen or None  # that there was none holds no longer
        self.ready.set()
        self.tell(Fact.READY)
        if peer not in self._watched:  # once per connection, however often two take turns
            self._watched.add(peer)
            peer.at_close(self._closed)

    def _closed(self, peer: Peer) -> None:
        """No await from the end of the connection to here: whoever asks learns of it at once."""
        self._watched.discard(peer)
        if self.session is not peer:
            return
        self.session, self.session_at = None, trio.current_time()
        self.ready = trio.Event()
        if self.reason is None:
            self.tell(Fact.SESSION_LOST, "its session broke")
            self.count_oom()  # while there is something to read
            if not self.nursery.cancel_scope.cancel_called:
                self.nursery.start_soon(self.await_session)

    def lose_engine(self, why: str) -> None:
        """Its engine cannot be reached; said again it changes nothing."""
        if not self.engine_lost:
            self.engine_lost, self.engine_at = True, trio.current_time()
            log.warning("engine lost; its containers may live on", container=self.running.id, why=why)
            self.tell(Fact.ENGINE_LOST, "its engine is lost")

    def have_engine_back(self) -> None:
        """It can be reached again; what became of the container meanwhile is to be asked."""
        if not self.engine_lost:
            return
        self.engine_lost, self.engine_at = False, trio.current_time()
        self.tell(Fact.ENGINE_BACK, "its engine is back")
        if self.is_ready:
            self.tell(Fact.READY)
        elif self.is_suspect:
            self.tell(Fact.SESSION_LOST, "its session broke")

    async def await_session(self) -> None:
        """A session that broke while the container lives may come back; one that stays away ends the generation."""
        back = self.ready
        while not await in_time(back, self.reconnect):
            if self.stopping:
                return
            if not self.engine_lost:  # else it could not be removed either
                what = "broke and did not" if self.sessions else "did not"
                self.finish("lost session", f"its session {what} come back within {self.reconnect:g} s")
                return

    def count_oom(self) -> None:
        """Look, while that can be done, whether a process in it was killed for want of memory."""
        reading = self.look()
        if reading is None or reading.oom_kills is None or reading.container != self.running.id:
            return
        if reading.oom_kills > self.oom_before:
            self.oom_seen = True
        elif trio.current_time() - reading.at <= FRESH and self.oom_seen is None:
            self.oom_seen = False

    def exited(self, exit: Exit) -> None:  # noqa: A002
        """Its main process ended."""
        self.count_oom()
        reason = Reason.of_exit(exit, self.oom_seen)
        self.finish(reason.cause, reason.text, reason.exit)

    def finish(self, cause: Cause, text: str, exit: Exit | None = None) -> None:  # noqa: A002
        """End this generation: everything of it is cancelled and its container removed. The first reason counts."""
        if self.reason is None:
            self.learn(_TELLS_OF_END.get(cause, Fact.EXITED), text)
            self.reason = Reason(cause, text, exit)
        self.grant.revoke()
        self.nursery.cancel_scope.cancel(reason=text)

    def ask_stop(self, grace: float) -> None:
        """Ask it to end by itself within `grace` seconds: over its session if it answers there, else by SIGTERM.

        Returns at once; whoever asks makes sure of the end. Asking again changes nothing.
        """
        if not self.stopping and self.reason is None:
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
