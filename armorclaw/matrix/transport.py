"""mautrix's HTTPAPI carried by httpx on Trio.

Only the configured homeserver is ever spoken to: no redirects, no cookies, no proxies from the environment. Nothing
is retried here: whoever asks knows whether asking again is right, when, and for how long.
"""

from __future__ import annotations

import email.utils
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, cast
from urllib.parse import quote, urlencode

import httpx
import msgspec
import trio
from mautrix.api import HTTPAPI, Method, PathBuilder
from mautrix.errors import (
    MatrixConnectionError,
    MatrixError,
    MatrixRequestError,
    MUnknownToken,
    make_request_error,
)

from armorclaw._version import __version__
from armorclaw.clock import Clock
from armorclaw.matrix.decoding import NotJSONError, decode, is_packed, read, unpack
from armorclaw.matrix.failures import in_words, printable
from armorclaw.matrix.incoming import Incoming
from armorclaw.matrix.pools import Pools

CONNECT_TIMEOUT = 5.0
READ_TIMEOUT = 30.0
"""Seconds between two bytes of an answer; a long poll adds the time it asked the server to wait."""

ANSWER_TIMEOUT = 120.0
"""Seconds for a whole answer after the long poll: a server that dribbles is given up."""

MAX_WAIT = 300.0
"""Seconds a homeserver may tell us to wait; more is cut to this."""

_REFUSAL_LIMIT = 64 * 1024  # bytes of an error's body that are looked at
_HEADERS = {
    "Accept-Encoding": "gzip",
    "Content-Type": "application/json",
    "User-Agent": f"armorclaw/{__version__}",
}


