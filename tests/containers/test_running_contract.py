"""What every runtime tells of an agent that runs: what it prints, what it uses, and the files attached to it."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from armorclaw.config import CONFIGS_INSIDE, MIB, SHARED_INSIDE
from armorclaw.containers.printed import LogPiece, LogWanted
from armorclaw.containers.recipe import configs_folder, make_configs_folder
from armorclaw.containers.runtime import Runtime
from armorclaw.containers.spec import Limits, Mount
from armorclaw.structure import Size
from armorclaw.testing.engines import EngineWithImage
from tests.containers.fakes import FakeHouse, declared, house_in

pytestmark = pytest.mark.mission("K.start")

Door = Any  # the class of conftest.py, which test modules cannot import
MakeSpec = Any
WAITS = "door.recv(1)"


async def read(runtime: Runtime, container: str | None, **wanted: Any) -> list[LogPiece]:
    async with runtime.logs("ada", container, LogWanted(**wanted)) as reader:
        return [piece async for piece in reader]


async def printed(runtime: Runtime, container: str, word: str) -> None:
    """Until the log has that."""
    got: list[LogPiece] = []
    async with runtime.logs("ada", container, LogWanted(tail=None, follow=True)) as reader:
        while word not in text(got):
            got.append(await anext(reader))


def text(pieces: list[LogPiece]) -> str:
    return b"".join(piece.data for piece in pieces if piece.stream != "bridge").decode()


# -- logs


async def test_the_last_lines(runtime: Runtime, runtime_kind: str, make_spec: MakeSpec, door: Door) -> None:
    script = f"[print('line', n) for n in range(50)]; print('oh', file=sys.stderr, flush=True); {WAITS}"
    spec = make_spec(f"import sys\nsys.stdout.reconfigure(line_buffering=True)\n{script}")
    async with door(spec) as listener, runtime.launch(spec) as running:
        await running.start()
        await listener.accept()
        with trio.fail_after(30):
            for word in ("oh", "line 49"):  # of two streams, whose order is not known
                await printed(runtime, running.id, word)
        assert text(await read(runtime, running.id, tail=0)) == ""
        assert len(text(await read(runtime, running.id, tail=None)).splitlines()) == 51
        last = await read(runtime, running.id, tail=3)
        assert len(text(last).splitlines()) == 3
        streams = {piece.stream for piece in await read(runtime, running.id)}
        assert streams == ({"stdout", "stderr"} if runtime_kind in ("docker", "podman") else {"output"})


async def test_a_line_written_in_steps(runtime: Runtime, make_spec: MakeSpec) -> None:
    """As Python's print does where its output is unbuffered: one write for the text, one for the end of the line."""
    script = """
        import os, time
        for part in ("hello", "\\n", "two\\n", "three", " and", " four\\n", "five", "\\n"):
            os.write(1, part.encode())
            time.sleep(0.02)
        """
    spec = make_spec(script, hello=False)
    async with runtime.launch(spec) as running:
        await running.start()
        with trio.fail_after(30):
            await running.wait()
        assert text(await read(runtime, running.id)) == "hello\ntwo\nthree and four\nfive\n"
        assert text(await read(runtime, running.id, tail=2)) == "three and four\nfive\n"
    assert text(await read(runtime, None, tail=2)) == "three and four\nfive\n"


async def test_when_it_was_written(runtime: Runtime, runtime_kind: str, make_spec: MakeSpec, door: Door) -> None:
    spec = make_spec("print('first', flush=True)\ndoor.recv(1)\nprint('second', flush=True)\ndoor.recv(1)")
    exact = 1000 if runtime_kind == "podman" else 100
    async with door(spec) as listener, runtime.launch(spec) as running:
        began = time.time() * 1000
        await running.start()
        stream, _ = await listener.accept()
        with trio.fail_after(30):
            await printed(runtime, running.id, "first")
        await trio.sleep(1.3)  # more than the second that Podman is exact to
        between = int(time.time() * 1000)
        await trio.sleep(0.2)
        await stream.send_all(b"x")
        with trio.fail_after(30):
            await printed(runtime, running.id, "second")
        first, second = (await read(runtime, running.id, timestamps=True))[-2:]
        assert (first.data, second.data) == (b"first\n", b"second\n")
        assert first.at_ms is not None
        assert second.at_ms is not None
        assert began - exact <= first.at_ms <= between <= second.at_ms + exact
        assert second.at_ms <= time.time() * 1000
        if runtime_kind != "podman":  # which forgets what is less than a second
            assert text(await read(runtime, running.id, since_ms=between)) == "second\n"
        assert text(await read(runtime, running.id, since_ms=between - 60_000)) == "first\nsecond\n"
        assert text(await read(runtime, running.id, since_ms=between + 60_000)) == ""


