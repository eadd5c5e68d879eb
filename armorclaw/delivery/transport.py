"""The port through which messages leave: one call, and two ways in which it can fail."""

from __future__ import annotations

from typing import Protocol


class Delayed(Exception):  # noqa: N818 - an answer of the server, told apart from errors
    """Not now: rate limit, server error, no connection. Trying again with the same transaction id is right.

    `seconds` is how long the server told us to wait, None if it did not. `reason` is for people: no bodies, no
    secrets. `sure`: this attempt certainly came to nothing, as the server could not be reached or said so itself.
    """

    def __init__(self, seconds: float | None, reason: str, *, sure: bool = False) -> None:
        self.seconds = seconds
        self.reason = reason
        self.sure = sure
        super().__init__(reason)


class Refused(Exception):  # noqa: N818
    """Never: the server will not take this message, now or later. `reason` as in `Delayed`."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class Transport(Protocol):
    """A session that is logged in."""

    async def put(self, room_id: str, type: str, txn_id: str, content: bytes) -> str:  # noqa: A002
        """Sends one event and returns its event id. Raises `Delayed` or `Refused`.

        The same `txn_id` twice makes one event, even if the answer to the first was lost: Matrix, client-server API,
        "Transaction identifiers". `content` is a JSON object.
        """
        ...
