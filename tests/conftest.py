"""What several folders need: container engines, the whole house, and how long an example of hypothesis may take."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from armorclaw.testing.engines import EngineWithImage, Kind, engine_with_image, why_missing
from armorclaw.testing.handles import AgentFactory, BridgeProcess
from armorclaw.testing.homeserver import Homeserver
from armorclaw.testing.person import Person
from armorclaw.testing.plugin import missing
from tests.house import RUNTIMES, House

# how long an example takes tells of the machine, not of what is tried
settings.register_profile("armorclaw", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("armorclaw")


def _engine(kind: Kind) -> Iterator[EngineWithImage]:
    if reason := why_missing(kind):
        missing(reason)
    with engine_with_image(kind) as made:
        yield made


@pytest.fixture(scope="session")
def docker() -> Iterator[EngineWithImage]:
    """A private dockerd, one for each pytest process."""
    yield from _engine("docker")


@pytest.fixture(scope="session")
def podman() -> Iterator[EngineWithImage]:
    """A private Podman service, one for each pytest process."""
    yield from _engine("podman")


@pytest.fixture(params=RUNTIMES)
def house_runtime(request: pytest.FixtureRequest) -> str:
    """Where the agents of `house` run; narrow it with parametrize("house_runtime", […], indirect=True)."""
    return str(request.param)


@pytest.fixture
def house(
    request: pytest.FixtureRequest,
    house_runtime: str,
    homeserver: Homeserver,
    armorclaw_folder: Path,
    matrix_user: Callable[[str], Person],
) -> Iterator[House]:
    image = None
    bridge = BridgeProcess.for_homeserver(homeserver, armorclaw_folder)
    if house_runtime in ("docker", "podman"):
        engine = request.getfixturevalue(house_runtime)
        image = engine.image
        bridge.config["bridge"]["engine_socket"] = engine.socket_path
    person = matrix_user("alice")
    room = person.create_room("a room", invite=[bridge.user_id])
    with bridge:
        person.catch_up()
        yield House(bridge, person, room, house_runtime, image, AgentFactory(bridge, missing))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Where everything is required to be there, a skipped test is a failed run."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("ARMORCLAW_REQUIRE_ALL") != "1" or reporter is None:
        return
    if skipped := reporter.stats.get("skipped"):
        reporter.write_line(f"{len(skipped)} tests were skipped where none may be", red=True)
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