class TrioHTTPAPI(HTTPAPI):
    """Every request of mautrix's ClientAPI goes through `request`, which is replaced here as a whole.

    `token` may be changed at any time. When the homeserver no longer knows the one that a request had, `renew` is
    called with it, if there is one: true says that there is a new token, with which the request is made once more.
    Raises MatrixConnectionError, MatrixRequestError (`retry_after` in seconds or None, `body` as it was decoded) or
    MatrixResponseError; `judge` tells what they mean.
    """

    def __init__(self, base_url: str, pool: httpx.AsyncBaseTransport, clock: Clock) -> None:
        # a given session keeps mautrix from building one of aiohttp's
        super().__init__(base_url, client_session=cast(Any, pool), default_retry_count=0)
        self.renew: Callable[[str], Awaitable[bool]] | None = None
        self._origin = base_url.rstrip("/")
        self._at = httpx.URL(self._origin)
        self._pool = pool
        self._clock = clock

    async def request(
        self,
        method: Method,
        path: PathBuilder | str,
        content: Any = None,
        headers: Mapping[str, str] | None = None,
        query_params: Mapping[str, Any] | None = None,
        retry_count: int | None = None,
        metrics_method: str = "",
        min_iter_size: int = 0,
        sensitive: bool = False,
        *,
        read_timeout: float = READ_TIMEOUT,
        authorized: bool = True,
    ) -> Any:
        """One request, one answer, decoded. `read_timeout` is in seconds, `authorized` sends the token; the other
        extras of mautrix are unused."""
        request = partial(
            self._answer,
            str(method),
            self._url(str(path), query_params),
            {**_HEADERS, **(headers or {})},
            None if method is Method.GET else _body(content),
            read_timeout,
        )
        token = self.token if authorized else ""
        try:
            return await request(token)
        except MUnknownToken:
            if not token or not await self._renewed(token):
                raise
        # the homeserver has turned it down, so nothing has happened yet, whatever it was; once more, and no oftener
        return await request(self.token)

    async def _renewed(self, token: str) -> bool:
        """Whether there is a better token than this."""
        if self.token == token and (self.renew is None or not await self.renew(token)):
            return False
        return bool(self.token) and self.token != token

    async def _answer(
        self,
        method: str,
        url: str,
        headers: dict[str, str],
        content: bytes | None,
        read_timeout: float,
        token: str,
    ) -> dict[str, Any]:
        request = httpx.Request(
            method,
            self._at,
            headers={**headers, "Authorization": f"Bearer {token}"} if token else headers,
            content=content,
            extensions={"timeout": {"connect": CONNECT_TIMEOUT, "read": read_timeout, "write": READ_TIMEOUT}},
        )
        request.url = _Encoded(self._at, url[len(self._origin) :])
        request.stream = _Whole(content or b"")
        try:
            with trio.fail_after(read_timeout + ANSWER_TIMEOUT):
                response = await self._pool.handle_async_request(request)
                try:
                    body = await read(response)
                finally:
                    await response.aclose()
        except httpx.RequestError as error:
            raise MatrixConnectionError(in_words(error)) from error
        except trio.TooSlowError as error:
            raise MatrixConnectionError("the answer took too long") from error
        if 200 <= response.status_code < 300:
            answer = await decode(body, packed=is_packed(response))
            if not isinstance(answer, dict):
                raise NotJSONError("the answer is not a JSON object")
            return answer
        raise self._refusal(response, body)

    @asynccontextmanager
    async def open(
        self,
        method: Method,
        path: str,
        *,
        query: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
        body: httpx.AsyncByteStream | None = None,
        authorized: bool = True,
    ) -> AsyncIterator[Incoming]:
        """One request for the length of a block, its body and its answer streamed: neither is held here.

        `headers` must tell the length of a `body`. What that raises comes out as it is; the connection is closed
        then, as it is when the answer is not read to its end. Raises as `request` does, also while it is read.
        """
        url = httpx.URL(self._url(path, query))
        given = {**_HEADERS, "Host": url.netloc.decode("ascii"), "Accept-Encoding": "identity", **(headers or {})}
        token = self.token if authorized else ""
        request = httpx.Request(
            str(method),
            url,
            headers={**given, "Authorization": f"Bearer {token}"} if token else given,
            stream=body or _Whole(b""),
            extensions={"timeout": {"connect": CONNECT_TIMEOUT, "read": READ_TIMEOUT, "write": READ_TIMEOUT}},
        )
        try:
            response = await self._pool.handle_async_request(request)
            incoming = Incoming(response)
            try:
                if not 200 <= response.status_code < 300:
                    raise self._refusal(response, await incoming.start(_REFUSAL_LIMIT))
                yield incoming
            finally:
                await incoming.close()
        except httpx.RequestError as error:
            raise MatrixConnectionError(in_words(error)) from error
        except MUnknownToken:
            await self._renewed(token)  # for whoever tries again; a body that is gone cannot be sent once more
            raise

    def _url(self, path: str, query: Mapping[str, Any] | None) -> str:
        # every variable part comes percent-encoded from mautrix, but "." and ".." are not encoded by that
        if any(part in (".", "..") for part in path.split("/")):
            raise ValueError(f"{path!r} is no path of the API")
        given = {name: value for name, value in (query or {}).items() if value is not None}
        return f"{self._origin}/{path}" + (f"?{urlencode(given, doseq=True, quote_via=quote)}" if given else "")

    def _refusal(self, response: httpx.Response, body: bytes) -> MatrixRequestError:
        try:
            said = msgspec.json.decode(unpack(body, _REFUSAL_LIMIT) if is_packed(response) else body[:_REFUSAL_LIMIT])
        except (msgspec.MsgspecError, MatrixError, ValueError, RecursionError):
            said = None
        said = said if isinstance(said, dict) else {}
        code, message = said.get("errcode"), said.get("error")
        code = code if isinstance(code, str) else None
        message = printable(message) if isinstance(message, str) else f"HTTP {response.status_code}"
        error = make_request_error(response.status_code, message, code, message)
        error.retry_after = self._told_wait(  # type: ignore[attr-defined]
            said.get("retry_after_ms"), response.headers.get("retry-after")
        )
        error.soft_logout = said.get("soft_logout") is True  # type: ignore[attr-defined]
        error.body = said  # type: ignore[attr-defined]
        return error

    def _told_wait(self, milliseconds: object, header: str | None) -> float | None:
        """Seconds from the header, which the specification prefers since 1.10, or from the body; None if untold."""
        seconds: float | None = None
        if header is not None and header.strip().isdecimal():
            seconds = float(header)
        elif header is not None:
            try:
                seconds = email.utils.parsedate_to_datetime(header).timestamp() - self._clock.wall()
            except ValueError:
                pass
        if seconds is None and isinstance(milliseconds, int | float) and not isinstance(milliseconds, bool):
            seconds = milliseconds / 1000
        return None if seconds is None or not seconds >= 0 else min(seconds, MAX_WAIT)


class _Encoded(httpx.URL):
    """A URL whose path is as it is to be sent: httpx looks at each character of it, which for a sync takes 0.15 ms.

    h11 still refuses whatever may not stand in the first line of a request.
    """

    def __init__(self, origin: httpx.URL, path: str) -> None:
        super().__init__(origin)
        self._path = origin.raw_path.rstrip(b"/") + path.encode("ascii")

    @property
    def raw_path(self) -> bytes:
        return self._path


class _Whole(httpx.AsyncByteStream):
    """A body of one piece. That of httpx is a generator, and litters when a request is cancelled while it is sent."""

    def __init__(self, body: bytes) -> None:
        self._left = [body] if body else []

    def __aiter__(self) -> AsyncIterator[bytes]:
        return self

    async def __anext__(self) -> bytes:
        if not self._left:
            raise StopAsyncIteration
        return self._left.pop()


@asynccontextmanager
async def open_api(
    homeserver: str, clock: Clock, pools: Pools | None = None, *, guarded: bool = False
) -> AsyncIterator[TrioHTTPAPI]:
    """A way to one homeserver, over connections of `pools`, or of its own; what nobody uses is closed on leaving.

    `guarded` as in `Pools.pool`.
    """
    async with (pools or Pools()).pool(homeserver, guarded=guarded) as pool:
        yield TrioHTTPAPI(homeserver, pool, clock)


def _body(content: Any) -> bytes:
    if isinstance(content, bytes | bytearray):
        return bytes(content)
    if isinstance(content, str):
        return content.encode()
    return json.dumps(content or {}, separators=(",", ":")).encode()
