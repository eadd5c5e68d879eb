from __future__ import annotations

from typing import Any

import pytest

from armorclaw.errors import ERRORS, ArmorclawError
from armorclaw.rpc.failure import error_from_wire


@pytest.mark.parametrize("name", ERRORS)
def test_every_error_of_ours_survives_the_wire(name: str) -> None:
    sent = ArmorclawError(name, "it failed", why="because", hint="do this", retry_after=5)
    received = error_from_wire(sent.payload())
    assert received.name == name
    assert received.payload() == sent.payload()


@pytest.mark.parametrize(
    "error, name",
    [
        ({"code": -32601, "message": "m"}, "method_not_found"),
        ({"code": -1, "message": "m"}, "remote_failed"),
        ({"code": "x"}, "remote_failed"),
        ({}, "remote_failed"),
        ({"code": -3, "message": None, "data": 5}, "key_not_found"),
        ({"code": 7, "message": "m", "data": {"name": "nonsense", "what": 1, "self": 2, "hint": 3}}, "remote_failed"),
        ({"code": 7, "message": "m", "data": {"name": ["denied"]}}, "remote_failed"),
    ],
)
def test_errors_of_others(error: dict[str, Any], name: str) -> None:
    assert error_from_wire(error).name == name


def test_the_code_of_others_is_kept() -> None:
    assert error_from_wire({"code": -1, "message": "m"}).data == {"code": -1}
