"""A homeserver's media and nothing else, over real HTTP: what comes is counted, and nothing is buffered."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

import attrs
import h11
import trio


@attrs.define
class Upload:
    """One that began; `complete` when its last byte came. `data` is what came, as far as it is kept."""

    target: str
    headers: dict[str, str]
    size: int = 0
    complete: bool = False
    data: bytearray = attrs.field(factory=bytearray)


@attrs.define
class Download:
    """What is answered to a download: pieces as they are given, then the end, or a cut."""

    pieces: Iterable[bytes] = ()
    length: int | None = None
    status: int = 200
    headers: dict[str, str] = attrs.field(factory=dict)
    cut: bool = False
    pause: float = 0.0


@attrs.define
class MediaServer:
    url: str = ""
    uploads: list[Upload] = attrs.field(factory=list)
    asked: list[tuple[str, dict[str, str]]] = attrs.field(factory=list)
    """Every GET but those of versions: target and headers."""
    files: dict[str, Download] = attrs.field(factory=dict)
    """By media id."""
    largest: int | None = None
    old: bool = False
    """Knows no authenticated media."""
    answer: tuple[int, dict[str, Any]] = (200, {"content_uri": "mxc://hs.test/kept"})
    """To an upload."""
    keep: bool = True
    sent: int = 0
    """Bytes of downloads that were written."""
    changed: trio.Event = attrs.field(factory=trio.Event)

    def note(self) -> None:
        changed, self.changed = self.changed, trio.Event()
        changed.set()


@asynccontextmanager
async def media_server() -> AsyncIterator[MediaServer]:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    server = MediaServer(f"http://127.0.0.1:{listener.socket.getsockname()[1]}")

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            try:
                while await _answer(server, stream, h11.Connection(h11.SERVER)):
                    pass
            except (trio.BrokenResourceError, h11.RemoteProtocolError):
                pass  # the client went away, perhaps in the middle of a request
            finally:
                server.note()

    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, serve, [listener])
        yield server
        nursery.cancel_scope.cancel(reason="the media server is no longer needed")


async def _answer(server: MediaServer, stream: trio.SocketStream, http: h11.Connection) -> bool:
    request, upload = None, None
    while True:
        event = http.next_event()
        if event is h11.NEED_DATA:
            http.receive_data(await stream.receive_some(65536))
        elif isinstance(event, h11.Request):
            request = event
            headers = {name.decode(): value.decode() for name, value in event.headers}
            if event.method == b"POST":
                upload = Upload(event.target.decode(), headers)
                server.uploads.append(upload)
                server.note()
            elif not event.target.endswith(b"/versions"):
                server.asked.append((event.target.decode(), headers))
        elif isinstance(event, h11.Data):
            assert upload is not None
            upload.size += len(event.data)
            if server.keep:
                upload.data += event.data
            server.note()
        elif isinstance(event, h11.EndOfMessage):
            break
        else:
            return False
    assert request is not None
    target = request.target.decode()
    if upload is not None:
        upload.complete = True
        return await _json(stream, http, *server.answer)
    if server.old and target.startswith("/_matrix/client/v1/media/"):
        return await _json(stream, http, 404, {"errcode": "M_UNRECOGNIZED", "error": "what?"})
    path = target.partition("?")[0]
    if path.endswith("/versions"):
        return await _json(stream, http, 200, {"versions": ["v1.10" if server.old else "v1.11"]})
    if path.endswith("/config"):
        return await _json(stream, http, 200, {} if server.largest is None else {"m.upload.size": server.largest})
    found = server.files.get(path.rpartition("/")[2])
    if found is None:
        return await _json(stream, http, 404, {"errcode": "M_NOT_FOUND", "error": "gone"})
    return await _file(server, stream, http, found)


async def _file(server: MediaServer, stream: trio.SocketStream, http: h11.Connection, found: Download) -> bool:
    length = [] if found.length is None else [("Content-Length", str(found.length))]
    headers = [("Content-Type", "text/html"), *length, *found.headers.items()]
    await _send(stream, http, h11.Response(status_code=found.status, headers=headers))
    for piece in found.pieces:
        await _send(stream, http, h11.Data(data=piece))
        server.sent += len(piece)
        await trio.sleep(found.pause)
    if found.cut:
        return False
    await _send(stream, http, h11.EndOfMessage())
    return True


async def _json(stream: trio.SocketStream, http: h11.Connection, status: int, content: dict[str, Any]) -> bool:
    body = json.dumps(content).encode()
    headers = [("Content-Type", "application/json"), ("Content-Length", str(len(body)))]
    await _send(stream, http, h11.Response(status_code=status, headers=headers))
    await _send(stream, http, h11.Data(data=body))
    await _send(stream, http, h11.EndOfMessage())
    return True


async def _send(stream: trio.SocketStream, http: h11.Connection, event: Any) -> None:
    await stream.send_all(http.send(event) or b"")
