"""What an agent is done with is shown as read to the people in the room."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import trio

from armorclaw.clock import Surroundings
from armorclaw.delivery.transport import Delayed, Refused
from armorclaw.log import get_logger
from armorclaw.matrix.pacing import Pacing

log = get_logger(__name__)

WAITING = 256
"""Acknowledgements between the agents' nurseries and ours that nobody has looked at yet."""

ROOMS = 1_000
"""Rooms with a receipt to send. While a homeserver is away for long, those that waited longest are given up first."""

GATHER = 0.5
"""Seconds, at least, from an acknowledgement to its receipt. So an agent's answer, which is on its way just then, has
the homeserver to itself, and what is acknowledged meanwhile needs no receipt of its own."""

SEND_TIMEOUT = 30.0
"""Seconds for one receipt; then it counts as not sent, which does no harm: a second one says the same."""

Post = Callable[[str, str], Awaitable[object]]


class ReadMarkers:
    """The receipts of one account, of each room the newest only: it covers those before it.

    They outlive a session, not the bridge: a receipt that was not sent by then is covered by the room's next one.
    """

    def __init__(self, account: str, around: Surroundings) -> None:
        self._account = account
        self._around = around
        self._sender, self._inbox = trio.open_memory_channel[tuple[str, str]](WAITING)
        self._newest: dict[str, tuple[str, float]] = {}  # by room, in the order they began to wait, with the time
        self._nudge = trio.Event()

    def note(self, room_id: str, event_id: str) -> None:
        """An agent is done with everything in the room up to this event. Never waits."""
        try:
            self._sender.send_nowait((room_id, event_id))
        except trio.WouldBlock:  # no session takes them in now
            self._drain()
            self._keep(room_id, event_id)

    def hurry(self) -> None:
        """The homeserver is back: a pause whose length was our own guess is over."""
        self._nudge.set()

    async def run(self, post: Post) -> None:
        """Send what there is, one at a time, until cancelled. `post(room_id, event_id)` raises Delayed or Refused."""
        pacing = Pacing(self._around.random, cap=60.0)
        while True:
            self._drain()
            if not self._newest:
                self._keep(*await self._inbox.receive())
            room_id, (_, since) = next(iter(self._newest.items()))
            await trio.sleep_until(since + GATHER)
            self._drain()
            if room_id not in self._newest:  # given up
                continue
            event_id, _ = self._newest[room_id]
            try:
                with trio.fail_after(SEND_TIMEOUT):
                    await post(room_id, event_id)
            except trio.TooSlowError:
                await self._put_off(room_id, pacing.next())
                continue
            except Delayed as delay:
                await self._put_off(room_id, pacing.next(delay.seconds), told=delay.seconds is not None)
                continue
            except Refused as refusal:
                log.warning("read receipt refused", account=self._account, room=room_id, why=refusal.reason)
            pacing.reset()
            newest, _ = self._newest.pop(room_id, (event_id, since))
            if newest != event_id:
                self._keep(room_id, newest)  # behind the others

    async def _put_off(self, room_id: str, seconds: float, *, told: bool = False) -> None:
        """Another room is next: this one may be the reason."""
        if (waiting := self._newest.pop(room_id, None)) is not None:
            self._newest[room_id] = waiting
        self._nudge = trio.Event()
        if told:
            await trio.sleep(seconds)
            return
        with trio.move_on_after(seconds):
            await self._nudge.wait()

    def _drain(self) -> None:
        while True:
            try:
                self._keep(*self._inbox.receive_nowait())
            except trio.WouldBlock:
                return

    def _keep(self, room_id: str, event_id: str) -> None:
        if room_id not in self._newest and len(self._newest) >= ROOMS:
            oldest = next(iter(self._newest))
            del self._newest[oldest]
            log.warning("read receipt given up", account=self._account, room=oldest, why="too many rooms wait")
        _, since = self._newest.get(room_id, ("", trio.current_time()))
        self._newest[room_id] = event_id, since
