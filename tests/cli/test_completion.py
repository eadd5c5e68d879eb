"""Shell completion: the scripts, and what may come next."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from tests.cli.conftest import FakeBridge, Run


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script(run: Run, shell: str) -> None:
    done = run("completion", shell)
    assert (done.status, done.err) == (0, "")
    assert "_ARMORCLAW_COMPLETE" in done.out
    if shutil.which(shell):
        subprocess.run([shell, "-n"], input=done.out, text=True, check=True, timeout=10)


def test_no_other_shell(run: Run) -> None:
    assert run("completion", "csh").status == 2


def next_words(line: str, **environ: str) -> list[str]:
    """What bash would be told of a line that ends where the cursor is."""
    words = line.split(" ")
    told = {"_ARMORCLAW_COMPLETE": "bash_complete", "COMP_WORDS": line, "COMP_CWORD": str(len(words) - 1)}
    program = [sys.executable, "-c", "import sys, armorclaw.cli.root as c; s = c.execute([]); print(s, *sys.modules)"]
    said = subprocess.check_output(program, env={**os.environ, **told, **environ}, text=True, timeout=30)
    *found, modules = said.splitlines()
    assert not {"trio", "attrs", "rich"} & set(modules.split())
    return [each.split(",")[1] for each in found if each]


def test_what_may_come_next(fake: FakeBridge) -> None:
    assert next_words("armorclaw con") == ["config", "containers"]
    assert "events" in next_words("armorclaw ")
    assert next_words("armorclaw config ") == ["check", "show"]
    assert next_words("armorclaw containers logs --f") == ["--follow"]
    fake.answers["containers.list"] = [{"name": "echo"}, {"name": "eve"}, {"name": "bob"}]
    assert next_words("armorclaw containers stop e") == ["echo", "eve"]
    assert next_words("armorclaw containers stop ", ARMORCLAW_SOCKET="/nonexistent") == []
