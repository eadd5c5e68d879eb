"""mautrix's device lists on Trio, without its Olm and Megolm parts, which wait on asyncio."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, cast

import attrs
import trio
from mautrix.api import Method, Path
from mautrix.errors import DeviceValidationError, MatrixResponseError
from mautrix.types import DeviceID, DeviceIdentity, DeviceKeys, QueryKeysResponse, SerializerError, SigningKey, UserID

from armorclaw.log import get_logger
from armorclaw.matrix.client import MatrixClient
from armorclaw.matrix.crypto.database import CryptoDatabase, quiet_log
from armorclaw.matrix.crypto.standing import Standing
from armorclaw.matrix.crypto.upstream import DeviceListMachine, OlmAccount, PgCryptoStore

log = get_logger(__name__)

QUERY_USERS = 100
"""Users in one question for devices; a few hundred kilobytes of answer."""

_USAGES = ("master", "self_signing", "user_signing")


class Machine(DeviceListMachine):
    """Keeps in mautrix's tables what is valid of the answers about devices and cross-signing keys.

    `changed` is called with each user of whom something was heard, in the task that asked.
    """

    account: OlmAccount
    """Signs for the device; set by who makes this."""

    def __init__(
        self, client: MatrixClient, db: CryptoDatabase, store: PgCryptoStore, changed: Callable[[str], object]
    ) -> None:
        super().__init__()
        self.client = cast(Any, client)  # what is used of it is all there
        self.log = quiet_log()
        self.crypto_store = store
        self.delete_keys_on_device_delete = False
        self.standing = Standing(db, str(client.mxid))
        self._db = db
        self._changed = changed
        self._queries = 0
        self._under_way = 0
        self._kept: dict[str, int] = {}  # the number of the query whose answer was kept, while any is under way

    async def query(self, users: Iterable[str]) -> set[str]:
        """Ask for the devices of up to `QUERY_USERS` users and keep what is valid of the answer, unless a query that
        was sent later has been answered before: what it kept is newer.

        Returns whom the homeserver told us about. Raises MatrixError.
        """
        self._queries += 1
        self._under_way += 1
        try:
            return await self._query(self._queries, users)
        finally:
            self._under_way -= 1
            if not self._under_way:
                self._kept.clear()

    async def _query(self, number: int, users: Iterable[str]) -> set[str]:
        asked: dict[str, list[str]] = {user: [] for user in users}
        body = {"timeout": 10_000, "device_keys": asked}
        answer = await self.client.api.request(Method.POST, Path.v3.keys.query, body)
        told = answer.get("device_keys")
        if not isinstance(told, dict):
            raise MatrixResponseError("the answer about devices has none")
        heard = set()
        for user, devices in told.items():
            if user in asked and isinstance(devices, dict):
                if self._kept.get(user, 0) < number:
                    await self._keep(UserID(user), devices, answer)
                    self._kept[user] = number
                heard.add(user)
                self._changed(user)
                await trio.lowlevel.checkpoint()
        return heard

    async def _keep(self, user: UserID, raw_devices: dict[str, Any], answer: dict[str, Any]) -> None:
        devices = {}
        for device_id, raw in raw_devices.items():
            try:
                devices[DeviceID(device_id)] = DeviceKeys.deserialize(_device(raw))
            except (SerializerError, ValueError) as error:
                log.warning("a device's keys cannot be read", user=user, device=device_id, why=type(error).__name__)
        try:
            await self._keep_parsed(user, devices, _cross_signing(user, answer))
        except (KeyError, ValueError, TypeError, AttributeError) as error:
            # mautrix trusts the shape of cross-signing keys; whoever has odd ones has none
            log.warning("cross-signing keys cannot be read", user=user, why=type(error).__name__)
            await self._keep_parsed(user, devices, _parsed({}))

    async def _keep_parsed(
        self, user: UserID, devices: dict[DeviceID, DeviceKeys], identity: QueryKeysResponse
    ) -> None:
        with self._db.transaction():
            await self._process_fetched_keys(user, devices, attrs.evolve(identity, device_keys={user: devices}))

    @staticmethod
    async def _validate_device(
        user_id: UserID, device_id: DeviceID, device_keys: DeviceKeys, existing: DeviceIdentity | None = None
    ) -> DeviceIdentity:
        """As mautrix does, but what was said of the device by hand stays, and so does a device whose keys change.

        To drop it would have the next answer bring it as a new one.
        """
        try:
            fresh = await DeviceListMachine._validate_device(user_id, device_id, device_keys, existing)
            if existing is not None and fresh.identity_key != existing.identity_key:
                raise DeviceValidationError("received update for device with different identity key")
        except DeviceValidationError as error:
            if existing is None:
                raise
            log.error(
                "a device came with other keys, which are not taken", user=user_id, device=device_id, why=str(error)
            )
            return existing
        if existing is not None:
            fresh.trust = existing.trust
        return fresh

    async def _store_device_self_signatures(
        self, device_keys: DeviceKeys, self_signing_key: SigningKey | None
    ) -> None:
        try:
            await super()._store_device_self_signatures(device_keys, self_signing_key)
        except KeyError:  # a device whose new keys were not taken need not have signed them
            log.info("a device has not signed itself", user=device_keys.user_id, device=device_keys.device_id)

    async def on_devices_changed(self, user_id: UserID) -> None:
        """Nothing: who has a room's key is compared with who may have it before each message."""


