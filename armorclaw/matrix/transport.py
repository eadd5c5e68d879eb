"""mautrix's HTTPAPI carried by httpx on Trio, and what its failures mean.

Only the configured homeserver is ever spoken to: no redirects, no cookies, no proxies from the environment. Nothing
is retried here: whoever asks knows whether asking again is right, when, and for how long.
"""

from __future__ import annotations

import email.utils
import json
import re
import zlib
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
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

    `token` may be changed at any time. Raises MatrixConnectionError, MatrixRequestError (`retry_after` in seconds or
    None) or MatrixResponseError; `judge` tells what they mean.
    """

    def __init__(self, base_url: str, pool: httpx.AsyncBaseTransport, clock: Clock) -> None:
        # a given session keeps mautrix from building one of aiohttp's
        super().__init__(base_url, client_session=cast(Any, pool), default_retry_count=0)
        self._origin = base_url.rstrip("/")
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
    ) -> Any:
        """One request, one answer, decoded. `read_timeout` is in seconds; the other extras of mautrix are unused."""
        request = httpx.Request(
            str(method),
            self._url(str(path), query_params),
            headers={**_HEADERS, **(headers or {}), **self._authorization()},
            content=None if method is Method.GET else _body(content),
            extensions={"timeout": {"connect": CONNECT_TIMEOUT, "read": read_timeout, "write": READ_TIMEOUT}},
        )
        try:
            with trio.fail_after(read_timeout + ANSWER_TIMEOUT):
                response = await self._pool.handle_async_request(request)
                try:
                    body = await _read(response)
                finally:
                    await response.aclose()
        except httpx.RequestError as error:
            raise MatrixConnectionError(_in_words(error)) from error
        except trio.TooSlowError as error:
            raise MatrixConnectionError("the answer took too long") from error
        if 200 <= response.status_code < 300:
            answer = await _decode(body, packed=_packed(response))
            if not isinstance(answer, dict):
                raise NotJSONError("the answer is not a JSON object")
            return answer
        raise self._refusal(response, body)

    def _authorization(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}

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
async def open_api(homeserver: str, clock: Clock, pools: Pools | None = None) -> AsyncIterator[TrioHTTPAPI]:
    """A way to one homeserver, over connections of `pools`, or of its own; what nobody uses is closed on leaving."""
    async with (pools or Pools()).pool(homeserver) as pool:
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
        return await trio.to_thread.run_sync(_read_whole, body, packed)
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


def _in_words(error: httpx.RequestError) -> str:
    if isinstance(error, httpx.LocalProtocolError):
        return "the request cannot be written"  # its own words quote headers, and so the token
    kind = "connection lost"
    if isinstance(error, httpx.ConnectError):
        kind = "cannot connect"
    elif isinstance(error, httpx.TimeoutException):
        kind = "timed out"
    return f"{kind}: {_printable(str(error)) or type(error).__name__}"
