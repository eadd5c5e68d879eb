"""One Matrix account at work: logged in, syncing, sending, in its granted rooms. All of it in one nursery."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Literal

import attrs
import trio
from mautrix.errors import MatrixError

from armorclaw.clock import Surroundings
from armorclaw.config import Account
from armorclaw.delivery.outbox import Outbox
from armorclaw.delivery.receipts import Receipts
from armorclaw.errors import one_error
from armorclaw.events.journal import Journal
from armorclaw.log import get_logger
from armorclaw.matrix import aliases, login
from armorclaw.matrix.client import MatrixClient
from armorclaw.matrix.crypto.failures import KeysLost
from armorclaw.matrix.discovery import DiscoveryError, discover, find_homeserver
from armorclaw.matrix.doorman import Doorman
from armorclaw.matrix.entrance import Alert, Entrance
from armorclaw.matrix.facts import Facts
from armorclaw.matrix.given import Given
from armorclaw.matrix.granted import Granted
from armorclaw.matrix.intake import Intake
from armorclaw.matrix.login import Login
from armorclaw.matrix.markers import ReadMarkers
from armorclaw.matrix.pacing import Pacing
from armorclaw.matrix.pools import Pools
from armorclaw.matrix.postman import Postman
from armorclaw.matrix.reading import Reader
from armorclaw.matrix.rooms import Rooms
from armorclaw.matrix.routing.router import Router
from armorclaw.matrix.status import SessionState, SessionStatus
from armorclaw.matrix.sync import SyncLoop
from armorclaw.matrix.transport import judge, open_api
from armorclaw.matrix.typists import Typists
from armorclaw.matrix.undecrypted import Undecrypted
from armorclaw.store import Database

if TYPE_CHECKING:
    from armorclaw.matrix.crypto.encryption import Encryption
    from armorclaw.matrix.crypto.vault import Vault
    from armorclaw.matrix.trust.port import TrustPort
    from armorclaw.matrix.trust.trust import Trust

log = get_logger(__name__)

LASTING = 60.0
"""Seconds after which a login was worth it: the next one follows quickly again."""

INTRODUCTION = 10.0
"""Seconds for which a homeserver that is slow with keys keeps us out of rooms."""

MOVED_SECONDS = 600.0
"""Seconds that a homeserver is away before its server name is asked whether it has moved, and again after each."""


@attrs.frozen
class Services:
    """What sessions use of the rest of the bridge."""

    db: Database
    journal: Journal
    outbox: Outbox
    around: Surroundings
    pools: Pools
    receipts: Receipts | None = None
    vault: Vault | None = None
    """Where keys are kept; without one nothing is encrypted."""
    alert: Alert | None = None


class Session:
    """One account's session. `given` fetches what the operator gave to log in with."""

    def __init__(
        self,
        account: Account,
        services: Services,
        *,
        rooms: Rooms,
        granted: Granted,
        router: Router,
        status: SessionStatus,
        facts: Facts,
        markers: ReadMarkers,
        typists: Typists,
        trust: TrustPort,
        given: Given,
        turn: trio.Lock,
    ) -> None:
        self._account = account
        self._services = services
        self._rooms = rooms
        self._granted = granted
        self._router = router
        self._status = status
        self._facts = facts
        self._markers = markers
        self._typists = typists
        self._trust = trust
        self._given = given
        self._turn = turn
        self._client: MatrixClient | None = None

    async def run(self) -> None:
        """Work until cancelled; waits for a homeserver that does not answer.

        Raises matrix_login_failed when the homeserver does not let us in and nothing we have can change that.
        """
        known = await self._services.db.read(lambda db: login.load(db, self._account.name))
        was = known.base_url if known is not None and known.is_of(self._account) else None
        while True:
            found = await self._find(was)
            with one_error():
                async with trio.open_nursery() as nursery:
                    if found is not None:
                        nursery.start_soon(self._follow, found, nursery.cancel_scope)
                    await self._run_at(found)
            was = found

    async def _find(self, was: str | None) -> str | None:
        """Where the homeserver is, None if that is its configured URL. `was` is where it was before."""
        services, name = self._services, self._account.name
        found = await find_homeserver(self._account, was, services.around, services.pools, self._status)
        if found is not None and found != was:
            await services.db.write(lambda db: login.save_base_url(db, name, found))
        return found

    async def _follow(self, base_url: str, session: trio.CancelScope) -> None:
        """End a session whose homeserver has moved: asked when it has been away for long, and not before."""
        while True:
            await self._status.until(lambda: self._status.state is SessionState.WAITING)
            with trio.move_on_after(MOVED_SECONDS):
                await self._status.until(lambda: self._status.state is not SessionState.WAITING)
                continue
            try:
                services, private = self._services, self._account.allow_private
                name = self._account.homeserver
                found = await discover(name, services.around.clock, services.pools, allow_private=private)
            except DiscoveryError:
                continue
            if found != base_url:
                session.cancel(reason="the homeserver has moved")

    async def _run_at(self, found: str | None) -> None:
        services, account = self._services, self._account
        guarded = found is not None and not account.allow_private
        where = found or account.homeserver
        async with open_api(where, services.around.clock, services.pools, guarded=guarded) as api:
            self._client = MatrixClient(api)
            entrance = Entrance(
                account,
                self._client,
                services.db,
                services.around,
                self._status,
                self._given,
                turn=self._turn,
                keys=services.vault,
                alert=services.alert,
                base_url=found,
            )
            self._status.starting()
            stored = await entrance.enter()
            wanted = account.encryption and services.vault is not None
            encrypts = wanted
            self._status.encryption = "starting" if encrypts else "off"
            pacing = Pacing(services.around.random, first=0.5, cap=60.0)
            while True:
                self._status.starting()
                began = trio.current_time()
                lost = await self._stay(entrance, stored, encrypts=encrypts)
                lasted = trio.current_time() - began
                entrance.lasted(lasted)
                if lasted > LASTING:
                    pacing.reset()
                await trio.sleep(pacing.next())  # the homeserver may forget the next login as fast
                if lost is None:
                    stored = await entrance.again()
                    encrypts = encrypts or (wanted and stored.identity_key is None)  # of a new device none are lost
                elif (fresh := await entrance.new_device(lost)) is not None:
                    stored = fresh
                else:  # rooms without encryption go on
                    stored, encrypts = await entrance.as_stored(), False
                    self._status.encryption = "lost"

    async def _stay(self, entrance: Entrance, stored: Login, *, encrypts: bool) -> str | None:
        """Work with one login until the homeserver has forgotten it, or its keys are lost; then how."""
        try:
            with one_error():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(entrance.renewal.run)
                    await self._work(stored, encrypts=encrypts)
                    nursery.cancel_scope.cancel(reason="the login is no longer good")
        except KeysLost as lost:
            return lost.why
        return None

    async def _work(self, stored: Login, *, encrypts: bool) -> None:
        """Sync, send and join until the access token is no longer good. Raises KeysLost if it `encrypts`."""
        assert self._client is not None
        services, name = self._services, self._account.name
        self._client.use(stored.user_id, stored.device_id, stored.access_token)
        self._status.logged_in(stored.user_id, stored.device_id)
        self._rooms.replace(await services.db.read(self._rooms.load))
        self._granted.replace(await services.db.read(lambda conn: aliases.load(conn, name)))
        async with AsyncExitStack() as stack:
            encryption = await stack.enter_async_context(self._encryption(stored)) if encrypts else None
            lost = self._status.encryption == "lost"
            postman = Postman(self._client, self._rooms, encryption, lost=lost)
            trust = self._trusting(encryption, postman) if encryption is not None else None
            if trust is not None:
                stack.enter_context(self._trust.answered_by(trust))
            sync = await self._sync(stored, encryption, trust)
            doorman = Doorman(
                self._client, self._granted, self._rooms, services.around, keep=self._keep_alias, router=self._router
            )
            with one_error(), self._facts.answered_by(self._client, encryption):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(services.outbox.serve, name, postman)
                    if encryption is not None:
                        nursery.start_soon(encryption.run)
                    if trust is not None:
                        nursery.start_soon(trust.run)
                    if self._account.read_receipts:
                        nursery.start_soon(self._markers.run, self._mark_read)
                    nursery.start_soon(self._typists.run, self._show_typing)
                    await doorman.look_up_aliases(self._status.waiting)
                    nursery.start_soon(self._keep_the_door, doorman, trust)
                    await sync.run()
                    log.warning("access token no longer known", account=name)
                    nursery.cancel_scope.cancel(reason="the access token is no longer good")

    @asynccontextmanager
    async def _encryption(self, stored: Login) -> AsyncIterator[Encryption]:
        """Raises KeysLost. From the first time on it is known that there are keys to lose."""
        from armorclaw.matrix.crypto.encryption import DevicePolicy, open_encryption

        assert self._client is not None
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
        ) as encryption:
            await encryption.resume(stored.next_batch)
            if stored.identity_key is None:
                key = encryption.identity_key
                await db.write(lambda conn: login.save_identity(conn, name, key), durable=True)
            self._status.encryption = "ready"
            yield encryption

    def _trusting(self, encryption: Encryption, postman: Postman) -> Trust:
        from armorclaw.matrix.trust.trust import Trust

        assert self._client is not None
        return Trust(
            self._account.name,
            self._client,
            encryption,
            postman,
            self._rooms,
            self._services.around,
            password=self._given.password_at_hand,
            recovery_key=self._trust.recovery_key,
            tell=self._tell,
        )

    async def _tell(self, name: str, severity: Literal["info", "warning", "error"], text: str) -> None:
        if self._services.alert is not None:
            await self._services.alert(name, severity, text)

    async def _sync(self, stored: Login, encryption: Encryption | None, trust: Trust | None) -> SyncLoop:
        assert self._client is not None
        services, name = self._services, self._account.name
        clock = services.around.clock
        undecrypted = Undecrypted(name, services.db, clock)
        undecrypted.on_count = self._status.waiting_for_keys
        await undecrypted.load()

        def is_encrypted(room_id: str) -> bool | None:
            """The keys' own file remembers what was once asked about a room, over restarts."""
            return (encryption is not None and encryption.knows(room_id)) or self._rooms.encrypted(room_id)

        sync = SyncLoop(
            name,
            self._client,
            stored.next_batch,
            told=await services.db.read(lambda conn: login.all_told(conn, name)),
            intake=Intake(name, services.db, services.journal, services.receipts, undecrypted),
            cache=self._facts.cache,
            rooms=self._rooms,
            desk=self._router,
            reader=Reader(
                name,
                stored.user_id,
                clock,
                desk=self._router,
                outcomes=self._status,
                undecrypted=undecrypted,
                encryption=encryption,
                without="keys_lost" if self._status.encryption == "lost" else "encryption_off",
                on_verification=trust.verifications.on_room if trust is not None else None,
                is_encrypted=is_encrypted,
            ),
            undecrypted=undecrypted,
            encryption=encryption,
            status=self._status,
            around=services.around,
            connected=self._hurry,
            moved=self._granted.poke,
        )
        if encryption is not None:
            encryption.on_keys = sync.on_keys
        return sync

    def _hurry(self) -> None:
        self._services.outbox.hurry(self._account.name)
        self._markers.hurry()

    async def _mark_read(self, room_id: str, event_id: str) -> None:
        assert self._client is not None
        try:
            await self._client.mark_read(room_id, event_id)
        except MatrixError as error:
            raise judge(error).exception() from error

    async def _show_typing(self, room_id: str, seconds: float) -> None:
        assert self._client is not None
        try:
            await self._client.show_typing(room_id, seconds)
        except MatrixError as error:
            raise judge(error).exception() from error

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
