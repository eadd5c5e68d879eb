"""Agents in containers of Docker or Podman."""

from __future__ import annotations

import math
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any, Self

import trio

from armorclaw.containers.engines.config import (
    LABEL_AGENT,
    LABEL_DIGEST,
    LABEL_INSTANCE,
    container_config,
    container_name,
)
from armorclaw.containers.engines.http import Engine, EngineFault
from armorclaw.containers.engines.logs import LastWords
from armorclaw.containers.printed import LogReader, LogWanted
from armorclaw.containers.runtime import Peer
from armorclaw.containers.spec import ContainerSpec, Exit, Found
from armorclaw.containers.usage import Usage, usage_told
from armorclaw.errors import ArmorclawError
from armorclaw.log import get_logger

log = get_logger(__name__)

CREATE_SECONDS = 30.0
REMOVE_SECONDS = 10.0
WORDS_SECONDS = 1.0  # for the end of its log, before a container is removed
WORDS_LINES = 1000
WORDS_AGENTS = 256  # the longest unheard-of is forgotten first
REMOVE_PAUSES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)  # seconds between attempts

_ID_IN_CGROUP = re.compile(r"(?:^|[/-])([0-9a-f]{64})(?=[./]|$)")


class EngineRuntime:
    """Runs each agent as one container of one engine; implements `runtime.Runtime`.

    It is open as long as its block, and serves on after the engine was restarted.
    """

    survives = True

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._live: set[str] = set()  # ids between launch or adopt and their removal
        self._last_words: dict[str, tuple[str, LastWords]] = {}  # by agent, with its last container that was removed

    @classmethod
    @asynccontextmanager
    async def open(cls, socket_path: str | Path) -> AsyncIterator[Self]:
        """Speak to the engine at `socket_path`. Raises `engine_unreachable` with the reason and the way out."""
        async with Engine.open(str(socket_path)) as engine:
            yield cls(engine)

    @property
    def kind(self) -> str:
        """ "docker" or "podman", as the engine says."""
        return self.engine.version.kind

    async def check(self) -> str:
        """Which engine, where, what confines its containers and, if so, which limits it cannot hold them to."""
        with _faults(f"the engine at {self.engine.socket_path} does not describe itself"):
            info = await self.engine.info()
        version = self.engine.version
        security = [_security_option(option) for option in info.get("SecurityOptions") or ()]
        facts = [*security, f"cgroup v{info.get('CgroupVersion') or '1'}"]
        if "seccomp" not in security:
            facts.append("NO seccomp")
        limits = (("MemoryLimit", "memory"), ("CpuCfsQuota", "cpu"), ("PidsLimit", "process"))
        facts += [f"NO {name} limit" for field, name in limits if info.get(field) is False]
        where = f"{version.kind.capitalize()} {version.engine} (API {version.api}) at {self.engine.socket_path}"
        return f"{where}: {', '.join(facts)}"

    async def check_image(self, image: str) -> str:
        """The id of an image that is here already, or `image_missing`."""
        return str((await self._image(image))["Id"])

    @asynccontextmanager
    async def launch(self, spec: ContainerSpec) -> AsyncIterator[EngineContainer]:
        """See `Runtime.launch`. A leftover of ours under the same name is removed first."""
        container = await self._create(spec)
        async with self._held(container, spec.name):
            with _faults(f"the engine cannot wait for {spec.name}"):
                async with self.engine.waiting(container, "next-exit") as ended:
                    yield EngineContainer(self.engine, container, spec.name, spec.uid, ended)

    @asynccontextmanager
    async def adopt(self, found: Found) -> AsyncIterator[EngineContainer]:
        """See `Runtime.adopt`. One that ended in between is adopted too: its `wait` tells at once."""
        facts = await self._inspect_ours(found)
        uid = int(str(facts["Config"]["User"]).partition(":")[0])
        async with self._held(found.id, found.name):
            with _faults(f"the engine cannot wait for {found.name}"):
                async with self.engine.waiting(found.id, "not-running") as ended:
                    yield EngineContainer(self.engine, found.id, found.name, uid, ended, adopted=True)

    async def survivors(self, instance: str) -> list[Found]:
        """Containers that carry this installation's label and that nobody here holds."""
        with _faults("the engine does not list its containers"):
            rows = await self.engine.containers(f"{LABEL_INSTANCE}={instance}")
        return [
            Found(row["Id"], labels[LABEL_AGENT], labels.get(LABEL_DIGEST, ""), row["State"] == "running")
            for row in rows
            if row["Id"] not in self._live and LABEL_AGENT in (labels := row.get("Labels") or {})
        ]

    async def discard(self, found: Found) -> None:
        """Kill and remove a survivor. Raises `denied` for a container that is not ours."""
        try:
            await self._inspect_ours(found)
        except ArmorclawError as error:
            if error.name == "container_not_found":
                return
            raise
        await self._remove(found.id)

    @asynccontextmanager
    async def logs(self, agent: str, container: str | None, wanted: LogWanted) -> AsyncIterator[LogReader]:
        """Of that container; of one that was removed, or without one, the end of the log of the last."""
        async with AsyncExitStack() as stack:
            reader: LogReader | None = None
            if container is not None:
                try:
                    reader = await stack.enter_async_context(self.engine.logs(container, wanted))
                except EngineFault as fault:
                    if fault.status != 404:
                        raise _refused(f"the engine does not tell what {agent} printed", fault) from fault
            last, words = self._last_words.get(agent, ("", LastWords()))
            yield reader or (words if container in (None, last) else LastWords()).read(wanted)

    # -- inside

    async def _keep_last_words(self, container: str, agent: str) -> None:
        """For with the container goes its log, and why an agent ended is read when it has."""
        words = LastWords()
        with trio.move_on_after(WORDS_SECONDS):
            try:
                async with self.engine.logs(container, LogWanted(tail=WORDS_LINES, timestamps=True)) as reader:
                    async for piece in reader:
                        words.add(piece)
            except (EngineFault, ArmorclawError) as error:
                log.debug("the end of a log is lost", agent=agent, why=str(error))
        self._last_words.pop(agent, None)
        self._last_words[agent] = container, words
        if len(self._last_words) > WORDS_AGENTS:
            del self._last_words[next(iter(self._last_words))]

    async def _image(self, image: str) -> dict[str, Any]:
        try:
            return await self.engine.image(image)
        except EngineFault as fault:
            if fault.status == 404:
                what = f"the image {image} is not on this machine"
                raise ArmorclawError("image_missing", what, hint=pull_hint(self.kind, image)) from fault
            raise _refused(f"the engine cannot say whether it has the image {image}", fault) from fault

    async def _create(self, spec: ContainerSpec) -> str:
        if spec.image is None:
            what = f"the agent {spec.name} names no image"
            raise ArmorclawError("invalid_params", what, why=f"{self.kind} runs images", hint='add image = "…"')
        image = await self._image(spec.image)
        config = container_config(spec, self.kind, (image.get("Config") or {}).get("Volumes") or ())
        await _check_mounts(spec)
        # Shielded, for a create that is hung up on may happen all the same, and nobody would know its id.
        with trio.CancelScope(shield=True, deadline=trio.current_time() + CREATE_SECONDS):
            try:
                return await self._create_once(spec, config)
            except EngineFault as fault:
                await self._make_way(spec, fault)
            with _faults(f"the engine refuses to create {container_name(spec)}"):
                return await self._create_once(spec, config)
        raise ArmorclawError(
            "engine_unreachable",
            f"the engine did not create {container_name(spec)}",
            why=f"no answer within {CREATE_SECONDS:g} s",
        )

    async def _create_once(self, spec: ContainerSpec, config: dict[str, Any]) -> str:
        container, warnings = await self.engine.create(container_name(spec), config)
        for warning in warnings:  # a setting the engine leaves out is a promise not kept: never silent
            log.warning("engine warns", agent=spec.name, container=container, warning=warning)
        return container

    async def _make_way(self, spec: ContainerSpec, fault: EngineFault) -> None:
        """Find out why a create failed (the status does not tell); return if it is worth another attempt."""
        name = container_name(spec)
        try:
            facts = await self.engine.inspect(name)
        except EngineFault:
            raise _refused(f"the engine refuses to create {name}", fault) from fault
        labels = facts["Config"].get("Labels") or {}
        ours = labels.get(LABEL_INSTANCE) == spec.instance and labels.get(LABEL_AGENT) == spec.name
        if not ours or facts["Id"] in self._live:
            why = "it is running under this bridge" if ours else "it is not a container of this bridge"
            hint = "" if ours else f"remove it: {self.kind} rm -f {name}"
            what = f"the container name {name} is taken"
            raise ArmorclawError("conflict", what, why=why, hint=hint) from fault
        log.info("removing a leftover", agent=spec.name, container=facts["Id"])
        await self._remove(facts["Id"])

    @asynccontextmanager
    async def _held(self, container: str, agent: str) -> AsyncIterator[None]:
        self._live.add(container)
        try:
            yield
        finally:
            with trio.CancelScope(shield=True, deadline=trio.current_time() + REMOVE_SECONDS) as scope:
                await self._keep_last_words(container, agent)
                await self._remove(container)
            if scope.cancelled_caught:
                log.error("container not removed", container=container, why=f"no answer in {REMOVE_SECONDS:g} s")
            self._live.discard(container)

    async def _remove(self, container: str) -> None:
        """Remove, or say in the log that it stays: the next launch or start of the bridge finds it by its label."""
        why = ""
        for pause in REMOVE_PAUSES:
            try:
                await self.engine.remove(container)
                return
            except EngineFault as fault:
                if fault.status == 404:
                    return
                why = fault.message  # Podman may refuse while the container is ending by itself
            except ArmorclawError as error:
                why = error.why
                break
            await trio.sleep(pause)
        log.error("container not removed", container=container, why=why)

    async def _inspect_ours(self, found: Found) -> dict[str, Any]:
        try:
            facts = await self.engine.inspect(found.id)
        except EngineFault as fault:
            what = f"the container {found.id[:12]} of {found.name} is gone"
            raise ArmorclawError("container_not_found", what, why=fault.message) from fault
        if (facts["Config"].get("Labels") or {}).get(LABEL_AGENT) != found.name:
            what = f"the container {found.id[:12]} is not an agent of this bridge"
            raise ArmorclawError("denied", what, why=f"its label {LABEL_AGENT} is not {found.name!r}")
        return facts


