"""The names a program may rely on, and that looking for them costs nothing."""

from __future__ import annotations

import subprocess
import sys

import pytest

import armorclaw


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_every_name_is_there() -> None:
    for name in armorclaw.__all__:
        assert getattr(armorclaw, name) is not None
    assert dir(armorclaw) == sorted(armorclaw.__all__)
    with pytest.raises(AttributeError, match="module 'armorclaw' has no attribute 'nonsense'"):
        _ = armorclaw.nonsense


def test_a_name_is_loaded_when_it_is_used() -> None:
    assert run("import armorclaw, sys; print(armorclaw.__version__, 'trio' in sys.modules)") == "0.1.0 False"
    assert run("import armorclaw, sys; armorclaw.Agent; print('attrs' in sys.modules)") == "False"
    assert run("import armorclaw, sys; armorclaw.Config; print('trio' in sys.modules)") == "False"


def test_what_is_found_once_is_kept() -> None:
    assert armorclaw.Agent is armorclaw.Agent
    assert "Agent" in vars(armorclaw)
