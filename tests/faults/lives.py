"""A bridge with many lives between a town, an agent and an archive, and the checker of what they have in the end.

What is checked is what each party can see for itself: people what is in their rooms, the agent and the archive what
was pushed to them and what of it they have acknowledged, a sender what was accepted. Nobody asks the bridge whether
it is well.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import attrs
import trio

import armorclaw
from armorclaw.client import Client
from armorclaw.errors import ArmorclawError
from tests.faults.hearers import Echo, Hearer
from tests.faults.town import BOT, PASSWORD, Town
from tests.faults.zygote import AGENT
from tests.matrix.fake_homeserver import fake_homeserver

ROOM, OTHER = "!a:town", "!b:town"
ROOMS = (ROOM, OTHER)
POLL = 0.02

PATIENCE = 30.0
"""Seconds after which what has not come is lost."""

MARKS = True
"""Whether what comes again is marked, over any crash."""

TOLD = True
"""Whether the agent is told what became of its messages."""

LAST_STATES = ("sent", "delivered", "read")


class Zygote:
    """The process that bridges are forked from. One bridge at a time."""

    def __init__(self) -> None:
        # not by Trio, whose threads end: it dies with the thread that starts it
        command = [sys.executable, "-m", "tests.faults.zygote"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()

    @asynccontextmanager
    async def bridge(self, order: dict[str, Any]) -> AsyncIterator[Life]:
        """One life; killed on leaving, if it has not ended."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        life = Life(int(self._process.stdout.readline()), self._process.stdout.fileno())
        try:
            yield life
        finally:
            life.kill()
            with trio.CancelScope(shield=True):
                await life.ended()


@attrs.define
class Life:
    pid: int
    _told: int
    status: int | None = None
    _lock: trio.Lock = attrs.field(factory=trio.Lock)

    def kill(self) -> None:
        self.signal(signal.SIGKILL)

    def signal(self, number: int) -> None:
        if self.status is None:
            os.kill(self.pid, number)

    async def ended(self) -> int:
        """Its exit status, as subprocess has it."""
        async with self._lock:
            if self.status is None:
                line = b""
                while not line.endswith(b"\n"):
                    await trio.lowlevel.wait_readable(self._told)
                    more = os.read(self._told, 64)
                    assert more, "the zygote has ended"
                    line += more
                self.status = int(line)
        return self.status


@contextmanager
def short_folder() -> Iterator[Path]:
    """For sockets, whose paths are short."""
    with tempfile.TemporaryDirectory(prefix="ac-lives-", dir="/tmp") as folder:
        yield Path(folder)


@contextmanager
def new_zygote() -> Iterator[Zygote]:
    zygote = Zygote()
    try:
        yield zygote
    finally:
        zygote.close()


