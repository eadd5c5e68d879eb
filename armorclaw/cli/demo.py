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
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from pathlib import Path

import attrs
import click
import trio

from armorclaw.bridge import Bridge, open_bridge
from armorclaw.cli.process import harden, set_up_logging
from armorclaw.cli.steps import Steps
from armorclaw.clock import Surroundings
from armorclaw.config import Account, BridgeSection, Config, RuntimeName
from armorclaw.containers.detect import Candidate, candidates
from armorclaw.containers.engine import EngineRuntime
from armorclaw.containers.image import python_image
from armorclaw.containers.sandbox import SandboxRuntime
from armorclaw.errors import ArmorclawError, one_error
from armorclaw.structure import Secret
from armorclaw.supervision import ChildSpec, Supervisor
from armorclaw.testing.homeserver import Homeserver
from armorclaw.testing.person import Person, Seen

IMAGE = "armorclaw-demo-python:latest"
PULLED_IMAGE = "python:3.12-slim"
PROOF_SECONDS = 30.0
READY_SECONDS = 60.0

ECHO = '''\
"""The agent of `armorclaw demo`: says back what it hears."""

from armorclaw.agent import Agent

agent = Agent()


@agent.on_message
def answer(message):
    message.reply(f"echo: {message.body}")


agent.run()
'''


@click.command("demo")
@click.option("--once", is_flag=True, help="End after the proof.")
@click.option("--pull", is_flag=True, help=f"Let the engine pull {PULLED_IMAGE} if it has no Python image.")
@click.option(
    "--runtime",
    type=click.Choice(["docker", "podman", "sandbox"]),
    help="Use this one; by default the strongest that works here.",
)
@click.option("--unsafe", is_flag=True, help="Run the agent as a plain process, with no isolation at all.")
def command(once: bool, pull: bool, runtime: str | None, unsafe: bool) -> None:
    """Start a real homeserver, the bridge and an agent; show that a person gets an answer."""
    harden()
    set_up_logging(logging.ERROR)
    with _folders() as (state, run):
        trio.run(_demo, Demo(Steps(), state, run, pull=pull, wanted="process" if unsafe else runtime, once=once))


@contextmanager
def _folders() -> Iterator[tuple[Path, Path]]:
    """A folder for state and one for sockets, both gone afterwards. Others may pass through, not look in."""
    # short, because a socket's path has 107 bytes at most; not the home, because agents of other uids pass through
    parent = Path("/run") if os.geteuid() == 0 else Path(os.environ.get("XDG_RUNTIME_DIR") or tempfile.gettempdir())
    root = Path(tempfile.mkdtemp(prefix="armorclaw-demo-", dir=parent if os.access(parent, os.W_OK) else None))
    try:
        root.chmod(0o711)
        yield root / "state", root / "run"
    finally:
        shutil.rmtree(root, ignore_errors=True)


@attrs.frozen
class Choice:
    """Where the agent will run, and why there."""

    runtime: RuntimeName
    image: str | None
    engine_socket: Path | None
    text: str


@attrs.frozen
class Demo:
    steps: Steps
    state: Path
    run: Path
    pull: bool
    wanted: str | None
    once: bool


async def _demo(demo: Demo) -> None:
    """Everything in its order; a signal ends it, and leaving ends everything that was started."""
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:
        with one_error():
            async with trio.open_nursery() as nursery:

                async def end_on_signal() -> None:
                    async for _ in signals:
                        nursery.cancel_scope.cancel(reason="asked to stop")
                        return

                nursery.start_soon(end_on_signal)
                await _show(demo)
                nursery.cancel_scope.cancel(reason="the demo is over")


async def _show(demo: Demo) -> None:
    steps = demo.steps
    homeserver = Homeserver(demo.state / "synapse")
    supervisor = Supervisor("demo", around=Surroundings())
    async with trio.open_nursery() as nursery:
        with steps.step("homeserver (Synapse)") as step:
            demo.state.mkdir()
            demo.state.chmod(0o711)  # whatever the umask
            children = [ChildSpec("synapse", partial(_keep, homeserver), start_timeout=120.0, grace=8.0)]
            await nursery.start(supervisor.run, children)
            step.outcome = homeserver.url
        with steps.step("a person, an account for the bridge, a room"):
            person, password = await _register(homeserver, "you")
            bot, bot_password = await _register(homeserver, "echo")
            alice = await trio.to_thread.run_sync(Person.login, homeserver.url, person, password)
        with alice:
            room = await trio.to_thread.run_sync(partial(alice.create_room, "armorclaw demo", invite=[bot]))
            with steps.step("where the agent runs") as step:
                choice = await _choose(demo)
                step.outcome = choice.text
            if choice.runtime == "process":
                steps.say("The agent runs as a plain process: it sees your files and network.", style="bold red")
            config = _config(demo, homeserver, bot, bot_password, choice)
            async with AsyncExitStack() as stack:
                with steps.step("bridge"):
                    bridge = await stack.enter_async_context(open_bridge(config))
                with steps.step("agent, with its key handed over in sealed memory"):
                    await _start_agent(demo, bridge, choice, room)
                await _prove(steps, alice, bot, room)
                if not demo.once:
                    _invite(steps, homeserver, person, password, config)
                    await trio.sleep_forever()
        nursery.cancel_scope.cancel(reason="the demo is over")


