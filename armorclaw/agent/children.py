"""The child processes of an exec wrapper, and the orphans that come to it when it is PID 1."""

from __future__ import annotations

import contextlib
import os
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import IO, Any, Optional


class Child:
    """A program we started. `status` is None while it runs."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process
        self._ended = threading.Event()

    @property
    def status(self) -> Optional[int]:
        """Its exit status as a shell has it: 128 + n when signal n ended it."""
        code = self._process.returncode if self._ended.is_set() else None
        return 128 - code if code is not None and code < 0 else code

    @property
    def stdout(self) -> IO[bytes]:
        assert self._process.stdout is not None
        return self._process.stdout

    def wait(self) -> int:
        self._ended.wait()
        status = self.status
        assert status is not None
        return status

    def end(self, code: int) -> None:
        """The reaper has its exit code."""
        self._process.returncode = code  # so that Popen does not wait for a process that is gone
        self._ended.set()


class Children:
    """Starts programs and reaps: those, and every orphan the kernel hands us.

    One thread waits for any child at all, so nothing else in this process may wait for a child. `changed` is called,
    from that thread, when one of ours has ended.
    """

    def __init__(self, changed: Callable[[], object]) -> None:
        self._changed = changed
        self._lock = threading.Lock()  # held from the fork until the child is known, and while reaping
        self._known: dict[int, Child] = {}
        self._started = threading.Event()
        threading.Thread(target=self._reap, name="armorclaw-reaper", daemon=True).start()

    def spawn(
        self,
        command: Sequence[str],
        env: Mapping[str, str],
        *,
        pass_fds: Sequence[int] = (),
        stdin: Optional[int] = None,
        stdout: Optional[int] = None,
    ) -> Child:
        """Start a program. Raises OSError when it cannot be found or may not be run.

        It stays in our session: where there is no container, that is how the bridge knows what belongs to an agent.
        """
        with self._lock:
            process = subprocess.Popen(list(command), env=dict(env), pass_fds=pass_fds, stdin=stdin, stdout=stdout)
            child = self._known[process.pid] = Child(process)
        self._started.set()
        return child

    def signal_all(self, number: int) -> None:
        """Send a signal to every program of ours; to the programs only, as init does, not to what they started."""
        with self._lock:  # so that none of them is reaped, and its number taken by another, meanwhile
            for pid in self._known:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, number)

    def _reap(self) -> None:
        while True:
            try:
                # look first, take under the lock: a number must not come into use again before we know whose it was
                found: Any = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
            except ChildProcessError:
                # none at all. As PID 1 one may still come, from a process that somebody outside put beside us
                self._started.wait(1.0)
                self._started.clear()
                continue
            with self._lock:
                child = self._known.pop(found.si_pid, None)
                with contextlib.suppress(ChildProcessError):  # Popen took one that could not be started
                    os.waitpid(found.si_pid, 0)
            if child is not None:
                child.end(found.si_status if found.si_code == os.CLD_EXITED else -found.si_status)
                self._changed()
