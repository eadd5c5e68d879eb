"""Bytes both ways between an agent and a host, until both have said all they had to say."""

from __future__ import annotations

from collections.abc import Callable

import attrs
import trio

CHUNK = 64 * 1024
"""Bytes read at a time; they are written before more is read, so that a slow reader holds the writer, not memory."""

IDLE = 900.0
"""Seconds without a byte either way until a tunnel ends. Answers of language models can be silent for minutes."""

HALF_OPEN = 60.0
"""The same, once one side has said all it had to say."""


@attrs.define
class Passed:
    """Bytes that went through: up is from the agent to the host. `why` it ended, in a few words."""

    up: int = 0
    down: int = 0
    why: str = "ended by the bridge"


class Tunnel:
    """One connection between an agent and a host; whoever runs it closes both streams."""

    def __init__(
        self,
        agent: trio.abc.HalfCloseableStream,
        host: trio.abc.HalfCloseableStream,
        on_bytes: Callable[[int, int], object],
    ) -> None:
        """`on_bytes` is told of each piece that went through: bytes up, bytes down."""
        self.passed = Passed()
        self._agent = agent
        self._host = host
        self._on_bytes = on_bytes
        self._patience = trio.CancelScope()
        self._ended = 0  # directions, of two
        self._is_broken = False

    async def run(self, early: bytes = b"") -> None:
        """Until it has ended; `early` is what the agent has sent already."""
        self._extend()
        with self._patience:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._pass, self._host, self._agent, b"", self._count_down, nursery.cancel_scope)
                await self._pass(self._agent, self._host, early, self._count_up, nursery.cancel_scope)
        if self._patience.cancelled_caught:
            self.passed.why = f"no byte for {self._longest:g} s"

    async def _pass(
        self,
        source: trio.abc.HalfCloseableStream,
        sink: trio.abc.HalfCloseableStream,
        data: bytes | bytearray,
        count: Callable[[int], None],
        both: trio.CancelScope,
    ) -> None:
        try:
            data = data or await source.receive_some(CHUNK)
            while data:
                if not await self._sent(sink, data):
                    break
                count(len(data))
                data = await source.receive_some(CHUNK)
            else:
                await sink.send_eof()
        except trio.BrokenResourceError:  # one of them is gone: the other is to notice
            self._is_broken = True
            both.cancel(reason="one side of the tunnel is gone")
        self._ended += 1
        if self._is_broken:
            self.passed.why = "broken off"
        elif self._ended == 2:
            self.passed.why = "closed"
        self._extend()

    async def _sent(self, sink: trio.abc.HalfCloseableStream, data: bytes | bytearray) -> bool:
        """False if it takes no more; what it said before, such as why, may still be on its way the other way."""
        try:
            await sink.send_all(data)
        except trio.BrokenResourceError:
            self._is_broken = True
            return False
        return True

    def _count_up(self, size: int) -> None:
        self.passed.up += size
        self._on_bytes(size, 0)
        self._extend()

    def _count_down(self, size: int) -> None:
        self.passed.down += size
        self._on_bytes(0, size)
        self._extend()

    @property
    def _longest(self) -> float:
        return HALF_OPEN if self._ended else IDLE

    def _extend(self) -> None:
        self._patience.deadline = trio.current_time() + self._longest
