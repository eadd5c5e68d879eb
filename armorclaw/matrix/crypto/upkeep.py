"""What encryption does by itself: one-time keys, lists of devices, broken channels, key requests, tidying."""

from __future__ import annotations

import math
from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable

import trio
from mautrix.errors import MatrixError

from armorclaw.clock import Surroundings
from armorclaw.errors import ArmorclawError
from armorclaw.log import get_logger
from armorclaw.matrix.crypto.channels import Channels
from armorclaw.matrix.crypto.database import CryptoDatabase
from armorclaw.matrix.crypto.device_lists import DeviceLists
from armorclaw.matrix.crypto.pruning import Pruning
from armorclaw.matrix.crypto.publishing import Publisher
from armorclaw.matrix.crypto.requests import KeyRequests
from armorclaw.matrix.crypto.standing import Standing
from armorclaw.matrix.failures import TROUBLES, judge, may_pass
from armorclaw.matrix.pacing import Pacing
from armorclaw.store.connection import Error

log = get_logger(__name__)

LAST_PAUSE = 60.0
"""Seconds between two attempts at what the homeserver does not do."""

REFUSED_PAUSE = 3600.0
"""Seconds before what it refused is tried again: it may know nothing of encryption."""

PUBLISH_PAUSE, LAST_PUBLISH_PAUSE, CALM = 10.0, 600.0, 300.0
"""Seconds after keys were published before more are: doubled each time up to the second, the first again after so
much calm. Meanwhile the fallback key serves."""

REPAIR_PAUSE = 3600.0
"""Seconds between two new channels to the same device."""

MAX_REPAIRS = 100
"""Broken channels that wait to be replaced; of more the oldest are left. Also how many repairs are remembered."""

_LATER = 0.01  # seconds after it is due, lest a clock that is coarser than ours has us look twice

TIDY_PAUSE = 3600.0
"""Seconds between two looks at what is old, at the latest."""

SETTLED_MS, GAP_MS = 30 * 60_000, 10 * 60_000
"""How long the homeserver must have been heard, with no gap longer than the second, before keys go by age: what was
said with them while nobody listened would never be read."""

SEEN_MS = 30 * 24 * 3600 * 1000
"""How long it is known that a to-device message was handled; it comes again soon after, or never."""


