"""What a session is doing right now, for those who ask and for those who wait for it."""

from __future__ import annotations

import enum
from collections import Counter, deque
from collections.abc import Callable
from typing import Literal

import trio

from armorclaw.clock import Clock
from armorclaw.config import Account
from armorclaw.log import get_logger
from armorclaw.matrix.shapes import AccountStanding

log = get_logger(__name__)

FRESH_SECONDS = 60.0
"""A session whose last answered sync is older than this is not called connected; a quiet long poll takes 30."""


FAILURES_SECONDS = 3600.0
"""For how long a message that could not be decrypted is counted."""

KEY_COMES_SECONDS = 60.0
"""Seconds in which the key of a message may come after it without anybody worrying."""

_FAILURES = 1000  # remembered at most

Encryption = Literal["ready", "starting", "lost", "off"]
"""STARTING: keys are being opened. LOST: they are gone, and the account goes on without. OFF: it never had any."""


def login_command(account: Account) -> str:
    """What a person runs to log an account in anew."""
    return f"armorclaw matrix login {account.user} --account {account.name}"


class SessionState(enum.StrEnum):
    """STARTING: logging in. CONNECTED: syncing. WAITING: for a homeserver that is away. LOGGED_OUT: for a login."""

    STARTING = "starting"
    CONNECTED = "connected"
    WAITING = "waiting"
    LOGGED_OUT = "logged_out"


class SessionStatus:
    """One account's state. Each trouble is logged once when it begins and once when it ends."""

    def __init__(self, account: str, homeserver: str, clock: Clock) -> None:
        self.account = account
        self.homeserver = homeserver
        self.state = SessionState.STARTING
        self.reason = ""
        self.user_id: str | None = None
        self.device_id: str | None = None
        self.encryption: Encryption = "off"
        self.undecryptable_waiting = 0
        """Messages that wait for their key; whoever keeps them says how many there are."""
        self.failures = 0
        """Messages that could not be decrypted, since the bridge was started."""
        self.encryption_counts: Counter[str] = Counter()
        """What `Encryption` counts, over all of an account's sessions."""
        self._clock = clock
        self._failed_at: deque[float] = deque(maxlen=_FAILURES)
        self._deaf_since: float | None = None  # the first failure after the last success
        self._synced_at: float | None = None
        self._waiting_since: float | None = None
        self._changed = trio.Event()

    @property
    def connected(self) -> bool:
        """Whether work gets done: the last sync was answered, and not long ago."""
        age = self.sync_age
        return self.state is SessionState.CONNECTED and age is not None and age <= FRESH_SECONDS

    @property
    def sync_age(self) -> float | None:
        """Seconds since a sync was last answered, None if none was."""
        return None if self._synced_at is None else self._clock.monotonic() - self._synced_at

    def starting(self) -> None:
        """A session begins to log in."""
        self._become(SessionState.STARTING, "")

    def logged_in(self, user_id: str, device_id: str) -> None:
        """The homeserver knows us, or did when the login was stored."""
        self.user_id, self.device_id = user_id, device_id

    def synced(self) -> bool:
        """A sync was answered; true if that is news."""
        was_connected = self.connected
        self._synced_at = self._clock.monotonic()
        if was_connected:
            return False
        if self._waiting_since is not None:
            seconds = round(self._clock.monotonic() - self._waiting_since, 1)
            log.info("homeserver answers again", account=self.account, homeserver=self.homeserver, after_s=seconds)
        elif self.state is not SessionState.CONNECTED:  # that would have been an answer that took its time
            log.info("matrix session is up", account=self.account, user=self.user_id)
        self._become(SessionState.CONNECTED, "")
        return True

    def waiting(self, reason: str) -> None:
        """The homeserver cannot be asked for the moment; the session goes on trying."""
        if self._waiting_since is None:
            self._waiting_since = self._clock.monotonic()
            log.warning("waiting for homeserver", account=self.account, homeserver=self.homeserver, why=reason)
        self._become(SessionState.WAITING, reason)

    def logged_out(self, reason: str) -> None:
        """Only a new login helps."""
        log.error("matrix login needed", account=self.account, homeserver=self.homeserver, why=reason)
        self._become(SessionState.LOGGED_OUT, reason)

    def decrypted(self) -> None:
        """A message could be read."""
        self._deaf_since = None

    def undecryptable(self) -> None:
        """A message could not be read; counted once for each, however often it is tried."""
        now = self._clock.monotonic()
        if self._deaf_since is None or not self.decrypt_failures:
            self._deaf_since = now
        self.failures += 1
        self._failed_at.append(now)

    def waiting_for_keys(self, count: int) -> None:
        """So many messages wait for their keys."""
        self.undecryptable_waiting = count

    @property
    def decrypt_failures(self) -> int:
        """Messages of the last hour that could not be read; counted up to 1000."""
        oldest = self._clock.monotonic() - FAILURES_SECONDS
        while self._failed_at and self._failed_at[0] < oldest:
            self._failed_at.popleft()
        return len(self._failed_at)

    @property
    def deaf(self) -> bool:
        """Whether it hears and cannot read: failures in the last hour, since over a minute, and no success since."""
        if self._deaf_since is None or not self.decrypt_failures:
            return False
        return self._clock.monotonic() - self._deaf_since > KEY_COMES_SECONDS

    async def until(self, wanted: Callable[[], bool]) -> None:
        """Return when `wanted()` is true, looking again after each change of state."""
        while not wanted():
            await self._changed.wait()

    def report(self, rooms_missing: list[str], sends_waiting: int = 0) -> AccountStanding:
        """For `status` and `matrix.status`."""
        age = self.sync_age
        return AccountStanding(
            account=self.account,
            homeserver=self.homeserver,
            state=str(self.state),
            connected=self.connected,
            user_id=self.user_id,
            device_id=self.device_id,
            reason=self.reason,
            last_sync_s=None if age is None else round(age, 3),
            rooms_missing=rooms_missing,
            encryption=self.encryption,
            undecryptable_waiting=self.undecryptable_waiting,
            decrypt_failures=self.decrypt_failures,
            sends_waiting=sends_waiting,
            deaf=self.deaf,
        )

    def _become(self, state: SessionState, reason: str) -> None:
        if state is not SessionState.WAITING:
            self._waiting_since = None
        self.state, self.reason = state, reason
        changed, self._changed = self._changed, trio.Event()
        changed.set()
