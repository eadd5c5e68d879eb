"""An embedding program that sets nothing up gets log lines through the standard library, and none on stdout."""

import subprocess
import sys

import structlog

from armorclaw.log import get_logger

SCRIPT = """
import logging
from armorclaw.log import get_logger
log = get_logger("armorclaw.test")
log.info("not shown")
log.warning("shown", key="value")
logging.basicConfig(level=logging.INFO, format="%(name)s %(levelname)s %(message)s")
log.info("shown too", number=3)
"""


def test_unconfigured_it_is_the_standard_librarys() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    first, second = done.stderr.splitlines()
    assert "shown" in first and "value" in first  # noqa: PT018
    assert second.startswith("armorclaw.test INFO")
    assert "shown too" in second


FORGED = """
import logging
from armorclaw.log import get_logger
logging.basicConfig(format="%(message)s")
room, trace = "!a\\x1b[31m\\nERROR forged\\u202e", "Traceback\\n  a\\x1b[1m"
get_logger("armorclaw.test").warning("shown", room=room, trace=trace)
"""


def test_no_value_makes_a_line_of_its_own() -> None:
    """What strangers call things is in the log, and must not look like more of it."""
    done = subprocess.run([sys.executable, "-c", FORGED], capture_output=True, text=True, check=True)
    first, second = done.stderr.splitlines()
    assert first == r"event=shown room=!a\x1b[31m\nERROR forged\u202e trace=Traceback"
    assert second == r"      a\x1b[1m"


def test_configured_it_is_structlog() -> None:
    log = get_logger("armorclaw.test")
    with structlog.testing.capture_logs() as lines:
        log.error("seen", why="because")
    assert lines == [{"event": "seen", "why": "because", "log_level": "error"}]
