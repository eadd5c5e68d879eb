"""From a server name to the homeserver's URL: https://NAME/.well-known/matrix/client, checked by /versions.

Specification: Client-Server API, "Server Discovery". Stricter than that: TLS always, no redirects, a bound on the
answer, and no connection to an address that is not one of the Internet, unless that is configured. A server name is
asked by who wants to log in there, and what it answers must not lead into networks around the bridge.
"""

from __future__ import annotations

import json
from urllib.parse import urlsplit

import httpx
import trio
from mautrix.errors import MatrixError

from armorclaw.clock import Clock, Surroundings
from armorclaw.config import Account
from armorclaw.errors import ArmorclawError
from armorclaw.log import get_logger
from armorclaw.matrix import versions
from armorclaw.matrix.failures import in_words, judge
from armorclaw.matrix.incoming import Incoming
from armorclaw.matrix.pacing import Pacing
from armorclaw.matrix.pools import Pools
from armorclaw.matrix.status import SessionStatus
from armorclaw.matrix.transport import CONNECT_TIMEOUT, open_api

log = get_logger(__name__)

MAX_ANSWER = 64 * 1024
"""Bytes of the file; a usual one has 100."""

TIMEOUT = 20.0
"""Seconds for each of the two questions."""

_MAX_URL = 2048


class DiscoveryError(Exception):
    """The homeserver was not found. `passing` says that this may be otherwise in a moment."""

    def __init__(self, reason: str, *, passing: bool) -> None:
        super().__init__(reason)
        self.passing = passing


async def find_homeserver(
    account: Account, known: str | None, around: Surroundings, pools: Pools, status: SessionStatus
) -> str | None:
    """Where the homeserver of an account is, None for one given by its URL; waits until it can be found.

    `known` is what was found before: it is used when discovery does not work for the moment. Raises
    matrix_login_failed when only a person can help.
    """
    if account.server_name is None:
        return None
    pacing = Pacing(around.random, first=0.5, cap=60.0)
    while True:
        try:
            found = await discover(account.server_name, around.clock, pools, allow_private=account.allow_private)
        except DiscoveryError as error:
            if known is not None:
                log.warning("discovery failed, using what is known", account=account.name, why=str(error), url=known)
                return known
            if not error.passing:
                raise ArmorclawError(
                    "matrix_login_failed",
                    f"account {account.name!r} ({account.user} at {account.homeserver})",
                    why=str(error),
                    hint=f'write the URL of the homeserver: accounts.{account.name}.homeserver = "https://…"',
                ) from error
            status.waiting(str(error))
            await trio.sleep(pacing.next())
        else:
            if known is not None and found != known:
                log.warning("the homeserver has moved", account=account.name, was=known, now=found)
            return found


async def discover(server_name: str, clock: Clock, pools: Pools, *, allow_private: bool = False) -> str:
    """The base URL of a server name's homeserver. Raises DiscoveryError."""
    base_url = await _well_known(server_name, pools, allow_private=allow_private)
    try:
        with trio.fail_after(TIMEOUT):
            async with open_api(base_url, clock, pools, guarded=not allow_private) as api:
                spoken = await versions.ask(api)
    except trio.TooSlowError as error:
        raise DiscoveryError(f"{base_url}: the answer took too long", passing=True) from error
    except MatrixError as error:
        verdict = judge(error)
        raise DiscoveryError(f"{base_url}: {verdict.reason}", passing=verdict.again) from error
    if not spoken.usable:
        raise DiscoveryError(f"{base_url} speaks no version of Matrix that has v3", passing=False)
    return base_url


async def _well_known(server_name: str, pools: Pools, *, allow_private: bool) -> str:
    url = f"https://{server_name}/.well-known/matrix/client"
    timeout = {"connect": CONNECT_TIMEOUT, "read": TIMEOUT, "write": TIMEOUT, "pool": TIMEOUT}
    headers = {"Accept": "application/json", "Accept-Encoding": "identity"}
    request = httpx.Request("GET", url, headers=headers, extensions={"timeout": timeout})
    try:
        with trio.fail_after(TIMEOUT):
            async with pools.pool(url, guarded=not allow_private) as pool:
                response = await pool.handle_async_request(request)
                incoming = Incoming(response)
                try:
                    body = await incoming.start(MAX_ANSWER + 1)
                finally:
                    await incoming.close()
    except trio.TooSlowError as error:
        raise DiscoveryError(f"{url}: the answer took too long", passing=True) from error
    except httpx.RequestError as error:
        raise DiscoveryError(f"{url}: {in_words(error)}", passing=True) from error
    if response.status_code == 404:  # it says nothing, so its homeserver is where it is itself
        return f"https://{server_name}"
    if response.status_code != 200:
        passing = response.status_code == 429 or response.status_code >= 500
        raise DiscoveryError(f"{url}: HTTP {response.status_code}", passing=passing)
    if len(body) > MAX_ANSWER:
        raise DiscoveryError(f"{url}: the answer is larger than {MAX_ANSWER} bytes", passing=False)
    return read_base_url(body, url)


def read_base_url(body: bytes, where: str) -> str:
    """The URL that a well-known file names, without a slash at its end. Raises DiscoveryError."""
    try:
        said = json.loads(body)
        base_url = said["m.homeserver"]["base_url"]
        if not isinstance(base_url, str) or len(base_url) > _MAX_URL or not base_url.isascii():
            raise DiscoveryError(f"{where}: it names no URL", passing=False)
        parts = urlsplit(base_url)
        odd = parts.scheme != "https" or not parts.hostname or parts.username is not None or parts.port == 0
    except (ValueError, KeyError, TypeError, RecursionError):
        raise DiscoveryError(f"{where}: it names no homeserver", passing=False) from None
    if odd or parts.query or parts.fragment or not base_url.isprintable() or " " in base_url:
        raise DiscoveryError(f"{where}: {base_url[:200]!r} is no https URL of a homeserver", passing=False)
    return base_url.rstrip("/")
