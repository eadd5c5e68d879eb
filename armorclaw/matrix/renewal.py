"""An access token that ends is renewed before, or when a request finds that it has ended."""

from __future__ import annotations

from typing import Literal

import attrs
import trio
from mautrix.errors import MatrixError

from armorclaw.clock import Surroundings
from armorclaw.errors import ArmorclawError
from armorclaw.log import get_logger
from armorclaw.matrix import login
from armorclaw.matrix.client import MatrixClient
from armorclaw.matrix.failures import judge
from armorclaw.matrix.login import Login
from armorclaw.matrix.pacing import Pacing
from armorclaw.matrix.tokens import Tokens
from armorclaw.store import Database

log = get_logger(__name__)

REFRESH_LEAST = 2.0
"""Seconds between two refreshes at least, however short the tokens live."""

REFRESH_TIMEOUT = 20.0
"""Seconds for one refresh; requests that found the token expired wait that long."""

_MARGIN, _SHARE = 60.0, 0.2  # seconds, and of the time that is left: how long before its end a token is renewed


class Renewal:
    """The login that a client uses now. Whoever has a new one gives it to `use`."""

    def __init__(self, account: str, client: MatrixClient, db: Database, around: Surroundings) -> None:
        self.current: Login | None = None
        self._account = account
        self._client = client
        self._db = db
        self._around = around
        self._renewing = trio.Lock()
        self._pacing = Pacing(around.random, first=1.0, cap=30.0)
        self._not_before = -float("inf")
        self._changed = trio.Event()
        client.api.renew = self.renew

    def use(self, stored: Login) -> Login:
        """From now on it is this login."""
        self.current = stored
        self._client.use(stored.user_id, stored.device_id, stored.access_token)
        changed, self._changed = self._changed, trio.Event()
        changed.set()
        return stored

    @property
    def possible(self) -> bool:
        """Whether there is a refresh token, and the homeserver has not refused it."""
        return self.current is not None and self.current.refresh_token is not None

    async def run(self) -> None:
        """Renew the access token before it ends, again and again, until cancelled."""
        while True:
            current, changed = self.current, self._changed
            if current is None or current.refresh_token is None or current.expires_ms is None:
                await changed.wait()
                continue
            left = (current.expires_ms - self._around.clock.now_ms()) / 1000
            with trio.move_on_after(max(left - min(_MARGIN, left * _SHARE), 0.0)):
                await changed.wait()
                continue
            if not await self.renew(current.access_token):
                wait = self._not_before - self._around.clock.monotonic()
                await trio.sleep(max(wait, REFRESH_LEAST))

    async def renew(self, used: str) -> bool:
        """Whether there is, or now comes, a token in place of this one. Never raises but for being cancelled.

        The new tokens are on disk before they are used: until they are used the homeserver takes the old ones too, so
        neither an answer that is lost nor the end of this process costs the login.
        """
        async with self._renewing:
            if self._client.api.token != used:
                return True
            current, now = self.current, self._around.clock.monotonic()
            if current is None or current.refresh_token is None or now < self._not_before:
                return False
            self._not_before = now + REFRESH_LEAST
            try:
                with trio.fail_after(REFRESH_TIMEOUT):
                    tokens = await self._client.refresh(current.refresh_token)
                    stored = await self._save_tokens(current.access_token, tokens)
            except MatrixError as error:
                verdict = judge(error)
                if verdict.again and not verdict.unknown_token:
                    return self._not_now(verdict.reason, verdict.after)
                log.warning("refresh token refused", account=self._account, why=verdict.reason)
                self.use(attrs.evolve(current, refresh_token=None))  # and on disk with what follows
                return False
            except (trio.TooSlowError, ArmorclawError) as error:
                return self._not_now(str(error) or "it took too long", None)
            self._pacing.reset()
            if stored is None or not stored.access_token:
                return self._not_now("the login is no more", None)
            self.use(stored)
            return True

    def _not_now(self, why: str, told: float | None) -> Literal[False]:
        log.warning("access token not renewed", account=self._account, why=why)
        self._not_before = self._around.clock.monotonic() + max(self._pacing.next(told), REFRESH_LEAST)
        return False

    async def _save_tokens(self, used: str, tokens: Tokens) -> Login | None:
        name, now_ms = self._account, self._around.clock.now_ms()
        return await self._db.write(lambda db: login.save_tokens(db, name, used, tokens, now_ms), durable=True)