class Upkeep:
    """One account's. `counts` gets `unwedged`."""

    def __init__(
        self,
        account: str,
        db: CryptoDatabase,
        *,
        channels: Channels,
        devices: DeviceLists,
        standing: Standing,
        requests: KeyRequests,
        publisher: Publisher,
        pruning: Pruning,
        around: Surroundings,
        counts: Counter[str],
    ) -> None:
        self._account = account
        self._db = db
        self._channels = channels
        self._devices = devices
        self._standing = standing
        self._requests = requests
        self._publisher = publisher
        self._pruning = pruning
        self._clock = around.clock
        self._random = around.random
        self._counts = counts
        self._woken = trio.Event()
        self._broken: OrderedDict[tuple[str, str], None] = OrderedDict()
        self._repaired: OrderedDict[str, float] = OrderedDict()
        self._heard_since_ms = self._heard_ms = 0

    def wake(self) -> None:
        """There may be something to do."""
        self._woken.set()
        self._woken = trio.Event()

    def heard(self) -> None:
        """The homeserver has answered."""
        now = self._clock.now_ms()
        if not 0 <= now - self._heard_ms <= GAP_MS:
            self._heard_since_ms = now
        self._heard_ms = now

    def _is_settled(self) -> bool:
        """Whether what was said is heard as it is said. A clock that was set, and a sleep, count as gaps."""
        since = self._clock.now_ms() - self._heard_ms
        return 0 <= since <= GAP_MS and self._heard_ms - self._heard_since_ms >= SETTLED_MS

    def repair(self, user_id: str, device_key: str) -> None:
        """The channel from this device is broken: make a new one, but not more often than `REPAIR_PAUSE`."""
        last = self._repaired.get(device_key)
        if last is not None and self._clock.monotonic() - last < REPAIR_PAUSE:
            return
        self._broken[user_id, device_key] = None
        if len(self._broken) > MAX_REPAIRS:
            self._broken.popitem(last=False)
        self.wake()

    async def run(self) -> None:
        """Until cancelled. Raises KeysLost."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._publish)
            for doing, work, due in (
                ("ask for devices", self._refresh, self._devices.next_due_ms),
                ("replace channels", self._mend, lambda: None),
                ("ask for room keys", self._requests.ask, self._requests.next_due_ms),
                ("answer key requests", self._requests.answer, lambda: None),
            ):
                nursery.start_soon(self._whenever, doing, work, due)
            nursery.start_soon(self._tidy)

    async def _publish(self) -> None:
        """A homeserver that says time and again that there are too few gets them ever more slowly."""
        pacing = Pacing(self._random, first=PUBLISH_PAUSE, cap=LAST_PUBLISH_PAUSE)
        while True:
            with trio.move_on_after(CALM) as calm:
                await self._publisher.until_due()
            if calm.cancelled_caught:
                pacing.reset()
                continue
            await self._until_done("publish keys", self._publisher.publish)
            await trio.sleep(pacing.next())

    async def _whenever(
        self, doing: str, work: Callable[[], Awaitable[object]], due: Callable[[], int | None]
    ) -> None:
        """Do it now, whenever somebody wakes us, and when it is `due` (epoch, ms)."""
        while True:
            woken = self._woken
            await self._until_done(doing, work)
            when = due()
            pause = math.inf if when is None else max(when - self._clock.now_ms(), 0) / 1000 + _LATER
            with trio.move_on_after(pause):
                await woken.wait()

    async def _tidy(self) -> None:
        looked = -TIDY_PAUSE
        while True:
            now = self._clock.monotonic()
            try:
                if due := now - looked >= TIDY_PAUSE:
                    looked = now
                    self._db.run("DELETE FROM seen WHERE at_ms < ?", self._clock.now_ms() - SEEN_MS)
                more = await self._pruning.prune(now=due, by_age=self._is_settled())
                await self._db.checkpoint()
            except (ArmorclawError, Error, OSError) as error:
                log.warning("the file of the keys cannot be tidied", account=self._account, why=str(error))
                more = False
            if more:
                continue
            with trio.move_on_after(TIDY_PAUSE * self._random.uniform(0.75, 1.25)):
                await self._db.crowded.wait()

    async def _until_done(self, doing: str, work: Callable[[], Awaitable[object]]) -> None:
        """Do it again, ever more slowly, until the homeserver and the disk let it happen."""
        pacing = Pacing(self._random, first=1.0, cap=LAST_PAUSE)
        while True:
            try:
                await work()
                return
            except MatrixError as error:
                verdict = judge(error)
                pause = pacing.next(verdict.after if verdict.again else REFUSED_PAUSE)
                log.warning(f"cannot {doing}", account=self._account, why=verdict.reason, again_s=round(pause))  # noqa: G004
            except (ArmorclawError, OSError) as error:
                pause = pacing.next()
                log.warning(f"cannot {doing}", account=self._account, why=str(error), again_s=round(pause))  # noqa: G004
            await trio.sleep(pause)

    async def _refresh(self) -> None:
        while users := self._devices.due():
            await self._devices.refresh(users)

    async def _mend(self) -> None:
        while self._broken:
            (user_id, device_key), _ = self._broken.popitem(last=False)
            try:
                await self._replace(user_id, device_key)
            except TROUBLES as error:
                if may_pass(error):
                    self._broken[user_id, device_key] = None
                    raise
                log.warning("a channel cannot be replaced", account=self._account, user=user_id, why=str(error))
            self._repaired[device_key] = self._clock.monotonic()
            if len(self._repaired) > MAX_REPAIRS:
                self._repaired.popitem(last=False)

    async def _replace(self, user_id: str, device_key: str) -> None:
        device = self._standing.device_of_key(user_id, device_key)
        if device is None:
            await self._devices.refresh([user_id])
            device = self._standing.device_of_key(user_id, device_key)
        if device is not None and not await self._channels.send([device], "m.dummy", {}, anew=True):
            self._counts["unwedged"] += 1
