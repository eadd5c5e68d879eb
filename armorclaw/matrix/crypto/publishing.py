"""What the homeserver keeps of ours for others: the device's keys, one-time keys in stock, and a fallback key.

A private half is on disk before its public half is anywhere else. Specification: Client-Server API, "Uploading keys".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import trio
from mautrix.api import Method, Path
from mautrix.errors import MatrixRequestError

from armorclaw.clock import Clock
from armorclaw.log import get_logger
from armorclaw.matrix.client import MatrixClient
from armorclaw.matrix.crypto.channels import Channels
from armorclaw.matrix.crypto.database import CryptoDatabase
from armorclaw.matrix.crypto.failures import KeysLost
from armorclaw.matrix.crypto.upstream import PgCryptoStore, canonical_json

log = get_logger(__name__)

STOCK, LOW = 50, 25
"""One-time keys to have on the homeserver, and how few there must be before more are brought."""

FALLBACK_PAUSE = 3600.0
"""Seconds between two fallback keys: what the homeserver says of the last one may be older than it, and what was said
with the one before is still on its way. With each new one the last but one is forgotten."""

FALLBACK_MS = 7 * 24 * 3600 * 1000
"""After this a fallback key is replaced though it seems unused: a homeserver that never says that it was used could
else bring whatever was said with it again, whenever it likes."""

REPUBLISH_PAUSE = 300.0
"""Seconds after the device's keys were published in which a homeserver may take its time to tell of them."""

_ALGORITHM = "signed_curve25519"


