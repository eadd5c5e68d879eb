from __future__ import annotations

from typing import Any

import pytest

from armorclaw.errors import ERRORS, ArmorclawError
from armorclaw.rpc.failure import FIELDS_LIMIT, TEXT_LIMIT, error_from_wire


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


def test_texts_of_others_are_cut_and_hold_nothing_that_does_not_print() -> None:
    long = "a\x1b[2J\n" + "x" * 1_000_000
    data = {"name": "conflict", "hint": long, "deep": {"a": [long]}, "whole": 10**400, long: long, "number": 5}
    error = error_from_wire({"code": -32005, "message": long, "data": data})
    assert (error.name, error.data.pop("number")) == ("conflict", 5)
    (extra,) = error.data.items()
    for text in (str(error), error.hint, *extra):
        assert (len(text), text.isprintable()) == (TEXT_LIMIT, True)
        assert text.startswith("a [2J x")
        assert text.endswith("x…")
    assert len(error_from_wire({"code": long, "message": [long]}).data["code"]) == TEXT_LIMIT
    many = {f"n{n}": n for n in range(1000)}
    assert len(error_from_wire({"code": -1, "message": "m", "data": many}).data) == FIELDS_LIMIT + 1


def test_a_client_takes_whole_what_the_bridge_says() -> None:
    sent = ArmorclawError("config_invalid", "x" * 1000, why="one\ntwo", fields=["a", "b"])
    assert error_from_wire(sent.payload(), cut=False).payload() == sent.payload()
