"""One agent over its generations: what it is to run, what is known of it, and what follows when it ends."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable

import attrs
import trio

from armorclaw import config
from armorclaw.containers.agent_socket import AgentSocket
from armorclaw.containers.ends import KEPT, Cause, End, Reason, without_paths
from armorclaw.containers.generation import STOP_GRACE, Generation
from armorclaw.containers.health import Heartbeat
from armorclaw.containers.house import House, Survivor
from armorclaw.containers.launch import Launch
from armorclaw.containers.lives import Lives, stopped
from armorclaw.containers.runtime import Runtime
from armorclaw.containers.shapes import Standing
from armorclaw.containers.states import AT_REST, RUNS, TRANSITIONS, Fact, State
from armorclaw.errors import ArmorclawError
from armorclaw.guard.alerts import Severity
from armorclaw.log import get_logger
from armorclaw.rpc.call import Call
from armorclaw.rpc.peer import Peer
from armorclaw.supervision import Backoff, ChildChange, ChildState, Restart

__all__ = ["AT_REST", "RUNS", "STOP_GRACE", "Agent", "House", "State", "Survivor"]

log = get_logger(__name__)

DISCARD_PATIENCE = 10.0
"""Seconds the removal of a survivor that will not be adopted may take while its agent is being stopped."""

_TOLD = {
    ChildState.STARTING: Fact.BEGUN,
    ChildState.BACKING_OFF: Fact.AGAIN,
    ChildState.STOPPING: Fact.TOLD_TO_END,
    ChildState.STUCK: Fact.TOLD_TO_END,
    ChildState.STOPPED: Fact.ENDED,
    ChildState.FINISHED: Fact.FINISHED,
    ChildState.FAILED: Fact.GIVEN_UP,
}
_ENDS = frozenset({Fact.EXITED, Fact.OOM, Fact.HUNG})
_LASTING = frozenset({Fact.ENDED, Fact.FINISHED, Fact.GIVEN_UP})


class Agent:
    """A declared agent, the same object for as long as its name is known. `run` is what its supervisor restarts.

    Its state moves by facts alone (`learn`). They come from two: from its supervisor, through `told`, between
    generations and when it is to end; from the generation while a container runs.
    """

    def __init__(self, declared: config.Agent, socket: AgentSocket, house: House) -> None:
        self.declared = declared
        """Read once at the beginning of each generation."""
        self.name = declared.name
        self.socket = socket
        self.wanted = True
        """Whether it is to run; false once stopped by hand."""
        self.state = State.STOPPED
        self.generation: Generation | None = None
        self.heartbeat: Heartbeat | None = None
        self.generations = 0
        self.restarts = 0
        """How often its own end was followed by another start."""
        self.ends: deque[End] = deque(maxlen=KEPT)
        """Why its last generations ended, the oldest first; also those of earlier bridges."""
        self.ends_by_cause: Counter[str] = Counter()
        """Of this bridge alone."""
        self.last_end = ""
        self.last_work = house.around.clock.monotonic()
        """When there was last a sign of work, on Trio's clock."""
        self.status_text = ""
        """What it says it is doing."""
        self.removed = False
        """Whether nobody knows it any more."""
        self.survivor: Survivor | None = None
        self.launch = Launch()
        self.progress = trio.Event()
        """Set, and replaced, at each change of `state`."""
        self._house = house
        self._ordered: Reason | None = None  # why the next order to end is given
        self._lives = Lives(self, house)

    def __repr__(self) -> str:
        return f"<Agent {self.name} {self.state} generation {self.generations}>"

    # -- where it stands

    def learn(self, fact: Fact, why: str = "") -> None:
        """Something became known of it; its state follows, by the table. Each change is an event."""
        state = TRANSITIONS[self.state].get(fact)
        if state is None:
            log.error("a fact that cannot be", agent=self.name, state=self.state.value, fact=fact.value, why=why)
            return
        before, self.state = self.state, state
        if fact in _ENDS and self.launch.is_settled:
            self.launch = Launch()  # whoever asks for a start from now on means the next one
        self.changed()
        if state is not before:
            self.tell("agent.state", **{"from": before.value, "to": state.value, "why": without_paths(why)})

    def tell(self, kind: str, **facts: object) -> None:
        """Have a change of it recorded as an event, in order, without waiting."""
        self._house.tell(self, kind, **{"generation": self.generations, **facts})

    def changed(self) -> None:
        """Wake those who wait for it to change."""
        self.progress.set()
        self.progress = trio.Event()

    @property
    def runs(self) -> bool:
        """Whether it has a container that was made to run."""
        return self.generation is not None and self.state in RUNS

    @property
    def session(self) -> Peer:
        """The connection to ask it over. Raises `unavailable`."""
        generation = self._living()
        if generation.session is None:
            raise ArmorclawError("unavailable", f"agent {self.name} has no session", why=f"it is {self.state}")
        return generation.session

    def standing(self, rooms: list[str]) -> Standing:
        """How it stands now, granted these rooms."""
        generation = self.generation
        reading = None if generation is None else self._house.last_reading(self)
        if reading is not None and generation is not None and reading.container != generation.running.id:
            reading = None
        return Standing(
            name=self.name,
            state=self.state.value,
            runtime=self.declared.runtime,
            image=self.declared.image,
            container_id=generation.running.id if generation else None,
            generation=self.generations,
            since_ms=generation.since_ms if generation else None,
            ready=generation.is_ready if generation else False,
            last_end=self.last_end,
            rooms=rooms,
            account=self.declared.account,
            restarts=self.restarts,
            status=self.status_text,
            cpu_percent=reading.cpu_percent if reading else None,
            memory_bytes=reading.usage.memory_bytes if reading else None,
        )

    # -- for the fleet

    @property
    def restart(self) -> Restart:
        """What its policy means to its supervisor: that an end is one that stays, it says by returning."""
        return Restart.PERMANENT if self.declared.restart.policy == "always" else Restart.TRANSIENT

    @property
    def backoff(self) -> Backoff:
        """When it is started again, and when given up."""
        given = self.declared.restart
        return Backoff(
            maximum=given.longest_pause,
            stable_seconds=given.stable,
            max_in_row=given.in_row or None,
            max_per_hour=given.per_hour or None,
        )

    def remember(self, ends: Iterable[End]) -> None:
        """Its ends of earlier bridges."""
        self.ends.extend(ends)
        self.last_end = self.ends[-1].text if self.ends else ""

    def remove(self) -> None:
        """It is known no more."""
        self.removed = True
        self.changed()

    async def choose_runtime(self) -> Runtime:
        """Where it would run. Raises `engine_unreachable`, `runtime_missing`."""
        return await self._house.runtime_for(self.declared)

    def told(self, change: ChildChange) -> None:
        """What the supervisor makes of it. That it is ready for the supervisor says nothing new."""
        fact = _TOLD.get(change.state)
        if fact is None:
            return
        if fact is Fact.TOLD_TO_END and self.launch.taken and (self.launch.is_settled or not self.wanted):
            self.launch = Launch()  # whoever asks for a start from now on means the next one
        elif fact in _LASTING:
            self.launch.settle(stopped(self.name))
            self.launch = Launch()
            self._ordered = self._lives.no_more = None
        if fact is Fact.AGAIN:
            if self.state in AT_REST or self.state is State.STOPPING:
                self._lives.no_more = None  # by hand
            else:
                self.restarts += 1
        self.learn(fact, change.reason if change.error is None else self.last_end)
        if fact is Fact.GIVEN_UP:
            log.error("agent given up", agent=self.name, why=change.reason)
            self.tell("agent.failed", why=self.last_end)
            self._alert("agent_failed", "error", f"agent {self.name} was given up: {self.last_end}")

    def hands_over(self, generation: Generation) -> bool:
        """Whether its container is to live on, for the next life of the fleet to adopt; not one that is to end."""
        return self._house.is_handing_over and generation.runtime.survives and not generation.stopping

    # -- for those who watch it

    def order(self, cause: Cause, why: str) -> None:
        """The stop that is asked for next is for this reason, instead of by hand."""
        self._ordered = Reason(cause, why)

    @property
    def ordered(self) -> Reason:
        """Why it was told to end, if it was."""
        if self._house.is_closing:
            return Reason("bridge", "the bridge stopped")
        return self._ordered or Reason("operator", "stopped")

    def sleep(self, why: str) -> bool:
        """Have it end in its time, and start again when there is work for it; false if it ends or does not run."""
        generation = self.generation
        if generation is None or generation.stopping or generation.reason is not None:
            return False
        self.learn(Fact.TOLD_TO_END, why)
        generation.ordered = Reason("idle", why)
        generation.ask_stop(STOP_GRACE)
        generation.nursery.start_soon(_see_to_its_end, generation)
        return True

    def end(self, cause: Cause, why: str, *, restart: bool) -> None:
        """End what runs, at once. Without `restart` it has failed, until it is started by hand."""
        if self.state in (State.STOPPED, State.FAILED):
            return
        if not restart:
            self._lives.no_more = why
        if self.generation is not None:
            self.generation.finish(cause, why)
        elif not restart:
            self._lives.cut(why)
            self._house.hurry(self)  # between two attempts it fails at once, not after the pause

    def worked(self) -> None:
        """There was a sign of work."""
        self.last_work = trio.current_time()
        if self.state is State.STALLED:
            self.learn(Fact.WORKED, "it works again")

    def unsettled(self) -> tuple[int, float | None]:
        """How many events are in its hands, and since when the oldest is."""
        return self._house.unsettled(self)

    def warn(self, text: str) -> None:
        """Have a person told of something that may pass."""
        self._alert("agent_stalled", "warning", f"agent {self.name} {text}")

    def _alert(self, name: str, severity: Severity, text: str) -> None:
        self._house.alert(name, severity, text, agent=self)

    # -- running

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """See `Lives.run`."""
        await self._lives.run(task_status=task_status)

    def ask_stop(self) -> None:
        """For the supervisor: the polite half of stopping."""
        self._lives.ask_stop()

    def heartbeat_of(self, generation: Generation) -> Heartbeat:
        """What watches that generation."""
        self.last_work = trio.current_time()
        self.status_text = ""
        self.heartbeat = Heartbeat(generation, self.declared.health, self, self._house.around.random)
        return self.heartbeat

    def ended(self, generation: Generation, reason: Reason, ran: float) -> None:
        """That generation has ended; its container is being removed. `ran` is for how many seconds it was there."""
        house, exit = self._house, reason.exit  # noqa: A001
        end = End(
            generation=generation.number,
            container_id=generation.running.id,
            at_ms=house.around.clock.now_ms(),
            ran_ms=round(ran * 1000),
            cause=reason.cause,
            code=exit.code if exit else None,
            signal=exit.signal if exit else None,
            oom=exit.oom if exit else generation.oom_seen,
            text=without_paths(reason.text),
        )
        self.ends.append(end)
        self.ends_by_cause[end.cause] += 1
        self.last_end = end.text
        self._ordered = self.heartbeat = None
        self.changed()
        facts = attrs.asdict(end, filter=lambda field, _: field.name in ("ran_ms", "cause", "code", "signal", "oom"))
        self.tell("agent.ended", container=end.container_id, why=end.text, text=end.text, **facts)
        house.keep_end(self, end)

    async def discard_survivor(self) -> None:
        """Remove what an earlier bridge left of this agent; if that fails, the log says so."""
        survivor, self.survivor = self.survivor, None
        if survivor is None:
            return
        with trio.move_on_after(DISCARD_PATIENCE, shield=True) as scope:
            try:
                await survivor.runtime.discard(survivor.found)
            except ArmorclawError as error:
                log.error("container not removed", container=survivor.found.id, why=str(error))
        if scope.cancelled_caught:
            log.error("container not removed", container=survivor.found.id, why=f"not in {DISCARD_PATIENCE:g} s")

    # -- what the agent itself asks, over its socket

    def take_secrets(self, call: Call, via: str) -> dict[str, object]:
        """The keys granted to it, once per generation. Raises secrets_taken the second time."""
        generation = self._living()
        if via == "inline":
            return {"secrets": generation.grant.take_inline()}
        if not call.peer.passes_fds:  # before anything is taken
            raise ArmorclawError("invalid_request", "no descriptor can be sent here", hint='ask for them "inline"')
        fd, size = generation.grant.take_fd()
        call.attach_fd(fd)
        return {"size": size, "fds": 1}

    def become_ready(self, call: Call, fingerprint: str | None) -> None:
        """`call`'s connection is the session.

        A fingerprint of other secrets than are granted now ends the generation, for the next to take the right ones;
        raises `conflict`.
        """
        generation = self._living()
        if not isinstance(call.peer, Peer):
            raise ArmorclawError("invalid_request", "a session needs a connection of its own")
        # without a fingerprint it has not taken any: right as long as it still can, or has none to take
        without = fingerprint is None and (not generation.adopted or not self.declared.keys)
        if not without and not generation.grant.confirms(fingerprint):
            generation.finish("secrets", "its secrets are not those granted now")
            raise ArmorclawError("conflict", "the secrets are not those granted now", hint="it is started again")
        generation.open_session(call.peer)

    def tell_status(self, text: str) -> None:
        """What it says it is doing."""
        self.status_text = text
        self.worked()

    def _living(self) -> Generation:
        if self.generation is None:
            raise ArmorclawError("unavailable", f"agent {self.name} is between two starts")
        return self.generation


async def _see_to_its_end(generation: Generation) -> None:
    await trio.sleep(STOP_GRACE)
    generation.finish("idle", f"did not end within {STOP_GRACE:g} s")
