"""A homeserver that does as it is told: real HTTP on loopback, any answer, however wrong."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import attrs
import h11
import trio


@attrs.frozen
class Asked:
    """One request as it came: `target` raw, as on the wire."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes

    @property
    def path(self) -> str:
        return self.target.partition("?")[0]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@attrs.frozen
class Raw:
    """Bytes to send instead of a proper answer; then the connection is closed."""

    data: bytes
    pause: float = 0.0
    """Seconds between two bytes; 0 sends all at once."""
    hold: float = 0.0
    """Seconds until the connection is closed then."""


@attrs.frozen
class Reply:
    """An answer: a JSON value, or bytes as they are."""

    content: Any = attrs.field(factory=dict)
    status: int = 200
    headers: dict[str, str] = attrs.field(factory=dict)

    @property
    def body(self) -> bytes:
        return self.content if isinstance(self.content, bytes) else json.dumps(self.content).encode()


def refusal(status: int, errcode: str, **more: Any) -> Reply:
    """What a homeserver says when it will not."""
    return Reply({"errcode": errcode, "error": errcode.lower(), **more}, status=status)


Script = Callable[[Asked], Awaitable[Reply | Raw]]


@attrs.define
class FakeHomeserver:
    """`script` answers; `asked` remembers every request, `connections` counts those that were opened."""

    url: str
    script: Script
    asked: list[Asked] = attrs.field(factory=list)
    connections: int = 0

    def to(self, word: str) -> list[Asked]:
        """The requests whose path holds `word`."""
        return [one for one in self.asked if word in one.path]


@asynccontextmanager
async def fake_homeserver(script: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[FakeHomeserver]:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    fake = FakeHomeserver(f"http{'s' if tls else ''}://127.0.0.1:{port}", script)

    async def serve(plain: trio.SocketStream) -> None:
        fake.connections += 1
        stream: trio.abc.Stream = plain
        if tls is not None:
            stream = trio.SSLStream(plain, tls, server_side=True, https_compatible=True)
        async with stream:
            try:
                while await _answer(fake, stream, h11.Connection(h11.SERVER)):
                    pass
            except (trio.BrokenResourceError, h11.RemoteProtocolError):
                pass  # the client went away, perhaps in the middle of a request

    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, serve, [listener])
        yield fake
        nursery.cancel_scope.cancel(reason="the fake homeserver is no longer needed")


async def _answer(fake: FakeHomeserver, stream: trio.abc.Stream, http: h11.Connection) -> bool:
    """One request and its answer; whether the connection stays."""
    request, body = None, b""
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(bytes(await stream.receive_some()))
        elif isinstance(event, h11.Request):
            request = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            break
        else:
            return False
    assert request is not None
    headers = {name.decode(): value.decode() for name, value in request.headers}
    asked = Asked(request.method.decode(), request.target.decode(), headers, body)
    fake.asked.append(asked)
    reply = await fake.script(asked)
    if isinstance(reply, Raw):
        step = 1 if reply.pause else max(len(reply.data), 1)
        for start in range(0, len(reply.data), step):
            await stream.send_all(reply.data[start : start + step])
            await trio.sleep(reply.pause)
        await trio.sleep(reply.hold)
        return False
    given = {"content-type": "application/json", "content-length": str(len(reply.body)), **reply.headers}
    response = h11.Response(status_code=reply.status, headers=list(given.items()))
    parts = (response, h11.Data(data=reply.body), h11.EndOfMessage())
    await stream.send_all(b"".join(http.send(part) or b"" for part in parts))
    return True
