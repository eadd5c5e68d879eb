"""One task that listens to many sockets, so that what comes on them costs no turn of the event loop each.

Trio registers a socket anew for each wait, and runs a task to tell it. Beside reading, answering and sending a small
message that is most of the work. Here the sockets stay registered in an epoll of their own, which is all that Trio
waits for, and what has come is given to a plain function. A connection's own task is woken only for what that
function cannot deal with.
"""

from __future__ import annotations

import select
import socket
from collections.abc import Callable
from contextlib import suppress
from time import perf_counter

from trio.lowlevel import Abort, Task, checkpoint, current_task, reschedule, wait_readable, wait_task_rescheduled

READ_SIZE = 64 * 1024
"""Bytes taken at a time: what one connection may make the others wait for."""

_AT_ONCE = 64  # sockets asked for at a time
_TURN = 0.002  # seconds of work on them before other tasks get a turn


class _Ear:
    """A task that waits for what its function cannot deal with."""

    __slots__ = ("answer", "data", "error", "fd", "hear", "receive", "task")

    def __init__(
        self, sock: socket.socket, hear: Callable[[bytes], bool], answer: Callable[[], None], task: Task
    ) -> None:
        self.fd = sock.fileno()
        self.receive = sock.recv
        self.hear = hear
        self.answer = answer
        self.task = task
        self.data = b""
        self.error: BaseException | None = None


class Ears:
    """To be closed after the nursery has ended in which `run` and all that `listen` live."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._ears: dict[int, _Ear] = {}

    def close(self) -> None:
        self._epoll.close()

    async def listen(self, sock: socket.socket, hear: Callable[[bytes], bool], answer: Callable[[], None]) -> bytes:
        """Give `hear` whatever comes, until it returns False: then those bytes. Empty at the end of the stream.

        `answer` is called a little later, when what came on other sockets has been heard, too: it is to send what
        `hear` had to say. So all answers go out in a row, and wake a client that waits for several only once.

        Both run in the task of `run` and must be quick. What they raise is raised here, and so is OSError.
        """
        ear = _Ear(sock, hear, answer, current_task())
        self._epoll.register(ear.fd, select.EPOLLIN)
        self._ears[ear.fd] = ear

        def abort(_: object) -> Abort:
            self._forget(ear.fd)
            return Abort.SUCCEEDED

        await wait_task_rescheduled(abort)
        if ear.error is not None:
            raise ear.error
        return ear.data

    async def run(self) -> None:
        """Listen until cancelled."""
        while True:
            await wait_readable(self._epoll.fileno())
            began = perf_counter()
            heard: list[_Ear] = []
            for fd, _ in self._epoll.poll(0, _AT_ONCE):
                ear = self._ears.get(fd)
                if ear is None:
                    continue
                heard.append(ear)
                if not self._attend(ear):
                    self._rouse(ear)
                if perf_counter() - began > _TURN:
                    self._answer(heard)
                    await checkpoint()
                    began = perf_counter()
            self._answer(heard)

    def _attend(self, ear: _Ear) -> bool:
        """Whether all that has come is dealt with."""
        try:
            ear.data = ear.receive(READ_SIZE)
            return bool(ear.data) and ear.hear(ear.data)
        except BlockingIOError:  # another one that got the same number since
            return True
        except BaseException as error:  # noqa: BLE001 - its own task is to raise it, not this one
            ear.error = error
            return False

    def _answer(self, heard: list[_Ear]) -> None:
        for ear in heard:
            try:
                ear.answer()
            except BaseException as error:  # noqa: BLE001 - as above
                ear.error = ear.error or error
                self._rouse(ear)
        heard.clear()

    def _rouse(self, ear: _Ear) -> None:
        """Wake its task, unless it was woken or cancelled meanwhile."""
        if self._ears.get(ear.fd) is ear:
            self._forget(ear.fd)
            reschedule(ear.task)

    def _forget(self, fd: int) -> None:
        del self._ears[fd]
        with suppress(OSError):  # it was closed: then the system has forgotten it
            self._epoll.unregister(fd)
