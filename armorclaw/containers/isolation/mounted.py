"""What an agent sees of files, where it may write, and what of the host is shown to it: rows of `isolation`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from armorclaw.containers.isolation import kernel
from armorclaw.containers.isolation.kernel import Mount
from armorclaw.containers.isolation.verdicts import Subject, Verdict, mib, row
from armorclaw.containers.shapes import IsolationFact

MAX_MOUNTS = 64
"""Of the host, that get a row each; more are counted in one."""

_DATA = "/data"
_ENGINE_FILES = {
    *("/etc/hosts", "/etc/hostname", "/etc/resolv.conf", "/run/.containerenv"),
    *("/sbin/docker-init", "/usr/sbin/docker-init", "/dev/init", "/run/podman-init"),
}
_SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32", "/etc/alternatives")
_SYSTEM_FILES = ("/etc/ld.so.cache", "/etc/localtime")
_KERNELS = {"proc", "sysfs", "devpts", "mqueue", "cgroup", "cgroup2"}  # kinds of file systems that hold no data


def files(subject: Subject) -> Iterator[IsolationFact]:
    source = "/proc/PID/mountinfo"
    try:
        theirs, ours = kernel.mounts(subject.pid), kernel.mounts("self")
        apart = kernel.namespace(subject.pid, "mnt") != kernel.namespace("self", "mnt")
        me = kernel.status(subject.pid)
    except (FileNotFoundError, ProcessLookupError):
        raise
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error)
        yield IsolationFact("files", "its own", f"not known: {why}", None, source)
        return
    if not apart:
        yield IsolationFact("files", "its own", "all of the host's that its user may read", False, source)
        return
    visible = _visible(theirs)
    root = next((mount for mount in visible if mount.target == "/"), None)
    yield row(
        "root file system",
        "read-only",
        source,
        lambda: (
            ("not found", None) if root is None else (f"{root.kind}, {','.join(root.options)}", not root.is_writable)
        ),
    )
    of_host = {mount.target: kernel.host_path(mount, ours) for mount in visible if _may_be_hosts(mount)}
    writable = [
        mount
        for mount in visible
        if mount.is_writable and mount.target != "/" and _is_open(subject.pid, mount, me, of_host.get(mount.target))
    ]
    allowed = {"/tmp", _DATA}  # noqa: S108 - its own
    yield row(
        "places to write",
        "/tmp and /data at most, and file systems of bounded size",  # noqa: S108
        f"{source}, the modes of what is mounted",
        lambda: (
            ", ".join(mount.target for mount in writable) or "none",
            all(mount.target in allowed or mount.kind in ("tmpfs", "mqueue") for mount in writable),
        ),
    )
    for mount in writable:
        if mount.kind == "tmpfs":
            yield _scratch(subject, mount, source)
    yield from _from_host(subject, visible, of_host, source)


def _scratch(subject: Subject, mount: Mount, source: str) -> IsolationFact:
    wanted = ["nosuid", "nodev", *(["noexec"] if subject.has_engine else [])]

    def find() -> Verdict:
        sizes = [_bytes(option[5:]) for option in mount.of_system if option.startswith("size=")]
        holds = bool(sizes) and sizes[0] <= subject.tmp and all(word in mount.options for word in wanted)
        return f"{','.join(mount.options)}, {mib(sizes[0]) if sizes else 'no limit'}", holds

    return row(mount.target, f"{', '.join(wanted)}, at most {mib(subject.tmp)}", source, find)


def _from_host(
    subject: Subject, visible: list[Mount], of_host: Mapping[str, str | None], source: str
) -> Iterator[IsolationFact]:
    shown = [mount for mount in visible if of_host.get(mount.target) is not None and mount.target != "/"]
    for mount in shown[:MAX_MOUNTS]:
        path = str(of_host[mount.target])
        is_known = _is_claimed(subject, mount.target, path)
        claimed = "writable, its own" if mount.target == _DATA else "read-only, the bridge's or the system's"
        holds = is_known and (mount.target == _DATA or not mount.is_writable)
        found = f"{path}, {','.join(mount.options)}"
        yield IsolationFact(f"{mount.target} from the host", claimed, found, holds, source)
    if len(shown) > MAX_MOUNTS:
        yield IsolationFact(
            "more from the host", "none", f"{len(shown) - MAX_MOUNTS} places not looked at", None, source
        )


def _visible(mounts: list[Mount]) -> list[Mount]:
    """Without those that another one lies over."""
    return list({mount.target: mount for mount in mounts}.values())


def _may_be_hosts(mount: Mount) -> bool:
    """Not the control groups, which are one system for all, nor single devices."""
    return mount.kind not in ("cgroup", "cgroup2", "devtmpfs")


def _is_open(pid: int, mount: Mount, me: kernel.Status, of_host: str | None) -> bool:
    """Whether its user may write there, as far as the mode of the top folder tells; the host's counts in any case."""
    if mount.kind in ("cgroup", "cgroup2", "devpts") and of_host is None:
        return False
    try:
        facts = os.stat(f"/proc/{pid}/root{mount.target}")
    except PermissionError:
        return mount.kind not in _KERNELS
    except OSError:
        return False
    if facts.st_mode & 0o170000 in (0o020000, 0o060000):
        return False  # a device, which has a row of its own
    if of_host is not None and mount.kind not in _KERNELS:
        return True
    if facts.st_uid == me.uids[1]:
        return bool(facts.st_mode & 0o200)
    return bool(facts.st_mode & (0o020 if facts.st_gid in {*me.gids, *me.groups} else 0o002))


def _is_claimed(subject: Subject, target: str, path: str) -> bool:
    """Whether that place of the host is one that agents are shown."""
    if subject.has_engine and target in _ENGINE_FILES:
        return True
    if any(Path(path).is_relative_to(folder) and Path(path) != folder for folder in subject.folders):
        return True
    if subject.python is not None and target == path:  # it is at its own path inside, and so is what it was made of
        interpreter = Path(os.path.realpath(subject.python / "bin" / "python3"))
        if Path(path) == subject.python or (len(Path(path).parts) > 2 and interpreter.is_relative_to(path)):
            return True
    if subject.kind == "sandbox":
        return target in _SYSTEM_FILES or any(Path(path).is_relative_to(folder) for folder in _SYSTEM)
    return False


def _bytes(text: str) -> int:
    units = {"k": 1024, "m": 1024**2, "g": 1024**3}
    return int(text[:-1]) * units[text[-1]] if text[-1:] in units else int(text)
