"""The few calls of the Docker Engine API that we make, over the engine's Unix socket; Podman speaks the same API.

Reference: https://docs.docker.com/reference/api/engine/ and, for Podman's half of it, its "compat" API. Only the
verbs written here can be sent: no exec, no volumes, no networks, no pull. What the engine refuses is raised as
`EngineFault`, to be named by who knows what was wanted; an engine that cannot be talked to is `engine_unreachable`.
"""

from __future__ import annotations

import errno
import json
import re
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, suppress
from typing import Any, Self
from urllib.parse import quote

import attrs
import httpx
import trio

from armorclaw.containers.engines.logs import EngineLog, before_tail
from armorclaw.containers.printed import LogWanted
from armorclaw.errors import ArmorclawError

OLDEST_API = "1.41"  # Docker 20.10 (Debian 12), Podman 4
NEWEST_API = "1.47"
CONNECT_SECONDS = 5.0
CALL_SECONDS = 30.0  # an engine that takes longer to answer a plain call is not well
START_SECONDS = 60.0  # start runs the container runtime: seconds on a busy machine
IMPORT_SECONDS = 120.0
PULL_SECONDS = 600.0
PING_SECONDS = 5.0
CLOSE_SECONDS = 5.0
STOP_EXTRA_SECONDS = 15.0  # past the grace, for the engine to kill and reap
EVENT_BYTES = 1024 * 1024  # of one event; it repeats all labels of its container
ENDING = "no such process"  # Podman reads /proc of a process that ends meanwhile, and calls it a fault of its own
ENDING_TRIES = 3
ENDING_PAUSE_S = 0.1

_CONTAINER = re.compile(r"[0-9a-zA-Z][0-9a-zA-Z_.-]{0,254}\Z")
_IMAGE = re.compile(r"[0-9a-zA-Z][0-9a-zA-Z_.:/@-]{0,511}\Z")


@attrs.frozen
class EngineFault(Exception):  # noqa: N818 - it is the engine's refusal, mapped to an error by the caller
    """The engine answered with an HTTP error.

    Podman answers 500 where Docker has 409 or 400: look at the state of things after a fault, not at `status`.
    """

    status: int
    message: str
    method: str
    path: str

    def __str__(self) -> str:
        return f"{self.method} {self.path}: {self.status} {self.message}"


@contextmanager
def faults(what: str) -> Iterator[None]:
    """Name a refusal that has no nearer name."""
    try:
        yield
    except EngineFault as fault:
        raise refused(what, fault) from fault


def refused(what: str, fault: EngineFault) -> ArmorclawError:
    """What an engine would not do, in its own words."""
    return ArmorclawError("engine_refused", what, why=fault.message)


@attrs.frozen
class Version:
    """What the engine says of itself, and the API version agreed on."""

    kind: str  # "docker" or "podman"
    engine: str
    api: str


class JsonLines:
    """Objects, one a line, from a stream that `read` reads; the end of the stream is theirs.

    Raises `engine_unreachable` for what is no object, or longer than EVENT_BYTES, and what `read` raises.
    """

    def __init__(self, read: Callable[[], Awaitable[bytes]]) -> None:
        self._read = read
        self._lines: deque[bytes] = deque()
        self._rest = b""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> dict[str, Any]:
        while True:
            while not self._lines:
                chunk = await self._read()
                if not chunk:
                    raise StopAsyncIteration
                *lines, self._rest = (self._rest + chunk).split(b"\n")
                self._lines.extend(lines)
                if len(self._rest) > EVENT_BYTES:
                    raise _misunderstood(f"an event of over {EVENT_BYTES} bytes")
            line = self._lines.popleft()
            if line.strip():
                return _object(line)


