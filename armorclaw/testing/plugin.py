"""The pytest plugin: real parts as fixtures. Nothing heavy is imported until a fixture is used.

| fixture       | what it is                                                                                    |
|---------------|-----------------------------------------------------------------------------------------------|
| `homeserver`  | a real Synapse, one per test run, also under pytest-xdist                                       |
| `matrix_user` | factory: `matrix_user("alice")` registers and logs in a person of that name and a fresh suffix  |
| `bridge`      | a bridge logged in to it: in a Trio test the `Bridge` itself, else a handle on a daemon         |
| `agent`       | factory: `agent(function or script, rooms=[…])` starts one and returns when it is ready         |
| `chaos`       | kills agents, loses answers of the homeserver, has it go away, for the bridge of this test      |
| `conversation`| a person in a room with the bridge, who can assert that nothing of what was said was lost       |

In a Trio test (pytest-trio) `await agent(…)` takes an `async def` function and runs it in the test's own process;
elsewhere the function, or the script, runs in a sandbox.
"""

from __future__ import annotations

import inspect
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from armorclaw.testing.chaos import Chaos, TrioChaos
    from armorclaw.testing.conversation import Conversation, TrioConversation
    from armorclaw.testing.handles import AgentFactory, BridgeProcess
    from armorclaw.testing.homeserver import Homeserver
    from armorclaw.testing.person import Person
    from armorclaw.testing.proxy import FaultProxy


def missing(reason: str) -> NoReturn:
    """What this machine lacks, with the command that installs it: a skip, or a failure where all is required."""
    if os.environ.get("ARMORCLAW_REQUIRE_ALL") == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


@pytest.fixture(scope="session")
def homeserver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Homeserver]:
    """A real Synapse on loopback, shared by the whole test run and all its processes."""
    from armorclaw.errors import ArmorclawError
    from armorclaw.testing.keeper import shared_homeserver

    base = tmp_path_factory.getbasetemp()
    shared = base.parent if os.environ.get("PYTEST_XDIST_WORKER") else base
    try:
        with shared_homeserver(shared / "armorclaw-homeserver") as running:
            yield running
    except ArmorclawError as error:
        if "no Synapse" not in str(error):
            raise
        missing("Synapse is not installed: pip install 'armorclaw[test]'")


@pytest.fixture
def matrix_user(homeserver: Homeserver) -> Iterator[Callable[[str], Person]]:
    """Factory: a registered, logged-in person; the same name gives somebody new each time."""
    from armorclaw.testing.handles import new_person

    people: list[Person] = []

    def make(name: str = "alice") -> Person:
        people.append(new_person(homeserver, name))
        return people[-1]

    yield make
    for person in people:
        person.close()


@pytest.fixture
def armorclaw_folder() -> Iterator[Path]:
    """A short path that agents of other uids may pass through, which pytest's own tmp_path is not."""
    import shutil

    folder = Path(tempfile.mkdtemp(prefix="armorclaw-", dir="/tmp"))
    folder.chmod(0o711)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def bridge(request: pytest.FixtureRequest) -> Any:
    """A bridge with one Matrix account: a `Bridge` in a Trio test, a `BridgeProcess` in any other."""
    return request.getfixturevalue("armorclaw_trio_bridge" if _on_trio(request) else "armorclaw_bridge_process")


@pytest.fixture
def agent(request: pytest.FixtureRequest) -> Any:
    """Factory of agents of `bridge`; to be awaited in a Trio test."""
    return request.getfixturevalue("armorclaw_trio_agent" if _on_trio(request) else "armorclaw_agent_factory")


@pytest.fixture
def chaos(request: pytest.FixtureRequest) -> Any:
    """Harm on demand: `chaos.kill(agent)`, `chaos.lose_next_response()`, `with chaos.pause(homeserver)`."""
    return request.getfixturevalue("armorclaw_trio_chaos" if _on_trio(request) else "armorclaw_chaos")


@pytest.fixture
def conversation(request: pytest.FixtureRequest) -> Any:
    """A room with a person and the bridge in it: `say`, `wait_for`, and `assert_nothing_lost`."""
    return request.getfixturevalue("armorclaw_trio_conversation" if _on_trio(request) else "armorclaw_conversation")


