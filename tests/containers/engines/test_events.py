"""What engines tell of containers: read from their streams, and from real ones."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
import trio

from armorclaw.containers.engines.events import EngineNews, Marks
from armorclaw.containers.engines.http import EVENT_BYTES, JsonLines
from armorclaw.containers.engines.runtime import EngineRuntime
from armorclaw.containers.spec import News
from armorclaw.errors import ArmorclawError
from tests.containers.conftest import MakeSpec

ENGINES = ["docker", "podman"]


def event(action: object, container: object = "c1", **facts: object) -> dict[str, Any]:
    return {"Action": action, "Actor": {"ID": container, "Attributes": {"armorclaw.agent": "ada", **facts}}}


async def heard(*events: dict[str, Any], marks: Marks | None = None) -> list[News]:
    async def said() -> AsyncIterator[dict[str, Any]]:
        for each in events:
            await trio.lowlevel.checkpoint()
            yield each

    return [news async for news in EngineNews(said(), {"c1"}, marks or Marks())]


async def test_what_others_do_is_news() -> None:
    actions = ["pause", "unpause", "kill", "stop", "restart", "destroy", "remove", "rename", "update"]
    said = [news.what for news in await heard(*(event(action) for action in actions))]
    assert said == [
        *("paused", "unpaused", "signalled", "stopped", "restarted", "removed", "removed", "renamed", "updated"),
    ]
    assert await heard(event("kill", signal="9")) == [News("c1", "ada", "signalled", "signal 9")]


async def test_what_we_do_and_what_is_no_news_is_not_told() -> None:
    course = ["create", "start", "die", "exec_start: /bin/sh", "health_status: healthy", "attach", "init", None]
    assert await heard(*(event(action) for action in course)) == []
    assert await heard(event("pause", "of somebody else"), event("pause", None), {}, {"Actor": None}) == []
    ours = Marks(ending={"c1"})
    assert await heard(event("kill"), event("stop"), event("destroy"), marks=ours) == []


async def test_memory_that_ran_out_is_told_once_and_remembered() -> None:
    marks = Marks(ending={"c1"})
    assert [news.what for news in await heard(*[event("oom")] * 100, marks=marks)] == ["oom"]
    assert marks.oom == {"c1"}
    marks.forget("c1")
    assert marks == Marks()


async def test_lines_come_as_they_like() -> None:
    """In pieces, several at once, with empty ones; and one without end is an end of the stream."""

    async def lines(*pieces: bytes) -> list[dict[str, Any]]:
        left = [*pieces, b""]

        async def read() -> bytes:
            await trio.lowlevel.checkpoint()
            return left.pop(0)

        return [line async for line in JsonLines(read)]

    assert await lines(b'{"a":', b'1}\n\r\n{"b":2}\n{"c"', b":3}\n") == [{"a": 1}, {"b": 2}, {"c": 3}]
    for wrong in (b"{" + b" " * EVENT_BYTES + b" ", b"no json\n"):
        with pytest.raises(ArmorclawError) as caught:
            await lines(wrong)
        assert caught.value.name == "engine_unreachable"


# -- real engines


@pytest.mark.parametrize("runtime_kind", ENGINES, indirect=True)
async def test_what_is_done_by_hand(engine_runtime: EngineRuntime, make_spec: MakeSpec) -> None:
    """Somebody pauses, goes on, signals and removes it; what we did ourselves is not told."""
    engine = engine_runtime.engine
    spec = make_spec("import time; time.sleep(100)", hello=False)
    ours = make_spec("import time; time.sleep(100)", hello=False, name="bob")
    async with engine_runtime.news(spec.instance) as news:
        async with engine_runtime.launch(ours) as running:
            await running.start()
            await running.stop(0)
        async with engine_runtime.launch(spec) as running:
            await running.start()
            for what in ("pause", "unpause"):
                await engine._call("POST", f"/containers/{running.id}/{what}")
            await engine.kill(running.id, "SIGWINCH")
            await engine.remove(running.id)
            seen: list[News] = []
            with trio.fail_after(30):
                async for one in news:
                    seen.append(one)
                    if one.what == "removed":
                        break
    assert {(one.container, one.agent) for one in seen} == {(running.id, "ada")}
    assert [one.what for one in seen if one.what not in ("signalled", "stopped")] == ["paused", "unpaused", "removed"]
    assert "signalled" in [one.what for one in seen]


@pytest.mark.parametrize("runtime_kind", ["docker"], indirect=True)
async def test_a_child_that_runs_out_of_memory(engine_runtime: EngineRuntime, make_spec: MakeSpec) -> None:
    """The main process lives, and its later end says so: an inspect of a running container does not."""
    script = """
    import os, signal
    child = os.fork()
    if not child:
        meal = [b"x" * 1000000 for n in range(1000)]
    _, status = os.waitpid(child, 0)
    raise SystemExit(3)
    """
    spec = make_spec(script, hello=False)
    async with engine_runtime.news(spec.instance) as news, engine_runtime.launch(spec) as running:
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(running.start)
                assert (await anext(news)).what == "oom"
            end = await running.wait()
    assert (end.code, end.oom) == (3, True)


@pytest.mark.parametrize("runtime_kind", ENGINES, indirect=True)
async def test_an_engine_that_answers(engine_runtime: EngineRuntime, runtime_kind: str) -> None:
    with trio.fail_after(30):
        await engine_runtime.ping()


@pytest.mark.parametrize("runtime_kind", ENGINES, indirect=True)
async def test_the_stream_of_a_lost_engine_ends(runtime_kind: Any, engine_maker: Any) -> None:
    with engine_maker(runtime_kind) as made:
        async with EngineRuntime.open(made.socket_path) as runtime:
            with trio.fail_after(30):
                with suppress(ArmorclawError):  # it may hang up in order, too
                    async with runtime.news("nobody") as news:
                        await trio.to_thread.run_sync(made.engine.kill)
                        async for _ in news:
                            pass
            with pytest.raises(ArmorclawError) as caught:
                await runtime.ping()
            assert caught.value.name == "engine_unreachable"
