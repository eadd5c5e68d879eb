"""A file system so small that it can be filled, seen only by those who are started inside."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from armorclaw.testing.plugin import missing

PIECE = 512


@attrs.frozen
class SmallDisk:
    """`inside` are the words before a command that is to see it; `root` is where everybody else can look at it."""

    inside: list[str]
    root: Path

    def fill(self, *, leave: int = 0) -> None:
        """Take up all room there is, but for `leave` bytes."""
        with self._filler.open("ab", buffering=0) as file:
            try:
                while self.left() > leave:
                    file.write(bytes(max(PIECE, min(1 << 16, (self.left() - leave) // 2))))
                while not leave:
                    file.write(bytes(PIECE))
            except OSError:
                pass

    def free(self) -> None:
        """Give it back."""
        self._filler.unlink()

    def left(self) -> int:
        found = os.statvfs(self.root)
        return found.f_bavail * found.f_frsize

    @property
    def _filler(self) -> Path:
        return self.root / "filler"


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[SmallDisk]:
    """A file system of `size` (as mount has it: "512k") at `folder`, gone when the last who is inside has ended."""
    if os.geteuid() != 0:
        missing("a small disk needs root: run the tests as root")
    mount = f"mount -t tmpfs -o size={size},mode=0711 tmpfs {folder} && echo mounted && cat"
    words = ["unshare", "--mount", "--propagation", "private", "sh", "-c", mount]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == b"mounted\n"
        inside = ["nsenter", "--target", str(holder.pid), "--mount", f"--wd={os.getcwd()}", "--"]
        yield SmallDisk(inside, Path(f"/proc/{holder.pid}/root{folder}"))
        assert holder.stdin is not None
        holder.stdin.close()
