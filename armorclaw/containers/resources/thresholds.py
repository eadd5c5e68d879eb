"""When what an agent uses is worth an event: at a share of its limit, once, and again only after it had eased."""

from __future__ import annotations

import attrs

HIGH = 0.9
"""Share of a limit from which on it is told."""

EASED = 0.8
"""Share below which it must be, for EASED_FOR seconds, before that is told and it can be told again."""

EASED_FOR = 30.0


@attrs.frozen
class Crossing:
    """`what` (memory, pids, tmp, data) came to be "high", or "normal" again, at `used` of `limit`."""

    what: str
    level: str
    used: int
    limit: int


@attrs.define
class Threshold:
    """One limit of one container. At most two crossings in EASED_FOR seconds come of it."""

    what: str
    is_high: bool = False
    _eased_since: float | None = None

    def take(self, used: int | None, limit: int | None, now: float, *, high: float = HIGH) -> Crossing | None:
        """The crossing that this reading is, if it is one; what is not known changes nothing."""
        if used is None or not limit:
            return None
        share = used / limit
        if not self.is_high:
            if share < high:
                return None
            self.is_high, self._eased_since = True, None
            return Crossing(self.what, "high", used, limit)
        if share >= high * EASED / HIGH:
            self._eased_since = None
            return None
        if self._eased_since is None:
            self._eased_since = now
        if now - self._eased_since < EASED_FOR:
            return None
        self.is_high = False
        return Crossing(self.what, "normal", used, limit)