class EngineContainer:
    """One container; implements `runtime.Running`."""

    def __init__(
        self,
        engine: Engine,
        container: str,
        name: str,
        uid: int,
        ended: Callable[[], Awaitable[int]],
        *,
        adopted: bool = False,
    ) -> None:
        self.id = container
        self._engine = engine
        self._name = name
        self._uid = uid
        self._adopted = adopted
        self._ended: Callable[[], Awaitable[int]] | None = ended
        self._turn = trio.Lock()  # one reads the engine's answer, the others get what it read
        self._exit: Exit | None = None

    def __repr__(self) -> str:
        return f"<EngineContainer {self._name} {self.id[:12]}>"

    async def start(self) -> None:
        """See `Running.start`."""
        if self._adopted:
            await trio.lowlevel.checkpoint()
            return
        try:
            await self._engine.start(self.id)
        except EngineFault as fault:
            hint = "check the agent's command, image and mounts"
            raise ArmorclawError(
                "start_failed", f"the agent {self._name} does not start", why=fault.message, hint=hint
            ) from fault

    async def wait(self) -> Exit:
        """See `Running.wait`."""
        async with self._turn:
            if self._exit is None:
                self._exit = Exit.of(await self._status(), oom=await self._oom())
            return self._exit

    async def _status(self) -> int:
        if self._ended is not None:
            # The stream opened before the start can be read once; whoever is cancelled in it has used it up.
            ended, self._ended = self._ended, None
            return await ended()
        with _faults(f"the engine cannot wait for {self._name}"):
            async with self._engine.waiting(self.id, "not-running") as ended:
                return await ended()

    async def _oom(self) -> bool | None:
        try:
            killed = (await self._engine.inspect(self.id))["State"].get("OOMKilled")
        except EngineFault:  # removed by someone else
            return None
        # Podman keeps False through real cases (seen with runc on cgroup v1), so its False says nothing.
        return True if killed else (False if self._engine.version.kind == "docker" else None)

    def owns(self, peer: Peer) -> bool:
        """See `Running.owns`: by the container's id in the process's cgroup, and its uid as seen from the host."""
        process = Path("/proc") / str(peer.pid)
        try:
            innermost = {ids[-1] for line in (process / "cgroup").read_text().splitlines() if (ids := _ids(line))}
            uids = _outer_uids((process / "uid_map").read_text(), self._uid)
        except OSError:  # it has ended, or is hidden from us
            return False
        return innermost == {self.id} and peer.uid in uids

    async def stop(self, grace: float) -> None:
        """See `Running.stop`; engines count whole seconds, so `grace` is rounded up."""
        try:
            await self._engine.stop(self.id, math.ceil(grace))
        except EngineFault as fault:
            if await self._runs():
                raise _refused(f"the engine cannot stop {self._name}", fault) from fault

    async def usage(self) -> Usage:
        """See `Running.usage`."""
        try:
            return usage_told(await self._engine.stats(self.id))
        except EngineFault:  # it ended or was removed meanwhile
            return Usage()

    async def _runs(self) -> bool:
        try:
            return bool((await self._engine.inspect(self.id))["State"]["Running"])
        except EngineFault:
            return False


