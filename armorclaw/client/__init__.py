"""A bridge from outside: the Trio client for host programs.

async with armorclaw.connect("/run/armorclaw/bridge.sock") as client:
    print(await client.call("status"))
    async with client.subscribe("archive", types=["m.room.message"]) as events:
        async for event in events:
            print(event["content"]["body"])
"""

from __future__ import annotations

import math
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import Any
from weakref import WeakKeyDictionary

import attrs
import msgspec
import trio

from armorclaw.client.link import Link, open_socket
from armorclaw.client.subscription import Early, Subscription, retry_after
from armorclaw.clock import Surroundings
from armorclaw.errors import ArmorclawError
from armorclaw.rpc.call import Call
from armorclaw.rpc.caller import OnProgress
from armorclaw.rpc.codec import Text
from armorclaw.rpc.peer import Peer
from armorclaw.rpc.registry import Registry, Role
from armorclaw.rpc.stream import Stream
from armorclaw.typed import Methods

__all__ = ["Client", "Subscription", "connect"]

CALL_TIMEOUT = 10.0
"""Seconds; a bridge answers every call within four."""

_PASSING = ("unavailable", "rate_limited", "draining")
TOO_SLOW = "too slow"
"""How the reason begins for which the bridge ends a subscription that may go on at once."""


@asynccontextmanager
async def connect(
    path: str | os.PathLike[str], *, timeout: float = 5.0, reconnect: float = math.inf
) -> AsyncIterator[Client]:
    """A connection to the bridge at a Unix socket, for the length of the block.

    When it ends it is made again, ten times a second at first, until the bridge has been away for `reconnect`
    seconds; False for not at all. Meanwhile new calls wait, subscriptions go on where they were, and what was under
    way fails with `unavailable`, because nobody knows whether it was carried out.

    Raises `daemon_unreachable`, `socket_denied`, and `timed_out` after `timeout` seconds without a connection.
    """
    name = os.fspath(path)
    stream = await open_socket(name, timeout)
    registry = Registry()
    link = Link(name, registry, Surroundings(), reconnect=reconnect)
    failed: Exception | None = None
    async with trio.open_nursery() as nursery:
        client = Client(link, registry, nursery)
        nursery.start_soon(link.run, stream)
        try:
            yield client
        except Exception as error:  # noqa: BLE001 - raised again below, as it is, not in the nursery's group
            failed = error
        nursery.cancel_scope.cancel(reason="the program has finished with the bridge")
    if failed is not None:
        raise failed


@attrs.frozen
class _Event:
    subscription: str | int
    seq: int | None = None
    id: str | None = None
    type: str | None = None
    at_ms: int | None = None
    agent: str | None = None
    room_id: str | None = None
    sender: str | None = None
    event_id: str | None = None
    severity: str | None = None
    erased: bool = False
    content: Any = None
    redelivered: int = 0


_decode_event = msgspec.json.Decoder(_Event).decode


@attrs.frozen
class _Closed:
    subscription: str | int
    reason: str = ""
    cursor: int | None = None


@attrs.define
class _Routes:
    """Whose the events of one connection are."""

    subscriptions: dict[str | int, Subscription] = attrs.field(factory=dict)
    opening: list[Subscription] = attrs.field(factory=list)
    early: dict[str | int, Early] = attrs.field(factory=dict)


