from __future__ import annotations

from armorclaw.supervision.failures import (
    MAX_TEXT,
    ChildStartFailed,
    End,
    RestartLimitExceeded,
    in_words,
    root_of,
)


def test_an_error_in_words() -> None:
    assert in_words(ValueError("no such thing\nsecond line")) == "ValueError: no such thing"
    assert in_words(ValueError()) == "ValueError"
    assert len(in_words(ValueError("x" * 1000))) == MAX_TEXT


def test_a_group_in_words_names_its_leaves() -> None:
    group = ExceptionGroup("outer", [ValueError("a"), ExceptionGroup("inner", [KeyError("b"), OSError("c")])])
    assert in_words(group) == "ValueError: a; KeyError: 'b'; OSError: c"
    many = ExceptionGroup("outer", [ValueError(str(n)) for n in range(9)])
    assert in_words(many) == "ValueError: 0; ValueError: 1; ValueError: 2; 6 more"


def test_the_root_is_below_every_supervisor() -> None:
    crash = ValueError("x")
    crash.__cause__ = OSError("not followed: no supervisor failed here")
    inner = RestartLimitExceeded("inner", "a", (End(1.0, "a", "ValueError: x"),))
    inner.__cause__ = crash
    outer = ChildStartFailed("outer", "inner", "RestartLimitExceeded: …")
    outer.__cause__ = inner
    assert root_of(outer) is outer.root is inner.root is crash
    assert root_of(crash) is crash
    assert str(inner) == "child 'a' of supervisor 'inner' kept ending: ValueError: x"
