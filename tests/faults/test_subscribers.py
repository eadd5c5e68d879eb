"""Subscribers that stop reading, or come and go: nobody else notices, and none of them misses anything."""

from __future__ import annotations

import json
import socket
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from armorclaw.bridge import Bridge, open_bridge
from armorclaw.config import Config
from armorclaw.events.event import Event

RECONNECTS = 1000
TYPE = "app.load"
LARGE = 100_000
"""Bytes of events of which a few fill all there is between bridge and reader."""

CUT_WITHIN = 30.0
"""Seconds: one that takes nothing is cut after ten."""


@pytest.fixture
async def bridge(armorclaw_folder: Path) -> AsyncIterator[Bridge]:
    where = {"state_dir": str(armorclaw_folder / "state"), "runtime_dir": str(armorclaw_folder / "run")}
    async with open_bridge(Config.parse({"bridge": where})) as running:
        yield running


class Line:
    """JSON lines over one connection; events are kept apart from answers."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.events: deque[dict[str, Any]] = deque()
        self.closed: dict[str, Any] | None = None
        self._stream = stream
        self._rest = b""
        self._number = 0

    async def call(self, method: str, **params: Any) -> Any:
        self._number += 1
        request = {"jsonrpc": "2.0", "id": self._number, "method": method, "params": params}
        await self._stream.send_all(json.dumps(request).encode() + b"\n")
        while True:
            message = await self._message()
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]
            self._note(message)

    async def subscribe(self, **params: Any) -> Any:
        return await self.call("events.subscribe", filter={"types": [TYPE]}, **params)

    async def next(self) -> dict[str, Any]:
        while not self.events:
            self._note(await self._message())
        return self.events.popleft()

    async def until_closed(self) -> None:
        """Until the subscription is said to be closed."""
        while self.closed is None:
            self._note(await self._message())

    def _note(self, message: dict[str, Any]) -> None:
        if message.get("method") == "event":
            self.events.append(message["params"])
        elif message.get("method") == "events.closed":
            self.closed = message["params"]

    async def _message(self) -> dict[str, Any]:
        while b"\n" not in self._rest:
            more = await self._stream.receive_some(65_536)
            if not more:
                raise trio.EndOfChannel
            self._rest += more
        line, _, self._rest = self._rest.partition(b"\n")
        found: dict[str, Any] = json.loads(line)
        return found


@asynccontextmanager
async def connected(bridge: Bridge) -> AsyncIterator[Line]:
    stream = await trio.open_unix_socket(str(bridge.config.bridge.socket))
    stream.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    async with stream:
        yield Line(stream)


async def publish(bridge: Bridge, *numbers: int, size: int = 10) -> None:
    now = bridge.around.clock.now_ms()
    content = [{"n": number, "pad": "x" * size} for number in numbers]
    await bridge.journal.record([Event.make(TYPE, each, at_ms=now) for each in content])


@pytest.mark.mission("P1.3", "S.6")
async def test_one_that_stops_reading_is_cut_and_can_go_on_while_others_miss_nothing(bridge: Bridge) -> None:
    """It takes nothing at all, so its connection ends, too. How little the others are slowed down by it is measured
    by `python -m tests.bench fanout`."""
    total = 1500
    got: list[int] = []

    async def follow(line: Line) -> None:
        while len(got) < total:
            event = await line.next()
            got.append(event["content"]["n"])

    async with connected(bridge) as good, connected(bridge) as stopped, connected(bridge) as named:
        await good.subscribe()
        before = await stopped.subscribe()
        await named.subscribe(name="archive")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow, good)
            for number in range(0, total, 5):
                await publish(bridge, *range(number, number + 5), size=4000)
                await trio.sleep(0.005)
        assert got == list(range(total))
        rows = await bridge.call("events.stats")
        assert max(row["in_hand"] for row in rows if row["named"]) < total / 4, "the window does not hold"
        with trio.fail_after(CUT_WITHIN):
            while len([row for row in await bridge.call("events.stats") if row["connected"]]) > 2:  # noqa: ASYNC110
                await trio.sleep(0.1)
        late: list[dict[str, Any]] = []
        with trio.fail_after(10):
            try:
                while True:
                    late.append(await stopped.next())
            except (trio.EndOfChannel, trio.BrokenResourceError):
                pass
    assert len(late) < total
    position = late[-1]["seq"] if late else before["cursor"]
    async with connected(bridge) as again, connected(bridge) as archive:
        await again.subscribe(**{"from": position})
        with trio.fail_after(30):
            while len(late) < total:
                late.append(await again.next())
            assert [event["content"]["n"] for event in late] == list(range(total))
            own = await archive.subscribe(name="archive")
            kept: dict[int, int] = {}
            while len(kept) < total:
                event = await archive.next()
                kept[event["content"]["n"]] = event["seq"]
                await archive.call("events.ack", subscription=own["subscription"], seq=event["seq"])
    assert list(kept) == list(range(total))


@pytest.mark.mission("P1.3", "S.6")
async def test_one_that_is_too_slow_is_told_so_and_where_it_was(
    bridge: Bridge, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While its connection stays: otherwise that may be cut in the same second, and nobody is there to be told."""
    monkeypatch.setattr("armorclaw.rpc.outgoing.WRITE_DEADLINE", 2 * CUT_WITHIN)
    total = 20
    async with connected(bridge) as slow:
        await slow.subscribe()
        for number in range(total):
            await publish(bridge, number, size=LARGE)
        with trio.fail_after(CUT_WITHIN):
            while [row for row in await bridge.call("events.stats") if row["connected"]]:  # noqa: ASYNC110
                await trio.sleep(0.1)
        with trio.fail_after(10):
            await slow.until_closed()
        assert (await slow.call("status"))["state"] == "running"
        late = list(slow.events)
        assert slow.closed is not None
        assert slow.closed["reason"].startswith("too slow")
        assert slow.closed["cursor"] == late[-1]["seq"]
        assert len(late) < total
        slow.events.clear()
        await slow.subscribe(**{"from": slow.closed["cursor"]})
        with trio.fail_after(30):
            while len(late) < total:
                late.append(await slow.next())
    assert [event["content"]["n"] for event in late] == list(range(total))


