"""The port through which messages leave: one call to send, one to look for what was sent, and two ways to fail."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol


class Delayed(Exception):  # noqa: N818 - an answer of the server, told apart from errors
    """Not now: rate limit, server error, no connection. Trying again with the same transaction id is right.

    `seconds` is how long the server told us to wait, None if it did not. `reason` is for people: no bodies, no
    secrets. `sure`: this attempt certainly came to nothing, as the server could not be reached or said so itself.
    `whole`: nobody was reached, or something is wrong with the server, and so most likely in every other room, too.
    """

    def __init__(self, seconds: float | None, reason: str, *, sure: bool = False, whole: bool = False) -> None:
        self.seconds = seconds
        self.reason = reason
        self.sure = sure
        self.whole = whole
        super().__init__(reason)


class Refused(Exception):  # noqa: N818
    """Never: the server will not take this message, now or later. `reason` as in `Delayed`.

    `sure`: the server itself said so about this transaction id, so no earlier attempt under it has arrived either.
    """

    def __init__(self, reason: str, *, sure: bool = True) -> None:
        self.reason = reason
        self.sure = sure
        super().__init__(reason)


class Transport(Protocol):
    """A session that is logged in."""

    @property
    def device_id(self) -> str:
        """The device it is logged in as: homeservers know transaction ids by device."""
        ...

    async def put(self, room_id: str, type: str, txn_id: str, content: bytes) -> str:  # noqa: A002
        """Sends one event and returns its event id. Raises `Delayed` or `Refused`.

        The same `txn_id` twice makes one event, even if the answer to the first was lost: Matrix, client-server API,
        "Transaction identifiers". `content` is a JSON object.
        """
        ...

    async def find_echo(
        self,
        room_id: str,
        type: str,  # noqa: A002
        content: bytes,
        since_ms: int,
        claimed: Callable[[str], Awaitable[bool]],
    ) -> str | None:
        """Looks in the room for our own event of this type and content, sent at `since_ms` of our clock or later.

        Returns the id of the oldest that is not `claimed` by another message; None if there certainly is none. Raises
        `Delayed` when that cannot be told now, `Refused` when it never can.
        """
        ...
