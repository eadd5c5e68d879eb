"""One bridge per database, kept by the kernel: the lock falls with the process, however it ends."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from armorclaw.errors import ArmorclawError


@contextlib.contextmanager
def only_process(database: Path) -> Iterator[None]:
    """Holds `<database>.lock` (flock) while inside; raises `already_running` if somebody else does.

    The file stays when the lock is given back: removing it would let two processes lock two different files of
    that name.
    """
    path = database.with_name(database.name + ".lock")
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise ArmorclawError(
            "storage_failed",
            f"cannot open {path}",
            why=error.strerror or str(error),
            hint=f"check owner and mode of {path.parent}",
        ) from error
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(fd, 20, 0).decode("ascii", "replace").strip()
            raise ArmorclawError(
                "already_running",
                f"another bridge uses the database {database}",
                why=f"process {holder} holds {path}" if holder else f"{path} is locked",
            ) from None
        with contextlib.suppress(OSError):  # the number is a help for people; on a full disk we do without
            os.ftruncate(fd, 0)
            os.pwrite(fd, b"%d\n" % os.getpid(), 0)
        yield
    finally:
        os.close(fd)
