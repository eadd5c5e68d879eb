"""What `armorclaw run` runs."""

from __future__ import annotations

import gc
import logging
import signal
from collections.abc import AsyncIterator, Sequence

import trio

from armorclaw.bridge import Bridge, open_bridge
from armorclaw.cli.process import allow_connections, harden, notify, set_up_logging
from armorclaw.config import Config
from armorclaw.errors import one_error
from armorclaw.log import get_logger

log = get_logger(__name__)

ASKED = (signal.SIGTERM, signal.SIGINT)


def run(config: Config, *, verbose: bool) -> None:
    """The bridge in a process that is its own. Raises what the bridge raises."""
    harden()
    allow_connections()
    set_up_logging(logging.DEBUG if verbose else logging.INFO)
    trio.run(daemon, config)


async def daemon(config: Config) -> None:
    """The bridge, until a signal asks it to stop, also while it starts. Raises what the bridge raises.

    One that is up drains first; a second signal ends the process at once.
    """
    up: list[Bridge] = []
    with trio.open_signal_receiver(*ASKED) as signals, one_error():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_stop_when_asked, signals, nursery.cancel_scope, up)
            async with open_bridge(config) as bridge:
                up.append(bridge)
                log.info("bridge up", socket=str(config.bridge.socket), agents=len(config.agents))
                notify("READY=1")
                gc.collect()
                gc.freeze()  # it stays to the end: to look for garbage in it would hold callers up for 15 ms and more
                await trio.Event().wait()  # until the scope around it is cancelled
    log.info("bridge stopped")


async def _stop_when_asked(signals: AsyncIterator[int], scope: trio.CancelScope, up: Sequence[Bridge]) -> None:
    async for number in signals:
        for each in ASKED:  # whoever asks again does not want to wait
            signal.signal(each, signal.SIG_DFL)
        log.info("stopping", signal=signal.Signals(number).name)
        notify("STOPPING=1")
        for bridge in up:
            await bridge.drain()
        scope.cancel(reason="asked to stop")
        return