class Engine:
    """A client of one engine's socket. It holds no state of the engine: it serves on after the engine came back."""

    def __init__(self, socket_path: str, client: httpx.AsyncClient, version: Version | None = None) -> None:
        self.socket_path = socket_path
        self._client = client
        self._version = version

    @classmethod
    @asynccontextmanager
    async def open(cls, socket_path: str) -> AsyncIterator[Self]:
        """Agree on an API version with the engine at `socket_path`, and hang up on leaving.

        Raises `engine_unreachable`: no socket, no permission, no answer, or no API version in common.
        """
        # Each wait, log and event stream holds a connection for the life of a container: no ceiling for those.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=8)
        # no TLS over a Unix socket: else certificates are read all the same, some 40 ms in one step
        transport = httpx.AsyncHTTPTransport(uds=socket_path, limits=limits, trust_env=False, verify=False)
        timeout = httpx.Timeout(CALL_SECONDS, connect=CONNECT_SECONDS)
        async with httpx.AsyncClient(
            transport=transport,
            base_url="http://engine",
            trust_env=False,
            timeout=timeout,
            headers={"Accept-Encoding": "identity"},
        ) as client:
            engine = cls(socket_path, client)
            engine._version = _agree(await engine._json("GET", "/version"), socket_path)
            yield engine

    @property
    def version(self) -> Version:
        assert self._version is not None, "Engine.open() has not finished"
        return self._version

    # -- the engine

    async def info(self) -> dict[str, Any]:
        """GET /info: what this engine can do (security options, cgroup version, warnings)."""
        return dict(await self._json("GET", "/info"))

    async def ping(self) -> None:
        """GET /_ping: whether the engine answers, within PING_SECONDS."""
        await self._call("GET", "/_ping", timeout=httpx.Timeout(PING_SECONDS))

    @asynccontextmanager
    async def events(self, label: str) -> AsyncIterator[JsonLines]:
        """What happens to containers that carry `label` ("key=value"), from now on; it ends when the engine hangs up.

        What happened before is not told: look at the containers once inside the block.
        """
        filters = {"type": ["container"], "label": [label]}
        async with self._stream("GET", "/events", params={"filters": json.dumps(filters)}) as response:
            async with self._chunks(response, "GET /events") as read:
                yield JsonLines(read)

    # -- images

    async def image(self, reference: str) -> dict[str, Any]:
        """Inspect an image by name or id. EngineFault 404: there is none."""
        return dict(await self._json("GET", _image_path(reference, "json")))

    async def import_image(
        self, tar: AsyncIterator[bytes], *, repository: str, tag: str, changes: Iterable[str] = ()
    ) -> str:
        """Make an image of a root file system, as `docker import` does; its id. `changes` are Dockerfile lines."""
        params = [("fromSrc", "-"), ("repo", repository), ("tag", tag), *(("changes", line) for line in changes)]
        path, headers = "/images/create", {"Content-Type": "application/x-tar"}
        body = await self._call(
            "POST", path, params=params, content=tar, headers=headers, timeout=_within(IMPORT_SECONDS)
        )
        said = _progress(body, path)
        ids = [line["status"] for line in said if str(line.get("status", "")).startswith("sha256:")]
        return str(ids[-1] if ids else (await self.image(f"{repository}:{tag}"))["Id"])

    async def pull(self, reference: str) -> None:
        """Fetch an image from its registry; only ever because a person asked for it. EngineFault: it could not."""
        name, _, tag = reference.rpartition(":")
        path, params = "/images/create", {"fromImage": name, "tag": tag}
        _progress(await self._call("POST", path, params=params, timeout=_within(PULL_SECONDS)), path)

    async def commit(self, container: str, *, repository: str, tag: str) -> str:
        """Make an image of what is in a container, with its labels and its command; the image's id."""
        params = {"container": container, "repo": repository, "tag": tag}
        # Podman wants a body; empty, it changes nothing
        answer = await self._json("POST", "/commit", params=params, json={}, timeout=_within(IMPORT_SECONDS))
        return str(dict(answer)["Id"])

    async def tag_image(self, reference: str, repository: str, tag: str) -> None:
        """Give an image one more name; it is taken from the image that had it."""
        await self._call("POST", _image_path(reference, "tag"), params={"repo": repository, "tag": tag})

    async def remove_image(self, reference: str) -> None:
        """Remove an image nothing uses."""
        await self._call("DELETE", f"/images/{quote(reference, safe='/:@')}")

    # -- containers

    async def create(self, name: str, config: Mapping[str, Any]) -> tuple[str, list[str]]:
        """POST /containers/create: the id, and what the engine warns that it left out."""
        answer = dict(await self._json("POST", "/containers/create", params={"name": name}, json=config))
        return str(answer["Id"]), [str(warning) for warning in answer.get("Warnings") or ()]

    async def start(self, container: str) -> None:
        """Start; started already is fine."""
        await self._call("POST", _path(container, "start"), timeout=_within(START_SECONDS))

    async def stop(self, container: str, grace: int) -> None:
        """SIGTERM, after `grace` seconds SIGKILL; answers when it has ended. Ended already is fine."""
        timeout = _within(grace + STOP_EXTRA_SECONDS)
        await self._call("POST", _path(container, "stop"), params={"t": grace}, timeout=timeout)

    async def kill(self, container: str, signal: str = "SIGKILL") -> None:
        """Send a signal. A fault when it does not run (409 from Docker, 500 from Podman)."""
        await self._call("POST", _path(container, "kill"), params={"signal": signal})

    async def remove(self, container: str) -> None:
        """Kill it if it runs, and remove it with its anonymous volumes."""
        await self._call("DELETE", _path(container), params={"force": "true", "v": "true"})

    async def inspect(self, container: str) -> dict[str, Any]:
        """By id or name. EngineFault 404: there is none."""
        for _ in range(ENDING_TRIES - 1):
            try:
                return dict(await self._json("GET", _path(container, "json")))
            except EngineFault as fault:
                if ENDING not in fault.message:
                    raise
            await trio.sleep(ENDING_PAUSE_S)
        return dict(await self._json("GET", _path(container, "json")))

    async def containers(self, *labels: str) -> list[dict[str, Any]]:
        """All containers, running or not, that carry every one of `labels` ("key=value")."""
        params = {"all": "true", "filters": json.dumps({"label": labels})}
        return list(await self._json("GET", "/containers/json", params=params))

    @asynccontextmanager
    async def waiting(self, container: str, condition: str) -> AsyncIterator[Callable[[], Awaitable[int]]]:
        """Inside the block the wait is registered with the engine; awaiting the value gives the exit status.

        `condition` is "next-exit" for one that is not started yet ("not-running" would answer 0 at once) and
        "not-running" for one that may have ended already. Open it outside the nursery of the task that reads it.
        """
        path = _path(container, "wait")
        async with self._stream("POST", path, params={"condition": condition}) as response:

            async def result() -> int:
                body = await self._body(response, f"POST {path}")
                try:
                    return int(json.loads(body)["StatusCode"])
                except (ValueError, KeyError, TypeError) as broken:
                    # An engine that is shut down may end the stream after the head.
                    raise self._unreachable(f"POST {path}", "it hung up without an exit status") from broken

            yield result

    @asynccontextmanager
    async def logs(self, container: str, wanted: LogWanted) -> AsyncIterator[EngineLog]:
        """What it has written, with `follow` what it will have, until it ends. Nothing of one not started yet."""
        skip = 0
        if wanted.tail is not None and self.version.kind == "podman":
            # Its tail takes lines that were written in several steps apart, and loses some (seen with 4.3).
            async with self.logs(container, attrs.evolve(wanted, tail=None, follow=False)) as reader:
                skip = await before_tail(reader, wanted.tail)
            wanted = attrs.evolve(wanted, tail=None)
        path = _path(container, "logs")
        params = {"stdout": "1", "stderr": "1", "tail": "all" if wanted.tail is None else str(wanted.tail)}
        if wanted.since_ms is not None:
            params["since"] = f"{wanted.since_ms // 1000}.{wanted.since_ms % 1000:03d}"
        if wanted.follow:
            params["follow"] = "1"
        if wanted.timestamps:
            params["timestamps"] = "1"
        async with self._stream("GET", path, params=params) as response:
            async with self._chunks(response, f"GET {path}") as read:
                yield EngineLog(read, wanted, skip=skip)

    async def put_archive(self, container: str, folder: str, tar: AsyncIterator[bytes]) -> None:
        """Unpack a tar in a container, which need not run; folders that are missing are made, as root's."""
        headers = {"Content-Type": "application/x-tar"}
        request = {"params": {"path": folder}, "content": tar, "headers": headers}
        await self._call("PUT", _path(container, "archive"), timeout=_within(IMPORT_SECONDS), **request)

    async def stats(self, container: str) -> dict[str, Any]:
        """What it uses now; {} of one that does not run. Docker makes who asks twice within a second wait."""
        params = {"stream": "false", "one-shot": "true"}
        body = await self._call("GET", _path(container, "stats"), params=params)
        return dict(self._decoded(body, "GET stats")) if body.strip() else {}  # Podman has no words for it

    # -- HTTP

    async def _json(self, method: str, path: str, **request: Any) -> Any:
        return self._decoded(await self._call(method, path, **request), f"{method} {path}")

    def _decoded(self, body: bytes, call: str) -> Any:
        try:
            return json.loads(body)
        except ValueError as broken:
            raise self._unreachable(call, "its answer is not JSON; is this a container engine?") from broken

    async def _call(self, method: str, path: str, **request: Any) -> bytes:
        async with self._response(method, path, **request) as response:
            return await self._body(response, f"{method} {path}")

    @asynccontextmanager
    async def _stream(self, method: str, path: str, **request: Any) -> AsyncIterator[httpx.Response]:
        # Quiet is not dead: no read timeout, a cancel scope ends it.
        timeout = httpx.Timeout(CALL_SECONDS, connect=CONNECT_SECONDS, read=None)
        async with self._response(method, path, timeout=timeout, **request) as response:
            yield response

    @asynccontextmanager
    async def _response(self, method: str, path: str, **request: Any) -> AsyncIterator[httpx.Response]:
        """The answer once its head has come. Errors of the caller's block pass through as they are."""
        call = f"{method} {path}"
        async with AsyncExitStack() as stack:
            with self._mapped(call):
                asked = self._client.stream(method, self._url(path), **request)
                response = await stack.enter_async_context(asked)
            if response.status_code >= 400:
                body = await self._body(response, call)
                raise EngineFault(response.status_code, _message(body), method, path)
            yield response

    async def _body(self, response: httpx.Response, call: str) -> bytes:
        with self._mapped(call):
            return await response.aread()

    @asynccontextmanager
    async def _chunks(self, response: httpx.Response, call: str) -> AsyncIterator[Callable[[], Awaitable[bytes]]]:
        """A function that reads what comes next of the body; b"" at its end."""
        chunks = response.aiter_raw()

        async def read() -> bytes:
            with self._mapped(call):
                return await anext(chunks, b"")

        try:
            yield read
        finally:
            # Generators are stacked in there; one left halfway would leave those below to the garbage collector.
            with trio.CancelScope(shield=True, deadline=trio.current_time() + CLOSE_SECONDS):
                await response.aclose()
                with suppress(httpx.HTTPError, httpx.StreamError):
                    async for _ in chunks:
                        pass

    def _url(self, path: str) -> str:
        return f"/v{self._version.api}{path}" if self._version else path

    @contextmanager
    def _mapped(self, call: str) -> Iterator[None]:
        """Name the transport's errors; every read of a stream is inside one, as reads happen in others' blocks."""
        try:
            yield
        except httpx.TimeoutException as slow:
            raise self._unreachable(call, "no answer in time") from slow
        except httpx.TransportError as broken:
            why, hint = _reason(broken)
            raise self._unreachable(call, why, hint) from broken

    def _unreachable(self, call: str, why: str, hint: str = "") -> ArmorclawError:
        what = f"the container engine at {self.socket_path} does not serve {call}"
        return ArmorclawError("engine_unreachable", what, why=why, hint=hint)


