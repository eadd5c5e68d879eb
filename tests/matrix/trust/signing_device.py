"""A device of the bot at the homeserver of `key_home`, with its crypto file, and nothing but its cross-signing."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs

from armorclaw.errors import ArmorclawError
from armorclaw.matrix.crypto.database import CryptoDatabase
from armorclaw.matrix.crypto.olm import Account
from armorclaw.matrix.crypto.tables import MIGRATIONS
from armorclaw.matrix.crypto.vault import Vault
from armorclaw.matrix.trust.cross_signing import CrossSigning, Standing
from armorclaw.matrix.trust.identity import device_in, identity_in
from armorclaw.matrix.trust.records import Records
from armorclaw.store.migrate import migrate
from armorclaw.structure import Secret

from .key_home import KeyHome

BOT = "@bot:hs"


class _Api:
    def __init__(self, home: KeyHome, user_id: str) -> None:
        self._home, self._user_id = home, user_id

    async def request(self, method: Any, path: Any, content: Any = None, **more: Any) -> Any:
        return await self._home.request(self._user_id, str(method), str(path), content)


@attrs.define
class Device:
    """One device of the bot, with its crypto file; `life` is another life of the bridge on the same file."""

    home: KeyHome
    db: CryptoDatabase
    name: str
    account: Account
    password: str | None = None
    recovery_key: str | None = None
    unreadable: bool = False
    told: list[str] = attrs.field(factory=list)

    @property
    def records(self) -> Records:
        return Records(self.db)

    def life(self) -> CrossSigning:
        client: Any = SimpleNamespace(mxid=BOT, device_id=self.name, api=_Api(self.home, BOT))

        async def give() -> Secret | None:
            if self.unreadable:
                raise ArmorclawError("config_invalid", "the file of the recovery key")
            return None if self.recovery_key is None else Secret(self.recovery_key)

        async def tell(name: str, severity: str, text: str) -> None:
            self.told.append(name)

        return CrossSigning(
            "main",
            client,
            self.account,
            self.records,
            password=lambda: None if self.password is None else Secret(self.password),
            recovery_key=give,
            tell=tell,
        )

    async def settle(self) -> Standing:
        return await self.life().settle()

    @property
    def signed(self) -> bool:
        """As everybody else sees it."""
        answer = self.home._query([BOT])
        identity, device = identity_in(answer, BOT), device_in(answer, BOT, self.name)
        return identity is not None and device is not None and identity.owns(device)


@asynccontextmanager
async def device(home: KeyHome, folder: Path, name: str = "BRIDGE", **more: Any) -> AsyncIterator[Device]:
    db = Vault(folder / name, lambda: bytes(32)).open("main", expected=False)
    try:
        migrate(db.connection, MIGRATIONS, db.path)
        account = Account()
        home.add_device(BOT, name, account)
        yield Device(home, db, name, account, **more)
    finally:
        db.close()
