import subprocess
import sys

SCRIPT = """
import sys
from armorclaw.cli.run import load_lean
load_lean()
import armorclaw.cli.daemon
found = {name.partition(".")[0] for name in sys.modules}
print(sorted(found & {"pygments", "rich", "twisted"}))
import rich.console  # it is there all the same for who wants it
"""


def test_the_daemon_takes_nothing_along_for_terminals() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