def _object(line: bytes) -> dict[str, Any]:
    try:
        return dict(json.loads(line))
    except (ValueError, TypeError) as broken:
        raise _misunderstood("it is not a JSON object") from broken


def _misunderstood(why: str) -> ArmorclawError:
    return ArmorclawError("engine_unreachable", "what the container engine tells is not understood", why=why)


def _progress(body: bytes, path: str) -> list[dict[str, Any]]:
    """The lines an engine says while it works; EngineFault if one is an error, as the status was 200 long before."""
    said = [json.loads(line) for line in body.splitlines() if line.strip()]
    for line in said:
        if "error" in line:
            raise EngineFault(500, str(line["error"]), "POST", path)
    return said


def _path(container: str, verb: str = "") -> str:
    if not _CONTAINER.match(container):
        raise ValueError(f"not a container's id or name: {container[:80]!r}")
    return f"/containers/{container}/{verb}" if verb else f"/containers/{container}"


def _image_path(reference: str, verb: str = "") -> str:
    if not _IMAGE.match(reference) or ".." in reference:
        raise EngineFault(404, f"not an image's name: {reference[:80]!r}", "", "/images")
    return f"/images/{quote(reference, safe='/:@')}" + (f"/{verb}" if verb else "")


def _within(seconds: float) -> httpx.Timeout:
    return httpx.Timeout(CALL_SECONDS, connect=CONNECT_SECONDS, read=seconds)


