"""Matrix users in the one form in which they are compared, and patterns that they match.

    @alice:example.org      that user
    *:example.org           every user of that server, and of no other

Everything is compared letter by letter: no case is folded, no dot left out, no letter taken for one that looks like
it. So what could be read as somebody else is refused where it is written down, and never matches where it comes in.
Grammar: Matrix specification, appendices, "User Identifiers" and "Server Name"; of the server's name only the form
in small letters, which is the one that servers have.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

import attrs

from armorclaw.structure import FaultError

LONGEST = 255
"""Characters of a whole user id."""

# graphic ASCII but the colon: also of accounts older than the grammar
_LOCAL = re.compile(r"[!-9;-~]+")
_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_SERVER = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[0-9a-f:.]{{2,45}}\])(?::[1-9][0-9]{{0,4}})?")
_EXAMPLE = 'write "@name:server", or "*:server" for everybody there'


@attrs.frozen
class UserPattern:
    """One entry of a list of people. `local` is None for every user of the server."""

    local: str | None
    server: str

    @classmethod
    def parse(cls, text: str) -> UserPattern:
        """Raises FaultError for what is neither, and for what looks like one and is not."""
        if not text.isascii():
            odd = sorted({char for char in text if not char.isascii()})
            shown = ", ".join(f"{char!r} (U+{ord(char):04X})" for char in odd[:3])
            raise FaultError(
                f"{text!r} has {shown}, which no Matrix id has",
                "write it with plain letters; a server with others has a name that begins with xn--",
            )
        local, colon, server = text.partition(":")
        if not colon or not (local == "*" or (local.startswith("@") and _LOCAL.fullmatch(local[1:]))):
            raise FaultError(f"{text!r} is not a Matrix user", _EXAMPLE)
        if len(text) > LONGEST:
            raise FaultError(f"a Matrix user has at most {LONGEST} characters", _EXAMPLE)
        if server != server.lower():
            fix = f'write "{local}:{server.lower().rstrip(".")}"'
            raise FaultError(f"{text!r}: the server's name has capitals", fix)
        if server.endswith("."):
            raise FaultError(f"{text!r}: the server's name ends in a dot", f'write "{local}:{server.rstrip(".")}"')
        if not _is_server(server):
            raise FaultError(f"{text!r}: {server!r} is not the name of a server", _EXAMPLE)
        return cls(None if local == "*" else local[1:], server)

    def matches(self, user_id: str) -> bool:
        """Whether that is one of these users. What is not a user id in its usual form is nobody's."""
        parts = split_user_id(user_id)
        return parts is not None and parts[1] == self.server and self.local in (None, parts[0])

    def __str__(self) -> str:
        return f"*:{self.server}" if self.local is None else f"@{self.local}:{self.server}"


class Users:
    """Some patterns together; asked of everything that is said, so it takes as long for many as for one."""

    def __init__(self, patterns: Iterable[str]) -> None:
        """Raises FaultError."""
        self._patterns = tuple(UserPattern.parse(each) for each in patterns)
        self._exact = frozenset(str(each) for each in self._patterns if each.local is not None)
        self._servers = frozenset(each.server for each in self._patterns if each.local is None)

    def __bool__(self) -> bool:
        return bool(self._patterns)

    def __contains__(self, user_id: str) -> bool:
        if user_id in self._exact:
            return True
        parts = split_user_id(user_id) if self._servers else None
        return parts is not None and parts[1] in self._servers

    def example(self) -> str | None:
        """One of them; of a pattern for a whole server, somebody there. None if there is none."""
        first = next(iter(self._patterns), None)
        return None if first is None else str(first) if first.local is not None else f"@anybody:{first.server}"


def split_user_id(text: str) -> tuple[str, str] | None:
    """Name and server of a user id; None for what is none in its usual form."""
    if len(text) > LONGEST or not text.startswith("@"):
        return None
    local, _, server = text[1:].partition(":")
    return (local, server) if _LOCAL.fullmatch(local) and _is_server(server) else None


def _is_server(name: str) -> bool:
    match = _SERVER.fullmatch(name)
    if match is None or len(name) > LONGEST:
        return False
    port = name.rpartition(":")[2] if not name.endswith("]") and ":" in name else "1"
    return int(port) <= 65535
