"""A disk that is full, fails, or returns other than what was written: what was accepted is there, and it is told.

The bridge is a real daemon; its disk is a small file system, or one that strace makes fail.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from armorclaw.errors import ArmorclawError
from armorclaw.testing.handles import BridgeProcess, to_toml, wait_until
from armorclaw.testing.homeserver import Homeserver
from armorclaw.testing.person import Person
from tests.faults.disk import SmallDisk, small_disk

SECONDS = 20.0
"""Most that anything may take: a look at a full disk comes every five."""

DISK = "24m"
"""Room for the database, what is kept back beside it, and what must stay free."""

FAILING = ["-e", "trace=fdatasync,fsync", "-e"]


class Housed(BridgeProcess):
    """A daemon that is started with other words before its own."""

    before: tuple[str, ...] = ()

    def spawn(self) -> None:
        file = self.folder / "armorclaw.toml"
        file.write_text(to_toml(self.config), encoding="utf-8")
        with self.log.open("ab") as log:
            command = [*self.before, sys.executable, "-m", "armorclaw", "run", "--config", str(file)]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def name_of_refusal(self, method: str, **params: Any) -> str:
        with pytest.raises(ArmorclawError) as caught:
            self.call(method, **params)
        assert str(self.folder) not in str(caught.value)
        return caught.value.name

    def key_names(self) -> list[str]:
        return [key["id"] for key in self.call("list_keys")]

    def reasons(self) -> str:
        return "; ".join(self.call("health")["reasons"])

    def until(self, true: Callable[[], Any], what: str) -> Any:
        """The first true answer; while the store or the socket restarts there is none."""

        def asked() -> Any:
            try:
                return true()
            except ArmorclawError as error:
                if not error.kind.retryable:
                    raise
                return None

        return wait_until(asked, SECONDS, what)


def store_key(bridge: Housed, name: str) -> None:
    bridge.call("store_key", id=name, provider="openai", token=f"sk-{name}")


def stored(bridge: Housed, name: str) -> bool:
    store_key(bridge, name)
    return True


@pytest.fixture
def bridge(armorclaw_folder: Path) -> Iterator[Housed]:
    """A daemon without Matrix, not started."""
    made = Housed(armorclaw_folder, {})
    yield made
    made.kill()


@pytest.fixture
def small(armorclaw_folder: Path) -> Iterator[SmallDisk]:
    folder = armorclaw_folder / "disk"
    folder.mkdir()
    with small_disk(folder, DISK) as disk:
        yield disk


@pytest.fixture
def cramped(small: SmallDisk, armorclaw_folder: Path) -> Iterator[Housed]:
    """A daemon whose state is on a small disk, not started."""
    where = {"state_dir": armorclaw_folder / "disk" / "state", "runtime_dir": armorclaw_folder / "run"}
    made = Housed(armorclaw_folder, {"bridge": where})
    made.before = tuple(small.inside)
    yield made
    made.kill()


# -- no room


def test_a_disk_that_fills_up_stops_what_grows_and_nothing_else(cramped: Housed, small: SmallDisk) -> None:
    cramped.start()
    for name in ("a", "b", "c"):
        store_key(cramped, name)
    assert cramped.reasons() == ""
    small.fill()
    with pytest.raises(ArmorclawError) as caught:
        store_key(cramped, "d")
    assert caught.value.name == "storage_full"
    assert caught.value.kind.retryable
    assert caught.value.data["retry_after"] == 5.0
    assert cramped.call("status")["state"] == "running"
    assert "disk is full" in cramped.reasons()
    assert cramped.call("get_key", id="a")["token"] == "sk-a"  # which is audited
    cramped.call("delete_key", id="b")
    cramped.call("rotate_key", id="c", token="sk-other")
    assert cramped.name_of_refusal("store_key", id="d", provider="openai", token="x") == "storage_full"
    small.free()
    cramped.until(lambda: not cramped.reasons(), "the disk is found to have room")
    store_key(cramped, "e")
    assert cramped.stop() == 0
    cramped.start()
    assert cramped.key_names() == ["a", "c", "e"]
    assert cramped.call("get_key", id="c")["token"] == "sk-other"
    assert cramped.stop() == 0


def test_what_little_room_is_left_is_not_used_up(cramped: Housed, small: SmallDisk) -> None:
    cramped.start()
    small.fill(leave=6 << 20)
    assert cramped.name_of_refusal("store_key", id="a", provider="openai", token="x") == "storage_full"
    assert small.left() >= 5 << 20
    small.free()
    cramped.until(lambda: not cramped.reasons(), "the disk is found to have room")
    assert cramped.stop() == 0


def test_a_disk_that_is_full_when_the_bridge_starts(cramped: Housed, small: SmallDisk) -> None:
    cramped.start()
    store_key(cramped, "a")
    assert cramped.stop() == 0
    small.fill()
    cramped.start()
    assert "disk is full" in cramped.reasons()
    assert cramped.call("get_key", id="a")["token"] == "sk-a"
    assert cramped.name_of_refusal("store_key", id="b", provider="openai", token="x") == "storage_full"
    cramped.kill()  # and again after a crash, when no room is kept back any more
    cramped.start()
    assert cramped.key_names() == ["a"]
    small.free()
    cramped.until(lambda: not cramped.reasons(), "the disk is found to have room")
    store_key(cramped, "b")
    assert cramped.stop() == 0


def test_no_message_that_was_accepted_is_lost_on_a_full_disk(
    homeserver: Homeserver,
    small: SmallDisk,
    armorclaw_folder: Path,
    matrix_user: Callable[[str], Person],
) -> None:
    """Nor is what people say meanwhile, which waits at the homeserver until there is room."""
    where = {"state_dir": armorclaw_folder / "disk" / "state", "runtime_dir": armorclaw_folder / "run"}
    bridge = Housed.for_homeserver(homeserver, armorclaw_folder)
    bridge.config["bridge"] = where
    bridge.before = tuple(small.inside)
    person = matrix_user("alice")
    room = person.create_room("a room", invite=[bridge.user_id])
    bridge.config["agents"] = {"listener": {"runtime": "attached", "rooms": [room]}}
    accepted: list[str] = []
    refusals: dict[str, str] = {}

    def send(text: str) -> None:
        try:
            bridge.call("matrix.send", room_id=room, message=text)
            accepted.append(text)
        except ArmorclawError as error:
            refusals[text] = error.name

    try:
        bridge.start()
        bridge.until(lambda: not bridge.call("status")["accounts"][0]["rooms_missing"], "the bridge is in the room")
        person.catch_up()
        bridge.call("matrix.receive", limit=1, consumer="test")  # from here on it is to have all
        for n in range(40):
            if n == 15:
                small.fill()
            if n == 30:
                small.free()
                bridge.until(lambda: not bridge.reasons(), "the disk is found to have room")
            if n == 20:
                person.send(room, "said on a full disk")
            send(f"number {n}")
        assert accepted[:1] == ["number 0"]
        assert accepted[-10:] == [f"number {n}" for n in range(30, 40)]
        assert refusals["number 20"] == "storage_full"
        assert set(refusals.values()) == {"storage_full"}
        heard: list[str] = []

        def last(seen: Any) -> bool:
            heard.append(seen.body)
            return bool(seen.body == "number 39")

        person.wait_for(last, timeout=30.0)
        assert [text for text in heard if text.startswith("number")] == accepted

        def journalled() -> bool:
            said = bridge.call("matrix.receive", limit=100, consumer="test")["events"]
            return any("said on a full disk" in json.dumps(each) for each in said)

        bridge.until(journalled, "what was said meanwhile is in the journal")
        assert bridge.stop() == 0
    finally:
        bridge.kill()


# -- a disk that reports errors


@contextmanager
def failing_syncs(process: subprocess.Popen[bytes], when: str = "1+") -> Iterator[None]:
    """Each sync of the process to its disk fails, or those of each thread that `when` counts."""
    if shutil.which("strace") is None:
        pytest.skip("needs strace: apt install strace")
    inject = f"inject=fdatasync,fsync:error=EIO:when={when}"
    words = ["strace", "-f", "-p", str(process.pid), "-o", "/dev/null", *FAILING, inject]
    strace = subprocess.Popen(words, stderr=subprocess.DEVNULL)
    try:
        wait_until(lambda: _traced(process.pid), SECONDS, "strace holds every thread")
        yield
    finally:
        strace.send_signal(signal.SIGINT)
        strace.wait(10)


def _traced(pid: int) -> bool:
    threads = Path(f"/proc/{pid}/task").iterdir()
    try:
        return all("TracerPid:\t0\n" not in (thread / "status").read_text() for thread in threads)
    except OSError:  # one has just ended
        return False


def test_a_sync_that_fails_is_never_taken_for_done_and_the_bridge_goes_on(bridge: Housed) -> None:
    bridge.start()
    assert bridge.process is not None
    store_key(bridge, "a")
    with failing_syncs(bridge.process, when="1"):
        assert bridge.name_of_refusal("store_key", id="b", provider="openai", token="x") == "storage_failed"
    bridge.until(lambda: "a" in bridge.key_names(), "the store is open again")
    bridge.until(lambda: stored(bridge, "c"), "it is written to again")
    assert bridge.process.poll() is None
    assert bridge.stop() == 0
    bridge.start()
    assert set(bridge.key_names()) - {"b"} == {"a", "c"}  # of b nobody was told either way
    assert bridge.call("get_key", id="a")["token"] == "sk-a"
    assert bridge.stop() == 0


DRIVER = """
import logging, sys, trio
from pathlib import Path
from armorclaw.errors import ArmorclawError
from armorclaw.store import Database
from armorclaw.store.schema import Migration
logging.disable()
TABLE = (Migration(1, "a table for tests", "CREATE TABLE t (n INTEGER PRIMARY KEY)"),)
db = Database(Path(sys.argv[1]), bytes(range(32)), migrations=TABLE)
answered, failures = set(), 0
async def live():
    async with trio.open_nursery() as nursery:
        await nursery.start(db.run)
        rows = await db.read(lambda c: {n for (n,) in c.execute("SELECT n FROM t")})
        assert answered <= rows and db.set_aside is None, (answered, rows)
        for n in range(30):
            await db.write(lambda c: c.execute("INSERT OR IGNORE INTO t VALUES (?)", (n,)).rowcount, durable=True)
            answered.add(n)
        nursery.cancel_scope.cancel()
