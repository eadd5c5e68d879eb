"""How long the event loop is taken at a time."""

from __future__ import annotations

import gc
import time
from collections.abc import Iterator
from contextlib import contextmanager

import trio


class Turns(trio.abc.Instrument):
    """The longest step of any task, in seconds of this thread's processor time: neighbours do not count."""

    def __init__(self) -> None:
        self.longest = 0.0
        self._began = time.thread_time()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._began = time.thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.longest = max(self.longest, time.thread_time() - self._began)


@contextmanager
def turns() -> Iterator[Turns]:
    gc.collect()
    gc.freeze()  # what pytest holds is no part of it
    found = Turns()
    trio.lowlevel.add_instrument(found)
    try:
        yield found
    finally:
        trio.lowlevel.remove_instrument(found)
        gc.unfreeze()
