"""What the tests of events share: a store without a thread, and a sink that can be full."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import trio

from armorclaw.events.event import Event
from armorclaw.store import Database
from tests.events.inline_store import InlineDatabase
from tests.events.world import World


class Pushed:
    """One frame that a sink took."""

    def __init__(self, frame: bytes) -> None:
        assert frame.endswith(b"\n")
        assert frame.count(b"\n") == 1
        message = json.loads(frame)
        assert message["jsonrpc"] == "2.0"
        self.method = message["method"]
        self.params: dict[str, Any] = message["params"]
        self.seq = self.params.get("seq", 0)
        self.redelivered = self.params.get("redelivered")


class FakeSink:
    """Takes frames while it has room; `pause` and `resume` stand for a reader that stops and goes on."""

    def __init__(self, on_push: Callable[[Pushed], object] | None = None) -> None:
        self.pushed: list[Pushed] = []
        self.broken = False
        self._on_push = on_push
        self._open = trio.Event()
        self._open.set()

    def push_all(self, frames: Sequence[bytes]) -> None:
        for frame in frames:
            self.push(frame)

    def push(self, frame: bytes) -> None:
        if self.broken:
            raise BrokenPipeError
        pushed = Pushed(frame)
        assert pushed.method != "event" or self._open.is_set(), "pushed into a full sink"
        self.pushed.append(pushed)
        if self._on_push is not None:
            self._on_push(pushed)

    def room(self) -> int:
        return 1000 if self._open.is_set() else 0

    async def wait_room(self) -> None:
        await self._open.wait()

    def pause(self) -> None:
        if self._open.is_set():
            self._open = trio.Event()

    def resume(self) -> None:
        self._open.set()

    @property
    def seqs(self) -> list[int]:
        return [one.seq for one in self.pushed if one.method == "event"]


_made = iter(range(10**9))


def make_event(room: str = "!a:x", *, type: str = "m.room.message", body: str = "hello", **where: Any) -> Event:  # noqa: A002
    number = next(_made)
    where = {"account": "main", "sender": "@person:x", "event_id": f"${number}", **where}
    return Event.make(
        type, {"msgtype": "m.text", "body": body}, at_ms=1_700_000_000_000 + number, room_id=room, **where
    )


@pytest.fixture(scope="session")
def new_event() -> Callable[..., Event]:
    """Makes a Matrix message event, each with an id of its own."""
    return make_event


@pytest.fixture(scope="session")
def new_sink() -> Callable[..., FakeSink]:
    """Makes a sink; the class itself."""
    return FakeSink


@pytest.fixture(scope="session")
def new_inline_db() -> Callable[[], InlineDatabase]:
    """Makes a store without a thread; the class itself."""
    return InlineDatabase


@pytest.fixture
def inline_db() -> Iterator[InlineDatabase]:
    db = InlineDatabase()
    yield db
    db.close()


@pytest.fixture
def db(inline_db: InlineDatabase) -> Database:
    """As the code under test takes it."""
    return cast(Database, inline_db)


@pytest.fixture
async def real_db(tmp_path: Path) -> AsyncIterator[Database]:
    async with Database.open(tmp_path / "store.db", bytes(32)) as database:
        yield database


@pytest.fixture
async def world(inline_db: InlineDatabase) -> AsyncIterator[World]:
    async with trio.open_nursery() as nursery:
        yield World(inline_db, make_event, FakeSink, nursery)
        nursery.cancel_scope.cancel(reason="the test is over")