async def _check_mounts(spec: ContainerSpec) -> None:
    """Podman makes a directory, as root, of a source that is not there; Docker refuses it."""
    for source in (spec.socket_dir, *(mount.source for mount in spec.mounts)):
        if not await trio.Path(source).exists():
            what = f"the agent {spec.name} cannot be given {source}"
            raise ArmorclawError("engine_refused", what, why="there is no such file or directory")


def pull_hint(kind: str, image: str) -> str:
    """The exact command that gets `image`."""
    if re.fullmatch(r"(sha256:)?[0-9a-f]{12,64}", image):
        return "an id cannot be pulled: name the image by its repository"
    if kind == "podman":  # its API looks for short names on Docker Hub, its command line might ask or look elsewhere
        image = _qualified(image)
    return f"{kind} pull {image}"


def _qualified(image: str) -> str:
    first, slash, _ = image.partition("/")
    if slash and ("." in first or ":" in first or first == "localhost"):
        return image
    return f"docker.io/{image}" if slash else f"docker.io/library/{image}"


def _security_option(option: str) -> str:
    # "name=seccomp,profile=default" from Docker and Podman
    return dict(part.partition("=")[::2] for part in option.split(",")).get("name", option)


def _ids(line: str) -> list[str]:
    return _ID_IN_CGROUP.findall(line.rpartition(":")[2])


def _outer_uids(uid_map: str, uid: int) -> set[int]:
    """What `uid` inside is outside (Docker's userns-remap, rootless engines), from /proc/PID/uid_map."""
    found = set()
    for line in uid_map.splitlines():
        inside, outside, count = (int(number) for number in line.split())
        if inside <= uid < inside + count:
            found.add(outside + uid - inside)
    return found


@contextmanager
def _faults(what: str) -> Iterator[None]:
    """Name a refusal that has no nearer name."""
    try:
        yield
    except EngineFault as fault:
        raise _refused(what, fault) from fault


def _refused(what: str, fault: EngineFault) -> ArmorclawError:
    return ArmorclawError("engine_refused", what, why=fault.message)
