"""Agents in containers of Docker or Podman."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
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
from armorclaw.containers.engines.container import EngineContainer
from armorclaw.containers.engines.events import EngineNews, Marks
from armorclaw.containers.engines.http import Engine, EngineFault, faults, refused
from armorclaw.containers.engines.logs import LastWords
from armorclaw.containers.printed import LogReader, LogWanted
from armorclaw.containers.spec import ContainerSpec, Found, News
from armorclaw.errors import ArmorclawError
from armorclaw.log import get_logger

log = get_logger(__name__)

CREATE_SECONDS = 30.0
REMOVE_SECONDS = 10.0
WORDS_SECONDS = 1.0  # for the end of its log, before a container is removed
WORDS_LINES = 1000
WORDS_AGENTS = 256  # the longest unheard-of is forgotten first
REMOVE_PAUSES = (0.05, 0.1, 0.2, 0.4, 0.8, 1.6)  # seconds between attempts


class EngineRuntime:
    """Runs each agent as one container of one engine; implements `runtime.Runtime`.

    It is open as long as its block, and serves on after the engine was restarted.
    """

    survives = True

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._live: set[str] = set()  # ids between launch or adopt and their removal
        self._marks = Marks()
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
        with faults(f"the engine at {self.engine.socket_path} does not describe itself"):
            info = await self.engine.info()
        version = self.engine.version
        security = [_security_option(option) for option in info.get("SecurityOptions") or ()]
        facts = [*security, f"cgroup v{info.get('CgroupVersion') or '1'}"]
        if "seccomp" not in security:
            facts.append("NO seccomp")
        limits = (("MemoryLimit", "memory"), ("CpuCfsQuota", "cpu"), ("PidsLimit", "process"))
        facts += [f"NO {name} limit" for field, name in limits if info.get(field) is False]
        if info.get("Rootless") and str(info.get("CgroupVersion")) == "1":  # it says the contrary
            facts.append("NO memory, processor, process and open-file limits: rootless with cgroup v1 sets none")
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
            with faults(f"the engine cannot wait for {spec.name}"):
                async with self.engine.waiting(container, "next-exit") as ended:
                    yield EngineContainer(self.engine, self._marks, container, spec.name, spec.uid, ended)

    @asynccontextmanager
    async def adopt(self, found: Found) -> AsyncIterator[EngineContainer]:
        """See `Runtime.adopt`. One that ended in between is adopted too: its `wait` tells at once."""
        facts = await self._inspect_ours(found)
        uid = int(str(facts["Config"]["User"]).partition(":")[0])
        async with self._held(found.id, found.name):
            with faults(f"the engine cannot wait for {found.name}"):
                async with self.engine.waiting(found.id, "not-running") as ended:
                    who = (found.id, found.name, uid)
                    running = EngineContainer(self.engine, self._marks, *who, ended, adopted=True)
                    await running.main_pid()
                    yield running

    async def survivors(self, instance: str) -> list[Found]:
        """Containers that carry this installation's label and that nobody here holds."""
        with faults("the engine does not list its containers"):
            rows = await self.engine.containers(f"{LABEL_INSTANCE}={instance}")
        return [
            Found(
                row["Id"],
                labels[LABEL_AGENT],
                labels.get(LABEL_DIGEST, ""),
                row["State"] == "running",
                row["Created"] * 1000 if isinstance(row.get("Created"), int) else None,
            )
            for row in rows
            if row["Id"] not in self._live and LABEL_AGENT in (labels := row.get("Labels") or {})
        ]

    async def ping(self) -> None:
        """See `Runtime.ping`."""
        with faults(f"the engine at {self.engine.socket_path} is not well"):
            await self.engine.ping()

    @asynccontextmanager
    async def news(self, instance: str) -> AsyncIterator[AsyncIterator[News]]:
        """See `Runtime.news`."""
        with faults("the engine does not tell of its containers"):
            async with self.engine.events(f"{LABEL_INSTANCE}={instance}") as said:
                yield EngineNews(said, self._live, self._marks)

    async def discard(self, found: Found) -> None:
        """Kill and remove a survivor. Raises `denied` for a container that is not ours."""
        try:
            await self._inspect_ours(found)
        except ArmorclawError as error:
            if error.name == "container_not_found":
                return
            raise
        if found.id not in self._live:  # else somebody has it since the list was made
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
                        raise refused(f"the engine does not tell what {agent} printed", fault) from fault
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
            raise refused(f"the engine cannot say whether it has the image {image}", fault) from fault

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
            with faults(f"the engine refuses to create {container_name(spec)}"):
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
            raise refused(f"the engine refuses to create {name}", fault) from fault
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
            if container not in self._marks.staying:
                await self._end(container, agent)
            self._live.discard(container)
            self._marks.forget(container)

    async def _end(self, container: str, agent: str) -> None:
        self._marks.ending.add(container)
        with trio.CancelScope(shield=True, deadline=trio.current_time() + REMOVE_SECONDS) as scope:
            await self._keep_last_words(container, agent)
            await self._remove(container)
        if scope.cancelled_caught:
            log.error("container not removed", container=container, why=f"no answer in {REMOVE_SECONDS:g} s")

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
            if fault.status != 404:
                what = f"the engine does not show the container {found.id[:12]} of {found.name}"
                raise refused(what, fault) from fault
            what = f"the container {found.id[:12]} of {found.name} is gone"
            raise ArmorclawError("container_not_found", what, why=fault.message) from fault
        if (facts["Config"].get("Labels") or {}).get(LABEL_AGENT) != found.name:
            what = f"the container {found.id[:12]} is not an agent of this bridge"
            raise ArmorclawError("denied", what, why=f"its label {LABEL_AGENT} is not {found.name!r}")
        return facts


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
    if image.startswith("armorclaw-") and "/" not in image:  # one of those that are made here, and in no registry
        return f"armorclaw image build -r requirements.txt --tag {image}"
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
