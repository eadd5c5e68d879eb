"""Logins as the homeserver gives them and as the store keeps them: the table `accounts`."""

from __future__ import annotations

import hashlib
import secrets

import attrs

from armorclaw.clock import Surroundings
from armorclaw.config import Account
from armorclaw.errors import ArmorclawError
from armorclaw.matrix import aliases
from armorclaw.matrix.client import MatrixClient, same_user
from armorclaw.matrix.status import login_command
from armorclaw.matrix.tokens import Tokens, is_token
from armorclaw.store import Connection
from armorclaw.structure import Secret


@attrs.frozen
class Login:
    """What a login brought, as stored.

    `homeserver` is as the configuration names it, `base_url` where discovery found it, None for one given by its URL.
    An empty `access_token` says that the homeserver has forgotten the login before, and that the next one is to be of
    `device_id`. `expires_ms` is when the access token ends, in milliseconds since the epoch, None if nobody said.
    `next_batch` is where the sync stands, None before the first; `told` says that a sync has told all that is kept of
    the account's rooms, since the login. `identity_key` is the Curve25519 key of the device's
    encryption, None as long as it has published none. `given` is the fingerprint of the token that the configuration
    had at that time: a login that came later, or renewed itself, is not undone by the old token standing there.
    `begun` says that another login of the same device was asked for: if its answer was lost, the homeserver no longer
    knows `access_token`, and nothing is to be concluded from that.
    """

    homeserver: str
    user_id: str
    device_id: str
    access_token: str = attrs.field(repr=False)
    next_batch: str | None = None
    refresh_token: str | None = attrs.field(default=None, repr=False)
    expires_ms: int | None = None
    identity_key: str | None = None
    base_url: str | None = None
    given: str | None = None
    told: bool = attrs.field(default=False, converter=bool)
    begun: bool = attrs.field(default=False, converter=bool)

    def is_of(self, account: Account) -> bool:
        """Whether it is of this user on this homeserver."""
        return self.homeserver == account.homeserver and same_user(account.user, self.user_id)

    def serves(self, account: Account, token: Secret | None) -> bool:
        """Whether it is still the login the configuration wants; another user, server or token is another one."""
        same_token = token is None or fingerprint(token) == self.given or token.reveal() == self.access_token
        return bool(self.access_token) and self.is_of(account) and same_token


def fingerprint(token: Secret | None) -> str | None:
    """Tells tokens apart, and nothing else."""
    return None if token is None else hashlib.sha256(token.reveal().encode()).hexdigest()


_COLUMNS = ", ".join(field.name for field in attrs.fields(Login))


def load(db: Connection, account: str) -> Login | None:
    """Runs in the store."""
    row = db.execute(f"SELECT {_COLUMNS} FROM accounts WHERE name = ?", [account]).fetchone()  # noqa: S608
    return None if row is None else Login(*row)


def save(db: Connection, account: str, login: Login) -> Login:
    """Runs in the store; returns what is stored.

    Keeps the place in the sync if it is the same user on the same server, else begins anew; and knows of published
    keys only as long as it is the same device of that user. A login that came without a token keeps in mind which one
    the configuration had: it most likely stands there still, and is of a device that may be gone.
    """
    old = load(db, account)
    same = old is not None and (old.homeserver, old.user_id) == (login.homeserver, login.user_id)
    if old is not None and not same:
        db.execute("DELETE FROM rooms WHERE account = ?", [account])
        db.execute("DELETE FROM undecrypted WHERE account = ?", [account])
        aliases.forget(db, account)
    same_device = old is not None and same and old.device_id == login.device_id
    login = attrs.evolve(
        login,
        next_batch=old.next_batch if old is not None and same else None,
        given=old.given if old is not None and same and login.given is None else login.given,
        identity_key=old.identity_key if old is not None and same_device else None,
    )
    values = (account, *attrs.astuple(login))
    marks = ", ".join("?" * len(values))
    db.execute(f"INSERT OR REPLACE INTO accounts (name, {_COLUMNS}) VALUES ({marks})", values)  # noqa: S608
    return login


def begin(db: Connection, account: str, begun: bool = True) -> None:
    """Runs in the store: another login of the same device is about to be asked for, or was refused."""
    db.execute("UPDATE accounts SET begun = ? WHERE name = ?", [begun, account])


