"""What a homeserver lets us in with, read without trusting it. Pure: no I/O, no clock.

Specification: Client-Server API, "Login", "Refreshing access tokens".
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import attrs

_MAX_LASTS = 10 * 365 * 86_400.0  # seconds; what lasts longer does not end


@attrs.frozen
class Tokens:
    """`refresh_token` is None if there is no new one; `lasts` is in seconds, None if the access token has no end."""

    access_token: str = attrs.field(repr=False)
    refresh_token: str | None = attrs.field(default=None, repr=False)
    lasts: float | None = None

    def expires_ms(self, now_ms: int) -> int | None:
        """When the access token ends, in milliseconds since the epoch."""
        return None if self.lasts is None else now_ms + int(self.lasts * 1000)


def read_tokens(answer: Mapping[str, Any]) -> Tokens | None:
    """From the answer to /login or /refresh; None if it has no access token that could be sent in a header."""
    access, refresh, lasts = (answer.get(name) for name in ("access_token", "refresh_token", "expires_in_ms"))
    if not isinstance(access, str) or not is_token(access):
        return None
    if type(lasts) is not int or not 0 < lasts <= _MAX_LASTS * 1000:
        lasts = None
    return Tokens(
        access,
        refresh if isinstance(refresh, str) and refresh else None,
        None if lasts is None else lasts / 1000,
    )


def is_token(text: str) -> bool:
    """Whether it has only characters that an Authorization header can carry."""
    return bool(text) and text.isascii() and text.isprintable() and " " not in text
