"""From what is declared of an agent to what is run: its files, its environment, its limits."""

from __future__ import annotations

from pathlib import Path

import trio

from armorclaw import config
from armorclaw.containers.agent_socket import AgentSocket
from armorclaw.containers.runtime import Runtime
from armorclaw.containers.snapshot import snapshot_code, snapshot_library
from armorclaw.containers.spec import ContainerSpec, Limits, Mount

LIBRARY = "/opt/armorclaw"
"""Where the agent library appears inside."""

CODE = "/agent"
"""Where an agent's own code appears inside."""


async def spec_of(
    declared: config.Agent, runtime: Runtime, socket: AgentSocket, *, instance: str, state_dir: Path
) -> ContainerSpec:
    """What is to run, down to the id of the image and the hash of the code: its digest changes when any does.

    Raises `image_missing`, `engine_unreachable`, and what copying the code raises.
    """
    library = await trio.to_thread.run_sync(snapshot_library, state_dir)
    mounts = [Mount(library, LIBRARY)]
    command = declared.command
    if declared.code is not None:
        code = await trio.to_thread.run_sync(snapshot_code, declared.code, state_dir)
        mounts.append(Mount(code, CODE))
        is_file = await trio.Path(declared.code).is_file()
        command = command or ("python3", f"{CODE}/{declared.code.name if is_file else 'main.py'}")
    limits = declared.limits
    return ContainerSpec(
        instance=instance,
        name=declared.name,
        image=None if declared.image is None else await runtime.check_image(declared.image),
        command=command,
        env=environment(declared, socket.inside),
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
        "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
        "HOME": "/tmp",  # noqa: S108 - its own
        "LANG": "C.UTF-8",
        "PYTHONPATH": LIBRARY,
        "PYTHONUNBUFFERED": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        **declared.env,
        "ARMORCLAW_AGENT": declared.name,
        "ARMORCLAW_SOCKET": socket,
        "ARMORCLAW_BRIDGE_SOCKET": socket,
        **({"ARMORCLAW_MATRIX_ROOM": room} if room else {}),
    }