class Publisher:
    """One device's."""

    def __init__(
        self, client: MatrixClient, db: CryptoDatabase, store: PgCryptoStore, channels: Channels, clock: Clock
    ) -> None:
        self._client = client
        self._db = db
        self._store = store
        self._channels = channels
        self._clock = clock
        self._lock = trio.Lock()
        self._short = True  # nobody has told yet how many there are
        self._fallback_used = False
        row = db.one("SELECT value FROM facts WHERE name = 'fallback_ms'")
        self._fallback_ms = 0 if row is None else int(row[0])
        age = max(clock.now_ms() - self._fallback_ms, 0) / 1000  # less than none: the clock was set back
        self._fallback_at = clock.monotonic() - min(age, FALLBACK_PAUSE)
        self._published_at = -REPUBLISH_PAUSE
        self._losses = 0  # how often the homeserver has lost the device
        self._made_good = 0  # after how many of them it was published
        self._wanted = trio.Event()

    def told(self, counts: Mapping[str, int] | None, fallback: Sequence[str] | None) -> None:
        """What a sync said of the stock."""
        self._short = self._short or (counts is not None and counts.get(_ALGORITHM, 0) < LOW)
        self._fallback_used = fallback is not None and _ALGORITHM not in fallback
        if self.due():
            self._wanted.set()

    async def until_due(self) -> None:
        """Until there is anything to publish."""
        while not self.due():
            self._wanted = trio.Event()
            await self._wanted.wait()

    def due(self) -> bool:
        """Whether there is anything to publish now."""
        return self._short or not self._shared or self._fallback_due()

    async def ensure_device(self) -> None:
        """Until the device's keys are published: without them nobody believes what it says.

        Raises MatrixError, and KeysLost if they are those of another program.
        """
        while not self._shared:
            await self.publish()

    def missed(self) -> bool:
        """The homeserver does not tell of the device: if that is not new to it, it is published anew."""
        lost = self._clock.monotonic() - self._published_at >= REPUBLISH_PAUSE
        if lost:
            self._losses += 1
            self._short = True  # of one-time keys it most likely has none either
            self._wanted.set()
        return lost

    async def publish(self) -> None:
        """Publish what is due. Raises as `ensure_device`."""
        async with self._lock:
            if not self.due():
                return
            losses, anew = self._losses, not self._shared
            known = not anew or await self._is_known()
            fallback = not known or self._fallback_due()
            count = await self._upload({}) if self._short else STOCK
            account = await self._channels.current()
            account.generate_one_time_keys(max(STOCK - count - len(account.one_time_keys["curve25519"]), 0))
            if fallback and not account.fallback_key["curve25519"]:
                account.generate_fallback_key()
            await self._store.put_account(account)
            await self._db.sync()
            if (body := self._body(with_device=not known)) or anew:
                await self._upload_new(body)
                await self._note_published(fallback="fallback_keys" in body)
            if losses == self._losses:  # else it was lost again meanwhile, perhaps with what was just brought
                self._made_good, self._short = losses, False
                if anew:
                    self._published_at = self._clock.monotonic()

    async def _note_published(self, *, fallback: bool) -> None:
        account, now = await self._channels.current(), self._clock.now_ms()
        account.shared = True
        account.mark_keys_as_published()
        with self._db.transaction():
            await self._store.put_account(account)
            if fallback:
                sql = "INSERT INTO facts VALUES ('fallback_ms', ?) ON CONFLICT DO UPDATE SET value = excluded.value"
                self._db.run(sql, str(now))
        if fallback:
            self._fallback_used, self._fallback_at, self._fallback_ms = False, self._clock.monotonic(), now

    async def _upload_new(self, body: dict[str, Any]) -> None:
        try:
            await self._upload(body)
        except MatrixRequestError as error:
            if error.http_status != 400:
                raise
            # keys of these names are there: of a life that we remember nothing of. Others come with the next attempt
            log.warning("the homeserver does not take one-time keys", why=error.message)
            if rest := {name: keys for name, keys in body.items() if name != "one_time_keys"}:
                await self._upload(rest)
            await self._note_published(fallback="fallback_keys" in body)
            raise

    async def _upload(self, body: dict[str, Any]) -> int:
        answer = await self._client.api.request(Method.POST, Path.v3.keys.upload, body)
        counts = answer.get("one_time_key_counts")
        count = counts.get(_ALGORITHM, 0) if isinstance(counts, dict) else 0
        return count if type(count) is int else 0

    async def _is_known(self) -> bool:
        """Whether the homeserver has this device's keys already. Raises KeysLost if it has others."""
        own, device = str(self._client.mxid), str(self._client.device_id)
        body = {"timeout": 10_000, "device_keys": {own: [device]}}
        answer = await self._client.api.request(Method.POST, Path.v3.keys.query, body)
        try:
            keys = answer["device_keys"][own][device]["keys"]
        except (KeyError, TypeError):
            return False
        if keys.get(f"ed25519:{device}") != self._channels.account.signing_key:
            raise KeysLost(f"the homeserver has other keys of the device {device}: another program made them")
        return True

    @property
    def _shared(self) -> bool:
        """Whether the homeserver has the device, as far as is known."""
        return self._losses == self._made_good and self._channels.account.shared

    def _fallback_due(self) -> bool:
        if self._clock.monotonic() - self._fallback_at < FALLBACK_PAUSE:
            return False
        age = self._clock.now_ms() - self._fallback_ms
        return self._fallback_used or not 0 <= age < FALLBACK_MS  # where the clock was set back nobody knows its age

    def _body(self, *, with_device: bool) -> dict[str, Any]:
        account, own, device = self._channels.account, self._client.mxid, self._client.device_id
        body: dict[str, Any] = {}
        if with_device:
            body["device_keys"] = account.get_device_keys(own, device).serialize()
        if keys := account.one_time_keys["curve25519"]:
            body["one_time_keys"] = {f"{_ALGORITHM}:{name}": self._signed({"key": key}) for name, key in keys.items()}
        if keys := account.fallback_key["curve25519"]:
            body["fallback_keys"] = {
                f"{_ALGORITHM}:{name}": self._signed({"key": key, "fallback": True}) for name, key in keys.items()
            }
        return body

    def _signed(self, key: dict[str, Any]) -> dict[str, Any]:
        signature = self._channels.account.sign(canonical_json(key))
        return {**key, "signatures": {str(self._client.mxid): {f"ed25519:{self._client.device_id}": signature}}}
