"""The one table of errors."""

import pytest

from armorclaw.errors import ERRORS, TEXT_LIMIT, ArmorclawError, one_error, trace


def test_codes_are_unique() -> None:
    codes = [kind.code for kind in ERRORS.values()]
    assert len(set(codes)) == len(codes)


def test_exit_statuses_are_those_of_the_table() -> None:
    assert {kind.exit_status for kind in ERRORS.values()} <= {1, 2, 3, 4, 5, 6, 7, 8, 11, 14, 18, 69, 70, 75, 130}


def test_what_a_person_reads() -> None:
    error = ArmorclawError(
        "image_missing", "no image python:3", why="the engine has none", hint="docker pull python:3"
    )
    assert error.lines() == ["no image python:3", "why: the engine has none", "hint: docker pull python:3"]
    assert ArmorclawError("not_found", "no agent a").lines() == ["no agent a"]


def test_what_a_client_reads() -> None:
    error = ArmorclawError("queue_full", "the outbox of a is full", limit=10)
    payload = error.payload()
    assert payload["code"] == -32030
    assert payload["message"] == "the outbox of a is full"
    assert payload["data"] == {"name": "queue_full", "hint": "try again in a moment", "retryable": True, "limit": 10}


def test_no_client_reads_a_folder_or_a_long_text() -> None:
    error = ArmorclawError(
        "storage_failed", "/var/lib/a b/armorclaw.db", why="/x is full", hint="see '/etc/a.d/b.toml'"
    )
    assert error.payload()["message"] == "…/a b/armorclaw.db: /x is full"
    assert error.payload()["data"]["hint"] == "see '…/b.toml'"
    assert error.lines() == ["/var/lib/a b/armorclaw.db", "why: /x is full", "hint: see '/etc/a.d/b.toml'"]
    for harmless in ("and/or", "https://h/a/b", "events/methods of a/b", "!a/b:x", "1/2/3"):
        assert ArmorclawError("conflict", harmless).payload()["message"] == harmless
    assert len(ArmorclawError("conflict", "x" * 5000).payload()["message"]) == TEXT_LIMIT


def test_no_hint_sends_people_to_files_that_are_not_installed() -> None:
    sent = {name for name, kind in ERRORS.items() if "docs/" in kind.hint}
    assert sent <= {"invalid_request"}  # whoever writes envelopes writes a client


def test_an_unknown_name_is_a_slip_of_ours() -> None:
    with pytest.raises(KeyError):
        ArmorclawError("no_such_error", "x")


def test_a_trace_shows_no_values() -> None:
    canary = "sk-" + "1" * 20
    try:
        len(5 if canary else "")  # type: ignore[arg-type]
    except TypeError as error:
        text = trace(error)
    assert "test_errors.py" in text
    assert canary not in text


def test_a_single_error_leaves_its_groups() -> None:
    with pytest.raises(KeyError), one_error():
        raise ExceptionGroup("outer", [ExceptionGroup("inner", [KeyError("x")])])
    with pytest.raises(ExceptionGroup), one_error():
        raise ExceptionGroup("two", [KeyError("x"), ValueError("y")])
