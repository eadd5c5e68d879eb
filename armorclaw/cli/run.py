"""`armorclaw run`: the daemon."""

from __future__ import annotations

import logging
import signal
from pathlib import Path

import click
import trio

from armorclaw.bridge import open_bridge
from armorclaw.cli.files import FILE
from armorclaw.cli.process import harden, notify, set_up_logging
from armorclaw.config import Config
from armorclaw.log import get_logger

log = get_logger(__name__)


@click.command("run")
@click.option("--config", "file", type=FILE, required=True, help="The configuration file (TOML).")
@click.option("--verbose", is_flag=True, help="Log more.")
def command(file: Path, verbose: bool) -> None:
    """Run the bridge until SIGTERM or Ctrl-C; a second one ends it at once."""
    config = Config.load(file)
    harden()
    set_up_logging(logging.DEBUG if verbose else logging.INFO)
    trio.run(daemon, config)


async def daemon(config: Config) -> None:
    """The bridge, until a signal asks it to stop. Raises what the bridge raises."""
    asked = (signal.SIGTERM, signal.SIGINT)
    with trio.open_signal_receiver(*asked) as signals:
        async with open_bridge(config):
            log.info("bridge up", socket=str(config.bridge.socket), agents=len(config.agents))
            notify("READY=1")
            async for number in signals:
                log.info("stopping", signal=signal.Signals(number).name)
                break
            notify("STOPPING=1")
            for number in asked:  # whoever asks again does not want to wait
                signal.signal(number, signal.SIG_DFL)
    log.info("bridge stopped")
