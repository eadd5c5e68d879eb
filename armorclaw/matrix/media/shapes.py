"""What the methods of files take and answer."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

import attrs

from armorclaw.rpc.shape import FieldError, between

_MIME = re.compile(r"[A-Za-z0-9!#$&^_.+-]{1,64}/[A-Za-z0-9!#$&^_.+-]{1,64}")

_MAX_PIXELS = 1_000_000
_MAX_DURATION_MS = 7 * 24 * 3_600_000
_MAX_SIZE = 2**53 - 1


def is_mime_type(text: str) -> bool:
    """Whether this is a media type without parameters, which can be a header as it is."""
    return _MIME.fullmatch(text) is not None


def _is_name(_params: object, field: attrs.Attribute[str], value: str) -> None:
    is_bad = value in (".", "..") or "/" in value or "\\" in value or not value.isprintable()
    if is_bad or not 1 <= len(value.encode("utf-8", "replace")) <= 255:
        raise FieldError(field, "must be the name of a file: printable, 1 to 255 bytes, no folder")


def _is_mime(_params: object, field: attrs.Attribute[str], value: str) -> None:
    if not is_mime_type(value):
        raise FieldError(field, "must be a media type without parameters, like image/png")


def _is_caption(_params: object, field: attrs.Attribute[str], value: str) -> None:
    if len(value) > 10_000:
        raise FieldError(field, "must have 10000 characters at most")


def _is_waveform(_params: object, field: attrs.Attribute[Sequence[int]], value: Sequence[int]) -> None:
    if len(value) > 256 or any(not 0 <= each <= 1024 for each in value):
        raise FieldError(field, "must be up to 256 numbers from 0 to 1024")


@attrs.frozen
class UploadParams:
    """`size` is how many bytes will come by `$/upload`, exactly. `kind` is how people are to see the file; by default
    its `mimetype` says so, and "voice" is never a default. `caption` is text beside it. `width` and `height` are
    pixels; `waveform` of a voice message is how loud it is, from 0 to 1024, at even distances. `account` is for
    operators."""

    room_id: str
    name: str = attrs.field(validator=_is_name)
    size: int = attrs.field(validator=between(0, _MAX_SIZE))
    mimetype: str = attrs.field(default="application/octet-stream", validator=_is_mime)
    kind: Literal["image", "video", "audio", "voice", "file"] | None = None
    caption: str = attrs.field(default="", validator=_is_caption)
    width: int | None = attrs.field(default=None, validator=attrs.validators.optional(between(1, _MAX_PIXELS)))
    height: int | None = attrs.field(default=None, validator=attrs.validators.optional(between(1, _MAX_PIXELS)))
    duration_ms: int | None = attrs.field(
        default=None, validator=attrs.validators.optional(between(0, _MAX_DURATION_MS))
    )
    waveform: list[int] = attrs.field(factory=list, validator=_is_waveform)
    account: str | None = None


@attrs.frozen
class MediaUploaded:
    """`content` is that of a message about the file, for matrix.send; of an `encrypted` one it holds the key."""

    mxc: str
    size: int
    encrypted: bool
    content: dict[str, Any] = attrs.field(repr=False)


@attrs.frozen
class DownloadParams:
    """The file that the message `event_id` of a room is about, or its `part` "thumbnail". For operators there is also
    `mxc`, an mxc:// URI, and `file`, an EncryptedFile of Matrix; and `account`."""

    room_id: str | None = None
    event_id: str | None = None
    part: Literal["file", "thumbnail"] = "file"
    mxc: str | None = None
    file: dict[str, Any] | None = attrs.field(default=None, repr=False)
    account: str | None = None


@attrs.frozen
class MediaDownloaded:
    """`size` is how many bytes came. `name` and `mimetype` are what the sender says, which need not be true; the name
    is no path, and may be empty. `encrypted`: it was, and is just what its sender encrypted."""

    size: int
    name: str
    mimetype: str
    encrypted: bool