async def _keep(homeserver: Homeserver, *, task_status: trio.TaskStatus[None]) -> None:
    """Synapse as a child: ready when it answers, ended with its supervisor, a crash when it dies."""
    await trio.to_thread.run_sync(homeserver.start)
    try:
        pid = homeserver.pid
        assert pid is not None
        fd = os.pidfd_open(pid)
        try:
            task_status.started()
            await trio.lowlevel.wait_readable(fd)
        finally:
            os.close(fd)
        raise ArmorclawError("start_failed", "Synapse ended", hint=f"read {homeserver.log_path}")
    finally:
        with trio.CancelScope(shield=True):  # bounded: it is killed after a grace of its own
            await trio.to_thread.run_sync(homeserver.stop)


async def _register(homeserver: Homeserver, name: str) -> tuple[str, str]:
    password = secrets.token_urlsafe(12)
    return await trio.to_thread.run_sync(homeserver.register, name, password), password


async def _choose(demo: Demo) -> Choice:
    """The strongest runtime that works here, saying why a stronger one does not; never a plain process unasked."""
    if demo.wanted == "process":
        return Choice("process", None, None, "a plain process, UNSAFE, as asked")
    reasons = []
    if demo.wanted != "sandbox":
        found = [one for one in await candidates() if demo.wanted in (None, one.kind)]
        for one in found:
            if not one.usable:
                reasons.append(f"{one.kind}: {one.text}")
                continue
            try:
                return await _in_engine(one, pull=demo.pull)
            except ArmorclawError as error:
                reasons.append(f"{one.kind}: {error}")
        if demo.wanted is not None:
            why = "; ".join(reasons) or "none was found"
            raise ArmorclawError("engine_unreachable", f"{demo.wanted} cannot be used", why=why)
    facts = await SandboxRuntime(demo.state / "logs").check()
    why = f" (not a container, because {'; '.join(reasons)})" if reasons else ""
    return Choice("sandbox", None, None, f"bubblewrap{why}: {facts}")


async def _in_engine(engine: Candidate, *, pull: bool) -> Choice:
    async with EngineRuntime.open(engine.socket_path) as runtime:
        for image in (PULLED_IMAGE, "python:3-slim", "python:3"):
            try:
                await runtime.check_image(image)
            except ArmorclawError:
                continue
            return _chosen(engine, image, f"{engine.kind}, image {image}")
        if pull:
            await runtime.engine.pull(PULLED_IMAGE)
            return _chosen(engine, PULLED_IMAGE, f"{engine.kind}, image {PULLED_IMAGE} (pulled)")
        image_id = await python_image(runtime.engine, tag=IMAGE)
    return _chosen(
        engine, image_id, f"{engine.kind}, an image made from this host's own Python (--pull for {PULLED_IMAGE})"
    )


def _chosen(engine: Candidate, image: str, text: str) -> Choice:
    kind: RuntimeName = "podman" if engine.kind == "podman" else "docker"
    return Choice(kind, image, Path(engine.socket_path), text)


def _config(demo: Demo, homeserver: Homeserver, bot: str, password: str, choice: Choice) -> Config:
    return Config(
        bridge=BridgeSection(
            state_dir=demo.state / "bridge", runtime_dir=demo.run, engine_socket=choice.engine_socket
        ),
        accounts={"main": Account(homeserver=homeserver.url, user=bot, password=Secret(password))},
    )


async def _start_agent(demo: Demo, bridge: Bridge, choice: Choice, room: str) -> None:
    code = demo.state / "echo" / "main.py"
    code.parent.mkdir(mode=0o755)
    code.write_text(ECHO, encoding="utf-8")
    await bridge.call("store_key", id="demo", provider="openai", token=secrets.token_urlsafe(32))
    asked = {"name": "echo", "runtime": choice.runtime, "code": str(code.parent), "rooms": [room], "keys": ["demo"]}
    await bridge.call("start", **asked, **({"image": choice.image} if choice.image else {}))
    agent = bridge.fleet.get("echo")
    with trio.move_on_after(READY_SECONDS) as waiting:
        while not (agent.generation and agent.generation.is_ready):
            await agent.progress.wait()
    if waiting.cancelled_caught:
        raise ArmorclawError("timed_out", f"the agent was not ready within {READY_SECONDS:g} s", why=agent.last_end)


async def _prove(steps: Steps, alice: Person, bot: str, room: str) -> None:
    """Send as the person, see the answer as the person; what is shown is what Matrix says, not what we believe."""
    text = "Is anybody there?"
    await trio.to_thread.run_sync(alice.catch_up)
    with steps.step("proof: a message and its answer") as step:
        began = time.perf_counter()
        event_id = await trio.to_thread.run_sync(alice.send, room, text)

        def answers(seen: Seen) -> bool:
            relation = seen.content.get("m.relates_to", {})
            return seen.sender == bot and relation.get("m.in_reply_to", {}).get("event_id") == event_id

        wait = partial(alice.wait_for, answers, timeout=PROOF_SECONDS)
        answer = await trio.to_thread.run_sync(wait, abandon_on_cancel=True)
        step.outcome = f"{(answer.at - began) * 1000:.0f} ms from send to answer seen"
    steps.say(f"    {alice.user_id}: {text}   {event_id}")
    steps.say(f"    {bot}: {answer.body}   {answer.event_id}")


def _invite(steps: Steps, homeserver: Homeserver, person: str, password: str, config: Config) -> None:
    steps.say("")
    steps.say("Talk to it with any Matrix client on this machine:")
    steps.say(f"    homeserver {homeserver.url}   user {person}   password {password}")
    steps.say("From another machine, forward the port first:")
    steps.say(f"    ssh -L {homeserver.port}:127.0.0.1:{homeserver.port} {socket.gethostname()}")
    steps.say(f"Ask the bridge: armorclaw status --socket {config.bridge.socket}")
    steps.say("Ctrl-C ends everything.")
