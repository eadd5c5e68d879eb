"""The example programs, run as a reader would run them."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from armorclaw.testing.handles import BridgeProcess, to_toml
from armorclaw.testing.homeserver import Homeserver
from armorclaw.testing.person import Person


@pytest.mark.mission("P1.1")
@pytest.mark.parametrize(
    ("program", "answers"),
    [
        ("in_a_trio_program.py", {"tea": "order 1: tea", "cake": "order 2: cake"}),
        ("in_an_asyncio_program.py", {"tea": "aet", "cake": "ekac"}),
    ],
)
def test_a_person_is_answered(
    program: str,
    answers: dict[str, str],
    homeserver: Homeserver,
    armorclaw_folder: Path,
    matrix_user: Callable[[str], Person],
) -> None:
    settings = BridgeProcess.for_homeserver(homeserver, armorclaw_folder)
    config = armorclaw_folder / "armorclaw.toml"
    config.write_text(to_toml(settings.config))
    alice = matrix_user("alice")
    room = alice.create_room("a room", invite=[settings.user_id])
    command = [sys.executable, str(Path(__file__).parent / program), str(config), room]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert "listening\n" in iter(process.stdout.readline, "")  # after what structlog says by default
            alice.catch_up()
            for text, answer in answers.items():
                alice.send(room, text)
                assert alice.wait_for(lambda seen: True).body == answer
            process.send_signal(signal.SIGINT)  # Ctrl-C
            assert process.wait(10) == 0
            assert process.stderr is not None
            assert "Traceback" not in process.stderr.read()
        finally:
            process.kill()
    assert not settings.socket.exists()
