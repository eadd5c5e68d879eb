"""Real processes, killed and starved: what was acknowledged is there afterwards."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from armorclaw.errors import ArmorclawError
from armorclaw.store import Database
from armorclaw.store.schema import Migration

KEY = bytes(range(32))
TABLE = (Migration(1, "a table for tests", "CREATE TABLE t (n INTEGER PRIMARY KEY, body TEXT)"),)

Spawn = Callable[..., "subprocess.Popen[str]"]


def line(child: subprocess.Popen[str]) -> str:
    assert child.stdout is not None
    text = child.stdout.readline()
    assert text, "the child said nothing more"
    return text.rstrip("\n")


def tell(child: subprocess.Popen[str], word: str) -> None:
    assert child.stdin is not None
    child.stdin.write(word + "\n")
    child.stdin.flush()


def numbers(path: Path) -> list[int]:
    async def main() -> list[int]:
        async with Database.open(path, KEY, migrations=TABLE) as db:
            return await db.read(lambda c: [n for (n,) in c.execute("SELECT n FROM t ORDER BY n")])

    return trio.run(main)


@pytest.mark.parametrize("durable", [True, False])
@pytest.mark.parametrize("acknowledged", [1, 57, 400])
def test_killed_in_the_middle_of_writes(spawn: Spawn, path: Path, acknowledged: int, durable: bool) -> None:
    child = spawn(
        """
        async def writer(db, first):
            for n in range(first, 1_000_000, 8):
                say(await db.write(insert(n), durable=sys.argv[2] == "True"))
        async def main():
            async with Database.open(path, KEY, migrations=TABLE) as db, trio.open_nursery() as nursery:
                for first in range(8):
                    nursery.start_soon(writer, db, first)
        trio.run(main)
        """,
        str(durable),
    )
    acked = [int(line(child)) for _ in range(acknowledged)]
    child.kill()
    assert child.stdout is not None
    rest = child.stdout.read()
    acked += [int(word) for word in rest[: rest.rfind("\n") + 1].split()]
    found = numbers(path)
    assert set(acked) <= set(found)
    assert len(found) <= len(acked) + 8  # at most what was under way


def test_a_second_daemon_is_refused_until_the_first_is_dead(spawn: Spawn, path: Path) -> None:
    child = spawn(
        """
        async def main():
            async with Database.open(path, KEY, migrations=TABLE) as db:
                await db.write(insert(1))
                say("ready")
                await trio.sleep_forever()
        trio.run(main)
        """
    )
    assert line(child) == "ready"
    with pytest.raises(ArmorclawError) as caught:
        numbers(path)
    assert caught.value.name == "already_running"
    assert f"process {child.pid} " in caught.value.why
    child.kill()
    child.wait()
    assert numbers(path) == [1]


def test_a_cut_or_damaged_log_loses_its_end_only(spawn: Spawn, path: Path) -> None:
    child = spawn(
        """
        async def main():
            async with Database.open(path, KEY, migrations=TABLE) as db:
                for n in range(200):
                    await db.write(insert(n, 1000), durable=True)
                say("ready")
                await trio.sleep_forever()
        trio.run(main)
        """
    )
    assert line(child) == "ready"
    child.kill()
    child.wait()
    log = path.with_name("bridge.db-wal")
    data = bytearray(log.read_bytes())
    data[len(data) * 3 // 4] ^= 1
    log.write_bytes(data[: len(data) * 9 // 10])
    found = numbers(path)
    assert found == list(range(len(found)))
    assert 100 < len(found) < 199


def test_the_disk_fills_up_and_is_freed_again(spawn: Spawn, path: Path) -> None:
    unshare = ("unshare", "--mount") if os.geteuid() == 0 else ("unshare", "--mount", "--map-root-user")
    if subprocess.run([*unshare, "true"], check=False, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("no mount namespaces here: sysctl kernel.unprivileged_userns_clone=1, or run as root")
    script = 'mount -t tmpfs -o size=900k none "$0" && exec "$@"'
    child = spawn(
        """
        async def main():
            ballast = path.with_name("ballast")
            ballast.write_bytes(bytes(400_000))
            async with Database.open(path, KEY, migrations=TABLE) as db:
                acked = []
                try:
                    for n in range(10_000):
                        acked.append(await db.write(insert(n, 1000), durable=n % 2 == 0))
                except ArmorclawError as error:
                    say(error.name, error.kind.retryable, error.why)
                say("readable", await db.read(numbers) == acked, len(acked) > 20)
                ballast.unlink()
                acked.append(await db.write(insert(20_000), durable=True))
                say("writable", await db.read(numbers) == acked)
            async with Database.open(path, KEY, migrations=TABLE) as db:
                say("kept", await db.read(numbers) == acked)
        trio.run(main)
        """,
        prefix=(*unshare, "sh", "-c", script, str(path.parent)),
    )
    assert line(child) == "storage_full True the disk is full (SQLITE_FULL)"
    assert line(child) == "readable True True"
    assert line(child) == "writable True"
    assert line(child) == "kept True"


def test_a_full_disk_at_the_first_start_leaves_no_half_database(spawn: Spawn, path: Path) -> None:
    unshare = ("unshare", "--mount") if os.geteuid() == 0 else ("unshare", "--mount", "--map-root-user")
    if subprocess.run([*unshare, "true"], check=False, stderr=subprocess.DEVNULL).returncode:
        pytest.skip("no mount namespaces here: sysctl kernel.unprivileged_userns_clone=1, or run as root")
    script = 'mount -t tmpfs -o size=100k none "$0" && exec "$@"'
    child = spawn(
        """
        async def main():
            ballast = path.with_name("ballast")
            with ballast.open("wb", buffering=0) as file:
                try:
                    while True:
                        file.write(bytes(4096))
                except OSError:
                    pass
            try:
                async with Database.open(path, KEY, migrations=TABLE):
                    say("opened")
            except ArmorclawError as error:
                say(error.name, path.exists())
            ballast.unlink()
            async with Database.open(path, KEY, migrations=TABLE) as db:
                say("opened", await db.read(numbers))
        trio.run(main)
        """,
        prefix=(*unshare, "sh", "-c", script, str(path.parent)),
    )
    assert line(child) == "storage_failed False"
    assert line(child) == "opened []"


@pytest.mark.skipif(not shutil.which("strace"), reason="needs strace: apt install strace")
def test_a_failed_sync_is_never_acknowledged(spawn: Spawn, path: Path) -> None:
    child = spawn(
        """
        async def main():
            db = Database(path, KEY, migrations=TABLE)
            try:
                async with trio.open_nursery() as nursery:
                    await nursery.start(db.run)
                    say(await db.write(insert(1), durable=True))
                    await trio.to_thread.run_sync(sys.stdin.readline)
                    try:
                        await db.write(insert(2), durable=True)
                        say("acknowledged")
                    except ArmorclawError as error:
                        say(error.name, error.why)
                    await trio.sleep_forever()
            except* ArmorclawError as group:
                say("ended", *(error.name for error in group.exceptions))
            await trio.to_thread.run_sync(sys.stdin.readline)
            async with Database.open(path, KEY, migrations=TABLE) as db:
                say(await db.write(insert(3), durable=True), await db.read(numbers))
        trio.run(main)
        """
    )
    assert line(child) == "1"
    inject = ["-e", "trace=fdatasync,fsync", "-e", "inject=fdatasync,fsync:error=EIO"]
    strace = subprocess.Popen(
        ["strace", "-f", "-p", str(child.pid), "-o", "/dev/null", *inject], stderr=subprocess.DEVNULL
    )
    try:
        _wait_until(lambda: _traced(child.pid))
        tell(child, "go on")
        assert line(child) == "storage_failed the disk reports an error (SQLITE_IOERR)"
        assert line(child) == "ended storage_failed"
    finally:
        strace.send_signal(signal.SIGINT)
        strace.wait(10)
    tell(child, "the disk is well again")
    assert line(child) in ("3 [1, 3]", "3 [1, 2, 3]")  # what failed to sync may be there: nobody was told either way


def _traced(pid: int) -> bool:
    """Whether a tracer holds every thread of the process."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return all("TracerPid:\t0\n" not in (thread / "status").read_text() for thread in threads)


def _wait_until(condition: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
