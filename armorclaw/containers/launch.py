"""What comes of one attempt to start an agent, for those who asked for it."""

from __future__ import annotations

import trio

from armorclaw.containers.generation import GenerationEndedError
from armorclaw.errors import ArmorclawError


class Launch:
    """One attempt: settled when its container runs, or when it is known why it does not.

    An agent has one at any time: that under way, that of the container that runs, or that of the attempt to come.
    """

    def __init__(self) -> None:
        self.taken = False
        """An attempt has begun; it will settle this, and nobody else may."""
        self._settled = trio.Event()
        self._error: Exception | None = None

    @property
    def is_settled(self) -> bool:
        """Whether it has come off or failed."""
        return self._settled.is_set()

    @property
    def came_off(self) -> bool:
        """Whether the container was made to run."""
        return self._settled.is_set() and self._error is None

    def settle(self, error: Exception | None = None) -> None:
        """It came off, or failed with `error`. Only the first time counts."""
        if not self._settled.is_set():
            self._error = error
            self._settled.set()

    async def settled(self) -> None:
        """Until it has come off or failed."""
        await self._settled.wait()

    def check(self) -> None:
        """Raise what it failed with, a new error for each caller; nothing if it came off or is not settled.

        An end of the container that nobody asked for is `start_failed`.
        """
        error = self._error
        if isinstance(error, ArmorclawError):
            raise ArmorclawError(error.name, error.what, why=error.why, hint=error.hint, **error.data) from error
        if isinstance(error, GenerationEndedError):
            raise ArmorclawError("start_failed", "the agent did not start", why=str(error)) from error
        if error is not None:
            raise error
