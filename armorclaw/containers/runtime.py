"""What the bridge asks of anything that can run an agent; engine, sandbox and process each implement it.

One generation of an agent is one `launch` (or `adopt`)::

    async with runtime.launch(spec) as running:      # created; its end cannot be missed from here on
        await running.start()
        end = await running.wait()
                                                     # removed, however the block was left

The caller opens its nursery inside the block, so that whatever waits on `running` ends before it is removed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from armorclaw.containers.printed import LogReader, LogWanted
from armorclaw.containers.resources.usage import Usage
from armorclaw.containers.spec import ContainerSpec, Exit, Found, News


class Peer(Protocol):
    """Who is at the other end of a Unix socket, as the kernel told at connect (`rpc.unix.PeerCredentials` is one)."""

    @property
    def pid(self) -> int: ...
    @property
    def uid(self) -> int: ...


class Running(Protocol):
    """One container, from its creation to its removal."""

    @property
    def id(self) -> str:
        """Of this generation alone: never used again for another."""
        ...

    async def start(self) -> None:
        """Let it run. Of an adopted one nothing is asked. Raises `start_failed`, `engine_unreachable`."""
        ...

    async def wait(self) -> Exit:
        """Until its main process has ended; any number of tasks may, and again after it ended or after a cancel.

        Raises `engine_unreachable` when the engine is lost: that is no word about the agent, which may live on.
        """
        ...

    async def main_pid(self) -> int | None:
        """The main process as the host numbers it; None while there is none. Raises `engine_unreachable`."""
        ...

    def owns(self, peer: Peer) -> bool:
        """Whether that process runs inside, under the agent's uid. Never blocks; in doubt False."""
        ...

    async def stop(self, grace: float) -> None:
        """Ask it to end (SIGTERM), after `grace` seconds make it (SIGKILL); returns when it has.

        Harmless if it has already.
        """
        ...

    def release(self) -> None:
        """Leaving its block will not end it: it stays, for `adopt`. Nothing changes where none survives."""

    async def usage(self) -> Usage:
        """What it uses now; nothing of one that does not run. Raises `engine_unreachable`."""
        ...


class Runtime(Protocol):
    """A way to run agents. Errors are ArmorclawError, by the names given at each call."""

    @property
    def kind(self) -> str:
        """ "docker", "podman", "sandbox" or "process"."""
        ...

    @property
    def survives(self) -> bool:
        """Whether containers outlive a bridge that was killed."""
        ...

    async def check(self) -> str:
        """One line of facts for people; raises `engine_unreachable` or `runtime_missing`, with the reason."""
        ...

    async def check_image(self, image: str) -> str:
        """The image's id. Raises `image_missing` with the command that gets it; nothing is ever pulled from here."""
        ...

    def launch(self, spec: ContainerSpec) -> AbstractAsyncContextManager[Running]:
        """Create it, not yet running; leaving removes it, also under cancellation, within 10 s.

        Raises `image_missing`, `conflict` (the name is taken by something not ours), `engine_refused`,
        `engine_unreachable`, `runtime_missing`.
        """
        ...

    def adopt(self, found: Found) -> AbstractAsyncContextManager[Running]:
        """Take over a survivor as it is; leaving removes it. Raises `container_not_found` when it is gone."""
        ...

    def logs(self, agent: str, container: str | None, wanted: LogWanted) -> AbstractAsyncContextManager[LogReader]:
        """What the agent printed, or with `follow` prints, in this container; without one, what is kept of the last.

        A runtime whose log goes on over generations follows it into those to come, and does not end by itself.
        Raises, also while it is read, `engine_unreachable`; `engine_refused`.
        """
        ...

    async def survivors(self, instance: str) -> list[Found]:
        """What an earlier life of this installation's bridge left, running or not; [] where nothing survives."""
        ...

    async def discard(self, found: Found) -> None:
        """Kill and remove a survivor; gone already is fine."""
        ...

    async def ping(self) -> None:
        """Returns when the engine answers; where there is none, at once. Raises `engine_unreachable` within 5 s."""

    def news(self, instance: str) -> AbstractAsyncContextManager[AsyncIterator[News]]:
        """What happens to this installation's containers and was not done here, from the moment the block is entered.

        It ends when the engine hangs up, and where there is no engine never begins to say anything. Raises
        `engine_unreachable`, also while it is read.
        """
        ...
