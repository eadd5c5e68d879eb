"""The sync loop: ask, have the answer taken in, ask again; never faster than anything happens."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import trio
from mautrix.errors import MatrixError, MatrixRequestError

from armorclaw.clock import Surroundings
from armorclaw.errors import ArmorclawError
from armorclaw.log import get_logger
from armorclaw.matrix.answer import BadAnswerError, read_answer
from armorclaw.matrix.client import POLL_SECONDS, MatrixClient
from armorclaw.matrix.failures import Verdict, judge
from armorclaw.matrix.pacing import Pacing, Surge
from armorclaw.matrix.processing import Processor
from armorclaw.matrix.status import SessionStatus
from armorclaw.matrix.undecrypted import Session

log = get_logger(__name__)

REFUSED_PAUSE = 30.0
"""Seconds before asking again what the homeserver refused for a reason that does not pass by itself."""

_HOT = 3  # answers in a row that hold nothing, and come at once, before the loop slows down
_AT_ONCE = 1.0  # seconds; a poll that lasted longer than this has been held back

ROUNDS, SURGE = 10.0, 300
"""Rounds a second for good, and how many in a row at any speed: what comes faster comes together."""


class SyncLoop:
    """One account's sync. `connected` is called when the homeserver answers for the first time, and again after each
    time it did not."""

    def __init__(
        self,
        client: MatrixClient,
        processor: Processor,
        status: SessionStatus,
        around: Surroundings,
        *,
        connected: Callable[[], object],
    ) -> None:
        self._client = client
        self._processor = processor
        self._rooms = processor.rooms
        self._status = status
        self._around = around
        self._connected = connected
        self._pacing = Pacing(around.random)
        self._surge = Surge(ROUNDS, SURGE)
        self._hot = 0
        self._poll = trio.CancelScope()

    def on_keys(self, sessions: Sequence[Session]) -> None:
        """Room keys have come, of rooms and sessions: what waits for them is read with the next answer, or now."""
        if self._processor.undecrypted.keys_came(sessions):
            self._poll.cancel(reason="keys have come")

    async def run(self) -> None:
        """Sync until the homeserver no longer knows the access token, then return.

        Everything else it waits out: a homeserver that is away, slow, or answers nonsense, and a store that restarts.
        """
        held = False  # after a pause the first answer is wanted at once, not after a long poll
        while True:
            try:
                hot = await self._once(POLL_SECONDS if held else 0.0)
            except MatrixError as error:
                self._rooms.current_at = None
                verdict = judge(error)
                if verdict.unknown_token:
                    return
                if self._processor.since is not None and _token_refused(error):
                    await self._processor.start_over(verdict.reason)
                    verdict = Verdict(again=True, reason=verdict.reason)
                await self._pause(verdict)
                held = False
            except BadAnswerError as error:
                self._rooms.current_at = None
                await self._pause(Verdict(again=True, reason=str(error)))
                held = False
            except ArmorclawError as error:
                if not error.kind.retryable:
                    raise
                self._rooms.current_at = None
                log.warning("the store does not take events", account=self._status.account, why=str(error))
                await trio.sleep(self._pacing.next())
            else:
                if self._status.synced():
                    self._connected()
                if hot:
                    await trio.sleep(self._pacing.next())
                else:
                    self._pacing.reset()
                    await trio.sleep(self._surge.next(self._around.clock.monotonic()))
                held = True

    async def _once(self, seconds: float) -> bool:
        """One round; true if the homeserver seems to answer faster than anything happens."""
        processor = self._processor
        while processor.undecrypted.hopeful:  # and those that come meanwhile: they find no poll yet to cut short
            await processor.take_late()
        asked = self._around.clock.monotonic()
        found = None
        with trio.CancelScope() as self._poll:  # what an answer brings is asked for again if it is given up
            found = await self._client.poll(processor.since, seconds, full_state=not processor.told)
        if found is None:
            await processor.take_late()
            return False
        heard = self._around.clock.boottime()
        answer = read_answer(found)
        took = self._around.clock.monotonic() - asked
        stuck = answer.next_batch == processor.since and not answer.empty
        if seconds and took < _AT_ONCE and (answer.empty or stuck):
            self._hot += 1
        else:
            self._hot = 0
        await processor.take_in(answer)
        self._rooms.current_at = heard  # taking it in may have taken long
        return stuck or self._hot > _HOT

    async def _pause(self, verdict: Verdict) -> None:
        told = verdict.after if verdict.again else REFUSED_PAUSE
        self._status.waiting(verdict.reason)
        await trio.sleep(self._pacing.next(told))


def _token_refused(error: MatrixError) -> bool:
    """Synapse says M_UNKNOWN or M_INVALID_PARAM, others M_UNKNOWN_POS; nothing else in the request can be wrong."""
    return isinstance(error, MatrixRequestError) and error.http_status == 400 and error.errcode is not None
