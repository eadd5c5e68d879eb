"""Files that an agent sends into rooms, and those it finds there: in pieces, so they may be larger than memory."""

from __future__ import annotations

import base64
import contextlib
import io
import os
from collections.abc import Callable, Iterator
from typing import Any, BinaryIO, NamedTuple, Optional, Union

from armorclaw.agent.errors import AgentError
from armorclaw.rpc.flow import BYTES_MAX

DATA_LIMIT = 64 * 1024 * 1024
"""Bytes of a file that `download` returns; a larger one is to be written to a path."""

Path = Union[str, "os.PathLike[str]"]
Source = Union[Path, bytes, BinaryIO]


class File(NamedTuple):
    """A file as it came. `name` and `mimetype` are what its sender says, which need not be true; the name is no path,
    and may be empty. `data` is None where it was written to a path."""

    name: str
    mimetype: str
    size: int
    encrypted: bool
    data: Optional[bytes]


class Filing:
    """The files of a blocking agent."""

    stream: Callable[..., Any]

    def upload(self, room_id: str, source: Source, **more: Any) -> dict[str, Any]:
        """Have the homeserver keep a file for a room, encrypted if the room is; returns the content of a message
        about it, which nobody sees before it is sent.

        `source` is a path, bytes, or a file that can be sought in. More are `name`, `mimetype`, `kind`, `caption`,
        `width`, `height`, `duration_ms` and `waveform` of matrix.upload. Raises AgentError, OSError.
        """
        with _opened(source, more.pop("name", None)) as (file, name, size):
            with self.stream("matrix.upload", **_params(room_id, name, size, more)) as stream:
                while data := file.read(BYTES_MAX):
                    stream.send(data)
                stream.end()
                return _content(stream.result())

    def download(self, room_id: str, event_id: str, to: Optional[Path] = None, *, part: str = "file") -> File:
        """The file that a message is about, decrypted if it is encrypted; `part` may be "thumbnail".

        Written to the path `to`, which is there only once it is whole, or else returned, up to 64 MiB. Raises
        AgentError, OSError.
        """
        with _sink(to) as sink:
            with self.stream("matrix.download", room_id=room_id, event_id=event_id, part=part) as stream:
                for piece in stream:
                    sink.write(base64.b64decode(piece))
                return sink.done(stream.result())


class AsyncFiling:
    """The same names, to be awaited."""

    stream: Callable[..., Any]

    async def in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call what may take a while, such as a disk."""
        raise NotImplementedError

    async def upload(self, room_id: str, source: Source, **more: Any) -> dict[str, Any]:
        """As `Agent.upload`."""
        with _opened(source, more.pop("name", None)) as (file, name, size):
            async with self.stream("matrix.upload", **_params(room_id, name, size, more)) as stream:
                while data := await self.in_thread(file.read, BYTES_MAX):
                    await stream.send(data)
                await stream.end()
                return _content(await stream.result())

    async def download(self, room_id: str, event_id: str, to: Optional[Path] = None, *, part: str = "file") -> File:
        """As `Agent.download`."""
        with _sink(to) as sink:
            async with self.stream("matrix.download", room_id=room_id, event_id=event_id, part=part) as stream:
                async for piece in stream:
                    await self.in_thread(sink.write, base64.b64decode(piece))
                return sink.done(await stream.result())


@contextlib.contextmanager
def _opened(source: Source, name: Optional[str]) -> Iterator[tuple[BinaryIO, str, int]]:
    """The file, what people see as its name, and how many bytes there are to read."""
    if isinstance(source, bytes):
        yield io.BytesIO(source), name or "file", len(source)
    elif isinstance(source, (str, os.PathLike)):
        with open(source, "rb") as file:
            yield file, name or os.path.basename(os.fspath(source)), os.fstat(file.fileno()).st_size
    else:
        place = source.tell()
        size = source.seek(0, os.SEEK_END) - place
        source.seek(place)
        yield source, name or os.path.basename(str(getattr(source, "name", ""))) or "file", size


def _params(room_id: str, name: str, size: int, more: dict[str, Any]) -> dict[str, Any]:
    if more.get("mimetype") is None:
        import mimetypes  # it reads files of the system, and most agents send none

        more["mimetype"] = mimetypes.guess_type(name)[0] or "application/octet-stream"
    given = {key: value for key, value in more.items() if value is not None}
    return {"room_id": room_id, "name": name, "size": size, **given}


def _content(result: Any) -> dict[str, Any]:
    content = result.get("content") if isinstance(result, dict) else None
    return content if isinstance(content, dict) else {}


class _Sink:
    """Where the pieces go."""

    def __init__(self, file: Optional[BinaryIO]) -> None:
        self._file = file
        self._data = bytearray()
        self.is_whole = False

    def write(self, data: bytes) -> None:
        if self._file is not None:
            self._file.write(data)
            return
        if len(self._data) + len(data) > DATA_LIMIT:
            why = f"more than {DATA_LIMIT} bytes"
            raise AgentError(-32006, "too_large", f"the file has {why}", "have it written to a path: to=…")
        self._data += data

    def done(self, result: Any) -> File:
        told = result if isinstance(result, dict) else {}
        self.is_whole = True
        return File(
            str(told.get("name") or ""),
            str(told.get("mimetype") or ""),
            int(told.get("size") or 0),
            told.get("encrypted") is True,
            bytes(self._data) if self._file is None else None,
        )


@contextlib.contextmanager
def _sink(to: Optional[Path]) -> Iterator[_Sink]:
    if to is None:
        yield _Sink(None)
        return
    path = os.fspath(to)
    beside = f"{path}.part-{os.urandom(4).hex()}"
    try:
        with open(beside, "xb") as file:
            sink = _Sink(file)
            yield sink
        if sink.is_whole:
            os.replace(beside, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(beside)