class Trial:
    """All parties of one trial; `said` and `sent` are what must be found again in the end."""

    def __init__(self, town: Town, url: str, folder: Path) -> None:
        self.town = town
        self.folder = folder
        self.socket = folder / "run" / "bridge.sock"
        self.echo = Echo(folder / "a.sock")
        self.archive = Hearer(self.socket, "archive", 0)
        self.said: list[tuple[str, str, str]] = []  # room, event id, body
        self.sent: dict[str, tuple[str, str]] = {}  # by key: room, body
        self.accepted: dict[str, set[str]] = defaultdict(set)  # the operator's
        self.statuses: list[int] = []
        self.calm = trio.Event()
        """Set when no more is to happen than that all ends well."""
        (folder / "password").write_text(PASSWORD)
        (folder / "password").chmod(0o400)
        self.config: dict[str, Any] = {
            "bridge": {"state_dir": str(folder / "state"), "runtime_dir": str(folder / "run")},
            "accounts": {"main": {"homeserver": url, "user": BOT, "password_file": str(folder / "password")}},
            "agents": {AGENT: {"runtime": "attached", "rooms": list(ROOMS)}},
            # nothing is to be given up for having been in hand at many crashes in a row
            "events": {"max_lost": 10_000, "max_deliveries": 10_000},
        }

    def order(self, *, watched: bool = False, crash: str | None = None, daemon: bool = False) -> dict[str, Any]:
        """For a zygote; with `daemon`, of a bridge that ends in order when a signal asks it to."""
        known = {"folder": str(self.folder), "config": self.config}
        return {**known, "watched": watched, "crash": crash, "daemon": daemon}

    # -- what happens

    def say(self, room_id: str, body: str) -> str:
        event_id = self.town.say(room_id, body)
        self.said.append((room_id, event_id, body))
        return event_id

    async def send(self, client: Client, room_id: str, body: str) -> None:
        """By the operator, until it is accepted, however many lives of the bridge that takes."""
        key = f"op {body}"
        self.sent[key] = room_id, body
        answer = await client.call(
            "matrix.send", timeout=PATIENCE, room_id=room_id, message=body, idempotency_key=key
        )
        self.accepted[key].add(answer["delivery_id"])

    async def until_ended(self, life: Life, status: int | None) -> None:
        """Until this life has ended with that status; None: it should not end."""
        ended = await life.ended()
        assert ended == status, f"the bridge ended with {ended}\n{self.report()}"
        self.statuses.append(ended)

    async def until_heard(self) -> None:
        """Until agent and archive have acknowledged all that people said, and people see all that was sent."""
        with self.within("heard by all"):
            for hearer in (self.echo, self.archive):
                while not all(hearer.settled(event_id) for _, event_id, _ in self.said):
                    await hearer.news.wait()
            await self.town.until(lambda: all(self._shown(*wanted) for wanted in self._wanted()))

    async def until_settled(self, client: Client, *, told: bool) -> None:
        """Until nothing is on its way any more; with `told`, until the agent knows of each of its messages."""
        with self.within("settled"):
            while any(row["state"] not in LAST_STATES for row in await self.deliveries(client)):  # noqa: ASYNC110
                await trio.sleep(POLL)
            while told and not all(self._told(one) for ids in self.echo.accepted.values() for one in ids):
                await self.echo.news.wait()

    def _told(self, delivery_id: str) -> bool:
        return "delivered" in self.echo.states(delivery_id)

    async def deliveries(self, client: Client) -> list[dict[str, Any]]:
        while True:
            try:
                found: list[dict[str, Any]] = await client.call("delivery.list", limit=1000, timeout=PATIENCE)
            except ArmorclawError as error:  # the bridge may end in this moment as well
                if error.name != "unavailable":
                    raise
            else:
                return found

    def _wanted(self) -> list[tuple[str, str]]:
        return [(room, f"re: {body}") for room, _, body in self.said] + list(self.sent.values())

    def _shown(self, room_id: str, body: str) -> bool:
        return body in self.town.said(room_id)

    @contextmanager
    def within(self, what: str) -> Iterator[None]:
        try:
            with trio.fail_after(PATIENCE):
                yield
        except trio.TooSlowError:
            raise AssertionError(f"not {what} within {PATIENCE:g} s\n{self.report()}") from None

    def report(self) -> str:
        """For whoever has to find out."""
        missing = [wanted for wanted in self._wanted() if not self._shown(*wanted)]
        unheard = {
            name: [event_id for _, event_id, _ in self.said if not hearer.settled(event_id)]
            for name, hearer in (("agent", self.echo), ("archive", self.archive))
        }
        log = (self.folder / "bridge.log").read_text(errors="replace").splitlines()[-12:]
        lines = [f"not in the rooms: {missing[:10]}", f"not acknowledged: {unheard}", f"lives ended: {self.statuses}"]
        return "\n".join(lines + log)

    # -- what must hold in the end

    def check(self, rows: list[dict[str, Any]], *, marks: bool) -> None:
        """Sets and orders; `marks`: whether what came before must be marked as redelivered, over any crash."""
        self._check_rooms(rows)
        for name, hearer in (("agent", self.echo), ("archive", self.archive)):
            self._check_hearer(name, hearer, marks=marks)

    def _check_rooms(self, rows: list[dict[str, Any]]) -> None:
        assert self.town.wrongs() == [], "what was encrypted, or was not"
        for room in ROOMS:
            visible = self.town.said(room)
            twice = [body for body, times in Counter(visible).items() if times > 1]
            assert not twice, f"visible twice in {room}: {twice}"
            wanted = {body for where, body in self._wanted() if where == room}
            assert set(visible) == wanted, f"in {room}: lost {wanted - set(visible)}, new {set(visible) - wanted}"
            answers = [body for body in visible if body.startswith("re: ")]
            said = [f"re: {body}" for where, _, body in self.said if where == room]
            assert answers == said, f"out of order in {room}: {answers}"
        for key, ids in {**self.accepted, **self.echo.accepted}.items():
            assert len(ids) == 1, f"the key {key} was answered with {ids}"
        known = {row["delivery_id"]: row for row in rows}
        accepted = {one for ids in (*self.accepted.values(), *self.echo.accepted.values()) for one in ids}
        assert accepted <= known.keys(), f"accepted and forgotten: {accepted - known.keys()}"
        wrong = [row for row in rows if row["state"] not in LAST_STATES]
        assert not wrong, f"accepted and not sent: {wrong}"
        visible_ids = {e["event_id"] for room in ROOMS for _, e in self.town.rooms[room].events if e["sender"] == BOT}
        assert {row["event_id"] for row in rows} == visible_ids, (
            "what is told of messages is not what is in the rooms"
        )

    def _check_hearer(self, name: str, hearer: Hearer, *, marks: bool) -> None:
        assert {event_id for _, event_id, _ in self.said} <= hearer.event_ids, f"lost to the {name}"
        assert not hearer.again, f"came to the {name} after it was acknowledged: {hearer.again}"
        ids: dict[int, str] = {}
        seen: dict[int, int] = {}
        of: dict[str, int] = {}
        last: dict[int, int] = defaultdict(int)
        for one in hearer.given:
            assert ids.setdefault(one.seq, one.id) == one.id, f"number {one.seq} was given to two events"
            assert of.setdefault(one.id, one.seq) == one.seq, f"event {one.id} has two numbers"
            assert one.seq > last[one.connection], f"out of order at the {name}: {one} after {last[one.connection]}"
            last[one.connection] = one.seq
            if marks and one.seq in seen:
                assert one.redelivered > 0, f"came to the {name} again without a mark: {one}"
            seen[one.seq] = one.redelivered


@asynccontextmanager
async def open_trial(
    folder: Path, town: Town | None = None, *, encrypted: Sequence[str] = ()
) -> AsyncIterator[Trial]:
    """A town on a port, and hearers that try to connect; some of the rooms are `encrypted`."""
    town = town or Town()
    for room in ROOMS:
        town.add_room(room, encrypted=room in encrypted)
    async with fake_homeserver(town.answer) as served:
        trial = Trial(town, served.url, folder)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trial.echo.run)
            nursery.start_soon(trial.archive.run)
            yield trial
            nursery.cancel_scope.cancel(reason="the trial is over")


@asynccontextmanager
async def operator(trial: Trial) -> AsyncIterator[Client]:
    """A connection to the bridge, as soon as there is one; from then on it is made again by itself."""
    deadline = trio.current_time() + PATIENCE
    async with AsyncExitStack() as stack:
        while True:
            try:
                client = await stack.enter_async_context(armorclaw.connect(trial.socket))
                break
            except ArmorclawError:
                if trio.current_time() > deadline:
                    raise
                await trio.sleep(0.005)
        yield client


def passed(folder: Path) -> list[str]:
    """The names of the points that were passed."""
    file = folder / "points"
    return file.read_text().splitlines() if file.exists() else []