def _message(body: bytes) -> str:
    try:
        said = json.loads(body)
        return str(said.get("message") or said["cause"])
    except (ValueError, KeyError, AttributeError):
        return body[:500].decode(errors="replace").strip() or "no reason given"


def _reason(broken: BaseException) -> tuple[str, str]:
    """Why, and what to do, from the OSError at the root of a transport error."""
    number = None
    cause: BaseException | None = broken
    while cause is not None:
        if isinstance(cause, OSError):
            number = cause.errno
        cause = cause.__cause__ or cause.__context__
    if number == errno.ENOENT:
        return "there is no such socket", ""
    if number == errno.ECONNREFUSED:
        return "nobody listens on that socket", ""
    if number in (errno.EACCES, errno.EPERM):
        return (
            "this user may not connect to it",
            "join the group that owns the socket (Docker: sudo usermod -aG docker $USER; it is as good as root)",
        )
    return str(broken) or "the connection broke", ""


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split("."))


def _agree(answer: Any, socket_path: str) -> Version:
    try:
        newest, oldest = str(answer["ApiVersion"]), str(answer.get("MinAPIVersion") or "1.12")
        agreed = min(newest, NEWEST_API, key=_numbers)
        fits = _numbers(agreed) >= max(_numbers(OLDEST_API), _numbers(oldest))
        engine = str(answer["Version"])
        parts = [str(part.get("Name", "")).lower() for part in answer.get("Components") or ()]
    except (KeyError, TypeError, ValueError, AttributeError) as broken:
        what = f"what listens at {socket_path} is no container engine"
        raise ArmorclawError("engine_unreachable", what, why="its /version is not understood") from broken
    if not fits:
        raise ArmorclawError(
            "engine_unreachable",
            f"the container engine at {socket_path} is not of an age that is supported",
            why=f"it speaks API {oldest} to {newest}, armorclaw {OLDEST_API} to {NEWEST_API}",
            hint="use Docker 20.10 or newer, or Podman 4 or newer",
        )
    return Version("podman" if any("podman" in part for part in parts) else "docker", engine, agreed)
