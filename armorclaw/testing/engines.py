"""Private container engines for tests: a dockerd or a Podman service of one's own, with all state in one folder.

    with private_engine("docker") as engine:
        ...                                     # engine.socket_path

Needs root and the program installed; `why_missing` says what is not. Each engine takes a slot, a folder under /tmp
guarded by a lock, so any number of pytest processes may each have one. What a killed run left in a slot is cleared
away before the slot is used again. Only processes that name the slot's folder are ever ended.
"""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import attrs

Kind = Literal["docker", "podman"]

READY_SECONDS = 30.0  # usually 0.4 s
STOP_SECONDS = 15.0
SLOTS = 16
IMAGE = "armorclaw-python:latest"
_INSTALL = {"docker": "apt-get install docker.io", "podman": "apt-get install podman runc"}
_PROGRAM = {"docker": "dockerd", "podman": "podman"}
_OURS = ("dockerd", "containerd", "containerd-shim", "podman", "conmon")  # prefixes of argv[0]
# Short: a Unix socket's path has 107 bytes at most, and engines append to theirs.
_ROOT = Path(f"/tmp/armorclaw-engines-{os.getuid()}")  # noqa: S108 - checked to be ours and private before use


class EngineFailed(Exception):  # noqa: N818 - reads as what happened
    """A private engine did not come up; the text ends with its last log lines."""


def why_missing(kind: Kind) -> str | None:
    """Why a private engine of this kind cannot run here, with the command that helps; None if it can."""
    if shutil.which(_PROGRAM[kind], path=_path()) is None:
        return f"{_PROGRAM[kind]} is not installed: {_INSTALL[kind]}"
    if os.getuid() != 0:
        return f"a private {kind} needs root: run the tests as root"
    return None


@attrs.define
class PrivateEngine:
    """A running engine; all it makes lies under `folder`."""

    kind: Kind
    folder: Path
    daemon: subprocess.Popen[bytes]
    live_restore: bool = False

    @property
    def socket_path(self) -> str:
        return str(_socket(self.folder))

    def kill(self) -> None:
        """SIGKILL to the daemon; its containers live on, as after a crash."""
        self.daemon.kill()
        self.daemon.wait()

    def restart(self) -> None:
        """Start the daemon again over the same state, after `kill`.

        Docker then ends the containers that lived on, unless told to keep them (`live_restore`); Podman never does.
        """
        for name in ("docker.pid", "exec/containerd/containerd.pid"):  # a dockerd refuses to start over these
            (self.folder / name).unlink(missing_ok=True)
        if self.kind == "docker":
            _end_processes(self.folder, ("containerd",), exactly=True)
        self.daemon = _start(self.kind, self.folder, self.live_restore)
        _await_ready(self)


@contextlib.contextmanager
def private_engine(kind: Kind, *, live_restore: bool = False) -> Iterator[PrivateEngine]:
    """Start one, and on leaving end it with all its containers. Raises EngineFailed."""
    with _slot(kind) as folder:
        _clear(folder)
        folder.mkdir(mode=0o700)
        engine = PrivateEngine(kind, folder, _start(kind, folder, live_restore), live_restore)
        try:
            _await_ready(engine)
            yield engine
        finally:
            _stop(engine)


@attrs.frozen
class EngineWithImage:
    """A private engine that has a Python image, by its id."""

    engine: PrivateEngine
    image: str

    @property
    def socket_path(self) -> str:
        return self.engine.socket_path


@contextlib.contextmanager
def engine_with_image(kind: Kind, *, live_restore: bool = False) -> Iterator[EngineWithImage]:
    """The same with an image of this host's own Python in it (about 2 s)."""
    import trio

    from armorclaw.containers.engines.http import Engine
    from armorclaw.containers.images.image import python_image

    async def make_image(socket_path: str) -> str:
        async with Engine.open(socket_path) as client:
            return await python_image(client, tag=IMAGE)

    with private_engine(kind, live_restore=live_restore) as engine:
        # In a thread of its own, as the caller may be inside a Trio run already.
        with ThreadPoolExecutor(1) as pool:
            image = pool.submit(trio.run, make_image, engine.socket_path).result()
        yield EngineWithImage(engine, image)


