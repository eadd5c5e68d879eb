"""A lane: one thread, its connection, and the closures that wait for it.

Trio's side never blocks and SQLite's side never polls: closures go over in a queue, and the results of a whole group
come back in one wake-up.
"""

from __future__ import annotations

import queue
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from armorclaw.errors import ArmorclawError, trace
from armorclaw.log import get_logger
from armorclaw.store.ballast import Ballast, storage_full
from armorclaw.store.connection import Connection, Error, disk_full, fatal, storage_error

log = get_logger(__name__)

MAX_WAITING = 1024
"""Closures handed over and not yet answered; the next caller waits. Bounds memory and the time that closing takes."""

MAX_GROUP = 256
"""Closures in one commit. Bounds how long the first of a group waits for the last."""


class Job:
    """A closure on its way to the thread and back. `task` waits for it; None once it was cancelled."""

    __slots__ = ("durable", "error", "grows", "task", "then", "value", "work")

    def __init__(
        self,
        work: Callable[[Connection], Any],
        *,
        durable: bool = False,
        grows: bool = False,
        then: Callable[[Any], object] | None = None,
    ) -> None:
        self.work = work
        self.durable = durable
        self.grows = grows
        self.then = then
        self.task: trio.lowlevel.Task | None = None
        self.value: Any = None
        self.error: BaseException | None = None

    def attempt(self, connection: Connection) -> None:
        try:
            self.value = self.work(connection)
        except BaseException as error:  # noqa: BLE001 - whatever it is, it belongs to the caller
            self.error = error


class Lane(ABC):
    """The part that reading and writing share; `serve_group` is what they differ in."""

    max_group = 1
    doing = "use"

    def __init__(self, connection: Connection, path: Path) -> None:
        self._connection = connection
        self._path = path
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()  # None: no more will come
        self._slots = trio.Semaphore(MAX_WAITING)
        self._open = False
        self.failure: ArmorclawError | None = None
        self._token = trio.lowlevel.current_trio_token()
        self._thread = trio.CapacityLimiter(1)

    async def run(
        self, owner: trio.CancelScope, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
    ) -> None:
        """Serves until cancelled, then answers what is waiting; the connection stays its owner's to close.

        When the connection can no longer be trusted, `failure` says why and `owner` is cancelled.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._close_when_cancelled)
            self._open = True
            task_status.started()
            with trio.CancelScope(shield=True):  # the thread always starts and always ends, by the None
                self.failure = await trio.to_thread.run_sync(self._serve, limiter=self._thread)
            nursery.cancel_scope.cancel(reason="the thread of the store ended")
        if self.failure is not None:
            log.error("the store failed", what=str(self.failure))
            owner.cancel(reason="the store failed")

    @trio.lowlevel.enable_ki_protection  # between handing over and waiting, Ctrl-C would leave a task to wake
    async def do(self, job: Job) -> Any:
        """Hands `job` over and waits for its answer. Cancelling takes back only what was not handed over yet."""
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            self._slots.acquire_nowait()
        except trio.WouldBlock:
            await self._slots.acquire()
        if not self._open:
            self._slots.release()
            raise unavailable()

        def stop_waiting(_: object) -> trio.lowlevel.Abort:
            job.task = None
            return trio.lowlevel.Abort.SUCCEEDED

        job.task = trio.lowlevel.current_task()
        self._jobs.put(job)
        await trio.lowlevel.wait_task_rescheduled(stop_waiting)
        if job.error is None:
            return job.value
        error, job.error = job.error, None
        try:
            raise error
        finally:
            del error  # its traceback refers to this frame: no cycle, please

    async def _close_when_cancelled(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            self._close()

    def _close(self) -> None:
        """Trio's thread is the only one that hands over, so nothing can come after the None."""
        if self._open:
            self._open = False
            self._jobs.put(None)

    # --- below: the lane's own thread ---

    def _serve(self) -> ArmorclawError | None:
        while True:
            first = self._jobs.get()
            if first is None:
                return None
            group, last = self._more(first)
            failure = self.serve_group(group)
            self._answer(group)
            if failure is not None:
                self._call_trio(self._close)
                if not last:
                    self._refuse_the_rest(failure)
                return failure
            if last:
                return None

    def _more(self, first: Job) -> tuple[list[Job], bool]:
        """Whatever else is waiting already, up to the size of a group; True when the end was among it."""
        group = [first]
        while len(group) < self.max_group:
            try:
                job = self._jobs.get_nowait()
            except queue.Empty:
                break
            if job is None:
                return group, True
            group.append(job)
        return group, False

    @abstractmethod
    def serve_group(self, group: list[Job]) -> ArmorclawError | None:
        """Fills in `value` or `error` of each job; returns the failure that ends the lane, if any."""

    def fail_group(self, group: list[Job], error: Exception) -> ArmorclawError | None:
        """The transaction is lost, and with it every job of the group, even those whose closures went well."""
        worst = self.roll_back(error)
        for job in group:
            if job.error is None or job.error is error:
                job.error = self._explain(worst)  # one each: a shared exception would mix up its tracebacks
        return self._explain(worst) if fatal(worst) else None

    def roll_back(self, error: Exception) -> Exception:
        """Takes back the transaction that failed with `error`; returns that, or what is worse."""
        if not self._connection.in_transaction:
            return error
        try:
            self._connection.execute("ROLLBACK")
        except Error as second:
            log.error("cannot roll back", path=str(self._path), error=str(second))
            return error if fatal(error) else second
        return error

    def _explain(self, error: Exception) -> ArmorclawError:
        known = storage_error(error, self._path, doing=self.doing)
        if known is None:
            known = ArmorclawError("storage_failed", f"cannot {self.doing} the database {self._path}", why=str(error))
        known.__cause__ = error
        return known

    def _refuse_the_rest(self, failure: ArmorclawError) -> None:
        while (job := self._jobs.get()) is not None:
            job.error = ArmorclawError(failure.name, failure.what, why=failure.why, hint=failure.hint)
            self._answer([job])

    def _answer(self, group: list[Job]) -> None:
        self._call_trio(lambda: self._settle(group))

    def _call_trio(self, function: Callable[[], object]) -> None:
        try:
            self._token.run_sync_soon(function)
        except trio.RunFinishedError:
            pass  # Trio crashed around us: nobody is left to answer

    # --- Trio's thread again ---

    def _settle(self, group: list[Job]) -> None:
        """All `then` of a group run before the first of its tasks does."""
        for job in group:
            self._slots.release()
            if job.then is not None and job.error is None:
                try:
                    job.then(job.value)
                except Exception as error:  # noqa: BLE001 - raised here it would end Trio; the write stands
                    log.error("a listener failed after its commit", trace=trace(error))
                    job.error = error
            if job.task is not None:
                trio.lowlevel.reschedule(job.task)
                job.task = None


