"""`armorclaw`, with a watch on its turns and tasks: `python measured.py FIGURES WORD…`.

SIGUSR1 begins anew, SIGUSR2 writes the figures to that file: the longest turn of any task since, in seconds of the
processor and so whatever else the machine does, and how many tasks live.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any

import trio

from armorclaw.cli import main


class Watch(trio.abc.Instrument):
    def __init__(self) -> None:
        self.living = 0
        self.forget()

    def forget(self, *_: object) -> None:
        self.longest, self.whose = 0.0, ""
        self._began = time.thread_time()

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._began = time.thread_time()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        took = time.thread_time() - self._began
        if took > self.longest:
            self.longest, self.whose = took, task.name

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        self.living += 1

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        self.living -= 1


def measure(figures: str, run: Callable[..., Any]) -> Callable[..., Any]:
    watch = Watch()

    def write(*_: object) -> None:
        with open(figures + ".new", "w", encoding="ascii") as file:
            json.dump({"longest": watch.longest, "whose": watch.whose, "living": watch.living}, file)
        os.rename(figures + ".new", figures)

    signal.signal(signal.SIGUSR1, watch.forget)
    signal.signal(signal.SIGUSR2, write)
    return lambda *args, **options: run(*args, instruments=[watch], **options)


if __name__ == "__main__":
    trio.run = measure(sys.argv[1], trio.run)  # type: ignore[assignment]
    main(sys.argv[2:])
