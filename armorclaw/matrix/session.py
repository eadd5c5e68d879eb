"""One Matrix account at work: logged in, syncing, sending, in its granted rooms. All of it in one nursery."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import trio
from mautrix.errors import MatrixError

from armorclaw.clock import Surroundings
from armorclaw.config import Account
from armorclaw.delivery.outbox import Outbox
from armorclaw.delivery.transport import Refused
from armorclaw.errors import ArmorclawError, one_error
from armorclaw.events.journal import Journal
from armorclaw.log import get_logger
from armorclaw.matrix import aliases, login
from armorclaw.matrix.client import MatrixClient
from armorclaw.matrix.doorman import Doorman
from armorclaw.matrix.granted import Granted
from armorclaw.matrix.login import Login
from armorclaw.matrix.pacing import Pacing
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


class Session:
    """One account's session; `put` makes it the outbox's transport.

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
        password: GivenSecret,
        token: GivenSecret,
    ) -> None:
        self._account = account
        self._services = services
        self._rooms = rooms
        self._granted = granted
        self._status = status
        self._password = password
        self._token = token
        self._client: MatrixClient | None = None

    async def run(self) -> None:
        """Work until cancelled; waits for a homeserver that does not answer.

        Raises matrix_login_failed when the homeserver does not let us in and nothing we have can change that.
        """
        async with open_api(self._account.homeserver, self._services.around.clock) as api:
            self._client = MatrixClient(api)
            known = await self._services.db.read(lambda db: login.load(db, self._account.name))
            if known is not None and not known.serves(self._account, self._token_at_hand()):
                known = None
            pacing = Pacing(self._services.around.random, first=0.5, cap=60.0)
            while True:
                self._status.starting()
                began = trio.current_time()
                await self._work(known if known is not None else await self._log_in())
                known = None  # the homeserver has forgotten this login
                if trio.current_time() - began > LASTING:
                    pacing.reset()
                await trio.sleep(pacing.next())  # it may forget the next one as fast

    async def put(self, room_id: str, type_: str, txn_id: str, content: bytes) -> str:
        """Send one event and return its id. Raises Delayed or Refused, as the outbox wants it."""
        assert self._client is not None
        try:
            if await self.is_encrypted(room_id):
                raise Refused("room_encrypted: a message there would be in the clear")
            return await self._client.put_event(room_id, type_, txn_id, content)
        except MatrixError as error:
            raise judge(error).exception() from error

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
            journal=self._services.journal,
            rooms=self._rooms,
            granted=self._granted,
            status=self._status,
            around=self._services.around,
            connected=lambda: self._services.outbox.hurry(self._account.name),
        )
        with one_error():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._services.outbox.serve, self._account.name, self)
                await doorman.look_up_aliases(self._status.waiting)
                nursery.start_soon(self._keep_the_door, doorman)
                await sync.run()
                log.warning("access token no longer known", account=self._account.name)
                nursery.cancel_scope.cancel(reason="the access token is no longer good")

    async def _keep_alias(self, alias: str, room_id: str) -> None:
        await self._services.db.write(lambda conn: aliases.save(conn, self._account.name, alias, room_id))

    async def _keep_the_door(self, doorman: Doorman) -> None:
        """Only once the first sync has told which rooms we are in, and which ask for us."""
        await self._status.until(lambda: self._status.connected)
        await doorman.run()
