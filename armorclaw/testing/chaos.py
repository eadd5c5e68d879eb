"""Harm on demand, for tests of agents: kill one, lose an answer of the homeserver, have it go away."""

from __future__ import annotations

import os
import signal
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from armorclaw.errors import ArmorclawError
from armorclaw.testing.handles import AgentHandle
from armorclaw.testing.homeserver import Homeserver
from armorclaw.testing.proxy import FaultProxy, How

if TYPE_CHECKING:
    from armorclaw.attached import AttachedAgent


class Network:
    """What both forms of `chaos` can do to the way between the bridge and its homeserver."""

    def __init__(self, proxy: FaultProxy) -> None:
        self.proxy = proxy

    def lose_next_response(self, kind: str = "PUT send", *, times: int = 1) -> None:
        """The homeserver carries out the next request of this kind, and the bridge never hears of it.

        The kind is a method and what the request is about, as in `PUT send` (a message) or `GET sync`.
        """
        self.proxy.lose_next_response(kind, times=times)

    def pause(self, homeserver: Homeserver, how: How = "silent") -> AbstractContextManager[None]:
        """For the length of a `with` block the homeserver is away, for this bridge alone.

        `silent` answers nothing until it is back, `down` refuses connections, `bad_gateway` answers 502 at once.
        """
        if homeserver.url != self.proxy.upstream:
            raise ArmorclawError("invalid_params", f"the bridge of this test is not on {homeserver.url}")
        return self.proxy.pause(how)


class Chaos(Network):
    """The form for a bridge that is a process of its own."""

    def kill(self, agent: AgentHandle) -> None:
        """SIGKILL to all processes of the agent at once; the bridge starts it again as it does after any crash.

        Returns when they are gone: `agent.wait_ready(generation=…)` waits for the next life.
        """
        bridge = agent.bridge
        container = bridge.call("containers.inspect", name=agent.name)["container_id"]
        if container is None or bridge.process is None:
            raise ArmorclawError("not_found", f"agent {agent.name} does not run now")
        victims = _processes(agent.name, container, bridge.process.pid)
        if not victims:
            raise ArmorclawError("not_found", f"no process of agent {agent.name} can be seen from here")
        for pid in victims:
            _kill(pid)


class TrioChaos(Network):
    """The form for a bridge in the test's own Trio loop."""

    async def kill(self, agent: AttachedAgent) -> None:
        """End all that the agent does, wherever it is, and have it begin anew; what it had in hand comes again."""
        nursery = agent._nursery
        if nursery is None:
            raise ArmorclawError("not_found", f"agent {agent.name} does not run now")
        nursery.cancel_scope.cancel(reason="the agent is killed by a test")
        await trio.lowlevel.checkpoint()


def _processes(agent: str, container: str, bridge: int) -> list[int]:
    """Those that run for an agent: below the bridge, or in the control group of its container."""
    found = []
    mark = f"ARMORCLAW_AGENT={agent}".encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                ours = mark in (entry / "environ").read_bytes().split(b"\0")
                if ours and (_descends(int(entry.name), bridge) or container in (entry / "cgroup").read_text()):
                    found.append(int(entry.name))
            except OSError:
                continue  # it has ended, or is another user's
    return found


def _descends(pid: int, ancestor: int) -> bool:
    while pid > 1:
        if pid == ancestor:
            return True
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return False


def _kill(pid: int) -> None:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        pass  # it went with another of them
