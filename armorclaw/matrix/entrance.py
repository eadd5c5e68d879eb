"""How one account gets in and stays in: logging in, renewing tokens, and what to do when the homeserver forgets us.

A login that ended softly is renewed as the same device, with its keys and its queue. One that ended hard has lost its
device for good: its keys are set aside, somebody is told, and a password makes a new device. Nothing here is tried
faster than its pauses allow, whatever the homeserver answers.
"""

from __future__ import annotations

from typing import Literal, Protocol

import trio
from mautrix.errors import MatrixError, MUnknownToken

from armorclaw.clock import Surroundings
from armorclaw.config import Account
from armorclaw.errors import ArmorclawError
from armorclaw.log import get_logger
from armorclaw.matrix import login
from armorclaw.matrix.client import MatrixClient
from armorclaw.matrix.failures import Verdict, judge
from armorclaw.matrix.given import Given
from armorclaw.matrix.login import Login
from armorclaw.matrix.pacing import Pacing
from armorclaw.matrix.renewal import Renewal
from armorclaw.matrix.services import Alert
from armorclaw.matrix.status import SessionStatus, login_command
from armorclaw.matrix.tokens import Tokens
from armorclaw.store import Database

log = get_logger(__name__)

REFUSED_PAUSE = 30.0
"""Seconds before asking again what was refused for a reason that does not pass by itself."""

_LOG_OUT_TIMEOUT = 3.0
_MINUTE, _HOUR = 60.0, 3600.0
_MISTAKES = 3  # of a homeserver that says a token is unknown when it is not, before it gets another login


class Keys(Protocol):
    """Where the keys of devices are kept."""

    def exists(self, account: str) -> bool: ...

    def set_aside(self, account: str, why: str) -> str | None: ...


