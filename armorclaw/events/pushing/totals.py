"""What happened to all subscriptions together, since the bridge was started."""

from __future__ import annotations

import attrs


@attrs.define
class Totals:
    """Plain counts, for metrics."""

    given_again: int = 0
    """Events given once more, as nobody had acknowledged them."""
    expired: int = 0
    """Events given and not answered in time."""
    dead: int = 0
    """Events given up."""
    gaps: int = 0
    """Times that a subscriber was told of deleted events that it had not had."""
    slow: int = 0
    """Subscribers that were cut as they took nothing."""
    missed: int = 0
    """Events kept nowhere that found no room with a subscriber."""