class Reading(Lane):
    """Each closure sees one unchanging state of the database, never older than its call."""

    doing = "read"

    def serve_group(self, group: list[Job]) -> ArmorclawError | None:
        (job,) = group
        if job.task is None:
            return None  # nobody waits any more
        try:
            self._connection.execute("BEGIN")
            job.attempt(self._connection)
            if isinstance(job.error, Error) and storage_error(job.error, self._path, doing=self.doing):
                raise job.error
            self._connection.execute("ROLLBACK")
        except Exception as error:  # noqa: BLE001 - whatever it was, everyone gets an answer
            return self.fail_group(group, error)
        return None


class Writing(Lane):
    """Group commit: what waits together is committed together, and synced to disk once."""

    doing = "write to"
    max_group = MAX_GROUP

    def __init__(self, connection: Connection, path: Path, ballast: Ballast) -> None:
        super().__init__(connection, path)
        self._ballast = ballast
        self._full: bool | None = None

    def serve_group(self, group: list[Job]) -> ArmorclawError | None:
        admitted = self._admit(group)
        try:
            self._commit(admitted)
        except Exception as error:  # noqa: BLE001 - whatever it was, everyone gets an answer
            if not disk_full(error, self._path) or not self._ballast.give_up() or fatal(error):
                return self.fail_group(admitted, error)
            worst = self.roll_back(error)
            if fatal(worst):
                return self.fail_group(admitted, worst)
            for job in admitted:
                job.value = job.error = None
            return self.serve_group(admitted)  # there is no second file to give up, so this ends
        return None

    def _admit(self, group: list[Job]) -> list[Job]:
        """Those that may be written now: all, unless the disk is full."""
        if not any(job.grows for job in group) or not self._ballast.low():
            return group
        for job in group:
            if job.grows:
                job.error = storage_full()
        return [job for job in group if not job.grows]

    def _commit(self, group: list[Job]) -> None:
        if not group:
            return
        self._synchronous(any(job.durable for job in group))
        self._connection.execute("BEGIN IMMEDIATE")
        for job in group:
            self._apply(job)
        self._connection.execute("COMMIT")

    def _synchronous(self, full: bool) -> None:
        """FULL: on disk when the commit returns. NORMAL: survives our death, but not a power cut right after.

        A FULL commit syncs the whole log, so it covers the NORMAL ones before it.
        """
        if full is not self._full:
            self._connection.execute("PRAGMA synchronous = FULL" if full else "PRAGMA synchronous = NORMAL")
            self._full = full

    def _apply(self, job: Job) -> None:
        """Does one closure in a savepoint, so that its failure takes back its own changes only.

        Raises when the storage is at fault: SQLite may then have rolled back the transaction, with the jobs before.
        """
        self._connection.execute("SAVEPOINT job")
        job.attempt(self._connection)
        if job.error is not None:
            if isinstance(job.error, Error) and storage_error(job.error, self._path, doing=self.doing):
                raise job.error
            self._connection.execute("ROLLBACK TO job")
        self._connection.execute("RELEASE job")  # fails if the closure ended our transaction, which it may not


def unavailable() -> ArmorclawError:
    """The answer while the store is not running: at start, at the end, and while its supervisor restarts it."""
    return ArmorclawError("unavailable", "the store is not running")
