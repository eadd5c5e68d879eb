"""Tasks that watch over all agents: one that fails is begun again, and no agent ends for it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from armorclaw.errors import trace
from armorclaw.log import get_logger
from armorclaw.supervision import in_words

log = get_logger(__name__)

PAUSES = (1.0, 60.0)
"""Seconds until a watcher that failed is begun again: the first, the most."""

WELL_AFTER = 600.0
"""Seconds a watcher has to last for its next failure to be told anew, and its pauses to begin anew."""


async def kept(name: str, run: Callable[[], Awaitable[object]], tell: Callable[[str], object]) -> None:
    """Run `run` until it returns, however often it fails in between.

    Each failure is logged with its trace; of a series of them `tell` is called once, with a sentence for people. What
    is no `Exception`, such as cancellation, passes.
    """
    pause, longest = PAUSES
    told = False
    while True:
        began = trio.current_time()
        failure: Exception | None = None
        try:
            await run()
        except* Exception as group:  # noqa: BLE001 - what failed is begun again; one may come together with cancellation, which goes on
            failure = group
            while isinstance(failure, ExceptionGroup) and len(failure.exceptions) == 1:
                failure = failure.exceptions[0]
            log.error("a watcher of agents failed", watcher=name, why=in_words(failure), trace=trace(failure))
        if failure is None:
            return
        if trio.current_time() - began >= WELL_AFTER:
            pause, told = PAUSES[0], False
        if not told:
            told = True
            tell(f"{name} failed, is begun again and may miss something: {in_words(failure)}")
        await trio.sleep(pause)
        pause = min(2 * pause, longest)
