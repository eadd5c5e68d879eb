"""An answer that people watch as it is written: few edits, the whole text in the end, and once, whatever happens."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armorclaw.agent import AgentError, Answer, AsyncAnswer
from armorclaw.agent import answers as answers_module
from armorclaw.agent.answers import GATHER, MORE, PACE, Draft
from armorclaw.agent.events import Delivery
from armorclaw.agent.saying import message_params

from .conftest import ROOM, AnyMessage, FakeBridge, Kit, Refuse


class TheRoom:
    """What people see, with the bridge's idea of idempotency keys. `refuses` says what becomes of interim edits."""

    def __init__(self) -> None:
        self.messages: dict[str, str] = {}  # by delivery
        self.seen: list[str] = []
        self.keys: dict[str, str] = {}
        self.edits = 0

    def deliver(self, method: str, params: dict[str, Any]) -> Delivery:
        key = params.get("idempotency_key")
        if key in self.keys:
            return Delivery("sent", None, self.keys[key], ROOM)
        delivery = f"d{len(self.messages) + self.edits}"
        if key is not None:
            self.keys[key] = delivery
        if method == "matrix.send":
            self.messages[delivery] = params["message"]
        else:
            self.edits += 1
            self.messages[params["delivery_id"]] = params["message"]
        self.seen.append(params["message"])
        return Delivery("sent", None, delivery, ROOM)


class Died(Exception):  # noqa: N818
    """The agent, in the middle of something."""


def give(draft: Draft, room: TheRoom, words: list[tuple[str, float]], *, until: int = 10**6, lost: int = 0) -> float:
    """Write all of it, and bring it to its end: as `Answer` does. Dies instead of the call number `until`; every
    `lost`-th interim edit does not get through. Returns how long it took."""
    calls = 0

    def make(call: Any) -> Delivery | None:
        nonlocal calls
        if calls == until:
            raise Died
        calls += 1
        if call[1].get("interim") and lost and calls % lost == 0:
            return None
        return room.deliver(*call)

    now = 0.0
    for text, pause in words:
        now += pause
        call = draft.add(text, now)
        if call is not None:
            delivery = make(call)
            draft.delivery = draft.delivery or delivery
    while (call := draft.last()) is not None:
        delivery = make(call)
        draft.delivery = draft.delivery or delivery
    return now


def new_draft(*, again: bool = False, pace: float = PACE) -> Draft:
    return Draft(message_params(ROOM, key="$1:1"), pace=pace, again=again)


WORDS = st.lists(st.tuples(st.text(max_size=8), st.floats(0.0, 2.0)), max_size=30)


@given(WORDS, st.integers(0, 3))
def test_in_the_end_all_of_it_is_there_and_on_the_way_there_were_few_edits(
    words: list[tuple[str, float]], lost: int
) -> None:
    room = TheRoom()
    took = give(new_draft(), room, words, lost=lost)
    text = "".join(text for text, _ in words)
    assert list(room.messages.values()) == ([text] if text.strip() else [])
    assert room.edits <= took / PACE + 1
    for seen in room.seen[:-1]:
        assert seen.endswith(MORE)
        assert text.startswith(seen[: -len(MORE)])


@given(WORDS, st.integers(0, 6), WORDS, st.integers(0, 6))
def test_an_answer_that_is_given_once_more_is_one_message_with_one_of_the_texts(
    words: list[tuple[str, float]], first: int, others: list[tuple[str, float]], second: int
) -> None:
    room, texts = TheRoom(), []
    for again, (told, until) in enumerate([(words, first), (others, second), (others, 10**6)]):
        texts.append("".join(text for text, _ in told))
        try:
            give(new_draft(again=again > 0), room, told, until=until)
        except Died:
            continue
        if not again:
            assert list(room.messages.values()) == [text for text in texts if text.strip()]
    if not texts[-1].strip() and room.messages:
        return  # it has nothing to say any more; what was shown stays
    assert len(room.messages) <= 1
    for shown in room.messages.values():
        assert shown in texts


def test_what_comes_at_once_is_one_message_without_an_edit() -> None:
    room = TheRoom()
    give(new_draft(), room, [("all ", 0.0), ("of ", GATHER / 2), ("it", GATHER / 4)])
    assert room.seen == ["all of it"]


def test_when_what_is_shown() -> None:
    room, draft = TheRoom(), new_draft()
    words = [("one ", 0.0), ("two ", GATHER), ("three ", PACE / 2), ("four ", PACE / 2), ("five", PACE / 4)]
    give(draft, room, words)
    assert room.seen == [f"one two{MORE}", f"one two three four{MORE}", "one two three four five"]


def test_the_pace_is_a_second_at_least() -> None:
    for asked, edits in ((0.0, 10), (5.0, 2)):
        room = TheRoom()
        give(new_draft(pace=asked), room, [("word ", 0.25)] * 44)
        assert room.edits - 1 == edits


def test_nothing_but_space_is_nothing() -> None:
    room = TheRoom()
    give(new_draft(), room, [(" \n", 1.0)] * 5)
    assert room.seen == []


# with the drivers


@asynccontextmanager
async def writing(answer: Answer | AsyncAnswer) -> AsyncIterator[Any]:
    if isinstance(answer, Answer):
        with answer:
            yield answer
    else:
        async with answer:
            yield answer


@pytest.fixture
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers_module, "GATHER", 0.0)
    monkeypatch.setattr(answers_module, "PACE", 0.0)


