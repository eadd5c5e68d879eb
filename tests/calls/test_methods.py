"""The methods of voice calls are there, and say that calls are not."""

from __future__ import annotations

from typing import Any

import pytest

from armorclaw.calls.methods import register
from armorclaw.errors import ArmorclawError
from armorclaw.rpc.local import call_local
from armorclaw.rpc.registry import Registry, Role

CANDIDATE = {"candidate": "candidate:1 1 udp 1 10.0.0.1 9 typ host", "sdpMid": "0", "sdpMLineIndex": 0}

GOOD: dict[str, list[dict[str, Any]]] = {
    "webrtc.start": [{"room_id": "!a:x"}, {"room_id": "!a:x", "ttl": "30m"}],
    "webrtc.end": [{"session_id": "sess_1"}, {"session_id": "sess_1", "reason": "bye"}],
    "webrtc.ice_candidate": [
        {"session_id": "sess_1", "candidate": CANDIDATE},
        {"session_id": "sess_1", "candidate": {**CANDIDATE, "usernameFragment": None}},
    ],
    "webrtc.list": [{}],
    "webrtc.get_audit_log": [{}, {"limit": 1000, "event_type": "call_created", "session_id": "s", "room_id": "!a:x"}],
}


@pytest.fixture
def registry() -> Registry:
    made = Registry()
    register(made)
    return made


async def refusal(registry: Registry, method: str, params: dict[str, Any], role: Role) -> ArmorclawError:
    with pytest.raises(ArmorclawError) as caught:
        await call_local(registry, method, params, role=role, agent="ada" if role is Role.AGENT else None)
    return caught.value


@pytest.mark.parametrize("method", GOOD)
async def test_not_available(registry: Registry, method: str) -> None:
    for params in GOOD[method]:
        error = await refusal(registry, method, params, Role.OPERATOR)
        assert (error.name, error.kind.retryable) == ("not_available", False)
        assert str(error) == f"{method}: voice calls are not part of this version"


@pytest.mark.parametrize(
    ("field", "method", "params"),
    [
        ("room_id", "webrtc.start", {}),
        ("ttl", "webrtc.start", {"room_id": "!a:x", "ttl": 600}),
        ("session_id", "webrtc.end", {}),
        ("session_id", "webrtc.ice_candidate", {"candidate": CANDIDATE}),
        ("candidate", "webrtc.ice_candidate", {"session_id": "s", "candidate": "x"}),
        ("candidate.candidate", "webrtc.ice_candidate", {"session_id": "s", "candidate": {}}),
        ("limit", "webrtc.get_audit_log", {"limit": 1001}),
        ("limit", "webrtc.get_audit_log", {"limit": 0}),
    ],
)
async def test_wrong_params_are_named_all_the_same(
    registry: Registry, field: str, method: str, params: dict[str, Any]
) -> None:
    error = await refusal(registry, method, params, Role.OPERATOR)
    assert error.name == "invalid_params"
    assert str(error).startswith(f"{field} ")


async def test_roles(registry: Registry) -> None:
    assert registry.names(Role.OPERATOR) == sorted(GOOD)
    assert registry.names(Role.OBSERVER) == ["webrtc.list"]
    for method in GOOD:
        assert (await refusal(registry, method, {}, Role.AGENT)).name == "denied"
