"""What a failed request is to whoever waits for it."""

from __future__ import annotations

import pytest
from mautrix.errors import MatrixConnectionError, MatrixRequestError, make_request_error

from armorclaw.delivery.transport import Delayed, Refused
from armorclaw.errors import ArmorclawError
from armorclaw.matrix.failures import as_attempt, as_error, as_errors


def _slow_down(seconds: float | None) -> MatrixRequestError:
    error = make_request_error(429, "slow down", "M_LIMIT_EXCEEDED", "slow down")
    error.retry_after = seconds  # type: ignore[attr-defined]
    return error


def test_what_may_pass_is_unavailable_for_as_long_as_we_are_told() -> None:
    for error, data in (
        (_slow_down(7.5), {"retry_after": 7.5}),
        (_slow_down(None), {}),
        (MatrixConnectionError("cannot connect"), {}),
    ):
        made = as_error(error, "members of !a:x", refused="matrix_login_failed", hint="no use")
        assert (made.name, made.what, made.data) == ("unavailable", "members of !a:x", data)
        assert made.why
        assert made.hint != "no use"


def test_what_is_refused_says_what_to_do() -> None:
    error = make_request_error(403, "no", "M_FORBIDDEN", "no")
    made = as_error(error, "a login", refused="matrix_login_failed", hint="ask")
    assert (made.name, made.why, made.hint, made.data) == ("matrix_login_failed", "M_FORBIDDEN: no", "ask", {})
    with pytest.raises(ArmorclawError) as caught, as_errors("members of !a:x"):
        raise error
    assert (caught.value.name, caught.value.__cause__) == ("matrix_refused", error)


def test_who_tries_again_learns_whether_that_is_of_use() -> None:
    with pytest.raises(Delayed) as delayed, as_attempt():
        raise _slow_down(7.5)
    assert (delayed.value.seconds, delayed.value.sure) == (7.5, True)
    with pytest.raises(Refused), as_attempt():
        raise make_request_error(403, "no", "M_FORBIDDEN", "no")
    with pytest.raises(KeyError), as_attempt():
        raise KeyError("not the homeserver's")