async def main():
    global failures
    while failures < 20:
        before = failures
        try:
            await live()
        except* ArmorclawError as group:
            assert {error.name for error in group.exceptions} <= {"storage_failed", "unavailable"}
            failures += 1
        if failures == before:
            break
trio.run(main)
print(failures, "failed, answered", len(answered))
"""


@pytest.mark.parametrize("when", ["1", "2", "3", "5", "8", "13", "21", "34", "30+40"])
def test_whichever_sync_fails_what_was_answered_is_there(tmp_path: Path, when: str) -> None:
    """The database is opened again after each failure, as its supervisor does, and everything written once more.

    Some failures SQLite rides out by itself: while it makes the file, and while it closes it.
    """
    if shutil.which("strace") is None:
        pytest.skip("needs strace: apt install strace")
    log = tmp_path / "strace"
    inject = f"inject=fdatasync,fsync:error=EIO:when={when}"
    words = ["strace", "-f", "-o", str(log), *FAILING, inject, sys.executable, "-c", DRIVER, str(tmp_path / "a.db")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    failed, _, answered = done.stdout.partition(" failed, answered ")
    assert int(answered) == 30
    injected = log.read_text().count("INJECTED")
    assert injected
    assert int(failed) <= injected
    if when in ("5", "8", "21"):  # in the middle of it
        assert int(failed)


# -- a disk that gives back something else


def flip(path: Path, *places: int) -> bytes:
    data = bytearray(path.read_bytes())
    for place in places:
        data[place] ^= 0x10
    path.write_bytes(data)
    return bytes(data)


def set_aside(bridge: Housed) -> list[Path]:
    return sorted((bridge.folder / "state").glob("armorclaw.db.damaged-*Z"))


@pytest.mark.parametrize("place", [10, 5000], ids=["the beginning", "a page"])
def test_a_database_that_is_damaged_when_the_bridge_starts(bridge: Housed, place: int) -> None:
    """It runs, on a new one, and says so until somebody has taken the old one away."""
    database = bridge.folder / "state" / "armorclaw.db"
    bridge.start()
    store_key(bridge, "a")
    assert bridge.stop() == 0
    data = flip(database, place)
    bridge.start()
    assert bridge.key_names() == []
    (aside,) = set_aside(bridge)
    assert aside.read_bytes() == data
    assert b"the database is damaged" in bridge.log.read_bytes()
    assert bridge.stop() == 0
    bridge.start()  # once is not enough to be heard
    assert aside.name in bridge.reasons()
    assert str(bridge.folder) not in bridge.reasons()
    aside.rename(aside.with_name("looked-at"))
    assert bridge.reasons() == ""
    store_key(bridge, "b")
    assert bridge.stop() == 0
    flip(aside.with_name("looked-at"), place)  # mended, and put back
    aside.with_name("looked-at").rename(database)
    bridge.start()
    assert bridge.call("get_key", id="a")["token"] == "sk-a"
    assert bridge.reasons() == ""
    assert bridge.stop() == 0


def test_a_database_that_is_damaged_while_the_bridge_runs(bridge: Housed) -> None:
    database = bridge.folder / "state" / "armorclaw.db"
    bridge.start()
    store_key(bridge, "a")
    assert bridge.stop() == 0
    bridge.start()
    assert bridge.process is not None
    size = database.stat().st_size
    with database.open("r+b") as file:  # in place: it is open
        file.seek(4096)
        file.write(random.Random(1).randbytes(size - 4096))

    with suppress(ArmorclawError):
        store_key(bridge, "b")  # readers forget what they have read when something is written
    with suppress(ArmorclawError):
        bridge.call("delivery.list")  # of which nothing was written since, and so stands in no log
    wait_until(lambda: set_aside(bridge), SECONDS, "the damage is found")
    bridge.until(lambda: "damaged-" in bridge.reasons(), "it is told")
    bridge.until(lambda: stored(bridge, "c"), "the new one is written to")
    assert bridge.process.poll() is None
    assert "a" not in bridge.key_names()
    assert bridge.stop() == 0


def test_another_key_is_never_taken_for_damage(bridge: Housed) -> None:
    key = bridge.folder / "state" / "armorclaw.key"
    bridge.start()
    store_key(bridge, "a")
    assert bridge.stop() == 0
    right = key.read_bytes()
    for content in (b"ab" * 32, right):
        key.chmod(0o600)
        key.write_bytes(content)
        key.chmod(0o400)
        if content != right:
            with pytest.raises(ArmorclawError, match="the key does not fit"):
                bridge.start()
    assert set_aside(bridge) == []
    bridge.start()
    assert bridge.key_names() == ["a"]
    assert bridge.stop() == 0


HARM = """
import os, random, sys, trio, logging
from pathlib import Path
from armorclaw.errors import ArmorclawError
from armorclaw.store import Database
from armorclaw.store.schema import Migration
logging.disable()
TABLE = (Migration(1, "a table for tests", "CREATE TABLE t (n INTEGER PRIMARY KEY, body TEXT)"),)
KEY, COUNT = bytes(range(32)), 40
folder, first, seeds = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])

