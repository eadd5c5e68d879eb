"""One Matrix account at work: its homeserver found, logged in, and logged in again when a login ends."""

from __future__ import annotations

import trio

from armorclaw.errors import one_error
from armorclaw.log import get_logger
from armorclaw.matrix import login
from armorclaw.matrix.client import MatrixClient
from armorclaw.matrix.crypto.failures import KeysLost
from armorclaw.matrix.device_session import DeviceSession
from armorclaw.matrix.discovery import DiscoveryError, discover, find_homeserver
from armorclaw.matrix.entrance import Entrance
from armorclaw.matrix.entry import Entry
from armorclaw.matrix.given import Given
from armorclaw.matrix.login import Login
from armorclaw.matrix.pacing import Pacing
from armorclaw.matrix.pools import Pools
from armorclaw.matrix.services import Services
from armorclaw.matrix.status import SessionState
from armorclaw.matrix.transport import open_api

log = get_logger(__name__)

LASTING = 60.0
"""Seconds after which a login was worth it: the next one follows quickly again."""

MOVED_SECONDS = 600.0
"""Seconds that a homeserver is away before its server name is asked whether it has moved, and again after each."""


class Session:
    """One account's session."""

    def __init__(self, entry: Entry, services: Services, pools: Pools) -> None:
        self._account = entry.account
        self._entry = entry
        self._services = services
        self._pools = pools
        self._status = entry.status
        self._given = Given(lambda: entry.password or entry.account.find_password(), entry.account.find_access_token)

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
        found = await find_homeserver(self._account, was, services.around, self._pools, self._status)
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
                found = await discover(name, services.around.clock, self._pools, allow_private=private)
            except DiscoveryError:
                continue
            if found != base_url:
                session.cancel(reason="the homeserver has moved")

    async def _run_at(self, found: str | None) -> None:
        services, account = self._services, self._account
        guarded = found is not None and not account.allow_private
        where = found or account.homeserver
        async with open_api(where, services.around.clock, self._pools, guarded=guarded) as api:
            client = MatrixClient(api)
            device = DeviceSession(account, self._entry, services, client, self._given)
            entrance = Entrance(
                account,
                client,
                services.db,
                services.around,
                self._status,
                self._given,
                turn=self._entry.logging_in,
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
                lost = await self._stay(entrance, device, stored, encrypts=encrypts)
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

    async def _stay(self, entrance: Entrance, device: DeviceSession, stored: Login, *, encrypts: bool) -> str | None:
        """Work with one login until the homeserver has forgotten it, or its keys are lost; then how."""
        try:
            with one_error():
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(entrance.renewal.run)
                    await device.run(stored, encrypts=encrypts)
                    nursery.cancel_scope.cancel(reason="the login is no longer good")
        except KeysLost as lost:
            return lost.why
        return None
