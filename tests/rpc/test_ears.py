from __future__ import annotations

import errno
import socket
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import closing, contextmanager

import pytest
import trio
import trio.lowlevel
import trio.testing

from armorclaw.rpc import ears as ears_module
from armorclaw.rpc.ears import Ears


@contextmanager
def pairs(count: int) -> Iterator[list[tuple[socket.socket, socket.socket]]]:
    found = [socket.socketpair() for _ in range(count)]
    for pair in found:
        for end in pair:
            end.setblocking(False)
    try:
        yield found
    finally:
        for pair in found:
            for end in pair:
                end.close()


@pytest.fixture
async def ears(nursery: trio.Nursery) -> AsyncIterator[Ears]:
    with closing(Ears()) as found:
        nursery.start_soon(found.run)
        yield found


class Listener:
    """Takes what comes until it is a refusal, and says it back."""

    def __init__(self, ears: Ears, sock: socket.socket, log: list[str]) -> None:
        self.ears = ears
        self.sock = sock
        self.log = log
        self.left: bytes | None = None
        self._said = b""

    async def run(self) -> None:
        self.left = await self.ears.listen(self.sock, self.hear, self.answer)

    def hear(self, data: bytes) -> bool:
        self.log.append(f"heard {data.decode()}")
        if data == b"bug":
            raise RuntimeError("a bug")
        self._said = data
        return data != b"no"

    def answer(self) -> None:
        if self._said:
            self.log.append(f"answered {self._said.decode()}")
            self.sock.send(self._said)
            self._said = b""


async def settle() -> None:
    await trio.testing.wait_all_tasks_blocked()
    await trio.lowlevel.checkpoint()
    await trio.testing.wait_all_tasks_blocked(0.001)


async def test_all_is_heard_first_and_then_answered(ears: Ears, nursery: trio.Nursery) -> None:
    log: list[str] = []
    with pairs(3) as made:
        for ours, _ in made:
            nursery.start_soon(Listener(ears, ours, log).run)
        await settle()
        for number, (_, theirs) in enumerate(made):
            theirs.send(str(number).encode())
        await settle()
        assert sorted(log[:3]) == ["heard 0", "heard 1", "heard 2"]
        assert sorted(log[3:]) == ["answered 0", "answered 1", "answered 2"]
        assert [theirs.recv(10) for _, theirs in made] == [b"0", b"1", b"2"]
        nursery.cancel_scope.cancel()


async def test_what_is_not_dealt_with_is_given_back(ears: Ears) -> None:
    log: list[str] = []
    with pairs(1) as [(ours, theirs)]:
        listener = Listener(ears, ours, log)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.run)
            for text in (b"yes", b"no"):
                await settle()
                theirs.send(text)
        assert listener.left == b"no"
        assert log == ["heard yes", "answered yes", "heard no", "answered no"]
        theirs.send(b"more")  # nobody listens any more
        await settle()
        assert len(log) == 4
        async with trio.open_nursery() as nursery:
            nursery.start_soon(listener.run)
            await settle()
            assert log[4:] == ["heard more", "answered more"]
            theirs.shutdown(socket.SHUT_WR)
        assert listener.left == b""


async def test_a_bug_reaches_its_own_task_only(ears: Ears, nursery: trio.Nursery) -> None:
    log: list[str] = []
    with pairs(2) as [(ours, theirs), (other, beyond)]:
        nursery.start_soon(Listener(ears, other, log).run)
        theirs.send(b"bug")
        with pytest.raises(RuntimeError, match="a bug"):
            await Listener(ears, ours, log).run()
        beyond.send(b"fine")
        await settle()
        assert beyond.recv(10) == b"fine"
        nursery.cancel_scope.cancel()


async def test_an_answer_that_fails_reaches_its_own_task_only(ears: Ears, nursery: trio.Nursery) -> None:
    log: list[str] = []

    def answer() -> None:
        raise OSError(errno.ENOBUFS, "no buffer space available")

    for last in (False, True):  # was it to be woken anyway?
        with pairs(2) as [(ours, theirs), (other, beyond)]:
            with trio.CancelScope() as scope:
                async with trio.open_nursery() as inner:
                    inner.start_soon(Listener(ears, other, log).run)
                    theirs.send(b"x")
                    with pytest.raises(OSError, match="no buffer space"):
                        await ears.listen(ours, lambda _: not last, answer)  # noqa: B023
                    beyond.send(b"fine")
                    await settle()
                    assert beyond.recv(10) == b"fine"
                    scope.cancel()
    assert not ears._ears
    nursery.cancel_scope.cancel()


async def test_a_socket_that_cannot_be_listened_to(ears: Ears, nursery: trio.Nursery) -> None:
    with pairs(1) as [(ours, _)]:
        ears._epoll.register(ours)
        with pytest.raises(FileExistsError):
            await Listener(ears, ours, []).run()
    assert not ears._ears
    nursery.cancel_scope.cancel()


async def test_a_connection_that_was_reset(ears: Ears) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        theirs = socket.create_connection(server.getsockname())
        ours, _ = server.accept()
    with ours:
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        theirs.close()
        with pytest.raises(ConnectionResetError):
            await Listener(ears, ours, []).run()


async def test_who_is_cancelled_listens_no_more(ears: Ears) -> None:
    log: list[str] = []
    with pairs(1) as [(ours, theirs)]:
        with trio.move_on_after(0.01):
            await Listener(ears, ours, log).run()
        theirs.send(b"late")
        await settle()
        assert log == []
        assert ours.recv(10) == b"late"


async def test_cancelled_by_what_it_hears(ears: Ears) -> None:
    """As a peer is, whose answer finds nobody: it must not be woken twice."""
    with pairs(1) as [(ours, theirs)]:
        theirs.send(b"x")
        with trio.CancelScope() as scope:

            def hear(data: bytes) -> bool:
                scope.cancel()
                return False

            await ears.listen(ours, hear, lambda: None)
        assert scope.cancelled_caught
        await settle()


async def test_others_have_their_turn(ears: Ears, nursery: trio.Nursery, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many at once do not hold up the rest for longer than one of them takes."""
    monkeypatch.setattr(ears_module, "_TURN", 0.0)
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    def hear(data: bytes) -> bool:
        heard.append(turns)
        time.sleep(0.0001)
        return True

    heard: list[int] = []
    with pairs(20) as made:
        for ours, theirs in made:
            nursery.start_soon(ears.listen, ours, hear, lambda: None)
            theirs.send(b"x")
        nursery.start_soon(count)
        with trio.fail_after(20):
            while len(heard) < 20:
                await trio.lowlevel.checkpoint()
        assert len(set(heard)) > 5  # the other task counts at least every second time
        nursery.cancel_scope.cancel()


async def test_nothing_is_left(open_fds: Callable[[], int]) -> None:
    before = open_fds()
    with closing(Ears()) as ears, pairs(5) as made:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ears.run)
            for ours, _ in made:
                nursery.start_soon(Listener(ears, ours, []).run)
            await settle()
            nursery.cancel_scope.cancel()
        assert not ears._ears
    assert open_fds() == before
