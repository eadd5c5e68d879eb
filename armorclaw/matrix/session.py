"""One Matrix account at work: logged in, syncing, sending, in its granted rooms. All of it in one nursery."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import attrs
import trio
from mautrix.errors import MatrixError

from armorclaw.clock import Surroundings
from armorclaw.config import Account
from armorclaw.delivery.outbox import Outbox
from armorclaw.delivery.receipts import Receipts
from armorclaw.delivery.transport import Delayed, Refused
from armorclaw.errors import ArmorclawError, one_error
from armorclaw.events.journal import Journal
from armorclaw.log import get_logger
from armorclaw.matrix import aliases, echo, login
from armorclaw.matrix.client import MatrixClient
from armorclaw.matrix.doorman import Doorman
from armorclaw.matrix.facts import Facts
from armorclaw.matrix.granted import Granted
from armorclaw.matrix.intake import Intake
from armorclaw.matrix.login import Login
from armorclaw.matrix.markers import ReadMarkers
from armorclaw.matrix.pacing import Pacing
from armorclaw.matrix.pools import Pools
from armorclaw.matrix.rooms import Rooms
from armorclaw.matrix.status import SessionStatus
from armorclaw.matrix.sync import SyncLoop
from armorclaw.matrix.transport import judge, open_api
from armorclaw.store import Database
from armorclaw.structure import Secret

log = get_logger(__name__)

LASTING = 60.0
"""Seconds after which a login was worth it: the next one follows quickly again."""

GivenSecret = Callable[[], Secret | None]
"""Raises config_invalid when a file cannot be read."""


@attrs.frozen
class Services:
    """What sessions use of the rest of the bridge."""

    db: Database
    journal: Journal
    outbox: Outbox
    around: Surroundings
    pools: Pools
    receipts: Receipts | None = None


class Session:
    """One account's session; `put`, `find_echo` and `device_id` make it the outbox's transport.

    `password` and `token` fetch what the operator gave. They are asked only when they are needed: after the first
    login the stored one is enough, and the files may be gone.
    """

    def __init__(
        self,
        account: Account,
        services: Services,
        *,
        rooms: Rooms,
        granted: Granted,
        status: SessionStatus,
        facts: Facts,
        markers: ReadMarkers,
        password: GivenSecret,
        token: GivenSecret,
    ) -> None:
        self._account = account
        self._services = services
        self._rooms = rooms
        self._granted = granted
        self._status = status
        self._facts = facts
        self._markers = markers
        self._password = password
        self._token = token
        self._client: MatrixClient | None = None

    async def run(self) -> None:
        """Work until cancelled; waits for a homeserver that does not answer.

        Raises matrix_login_failed when the homeserver does not let us in and nothing we have can change that.
        """
        services = self._services
        async with open_api(self._account.homeserver, services.around.clock, services.pools) as api:
            self._client = MatrixClient(api)
            known = await services.db.read(lambda db: login.load(db, self._account.name))
            if known is not None and not known.serves(self._account, self._token_at_hand()):
                known = None
            pacing = Pacing(services.around.random, first=0.5, cap=60.0)
            while True:
                self._status.starting()
                began = trio.current_time()
                await self._work(known if known is not None else await self._log_in())
                known = None  # the homeserver has forgotten this login
                if trio.current_time() - began > LASTING:
                    pacing.reset()
                await trio.sleep(pacing.next())  # it may forget the next one as fast

    @property
    def device_id(self) -> str:
        """The device that we are now: homeservers know transaction ids by device."""
        assert self._client is not None
        return str(self._client.device_id)

    async def put(self, room_id: str, type_: str, txn_id: str, content: bytes) -> str:
        """Send one event and return its id. Raises Delayed or Refused, as the outbox wants it."""
        assert self._client is not None
        try:
            encrypted = await self.is_encrypted(room_id)
        except MatrixError as error:  # nothing was sent now, and of earlier attempts this says nothing
            verdict = judge(error)
            if verdict.again:
                raise Delayed(verdict.after, verdict.reason, sure=True, whole=verdict.whole) from error
            raise Refused(verdict.reason, sure=False) from error
        if encrypted:
            raise Refused("room_encrypted: a message there would be in the clear", sure=False)
        try:
            return await self._client.put_event(room_id, type_, txn_id, content)
        except MatrixError as error:
            raise judge(error).exception() from error

    async def find_echo(
        self, room_id: str, type_: str, content: bytes, since_ms: int, claimed: Callable[[str], Awaitable[bool]]
    ) -> str | None:
        """As `echo.find_echo`: whether a message that may have been sent is in the room."""
        assert self._client is not None
        return await echo.find_echo(self._client, room_id, type_, content, since_ms, claimed)

    async def is_encrypted(self, room_id: str) -> bool:
        """Whether a message in this room must be encrypted; asks the homeserver if nothing is known of the room."""
        assert self._client is not None
        known = self._rooms.encrypted(room_id)
        return await self._client.is_encrypted(room_id) if known is None else known

    async def _log_in(self) -> Login:
        """Log in with what there is, waiting out a homeserver that does not answer, and store the result."""
        assert self._client is not None
        pacing = Pacing(self._services.around.random)
        stored = await self._services.db.read(lambda db: login.load(db, self._account.name))
        device = self._account.device_id or (stored.device_id if stored else "") or login.new_device_id()
        while True:
            try:
                fresh = await self._ask(self._client, device)
                break
            except MatrixError as error:
                verdict = judge(error)
                if verdict.unknown_token or not verdict.again:
                    raise self._not_let_in(verdict.reason) from error
                self._status.waiting(verdict.reason)
                await trio.sleep(pacing.next(verdict.after))
        return await self._services.db.write(lambda db: login.save(db, self._account.name, fresh), durable=True)

    async def _ask(self, client: MatrixClient, device: str) -> Login:
        account = self._account
        try:
            password, token = self._password(), self._token()
        except ArmorclawError as error:
            raise self._not_let_in(str(error)) from error
        client.api.token = ""
        if password is not None:
            return await login.with_password(client, account.homeserver, account.user, password, device)
        if token is not None:
            return await login.with_token(client, account, token)
        raise self._not_let_in("there is neither a password nor a token")

    def _token_at_hand(self) -> Secret | None:
        try:
            return self._token()
        except ArmorclawError:
            return None

    def _not_let_in(self, why: str) -> ArmorclawError:
        account = self._account
        what = f"account {account.name!r} ({account.user} at {account.homeserver})"
        hint = f"check accounts.{account.name} in the configuration, or call matrix.login"
        return ArmorclawError("matrix_login_failed", what, why=why, hint=hint)

    async def _work(self, stored: Login) -> None:
        """Sync, send and join until the access token is no longer good."""
        assert self._client is not None
        self._client.use(stored.user_id, stored.device_id, stored.access_token)
        self._status.logged_in(stored.user_id, stored.device_id)
        db, name = self._services.db, self._account.name
        self._rooms.replace(await db.read(self._rooms.load))
        self._granted.replace(await db.read(lambda conn: aliases.load(conn, name)))
        doorman = Doorman(self._client, self._granted, self._rooms, self._services.around, keep=self._keep_alias)
        sync = SyncLoop(
            self._account.name,
            self._client,
            stored.next_batch,
            intake=Intake(name, db, self._services.journal, self._services.receipts),
            cache=self._facts.cache,
            rooms=self._rooms,
            granted=self._granted,
            status=self._status,
            around=self._services.around,
            connected=self._hurry,
        )
        with one_error(), self._facts.answered_by(self._client):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._services.outbox.serve, self._account.name, self)
                if self._account.read_receipts:
                    nursery.start_soon(self._markers.run, self._mark_read)
                await doorman.look_up_aliases(self._status.waiting)
                nursery.start_soon(self._keep_the_door, doorman)
                await sync.run()
                log.warning("access token no longer known", account=self._account.name)
                nursery.cancel_scope.cancel(reason="the access token is no longer good")

    def _hurry(self) -> None:
        self._services.outbox.hurry(self._account.name)
        self._markers.hurry()

    async def _mark_read(self, room_id: str, event_id: str) -> None:
        assert self._client is not None
        try:
            await self._client.mark_read(room_id, event_id)
        except MatrixError as error:
            raise judge(error).exception() from error

    async def _keep_alias(self, alias: str, room_id: str) -> None:
        await self._services.db.write(lambda conn: aliases.save(conn, self._account.name, alias, room_id))

    async def _keep_the_door(self, doorman: Doorman) -> None:
        """Only once the first sync has told which rooms we are in, and which ask for us."""
        await self._status.until(lambda: self._status.connected)
        await doorman.run()