class Entrance:
    """The login of one account, over one client.

    Whoever logs the account in has the `turn`: the later of two logins of a device ends the other one. `base_url` is
    where discovery found the homeserver, if it had to.
    """

    def __init__(
        self,
        account: Account,
        client: MatrixClient,
        db: Database,
        around: Surroundings,
        status: SessionStatus,
        given: Given,
        *,
        turn: trio.Lock,
        alert: Alert,
        keys: Keys | None = None,
        base_url: str | None = None,
    ) -> None:
        self._account = account
        self._client = client
        self._db = db
        self._around = around
        self._status = status
        self._given = given
        self._turn = turn
        self._keys = keys
        self._alert = alert
        self._base_url = base_url
        self.renewal = Renewal(account.name, client, db, around)
        self._new_devices = Pacing(around.random, first=1.0, cap=_HOUR)
        self._lost_keys = False
        self._mistakes = 0

    async def enter(self) -> Login:
        """The stored login, if it is the one that is wanted, else a new one; waits for a homeserver that is away.

        Raises matrix_login_failed when it does not let us in and nothing we have can change that.
        """
        stored = await self._stored()
        if stored is not None and stored.serves(self._account, self._given.token_at_hand()):
            return self.renewal.use(stored)
        return await self._log_in(stored)

    async def again(self) -> Login:
        """After the homeserver no longer knew the access token: the next login. Raises as `enter`.

        It is asked once more, since a proxy, or one of its workers, may have been wrong.
        """
        pacing = Pacing(self._around.random)
        while True:
            used = self.renewal.current
            try:
                await self._client.check_login()  # a refresh token is tried on the way
                self._mistakes += used is self.renewal.current
                if self._mistakes <= _MISTAKES:
                    return await self.as_stored()
                verdict, soft = Verdict(again=True, reason="it says yes and no"), True
                break
            except MatrixError as error:
                verdict = judge(error)
                if isinstance(error, MUnknownToken) and not self.renewal.possible:
                    used = self.renewal.current
                    soft = getattr(error, "soft_logout", False)
                    break
                told = verdict.after if verdict.again else REFUSED_PAUSE
            self._status.waiting(verdict.reason)
            await trio.sleep(pacing.next(told))
        if not soft:
            await trio.sleep(self._new_devices.next())  # the next device may be forgotten as fast
        async with self._turn:
            stored = await self.as_stored()
            assert used is not None
            if stored.access_token != used.access_token:  # somebody has logged in beside us
                return stored
            if soft or stored.begun:
                log.info("login has expired", account=self._account.name)
            else:
                stored = await self._device_lost(verdict.reason)
        return await self._log_in(stored)

    async def new_device(self, why: str) -> Login | None:
        """After the keys of the device were lost, `why` says how: a login as a new device, and the old one ended.

        None if that is not possible, or has just been tried: then the old login goes on, without encryption.
        """
        name, old = self._account.name, self.renewal.current
        assert old is not None
        if self._lost_keys or self._given.password_at_hand() is None:
            again = "they were lost again at once" if self._lost_keys else "only a password can make a new device"
            await self._tell_lost(f"{why}; {again}")
            return None
        self._lost_keys = True
        await self._tell(
            "matrix_keys_lost", "warning", f"account {name} becomes a new device, as its keys are lost: {why}"
        )
        try:
            fresh = await self._log_in(old, device=login.new_device_id())
        except ArmorclawError as error:
            self.renewal.use(old)
            await self._tell_lost(str(error))
            return None
        if fresh.device_id != old.device_id:  # else somebody has logged in beside us
            await self._end(old)
        return fresh

    async def as_stored(self) -> Login:
        """The login that there is, with the place in the sync that was reached meanwhile."""
        stored = await self._stored()
        assert stored is not None
        return self.renewal.use(stored)

    def lasted(self, seconds: float) -> None:
        """For how long a login was good: after an hour what comes next is no consequence of what was before."""
        if seconds > _MINUTE:
            self._mistakes = 0
        if seconds > _HOUR:
            self._lost_keys = False
            self._new_devices.reset()

    # -- logging in

    async def _stored(self) -> Login | None:
        return await self._db.read(lambda db: login.load(db, self._account.name))

    async def _log_in(self, stored: Login | None, *, device: str = "") -> Login:
        """Log in with what there is, waiting out a homeserver that does not answer, and store the result."""
        pacing = Pacing(self._around.random)
        device = device or login.device_for(self._account, stored)
        while True:
            try:
                async with self._turn:
                    return self.renewal.use(await self._attempt(stored, device))
            except MatrixError as error:
                verdict = judge(error)
                if verdict.unknown_token or not verdict.again:
                    raise login.not_let_in(self._account, verdict.reason) from error
            self._status.waiting(verdict.reason)
            await trio.sleep(pacing.next(verdict.after))

    async def _attempt(self, stored: Login | None, device: str) -> Login:
        account, name = self._account, self._account.name
        now = await self._stored()
        if now is not None and stored is not None and now.access_token not in ("", stored.access_token):
            return now  # somebody has logged in beside us
        if now is not None and now.device_id == device:
            await self._db.write(lambda db: login.begin(db, name), durable=True)
        tokens = await self._ask(device)
        given = self._given.token_at_hand()
        fresh = login.fresh_login(account, self._client, tokens, self._around, base_url=self._base_url, given=given)
        if login.changes_device(account, now, fresh):
            await set_aside(self._keys, name, "the account is another device now")
        return await self._db.write(lambda db: login.save(db, name, fresh), durable=True)

    async def _ask(self, device: str) -> Tokens:
        account = self._account
        try:
            password, token = self._given.password(), self._given.token()
        except ArmorclawError as error:
            raise login.not_let_in(account, str(error)) from error
        if password is not None:
            return await login.with_password(self._client, account, account.user, password, device)
        if token is not None:
            return await login.with_token(self._client, account, token)
        raise login.not_let_in(account, "there is neither a password nor a token")

    async def _device_lost(self, reason: str) -> Login:
        """The homeserver has forgotten the device, so its keys are good for nothing but old messages."""
        name, device = self._account.name, login.new_device_id()
        aside = await set_aside(self._keys, name, "the homeserver ended its login")
        # from here on it is that device that logs in, however often it has to try
        await self._db.write(lambda db: login.forget(db, name, device), durable=True)
        kept = "" if aside is None else f"; its keys are kept in {aside}"
        await self._tell(
            "matrix_logged_out", "warning", f"the homeserver has ended the login of account {name} ({reason}){kept}"
        )
        return await self.as_stored()

    async def _end(self, old: Login) -> None:
        """Log an old device out, if that is possible at once: nobody should encrypt for it any more."""
        token, self._client.api.token = self._client.api.token, old.access_token
        renew, self._client.api.renew = self._client.api.renew, None
        try:
            with trio.move_on_after(_LOG_OUT_TIMEOUT):
                await self._client.log_out()
        except MatrixError as error:
            log.info("old device not logged out", account=self._account.name, why=judge(error).reason)
        finally:
            self._client.api.token, self._client.api.renew = token, renew

    async def _tell_lost(self, why: str) -> None:
        name = self._account.name
        hint = f"look at the disk of the bridge, then make a new device: {login_command(self._account)}"
        await self._tell("matrix_keys_lost", "error", f"account {name} cannot encrypt: {why}; {hint}")

    async def _tell(self, name: str, severity: Literal["warning", "error"], text: str) -> None:
        log.warning(name.replace("_", " "), account=self._account.name, why=text)
        await self._alert(name, severity, text)


async def set_aside(keys: Keys | None, account: str, why: str) -> str | None:
    """Set the keys of an account aside: the name that they have now, None if there were none.

    Raises storage_failed.
    """
    if keys is None or not keys.exists(account):
        return None
    try:
        return await trio.to_thread.run_sync(keys.set_aside, account, why)
    except OSError as error:
        what = f"the keys of account {account} cannot be set aside"
        raise ArmorclawError("storage_failed", what, why=error.strerror or str(error)) from error
