from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Spawn = Callable[..., "subprocess.Popen[str]"]

_PRELUDE = """
import os, structlog, sys, trio
from pathlib import Path
from armorclaw.errors import ArmorclawError
from armorclaw.store import Database
from armorclaw.store.schema import Migration
structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
KEY = bytes(range(32))
TABLE = (Migration(1, "a table for tests", "CREATE TABLE t (n INTEGER PRIMARY KEY, body TEXT)"),)
path = Path(sys.argv[1])
def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())
def insert(n, size=100):
    return lambda c: c.execute("INSERT INTO t VALUES (?, ?)", (n, "x" * size)) and n
def numbers(c):
    return [n for (n,) in c.execute("SELECT n FROM t ORDER BY n")]
"""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "bridge.db"


@pytest.fixture
def spawn(path: Path) -> Iterator[Spawn]:
    """Starts a Python child that has `path`, `say`, `insert`, `numbers`; its program follows. Killed at the end."""
    children: list[subprocess.Popen[str]] = []

    def start(program: str, *arguments: str, prefix: tuple[str, ...] = ()) -> subprocess.Popen[str]:
        child = subprocess.Popen(
            [*prefix, sys.executable, "-c", _PRELUDE + textwrap.dedent(program), str(path), *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        )
        children.append(child)
        return child

    yield start
    for child in children:
        child.kill()
        child.communicate()
