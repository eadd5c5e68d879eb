"""Where the rest of the bridge finds the trust of an account, which comes and goes with its login."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from armorclaw.errors import ArmorclawError
from armorclaw.structure import Secret

if TYPE_CHECKING:
    from armorclaw.matrix.trust.trust import Trust


GiveRecoveryKey = Callable[[], Awaitable[Secret | None]]
"""What the operator gave. Raises ArmorclawError when it cannot be read."""


class TrustPort:
    """Of one account. It imports nothing of Matrix, and outlives sessions."""

    def __init__(self, account: str, recovery_key: GiveRecoveryKey) -> None:
        self.recovery_key = recovery_key
        self._account = account
        self._trust: Trust | None = None

    @contextmanager
    def answered_by(self, trust: Trust) -> Iterator[None]:
        """For the length of a block there is somebody to ask. Whoever waits for them then hears that it has ended."""
        self._trust = trust
        try:
            yield
        finally:
            self._trust = None
            trust.verifications.close()  # a session may end before it drives any

    def get(self) -> Trust:
        """Who can be asked now. Raises unavailable."""
        if self._trust is None:
            what = f"Matrix account {self._account!r} does not encrypt at the moment"
            raise ArmorclawError("unavailable", what, hint="armorclaw call matrix.status tells how it stands")
        return self._trust

    @property
    def signed(self) -> bool | None:
        """Whether our device is signed by the account's own identity; None while that is not known."""
        state = self._trust.standing.state if self._trust is not None else "unknown"
        return None if state == "unknown" else state == "signed"

    @property
    def unpublished(self) -> bool:
        """Whether the homeserver has lost the keys of our device: nobody believes what it says, until it has them."""
        return self._trust is not None and self._trust.standing.state == "unpublished"

    @property
    def hint(self) -> str:
        """What would help a device that is not signed."""
        return self._trust.standing.hint if self._trust is not None else ""
