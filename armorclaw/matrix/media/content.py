"""Messages about files: what one says that is sent, and where the file is of one that came.

Matrix, client-server API, "m.image", "m.file", "m.audio", "m.video"; voice messages as in MSC3245 and MSC1767.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import attrs

from armorclaw.matrix.media.attachment import FileKey, MalformedError
from armorclaw.matrix.media.shapes import is_mime_type

Kind = Literal["image", "video", "audio", "voice", "file"]
Part = Literal["file", "thumbnail"]

NAME_LIMIT = 255
"""Characters of a file's name."""

UNKNOWN_TYPE = "application/octet-stream"

_URI = re.compile(r"mxc://([A-Za-z0-9.:\[\]-]{1,255})/(?!\.{1,2}\Z)([A-Za-z0-9._~-]{1,255})")


def parts_of_uri(uri: str) -> tuple[str, str] | None:
    """Server and media id of an mxc:// URI; None for what is none, or could be anything but one file."""
    found = _URI.fullmatch(uri)
    return None if found is None else (found[1], found[2])


def kind_of(mimetype: str) -> Kind:
    """How people are to see a file of this type. A voice message is one only if somebody says so."""
    family = mimetype.partition("/")[0].lower()
    return family if family in ("image", "video", "audio") else "file"  # type: ignore[return-value]  # checked


@attrs.frozen
class Description:
    """What is said of a file. `size` is bytes of the file itself; times are milliseconds."""

    name: str
    mimetype: str
    size: int
    kind: Kind
    caption: str = ""
    width: int | None = None
    height: int | None = None
    duration_ms: int | None = None
    waveform: Sequence[int] = ()

    def content(self, uri: str, key: FileKey | None) -> dict[str, Any]:
        """The content of an m.room.message about the file at `uri`; with a `key` where it is encrypted."""
        numbers = {"size": self.size, "w": self.width, "h": self.height, "duration": self.duration_ms}
        info = {"mimetype": self.mimetype, **{name: value for name, value in numbers.items() if value is not None}}
        content: dict[str, Any] = {
            "msgtype": f"m.{'audio' if self.kind == 'voice' else self.kind}",
            "body": self.caption or self.name,
            "filename": self.name,
            "info": info,
        }
        if key is None:
            content["url"] = uri
        else:
            content["file"] = key.written(uri)
        if self.kind == "voice":
            content["org.matrix.msc3245.voice"] = {}
            audio: dict[str, Any] = {"duration": self.duration_ms or 0}
            if self.waveform:
                audio["waveform"] = list(self.waveform)
            content["org.matrix.msc1767.audio"] = audio
        return content


@attrs.frozen
class Source:
    """Where a file is, and what its sender says of it, which need not be true. `key` None: it is in the clear."""

    uri: str
    key: FileKey | None = None
    name: str = ""
    mimetype: str = UNKNOWN_TYPE
    size: int | None = None

    @property
    def place(self) -> tuple[str, str]:
        """Server and media id."""
        found = parts_of_uri(self.uri)
        assert found is not None, "checked where it was made"
        return found

    @classmethod
    def of_uri(cls, uri: str) -> Source:
        """Raises MalformedError."""
        if parts_of_uri(uri) is None:
            raise MalformedError("its address is no mxc:// URI")
        return cls(uri)

    @classmethod
    def of_file(cls, file: Mapping[str, Any]) -> Source:
        """Of an EncryptedFile of Matrix. Raises MalformedError."""
        uri = file.get("url")
        if not isinstance(uri, str):
            raise MalformedError("it has no url")
        return attrs.evolve(cls.of_uri(uri), key=FileKey.read(file))

    @classmethod
    def of_content(cls, content: Mapping[str, Any], part: Part = "file") -> Source:
        """What a message is about, or a small picture of it. Raises MalformedError for one that is about no file."""
        info = content.get("info")
        info = info if isinstance(info, Mapping) else {}
        if part == "thumbnail":
            said = info.get("thumbnail_info")
            sealed, uri, name = info.get("thumbnail_file"), info.get("thumbnail_url"), ""
        else:
            said = info
            sealed, uri = content.get("file"), content.get("url")
            name = _text(content.get("filename")) or _text(content.get("body"))
        if isinstance(sealed, Mapping):  # goes before a url, which would be in the clear
            source = cls.of_file(sealed)
        elif isinstance(uri, str):
            source = cls.of_uri(uri)
        else:
            raise MalformedError(f"it has no {part}")
        said = said if isinstance(said, Mapping) else {}
        mimetype, size = said.get("mimetype"), said.get("size")
        return attrs.evolve(
            source,
            name=name,
            mimetype=mimetype if isinstance(mimetype, str) and is_mime_type(mimetype) else UNKNOWN_TYPE,
            size=size if type(size) is int and size >= 0 else None,
        )


def _text(value: object) -> str:
    """A name that somebody else chose, without what is not to be seen, or would be a path."""
    if not isinstance(value, str):
        return ""
    return "".join(c if c.isprintable() and c not in "/\\" else "_" for c in value[:NAME_LIMIT])
