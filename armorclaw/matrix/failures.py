"""What a failed request means: whether it may pass by itself, and what is said of it to whoever waits."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import attrs
import httpx
from mautrix.errors import MatrixError, MatrixRequestError, MUnknownToken

from armorclaw.delivery.transport import Delayed, Refused
from armorclaw.errors import ArmorclawError


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


TROUBLES = (MatrixError, ArmorclawError, OSError)
"""What work with a homeserver and a disk may raise, that is tried again if it `may_pass`."""


def may_pass(error: MatrixError | ArmorclawError | OSError) -> bool:
    """Whether that is worth another try: a homeserver may refuse for good, a disk does not."""
    return not isinstance(error, MatrixError) or judge(error).again


def as_error(error: MatrixError, what: str, *, refused: str = "matrix_refused", hint: str = "") -> ArmorclawError:
    """It as an error of ours: `unavailable` for what may pass, else `refused` and what to do about that."""
    verdict = judge(error)
    if not verdict.again:
        return ArmorclawError(refused, what, why=verdict.reason, hint=hint)
    later: dict[str, Any] = {} if verdict.after is None else {"retry_after": verdict.after}
    return ArmorclawError("unavailable", what, why=verdict.reason, **later)


@contextmanager
def as_errors(what: str, *, hint: str = "") -> Iterator[None]:
    """What fails in the block is raised as `as_error` says."""
    try:
        yield
    except MatrixError as error:
        raise as_error(error, what, hint=hint) from error


@contextmanager
def as_attempt() -> Iterator[None]:
    """What fails in the block is raised as what the outbox, and others that try again, understand."""
    try:
        yield
    except MatrixError as error:
        raise judge(error).exception() from error


def printable(text: str) -> str:
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
    return f"{kind}: {printable(_of_tls(error) or str(error)) or type(error).__name__}"


def _of_tls(error: BaseException | None) -> str:
    """What TLS found wrong, which those above it leave out; empty if it was not TLS."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return f"the certificate: {error.verify_message}"
        if isinstance(error, ssl.SSLError):
            return f"TLS: {error.reason or error}"
        error = error.__cause__ or error.__context__
    return ""
