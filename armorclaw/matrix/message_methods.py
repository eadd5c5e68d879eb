"""The methods by which messages are sent, changed and marked. All that goes out goes through the outbox."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol

import trio

from armorclaw.delivery.message import KEY_LIMIT, Delivery, Outgoing
from armorclaw.delivery.outbox import Outbox
from armorclaw.errors import ArmorclawError
from armorclaw.events.event import ascii_json
from armorclaw.matrix.accounts import Accounts
from armorclaw.matrix.compose import content
from armorclaw.matrix.compose.content import Content, Draft
from armorclaw.matrix.compose.markdown import is_loaded
from armorclaw.matrix.facts import REFUSED
from armorclaw.matrix.message_shapes import (
    EditParams,
    MatrixSent,
    ReactParams,
    ReadParams,
    RedactParams,
    SendParams,
    TypingParams,
)
from armorclaw.matrix.permission import Permission, Target
from armorclaw.rpc.registry import Registry, Role

if TYPE_CHECKING:
    from armorclaw.rpc.call import Call

SEND_WAIT = 3.5
"""Seconds that these wait for the event id at most, before they answer `queued`."""

TEXT_LIMIT = 256 * 1024
"""Characters of a message, however many events become of it."""

MARKDOWN_LIMIT = 64 * 1024
"""The same of Markdown, which takes time to read."""

AT_ONCE = 1_000
"""Characters of Markdown, that are read at once: longer ones leave the event loop to the others meanwhile."""

AT_ONCE_PLAIN = 20_000

COMPOSERS = 2
"""Threads for that."""

INTERIM_EDITS = 1_000
"""Messages whose last interim edit is remembered; of more, the longest ago are forgotten: their next one may queue up
behind it."""

_OTHER_ROOM = "use a room that is encrypted with m.megolm.v1.aes-sha2, or not at all"

_WRITERS = frozenset({Role.OPERATOR, Role.AGENT})


class _Written(Protocol):
    """What sending and editing have in common."""

    @property
    def message(self) -> str: ...
    @property
    def msgtype(self) -> str: ...
    @property
    def content(self) -> dict[str, Any] | None: ...
    @property
    def format(self) -> Literal["plain", "markdown"]: ...
    @property
    def mentions(self) -> list[str]: ...
    @property
    def thread(self) -> str | None: ...


class _Addressed(Protocol):
    """What all have that go out."""

    @property
    def room_id(self) -> str: ...
    @property
    def idempotency_key(self) -> str | None: ...
    @property
    def wait_ms(self) -> int: ...


class MessageMethods:
    """The handlers; `register` gives them their names."""

    def __init__(self, accounts: Accounts, outbox: Outbox, permission: Permission) -> None:
        self._accounts = accounts
        self._outbox = outbox
        self._permission = permission
        self._composers = trio.CapacityLimiter(COMPOSERS)
        self._interim: OrderedDict[tuple[str, str], str] = OrderedDict()  # message, as it is known → its last edit

    def register(self, registry: Registry) -> None:
        """Add them to the table."""
        method = registry.method
        sends = {"result": MatrixSent, "roles": _WRITERS, "quota": "messages"}
        method("matrix.send", params=SendParams, **sends)(self.send)  # type: ignore[arg-type]
        method("matrix.edit", params=EditParams, **sends)(self.edit)  # type: ignore[arg-type]
        method("matrix.react", params=ReactParams, **sends)(self.react)  # type: ignore[arg-type]
        method("matrix.redact", params=RedactParams, **sends)(self.redact)  # type: ignore[arg-type]
        method("matrix.typing", params=TypingParams, roles=_WRITERS)(self.typing)
        method("matrix.read", params=ReadParams, roles=_WRITERS)(self.read)

    async def send(self, call: Call, params: SendParams) -> MatrixSent:
        """Send a message to a room, once as others see it. One that is too long for an event becomes several.

        Waits up to 3.5 s for the event id. Then `status` is `queued` and event_id null; the message goes out as soon
        as the homeserver takes it.
        """
        deadline = _deadline(params)
        account = self._permission.account_for(call, params.room_id, params.account)
        draft = _draft(call, params, reply_to=params.reply_to)
        await self._check_content(call, account, params)
        encrypted = self._accounts.encrypted(account, params.room_id) is not False
        contents = await self._composed(draft, partial(content.messages, draft, encrypted=encrypted))
        return await self._out(call, account, params, contents, deadline)

    async def edit(self, call: Call, params: EditParams) -> MatrixSent:
        """Make a message another one, for all who see it. An agent may do so with what it sent itself.

        It is answered as by matrix.send, with the id of the event that says so.
        """
        deadline = _deadline(params)
        account = self._permission.account_for(call, params.room_id, params.account)
        ids = (params.event_id, params.delivery_id)
        target = await self._permission.target(call, account, params.room_id, *ids, own=True)
        about = (account, target.event_id)
        if params.interim:
            await self._check_interim(about, target)
        draft = _draft(call, params)
        contents = await self._composed(draft, partial(content.edits, draft, target.event_id, cut=params.interim))
        sent = await self._out(call, account, params, contents, deadline, refers=target.refers)
        if params.interim:
            self._interim[about] = sent.delivery_id
            self._interim.move_to_end(about)
            if len(self._interim) > INTERIM_EDITS:
                self._interim.popitem(last=False)
        return sent

    async def react(self, call: Call, params: ReactParams) -> MatrixSent:
        """React to an event, with an emoji or a word. matrix.redact of what is answered takes that back.

        The same reaction twice is refused by homeservers.
        """
        deadline = _deadline(params)
        account = self._permission.account_for(call, params.room_id, params.account)
        ids = (params.event_id, params.delivery_id)
        target = await self._permission.target(call, account, params.room_id, *ids, own=False)
        made = content.reaction(target.event_id, params.key, call.agent)
        return await self._out(call, account, params, [made], deadline, type_="m.reaction", refers=target.refers)

    async def redact(self, call: Call, params: RedactParams) -> MatrixSent:
        """Remove an event's content, for everybody and for good. An agent may do so with what it sent itself."""
        deadline = _deadline(params)
        account = self._permission.account_for(call, params.room_id, params.account)
        ids = (params.event_id, params.delivery_id)
        target = await self._permission.target(call, account, params.room_id, *ids, own=True)
        made = content.redaction(target.event_id, params.reason)
        return await self._out(
            call, account, params, [made], deadline, type_="m.room.redaction", refers=target.refers
        )

    def typing(self, call: Call, params: TypingParams) -> None:
        """Show the people in a room that somebody is writing, or no more.

        Answered at once; while the homeserver is away nobody is shown anything.
        """
        account = self._permission.account_for(call, params.room_id, params.account)
        seconds = params.timeout_ms / 1000 if params.typing else 0.0
        self._accounts.typing(account, params.room_id, call.agent or "", seconds)

    def read(self, call: Call, params: ReadParams) -> None:
        """Show the people in a room that everything up to an event is read.

        What an agent acknowledges is read without this. Answered at once; an account with `read_receipts` off shows
        nothing.
        """
        account = self._permission.account_for(call, params.room_id, params.account)
        self._accounts.read(account, params.room_id, params.event_id)

    async def _out(
        self,
        call: Call,
        account: str,
        params: _Addressed,
        contents: Sequence[Content],
        deadline: float,
        *,
        type_: str = "m.room.message",
        refers: str | None = None,
    ) -> MatrixSent:
        """Into the outbox, all or none; `refers` is for the first. Answered with what is known at the deadline."""
        outs = [
            Outgoing(
                account=account,
                agent=call.agent or "",
                room_id=params.room_id,
                content=ascii_json(each),
                type=type_,
                idempotency_key=_key_of(params.idempotency_key, number),
                refers=None if number else refers,
            )
            for number, each in enumerate(contents)
        ]
        deliveries = await self._outbox.enqueue_all(outs)
        first = deliveries[0]
        wait = deadline - trio.current_time()
        if first.waiting and wait > 0:
            first = await self._outbox.settled(first.delivery_id, wait)
        return _sent(first, [each.delivery_id for each in deliveries] if len(deliveries) > 1 else None)

    async def _composed(self, draft: Draft, compose: Callable[[], list[Content]]) -> list[Content]:
        limit = MARKDOWN_LIMIT if draft.markdown else TEXT_LIMIT
        size = len(draft.text)
        if size > limit:
            what = f"a message of {size} characters"
            raise ArmorclawError("too_large", what, hint=f"at most {limit}; send what is longer as a file")
        if size <= AT_ONCE_PLAIN and (not draft.markdown or (size <= AT_ONCE and is_loaded())):
            return compose()
        # a caller that is gone leaves its thread to end by itself, within about a second
        return await trio.to_thread.run_sync(compose, limiter=self._composers, abandon_on_cancel=True)

    async def _check_content(self, call: Call, account: str, params: SendParams) -> None:
        """What an agent may not do, it may not do by what `content` says either: change the messages of others, or
        speak of the keys of its account."""
        if call.agent is None:
            return
        extra = params.content or {}
        if str(extra.get("msgtype", params.msgtype)).startswith("m.key."):
            what, hint = "an agent verifies nobody", "armorclaw matrix verify does"
            raise ArmorclawError("invalid_params", what, hint=hint, fields=["msgtype"])
        relation = extra.get("m.relates_to")
        if not isinstance(relation, dict) or relation.get("rel_type") != "m.replace":
            return
        event_id = relation.get("event_id")
        if not isinstance(event_id, str):
            raise ArmorclawError("invalid_params", "m.relates_to has no event_id", fields=["content"])
        await self._permission.target(call, account, params.room_id, event_id, None, own=True)

    async def _check_interim(self, about: tuple[str, str], target: Target) -> None:
        what = "an interim edit"
        if target.refers is not None:
            raise ArmorclawError("unavailable", what, why="the message is not sent yet")
        last = self._interim.get(about)
        if last is not None and (await self._outbox.status(last)).waiting:
            raise ArmorclawError("unavailable", what, why="the one before is not sent yet")


