"""What orders are carried out with: the methods of the bridge, as an operator calls them, and what is known of rooms
and people."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol

import attrs

from armorclaw.guard.policy import Place


class Call(Protocol):
    """Raises what the method raises."""

    def __call__(self, method: str, /, **params: Any) -> Awaitable[Any]: ...


class Stream(Protocol):
    """The same for a method whose result comes in pieces."""

    def __call__(self, method: str, /, **params: Any) -> AbstractAsyncContextManager[AsyncIterator[Any]]: ...


@attrs.frozen
class Hands:
    """`offers` tells whether there is a method of that name, `secrets_of` what an agent must not be quoted with."""

    offers: Callable[[str], bool]
    call: Call
    stream: Stream
    secrets_of: Callable[[str], Awaitable[Sequence[str]]]


@attrs.frozen
class Rooms:
    """`standing` is how a room of an account stands, None if the account is gone; `in_room` how it stands for each
    account that hears it. `may_command` tells whether a person may give orders, `is_private` whether a room of an
    account is one of operators alone, as that of alerts."""

    standing: Callable[[str, str], Place | None]
    in_room: Callable[[str], Sequence[Place]]
    may_command: Callable[[str], bool]
    is_private: Callable[[str, str], bool]
