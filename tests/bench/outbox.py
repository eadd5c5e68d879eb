"""The outbox on its disk: one producer beside a bare append, 64 beside bare batches, and a start with 100,000 rows.

Products and floors take turns on the same disk. What is accepted here is on disk, encrypted, audited and in its queue
when `enqueue` returns; a bare append is 4 KiB and fdatasync, a bare batch 64 rows in one commit of the same store.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Iterator
from functools import partial
from pathlib import Path

import trio

from armorclaw.clock import Surroundings
from armorclaw.delivery import rows
from armorclaw.delivery.message import Delivery
from armorclaw.delivery.outbox import Outbox, Outgoing
from armorclaw.events.event import ascii_json
from armorclaw.events.journal import Journal
from armorclaw.guard.audit import AuditLog
from armorclaw.store import Connection, Database
from armorclaw.store.connection import open_connection
from tests.bench import Figure, percentile
from tests.bench._real import folder

KEY = bytes(32)
BLOCK = 20
ROUNDS, QUICK_ROUNDS = 40, 12
PRODUCERS = 64
ACCOUNTS, ROWS, ROOMS = 10, 100_000, 50
"""Rows in all, each account's in so many rooms."""

CONTENT = ascii_json({"msgtype": "m.text", "body": "x" * 150})
APPENDED = bytes(4096)
TICK = 0.001


def run(quick: bool) -> list[Figure]:
    """About 10 s when quick, 20 s otherwise."""
    rounds = QUICK_ROUNDS if quick else ROUNDS
    with folder() as home:
        figures = trio.run(_enqueue, home, rounds)
    with folder() as home:
        trio.run(_fill, home / "full.db")
        return [*figures, *trio.run(_recover, home / "full.db")]


async def _enqueue(home: Path, rounds: int) -> list[Figure]:
    appended = os.open(home / "append", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    bare = open_connection(home / "bare.db", KEY)
    bare.execute("CREATE TABLE bare (seq INTEGER PRIMARY KEY, txn TEXT NOT NULL UNIQUE, content BLOB NOT NULL)")
    one: list[float] = []
    raw: list[float] = []
    many = bare_many = 0.0
    numbers = iter(range(10**9))
    async with Database.open(home / "outbox.db", KEY) as db:
        outbox = _outbox(db)
        produce = partial(_produce, outbox)
        for _ in range(rounds):
            for _ in range(BLOCK):
                one.append(await _timed(produce))
                began = time.perf_counter()
                os.write(appended, APPENDED)
                os.fdatasync(appended)
                raw.append(time.perf_counter() - began)
            began = time.perf_counter()
            async with trio.open_nursery() as nursery:
                for _ in range(PRODUCERS):
                    nursery.start_soon(_producer, outbox)
            many += time.perf_counter() - began
            began = time.perf_counter()
            for _ in range(BLOCK):
                await trio.to_thread.run_sync(_batch, bare, numbers)
            bare_many += time.perf_counter() - began
            await _empty(db, outbox)
    bare.close()
    os.close(appended)
    messages = rounds * PRODUCERS * BLOCK
    ours, floor = messages / many, messages / bare_many
    return [
        Figure("one producer, durable, p50", percentile(one, 0.5) * 1000, "ms"),
        Figure("one producer, durable, p99", percentile(one, 0.99) * 1000, "ms"),
        Figure("bare append and fdatasync, p50", percentile(raw, 0.5) * 1000, "ms"),
        Figure("one producer / bare append, p50", percentile(one, 0.5) / percentile(raw, 0.5), "x", 2.5),
        Figure(f"{PRODUCERS} producers", ours, "/s"),
        Figure(f"bare batches of {PRODUCERS}", floor, "/s"),
        Figure(f"bare batches / {PRODUCERS} producers", floor / ours, "x", 1 / 0.15),
    ]


def _outbox(db: Database) -> Outbox:
    around = Surroundings()
    return Outbox(db, AuditLog(around), Journal(db, around.clock), around)


async def _produce(outbox: Outbox) -> None:
    await outbox.enqueue(Outgoing(account="main", agent="", room_id="!a:x", content=CONTENT))


async def _producer(outbox: Outbox) -> None:
    for _ in range(BLOCK):
        await _produce(outbox)


async def _timed(do: Callable[[], Awaitable[None]]) -> float:
    began = time.perf_counter()
    await do()
    return time.perf_counter() - began


def _batch(bare: Connection, numbers: Iterator[int]) -> None:
    bare.execute("BEGIN IMMEDIATE")
    for _ in range(PRODUCERS):
        bare.execute("INSERT INTO bare (txn, content) VALUES (?, ?)", (f"ac_{next(numbers):011}", CONTENT))
    bare.execute("COMMIT")


async def _empty(db: Database, outbox: Outbox) -> None:
    """So that no queue grows full."""
    await db.write(lambda conn: conn.execute("UPDATE outbox SET state = 'cancelled'"))
    for delivery in outbox._waiting.of("main"):
        outbox._waiting.remove(delivery.delivery_id)


async def _fill(path: Path) -> None:
    """What a bridge leaves behind whose homeservers were away."""
    async with Database.open(path, KEY) as db:
        now = Surroundings().clock.now_ms()

        def work(conn: Connection) -> None:
            for number in range(ROWS):
                account = number % ACCOUNTS
                delivery = Delivery(
                    delivery_id=f"d_{number:016}",
                    txn_id=f"ac_{number:024}",
                    account=f"account{account}",
                    agent=f"agent{number % 100}",
                    room_id=f"!room{number % (ACCOUNTS * ROOMS)}:x",
                    type="m.room.message",
                    state="queued",
                    created_ms=now,
                    device_id="DEVICE",
                )
                rows.insert(conn, delivery, CONTENT)

        await db.write(work, durable=True)


class _Server:
    """Takes note of when the first message of each account comes, and answers none."""

    device_id = "DEVICE"

    def __init__(self) -> None:
        self.first = 0.0
        self.begun = trio.Event()

    async def put(self, room_id: str, type: str, txn_id: str, content: bytes) -> str:  # noqa: A002
        if not self.first:
            self.first = time.perf_counter()
            self.begun.set()
        await trio.sleep_forever()

    async def find_echo(self, *asked: object) -> str | None:
        raise AssertionError("it is the same device, and not a day later")


async def _recover(path: Path) -> list[Figure]:
    servers = [_Server() for _ in range(ACCOUNTS)]
    gaps: list[float] = []
    began = time.perf_counter()
    async with Database.open(path, KEY) as db:
        opened = time.perf_counter()
        outbox = _outbox(db)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_tick, gaps)
            for number, server in enumerate(servers):
                nursery.start_soon(outbox.serve, f"account{number}", server)
            for server in servers:
                await server.begun.wait()
            nursery.cancel_scope.cancel(reason="all have begun")
    first = min(server.first for server in servers)
    last = max(server.first for server in servers)
    return [
        Figure(f"{ROWS:,} rows: open the store", opened - began, "s"),
        Figure(f"{ROWS:,} rows: start to first resend", first - began, "s", 2.0),
        Figure(f"{ROWS:,} rows: start to first resend of the last account", last - began, "s"),
        Figure("longest hold of the event loop meanwhile", max(gaps) * 1000, "ms", 100.0),
    ]


async def _tick(gaps: list[float]) -> None:
    """By the loop's own time on the processor: how others share the machine is no matter of ours."""
    before = time.thread_time()
    while True:
        await trio.sleep(TICK)
        now = time.thread_time()
        gaps.append(now - before)
        before = now