async def test_follow(runtime: Runtime, make_spec: MakeSpec, door: Door) -> None:
    spec = make_spec("print('one', flush=True)\nwhile door.recv(1): print('more', flush=True)")
    got: list[LogPiece] = []
    async with door(spec) as listener, runtime.launch(spec) as running:
        await running.start()
        stream, _ = await listener.accept()
        with trio.fail_after(30):
            async with runtime.logs("ada", running.id, LogWanted(follow=True)) as reader:
                for number in range(3):
                    await stream.send_all(b"x")
                    while text(got).count("more\n") <= number:
                        got.append(await anext(reader))


async def test_a_long_line_of_anything(runtime: Runtime, make_spec: MakeSpec) -> None:
    """10 MiB without a line's end: it comes in pieces of bounded size, and costs no memory of ours."""
    spec = make_spec("import os\nfor n in range(160): os.write(1, bytes([255, 0, 65, 66]) * 16384)", hello=False)
    seen = 0
    async with runtime.launch(spec) as running:
        await running.start()
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:

                async def follow() -> None:
                    nonlocal seen
                    async with runtime.logs("ada", running.id, LogWanted(tail=None, follow=True)) as reader:
                        async for piece in reader:
                            assert len(piece.data) <= 32 * 1024
                            seen += len(piece.data)

                before = resident()
                nursery.start_soon(follow)
                await running.wait()
                await trio.sleep(0.5)
                assert resident() - before < 8 * 1024 * 1024
                nursery.cancel_scope.cancel(reason="seen enough")
    assert seen > 256 * 1024  # an engine, or we, may throw away what was not read in time


async def test_what_is_left_of_one_that_has_ended(runtime: Runtime, make_spec: MakeSpec) -> None:
    spec = make_spec("print('goodbye'); raise SystemExit(3)", hello=False)
    async with runtime.launch(spec) as running:
        await running.start()
        with trio.fail_after(30):
            await running.wait()
    (piece,) = await read(runtime, None, timestamps=True)
    assert piece.data == b"goodbye\n"
    assert piece.at_ms is not None
    assert text(await read(runtime, running.id)) == "goodbye\n"
    assert text(await read(runtime, None, tail=0)) == ""


async def test_a_reader_that_stops_holds_up_nobody(runtime: Runtime, make_spec: MakeSpec) -> None:
    """The agent prints on, ends, and is removed, while somebody has a log open that he does not read."""
    spec = make_spec("for n in range(30000): print('x' * 100)", hello=False)
    async with runtime.launch(spec) as running:
        await running.start()
        with trio.fail_after(40):
            async with runtime.logs("ada", running.id, LogWanted(tail=None, follow=True)) as reader:
                await anext(reader)
                assert (await running.wait()).code == 0
    with trio.fail_after(30):
        async with runtime.launch(spec) as again:
            assert again.id != running.id


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# -- what it uses


async def test_what_it_uses(runtime: Runtime, make_spec: MakeSpec, door: Door) -> None:
    spec = make_spec(
        f"""
        import threading
        block = bytearray(20 * 1024 * 1024)
        for n in range(len(block) // 4096): block[n * 4096] = 1
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        end = time.process_time() + 0.3
        while time.process_time() < end: pass
        if os.fork() == 0: time.sleep(60)
        door.send(b'1')
        {WAITS}
        """,
        limits=Limits(memory=128 * 1024 * 1024),
    )
    async with door(spec) as listener, runtime.launch(spec) as running:
        await running.start()
        stream, _ = await listener.accept()
        assert await stream.receive_some(1) == b"1"
        with trio.fail_after(30):
            usage = await running.usage()
        assert usage.cpu_ns is not None
        assert 0.25e9 <= usage.cpu_ns <= 10e9
        assert usage.memory_bytes is not None
        assert 20 * 1024 * 1024 <= usage.memory_bytes <= 128 * 1024 * 1024
        assert usage.pids is not None
        assert 3 <= usage.pids <= 6  # two processes and a thread, an init or two
        assert usage.memory_limit == 128 * 1024 * 1024
    with trio.fail_after(30):
        assert await running.usage() == type(usage)()  # it has gone


async def test_one_that_was_not_started_uses_little(runtime: Runtime, make_spec: MakeSpec) -> None:
    async with runtime.launch(make_spec()) as running:
        usage = await running.usage()
        assert (usage.cpu_ns or 0) < 1e9


