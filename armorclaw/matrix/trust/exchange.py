"""One verification at work: its messages go out and come in, within ten minutes, and what it proved is kept."""

from __future__ import annotations

import json
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

import trio
from mautrix.api import Method, Path
from mautrix.errors import MatrixError

from armorclaw.clock import Surroundings
from armorclaw.delivery.transport import Delayed, Refused
from armorclaw.events.event import ascii_json
from armorclaw.log import get_logger
from armorclaw.matrix.client import MatrixClient
from armorclaw.matrix.failures import judge
from armorclaw.matrix.pacing import Pacing
from armorclaw.matrix.trust.verification import PREFIX, Message, Phase, Verification

log = get_logger(__name__)

TIME_LIMIT = 600.0
"""Seconds from the request to the end, says the specification."""

INBOX = 50
"""Messages of the other side that wait; a whole verification has six from each side. More are dropped, and said."""

LAST_WORDS = 5.0
"""Seconds for telling the other side that it is over, when we are about to be over as well."""


class Putter(Protocol):
    """What puts events into rooms, encrypted where they must be: `armorclaw.matrix.postman.Postman`."""

    async def put(self, room_id: str, type: str, txn_id: str, content: bytes) -> str: ...  # noqa: A002


KnownKeys = Callable[[str, str | None], Awaitable[Mapping[str, str]]]
"""The keys of a user and a device as the homeserver has them now, by id. Raises MatrixError."""


class Exchange:
    """`room_id` is None for one between devices; then `asked` are the devices that the request went to.

    `conclude` is called once with the verification when it is done. It raises MatrixError for what may pass, and
    Refused.
    """

    def __init__(
        self,
        verification: Verification,
        client: MatrixClient,
        putter: Putter,
        around: Surroundings,
        *,
        known_keys: KnownKeys,
        conclude: Callable[[Verification], Awaitable[None]],
        room_id: str | None = None,
        asked: Sequence[str] = (),
    ) -> None:
        self.verification = verification
        self.room_id = room_id
        self.failure = ""
        """Why it came to nothing on our side although it did not fail: nobody could be reached, or told."""
        self.concluded = False
        self._client = client
        self._putter = putter
        self._around = around
        self._known_keys = known_keys
        self._conclude = conclude
        self._asked = tuple(asked)
        self._told_others = False
        self._inbox: deque[tuple[str, Mapping[str, Any]]] = deque()
        self._changed = trio.Event()

    @property
    def over(self) -> bool:
        """Whether nothing more comes of it: cancelled, failed, or done and kept."""
        return bool(self.concluded or self.failure or self.verification.phase is Phase.CANCELLED)

    async def changed(self) -> None:
        """Until something has changed since the call."""
        await self._changed.wait()

    def note(self) -> None:
        """Something has changed: whoever drives or watches it looks again."""
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    def receive(self, type_: str, content: Mapping[str, Any]) -> None:
        """A message of the other user. Never waits."""
        if len(self._inbox) >= INBOX:
            log.warning("verification floods us: message dropped", user=self.verification.their_user, type=type_)
            return
        self._inbox.append((type_, content))
        self.note()

    def accept(self) -> None:
        self.verification.accept()
        self.note()

    def confirm(self, same: bool) -> None:
        self.verification.confirm(same)
        self.note()

    def cancel(self) -> None:
        self.verification.cancel()
        self.note()

    def supersede(self) -> None:
        """The same device has begun another one."""
        unanswered = self.verification.asks_us
        self.verification.cancel("m.unexpected_message", "the same device has begun another one")
        if unanswered:
            self.verification.pending.clear()  # nothing was said, and another device of ours may be at it
        self.note()

    def abandon(self, why: str) -> None:
        """Nobody drives it any more: unless it is over it comes to nothing. The other side hears nothing."""
        if not self.over:
            self.failure = why
        self.note()

    async def drive(self) -> None:
        """Until it is over. When this is cancelled the other side hears nothing, and gives up in time."""
        v = self.verification
        with trio.move_on_after(TIME_LIMIT):
            await self._drive()
        if v.phase is Phase.DONE and not self.concluded:
            self.failure = self.failure or "what was proven could not be kept: the homeserver was away too long"
        v.expire()
        self.note()
        await self._last_words()

    async def _drive(self) -> None:
        pacing = Pacing(self._around.random)
        while not self.over:
            changed = self._changed
            try:
                await self._work()
                pacing.reset()
            except (Delayed, Refused, MatrixError) as error:
                failure = judge(error).exception() if isinstance(error, MatrixError) else error
                if isinstance(failure, Refused):
                    self._give_up(failure.reason)
                    return
                await trio.sleep(pacing.next(failure.seconds))
                continue
            if not self._inbox and not self.over:
                await changed.wait()

    async def _work(self) -> None:
        """One round: what came in, then what goes out. Raises what sending raises; then the round is repeated."""
        v = self.verification
        if self._inbox:
            type_, content = self._inbox[0]
            if type_ == PREFIX + "mac":  # now is when they count
                v.known = dict(await self._known_keys(v.their_user, v.their_device))
            self._inbox.popleft()
            v.receive(type_, content)
            self.note()
        await self._send(v.pending)
        if self._asked and not self._told_others and v.phase not in (Phase.REQUESTED, Phase.CANCELLED):
            others = [device for device in self._asked if device != v.their_device]
            if others:
                await self._to_devices(others, _cancel(v, "m.accepted", "another device has accepted"))
            self._told_others = True
        if v.phase is Phase.DONE and not self.concluded:
            await self._conclude(v)
            self.concluded = True
            self.note()

    async def _send(self, pending: deque[tuple[str, Message]]) -> None:
        while pending:
            txn_id, message = pending[0]
            if self.room_id is not None:
                await self._putter.put(self.room_id, message.type, txn_id, ascii_json(message.content))
            else:
                v = self.verification
                devices = [v.their_device] if v.their_device is not None else list(self._asked)
                await self._to_devices(devices, message, txn_id)
            pending.popleft()

    async def _to_devices(self, devices: Sequence[str], message: Message, txn_id: str | None = None) -> None:
        await send_to_devices(self._client, self.verification.their_user, devices, message, txn_id)

    async def _last_words(self) -> None:
        with trio.move_on_after(LAST_WORDS):
            try:
                await self._send(self.verification.pending)
            except (Delayed, Refused, MatrixError) as error:
                log.info("the other side of a verification could not be told of its end", why=str(error))

    def _give_up(self, why: str) -> None:
        self.failure = why
        log.warning("verification failed", user=self.verification.their_user, why=why)
        self.verification.cancel("m.user", "it failed on the other side")


async def send_to_devices(
    client: MatrixClient, user_id: str, devices: Sequence[str], message: Message, txn_id: str | None = None
) -> None:
    """The same message to some devices of a user. Raises MatrixError; again with the same `txn_id` sends it once."""
    path = Path.v3.sendToDevice[message.type][txn_id or secrets.token_hex(16)]
    body = {"messages": {user_id: dict.fromkeys(devices, message.content)}}
    await client.api.request(Method.PUT, path, json.dumps(body, separators=(",", ":")))


def _cancel(v: Verification, code: str, reason: str) -> Message:
    content = {"transaction_id": v.transaction_id, "code": code, "reason": reason}
    return Message(PREFIX + "cancel", content)
