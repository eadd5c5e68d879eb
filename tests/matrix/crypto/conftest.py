"""Devices that talk through a key server in memory, on files that are opened and synced without threads."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from armorclaw.clock import Clock, Surroundings
from armorclaw.matrix.crypto.encryption import Decrypted, DevicePolicy, Encryption, Undecryptable, open_encryption
from armorclaw.matrix.crypto.vault import Vault
from tests.matrix.crypto.key_server import ROOM, KeyServer

ANN, BEN, EVE = "@ann:hs.test", "@ben:hs.test", "@eve:away.test"

Raw = dict[str, Any]


@attrs.define
class Party:
    """One device, and what reached it."""

    server: KeyServer
    user: str
    device: str
    encryption: Encryption
    keys: list[tuple[str, str]] = attrs.field(factory=list)
    count: int = 0

    async def say(self, body: str = "hello", room_id: str = ROOM, **more: Any) -> Raw:
        """The event of an encrypted message, as a sync brings it."""
        content = await self.encryption.encrypt(room_id, "m.room.message", {"body": body, **more})
        self.count += 1
        event_id = f"${self.device}{self.count}"
        return {"type": "m.room.encrypted", "event_id": event_id, "sender": self.user, "content": content}

    async def catch_up(self) -> None:
        """A sync, and what upkeep does after it without being asked."""
        await self.encryption.absorb(self.server.answer(self.user, self.device))
        await self.encryption._upkeep._refresh()

    async def read(self, raw: Raw, room_id: str = ROOM) -> str:
        """The body of a message."""
        body: str = (await self.decrypt(raw, room_id)).content["body"]
        return body

    async def decrypt(self, raw: Raw, room_id: str = ROOM) -> Decrypted:
        return await self.encryption.decrypt(room_id, raw)

    async def why_not(self, raw: Raw, room_id: str = ROOM) -> Undecryptable:
        with pytest.raises(Undecryptable) as caught:
            await self.decrypt(raw, room_id)
        return caught.value

    async def hear(self, raw: Raw) -> str:
        """Catch up, then the body."""
        await self.catch_up()
        return await self.read(raw)

    async def note(self, type_: str, key: str, content: Raw, room_id: str = ROOM) -> None:
        await self.encryption.room_state(room_id, {"type": type_, "state_key": key, "content": content})


@attrs.define
class Town:
    """All devices of a test."""

    server: KeyServer
    folder: Path
    around: Surroundings
    _stack: AsyncExitStack

    def vault(self) -> Vault:
        return Vault(self.folder / "matrix", lambda: bytes(32))

    async def device(
        self,
        user: str,
        device: str,
        *,
        policy: DevicePolicy | None = None,
        identity_key: str | None = None,
        published: bool = True,
    ) -> Party:
        opening = open_encryption(
            f"{user}{device}",
            self.server.client(user, device),
            self.vault(),
            identity_key=identity_key,
            around=self.around,
            devices=policy or DevicePolicy(),
        )
        encryption = await self._stack.enter_async_context(opening)
        party = Party(self.server, user, device, encryption)
        encryption.on_keys = party.keys.extend
        if published:
            await encryption._publisher.publish()
            await party.catch_up()
        return party

    async def pair(self, **policies: DevicePolicy) -> tuple[Party, Party]:
        """Ann and Ben in an encrypted room."""
        self.server.encrypt_room(ANN, BEN)
        ann = await self.device(ANN, "A", policy=policies.get("ann"))
        return ann, await self.device(BEN, "B", policy=policies.get("ben"))

    def file(self, user: str, device: str) -> Path:
        """Where a device's keys are."""
        return self.vault()._path(f"{user}{device}")

    async def end(self) -> None:
        """End the lives of all devices."""
        await self._stack.aclose()

    async def restart(self, party: Party, **more: Any) -> Party:
        """The same device in another life."""
        await self.end()  # all of them: a file is opened once
        return await self.device(party.user, party.device, published=False, **more)


@pytest.fixture
def without_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done in threads is done at once, so that a mock clock may jump."""

    async def run_sync(work: Callable[..., Any], *args: Any, **options: Any) -> Any:
        await trio.lowlevel.checkpoint_if_cancelled()
        return work(*args)

    monkeypatch.setattr(trio.to_thread, "run_sync", run_sync)


@attrs.define
class Time:
    """Wall time that moves with Trio's, and by hand."""

    ahead: float = 1_700_000_000.0

    def __call__(self) -> float:
        return self.ahead + trio.current_time()


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
async def town(tmp_path: Path, without_threads: None, time: Time) -> AsyncIterator[Town]:
    async with AsyncExitStack() as stack:
        yield Town(KeyServer(), tmp_path, Surroundings(Clock(wall=time)), stack)