def _on_trio(request: pytest.FixtureRequest) -> bool:
    return inspect.iscoroutinefunction(getattr(request, "function", None))


@pytest.fixture
def armorclaw_proxy(homeserver: Homeserver) -> Iterator[FaultProxy]:
    """Between the bridge of a test and its homeserver."""
    from armorclaw.testing.proxy import FaultProxy

    with FaultProxy(homeserver.url) as proxy:
        yield proxy


@pytest.fixture
def armorclaw_bridge_process(
    request: pytest.FixtureRequest, homeserver: Homeserver, armorclaw_folder: Path
) -> Iterator[BridgeProcess]:
    """The daemon in a process of its own, with synchronous calls."""
    from armorclaw.testing.handles import BridgeProcess

    made = BridgeProcess.for_homeserver(homeserver, armorclaw_folder)
    if "chaos" in request.fixturenames:
        made.config["accounts"]["main"]["homeserver"] = request.getfixturevalue("armorclaw_proxy").url
    with made as running:
        yield running


@pytest.fixture
def armorclaw_chaos(armorclaw_proxy: FaultProxy) -> Chaos:
    """Beside a daemon."""
    from armorclaw.testing.chaos import Chaos

    return Chaos(armorclaw_proxy)


@pytest.fixture
def armorclaw_conversation(
    matrix_user: Callable[[str], Person], armorclaw_bridge_process: BridgeProcess
) -> Conversation:
    """With the account of the daemon."""
    from armorclaw.testing.conversation import Conversation

    person = matrix_user("alice")
    room = person.create_room("a conversation", invite=[armorclaw_bridge_process.user_id])
    person.catch_up()
    return Conversation(person, room, armorclaw_bridge_process)


@pytest.fixture
def armorclaw_agent_factory(armorclaw_bridge_process: BridgeProcess) -> AgentFactory:
    """Starts agents of the daemon, in a sandbox unless told otherwise."""
    from armorclaw.testing.handles import AgentFactory

    return AgentFactory(armorclaw_bridge_process, missing)


@pytest.fixture
async def armorclaw_trio_bridge(
    request: pytest.FixtureRequest, homeserver: Homeserver, armorclaw_folder: Path
) -> AsyncIterator[Any]:
    """The bridge in the test's own Trio loop."""
    from armorclaw.bridge import open_bridge
    from armorclaw.testing.handles import config_for, through

    config = config_for(homeserver, armorclaw_folder)
    if "chaos" in request.fixturenames:
        config = through(config, request.getfixturevalue("armorclaw_proxy").url)
    async with open_bridge(config) as running:
        await running.until_connected()
        yield running


@pytest.fixture
def armorclaw_trio_chaos(armorclaw_proxy: FaultProxy) -> TrioChaos:
    """Beside a bridge in the test's own loop."""
    from armorclaw.testing.chaos import TrioChaos

    return TrioChaos(armorclaw_proxy)


@pytest.fixture
async def armorclaw_trio_conversation(
    matrix_user: Callable[[str], Person], armorclaw_trio_bridge: Any
) -> TrioConversation:
    """With the account of the bridge."""
    import trio

    from armorclaw.testing.conversation import TrioConversation

    person = matrix_user("alice")
    user = armorclaw_trio_bridge.status().accounts[0].user_id
    room = await trio.to_thread.run_sync(lambda: person.create_room("a conversation", invite=[user]))
    await trio.to_thread.run_sync(person.catch_up)
    conversation = TrioConversation(person, room, armorclaw_trio_bridge)
    await conversation.begin()
    return conversation


@pytest.fixture
async def armorclaw_trio_agent(armorclaw_trio_bridge: Any, nursery: Any) -> Any:
    """Attaches `async def` functions as agents of the bridge."""
    import trio

    from armorclaw.testing.handles import READY_SECONDS

    async def attach(function: Any, *, rooms: list[str], name: str = "") -> Any:
        attached = armorclaw_trio_bridge.attach(name or function.__name__.replace("_", "-"), rooms=rooms)
        attached.on_message(function)
        await nursery.start(attached.run)
        # what is said before the bridge has joined is not for the agent
        with trio.fail_after(READY_SECONDS):
            await armorclaw_trio_bridge.until_joined(rooms)
        return attached

    return attach
