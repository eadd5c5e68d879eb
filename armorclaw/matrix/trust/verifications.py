"""The verifications of one account that are under way: asked for here or elsewhere, each driven by a task."""

from __future__ import annotations

import math
import secrets
from collections import OrderedDict, deque
from collections.abc import Mapping
from typing import Any, Protocol

import trio
from mautrix.errors import MatrixError

from armorclaw.clock import Surroundings
from armorclaw.delivery.transport import Delayed, Refused
from armorclaw.errors import ArmorclawError
from armorclaw.events.event import ascii_json
from armorclaw.log import get_logger
from armorclaw.matrix.client import MatrixClient
from armorclaw.matrix.failures import judge
from armorclaw.matrix.rooms import Rooms
from armorclaw.matrix.trust.cross_signing import Tell
from armorclaw.matrix.trust.exchange import Exchange, Putter, send_to_devices
from armorclaw.matrix.trust.sas import End
from armorclaw.matrix.trust.verification import METHOD, PREFIX, Message, Phase, Verification

log = get_logger(__name__)

REQUEST = PREFIX + "request"

UNANSWERED = 20
"""Requests that wait for somebody to answer them; more are not heard, and that is logged."""

FROM_ONE = 3
"""Of those, requests of one user."""

ASKED = 20
"""Verifications at a time that were asked for here."""

EARLY = 50
"""Answers that may overtake our own request, kept until it has its id; the oldest goes."""

TOLD_AGAIN = 3600.0
"""Seconds before people are told again that the same user asks to be verified."""

SESSION_ENDED = "the account's session has ended"

_TOLD = 1000  # users remembered for that
_OLD, _AHEAD = 600_000, 300_000  # milliseconds a request may be old, or ahead of our clock


class Keys(Protocol):
    """What is known of keys, and kept of what verifications prove; both raise MatrixError."""

    async def devices_of(self, user_id: str) -> list[str]: ...
    async def known(self, user_id: str, device_id: str | None) -> Mapping[str, str]: ...
    async def conclude(self, verification: Verification) -> None: ...
    def own(self) -> dict[str, str]: ...


