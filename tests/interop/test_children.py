"""What the programs of the peers do about stacks that lose things in passing."""

from __future__ import annotations

import asyncio
from typing import Any

import nio
import pytest

from tests.interop.children.nio_peer import SEND_TRIES, NioDevice
from tests.interop.children.wire import Device

ROOM = "!room:localhost"
LAST = 3


class Hasty(Device):
    """One whose stack goes past an answer before it is through with it."""

    def __init__(self) -> None:
        super().__init__(lambda *_, **__: None)
        self.place = 0
        self.seen: list[int] = []
        self.busy = asyncio.Event()

    async def do_open(self, homeserver: str, user: str, password: str, store: str, name: str) -> dict[str, str]:
        return {}

    async def sync_once(self, timeout_ms: int) -> None:
        with self.waiting_for_answer():
            if self.place == LAST:
                self.busy.set()
                await asyncio.sleep(3600)
            self.place += 1
            self.answered()
            self.busy.set()
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        self.seen.append(self.place)

    async def shut(self) -> None:
        pass


def test_a_pause_in_the_middle_of_an_answer_loses_nothing() -> None:
    async def main() -> None:
        device = Hasty()
        for place in range(1, LAST + 2):
            following = asyncio.create_task(device.do_sync())
            await device.busy.wait()
            device.busy.clear()
            await asyncio.wait_for(device.do_pause(), 10)
            following.cancel()
            assert device.seen == list(range(1, min(place, LAST) + 1))

    asyncio.run(main())


class Racing:
    """nio's client while its sync throws keys away, so that sending fails some times."""

    should_query_keys = False

    def __init__(self, *errors: Exception) -> None:
        self._errors = list(errors)

    async def room_send(
        self, room_id: str, kind: str, content: dict[str, Any], ignore_unverified_devices: bool
    ) -> nio.RoomSendResponse:
        assert ignore_unverified_devices
        if self._errors:
            raise self._errors.pop()
        return nio.RoomSendResponse(f"${kind}", room_id)


UNSHARED = nio.exceptions.GroupEncryptionError(f"Group session for room {ROOM} not shared.")


@pytest.mark.parametrize("error", [KeyError(ROOM), UNSHARED], ids=["thrown away", "never handed out"])
def test_what_fails_for_a_key_that_was_thrown_away_is_sent_again(error: Exception) -> None:
    device = NioDevice(lambda *_, **__: None)

    async def main() -> None:
        device.client = Racing(*[error] * (SEND_TRIES - 1))
        assert await device.do_send(ROOM, {}) == "$m.room.message"
        device.client = Racing(error)
        assert await device.do_react(ROOM, "$event", "x") == "$m.reaction"
        device.client = Racing(*[error] * SEND_TRIES)
        with pytest.raises(type(error)):
            await device.do_send(ROOM, {})

    asyncio.run(main())
