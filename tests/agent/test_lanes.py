"""Order within a key, turns across keys, nothing lost: against a plain model."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from armorclaw.agent.lanes import Lanes

PUT = st.tuples(st.just("put"), st.sampled_from("abc"))
STEPS = st.lists(st.one_of(PUT, st.tuples(st.sampled_from(["take", "done", "clear"]), st.just(""))), max_size=60)


@given(STEPS)
def test_against_a_model(steps: list[tuple[str, str]]) -> None:
    lanes: Lanes[tuple[str, int]] = Lanes()
    waiting: dict[str, list[tuple[str, int]]] = {"a": [], "b": [], "c": []}
    out: list[str] = []
    for number, (step, key) in enumerate(steps):
        if step == "put":
            lanes.put(key, (key, number))
            waiting[key].append((key, number))
        elif step == "take":
            item = lanes.take()
            free = [key for key, items in waiting.items() if items and key not in out]
            if item is None:
                assert not free
            else:
                assert item == waiting[item[0]].pop(0)
                assert item[0] not in out
                out.append(item[0])
        elif step == "done" and out:
            lanes.done(out.pop(0))
        elif step == "clear":
            assert sorted(lanes.clear()) == sorted(item for items in waiting.values() for item in items)
            waiting = {"a": [], "b": [], "c": []}
        assert lanes.out == len(out)


def test_a_busy_key_does_not_hold_up_a_quiet_one() -> None:
    lanes: Lanes[str] = Lanes()
    for n in range(5):
        lanes.put("busy", f"busy{n}")
    lanes.put("quiet", "quiet0")
    order = []
    for _ in range(3):
        item = lanes.take()
        assert item is not None
        order.append(item)
        lanes.done(item[:-1])
    assert order == ["busy0", "quiet0", "busy1"]