@contextlib.contextmanager
def _slot(kind: Kind) -> Iterator[Path]:
    _ROOT.mkdir(mode=0o700, exist_ok=True)
    facts = _ROOT.lstat()
    if facts.st_uid != os.getuid() or facts.st_mode & 0o077 or _ROOT.is_symlink():
        raise EngineFailed(f"{_ROOT} is not a private folder of this user: remove it")
    for number in range(SLOTS):
        with (_ROOT / f"{kind[0]}{number}.lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            yield _ROOT / f"{kind[0]}{number}"
            return
    raise EngineFailed(f"all {SLOTS} slots for {kind} under {_ROOT} are in use")


def _start(kind: Kind, folder: Path, live_restore: bool) -> subprocess.Popen[bytes]:
    command = _dockerd(folder, live_restore) if kind == "docker" else _podman(folder)
    if setpriv := shutil.which("setpriv"):
        command = [setpriv, "--pdeathsig", "TERM", *command]  # should this very process be killed
    environ = {"PATH": _path(), "HOME": str(folder), "CONTAINERS_CONF": str(folder / "containers.conf")}
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            command,
            cwd=folder,  # where conmon leaves its marks
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _dockerd(folder: Path, live_restore: bool) -> list[str]:
    (folder / "daemon.json").write_text(json.dumps({"live-restore": live_restore}))  # not the host's own
    return [
        "dockerd",
        f"--config-file={folder}/daemon.json",
        f"--data-root={folder}/data",
        f"--exec-root={folder}/exec",
        f"--pidfile={folder}/docker.pid",
        f"--host=unix://{_socket(folder)}",
        "--iptables=false",  # nothing of the host's network is touched
        "--ip6tables=false",
        "--bridge=none",
    ]


def _podman(folder: Path) -> list[str]:
    # Locks in files, not in the one shared memory segment that all Podmans of a host would share.
    (folder / "containers.conf").write_text('[engine]\nlock_type = "file"\n')
    runtime = shutil.which("runc", path=_path())  # crun refuses hosts that have both versions of cgroups
    return [
        "podman",
        *(["--runtime", runtime] if runtime else []),
        *("--root", f"{folder}/s", "--runroot", f"{folder}/r", "--tmpdir", f"{folder}/t"),
        *("--cgroup-manager", "cgroupfs", "--events-backend", "file"),
        *("system", "service", "--time", "0", f"unix://{_socket(folder)}"),
    ]


def _await_ready(engine: PrivateEngine) -> None:
    def ready() -> bool:
        if engine.daemon.poll() is not None:
            raise EngineFailed(f"{engine.kind} ended with {engine.daemon.returncode}:\n{_log_tail(engine.folder)}")
        return _http(engine.folder, "GET", "/_ping") is not None

    if not _until(ready, READY_SECONDS):
        raise EngineFailed(f"{engine.kind} is not ready in {READY_SECONDS:g} s:\n{_log_tail(engine.folder)}")


def _stop(engine: PrivateEngine) -> None:
    # Else a clean stop asks each container and waits 10 s for it.
    for row in _http(engine.folder, "GET", "/containers/json?all=true") or []:
        _http(engine.folder, "DELETE", f"/containers/{row['Id']}?force=true&v=true")
    engine.daemon.terminate()
    try:
        engine.daemon.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        engine.daemon.kill()
        engine.daemon.wait()
    _clear(engine.folder)


def _clear(folder: Path) -> None:
    """End whatever names this folder, unmount what is under it, remove it."""
    _end_processes(folder, _OURS)
    mounts = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for mount in sorted((mount for mount in mounts if mount.startswith(f"{folder}/")), reverse=True):
        subprocess.run(["umount", "-l", mount], check=False)
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        raise EngineFailed(f"{folder} cannot be cleared away: see what holds it and remove it")


def _end_processes(folder: Path, programs: tuple[str, ...], *, exactly: bool = False) -> None:
    def rest() -> list[int]:
        return [pid for pid in _processes(folder, programs, exactly) if _is_running(pid)]

    for pid in rest():
        # A container's own process does not name the folder, but is a child of its shim.
        for victim in [*(_children(pid) if not exactly else []), pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(victim, signal.SIGKILL)
    if not _until(lambda: not rest(), STOP_SECONDS):
        raise EngineFailed(f"processes of {folder} do not end: {rest()}")


def _processes(folder: Path, programs: tuple[str, ...], exactly: bool) -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            arguments = (entry / "cmdline").read_bytes().decode(errors="replace").split("\0")
            name = Path(arguments[0]).name
            named = name in programs if exactly else name.startswith(programs)
            if named and any(f"{folder}/" in argument for argument in arguments):
                yield int(entry.name)


def _children(pid: int) -> list[int]:
    found: list[int] = []
    with contextlib.suppress(OSError):
        for task in Path(f"/proc/{pid}/task").iterdir():
            found += [int(child) for child in (task / "children").read_text().split()]
    return found


def _is_running(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


class _Connection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path) -> None:
        super().__init__("engine", timeout=STOP_SECONDS)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


def _http(folder: Path, method: str, path: str) -> list[dict[str, str]] | None:
    """One call to the engine; None for whatever is no success."""
    with contextlib.closing(_Connection(_socket(folder))) as connection:
        try:
            connection.request(method, path)
            response = connection.getresponse()
            body = response.read()
        except (OSError, http.client.HTTPException):
            return None
    if response.status >= 400:
        return None
    rows = json.loads(body) if body.startswith(b"[") else []
    return list(rows)


def _until(true: Callable[[], bool], seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while not true():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def _socket(folder: Path) -> Path:
    return folder / "e.sock"


def _log_tail(folder: Path) -> str:
    with contextlib.suppress(OSError):
        return "\n".join((folder / "log").read_text(errors="replace").splitlines()[-10:])
    return ""


def _path() -> str:
    return os.environ.get("PATH", "") + ":/usr/local/sbin:/usr/sbin:/sbin:/usr/bin:/bin"
