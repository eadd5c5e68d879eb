"""The way from the commit into the nursery of an account's sender: a bounded channel, taken from in batches."""

from __future__ import annotations

import trio

from armorclaw.delivery.message import Delivery

AHEAD = 64
"""Messages on the way, with their bodies: at most 4 MiB. What does not fit is in the queue all the same."""

Accepted = tuple[Delivery, bytes | None]
"""A message and its body, None where that is to be looked up when its turn comes."""


class Handover:
    """Messages just accepted, in order. One that finds no room is not lost: whoever takes is told to look it up."""

    def __init__(self) -> None:
        self._into, self._from = trio.open_memory_channel[Accepted](AHEAD)
        self._overrun = False

    def put(self, delivery: Delivery, content: bytes | None) -> None:
        """Never waits: it runs between a commit and whoever waits for it."""
        if self._overrun:
            return  # in order: those behind one that was left out are looked up with it
        try:
            self._into.send_nowait((delivery, content))
        except trio.WouldBlock:
            self._overrun = True

    async def take(self) -> tuple[list[Accepted], bool]:
        """What is there, once there is something; and whether the queue has more behind it.

        In that case look there before the next checkpoint: what is accepted from then on comes through here again.
        """
        batch = [await self._from.receive()]
        while len(batch) <= AHEAD:
            try:
                batch.append(self._from.receive_nowait())
            except trio.WouldBlock:
                break
        overrun, self._overrun = self._overrun, False
        return batch, overrun
