"""Voice calls on the wire. The methods are there so that a client reads why they do nothing."""

from __future__ import annotations

from armorclaw.calls.shapes import AddCandidate, AuditQuery, EndCall, StartCall
from armorclaw.errors import ArmorclawError
from armorclaw.rpc.call import Call
from armorclaw.rpc.registry import NoParams, Registry, Role


def register(registry: Registry) -> None:
    """Adds the methods of calls; each answers `not_available`."""
    operator = {Role.OPERATOR}
    table: list[tuple[str, type, set[Role], str]] = [
        ("webrtc.start", StartCall, operator, "Start a voice call."),
        ("webrtc.end", EndCall, operator, "End a voice call."),
        ("webrtc.ice_candidate", AddCandidate, operator, "Add an ICE candidate of the caller."),
        ("webrtc.list", NoParams, operator | {Role.OBSERVER}, "The voice calls there are."),
        ("webrtc.get_audit_log", AuditQuery, operator, "What happened in voice calls."),
    ]
    for name, params, roles, doc in table:
        text = f"{doc} Not available yet: answers the error `not_available`."
        registry.method(name, params=params, roles=roles, doc=text)(_not_available)


def _not_available(call: Call, params: object) -> None:
    raise ArmorclawError("not_available", call.method, why="voice calls are not part of this version")
