"""mautrix's HTTPAPI carried by httpx on Trio, and what its failures mean.

Only the configured homeserver is ever spoken to: no redirects, no cookies, no proxies from the environment. Nothing
is retried here: whoever asks knows whether asking again is right, when, and for how long.
"""

from __future__ import annotations

import email.utils
import json
import re
import ssl
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, cast
from urllib.parse import quote, urlencode

import attrs
import httpx
import msgspec
import trio
from mautrix.api import HTTPAPI, Method, PathBuilder
from mautrix.errors import (
    MatrixConnectionError,
    MatrixError,
    MatrixRequestError,
    MatrixResponseError,
    MUnknownToken,
    make_request_error,
)

from armorclaw._version import __version__
from armorclaw.clock import Clock
from armorclaw.delivery.transport import Delayed, Refused
from armorclaw.matrix.incoming import Incoming
from armorclaw.matrix.pools import Pools

CONNECT_TIMEOUT = 5.0
READ_TIMEOUT = 30.0
"""Seconds between two bytes of an answer; a long poll adds the time it asked the server to wait."""

ANSWER_TIMEOUT = 120.0
"""Seconds for a whole answer after the long poll: a server that dribbles is given up."""

MAX_ANSWER = 64 * 1024 * 1024
"""Bytes of one answer, decoded; a first sync of an account in thousands of rooms has a few MiB."""

MAX_WAIT = 300.0
"""Seconds a homeserver may tell us to wait; more is cut to this."""

_DECODE_INLINE = 1024 * 1024  # bytes; more is unpacked and decoded in a thread, since 1 MiB costs about 5 ms
_REFUSAL_LIMIT = 64 * 1024  # bytes of an error's body that are looked at
_DEEP = 256  # brackets open at once; an answer that cannot be read otherwise has null for what is deeper
_HEADERS = {
    "Accept-Encoding": "gzip",
    "Content-Type": "application/json",
    "User-Agent": f"armorclaw/{__version__}",
}


class NotJSONError(MatrixResponseError):
    """The homeserver, or something in front of it, said yes and then gave something else than a JSON object."""


class _TooLargeError(MatrixConnectionError):
    """The answer is larger than was asked for."""


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
                    body = await _read(response)
                finally:
                    await response.aclose()
        except httpx.RequestError as error:
            raise MatrixConnectionError(in_words(error)) from error
        except trio.TooSlowError as error:
            raise MatrixConnectionError("the answer took too long") from error
        if 200 <= response.status_code < 300:
            answer = await _decode(body, packed=_packed(response))
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
            said = msgspec.json.decode(_unpack(body, _REFUSAL_LIMIT) if _packed(response) else body[:_REFUSAL_LIMIT])
        except (msgspec.MsgspecError, MatrixError, ValueError, RecursionError):
            said = None
        said = said if isinstance(said, dict) else {}
        code, message = said.get("errcode"), said.get("error")
        code = code if isinstance(code, str) else None
        message = _printable(message) if isinstance(message, str) else f"HTTP {response.status_code}"
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


@attrs.frozen
class Verdict:
    """What a failed request means: whether to ask `again`, after how many seconds if told, and why it failed."""

    again: bool
    reason: str
    after: float | None = None
    unknown_token: bool = False
    sure: bool = False
    """Whether the request certainly had no effect: nobody was reached, or the homeserver itself turned it down."""
    whole: bool = False
    """Whether it is the homeserver as a whole that is away: nobody was reached, or it, or a proxy, fails."""

    def exception(self) -> Delayed | Refused:
        """The same for the outbox."""
        if not self.again:
            return Refused(self.reason, sure=self.sure)
        return Delayed(self.after, self.reason, sure=self.sure, whole=self.whole)


def judge(error: MatrixError) -> Verdict:
    """Tell what may pass from what will not.

    No connection, an answer that is none, 429 and 5xx pass. So does a refusal in words that are not Matrix's (a
    proxy, a homeserver that is being set up), unless the request itself was at fault, and an unknown token, which
    the session's next login mends.
    """
    if not isinstance(error, MatrixRequestError):
        unreached = isinstance(error.__cause__, httpx.ConnectError | httpx.ConnectTimeout | httpx.PoolTimeout)
        return Verdict(again=True, reason=str(error), sure=unreached, whole=True)
    status = error.http_status
    code: str | None = error.errcode  # mautrix's annotation leaves out that there may be none
    reason = f"{code or f'HTTP {status}'}: {error.message}"
    if isinstance(error, MUnknownToken):
        return Verdict(again=True, reason=reason, unknown_token=True, sure=True)
    foreign = code is None and status not in (400, 411, 413, 414, 431)
    again = status == 429 or status >= 500 or code == "M_LIMIT_EXCEEDED" or foreign
    sure = status < 500 and code is not None
    whole = again and status != 429 and code != "M_LIMIT_EXCEEDED"
    return Verdict(again=again, reason=reason, after=getattr(error, "retry_after", None), sure=sure, whole=whole)


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


