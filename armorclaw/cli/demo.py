"""`armorclaw demo`: a homeserver, a bridge, a person and an agent, and proof that they talk."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import attrs
import click
import trio

from armorclaw.bridge import Bridge, open_bridge
from armorclaw.cli import echo_agent
from armorclaw.cli.choice import PULLED_IMAGE, Choice, choose
from armorclaw.cli.process import harden, set_up_logging
from armorclaw.cli.steps import Steps
from armorclaw.clock import Surroundings
from armorclaw.config import Account, BridgeSection, Config
from armorclaw.errors import ArmorclawError, one_error
from armorclaw.structure import Secret
from armorclaw.supervision import ChildSpec, ChildStartFailed, Supervisor, root_of
from armorclaw.testing.homeserver import START_TIMEOUT, Homeserver
from armorclaw.testing.person import Person, Seen

READY_SECONDS = 60.0
"""For the agent to be ready and the bridge to be in the room."""

PROOF_SECONDS = 30.0
"""For the answer."""

_in_thread = trio.to_thread.run_sync


@click.command("demo")
@click.option("--once", is_flag=True, help="End after the proof.")
@click.option("--pull", is_flag=True, help=f"Let the engine pull {PULLED_IMAGE} if it has no Python image.")
@click.option(
    "--runtime",
    type=click.Choice(["docker", "podman", "sandbox"]),
    help="Use this one; by default the strongest that works here.",
)
@click.option("--unsafe", is_flag=True, help="Run the agent as a plain process, with no isolation at all.")
@click.pass_context
def command(context: click.Context, once: bool, pull: bool, runtime: str | None, unsafe: bool) -> None:
    """Start a real homeserver, the bridge and an agent; show that a person gets an answer."""
    if unsafe and runtime:
        raise click.UsageError("--unsafe and --runtime cannot both be followed", context)
    harden()
    set_up_logging(logging.ERROR)
    with _own_folder() as folder:
        demo = Demo(Steps(), folder, wanted="process" if unsafe else runtime, pull=pull, once=once)
        ended_by = trio.run(demo.run)
    if ended_by is not None and not demo.proven:
        context.exit(128 + ended_by)


@contextmanager
def _own_folder() -> Iterator[Path]:
    """A folder that is gone afterwards. Agents of other uids pass through it to their sockets, and see nothing."""
    # short, because a socket's path has 107 bytes at most
    parent = "/run" if os.geteuid() == 0 else os.environ.get("XDG_RUNTIME_DIR", "")
    folder = Path(tempfile.mkdtemp(prefix="armorclaw-demo-", dir=parent if os.access(parent, os.W_OK) else None))
    try:
        folder.chmod(0o711)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Demo:
    """All parts in their order. Leaving `run`, however it ends, has ended everything that was started."""

    def __init__(self, steps: Steps, folder: Path, *, wanted: str | None, pull: bool, once: bool) -> None:
        self.proven = False
        self._steps = steps
        self._folder = folder
        self._wanted = wanted
        self._pull = pull
        self._once = once
        self._homeserver = Homeserver(folder / "synapse")

    async def run(self) -> signal.Signals | None:
        """Until the proof, or, to be tried out, until SIGINT or SIGTERM: then returns which. Raises what failed."""
        ended_by: signal.Signals | None = None
        with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals, one_error():
            async with trio.open_nursery() as nursery:

                async def end_on_signal() -> None:
                    nonlocal ended_by
                    async for number in signals:
                        ended_by = signal.Signals(number)
                        nursery.cancel_scope.cancel(reason=f"{ended_by.name} came")

                nursery.start_soon(end_on_signal)
                await self._show()
                nursery.cancel_scope.cancel(reason="the demo is over")
        return ended_by

    async def _show(self) -> None:
        steps, homeserver = self._steps, self._homeserver
        async with trio.open_nursery() as nursery:
            with steps.step("homeserver (Synapse)") as step:
                await self._start_homeserver(nursery)
                step.outcome = homeserver.url
            with steps.step("a person, an account for the bridge, a room"):
                person = await _register(homeserver, "you")
                account = await _register(homeserver, "echo")
                alice = await _in_thread(Person.login, homeserver.url, person.user, person.password)
                room = await _in_thread(partial(alice.create_room, "armorclaw demo", invite=[account.user]))
            with alice:
                choice = await self._choose()
                config = self._config(account, choice)
                with steps.step("bridge") as step:
                    bridge = await nursery.start(_hold_bridge, config)
                    step.outcome = str(config.bridge.socket)
                with steps.step("agent, with its key handed over in sealed memory"):
                    await self._start_agent(bridge, choice, room)
                await self._prove(alice, account.user, room)
                if not self._once:
                    self._invite(person, config)
                    await trio.sleep_forever()
            nursery.cancel_scope.cancel(reason="the demo is over")

    async def _start_homeserver(self, nursery: trio.Nursery) -> None:
        supervisor = Supervisor("demo", around=Surroundings())
        synapse = ChildSpec("synapse", self._keep_homeserver, start_timeout=START_TIMEOUT + 10)
        try:
            await nursery.start(supervisor.run, [synapse])
        except ChildStartFailed as error:
            raise root_of(error) from error

    async def _keep_homeserver(self, *, task_status: trio.TaskStatus[None]) -> None:
        """Synapse as a child: ready when it answers, failed when it dies, gone when this ends."""
        homeserver = self._homeserver
        try:
            await _start(homeserver)
            pid = homeserver.pid
            assert pid is not None
            process = os.pidfd_open(pid)
            try:
                task_status.started()
                await trio.lowlevel.wait_readable(process)
            finally:
                os.close(process)
            raise ArmorclawError("start_failed", "Synapse ended")
        finally:
            with trio.CancelScope(shield=True):  # it is killed, which takes milliseconds: its state goes as well
                await _in_thread(homeserver.kill)

    async def _choose(self) -> Choice:
        steps = self._steps
        with steps.step("where the agent runs") as step:
            choice = await choose(self._wanted, pull=self._pull, logs=self._folder / "logs")
            step.outcome = choice.text
        for reason in choice.passed_over:
            steps.say(f"    not {reason}", style="dim")
        if choice.runtime == "process":
            steps.say("    UNSAFE: nothing isolates the agent, it sees your files and your network", style="bold red")
        return choice

    def _config(self, account: Login, choice: Choice) -> Config:
        homeserver = self._homeserver.url
        return Config(
            bridge=BridgeSection(
                state_dir=self._folder / "state",
                runtime_dir=self._folder / "run",
                engine_socket=choice.engine_socket,
            ),
            accounts={"main": Account(homeserver=homeserver, user=account.user, password=Secret(account.password))},
        )

    async def _start_agent(self, bridge: Bridge, choice: Choice, room: str) -> None:
        await bridge.call("store_key", id="demo", provider="openai", token=secrets.token_urlsafe(32))
        await bridge.call(
            "start",
            name="echo",
            runtime=choice.runtime,
            code=echo_agent.__file__,
            rooms=[room],
            keys=["demo"],
            **({"image": choice.image} if choice.image else {}),
        )
        agent = bridge.fleet.get("echo")
        with trio.move_on_after(READY_SECONDS) as waiting:
            while not (agent.generation and agent.generation.is_ready):
                await agent.progress.wait()
            await bridge.until_joined([room])
        if waiting.cancelled_caught:
            why = agent.last_end or f"the agent is {agent.state}, the room {room}"
            raise ArmorclawError("timed_out", f"no agent in the room within {READY_SECONDS:g} s", why=why)

    async def _prove(self, alice: Person, bot: str, room: str) -> None:
        """Send and see the answer as the person: what is shown is what Matrix says, not what we believe."""
        steps, text = self._steps, "Is anybody there?"
        await _in_thread(alice.catch_up)
        with steps.step("proof: a message and its answer") as step:
            began = time.perf_counter()
            event_id = await _in_thread(alice.send, room, text)

            def answers(seen: Seen) -> bool:
                relation = seen.content.get("m.relates_to", {})
                return seen.sender == bot and relation.get("m.in_reply_to", {}).get("event_id") == event_id

            wait = partial(alice.wait_for, answers, timeout=PROOF_SECONDS)
            answer = await _in_thread(wait, abandon_on_cancel=True)
            step.outcome = f"{(answer.at - began) * 1000:.0f} ms from send to answer seen"
        steps.say(f"    {alice.user_id}: {text}   {event_id}")
        steps.say(f"    {bot}: {answer.body}   {answer.event_id}")
        self.proven = True

    def _invite(self, person: Login, config: Config) -> None:
        say, homeserver = self._steps.say, self._homeserver
        say("")
        say("Talk to it with any Matrix client on this machine:")
        say(f"    homeserver {homeserver.url}   user {person.user}   password {person.password}")
        say("From another machine, forward the port first:")
        say(f"    ssh -L {homeserver.port}:127.0.0.1:{homeserver.port} {socket.gethostname()}")
        say(f"Ask the bridge: armorclaw status --socket {config.bridge.socket}")
        say("Ctrl-C ends everything.")


@attrs.frozen
class Login:
    """A user that the demo has registered."""

    user: str
    password: str = attrs.field(repr=False)


async def _register(homeserver: Homeserver, name: str) -> Login:
    password = secrets.token_urlsafe(12)
    return Login(await _in_thread(homeserver.register, name, password), password)


async def _hold_bridge(config: Config, *, task_status: trio.TaskStatus[Bridge]) -> None:
    async with open_bridge(config) as bridge:
        task_status.started(bridge)
        await trio.sleep_forever()


async def _start(homeserver: Homeserver) -> None:
    """Start it in a thread. A thread cannot be cancelled, but what it waits for can be killed."""
    started = False

    async def kill_when_cancelled() -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):  # the thread notices within its next look
                while not started:
                    await _in_thread(homeserver.kill)
                    await trio.sleep(0.05)

    with one_error():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(kill_when_cancelled)
            try:
                await _in_thread(homeserver.start)
            except ArmorclawError:
                await trio.lowlevel.checkpoint_if_cancelled()  # then it failed because it was killed
                raise
            finally:
                started = True
            nursery.cancel_scope.cancel(reason="it has started")