def rows(c):
    return [n for (n,) in c.execute("SELECT n FROM t ORDER BY n") ]

async def image():
    made = folder / "made.db"
    async with Database.open(made, KEY, migrations=TABLE) as db:
        for n in range(COUNT):
            await db.write(lambda c: c.execute("INSERT INTO t VALUES (?, ?)", (n, "x" * 700)).rowcount, durable=True)
            if n == COUNT // 2:
                await db.read(lambda c: c.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall())
        return {end: Path(f"{made}{end}").read_bytes() for end in ("", "-wal", ".check")}

async def look(path):
    async with Database.open(path, KEY, migrations=TABLE) as db:
        assert await db.write(lambda c: c.execute("INSERT INTO t VALUES (1000, '')").rowcount) == 1
        return (await db.read(rows))[:-1], db.set_aside

async def main():
    whole = await image()
    for seed in range(first, first + seeds):
        chance = random.Random(seed)
        path = folder / f"{seed}.db"
        harmed = chance.choice(list(whole))
        for end, data in whole.items():
            data = bytearray(data)
            if end == harmed:
                kind = chance.randrange(3)
                if kind == 0:
                    del data[chance.randrange(len(data)):]
                else:
                    for _ in range(1 if kind == 1 else 50):
                        data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            Path(f"{path}{end}").write_bytes(data)
        found, aside = await look(path)
        assert found == list(range(len(found))), (seed, harmed, found)
        if len(found) < COUNT and harmed != "-wal":
            assert aside is not None and found == [], (seed, harmed, found)
        if harmed == ".check":
            assert len(found) == COUNT
        for file in folder.glob(f"{seed}.db*"):
            file.unlink()
    print("all well", end="")
trio.run(main)
"""


@pytest.mark.parametrize("first", [0, pytest.param(1000, marks=pytest.mark.long)])
def test_harm_of_any_kind_is_either_nothing_or_told(tmp_path: Path, first: int) -> None:
    """Bits flipped and files cut, anywhere: nothing but what was written comes back, and no traceback.

    Commits that were only in the log may be missing when the log was harmed: SQLite takes its end for one that was
    being written when the power went.
    """
    words = [sys.executable, "-c", HARM, str(tmp_path), str(first), "1000" if first else "60"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "all well"
