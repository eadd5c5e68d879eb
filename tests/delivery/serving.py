"""An outbox whose messages are being sent, for the length of a block."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio
import trio.testing

World = Any  # the class of conftest.py


@asynccontextmanager
async def sending(world: World) -> AsyncIterator[None]:
    async with trio.open_nursery() as nursery:
        await nursery.start(world.outbox.serve, "main", world.server)
        yield
        nursery.cancel_scope.cancel(reason="done")


async def quiet() -> None:
    await trio.testing.wait_all_tasks_blocked()
