"""What an agent prints, told over its generations: by containers that do as they are told."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from armorclaw.containers.printed import LogPiece
from armorclaw.errors import ArmorclawError
from armorclaw.rpc.registry import Role
from tests.containers.fakes import FakeHouse, declared, house_in

pytestmark = pytest.mark.mission("P3.4")


@pytest.fixture
async def house(folder: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[FakeHouse]:
    async with house_in(folder, monkeypatch) as made:
        yield made


class Told:
    """A call of containers.logs, read by a task."""

    def __init__(self, house: FakeHouse, **params: Any) -> None:
        self.chunks: list[dict[str, Any]] = []
        self.result: dict[str, Any] | None = None
        self.error: ArmorclawError | None = None
        self.scope = trio.CancelScope()
        self._house = house
        self._params = {"name": "ada", "follow": True, **params}
        house.nursery.start_soon(self._run)

    async def _run(self) -> None:
        try:
            with self.scope:
                async with self._house.stream("containers.logs", **self._params) as stream:
                    async for chunk in stream:
                        self.chunks.append(chunk)
                    self.result = await stream.result()
        except ArmorclawError as error:
            self.error = error

    async def text(self) -> str:
        await trio.testing.wait_all_tasks_blocked()
        return "".join(chunk["text"] for chunk in self.chunks)


async def test_what_there_is(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up(declared())
    await house.until("running")
    for line in ("one\n", "two\n", "three"):
        house.runtime.last.prints(line)
    told = Told(house, follow=False, tail=2)
    assert await told.text() == "two\nthree"
    assert told.chunks == [{"stream": "stdout", "text": "two\n"}, {"stream": "stdout", "text": "three"}]
    assert told.result == {"lines": 2, "bytes": 9, "truncated": None}
    (wanted,) = house.runtime.wanted
    assert (wanted.tail, wanted.since_ms, wanted.follow, wanted.timestamps) == (2, None, False, False)


async def test_what_is_asked_for_reaches_the_runtime(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up(declared())
    await house.until("running")
    await Told(house, follow=False, tail=None, since_ms=5, timestamps=True).text()
    (wanted,) = house.runtime.wanted
    assert (wanted.tail, wanted.since_ms, wanted.follow, wanted.timestamps) == (None, 5, False, True)


async def test_follow_over_restarts(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up(declared())
    await house.until("running")
    house.runtime.last.prints("one\n")
    told = Told(house, tail=0, since_ms=1)
    assert await told.text() == ""
    house.runtime.last.prints("two\n")
    assert await told.text() == "two\n"
    house.runtime.last.end(1)
    await house.until("running", generation=2)
    house.runtime.last.prints("three\n")
    assert await told.text() == "two\nstarted again\nthree\n"
    assert [chunk["stream"] for chunk in told.chunks] == ["stdout", "bridge", "stdout"]
    assert told.result is None
    assert (house.runtime.wanted[-1].tail, house.runtime.wanted[-1].since_ms) == (None, None)
    # a stop is no end: it may be started again
    await house.call("stop", name="ada")
    assert told.result is None
    await house.call("start", name="ada")
    house.runtime.last.prints("four\n")
    assert (await told.text()).endswith("started again\nfour\n")
    told.scope.cancel(reason="the test is over")


async def test_follow_from_before_the_first_start(house: FakeHouse, autojump_clock: MockClock) -> None:
    house.runtime.takes["launch"] = 5
    await house.up(declared())
    told = Told(house)
    await trio.sleep(1)
    assert told.error is None
    await house.until("running")
    house.runtime.last.prints("hello\n")
    assert await told.text() == "started again\nhello\n"
    told.scope.cancel(reason="the test is over")


async def test_it_ends_when_the_agent_is_removed(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up(declared())
    await house.until("running")
    house.runtime.last.prints("bye\n")
    told = Told(house)
    await told.text()
    await house.fleet.forget(house.fleet.get("ada"))
    assert await told.text() == "bye\n"
    assert told.result == {"lines": 1, "bytes": 4, "truncated": None}


async def test_a_generation_that_was_missed_is_told(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up(declared())
    await house.until("running")
    async with house.stream("containers.logs", name="ada", follow=True) as stream:
        house.runtime.last.prints("one\n")
        await trio.testing.wait_all_tasks_blocked()  # it waits for us to take that
        for generation in (2, 3):
            house.runtime.last.end(1)
            await house.until("running", generation=generation)
        house.runtime.last.prints("three\n")
        said = [(await anext(stream))["text"] for _ in range(4)]
    assert said == ["one\n", "missed what 1 other printed\n", "started again\n", "three\n"]


async def test_another_runtime_is_followed_too(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up()
    await house.call("start", name="ada", command=["x"])
    told = Told(house)
    await told.text()
    await house.call("stop", name="ada")
    await house.call("start", name="ada", image="it")
    house.docker.last.prints("from a container\n")
    assert await told.text() == "started again\nfrom a container\n"
    told.scope.cancel(reason="the test is over")


async def test_a_lost_engine_is_said(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up(declared())
    await house.until("running")
    told = Told(house)
    await told.text()
    house.runtime.lose()
    await trio.sleep(10)
    assert told.error is not None
    assert told.error.name == "engine_unreachable"
    house.runtime.lose(False)
    await house.until("running")


async def test_a_log_that_ends_before_its_container_is_said(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up(declared())
    await house.until("running")
    told = Told(house)
    await told.text()
    house.runtime.last.running = False  # as its log sees it; for the agent it runs on
    house.runtime.last.wake()
    await trio.sleep(20)
    assert told.error is not None
    assert told.error.name == "engine_unreachable"
    assert "ended" in str(told.error)


async def test_a_stopped_agent_has_a_log(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up(declared())
    await house.until("running")
    house.runtime.last.prints("last words\n")
    await house.call("stop", name="ada")
    assert await Told(house, follow=False).text() == "last words\n"
    with pytest.raises(ArmorclawError) as caught:
        await house.call("containers.logs", name="nobody")
    assert caught.value.name == "container_not_found"


async def test_letters_over_pieces_and_what_is_no_text(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up(declared())
    await house.until("running")
    euro = "€".encode()
    for stream, data in (
        ("stdout", euro[:1]),
        ("stderr", b"\xff"),
        ("stdout", euro[1:] + b"\n"),
        ("stdout", euro[:2]),
    ):
        house.runtime.last.printed.append(LogPiece(stream, 7, data))
    told = Told(house, follow=False, timestamps=True)
    await told.text()
    assert told.chunks == [
        {"stream": "stderr", "text": "\ufffd", "at_ms": 7},
        {"stream": "stdout", "text": "€\n", "at_ms": 7},
        {"stream": "stdout", "text": "\ufffd"},
    ]
    assert told.result == {"lines": 2, "bytes": 7, "truncated": None}


async def test_a_reader_that_stops_is_not_read_ahead_for(house: FakeHouse, autojump_clock: MockClock) -> None:
    await house.up(declared())
    await house.until("running")
    for number in range(1000):
        house.runtime.last.prints(f"{number}\n")
    taken: list[int] = []

    class Watched(list[LogPiece]):
        def __getitem__(self, index: Any) -> Any:
            taken.append(index)
            return super().__getitem__(index)

    house.runtime.last.printed = Watched(house.runtime.last.printed)
    async with house.stream("containers.logs", name="ada", follow=True, tail=None) as stream:
        await anext(stream)
        await trio.testing.wait_all_tasks_blocked()
        assert len(taken) == 2  # that, and one that waits to be taken


@pytest.mark.parametrize(
    ("field", "params"),
    [
        ("name", {}),
        ("tail", {"name": "ada", "tail": -1}),
        ("tail", {"name": "ada", "tail": "all"}),
        ("since_ms", {"name": "ada", "since_ms": -5}),
        ("follow", {"name": "ada", "follow": 1}),
    ],
)
async def test_wrong_params(house: FakeHouse, autojump_clock: MockClock, field: str, params: dict[str, Any]) -> None:
    await house.up(declared())
    with pytest.raises(ArmorclawError) as caught:
        await house.call("containers.logs", **params)
    assert caught.value.name == "invalid_params"
    assert field in str(caught.value)


async def test_for_operators_alone(house: FakeHouse) -> None:
    for method in ("containers.logs", "containers.stats", "containers.inspect", "containers.restart", "agent.call"):
        for role in (Role.OBSERVER, Role.AGENT, Role.REMOTE):
            assert method not in house.registry.table(role)
    await trio.lowlevel.checkpoint()
