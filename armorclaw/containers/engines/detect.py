"""Which container engines this user can reach, and why not the others."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping

import attrs
import trio

from armorclaw.containers.engines.runtime import EngineRuntime
from armorclaw.errors import ArmorclawError

TRY_SECONDS = 5.0
"""An engine that takes longer to describe itself hangs, and must not hold up those who could use another."""


@attrs.frozen
class Candidate:
    """A place where an engine's socket may be.

    `usable` is whether agents can run there; `text` says what it is, or why it is not usable and what would help.
    """

    kind: str  # "docker" or "podman"; what answers there if anything does, else who uses that place
    socket_path: str
    source: str  # where the path comes from
    usable: bool
    text: str
    hint: str = ""


async def candidates(environ: Mapping[str, str] = os.environ) -> list[Candidate]:
    """Every usual place, best first, each tried: milliseconds, unless an engine hangs (TRY_SECONDS each)."""
    found: list[Candidate] = []
    for kind, path, source in _places(environ):
        if not any(path == other.socket_path for other in found):
            found.append(await _tried(kind, path, source))
    return found


def _places(environ: Mapping[str, str]) -> Iterator[tuple[str, str, str]]:
    if host := environ.get("DOCKER_HOST"):
        yield "docker", host, "DOCKER_HOST"
    if host := environ.get("CONTAINER_HOST"):
        yield "podman", host, "CONTAINER_HOST"
    runtime_dir = environ.get("XDG_RUNTIME_DIR")
    yield "docker", "/var/run/docker.sock", "Docker's usual place"
    if runtime_dir:
        yield "docker", f"{runtime_dir}/docker.sock", "rootless Docker's usual place"
        yield "podman", f"{runtime_dir}/podman/podman.sock", "rootless Podman's usual place"
    yield "podman", "/run/podman/podman.sock", "Podman's usual place"


async def _tried(kind: str, address: str, source: str) -> Candidate:
    scheme, found, rest = address.partition("://")
    path = rest if found else address
    if (found and scheme != "unix") or not path.startswith("/"):
        # The agent's socket could not be mounted from another machine.
        return Candidate(kind, address, source, False, "only a Unix socket of this machine will do")
    try:
        # An absent socket is the common case: no need to set up an HTTP client for it.
        if not await trio.Path(path).exists():
            return Candidate(kind, path, source, False, "there is no such socket", _start_hint(kind, path))
        with trio.fail_after(TRY_SECONDS):
            async with EngineRuntime.open(path) as runtime:
                return Candidate(runtime.kind, path, source, True, await runtime.check())
    except trio.TooSlowError:
        return Candidate(kind, path, source, False, f"it did not answer within {TRY_SECONDS:g} s")
    except PermissionError:
        return Candidate(kind, path, source, False, "this user may not look there")
    except ArmorclawError as error:
        return Candidate(kind, path, source, False, error.why or error.what, error.hint)


def _start_hint(kind: str, path: str) -> str:
    if kind == "docker":
        return "apt-get install docker.io"
    user = "" if path.startswith("/run/podman/") else "--user "
    return f"apt-get install podman && systemctl {user}enable --now podman.socket"