def sent(bridge: FakeBridge) -> list[tuple[str, Any]]:
    return [(name, params) for name, params in bridge.calls if name in ("matrix.send", "matrix.edit")]


@pytest.mark.usefixtures("_at_once")
def test_a_streamed_answer(kit: Kit, bridge: FakeBridge) -> None:
    answered: list[Any] = []
    bridge.script["matrix.send"] = lambda params: {"delivery_id": "d_1", "room_id": ROOM, "status": "queued"}

    async def steps(msg: AnyMessage) -> None:
        async with writing(msg.stream(pace=0.0)) as answer:
            for word in ("one ", "*two* ", "three"):
                await kit.done(answer.write(word))
        answered.extend([answer.text, answer.delivery.delivery_id])

    kit.on_message(steps)
    kit.start()
    bridge.wait_acked(bridge.say("x"))
    assert answered == ["one *two* three", "d_1"]
    text = {"room_id": ROOM, "msgtype": "m.text", "format": "markdown"}
    edit = {**text, "delivery_id": "d_1"}
    interim = {**edit, "interim": True, "wait_ms": 0}
    assert sent(bridge) == [
        ("matrix.send", {**text, "message": f"one{MORE}", "reply_to": "$1", "idempotency_key": "$1:1", "wait_ms": 0}),
        ("matrix.edit", {**interim, "message": f"one *two*{MORE}"}),
        ("matrix.edit", {**interim, "message": f"one *two* three{MORE}"}),
        ("matrix.edit", {**edit, "message": "one *two* three", "idempotency_key": "$1:1:last"}),
    ]
    assert bridge.of("matrix.typing") == [
        {"room_id": ROOM, "timeout_ms": 120_000},
        {"room_id": ROOM, "typing": False},
    ]


@pytest.mark.usefixtures("_at_once")
def test_interim_edits_may_fail_and_the_last_may_not(kit: Kit, bridge: FakeBridge) -> None:
    errors: list[str] = []
    bridge.script["matrix.send"] = lambda params: {"delivery_id": "d_1", "room_id": ROOM, "status": "queued"}

    def edit(params: Any) -> Any:
        raise Refuse(-32002, "unavailable")

    bridge.script["matrix.edit"] = edit

    async def steps(msg: AnyMessage) -> None:
        try:
            async with writing(msg.room.stream(markdown=False, pace=0.0)) as answer:
                for word in ("one ", "two ", "three"):
                    await kit.done(answer.write(word))
        except AgentError as error:
            errors.append(error.name)

    kit.on_message(steps)
    kit.start()
    bridge.wait_acked(bridge.say("x"))
    assert errors == ["unavailable"]
    assert [params.get("interim") for params in bridge.of("matrix.edit")] == [True, True, None]
    assert "format" not in bridge.of("matrix.send")[0]


@pytest.mark.usefixtures("_at_once")
def test_a_handler_that_fails_shows_what_there_was_and_the_next_run_ends_it(kit: Kit, bridge: FakeBridge) -> None:
    bridge.script["matrix.send"] = lambda params: {"delivery_id": "d_1", "room_id": ROOM, "status": "queued"}

    async def steps(msg: AnyMessage) -> None:
        async with writing(msg.stream(pace=0.0)) as answer:
            await kit.done(answer.write("one "))
            if not msg.redelivered:
                raise LookupError
            await kit.done(answer.write("two"))

    kit.on_message(steps)
    kit.start()
    seq = bridge.say("x")
    bridge.wait_for("events.ack")
    bridge.push_again(seq)
    bridge.wait_acked(seq)
    told = [(name, params["message"], params.get("interim")) for name, params in sent(bridge)]
    assert told == [
        ("matrix.send", f"one{MORE}", None),
        ("matrix.edit", f"one{MORE}", True),
        ("matrix.send", f"one{MORE}", None),  # known by its key
        ("matrix.edit", "one two", None),
    ]


def test_nothing_written_is_no_message(kit: Kit, bridge: FakeBridge) -> None:
    async def steps(msg: AnyMessage) -> None:
        async with writing(msg.stream()):
            pass

    kit.on_message(steps)
    kit.start()
    bridge.wait_acked(bridge.say("x"))
    assert sent(bridge) == []


@pytest.mark.usefixtures("_at_once")
def test_a_first_message_that_is_refused_is_an_error_where_it_is_written(kit: Kit, bridge: FakeBridge) -> None:
    errors: list[str] = []

    def refuse(params: Any) -> Any:
        raise Refuse(-32010, "room_denied")

    bridge.script["matrix.send"] = refuse

    async def steps(msg: AnyMessage) -> None:
        try:
            async with writing(msg.stream(pace=0.0)) as answer:
                await kit.done(answer.write("one "))
                errors.append("not reached")
        except AgentError as error:
            errors.append(error.name)

    kit.on_message(steps)
    kit.start()
    bridge.wait_acked(bridge.say("x"))
    assert errors == ["room_denied"]


def test_typing_is_said_again_while_it_goes_on(kit: Kit, bridge: FakeBridge, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers_module, "SHOWN_MS", 0)

    async def steps(msg: AnyMessage) -> None:
        async with writing(msg.stream()) as answer:
            for _ in range(3):
                await kit.done(answer.write("word "))

    kit.on_message(steps)
    kit.start()
    bridge.wait_acked(bridge.say("x"))
    assert [params.get("typing", True) for params in bridge.of("matrix.typing")] == [True] * 4 + [False]