def _deadline(params: _Addressed) -> float:
    return trio.current_time() + min(params.wait_ms / 1000, SEND_WAIT)


def _draft(call: Call, params: _Written, *, reply_to: str | None = None) -> Draft:
    return Draft(
        params.message,
        params.msgtype,
        params.format == "markdown",
        params.mentions,
        reply_to,
        params.thread,
        params.content or {},
        call.agent,
    )


def _key_of(key: str | None, number: int) -> str | None:
    """That of a further part: from the first one's, and not one that anybody chooses."""
    if key is None or not number or not 1 <= len(key) <= KEY_LIMIT:
        return key
    return f"part {number + 1} of {hashlib.sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()}"


def _sent(delivery: Delivery, parts: list[str] | None) -> MatrixSent:
    if delivery.state == "cancelled":
        raise ArmorclawError(
            "conflict", f"room {delivery.room_id}", why="the message was cancelled", delivery_id=delivery.delivery_id
        )
    if delivery.state == "failed":
        reason = delivery.reason or ""
        word, _, why = reason.partition(": ")
        if word.startswith("room_encrypted"):
            hint = "" if word == "room_encrypted" else _OTHER_ROOM
            what = f"room {delivery.room_id} is encrypted"
            raise ArmorclawError("room_encrypted", what, why=why, hint=hint, delivery_id=delivery.delivery_id)
        hint = REFUSED if "M_FORBIDDEN" in reason else ""
        what = f"room {delivery.room_id}"
        raise ArmorclawError("matrix_refused", what, why=reason, hint=hint, delivery_id=delivery.delivery_id)
    # whether it was delivered and read by now is told by delivery.status
    status: Literal["queued", "sent"] = "queued" if delivery.event_id is None else "sent"
    return MatrixSent(delivery.event_id, delivery.room_id, delivery.delivery_id, status, parts)
