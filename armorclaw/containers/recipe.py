"""From what is declared of an agent to what is run: its files, its environment, its limits."""

from __future__ import annotations

import os
from pathlib import Path

import trio

from armorclaw import config
from armorclaw.containers.agent_socket import AgentSocket
from armorclaw.containers.resources.data import DATA, check_room, make_data_folder
from armorclaw.containers.runtime import Runtime
from armorclaw.containers.snapshot import snapshot_code
from armorclaw.containers.spec import SOCKET_DIR, ContainerSpec, Limits, Mount
from armorclaw.containers.virtualenv import find_virtualenv
from armorclaw.errors import ArmorclawError

LIBRARY = "/opt/armorclaw"
"""Where the agent library appears inside."""

CODE = "/agent"
"""Where an agent's own code appears inside."""

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where programs are looked for inside, whatever an image says."""


def configs_folder(state_dir: Path, agent: str) -> Path:
    """What one agent sees at CONFIGS_INSIDE. It is mounted: put files into it, never replace the folder itself."""
    return config.configs_root(state_dir) / agent


def make_configs_folder(state_dir: Path, agent: str, uid: int) -> Path:
    """Make it, or give it the modes it is to have: readable by the agent, and by nobody else of this host. Blocking.

    A bridge run by root gives it to the agent's group. Any other cannot: its folders are open to all, in one that
    only it can pass, except to an agent that has its folder mounted. So the files in it may be open to all (0644).
    Raises `storage_failed`.
    """
    folder = configs_folder(state_dir, agent)
    is_root = os.geteuid() == 0
    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder.parent.chmod(0o711 if is_root else 0o700)  # a sandbox makes its mounts as the agent's uid
        shared = configs_folder(state_dir, config.SHARED_CONFIGS)
        for place in (folder / config.SHARED_INSIDE, shared):  # where it is mounted, and what
            place.mkdir(exist_ok=True)
            place.chmod(0o755)
        if is_root:
            os.chown(folder, 0, uid)
        folder.chmod(0o750 if is_root else 0o755)
    except OSError as error:
        raise ArmorclawError(
            "storage_failed", f"agent {agent!r} cannot have a folder of its own", why=error.strerror or ""
        ) from error
    return folder


async def spec_of(
    declared: config.Agent, runtime: Runtime, socket: AgentSocket, *, instance: str, state_dir: Path, library: Path
) -> ContainerSpec:
    """What is to run, down to the id of the image and the hash of the code: its digest changes when any does.

    `library` is what `snapshot_library` made.

    Raises `image_missing`, `engine_unreachable`, `storage_failed`, `quota_exceeded` (its data folder is over the hard
    limit), and what copying the code or looking at its virtual environment raises.
    """
    configs = await trio.to_thread.run_sync(make_configs_folder, state_dir, declared.name, socket.uid)
    shared = configs_folder(state_dir, config.SHARED_CONFIGS)
    data = await trio.to_thread.run_sync(make_data_folder, state_dir, declared.name, socket.uid)
    await trio.to_thread.run_sync(check_room, declared, state_dir)
    mounts = [
        Mount(library, LIBRARY),
        Mount(configs, config.CONFIGS_INSIDE),  # what is attached while it runs appears at once
        Mount(shared, f"{config.CONFIGS_INSIDE}/{config.SHARED_INSIDE}"),
        Mount(data, DATA, writable=True),
    ]
    command = declared.command
    if declared.code is not None:
        code = await trio.to_thread.run_sync(snapshot_code, declared.code, state_dir)
        mounts.append(Mount(code, CODE))
        is_file = await trio.Path(declared.code).is_file()
        command = command or ("python3", f"{CODE}/{declared.code.name if is_file else 'main.py'}")
    env = environment(declared, socket.inside)
    if declared.python is not None:
        found = await trio.to_thread.run_sync(find_virtualenv, declared.python, socket.uid, state_dir)
        mounts += found.mounts
        env |= found.variables(env["PATH"])
    limits = declared.limits
    return ContainerSpec(
        instance=instance,
        name=declared.name,
        image=None if declared.image is None else await runtime.check_image(declared.image),
        command=command,
        env=env,
        uid=socket.uid,
        gid=socket.uid,
        socket_dir=socket.directory,
        mounts=tuple(mounts),
        limits=Limits(limits.memory, limits.cpus, limits.pids, limits.files, limits.tmp),
    )


def environment(declared: config.Agent, socket: str) -> dict[str, str]:
    """The variables an agent finds, as docs/agent.md lists them. None of them is a secret."""
    room = next((room for room in declared.rooms if room.startswith("!")), None)
    return {
        "PATH": PATH,
        "HOME": "/tmp",  # noqa: S108 - its own
        "LANG": "C.UTF-8",
        "PYTHONPATH": LIBRARY,
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        **declared.env,
        "ARMORCLAW_AGENT": declared.name,
        "ARMORCLAW_SOCKET": socket,
        "ARMORCLAW_BRIDGE_SOCKET": socket,
        "ARMORCLAW_CONFIG_DIR": config.CONFIGS_INSIDE,
        "ARMORCLAW_DATA_DIR": DATA,
        **({"ARMORCLAW_MATRIX_ROOM": room} if room else {}),
        **({"ARMORCLAW_EGRESS_SOCKET": f"{SOCKET_DIR}/{config.EGRESS}.sock"} if declared.egress else {}),
    }
