"""`containers.isolation`: what really confines a running agent, asked of the kernel and of its engine.

Nothing here is derived from what was asked for when the container was made. Each row sets what armorclaw claims of
any agent beside what was found; what could not be found out is said to be unknown, and why, never guessed.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import trio

from armorclaw.containers.agent import Agent
from armorclaw.containers.engines.config import OOM_SCORE_ADJ
from armorclaw.containers.isolation import kernel
from armorclaw.containers.isolation.mounted import files
from armorclaw.containers.isolation.verdicts import ENGINES, Subject, Verdict, mib, row
from armorclaw.containers.shapes import IsolationFact
from armorclaw.errors import ArmorclawError

PATIENCE = 3.0
"""Seconds for all of it; an engine or a file system that takes longer is not waited for."""

_CHARACTER_DEVICES = {"console", "full", "null", "ptmx", "random", "tty", "urandom", "zero"}


@runtime_checkable
class Inspected(Protocol):
    """A `Running` whose engine tells about it."""

    async def inspect(self) -> Mapping[str, Any]:
        """What the engine says of this container. Raises `engine_unreachable`, `container_not_found`."""
        ...


async def isolation_of(agent: Agent, folders: Iterable[Path]) -> list[IsolationFact]:
    """All rows for the container it has now.

    Raises `unavailable` when it has none, or it ended meanwhile; `timed_out`; `engine_unreachable`.
    """
    generation = agent.generation
    if generation is None:
        raise ArmorclawError("unavailable", f"agent {agent.name} has no container", why=f"it is {agent.state}")
    with trio.move_on_after(PATIENCE):
        running, limits = generation.running, agent.declared.limits
        pid = await running.main_pid()
        if pid is None:
            raise ArmorclawError("unavailable", f"agent {agent.name} has no process", why=f"it is {agent.state}")
        kind = generation.runtime.kind
        subject = Subject(
            kind=kind,
            pid=pid,
            uid=agent.socket.uid if kind in ENGINES or os.geteuid() == 0 else os.geteuid(),
            memory=limits.memory,
            cpus=limits.cpus,
            pids=limits.pids,
            files=limits.files,
            tmp=limits.tmp,
            folders=tuple(folders),
            python=agent.declared.python,
            told=await running.inspect() if isinstance(running, Inspected) else None,
        )
        return await trio.to_thread.run_sync(examine, subject, abandon_on_cancel=True)
    raise ArmorclawError("timed_out", f"what confines agent {agent.name} could not be read", why=f"{PATIENCE:g} s")


def examine(subject: Subject) -> list[IsolationFact]:
    """Blocking: some 5 ms, and 0.1 ms for each of its processes. Raises `unavailable` if it ends meanwhile."""
    try:
        began = kernel.started(subject.pid)
        rows = [
            *_privileges(subject),
            *_namespaces(subject),
            *_network(subject),
            *files(subject),
            *_limits(subject),
            *_devices(subject),
            _module(subject),
            *([] if subject.told is None else _engine(subject, subject.told)),
        ]
        if kernel.started(subject.pid) == began:
            return rows
    except (FileNotFoundError, ProcessLookupError):
        pass
    raise ArmorclawError("unavailable", "the agent ended while it was looked at")


# -- each group of rows


def _privileges(subject: Subject) -> Iterator[IsolationFact]:
    source = "/proc/PID/status"
    try:
        seen = _statuses(subject.pid)
    except (PermissionError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else error
        yield IsolationFact("privileges", "none", f"not known: {why}", None, source)
        return

    def all_of(values: Iterable[object], holds: Callable[[Any], bool]) -> Verdict:
        kinds = list(dict.fromkeys(values))
        shown = ", ".join(str(value) for value in kinds)
        count = f" in all {len(seen)} processes" if len(seen) > 1 and len(kinds) == 1 else ""
        return shown + count, all(holds(value) for value in kinds)

    def capabilities(names: tuple[str, ...]) -> Verdict:
        merged = [reduce(or_, (each.capabilities[name] for name in names)) for each in seen]
        return all_of((f"{value:016x}" if value else "none" for value in merged), "none".__eq__)

    def users() -> Verdict:
        ids = [uid for each in seen for uid in each.uids]
        within = [f"{kernel.inside(subject.pid, uid)} inside, {uid} on the host" for uid in dict.fromkeys(ids)]
        is_it = all(uid != 0 and kernel.inside(subject.pid, uid) == subject.uid for uid in ids)
        return "; ".join(within), is_it

    def groups() -> Verdict:
        own = {gid for each in seen for gid in each.gids}
        more = sorted({gid for each in seen for gid in each.groups} - own)
        return ", ".join(map(str, more)) or "none", not more and 0 not in own

    yield row(
        "new privileges",
        "none to be gained",
        source,
        lambda: all_of(
            ("none to be gained" if each.no_new_privileges else "may be gained" for each in seen),
            "none to be gained".__eq__,
        ),
    )
    modes = {0: "none", 1: "strict", 2: "filter"}
    yield row(
        "system calls",
        "filter",
        source,
        lambda: all_of((modes.get(each.seccomp, str(each.seccomp)) for each in seen), "filter".__eq__),
    )
    yield row("capabilities", "none", source, lambda: capabilities(("Eff", "Prm", "Inh", "Amb")))
    yield row("capabilities to be gained", "none", source, lambda: capabilities(("Bnd",)))
    yield row("user", f"{subject.uid} inside, not root on the host", f"{source}, uid_map", users)
    yield row("further groups", "none", source, groups)


def _statuses(main: int) -> list[kernel.Status]:
    """Of the main process, and of those below it that live on while it is looked at."""
    seen = []
    for pid in kernel.tree(main):
        try:
            seen.append(kernel.status(pid))
        except (FileNotFoundError, ProcessLookupError):
            if pid == main:
                raise
    return seen


def _namespaces(subject: Subject) -> Iterator[IsolationFact]:
    # an engine's user namespaces are a setting of its own; Podman leaves out that of control groups on version 1
    unclaimed = {"docker": {"user"}, "podman": {"user", "cgroup"}}.get(subject.kind, set())
    for name in kernel.NAMESPACES:

        def find(name: str = name) -> Verdict:
            is_own = kernel.namespace(subject.pid, name) != kernel.namespace("self", name)
            return "its own" if is_own else "the host's", is_own

        yield row(f"{name} namespace", None if name in unclaimed else "its own", f"/proc/PID/ns/{name}", find)


def _network(subject: Subject) -> Iterator[IsolationFact]:
    def found(names: list[str], allowed: list[str]) -> Verdict:
        return ", ".join(names) or "none", all(name in allowed for name in names)

    yield row(
        "network devices", "only lo", "/proc/PID/net/dev", lambda: found(kernel.network_devices(subject.pid), ["lo"])
    )
    yield row("routes", "none", "/proc/PID/net/route", lambda: found(kernel.routes(subject.pid), []))


def _limits(subject: Subject) -> Iterator[IsolationFact]:
    source = "control group"

    def of_all(controller: str, least: Callable[[kernel.Groups], float | None], most: float, shown: Any) -> Verdict:
        groups = kernel.Groups(subject.pid)
        if not groups.has_one(controller):
            return "none: it is in the bridge's own control group", False
        value = least(groups)
        return ("none", False) if value is None else (shown(value), value <= most)

    def memory(groups: kernel.Groups) -> int | None:
        return groups.least("memory", "memory.limit_in_bytes", "memory.max")

    def swap() -> Verdict:
        if not kernel.has_swap():
            return "none: the host has none", True
        groups = kernel.Groups(subject.pid)
        both = groups.least("memory", "memory.memsw.limit_in_bytes", "memory.swap.max")
        of_memory = memory(groups)
        if both is None or of_memory is None:
            return "not limited", False
        more = both - of_memory if groups.version("memory") == 1 else both
        return ("none", True) if more <= 0 else (mib(more), False)

    yield row(
        "memory of all",
        f"at most {mib(subject.memory)}",
        source,
        lambda: of_all("memory", memory, subject.memory, mib),
    )
    yield row("swap", "none", f"{source}, /proc/swaps", swap)
    yield row(
        "processors",
        f"at most {subject.cpus:g}",
        source,
        lambda: of_all("cpu", kernel.Groups.cpus, subject.cpus + 0.001, lambda value: f"{value:g}"),
    )

    def of_each(name: str, most: int, shown: Callable[[int], str] = str) -> Verdict:
        _, hard = kernel.limits(subject.pid)[name]
        return ("unlimited", False) if hard is None else (shown(hard), hard <= most)

    each = "/proc/PID/limits"

    def pids() -> Verdict:
        own_users = kernel.namespace(subject.pid, "user") != kernel.namespace("self", "user")
        if own_users and not kernel.Groups(subject.pid).has_one("pids"):  # then the limit of a user is that of all
            found, holds = of_each("Max processes", subject.pids)
            return f"{found}, of its user in its own namespace", holds
        return of_all("pids", lambda groups: groups.least("pids", "pids.max", "pids.max"), subject.pids, str)

    yield row("processes and threads", f"at most {subject.pids}", f"{source}, {each}", pids)
    yield row(
        "open files of each", f"at most {subject.files}", each, lambda: of_each("Max open files", subject.files)
    )
    yield row("core files", "none", each, lambda: of_each("Max core file size", 0))
    if not _is_counted(subject):  # then this is what there is instead
        most = f"at most {mib(subject.memory)}"
        yield row("memory of each", most, each, lambda: of_each("Max address space", subject.memory, mib))

    def score() -> Verdict:
        value = int(kernel.text_of(subject.pid, "oom_score_adj"))
        return str(value), value >= OOM_SCORE_ADJ

    claimed = f"at least {OOM_SCORE_ADJ}" if subject.has_engine else None
    yield row("choice when the host has no memory", claimed, "/proc/PID/oom_score_adj", score)


def _is_counted(subject: Subject) -> bool:
    """Whether its memory is counted as a whole."""
    try:
        return kernel.Groups(subject.pid).has_one("memory")
    except (OSError, ValueError):
        return False


def _devices(subject: Subject) -> Iterator[IsolationFact]:
    def names() -> Verdict:
        characters, blocks = kernel.devices(subject.pid)
        strange = [name for name in characters if name not in _CHARACTER_DEVICES]
        return ", ".join([*characters, *blocks]), not strange and not blocks

    yield row("device files", "only harmless ones", "/proc/PID/root/dev", names)
    if subject.has_engine:

        def rules() -> Verdict:
            groups = kernel.Groups(subject.pid)
            if groups.version("devices") != 1:
                raise ValueError("version 2 of control groups has them in a program that cannot be read")
            lists = groups.values("devices", "devices.list", "devices.list")
            lines = lists[0].splitlines() if lists else ["a *:* rwm"]
            is_open = any(line.startswith("a ") or line == "b *:* rwm" for line in lines)
            return "all" if is_open else f"{len(lines)} rules", not is_open

        yield row("use of devices", "only harmless ones", "control group", rules)


def _module(subject: Subject) -> IsolationFact:
    """AppArmor or SELinux: a claim only where the kernel itself says that it enforces."""
    try:
        label = kernel.text_of(subject.pid, "attr/current").strip("\0\n ")
    except OSError:
        label = ""
    enforced = label.endswith("(enforce)") or (":" in label and "unconfined" not in label and _selinux_enforces())
    found = label or "no security module answers"
    return IsolationFact(
        "security module", label if enforced else None, found, True if enforced else None, "/proc/PID/attr/current"
    )


def _selinux_enforces() -> bool:
    try:
        return Path("/sys/fs/selinux/enforce").read_text(encoding="ascii").strip() == "1"
    except OSError:
        return False


def _engine(subject: Subject, told: Mapping[str, Any]) -> Iterator[IsolationFact]:
    """What the engine says: not that it is so, but that it means the same container and no weaker one."""
    host = told.get("HostConfig") or {}
    state = told.get("State") or {}

    def said(name: str, claimed: str, found: object, holds: bool) -> IsolationFact:
        return IsolationFact(f"engine: {name}", claimed, str(found), holds, f"{subject.kind} inspect")

    def words(value: object) -> str:
        return ", ".join(str(each) for each in value) if isinstance(value, list) and value else "none"

    options = [str(option) for option in host.get("SecurityOpt") or []]
    open_ones = [option for option in options if "unconfined" in option or option.startswith("label=disable")]
    modes = {
        name: str(host.get(name) or "") for name in ("PidMode", "IpcMode", "UTSMode", "UsernsMode", "NetworkMode")
    }
    shared = [f"{name} {mode}" for name, mode in modes.items() if mode == "host" or mode.startswith("container:")]
    devices = [*(host.get("Devices") or []), *(host.get("DeviceRequests") or [])]
    privileged = bool(host.get("Privileged"))
    yield said("main process", str(subject.pid), state.get("Pid"), state.get("Pid") == subject.pid)
    yield said("privileged", "no", "yes" if privileged else "no", not privileged)
    yield said("capabilities added", "none", words(host.get("CapAdd")), not host.get("CapAdd"))
    yield said(
        "security options",
        "no-new-privileges, nothing unconfined",
        words(options),
        any(option.startswith("no-new-privileges") and not option.endswith("false") for option in options)
        and not open_ones,
    )
    yield said("network", "none", modes["NetworkMode"], modes["NetworkMode"] == "none")
    yield said("shared with the host", "nothing", words(shared), not shared)
    yield said("devices given", "none", words([_device(each) for each in devices]), not devices)


def _device(given: object) -> str:
    return str(given.get("PathOnHost") or given.get("Driver")) if isinstance(given, Mapping) else str(given)