def save_tokens(db: Connection, account: str, used: str, tokens: Tokens, now_ms: int) -> Login | None:
    """Runs in the store, before the new tokens are used: until then the old ones are good as well.

    They come in place of the access token `used`, and not of a login that somebody has made meanwhile. Returns what
    is stored.
    """
    db.execute(
        "UPDATE accounts SET access_token = ?, refresh_token = coalesce(?, refresh_token), expires_ms = ?"
        " WHERE name = ? AND access_token = ?",
        [tokens.access_token, tokens.refresh_token, tokens.expires_ms(now_ms), account, used],
    )
    return load(db, account)


def save_place(db: Connection, account: str, next_batch: str | None) -> None:
    """Runs in the store, in the transaction of what came with the token."""
    told = int(next_batch is not None)
    db.execute("UPDATE accounts SET next_batch = ?, told = ? WHERE name = ?", [next_batch, told, account])


def save_base_url(db: Connection, account: str, base_url: str) -> None:
    """Runs in the store: where discovery found the homeserver, for when it does not work."""
    db.execute("UPDATE accounts SET base_url = ? WHERE name = ?", [base_url, account])


def save_identity(db: Connection, account: str, identity_key: str) -> None:
    """Runs in the store, before the keys of the device are published: from then on they must not get lost unseen."""
    db.execute("UPDATE accounts SET identity_key = ? WHERE name = ?", [identity_key, account])


def forget(db: Connection, account: str, device_id: str) -> None:
    """Runs in the store: the login is no more, and the next one is of this device, however often it is tried."""
    db.execute(
        "UPDATE accounts SET device_id = ?, access_token = '', refresh_token = NULL, expires_ms = NULL,"
        " identity_key = NULL WHERE name = ?",
        [device_id, account],
    )


def new_device_id() -> str:
    """One device per account: chosen here, so that a login whose answer is lost makes no second device."""
    return f"ARMORCLAW{secrets.token_hex(4).upper()}"


async def with_password(
    client: MatrixClient, account: Account, user: str, password: Secret, device_id: str
) -> Tokens:
    """Log in as `user`, on this device; the client uses it from then on. Raises MatrixError, or matrix_login_failed
    if the homeserver lets us in as somebody else."""
    tokens = await client.log_in(user, password.reveal(), device_id)
    if not same_user(account.user, str(client.mxid)):
        client.api.token = ""
        what = f"login of {user} at {account.homeserver}"
        raise ArmorclawError("matrix_login_failed", what, why=f"the homeserver says it is {client.mxid}")
    return tokens


async def with_token(client: MatrixClient, account: Account, token: Secret) -> Tokens:
    """Take a token the operator has. Raises MatrixError, or matrix_login_failed if it belongs to somebody else."""
    if not is_token(token.reveal()):
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
    return Tokens(token.reveal())


def device_for(account: Account, stored: Login | None) -> str:
    """Which device the next login is of: the one it was, the one that the configuration wants, or a new one."""
    kept = stored.device_id if stored is not None and stored.is_of(account) else ""
    return kept or account.device_id or new_device_id()


def changes_device(account: Account, stored: Login | None, fresh: Login) -> bool:
    """Whether keys that lie there are of another device for certain. Without a stored login nobody knows, except that
    a device that was just made has none."""
    if stored is None:
        return account.device_id is None
    return (stored.homeserver, stored.user_id, stored.device_id) != (
        fresh.homeserver,
        fresh.user_id,
        fresh.device_id,
    )


def fresh_login(
    account: Account,
    client: MatrixClient,
    tokens: Tokens,
    around: Surroundings,
    *,
    base_url: str | None,
    given: Secret | None,
) -> Login:
    """What is stored of a login that this client has just made."""
    return Login(
        account.homeserver,
        str(client.mxid),
        str(client.device_id),
        tokens.access_token,
        refresh_token=tokens.refresh_token,
        expires_ms=tokens.expires_ms(around.clock.now_ms()),
        base_url=base_url,
        given=fingerprint(given),
    )


def not_let_in(account: Account, why: str) -> ArmorclawError:
    """The error that waits for a person."""
    what = f"account {account.name!r} ({account.user} at {account.homeserver})"
    hint = f"check accounts.{account.name} in the configuration, or run: {login_command(account)}"
    return ArmorclawError("matrix_login_failed", what, why=why, hint=hint)
