from __future__ import annotations

from typing import Any

import trio
import trio.testing

from armorclaw.rpc.quiet import KINDS_LIMIT, QUIET_SECONDS, Quiet


async def test_the_first_then_one_a_second_with_a_count(autojump_clock: trio.testing.MockClock) -> None:
    said: list[tuple[str, dict[str, Any]]] = []

    def say(event: str, **fields: Any) -> None:
        said.append((event, fields))

    quiet = Quiet()
    assert [quiet(say, "refused", uid=n) for n in range(5)] == [True, False, False, False, False]
    assert quiet(say, "another thing")
    assert quiet(say, "refused", kind="of another kind")
    await trio.sleep(QUIET_SECONDS)
    assert quiet(say, "refused", uid=5)
    await trio.sleep(QUIET_SECONDS)
    assert quiet(say, "refused", uid=6)
    assert [fields for event, fields in said if event == "refused"] == [
        {"uid": 0},
        {},
        {"uid": 5, "left_out": 4},
        {"uid": 6},
    ]


async def test_kinds_without_end_take_no_memory_and_no_lines() -> None:
    quiet = Quiet()
    said = [quiet(lambda event: None, "failed", kind=str(n)) for n in range(10 * KINDS_LIMIT)]
    assert sum(said) == KINDS_LIMIT + 1
    assert len(quiet._next) == KINDS_LIMIT + 1