class Verifications:
    """`run` drives them; `on_to_device` and `on_room` never wait. All of it is of one session.

    Who waits for one may outlive that session: `close` has them hear of its end.
    """

    def __init__(
        self,
        account: str,
        client: MatrixClient,
        keys: Keys,
        putter: Putter,
        rooms: Rooms,
        around: Surroundings,
        tell: Tell,
    ) -> None:
        self._account = account
        self._client = client
        self._keys = keys
        self._putter = putter
        self._rooms = rooms
        self._around = around
        self._tell = tell
        self._own = End(str(client.mxid), str(client.device_id))
        self._exchanges: dict[tuple[str, str], Exchange] = {}
        self._unanswered: list[Exchange] = []
        self._early: deque[tuple[str, str, str, Mapping[str, Any]]] = deque(maxlen=EARLY)
        self._told: OrderedDict[str, float] = OrderedDict()
        self._to_drive, self._driven = trio.open_memory_channel[Exchange](
            UNANSWERED + ASKED  # each is in there once
        )
        self._news = trio.Event()
        self._closed = False

    async def run(self) -> None:
        """Until cancelled; then they are closed."""
        try:
            async with trio.open_nursery() as nursery:
                async for exchange in self._driven:
                    nursery.start_soon(self._drive, exchange)
        finally:
            self.close()

    def close(self) -> None:
        """Nobody drives them any more: what is under way comes to nothing, and there are no others."""
        self._closed = True
        for exchange in self._exchanges.values():
            exchange.abandon(SESSION_ENDED)
        self._wake()

    # -- what comes in

    def on_to_device(self, type_: str, sender: str, content: Mapping[str, Any], encrypted: bool) -> None:
        """A message to our device whose type begins with `m.key.verification.`; anybody may have sent anything."""
        txn = content.get("transaction_id")
        if not isinstance(txn, str) or not txn or len(txn) > 255:
            return
        exchange = self._exchanges.get((sender, txn))
        if exchange is not None:
            if exchange.room_id is None and type_ != REQUEST:
                exchange.receive(type_, content)
            return
        if type_ == REQUEST:
            at, now = content.get("timestamp"), self._around.clock.now_ms()
            if isinstance(at, int) and now - _OLD <= at <= now + _AHEAD:
                self._requested(sender, txn, content)
            else:
                log.info("request of verification is not of now", account=self._account, user=sender)
        elif type_ == PREFIX + "start":
            self._requested(sender, txn, content, start=True)

    def on_room(self, room_id: str, event_id: str, sender: str, type_: str, content: Mapping[str, Any]) -> None:
        """The same in a room, where a request is a message of that type."""
        if type_ == "m.room.message":
            if content.get("to") == self._own.user_id and (sender, event_id) not in self._exchanges:
                self._requested(sender, event_id, content, room_id=room_id)
            return
        relation = content.get("m.relates_to")
        about = relation.get("event_id") if isinstance(relation, Mapping) else None
        if not isinstance(about, str):
            return
        exchange = self._exchanges.get((sender, about))
        if exchange is None:
            self._early.append((sender, about, type_, content))
        elif exchange.room_id == room_id:
            exchange.receive(type_, content)

    def _requested(
        self, sender: str, txn: str, content: Mapping[str, Any], *, room_id: str | None = None, start: bool = False
    ) -> None:
        if self._closed:
            return
        device, methods = content.get("from_device"), content.get("methods")
        if not isinstance(device, str) or not device or (sender, device) == (self._own.user_id, self._own.device_id):
            return
        known = content.get("method") == METHOD if start else isinstance(methods, list) and METHOD in methods
        facts = {"account": self._account, "user": sender, "device": device}
        if not known:
            log.info("request of verification by other means than ours", **facts)
            return
        waiting = [each for each in self._unanswered if each.verification.their_user == sender]
        if len(self._unanswered) >= UNANSWERED or len(waiting) >= FROM_ONE:
            log.warning("too many verifications: request not heard", **facts)
            return
        self._supersede(sender, device)
        verification = self._new(txn, sender, device, in_room=room_id is not None, we_asked=False)
        exchange = self._exchange(verification, room_id)
        if start:
            exchange.receive(PREFIX + "start", content)
        self._unanswered.append(exchange)
        log.info("somebody asks to be verified", **facts)
        self._begin(exchange)

    def _supersede(self, user_id: str, device_id: str) -> None:
        """A device that begins anew has given up what it was at: it may have crashed, and never answers again.

        What we asked it for ourselves stands until it has answered: both may have begun at the same time.
        """
        for former in self._exchanges.values():
            v = former.verification
            answered = v.phase in (Phase.ACCEPTED, Phase.SHOWN, Phase.CONFIRMED)
            if (v.their_user, v.their_device) == (user_id, device_id) and (answered or not v.we_asked):
                former.supersede()

    # -- what goes out

    async def ask(
        self, user_id: str, device_id: str | None = None, room_id: str | None = None, *, direct: bool = False
    ) -> Exchange:
        """Ask a user, or one device of theirs, to verify each other.

        Raises not_found when there is nothing to verify, unavailable and matrix_refused when nobody can be asked.
        """
        self._check_open()
        if len(self._exchanges) - len(self._unanswered) >= ASKED:
            raise ArmorclawError("queue_full", f"{ASKED} verifications are under way")
        try:
            known = await self._keys.devices_of(user_id)
            if user_id == self._own.user_id and self._own.device_id in known:
                known.remove(self._own.device_id)
            wanted = [device_id] if device_id is not None else known
            if not wanted or any(each not in known for each in wanted):
                which = f"device {device_id} of {user_id}" if device_id else f"{user_id}"
                hint = f"its devices are listed by: armorclaw matrix devices {user_id}"
                raise ArmorclawError("not_found", f"{which} has no keys to verify", hint=hint)
            if direct:
                return self._start_direct(user_id, wanted)
            if room_id is None and device_id is None and user_id != self._own.user_id:
                room_id = self._direct_room(user_id)
            if room_id is not None:
                return await self._ask_in_room(user_id, room_id)
            return await self._ask_devices(user_id, wanted)
        except MatrixError as error:
            verdict = judge(error)
            raise ArmorclawError(
                "unavailable" if verdict.again else "matrix_refused", f"verify {user_id}", why=verdict.reason
            ) from error
        except (Delayed, Refused) as error:
            name = "unavailable" if isinstance(error, Delayed) else "matrix_refused"
            raise ArmorclawError(name, f"verify {user_id}", why=error.reason) from error

    def _start_direct(self, user_id: str, wanted: list[str]) -> Exchange:
        if len(wanted) != 1:
            raise ArmorclawError("invalid_params", "direct is for one device", fields=["device_id"])
        verification = self._new(secrets.token_hex(16), user_id, wanted[0], in_room=False, we_asked=True)
        verification.start()
        return self._begin(self._exchange(verification, None))

    async def _ask_devices(self, user_id: str, wanted: list[str]) -> Exchange:
        txn = secrets.token_hex(16)
        content = {
            "from_device": self._own.device_id,
            "methods": [METHOD],
            "timestamp": self._around.clock.now_ms(),
            "transaction_id": txn,
        }
        verification = self._new(txn, user_id, None, in_room=False, we_asked=True)
        exchange = self._exchange(verification, None, asked=wanted)
        try:
            await send_to_devices(self._client, user_id, wanted, Message(REQUEST, content))
        except BaseException:
            self._forget(exchange)
            raise
        return self._begin(exchange)

    async def _ask_in_room(self, user_id: str, room_id: str) -> Exchange:
        content = {
            "msgtype": REQUEST,
            "body": f"{self._own.user_id} asks to verify each other; your client does not know how to",
            "from_device": self._own.device_id,
            "methods": [METHOD],
            "to": user_id,
        }
        event_id = await self._putter.put(room_id, "m.room.message", secrets.token_hex(16), ascii_json(content))
        verification = self._new(event_id, user_id, None, in_room=True, we_asked=True)
        exchange = self._exchange(verification, room_id)
        for sender, about, type_, said in self._early:
            if (sender, about) == (user_id, event_id):
                exchange.receive(type_, said)
        return self._begin(exchange)

    def _direct_room(self, user_id: str) -> str | None:
        joined = (room_id for room_id, room in self._rooms.all().items() if room.direct == user_id)
        return next((room_id for room_id in sorted(joined) if self._rooms.joined(room_id)), None)

    # -- verifications at work

    async def next_request(self) -> Exchange:
        """The oldest request that nobody has taken yet; waits for one. It is the taker's from then on.

        Raises unavailable once there will be none.
        """
        while True:
            self._check_open()
            while self._unanswered:
                exchange = self._unanswered.pop(0)
                if not exchange.over:  # else it was superseded just now
                    return exchange
            await self._news.wait()

    def _new(self, txn: str, user_id: str, device_id: str | None, *, in_room: bool, we_asked: bool) -> Verification:
        return Verification(
            txn,
            self._own,
            user_id,
            own_keys=self._keys.own(),
            their_device=device_id,
            in_room=in_room,
            we_asked=we_asked,
        )

    def _exchange(self, verification: Verification, room_id: str | None, asked: list[str] | None = None) -> Exchange:
        exchange = Exchange(
            verification,
            self._client,
            self._putter,
            self._around,
            known_keys=self._keys.known,
            conclude=self._keys.conclude,
            room_id=room_id,
            asked=asked or (),
        )
        self._exchanges[verification.their_user, verification.transaction_id] = exchange
        return exchange

    def _begin(self, exchange: Exchange) -> Exchange:
        self._check_open()
        self._to_drive.send_nowait(exchange)
        self._wake()
        return exchange

    def _check_open(self) -> None:
        if self._closed:
            raise ArmorclawError("unavailable", f"verifications of account {self._account!r}", why=SESSION_ENDED)

    def _wake(self) -> None:
        """Whoever waits for a request looks again."""
        news, self._news = self._news, trio.Event()
        news.set()

    async def _drive(self, exchange: Exchange) -> None:
        try:
            if exchange in self._unanswered:
                await self._tell_of_request(exchange.verification)
            await exchange.drive()
        finally:
            exchange.abandon(SESSION_ENDED)  # unless it is over
            self._forget(exchange)
        v = exchange.verification
        outcome = "done" if exchange.concluded else exchange.failure or f"{v.code}: {v.reason}"
        log.info("verification is over", account=self._account, user=v.their_user, outcome=outcome)

    def _forget(self, exchange: Exchange) -> None:
        v = exchange.verification
        self._exchanges.pop((v.their_user, v.transaction_id), None)
        if exchange in self._unanswered:
            self._unanswered.remove(exchange)

    async def _tell_of_request(self, v: Verification) -> None:
        now = self._around.clock.monotonic()
        if now - self._told.get(v.their_user, -math.inf) < TOLD_AGAIN:
            return
        self._told[v.their_user] = now
        self._told.move_to_end(v.their_user)
        while len(self._told) > _TOLD:
            self._told.popitem(last=False)
        await self._tell(
            "matrix_verification_requested",
            "info",
            f"{v.their_user} asks to verify account {self._account!r}: armorclaw matrix verify --account"
            f" {self._account}, within ten minutes",
        )
