"""The pytest plugin, used by test runs of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

LOAD_MS = 20.0

_LOAD = """
import sys, time
import pytest, pytest_trio.plugin
before = set(sys.modules)
began = time.process_time()
import armorclaw.testing.plugin
took = time.process_time() - began
print(took * 1000, *sorted(sys.modules.keys() - before))
"""


def test_loading_it_costs_next_to_nothing() -> None:
    """Every pytest run of whoever has the package installed pays for it, also those that never use it."""
    runs = [subprocess.check_output([sys.executable, "-c", _LOAD], text=True).split() for _ in range(3)]
    assert min(float(run[0]) for run in runs) <= LOAD_MS
    heavy = {"attrs", "attr", "httpx", "mautrix", "structlog", "cattrs", "msgspec", "sqlcipher3", "click", "rich"}
    loaded = set(runs[0][1:])
    assert {name.partition(".")[0] for name in loaded}.isdisjoint(heavy)
    assert {name for name in loaded if name.startswith("armorclaw")} == {
        "armorclaw",
        "armorclaw._version",
        "armorclaw.testing",
        "armorclaw.testing.plugin",
    }


@pytest.fixture(autouse=True)
def _settings(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    """A project of its own, which finds this checkout; nothing of the outer run's environment."""
    pytester.makeini("[pytest]\ntrio_mode = true\nfilterwarnings = error\n")
    paths = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    for name in ("PYTEST_ADDOPTS", "PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT", "ARMORCLAW_REQUIRE_ALL"):
        monkeypatch.delenv(name, raising=False)


def run(pytester: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    return pytester.runpytest_subprocess("-p", "no:cacheprovider", *arguments, timeout=90)


def test_it_is_there_and_asleep_until_used(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        """
        import sys

        def test_nothing_of_ours(pytestconfig):
            assert pytestconfig.pluginmanager.hasplugin("armorclaw")
            assert not {"httpx", "mautrix", "structlog", "armorclaw.bridge"} & sys.modules.keys()
        """
    )
    run(pytester).assert_outcomes(passed=1)


def test_one_homeserver_for_all_workers(pytester: pytest.Pytester) -> None:
    """And it ends with the run that used it."""
    pytester.makepyfile(
        """
        import os, pathlib, pytest

        @pytest.mark.parametrize("number", range(4))
        def test_it(homeserver, matrix_user, number):
            alice, other = matrix_user("alice"), matrix_user("alice")
            assert alice.user_id != other.user_id
            room = alice.create_room("r", invite=[other.user_id])
            other.join(room)
            assert alice.members(room) == {alice.user_id, other.user_id}
            with pathlib.Path("seen").open("a") as file:
                file.write(f"{homeserver.url} {os.environ['PYTEST_XDIST_WORKER']}\\n")
        """
    )
    run(pytester, "-n", "2").assert_outcomes(passed=4)
    seen = [line.split() for line in (pytester.path / "seen").read_text().splitlines()]
    assert len({url for url, _ in seen}) == 1
    assert len({worker for _, worker in seen}) == 2
    port = seen[0][0].rpartition(":")[2]
    assert is_gone(int(port))


def is_gone(port: int) -> bool:
    import socket
    import time

    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize("all_required", [False, True])
def test_without_synapse(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, all_required: bool) -> None:
    """A skip that names the command that helps; a failure where nothing may be skipped."""
    (pytester.path / "synapse").mkdir()
    (pytester.path / "synapse" / "__init__.py").write_text("")  # hides the real one
    monkeypatch.setenv("PYTHONPATH", f"{pytester.path}{os.pathsep}{os.environ['PYTHONPATH']}")
    if all_required:
        monkeypatch.setenv("ARMORCLAW_REQUIRE_ALL", "1")
    pytester.makepyfile("def test_it(homeserver): raise AssertionError")
    result = run(pytester, "-rs")
    result.assert_outcomes(**({"errors": 1} if all_required else {"skipped": 1}))
    result.stdout.fnmatch_lines(["*Synapse is not installed: pip install 'armorclaw*"])


@pytest.mark.mission("P1.2")
def test_agents_as_functions_and_as_scripts(pytester: pytest.Pytester) -> None:
    """In both kinds of tests; rooms are joined and agents ready when the factory returns."""
    pytester.makefile(
        ".py",
        shouter="""
        from armorclaw.agent import Agent
        agent = Agent()
        @agent.on_message
        def shout(message):
            message.reply(message.body.upper())
        agent.run()
        """,
    )
    pytester.makepyfile(
        """
        import pathlib, pytest, trio

        def answered(alice, room, text):
            alice.send(room, text)
            return alice.wait_for(lambda seen: True).body

        def test_a_script_and_a_function(matrix_user, bridge, agent):
            def last(message):
                message.reply(message.body[-1])

            alice = matrix_user()
            rooms = [alice.create_room(name, invite=[bridge.user_id]) for name in "ab"]
            script = agent(pathlib.Path("shouter.py"), rooms=rooms[:1])
            function = agent(last, rooms=rooms[1:])
            assert (script.name, function.name) == ("shouter", "last")
            assert script.standing["ready"]
            assert answered(alice, rooms[0], "hello") == "HELLO"
            assert answered(alice, rooms[1], "hello") == "o"
            script.stop()
            assert script.standing["state"] == "stopped"

        async def test_on_trio(matrix_user, bridge, agent):
            async def first(message):
                await message.reply(message.body[0])

            alice = matrix_user()
            user = bridge.status().accounts[0].user_id
            room = await trio.to_thread.run_sync(lambda: alice.create_room("a", invite=[user]))
            await agent(first, rooms=[room])
            assert await trio.to_thread.run_sync(answered, alice, room, "hello") == "h"
        """
    )
    run(pytester).assert_outcomes(passed=2)
