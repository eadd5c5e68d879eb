"""The media of one homeserver, through one login: what may be uploaded, files up, files down.

Matrix, client-server API, "Content repository". Downloads are authenticated where the homeserver knows of that
(version 1.11), and come from it alone: a redirect is not followed. mautrix is imported with the first session, so
here only within functions that have one.
"""

from __future__ import annotations

import math
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import httpx
import msgspec
import trio

from armorclaw.errors import ArmorclawError
from armorclaw.matrix.media.content import parts_of_uri

if TYPE_CHECKING:
    from armorclaw.matrix.client import MatrixClient
    from armorclaw.matrix.incoming import Incoming

SMALLER = "send a smaller one, or have the homeserver's limit raised (Synapse: max_upload_size)"
"""What helps against the homeserver's limit."""

_LOOK = "have somebody look at how the homeserver keeps media"
_ALLOWED = "the homeserver decides that: see that the account may use its media"
_AUTHENTICATED = "_matrix/client/v1/media"
_OLD = "_matrix/media/v3"
_ASK_AGAIN = 3600.0  # seconds after which a homeserver may have changed what it takes
_ANSWER = 64 * 1024  # bytes of an answer to an upload


class Outward(httpx.AsyncByteStream):
    """The body of an upload. What `pieces` raises ends the request, and comes out of it."""

    def __init__(self, pieces: AsyncIterator[bytes]) -> None:
        self._pieces = pieces

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self._pieces  # and no generator around it, which would litter when left half-way


class MediaStore:
    """Raises unavailable, not_found, too_large, and matrix_refused with the homeserver's words."""

    def __init__(self, client: MatrixClient) -> None:
        self.client = client
        self._largest: int | None = None
        self._asked_at = -math.inf

    async def largest(self) -> int | None:
        """Bytes of the largest file that it takes; None if it does not say."""
        if trio.current_time() - self._asked_at > _ASK_AGAIN:
            with _told("what the homeserver takes"):
                async with self._opened("config") as incoming:
                    said = (await _json(incoming)).get("m.upload.size")
            self._largest = said if type(said) is int and said >= 0 else None
            self._asked_at = trio.current_time()
        return self._largest

    async def upload(self, pieces: AsyncIterator[bytes], size: int, mimetype: str, name: str | None) -> str:
        """Have it keep so many bytes; where they lie, as mxc:// URI.

        Nothing is kept of an upload that is cancelled, or whose pieces raise.
        """
        from mautrix.api import Method

        headers = {"Content-Type": mimetype, "Content-Length": str(size)}
        query = {} if name is None else {"filename": name}
        with _told("the upload"):
            async with self.client.api.open(
                Method.POST, f"{_OLD}/upload", query=query, headers=headers, body=Outward(pieces)
            ) as incoming:
                uri = (await _json(incoming)).get("content_uri")
        if not isinstance(uri, str) or parts_of_uri(uri) is None:
            why = "the answer does not say where it is kept"
            raise ArmorclawError("matrix_refused", "the upload", why=why, hint=_LOOK)
        return uri

    @asynccontextmanager
    async def download(self, server: str, media_id: str) -> AsyncIterator[Incoming]:
        """A file, to be read within the block."""
        path = f"download/{quote(server, safe='')}/{quote(media_id, safe='')}"
        with _told(f"the file mxc://{server}/{media_id}"):
            async with self._opened(path) as incoming:
                yield incoming

    @asynccontextmanager
    async def _opened(self, path: str) -> AsyncIterator[Incoming]:
        from mautrix.api import Method

        api = self.client.api
        if (await self.client.negotiated()).authenticated_media:
            asked = api.open(Method.GET, f"{_AUTHENTICATED}/{path}")
        else:  # there anybody may have a file, and the configuration alone needs a token
            query, authorized = {"allow_redirect": "false"}, path == "config"
            asked = api.open(Method.GET, f"{_OLD}/{path}", query=query, authorized=authorized)
        async with asked as incoming:
            yield incoming


async def _json(incoming: Incoming) -> dict[str, Any]:
    from mautrix.errors import MatrixResponseError

    try:
        return msgspec.json.decode(await incoming.start(_ANSWER), type=dict[str, Any])
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise MatrixResponseError("the answer is not a JSON object") from None


@contextmanager
def _told(what: str) -> Iterator[None]:
    from mautrix.errors import MatrixError

    from armorclaw.matrix.failures import as_error, judge

    try:
        yield
    except MatrixError as error:
        status = getattr(error, "http_status", 0)
        if status == 413:
            raise ArmorclawError("too_large", what, why=judge(error).reason, hint=SMALLER) from error
        if status == 404:
            why, hint = judge(error).reason, "it may have been deleted"
            raise ArmorclawError("not_found", what, why=why, hint=hint) from error
        if 300 <= status < 400:
            why = "the homeserver keeps it elsewhere, and nothing is fetched from there"
            raise ArmorclawError("matrix_refused", what, why=why, hint=_LOOK) from error
        raise as_error(error, what, hint=_ALLOWED) from error
