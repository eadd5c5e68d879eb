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


def test_configured_it_is_structlog() -> None:
    log = get_logger("armorclaw.test")
    with structlog.testing.capture_logs() as lines:
        log.error("seen", why="because")
    assert lines == [{"event": "seen", "why": "because", "log_level": "error"}]
