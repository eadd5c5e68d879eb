"""The child processes of an exec wrapper, and the orphans that come to it when it is PID 1."""

from __future__ import annotations

import contextlib
import functools
import os
import selectors
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Optional

_CHUNK = 65_536  # bytes read at once: what a pipe holds


class Child:
    """A program we started. `status` is None while it runs."""

    def __init__(self, process: subprocess.Popen[bytes], *, own_group: bool = False) -> None:
        self._process = process
        self.own_group = own_group
        self._ended = threading.Event()
        self._end_pipe: Optional[tuple[int, int]] = None  # its writing end is closed when the program has ended
        if process.stdout is not None:
            self._end_pipe = os.pipe()

    @property
    def status(self) -> Optional[int]:
        """Its exit status as a shell has it: 128 + n when signal n ended it."""
        code = self._process.returncode if self._ended.is_set() else None
        return 128 - code if code is not None and code < 0 else code

    def wait(self, timeout: Optional[float] = None) -> Optional[int]:
        """Until it has ended, at most `timeout` seconds; its `status` then."""
        self._ended.wait(timeout)
        return self.status

    def output(
        self, limit: int, timeout: float, *, running: Callable[[], object] = lambda: None, every: float = 60.0
    ) -> bytes:
        """Wait for its end; what it printed by then into its pipe, up to `limit` bytes. The rest is read and lost.

        The pipe is not waited for: something it left in the background may hold that for ever. `running` is called
        every so many seconds meanwhile. Raises TimeoutError when the program has not ended after `timeout` seconds.
        """
        assert self._process.stdout is not None
        assert self._end_pipe is not None
        pipe, end, until = self._process.stdout.fileno(), self._end_pipe[0], time.monotonic() + timeout
        os.set_blocking(pipe, False)
        printed, told = b"", time.monotonic()
        with selectors.DefaultSelector() as selector:
            for fd in (pipe, end):
                selector.register(fd, selectors.EVENT_READ)
            while True:
                now = time.monotonic()
                ready = {key.fd for key, _ in selector.select(max(0.0, min(until, told + every) - now))}
                if end in ready:
                    return _rest(pipe, printed, limit)
                now = time.monotonic()
                if now >= until:  # it may print and print
                    raise TimeoutError
                if now >= told + every:
                    running()
                    told = now
                if pipe not in ready:
                    continue
                chunk = os.read(pipe, _CHUNK)
                printed += chunk[: limit - len(printed)]
                if not chunk:  # closed, but it may run on
                    selector.unregister(pipe)

    def close(self) -> None:
        """Close our end of its output, once: what writes there from now on gets SIGPIPE."""
        if self._process.stdout is not None:
            self._process.stdout.close()
        if self._end_pipe is not None:
            os.close(self._end_pipe[0])

    def end(self, code: int) -> None:
        """The reaper has its exit code."""
        self._process.returncode = code  # so that Popen does not wait for a process that is gone
        self._ended.set()
        if self._end_pipe is not None:
            os.close(self._end_pipe[1])


def _rest(pipe: int, printed: bytes, limit: int) -> bytes:
    """With what lies in the pipe still, as far as there is room for it: others may go on filling it."""
    with contextlib.suppress(BlockingIOError):
        while len(printed) < limit:
            chunk = os.read(pipe, limit - len(printed))
            if not chunk:
                break
            printed += chunk
    return printed


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
        own_group: bool = False,
    ) -> Child:
        """Start a program, leader of a process group if `own_group`. Raises OSError when it cannot be found or run.

        It stays in our session: where there is no container, that is how the bridge knows what belongs to an agent.
        """
        options: dict[str, Any] = {"pass_fds": pass_fds, "stdin": stdin, "stdout": stdout}
        if own_group and sys.version_info >= (3, 11):
            options["process_group"] = 0
        elif own_group:
            options["preexec_fn"] = functools.partial(os.setpgid, 0, 0)  # one system call, no Python code
        with self._lock:
            process = subprocess.Popen(list(command), env=dict(env), **options)
            child = self._known[process.pid] = Child(process, own_group=own_group)
        self._started.set()
        return child

    def kill(self, child: Child) -> None:
        """End a program that has not ended, with all of its group if it has one of its own."""
        with self._lock:
            for pid, known in self._known.items():
                if known is child:
                    _kill(pid, child)

    def kill_all(self) -> None:
        """`kill` all of ours."""
        with self._lock:
            for pid, child in self._known.items():
                _kill(pid, child)

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


def _kill(pid: int, child: Child) -> None:
    with contextlib.suppress(ProcessLookupError, PermissionError):
        if child.own_group:
            os.killpg(pid, signal.SIGKILL)
        else:
            os.kill(pid, signal.SIGKILL)
