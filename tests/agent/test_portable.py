"""The library runs in other people's images: Python 3.9, nothing installed, nothing else of the bridge beside it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import Spawn, no_warnings, sources, syntax_of_3_9

LOADED = """
import json, sys
sys.path.insert(0, sys.argv[1])
before = set(sys.modules)
import armorclaw.agent
import armorclaw.agent.aio, armorclaw.agent.exec
print(json.dumps(sorted(set(sys.modules) - before)))
"""


@pytest.mark.parametrize("path", sources(), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_syntax_is_that_of_python_3_9(path: Path) -> None:
    syntax_of_3_9(path)


def test_the_whole_package_is_importable_alone_and_imports_only_the_standard_library(
    package: Path, python: str
) -> None:
    done = subprocess.run(
        [python, "-S", "-I", "-X", "dev", "-W", "error", "-c", LOADED, str(package)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    loaded = json.loads(done.stdout)
    ours = {name for name in loaded if name.split(".")[0] == "armorclaw"}
    assert ours >= {"armorclaw.agent.agent", "armorclaw.agent.aio", "armorclaw.rpc.jsonrpc"}
    foreign = {name.split(".")[0] for name in loaded} - {"armorclaw"} - set(sys.stdlib_module_names)
    assert not {name for name in foreign if not name.startswith("_")}, foreign


def test_beside_the_whole_package_it_loads_no_more_than_its_own_parts(python: str) -> None:
    root = Path(__file__).parent.parent.parent
    done = subprocess.run(
        [sys.executable, "-S", "-I", "-c", LOADED, str(root)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    ours = {name for name in json.loads(done.stdout) if name.startswith("armorclaw.")}
    core = ("armorclaw.rpc.flow", "armorclaw.rpc.framing", "armorclaw.rpc.jsoncodec", "armorclaw.rpc.jsonrpc")
    allowed = ("armorclaw.agent", "armorclaw._version", *core)
    assert {name for name in ours if not name.startswith(allowed)} == {"armorclaw.rpc"}


def test_a_plain_agent_does_not_load_asyncio(package: Path, python: str) -> None:
    code = "import sys; sys.path.insert(0, sys.argv[1]); import armorclaw.agent; print('asyncio' in sys.modules)"
    done = subprocess.run([python, "-S", "-I", "-c", code, str(package)], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_without_a_bridge_it_says_so_in_two_lines_and_ends_with_3(spawn: Spawn) -> None:
    for arguments in (["-c", "from armorclaw.agent import Agent; Agent().run()"],):
        process = spawn(*arguments, ARMORCLAW_SOCKET="")
        out, err = process.communicate(timeout=20)
        assert (process.returncode, out) == (3, "")
        assert err.splitlines() == [
            "armorclaw: ARMORCLAW_SOCKET is not set, so there is no bridge to talk to",
            "hint: a bridge starts agents; declare this one in its configuration, then: armorclaw run",
        ]


@pytest.mark.parametrize("arguments", [["exec", "--", "true"], ["exec", "--per-message", "--", "true"]])
def test_the_wrapper_says_the_same(spawn: Spawn, arguments: list[str]) -> None:
    process = spawn("-m", "armorclaw.agent", *arguments, ARMORCLAW_SOCKET="")
    _, err = process.communicate(timeout=20)
    assert process.returncode == 3
    no_warnings(err)
    assert len(err.splitlines()) == 2
