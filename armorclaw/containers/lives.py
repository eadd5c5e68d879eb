"""An agent's lives, one after the other: what its supervisor runs, and what the end of each means to it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import trio

from armorclaw.containers.attempt import ENGINE_RETRY, Attempt, words
from armorclaw.containers.ends import Reason, without_paths
from armorclaw.containers.generation import STOP_GRACE, GenerationEndedError
from armorclaw.containers.house import House
from armorclaw.containers.launch import Launch
from armorclaw.containers.states import Fact
from armorclaw.errors import ArmorclawError, one_error
from armorclaw.log import get_logger
from armorclaw.supervision import NotAgain

if TYPE_CHECKING:
    from armorclaw.containers.agent import Agent

log = get_logger(__name__)

_WAITED_FOR = frozenset({"engine_unreachable", "key_not_found"})


class Lives:
    """Makes attempts, and says by returning or by what it raises what is to follow."""

    def __init__(self, agent: Agent, house: House) -> None:
        self.no_more: str | None = None
        """Why it is not to be started again, but by hand."""
        self._agent = agent
        self._house = house
        self._asked = False  # to end, by its supervisor
        self._scope = trio.CancelScope()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """One generation, from its container to its removal; then others, as long as it only sleeps in between.

        Ready is when the agent says so, or, for one of which that is not demanded, when its container runs. An engine
        that cannot be reached, or a key that nobody has stored yet, is no fault of the agent: it is waited for,
        however long.

        Resource handling: however it ends, the container is removed, its secrets are overwritten, the socket is gone;
        unless all of it is handed over to the next life of the fleet.

        Error handling: returns when it was asked to stop, or ended in a way that its policy lets stay; raises
        GenerationEndedError when it ended otherwise, NotAgain if it is to stay so, and what preparing raises.
        """
        agent = self._agent
        self._asked = False
        self._check_wanted()
        ready = _once(task_status.started)
        with trio.CancelScope() as self._scope:
            while True:
                reason = await self._one(ready)
                if reason.cause != "idle" or self._asked or self.no_more is not None:
                    self._conclude(reason)
                    return
                agent.learn(Fact.ASLEEP, reason.text)
                await self._house.until_work(agent)
                agent.learn(Fact.WOKEN, "there is work for it")
        self._check_wanted()

    def ask_stop(self) -> None:
        """Have what runs end in its time; returns at once."""
        self._asked = True
        generation = self._agent.generation
        if generation is None:
            self.cut("told to end")
        elif self._agent.hands_over(generation):
            generation.nursery.cancel_scope.cancel(reason="it goes on with another bridge")
        else:
            generation.ask_stop(STOP_GRACE)

    def cut(self, why: str) -> None:
        """End `run`, wherever it is."""
        self._scope.cancel(reason=why)

    def _check_wanted(self) -> None:
        if self.no_more is not None:
            self._agent.last_end = without_paths(self.no_more)
            raise NotAgain(self.no_more)

    def _conclude(self, reason: Reason) -> None:
        """What the end of a generation means to the supervisor."""
        if self._asked:
            return
        self._check_wanted()
        policy = self._agent.declared.restart.policy
        if policy != "always" and reason.cause == "exit" and reason.exit is not None and reason.exit.code == 0:
            return
        if policy == "never":
            raise NotAgain(reason.text)
        raise GenerationEndedError(reason.text)

    async def _one(self, ready: Callable[[], None]) -> Reason:
        """One generation, as soon as what it needs is there; why it ended."""
        agent = self._agent
        pause, longest = ENGINE_RETRY
        while True:
            launch = agent.launch
            launch.taken = True
            try:
                with one_error():
                    reason = await Attempt(agent, self._house, launch, ready).run()
                    if not self._asked:
                        launch.settle(GenerationEndedError(reason.text))
                    return reason
            except Exception as error:
                agent.last_end = without_paths(words(error))
                launch.settle(error)
                waited_for = isinstance(error, ArmorclawError) and error.name in _WAITED_FOR
                if launch.came_off or not waited_for:
                    if agent.declared.restart.policy == "never":
                        raise NotAgain(agent.last_end) from error
                    raise
                if pause == ENGINE_RETRY[0]:
                    log.warning("agent waits", agent=agent.name, why=str(error))
                agent.learn(Fact.POSTPONED, str(error))
            except BaseException:
                if agent.wanted and not launch.is_settled and agent.launch is launch:
                    launch.taken = False  # who waits for it waits for the next, unless none comes
                    agent.changed()
                raise
            finally:
                if launch.taken:
                    launch.settle(stopped(agent.name))
                    if agent.launch is launch:
                        agent.launch = Launch()
            await trio.sleep(pause)
            pause = min(pause * 2, longest)
            agent.learn(Fact.BEGUN)


def stopped(name: str) -> ArmorclawError:
    """What those are told who waited for a start that was taken back."""
    return ArmorclawError("conflict", f"agent {name} was stopped while it started")


def _once(call: Callable[[], None]) -> Callable[[], None]:
    """To be told many times, telling once: a supervisor hears of readiness once, however often an agent wakes."""
    calls = [call]
    return lambda: calls.pop()() if calls else None