@pytest.mark.mission("P1.1", "P1.2")
async def test_a_thousand_reconnects_with_a_cursor_lose_nothing(bridge: Bridge) -> None:
    """Each time it takes a few events, and goes away in the middle of more."""
    published = RECONNECTS * 2
    got: list[int] = []

    async def load() -> None:
        for number in range(published):
            await publish(bridge, number)
            await trio.sleep(0.001)

    position = await bridge.journal.head()
    connections = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(load)
        while len(got) < published or connections < RECONNECTS:
            connections += 1
            async with connected(bridge) as line:
                await line.subscribe(**{"from": position})
                for _ in range(min(2 + connections % 3, published - len(got))):
                    event = await line.next()
                    got.append(event["content"]["n"])
                    position = event["seq"]
    assert got == list(range(published))


@pytest.mark.mission("P1.1", "P1.2")
async def test_a_thousand_reconnects_by_name_lose_nothing_and_give_nothing_up(bridge: Bridge) -> None:
    """Each time it acknowledges a few, and leaves those that came behind them unanswered."""
    published = RECONNECTS * 2
    acked: list[int] = []
    seen: set[int] = set()
    unmarked: list[int] = []
    async with connected(bridge) as line:
        await line.subscribe(name="archive")

    async def load() -> None:
        for number in range(0, published, 4):
            await publish(bridge, *range(number, number + 4))
            await trio.sleep(0.002)

    connections = 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(load)
        while len(acked) < published or connections < RECONNECTS:
            connections += 1
            async with connected(bridge) as line:
                answer = await line.subscribe(name="archive")
                for _ in range(min(1 + connections % 3, published - len(acked))):
                    event = await line.next()
                    await line.call("events.ack", subscription=answer["subscription"], seq=event["seq"])
                    acked.append(event["content"]["n"])
                    unmarked += [event["seq"]] * (event["seq"] in seen and not event.get("redelivered"))
                    seen.add(event["seq"])
                seen.update(event["seq"] for event in line.events)
    assert connections >= RECONNECTS
    assert acked == list(range(published))
    assert not unmarked
    assert await bridge.call("events.dead_letters") == []
