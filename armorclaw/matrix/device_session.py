"""What an account does while it is logged in: sync, send, join and keep the door. All of it in one nursery."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING

import trio

from armorclaw.config import Account
from armorclaw.errors import one_error
from armorclaw.log import get_logger
from armorclaw.matrix import aliases, login
from armorclaw.matrix.client import MatrixClient
from armorclaw.matrix.doorman import Doorman
from armorclaw.matrix.entry import Entry
from armorclaw.matrix.failures import as_attempt
from armorclaw.matrix.given import Given
from armorclaw.matrix.intake import Intake
from armorclaw.matrix.login import Login
from armorclaw.matrix.postman import Postman
from armorclaw.matrix.processing import Processor
from armorclaw.matrix.reading import Reader
from armorclaw.matrix.services import Services
from armorclaw.matrix.sync import SyncLoop
from armorclaw.matrix.undecrypted import Undecrypted

if TYPE_CHECKING:
    from armorclaw.matrix.crypto.encryption import Encryption
    from armorclaw.matrix.trust.trust import Trust

log = get_logger(__name__)

INTRODUCTION = 10.0
"""Seconds for which a homeserver that is slow with keys keeps us out of rooms."""


class DeviceSession:
    """One account as one device, while its login is good."""

    def __init__(
        self, account: Account, entry: Entry, services: Services, client: MatrixClient, given: Given
    ) -> None:
        self._account = account
        self._entry = entry
        self._services = services
        self._client = client
        self._given = given
        self._status = entry.status

    async def run(self, stored: Login, *, encrypts: bool) -> None:
        """Sync, send and join until the access token is no longer good. Raises KeysLost if it `encrypts`."""
        services, entry, name = self._services, self._entry, self._account.name
        self._client.use(stored.user_id, stored.device_id, stored.access_token)
        self._status.logged_in(stored.user_id, stored.device_id)
        await entry.load(services.db)
        async with AsyncExitStack() as stack:
            encryption = await stack.enter_async_context(self._encryption(stored)) if encrypts else None
            lost = self._status.encryption == "lost"
            postman = Postman(self._client, entry.rooms, encryption, lost=lost)
            trust = self._trusting(encryption, postman) if encryption is not None else None
            if trust is not None:
                stack.enter_context(entry.trust.answered_by(trust))
            sync = await self._sync(stored, encryption, trust)
            doorman = Doorman(
                self._client, entry.granted, entry.rooms, services.around, keep=self._keep_alias, router=entry.router
            )
            with one_error(), entry.facts.answered_by(self._client, encryption):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(services.outbox.serve, name, postman)
                    if encryption is not None:
                        nursery.start_soon(encryption.run)
                    if trust is not None:
                        nursery.start_soon(trust.run)
                    if self._account.read_receipts:
                        nursery.start_soon(entry.markers.run, self._mark_read)
                    nursery.start_soon(entry.typists.run, self._show_typing)
                    await doorman.look_up_aliases(self._status.waiting)
                    nursery.start_soon(self._keep_the_door, doorman, trust)
                    await sync.run()
                    log.warning("access token no longer known", account=name)
                    nursery.cancel_scope.cancel(reason="the access token is no longer good")

    @asynccontextmanager
    async def _encryption(self, stored: Login) -> AsyncIterator[Encryption]:
        """Raises KeysLost. From the first time on it is known that there are keys to lose."""
        from armorclaw.matrix.crypto.encryption import DevicePolicy, open_encryption

        assert self._services.vault is not None
        account, db = self._account, self._services.db
        name = account.name
        self._status.encryption = "starting"
        async with open_encryption(
            name,
            self._client,
            self._services.vault,
            identity_key=stored.identity_key,
            around=self._services.around,
            devices=DevicePolicy(account.unverified_devices, account.unverified_devices_in),
            counts=self._status.encryption_counts,
            keep_room_keys_days=account.keep_room_keys_days,
        ) as encryption:
            await encryption.resume(stored.next_batch)
            if stored.identity_key is None:
                key = encryption.identity_key
                await db.write(lambda conn: login.save_identity(conn, name, key), durable=True)
            self._status.encryption = "ready"
            yield encryption

    def _trusting(self, encryption: Encryption, postman: Postman) -> Trust:
        from armorclaw.matrix.trust.trust import Trust

        return Trust(
            self._account.name,
            self._client,
            encryption,
            postman,
            self._entry.rooms,
            self._services.around,
            password=self._given.password_at_hand,
            recovery_key=self._entry.trust.recovery_key,
            tell=self._services.alert,
        )

    async def _sync(self, stored: Login, encryption: Encryption | None, trust: Trust | None) -> SyncLoop:
        services, entry, name = self._services, self._entry, self._account.name
        clock = services.around.clock
        undecrypted = Undecrypted(name, services.db, clock)
        undecrypted.on_count = self._status.waiting_for_keys
        await undecrypted.load()

        def is_encrypted(room_id: str) -> bool | None:
            """The keys' own file remembers what was once asked about a room, over restarts."""
            return (encryption is not None and encryption.knows(room_id)) or entry.rooms.encrypted(room_id)

        reader = Reader(
            name,
            stored.user_id,
            clock,
            desk=entry.router,
            outcomes=self._status,
            undecrypted=undecrypted,
            encryption=encryption,
            without="keys_lost" if self._status.encryption == "lost" else "encryption_off",
            on_verification=trust.verifications.on_room if trust is not None else None,
            is_encrypted=is_encrypted,
        )
        intake = Intake(name, services.db, services.journal, services.receipts, undecrypted)
        processor = Processor(
            self._client, stored, entry.facts, reader, intake, encryption, clock, moved=entry.granted.poke
        )
        sync = SyncLoop(self._client, processor, self._status, services.around, connected=self._hurry)
        if encryption is not None:
            encryption.on_keys = sync.on_keys
        return sync

    def _hurry(self) -> None:
        self._services.outbox.hurry(self._account.name)
        self._entry.markers.hurry()

    async def _mark_read(self, room_id: str, event_id: str) -> None:
        with as_attempt():
            await self._client.mark_read(room_id, event_id)

    async def _show_typing(self, room_id: str, seconds: float) -> None:
        with as_attempt():
            await self._client.show_typing(room_id, seconds)

    async def _keep_alias(self, alias: str, room_id: str) -> None:
        await self._services.db.write(lambda conn: aliases.save(conn, self._account.name, alias, room_id))

    async def _keep_the_door(self, doorman: Doorman, trust: Trust | None) -> None:
        """Only once the first sync has told which rooms we are in, and which ask for us.

        And once our device can be looked up, or the first that is said to us in a room is said without a key for us.
        """
        await self._status.until(lambda: self._status.connected)
        if trust is not None:
            with trio.move_on_after(INTRODUCTION):
                await trust.introduced.wait()
        await doorman.run()
