"""What an engine is told about a container: every hardening default in one place, as the Engine API wants it.

Each field is asserted in tests/containers, from `inspect` and from inside. Reference:
https://docs.docker.com/reference/api/engine/version/v1.41/#tag/Container/operation/ContainerCreate
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from armorclaw.containers.spec import SOCKET_DIR, ContainerSpec

LABEL_INSTANCE = "armorclaw.instance"
LABEL_AGENT = "armorclaw.agent"
LABEL_DIGEST = "armorclaw.spec-hash"
LABEL_PROTOCOL = "armorclaw.protocol"
PROTOCOL = "1"

OOM_SCORE_ADJ = 500  # when the host itself runs out of memory, agents go before the bridge
PODMAN_NPROC = 4096  # processes of the agent's uid; see _ulimits


def container_name(spec: ContainerSpec) -> str:
    """One name per agent, so that an engine never runs two generations of it."""
    return f"armorclaw-{spec.instance}-{spec.name}"


def container_config(spec: ContainerSpec, kind: str, volumes: Iterable[str] = ()) -> dict[str, Any]:
    """The body of POST /containers/create for `kind` "docker" or "podman"; `volumes` are those the image declares."""
    config: dict[str, Any] = {
        "Image": spec.image,
        "User": f"{spec.uid}:{spec.gid}",
        "Env": [f"{key}={value}" for key, value in sorted(spec.env.items())],
        "Tty": False,
        "OpenStdin": False,
        "NetworkDisabled": True,
        "StopSignal": "SIGTERM",  # an image may name another, which our agent library would not know
        "Labels": {
            LABEL_INSTANCE: spec.instance,
            LABEL_AGENT: spec.name,
            LABEL_DIGEST: spec.digest(),
            LABEL_PROTOCOL: PROTOCOL,
        },
        "HostConfig": host_config(spec, kind, volumes),
    }
    if spec.command:  # all of argv: an entry point of the image would prefix it
        config |= {"Entrypoint": [spec.command[0]], "Cmd": list(spec.command[1:])}
    return config


def host_config(spec: ContainerSpec, kind: str, volumes: Iterable[str] = ()) -> dict[str, Any]:
    """The part that confines it."""
    limits = spec.limits
    config: dict[str, Any] = {
        # no way to more rights; the engine's default seccomp profile applies as none is named
        "Privileged": False,
        "CapAdd": [],
        "CapDrop": ["ALL"],
        "GroupAdd": [],
        "SecurityOpt": ["no-new-privileges"],
        "Devices": [],
        # nothing shared with the host; the door is the socket
        "NetworkMode": "none",
        "PidMode": "",
        "IpcMode": "none",
        "UTSMode": "",
        "UsernsMode": "",
        "CgroupnsMode": "private",  # Podman 4.3 leaves it out on cgroup v1
        "PublishAllPorts": False,
        # files: its image and mounts read-only, but for its data; /tmp is small, and nothing in it can be executed
        "ReadonlyRootfs": True,
        "Tmpfs": _tmpfs(limits.tmp, kind, volumes),
        "Mounts": [
            _mount(str(spec.socket_dir), SOCKET_DIR),
            *(_mount(str(mount.source), mount.target, mount.writable) for mount in spec.mounts),
        ],
        # limits
        "Memory": limits.memory,
        "MemorySwap": limits.memory,  # memory and swap together: no swap
        "NanoCpus": math.floor(limits.cpus * 1_000_000_000),
        "PidsLimit": limits.pids,
        "Ulimits": _ulimits(limits.files, kind),
        "OomScoreAdj": OOM_SCORE_ADJ,
        # one supervisor, ours: the engine neither restarts it nor removes it with its exit status
        "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
        "AutoRemove": False,
    }
    if kind == "docker":
        config["Init"] = True  # reaps orphans; Podman's needs catatonit, which is often not installed
        config["LogConfig"] = {"Type": "json-file", "Config": {"max-size": "1m", "max-file": "2"}}
    else:  # Podman has one file, and begins it anew when it is full; whoever follows may miss what was in it
        config["LogConfig"] = {"Type": "k8s-file", "Config": {"max-size": "2m"}}
    return config


def _tmpfs(size: int, kind: str, volumes: Iterable[str]) -> dict[str, str]:
    options = "rw,noexec,nosuid,nodev"
    tmpfs = {"/tmp": f"{options},size={size}"}  # noqa: S108 - the container's own
    if kind == "podman":
        # With a read-only root Podman adds these two by itself: without a size, and programs in them may be run.
        tmpfs |= dict.fromkeys(("/run", "/var/tmp"), f"{options},size=1m,mode=0755,notmpcopyup")  # noqa: S108
    # For a volume an image declares, engines make a place on the host's disk: writable, executable, without limit.
    return dict.fromkeys(volumes, f"{options},size={size}") | tmpfs


def _mount(source: str, target: str, writable: bool = False) -> dict[str, Any]:
    # As a mount, unlike as a bind, a missing source is an error instead of a directory made by root.
    return {
        "Type": "bind",
        "Source": source,
        "Target": target,
        "ReadOnly": not writable,
        "BindOptions": {"Propagation": "rprivate"},
    }


def _ulimits(files: int, kind: str) -> list[dict[str, Any]]:
    limits = [("nofile", files), ("core", 0)]
    if kind == "podman":
        # Unless told, Podman raises nproc to its own default, which fails without CAP_SYS_RESOURCE. It counts per
        # uid over the whole host, so it is set wide: PidsLimit is the limit.
        limits.append(("nproc", PODMAN_NPROC))
    return [{"Name": name, "Soft": value, "Hard": value} for name, value in limits]
