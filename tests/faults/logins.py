"""Who is logged in to the town, and for how long: devices, access tokens that end, refresh tokens that are used once.

As Synapse does it: a refresh token may be used again until what it brought has been used, and then not any more; one
that is used twice takes back what it brought first.
"""

from __future__ import annotations

from typing import Any

import attrs

from armorclaw.clock import Clock
from tests.matrix.fake_homeserver import Reply, refusal


@attrs.define
class _Access:
    user: str
    device: str
    ends: float = float("inf")
    used: bool = False


@attrs.define
class _Refresh:
    user: str
    device: str
    brought: tuple[str, str] | None = None  # the tokens that came of it


class Logins:
    """`passwords` by user. `lasts` is how long access tokens of those who can refresh them are good, in seconds, None
    for ever; then there are no refresh tokens."""

    def __init__(self, clock: Clock, passwords: dict[str, str]) -> None:
        self.passwords = passwords
        self.lasts: float | None = None
        self._clock = clock
        self._made = 0
        self._access: dict[str, _Access] = {}
        self._refresh: dict[str, _Refresh] = {}

    @property
    def devices(self) -> set[tuple[str, str]]:
        """Users and devices that are logged in."""
        return {(each.user, each.device) for each in self._access.values()}

    def whose(self, headers: dict[str, str]) -> tuple[str, str] | Reply:
        """The user and the device of a request, or the refusal."""
        token = headers.get("authorization", "").removeprefix("Bearer ")
        found = self._access.get(token)
        if found is None:
            return refusal(401, "M_UNKNOWN_TOKEN", soft_logout=False)
        if found.ends <= self._clock.monotonic():
            return refusal(401, "M_UNKNOWN_TOKEN", soft_logout=True)
        found.used = True
        return found.user, found.device

    def log_in(self, body: dict[str, Any]) -> Reply:
        """POST /login"""
        name = body["identifier"]["user"].removeprefix("@").partition(":")[0]
        user = next((each for each in self.passwords if each[1:].partition(":")[0] == name), "")
        if body.get("password") is None or body.get("password") != self.passwords.get(user):
            return refusal(403, "M_FORBIDDEN")
        device = body.get("device_id") or f"DEVICE{len(self._access)}"
        tokens = self._tokens(user, device, refreshed=body.get("refresh_token") is True)
        return Reply({"user_id": user, "device_id": device, **tokens})

    def refresh(self, body: dict[str, Any]) -> Reply:
        """POST /refresh"""
        found = self._refresh.get(body["refresh_token"])
        if found is None:
            return refusal(401, "M_UNKNOWN_TOKEN")
        if found.brought is not None:
            access, refresh = found.brought
            was = self._access.get(access)
            if (was is not None and was.used) or self._refresh[refresh].brought is not None:
                return refusal(403, "M_FORBIDDEN")
            self._access.pop(access, None)
            del self._refresh[refresh]
        tokens = self._tokens(found.user, found.device, refreshed=True)
        found.brought = tokens["access_token"], tokens["refresh_token"]
        return Reply(tokens)

    def expire(self) -> None:
        """Every access token has ended, as if its time were over."""
        for each in self._access.values():
            each.ends = self._clock.monotonic()

    def forget_refresh_tokens(self) -> None:
        """They are not good any more; access tokens stay."""
        self._refresh.clear()

    def remove(self, device: str) -> None:
        """A device is deleted, and with it what was let in by it."""
        self._access = {token: each for token, each in self._access.items() if each.device != device}
        self._refresh = {token: each for token, each in self._refresh.items() if each.device != device}

    def clear(self) -> None:
        """All devices are."""
        self._access.clear()
        self._refresh.clear()

    def _tokens(self, user: str, device: str, *, refreshed: bool) -> dict[str, Any]:
        self._made += 1
        access, refresh = f"token-{device}-{self._made}", f"refresh-{device}-{self._made}"
        if not refreshed or self.lasts is None:
            self._access[access] = _Access(user, device)
            return {"access_token": access}
        self._access[access] = _Access(user, device, self._clock.monotonic() + self.lasts)
        self._refresh[refresh] = _Refresh(user, device)
        return {"access_token": access, "refresh_token": refresh, "expires_in_ms": int(self.lasts * 1000)}