async def _read(response: httpx.Response) -> bytes:
    body = bytearray()
    async for chunk in response.aiter_raw():
        if len(body) + len(chunk) > MAX_ANSWER:
            await response.aclose()  # the iteration then ends by itself; left half-way it would litter
        body += chunk
    if len(body) > MAX_ANSWER:
        raise MatrixConnectionError(f"the answer is larger than {MAX_ANSWER} bytes")
    return bytes(body)


def _packed(response: httpx.Response) -> bool:
    return str(response.headers.get("content-encoding", "")).lower() == "gzip"


def _unpack(body: bytes, limit: int) -> bytes:
    """Raises _TooLargeError if there is more than that, and NotJSONError if it is no gzip."""
    unpack = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    try:
        whole = unpack.decompress(body, limit)
    except zlib.error as error:
        raise NotJSONError("the answer is not what its gzip header says") from error
    if unpack.unconsumed_tail:
        raise _TooLargeError(f"the answer is larger than {limit} bytes")
    return whole


async def _decode(body: bytes, *, packed: bool) -> Any:
    try:
        if len(body) <= _DECODE_INLINE:
            try:
                return _decoded(body, packed, _DECODE_INLINE)
            except (_TooLargeError, RecursionError):
                pass
        return await trio.to_thread.run_sync(_read_whole, body, packed, abandon_on_cancel=True)
    except (ValueError, RecursionError):
        raise NotJSONError("the answer is not JSON") from None


def _decoded(body: bytes, packed: bool, limit: int) -> Any:
    return _loads(_unpack(body, limit) if packed else body)


def _read_whole(body: bytes, packed: bool) -> Any:
    """In a thread: however large it is, however deep."""
    text = _unpack(body, MAX_ANSWER) if packed else body
    try:
        return _loads(text)
    except RecursionError:
        return _loads(_pruned(text))


_QUOTED_OR_BRACKET = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)


def _pruned(text: bytes) -> bytes:
    """The same JSON without what is too deep for any reader: one such event must not stop a whole sync."""
    kept: list[bytes] = []
    depth = begin = 0
    for found in _QUOTED_OR_BRACKET.finditer(text):
        byte = text[found.start()]
        if byte in b"[{":
            depth += 1
            if depth == _DEEP + 1:
                kept += (text[begin : found.start()], b"null")
        elif byte in b"]}":
            depth -= 1
            if depth == _DEEP:
                begin = found.end()
    return b"".join((*kept, text[begin:])) if depth == 0 else b""


def _loads(body: bytes) -> Any:
    """Strict JSON first. Half a surrogate pair in one message must not stop a whole sync: mend it."""
    try:
        return msgspec.json.decode(body)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return _mended(json.loads(body.decode("utf-8", "replace")))


def _mended(value: Any) -> Any:
    if isinstance(value, str):
        return value.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    if isinstance(value, dict):
        return {_mended(name): _mended(entry) for name, entry in value.items()}
    if isinstance(value, list):
        return [_mended(entry) for entry in value]
    return value


def _printable(text: str) -> str:
    """A homeserver's words, fit for a log line."""
    return "".join(c if c.isprintable() else " " for c in text[:200])


def in_words(error: httpx.RequestError) -> str:
    """What went wrong below HTTP, fit for a log line."""
    if isinstance(error, httpx.LocalProtocolError):
        return "the request cannot be written"  # its own words quote headers, and so the token
    kind = "connection lost"
    if isinstance(error, httpx.ConnectError):
        kind = "cannot connect"
    elif isinstance(error, httpx.TimeoutException):
        kind = "timed out"
    return f"{kind}: {_printable(_of_tls(error) or str(error)) or type(error).__name__}"


def _of_tls(error: BaseException | None) -> str:
    """What TLS found wrong, which those above it leave out; empty if it was not TLS."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return f"the certificate: {error.verify_message}"
        if isinstance(error, ssl.SSLError):
            return f"TLS: {error.reason or error}"
        error = error.__cause__ or error.__context__
    return ""