class Client:
    """A bridge, over one connection after the other; made by `connect`."""

    def __init__(self, link: Link, registry: Registry, nursery: trio.Nursery) -> None:
        self._link = link
        self._nursery = nursery
        self._routes: WeakKeyDictionary[Peer, _Routes] = WeakKeyDictionary()
        registry.method("event", raw=True, roles=[Role.OPERATOR])(self._event)
        registry.method("events.closed", params=_Closed, roles=[Role.OPERATOR], open=True)(self._closed)

    @property
    def methods(self) -> Methods:
        """All methods with their types: `(await client.methods.health()).reasons`."""
        return Methods(self)

    async def call(self, method: str, /, *, timeout: float = CALL_TIMEOUT, **params: Any) -> Any:
        """Call a method of the bridge by name; its result. A trailing underscore is dropped from a name: `from_=5`.

        Waits for a bridge that is away, as part of its `timeout` seconds. A call that was under way when the
        connection ended, or that came too fast, is made again only if it has an `idempotency_key`. Raises
        ArmorclawError: what the bridge answers, `timed_out`, or `unavailable` when the connection ends or does not
        come back in time.
        """
        deadline = trio.current_time() + timeout
        while True:
            peer = await self._link.peer(deadline)
            try:
                return await peer.request(method, _named(params), timeout=max(0.0, deadline - trio.current_time()))
            except ArmorclawError as error:
                if error.name not in _PASSING or "idempotency_key" not in params:
                    raise
                pause = retry_after(error) if peer.hears else 0.0  # it may have answered only that it ends
                if trio.current_time() + pause >= deadline:
                    raise
                await trio.sleep(pause)

    @asynccontextmanager
    async def stream(
        self, method: str, /, *, on_progress: OnProgress | None = None, **params: Any
    ) -> AsyncIterator[Stream]:
        """Call a method that streams, for the length of the block; leaving early cancels it.

            async with client.stream("containers.logs", name="echo") as logs:
                async for piece in logs: …
                print(await logs.result())

        Pieces are JSON values, bytes base64 text. It fails with `unavailable` when the connection ends, and is not
        made again; a bridge that is away is waited for as by `call`.
        """
        peer = await self._link.peer(trio.current_time() + CALL_TIMEOUT)
        async with peer.stream(method, _named(params), on_progress=on_progress) as stream:
            yield stream

    @asynccontextmanager
    async def subscribe(
        self,
        name: str | None = None,
        *,
        start: str | int = "now",
        types: Sequence[str] = (),
        rooms: Sequence[str] = (),
        senders: Sequence[str] = (),
        agents: Sequence[str] = (),
        severities: Sequence[str] = (),
    ) -> AsyncIterator[Subscription]:
        """Events as they happen, for the length of the block: from now on, or behind the number or from the time
        (RFC 3339) that `start` is.

        With a name the bridge remembers how far its owner got: an event is acknowledged when the loop asks for the
        next, and comes again after a crash of this program. Without one, nothing is kept for when the block ends.
        """
        chosen = {"types": types, "rooms": rooms, "senders": senders, "agents": agents}
        if severities:  # bridges of before do not know them
            chosen["severities"] = severities
        subscription = Subscription(name, {key: list(value) for key, value in chosen.items()}, start)
        try:
            self._nursery.start_soon(self._keep, subscription)
            await subscription.begun()
            yield subscription
        finally:
            subscription.scope.cancel(reason="the program has finished with the subscription")
            self._forget(subscription)

    async def _keep(self, subscription: Subscription) -> None:
        """Have it subscribed on every connection there is."""
        with subscription.scope:
            try:
                await self._open(subscription, trio.current_time() + CALL_TIMEOUT)
                while True:
                    await subscription.until_lost()
                    if subscription.is_over:  # it must not take its name from whoever has it now
                        return
                    await self._open(subscription, math.inf)
            except ArmorclawError as error:
                subscription.fail(error)
            finally:
                subscription.end("the client was closed")

    async def _open(self, subscription: Subscription, deadline: float) -> None:
        """Subscribe; as often as the connection ends meanwhile and, without a deadline, as the bridge is busy."""
        while True:
            peer = await self._link.peer(deadline)
            routes = self._routes.setdefault(peer, _Routes())
            routes.opening.append(subscription)
            try:
                timeout = min(CALL_TIMEOUT, max(0.0, deadline - trio.current_time()))
                answer = await peer.request(
                    "events.subscribe", subscription.params, timeout=timeout, late=partial(_undo, peer, routes)
                )
                if subscription.scope.cancel_called:  # in the same instant
                    _undo(peer, routes, answer)
                    await trio.lowlevel.checkpoint()
                number = answer["subscription"]
                former = routes.subscriptions.get(number)
                if former is not None:
                    former.end("this program subscribed to it again")
                routes.subscriptions[number] = subscription
                subscription.opened(peer, number, answer["cursor"])
                for event, size in routes.early.pop(number, Early()).events:
                    subscription.put(event, size)
                return
            except ArmorclawError as error:
                if not error.kind.retryable or (peer.hears and deadline < math.inf):
                    raise
                if peer.hears:
                    await trio.sleep(retry_after(error))
            finally:
                routes.opening.remove(subscription)
                if not routes.opening:
                    routes.early.clear()

    def _forget(self, subscription: Subscription) -> None:
        if subscription.open_at is None:
            return
        peer, number = subscription.open_at
        routes = self._routes[peer]
        if routes.subscriptions.get(number) is subscription:
            del routes.subscriptions[number]
            peer.notify("events.unsubscribe", {"subscription": number})

    def _event(self, call: Call, text: Text) -> None:
        try:
            params = _decode_event(text)
        except ValueError as error:
            raise ArmorclawError("invalid_params", "an event is not what it should be") from error
        event = attrs.asdict(params, recurse=False)
        routes = self._routes.setdefault(call.peer, _Routes())
        subscription = routes.subscriptions.get(params.subscription)
        if subscription is not None:
            subscription.put(event, len(text))
        elif routes.opening:
            routes.early.setdefault(params.subscription, Early()).put(event, len(text))

    def _closed(self, call: Call, params: _Closed) -> None:
        subscription = self._routes.setdefault(call.peer, _Routes()).subscriptions.pop(params.subscription, None)
        if subscription is not None:
            if params.reason.startswith(TOO_SLOW):
                subscription.cut()
            else:
                subscription.end(params.reason)


def _undo(peer: Peer, routes: _Routes, answer: Any) -> None:
    """Somebody was subscribed who had given it up: unsubscribe, unless the name has found another owner here."""
    number = answer["subscription"]
    wanted = any(each.name == number and not each.scope.cancel_called for each in routes.opening)
    if not wanted and number not in routes.subscriptions:
        peer.notify("events.unsubscribe", {"subscription": number})


def _named(params: dict[str, Any]) -> dict[str, Any]:
    return {name.removesuffix("_"): value for name, value in params.items()}
