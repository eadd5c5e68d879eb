"""Logging in once, and remembering it: the table `accounts`."""

from __future__ import annotations

import secrets

import attrs
from mautrix.errors import MatrixError

from armorclaw.clock import Clock
from armorclaw.config import Account
from armorclaw.errors import ArmorclawError
from armorclaw.matrix import aliases
from armorclaw.matrix.client import MatrixClient, same_user
from armorclaw.matrix.pools import Pools
from armorclaw.matrix.transport import judge, open_api
from armorclaw.store import Connection, Database
from armorclaw.structure import Secret


@attrs.frozen
class Login:
    """What a login brought, as stored. `next_batch` is where the sync stands, None before the first."""

    homeserver: str
    user_id: str
    device_id: str
    access_token: str = attrs.field(repr=False)
    next_batch: str | None = None

    def serves(self, account: Account, token: Secret | None) -> bool:
        """Whether this is still the login the configuration wants; another user, server or token is another one."""
        same_token = token is None or token.reveal() == self.access_token
        return self.homeserver == account.homeserver and same_user(account.user, self.user_id) and same_token


def load(db: Connection, account: str) -> Login | None:
    """Runs in the store."""
    query = "SELECT homeserver, user_id, device_id, access_token, next_batch FROM accounts WHERE name = ?"
    row = db.execute(query, [account]).fetchone()
    return None if row is None else Login(*row)


def save(db: Connection, account: str, login: Login) -> Login:
    """Runs in the store. Keeps the place in the sync if it is the same user on the same server, else begins anew."""
    old = load(db, account)
    same = old is not None and (old.homeserver, old.user_id) == (login.homeserver, login.user_id)
    if old is not None and not same:
        db.execute("DELETE FROM rooms WHERE account = ?", [account])
        aliases.forget(db, account)
    login = attrs.evolve(login, next_batch=old.next_batch if old is not None and same else None)
    values = (account, *attrs.astuple(login))
    db.execute(
        "INSERT OR REPLACE INTO accounts (name, homeserver, user_id, device_id, access_token, next_batch)"
        " VALUES (?, ?, ?, ?, ?, ?)",
        values,
    )
    return login


def save_place(db: Connection, account: str, next_batch: str | None) -> None:
    """Runs in the store, in the transaction of what came with the token."""
    db.execute("UPDATE accounts SET next_batch = ? WHERE name = ?", [next_batch, account])


async def with_password(client: MatrixClient, homeserver: str, user: str, password: Secret, device_id: str) -> Login:
    """Log in as `user`. Raises MatrixError."""
    await client.log_in(user, password.reveal(), device_id)
    return Login(homeserver, str(client.mxid), str(client.device_id), client.api.token)


async def with_token(client: MatrixClient, account: Account, token: Secret) -> Login:
    """Take a token the operator has. Raises MatrixError, or matrix_login_failed if it belongs to somebody else."""
    if not token.reveal().isprintable() or not token.reveal().isascii():
        what = f"the access token of account {account.name!r}"
        raise ArmorclawError("matrix_login_failed", what, why="it has characters that no token has")
    await client.take_token(token.reveal())
    if not same_user(account.user, str(client.mxid)):
        raise ArmorclawError(
            "matrix_login_failed",
            f"the access token of account {account.name!r}",
            why=f"it belongs to {client.mxid}, not to {account.user}",
            hint=f"correct accounts.{account.name}.user or the token",
        )
    return Login(account.homeserver, str(client.mxid), str(client.device_id or ""), token.reveal())


def new_device_id() -> str:
    """One device per account: chosen here, so that a login whose answer is lost makes no second device."""
    return f"ARMORCLAW{secrets.token_hex(4).upper()}"


async def log_in_anew(
    db: Database, account: Account, user: str, password: Secret, clock: Clock, pools: Pools | None = None
) -> Login:
    """Log in beside a session that may be running, and store the result.

    Raises matrix_login_failed or unavailable; then nothing has changed.
    """
    stored = await db.read(lambda conn: load(conn, account.name))
    device = account.device_id or (stored.device_id if stored else "") or new_device_id()
    async with open_api(account.homeserver, clock, pools) as api:
        try:
            fresh = await with_password(MatrixClient(api), account.homeserver, user, password, device)
        except MatrixError as error:
            verdict = judge(error)
            name = "unavailable" if verdict.again else "matrix_login_failed"
            what = f"login of {user} at {account.homeserver}"
            raise ArmorclawError(name, what, why=verdict.reason) from error
    return await db.write(lambda conn: save(conn, account.name, fresh), durable=True)
