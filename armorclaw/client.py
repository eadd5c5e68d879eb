"""A bridge from outside: the Trio client for host programs.

async with armorclaw.connect("/run/armorclaw/bridge.sock") as client:
    print(await client.call("status"))
    async with client.subscribe("archive", types=["m.room.message"]) as events:
        async for event in events:
            print(event["content"]["body"])
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any

import attrs
import trio

from armorclaw.clock import Surroundings
from armorclaw.errors import ArmorclawError
from armorclaw.rpc.peer import Call, Peer
from armorclaw.rpc.registry import Registry, Role

CALL_TIMEOUT = 10.0
"""Seconds; a bridge answers every call within four."""

MAX_WAITING = 10_000
"""Events kept for a reader that does not take them. A named subscription never comes near: its window is smaller."""


@asynccontextmanager
async def connect(path: str | os.PathLike[str], *, timeout: float = 5.0) -> AsyncIterator[Client]:
    """A connection to the bridge at a Unix socket, for the length of the block.

    Raises `daemon_unreachable`, `socket_denied`, and `timed_out` after `timeout` seconds without a connection.
    """
    stream = await _open(os.fspath(path), timeout)
    registry = Registry()
    client = Client(Peer(stream, registry, role=Role.OPERATOR, around=Surroundings()))
    registry.method("event", params=_Event, roles=[Role.OPERATOR], open=True)(client._event)
    registry.method("events.closed", params=_Closed, roles=[Role.OPERATOR], open=True)(client._closed)
    failed: Exception | None = None
    async with trio.open_nursery() as nursery:
        await nursery.start(client._peer.serve)
        try:
            yield client
        except Exception as error:  # noqa: BLE001 - raised again below, as it is, not in the nursery's group
            failed = error
        client._peer.close("the program has finished with it")
    if failed is not None:
        raise failed


async def _open(path: str, timeout: float) -> trio.SocketStream:
    sock = trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_STREAM)
    try:
        with trio.fail_after(timeout):
            await sock.connect(path)
    except trio.TooSlowError:
        sock.close()
        raise ArmorclawError("timed_out", f"the bridge at {path} accepts no connection") from None
    except PermissionError:
        sock.close()
        raise ArmorclawError("socket_denied", f"cannot connect to {path}", why="this user may not open it") from None
    except OSError as error:
        sock.close()
        why = error.strerror or str(error)
        raise ArmorclawError("daemon_unreachable", f"no bridge listens at {path}", why=why) from None
    except BaseException:
        sock.close()
        raise
    return trio.SocketStream(sock)


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
    content: Any = None
    redelivered: int = 0


@attrs.frozen
class _Closed:
    subscription: str | int
    reason: str = ""


class Client:
    """An open connection; made by `connect`."""

    def __init__(self, peer: Peer) -> None:
        self._peer = peer
        self._subscriptions: dict[str | int, Subscription] = {}
        self._early: dict[str | int, list[dict[str, Any]]] = {}  # pushed before their subscription was answered
        self._opening = 0

    async def call(self, method: str, *, timeout: float = CALL_TIMEOUT, **params: Any) -> Any:
        """Call a method of the bridge by name; its result. A trailing underscore is dropped from a name: `from_=5`.

        Raises ArmorclawError: what the bridge answers, `timed_out`, or `unavailable` when the connection ends.
        """
        named = {name.removesuffix("_"): value for name, value in params.items()}
        return await self._peer.request(method, named, timeout=timeout)

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
    ) -> AsyncIterator[Subscription]:
        """Events as they happen, from now on or from the number `start`, for the length of the block.

        With a name the bridge remembers how far its owner got: an event is acknowledged when the loop asks for the
        next, and comes again after a crash. Without one, nothing is kept for when the connection ends.
        """
        chosen = {"types": types, "rooms": rooms, "senders": senders, "agents": agents}
        params: dict[str, Any] = {"filter": {key: list(value) for key, value in chosen.items()}, "from": start}
        if name is not None:
            params["name"] = name
        self._opening += 1
        try:
            answer = await self.call("events.subscribe", **params)
            subscription = Subscription(self, answer["subscription"], durable=name is not None)
            for event in self._early.pop(subscription.id, ()):
                subscription._put(event)
            self._subscriptions[subscription.id] = subscription
        finally:
            self._opening -= 1
            if not self._opening:
                self._early.clear()
        self._peer.at_close(lambda _: subscription._end("the connection has ended"))
        try:
            yield subscription
        finally:
            del self._subscriptions[subscription.id]
            if not self._peer.closed.is_set():
                self._peer.notify("events.unsubscribe", {"subscription": subscription.id})

    def _event(self, call: Call, params: _Event) -> None:
        event = attrs.asdict(params, recurse=False)
        subscription = self._subscriptions.get(params.subscription)
        if subscription is not None:
            subscription._put(event)
        elif self._opening:
            early = self._early.setdefault(params.subscription, [])
            if len(early) < MAX_WAITING:
                early.append(event)

    def _closed(self, call: Call, params: _Closed) -> None:
        subscription = self._subscriptions.get(params.subscription)
        if subscription is not None:
            subscription._end(params.reason)


class Subscription:
    """Events of one subscription, to be taken with `async for`. An event is a dict as docs/protocol.md shows it.

    Raises `unavailable` when the bridge ends it, and `queue_full` when events came faster than they were taken.
    """

    def __init__(self, client: Client, id: str | int, *, durable: bool) -> None:  # noqa: A002
        self.id = id
        self._client = client
        self._durable = durable
        self._events: deque[dict[str, Any]] = deque()
        self._more = trio.Event()
        self._error: ArmorclawError | None = None
        self._taken: int | None = None

    def __aiter__(self) -> Subscription:
        return self

    async def __anext__(self) -> Mapping[str, Any]:
        if self._taken is not None and self._durable:
            taken, self._taken = self._taken, None
            await self._client.call("events.ack", subscription=self.id, seq=taken)
        while not self._events:
            if self._error is not None:
                raise self._error
            self._more = trio.Event()
            await self._more.wait()
        event = self._events.popleft()
        self._taken = event["seq"]
        return event

    def _put(self, event: dict[str, Any]) -> None:
        if self._error is not None:
            return
        if len(self._events) >= MAX_WAITING:
            self._fail(ArmorclawError("queue_full", "events came faster than they were taken", hint="give it a name"))
            return
        self._events.append(event)
        self._more.set()

    def _end(self, reason: str) -> None:
        self._fail(ArmorclawError("unavailable", "the subscription has ended", why=reason))

    def _fail(self, error: ArmorclawError) -> None:
        self._error = self._error or error
        self._more.set()
