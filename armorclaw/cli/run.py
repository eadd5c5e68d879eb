"""`armorclaw run`: the daemon."""

from __future__ import annotations

import logging
import signal
from collections.abc import AsyncIterator
from pathlib import Path

import click
import trio

from armorclaw.bridge import open_bridge
from armorclaw.cli.files import FILE
from armorclaw.cli.process import harden, notify, set_up_logging
from armorclaw.config import Config
from armorclaw.errors import one_error
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


ASKED = (signal.SIGTERM, signal.SIGINT)


async def daemon(config: Config) -> None:
    """The bridge, until a signal asks it to stop, also while it starts. Raises what the bridge raises."""
    with trio.open_signal_receiver(*ASKED) as signals, one_error():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_stop_when_asked, signals, nursery.cancel_scope)
            async with open_bridge(config):
                log.info("bridge up", socket=str(config.bridge.socket), agents=len(config.agents))
                notify("READY=1")
                await trio.Event().wait()  # until the scope around it is cancelled
    log.info("bridge stopped")


async def _stop_when_asked(signals: AsyncIterator[int], bridge: trio.CancelScope) -> None:
    async for number in signals:
        for each in ASKED:  # whoever asks again does not want to wait
            signal.signal(each, signal.SIG_DFL)
        log.info("stopping", signal=signal.Signals(number).name)
        notify("STOPPING=1")
        bridge.cancel(reason="asked to stop")
        return
