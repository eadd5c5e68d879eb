"""Which attempts are under way, and whether new ones may begin."""

from __future__ import annotations

import trio


class Flights:
    """Attempts by their message's id, from just before the request until what came of it is written down."""

    def __init__(self) -> None:
        self._under_way: dict[str, str] = {}  # and whose account it is
        self._landed = trio.lowlevel.ParkingLot()
        self._released: trio.Event | None = None  # set when what is held may go on; None: nothing is held

    def __contains__(self, delivery_id: str) -> bool:
        return delivery_id in self._under_way

    @property
    def held(self) -> bool:
        return self._released is not None

    def hold(self) -> None:
        if self._released is None:
            self._released = trio.Event()

    def release(self) -> None:
        if self._released is not None:
            self._released.set()
            self._released = None

    async def released(self) -> None:
        """Until new ones may begin."""
        while self._released is not None:
            await self._released.wait()

    def begin(self, delivery_id: str, account: str) -> None:
        self._under_way[delivery_id] = account

    def end(self, delivery_id: str) -> None:
        if self._under_way.pop(delivery_id, None) is not None and not self._under_way:
            self._landed.unpark_all()

    def count(self, account: str | None) -> int:
        """Of one account, or of all."""
        if account is None:
            return len(self._under_way)
        return sum(whose == account for whose in self._under_way.values())

    async def idle(self) -> None:
        """Until none is under way."""
        while self._under_way:
            await self._landed.park()