def _device(raw: Any) -> Any:
    """A device's keys, if all that mautrix relies on is as it should be. Raises ValueError."""
    if not isinstance(raw, dict):
        raise ValueError("a device that is no object")
    texts = [raw.get("user_id"), raw.get("device_id")]
    tables = [raw.get("keys"), *(_entries(raw.get("signatures")))]
    for table in tables:
        texts += _entries(table)
    lists = raw.get("algorithms")
    if not isinstance(lists, list) or not all(isinstance(text, str) for text in [*texts, *lists]):
        raise ValueError("a device of another shape")
    name = raw["unsigned"].get("device_display_name") if isinstance(raw.get("unsigned"), dict) else None
    return {**raw, "unsigned": {"device_display_name": name} if isinstance(name, str) else {}}


def _entries(table: Any) -> list[Any]:
    """Raises ValueError if it is no table."""
    if not isinstance(table, dict):
        raise ValueError("no object where there should be one")
    return list(table.values())


def _cross_signing(user: str, answer: dict[str, Any]) -> QueryKeysResponse:
    """One user's part, without whatever is not of the shape it should have."""
    found: dict[str, Any] = {}
    for usage in _USAGES:
        keys = answer.get(f"{usage}_keys")
        key = keys.get(user) if isinstance(keys, dict) else None
        if isinstance(key, dict) and _serves(key, user, usage):
            found[f"{usage}_keys"] = {user: key}
    return _parsed(found)


def _serves(key: dict[str, Any], user: str, usage: str) -> bool:
    """Whether it is a key for this use, of this user; signatures cover both."""
    try:
        (name,) = _entries(key.get("keys"))
        signers = _entries(key.get("signatures", {}))
        texts = [name, *(text for signer in signers for text in _entries(signer))]
    except ValueError:
        return False
    named = (
        isinstance(name, str) and f"ed25519:{name}" in key["keys"] and all(isinstance(text, str) for text in texts)
    )
    signed = usage == "master" or user in key.get("signatures", {})
    return named and signed and key.get("user_id") == user and key.get("usage") == [usage]


def _parsed(found: dict[str, Any]) -> QueryKeysResponse:
    try:
        return QueryKeysResponse.deserialize(cast(Any, found))
    except SerializerError as error:
        raise ValueError("cross-signing keys of another shape") from error
