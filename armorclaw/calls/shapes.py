"""What the methods of voice calls take."""

from __future__ import annotations

import attrs

from armorclaw.rpc.shape import between


@attrs.frozen
class StartCall:
    """`ttl` is how long the call may last, such as "90s", "10m" or "1h"."""

    room_id: str
    ttl: str = "10m"


@attrs.frozen
class EndCall:
    session_id: str
    reason: str = ""


@attrs.frozen
class Candidate:
    """As a browser's `RTCIceCandidate.toJSON()` has it."""

    candidate: str
    sdpMid: str | None = None  # noqa: N815 - the words of browsers
    sdpMLineIndex: int | None = None  # noqa: N815
    usernameFragment: str | None = None  # noqa: N815


@attrs.frozen
class AddCandidate:
    session_id: str
    candidate: Candidate


@attrs.frozen
class AuditQuery:
    """The newest `limit` entries, of one type of event, call or room if that is given."""

    limit: int = attrs.field(default=100, validator=between(1, 1000))
    event_type: str = ""
    session_id: str = ""
    room_id: str = ""
