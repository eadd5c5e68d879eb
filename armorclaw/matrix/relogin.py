"""Logging in beside a session that may be running: what `matrix.login` does."""

from __future__ import annotations

from mautrix.errors import MatrixError

from armorclaw.clock import Surroundings
from armorclaw.config import Account
from armorclaw.errors import ArmorclawError
from armorclaw.matrix import login
from armorclaw.matrix.client import MatrixClient
from armorclaw.matrix.discovery import DiscoveryError, discover
from armorclaw.matrix.entrance import Keys, set_aside
from armorclaw.matrix.failures import as_error, judge
from armorclaw.matrix.given import at_hand
from armorclaw.matrix.login import Login
from armorclaw.matrix.pools import Pools
from armorclaw.matrix.transport import open_api
from armorclaw.store import Database
from armorclaw.structure import Secret


async def log_in_anew(
    db: Database,
    account: Account,
    user: str,
    password: Secret,
    around: Surroundings,
    pools: Pools,
    keys: Keys | None = None,
) -> Login:
    """Log in beside a session that may be running, as the same device, and store the result.

    Raises matrix_login_failed or unavailable; then nothing has changed.
    """
    stored = await db.read(lambda conn: login.load(conn, account.name))
    device, base_url = login.device_for(account, stored), None
    if account.server_name is not None:
        base_url = stored.base_url if stored is not None and stored.is_of(account) else None
        base_url = base_url or await _discover(account, around, pools)
    guarded = base_url is not None and not account.allow_private
    async with open_api(base_url or account.homeserver, around.clock, pools, guarded=guarded) as api:
        client = MatrixClient(api)
        if stored is not None and stored.device_id == device:
            await db.write(lambda conn: login.begin(conn, account.name), durable=True)
        try:
            tokens = await login.with_password(client, account, user, password, device)
        except MatrixError as error:
            if judge(error).sure:
                await db.write(lambda conn: login.begin(conn, account.name, False))
            raise as_error(
                error, f"login of {user} at {account.homeserver}", refused="matrix_login_failed"
            ) from error
    given = at_hand(account.find_access_token)
    fresh = login.fresh_login(account, client, tokens, around, base_url=base_url, given=given)
    nobody_in = stored is None or not stored.access_token  # else the keys may be in use: who opens them next decides
    if nobody_in and login.changes_device(account, stored, fresh):
        await set_aside(keys, account.name, "the account is another device now")
    return await db.write(lambda conn: login.save(conn, account.name, fresh), durable=True)


async def _discover(account: Account, around: Surroundings, pools: Pools) -> str:
    try:
        return await discover(account.homeserver, around.clock, pools, allow_private=account.allow_private)
    except DiscoveryError as error:
        name = "unavailable" if error.passing else "matrix_login_failed"
        raise ArmorclawError(name, f"login at {account.homeserver}", why=str(error)) from error
