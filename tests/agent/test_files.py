"""Files that an agent sends and finds, in pieces: against the bridge's own end of the wire."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import attrs
import pytest

from armorclaw.agent import AgentError, File
from armorclaw.agent import files as files_module
from armorclaw.errors import ArmorclawError
from armorclaw.matrix.media.shapes import DownloadParams, MediaDownloaded, MediaUploaded, UploadParams
from armorclaw.rpc.call import Call
from armorclaw.rpc.registry import Role

from .conftest import ROOM, Kit
from .peers import RealBridge

PIECE = 192 * 1024


@attrs.define
class Shelf:
    """What was uploaded, and what there is to be had: `broken` ends the download before its end."""

    data: bytes = b""
    params: list[UploadParams] = attrs.field(factory=list)
    messages: list[dict[str, Any]] = attrs.field(factory=list)
    broken: bool = False


@pytest.fixture
def kit(real_kit: Kit) -> Kit:
    return real_kit


@pytest.fixture
def shelf(real: RealBridge) -> Shelf:
    shelf = Shelf()
    method = real.registry.method

    @method("matrix.upload", params=UploadParams, result=MediaUploaded, upload=bytes, roles=[Role.AGENT])
    async def upload(call: Call, params: UploadParams) -> MediaUploaded:
        shelf.params.append(params)
        pieces = [piece async for piece in call.uploads()]
        shelf.data = b"".join(pieces)
        if len(shelf.data) != params.size:
            raise ArmorclawError("invalid_params", "not as many bytes as said")
        content = {"msgtype": "m.image", "body": params.name, "url": "mxc://a/b"}
        return MediaUploaded("mxc://a/b", params.size, False, content)

    @method("matrix.download", params=DownloadParams, result=MediaDownloaded, chunk=bytes, roles=[Role.AGENT])
    async def download(call: Call, params: DownloadParams) -> MediaDownloaded:
        assert (params.room_id, params.event_id) == (ROOM, "$1")
        for start in range(0, len(shelf.data), PIECE):
            await call.send(shelf.data[start : start + PIECE])
        if shelf.broken:
            raise ArmorclawError("media_damaged", "not what was sent")
        return MediaDownloaded(len(shelf.data), "cat.png", f"image/{params.part}", True)

    @method("matrix.send", result=dict, roles=[Role.AGENT], raw=True)
    def send(call: Call, params: bytes) -> dict[str, Any]:
        shelf.messages.append(json.loads(params))
        return {"delivery_id": "d_1", "room_id": ROOM, "status": "queued", "event_id": None}

    return shelf


DATA = bytes(range(256)) * 2_000  # more than two pieces


@pytest.mark.parametrize("source", ["path", "bytes", "file"])
def test_a_file_is_uploaded_and_sent(kit: Kit, shelf: Shelf, tmp_path: Path, source: str) -> None:
    path = tmp_path / "cat.png"
    path.write_bytes(DATA)
    room = kit.agent.in_room(ROOM)

    async def steps() -> Any:
        if source == "path":
            return await kit.done(room.send_file(path, reply_to="$1", caption="a cat", width=5))
        if source == "bytes":
            return await kit.done(room.send_file(DATA, name="cat.png", reply_to="$1", caption="a cat", width=5))
        with path.open("rb") as file:
            file.seek(1)  # from there on
            return await kit.done(room.send_file(file, reply_to="$1", caption="a cat", width=5))

    kit.start()
    assert kit.do(steps()).delivery_id == "d_1"
    whole = DATA[1:] if source == "file" else DATA
    assert shelf.data == whole
    wanted = UploadParams(ROOM, "cat.png", len(whole), "image/png", caption="a cat", width=5)
    assert shelf.params == [wanted]
    (message,) = shelf.messages
    assert message.pop("idempotency_key")
    content = {"msgtype": "m.image", "body": "cat.png", "url": "mxc://a/b"}
    assert message == {
        "room_id": ROOM,
        "message": "cat.png",
        "msgtype": "m.image",
        "content": content,
        "reply_to": "$1",
    }


@pytest.mark.parametrize(
    ("source", "more", "name", "mimetype"),
    [
        (b"x", {}, "file", "application/octet-stream"),
        (b"x", {"name": "a.txt"}, "a.txt", "text/plain"),
        (b"", {"name": "a.txt", "mimetype": "audio/ogg", "kind": "voice"}, "a.txt", "audio/ogg"),
        (io.BytesIO(b"x"), {}, "file", "application/octet-stream"),
    ],
)
def test_what_it_is_called(
    kit: Kit, shelf: Shelf, source: Any, more: dict[str, Any], name: str, mimetype: str
) -> None:
    async def steps() -> Any:
        return await kit.done(kit.agent.upload(ROOM, source, **more))

    kit.start()
    assert kit.do(steps())["url"] == "mxc://a/b"
    assert [(each.name, each.mimetype, each.kind) for each in shelf.params] == [(name, mimetype, more.get("kind"))]


def test_what_is_refused_is_an_error(kit: Kit, shelf: Shelf, tmp_path: Path) -> None:
    async def steps(source: Any, **more: Any) -> str:
        try:
            await kit.done(kit.agent.upload(ROOM, source, **more))
        except (AgentError, OSError) as error:
            return getattr(error, "name", type(error).__name__)
        return "no error"

    kit.start()
    assert kit.do(steps(b"x", name="a/b")) == "invalid_params"
    assert kit.do(steps(str(tmp_path / "none"))) == "FileNotFoundError"


def test_a_file_is_downloaded(kit: Kit, shelf: Shelf, tmp_path: Path) -> None:
    shelf.data = DATA
    room = kit.agent.in_room(ROOM)
    path = tmp_path / "cat"

    async def steps(*to: Any, **more: Any) -> Any:
        return await kit.done(room.download("$1", *to, **more))

    kit.start()
    assert kit.do(steps()) == File("cat.png", "image/file", len(DATA), True, DATA)
    assert kit.do(steps(part="thumbnail")).mimetype == "image/thumbnail"
    assert kit.do(steps(path)) == File("cat.png", "image/file", len(DATA), True, None)
    assert path.read_bytes() == DATA
    shelf.broken, shelf.data = True, b"evil"
    for to in ([], [path], [tmp_path / "new"]):
        with pytest.raises(AgentError, match="not what was sent"):
            kit.do(steps(*to))
    assert path.read_bytes() == DATA  # what was there before
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_too_much_for_memory(kit: Kit, shelf: Shelf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files_module, "DATA_LIMIT", PIECE)
    shelf.data = DATA
    room = kit.agent.in_room(ROOM)

    async def steps(*to: Any) -> Any:
        return await kit.done(room.download("$1", *to))

    kit.start()
    with pytest.raises(AgentError) as caught:
        kit.do(steps())
    assert caught.value.name == "too_large"
    assert kit.do(steps(tmp_path / "cat")).size == len(DATA)