# -- files attached to it


@pytest.mark.mission("C.attach_config")
async def test_configs_are_seen_inside(
    runtime: Runtime, runtime_kind: str, make_spec: MakeSpec, door: Door, folder: Path
) -> None:
    """Also what is attached later; and nothing in there can be changed."""
    configs = make_configs_folder(folder, "ada", 10001)
    shared = configs_folder(folder, "_shared")
    attach(configs / "early.json", "{}")
    attach(shared / "all.txt", "for all")
    spec = make_spec(
        """
        place = os.environ["ARMORCLAW_CONFIG_DIR"]
        def look():
            found = {name: open(f"{place}/{name}").read() for name in os.listdir(place) if name != "shared"}
            try:
                open(f"{place}/mine", "w")
                found["mine"] = "written"
            except OSError:
                pass
            door.sendall(json.dumps(found).encode() + b"\\n")
        look()
        door.recv(1)
        look()
        door.sendall(open(os.environ["SHARED"] + "/all.txt").read().encode())
        """,
        env={"ARMORCLAW_CONFIG_DIR": CONFIGS_INSIDE, "SHARED": f"{CONFIGS_INSIDE}/{SHARED_INSIDE}"},
        mounts=(Mount(configs, CONFIGS_INSIDE), Mount(shared, f"{CONFIGS_INSIDE}/{SHARED_INSIDE}")),
    )
    async with door(spec) as listener, runtime.launch(spec) as running:
        await running.start()
        stream, _ = await listener.accept()
        with trio.fail_after(30):
            assert await stream.receive_some(1000) == b'{"early.json": "{}"}\n'
            attach(configs / "late.txt", "new")
            attach(configs / "early.json", "[]")
            await stream.send_all(b"x")
            said = b"".join([chunk async for chunk in stream]).decode()
    assert "".join(sorted(said.partition("\n")[0])) == "".join(sorted('{"early.json": "[]", "late.txt": "new"}'))
    assert said.endswith("for all")


def attach(path: Path, content: str) -> None:
    new = path.with_name("_new")
    new.write_text(content)
    new.chmod(0o644)
    new.replace(path)


# -- a whole agent, over its generations


@pytest.fixture
async def house(
    folder: Path, runtime: Runtime, runtime_kind: str, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[FakeHouse]:
    async with house_in(folder, monkeypatch) as made:
        for place in (folder / "run", folder / "state"):  # as the bridge makes them
            place.mkdir()
            place.chmod(0o711)
        made.runtimes.by_kind[runtime_kind] = runtime  # type: ignore[assignment]
        yield made


@pytest.mark.mission("P3.4")
async def test_follow_over_a_restart(
    house: FakeHouse, runtime_kind: str, make_spec: MakeSpec, request: pytest.FixtureRequest
) -> None:
    engine = request.getfixturevalue(runtime_kind) if runtime_kind in ("docker", "podman") else None
    heeds = "import os, signal, time; signal.signal(signal.SIGTERM, lambda *_: os._exit(0))"
    script = f"{heeds}; print('hello', flush=True); time.sleep(600)"
    one = declared(
        command=("/usr/bin/python3", "-S", "-c", script),
        image=engine.image if isinstance(engine, EngineWithImage) else None,
        runtime=runtime_kind,
    )
    with trio.fail_after(60):
        await house.up(attrs.evolve(one, limits=attrs.evolve(one.limits, memory=Size(64 * MIB))))
        await house.until("running")
        said = ""
        async with house.stream("containers.logs", name="ada", follow=True, timestamps=True) as stream:
            while said != "hello\n":
                chunk = await anext(stream)
                said += chunk["text"]
                assert chunk["at_ms"]
            first = await house.call("containers.inspect", name="ada")
            assert (first["runs_on"], first["generation"]) == (runtime_kind, 1)
            answer = await house.call("containers.restart", name="ada")
            assert answer["status"] == "running"
            assert answer["container_id"] != first["container_id"]
            while not said.endswith("started again\nhello\n"):
                said += (await anext(stream))["text"]
        async with house.stream("containers.stats", name="ada", count=1) as stats:
            (reading,) = await anext(stats)
            assert reading["memory_bytes"] > 1024 * 1024
            assert await stats.result() == {"readings": 1}
        await house.call("stop", name="ada")
        async with house.stream("containers.logs", name="ada") as stream:  # what is left when it runs no more
            assert (await anext(stream))["text"].endswith("hello\n")
