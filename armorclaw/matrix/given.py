"""What the operator gave to log in with."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from armorclaw.errors import ArmorclawError
from armorclaw.structure import Secret

GivenSecret = Callable[[], Secret | None]
"""Raises config_invalid when a file cannot be read."""


@attrs.frozen
class Given:
    """What the operator gave to log in with, fetched when it is needed: after the first login the stored one is
    enough, and the files may be gone."""

    password: GivenSecret
    token: GivenSecret

    def password_at_hand(self) -> Secret | None:
        """None also when its file cannot be read."""
        return at_hand(self.password)

    def token_at_hand(self) -> Secret | None:
        """The token that counts: none where there is a password, which does more."""
        return at_hand(self.token) if self.password_at_hand() is None else None


def at_hand(give: GivenSecret) -> Secret | None:
    """None also when its file cannot be read."""
    try:
        return give()
    except ArmorclawError:
        return None
