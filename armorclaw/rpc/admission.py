"""Whether a caller may go on: what listeners and peers ask. The answers come from guard/limits.py."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Protocol

import attrs

if TYPE_CHECKING:
    from armorclaw.errors import ArmorclawError
    from armorclaw.rpc.registry import Method


@attrs.frozen
class Rate:
    """So many a second in the long run, and as many as `burst` at once after a rest."""

    per_second: float = attrs.field(validator=attrs.validators.gt(0))
    burst: float = attrs.field(validator=attrs.validators.ge(1))


class Allowance(Protocol):
    """What one connection may still do."""

    def admit(self, method: Method | None) -> ArmorclawError | None:
        """Count a request or notification, before its params are read; None: go on.

        `method` is None for one that the caller cannot call, for pieces of streams, and for what is no call at all;
        of the latter two none is refused, whatever is answered here.
        """

    def pause(self, size: int) -> float:
        """Count bytes that were read; the seconds to read nothing more from this connection, mostly 0."""


class Admission(Protocol):
    """What one listener asks."""

    def pause(self) -> float:
        """Count a connection that is about to be accepted; the seconds to wait before that, mostly 0."""

    def enter(self, uid: int) -> AbstractContextManager[Allowance]:
        """The allowance of a connection that `uid` made, for as long as it is open."""
