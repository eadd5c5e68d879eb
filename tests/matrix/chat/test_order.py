from __future__ import annotations

import pytest

from armorclaw.matrix.chat.order import VERBS, MisreadError, Order, read_order, usage


@pytest.mark.parametrize(
    ("body", "order"),
    [
        ("!claw", Order("help")),
        ("!CLAW  Status ", Order("status")),
        ("!claw\nstop\techo", Order("stop", ("echo",))),
        ("!claw logs echo 5", Order("logs", ("echo", "5"))),
        ("!claw use echo Mention", Order("use", ("echo", "Mention"))),
        ("!claw use -", Order("use", ("-",))),
        ("!claw approve b_1", Order("approve", ("b_1",))),
    ],
)
def test_orders(body: str, order: Order) -> None:
    assert read_order(body) == order


@pytest.mark.parametrize(
    ("body", "order"),
    [
        ("!claw @bot:x", Order("help")),
        ("!claw @bot:x: status", Order("status")),
        ("!claw stop echo @bot:x", Order("stop", ("echo",))),
        ("!claw stop echo Claw Bot", Order("stop", ("echo",))),
        ("!claw Claw Bot, who", Order("who")),
        ("!claw status CLAW bot", Order("status")),
    ],
)
def test_an_order_may_name_whom_it_asks(body: str, order: Order) -> None:
    assert read_order(body, "@bot:x", "Claw Bot") == order
    with pytest.raises(MisreadError):
        read_order(body, "@other:x", None)


def test_an_agent_may_be_called_as_the_account_is() -> None:
    assert read_order("!claw stop echo", "@bot:x", "echo") == Order("stop", ("echo",))
    with pytest.raises(MisreadError):
        read_order("!claw stop", "@bot:x", "echo")


@pytest.mark.parametrize(
    ("body", "order"),
    [
        ("!claw start webbot bot", Order("start", ("webbot",))),  # not `web`
        ("!claw start webbot bot:", Order("start", ("webbot",))),
        ("!claw use assistant @bot:x", Order("use", ("assistant",))),  # where an optional word may stand
        ("!claw logs echo @bot:x, 5", Order("logs", ("echo", "5"))),
    ],
)
def test_the_name_of_the_account_is_a_word_by_itself(body: str, order: Order) -> None:
    assert read_order(body, "@bot:x", "bot") == order


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("!claw dance", "do not know"),
        ("!claw stop", "!claw stop AGENT"),
        ("!claw stop echo now", "!claw stop AGENT"),
        ("!claw status please", "!claw status"),
        ("!claw logs echo 5 6", "!claw logs AGENT [LINES]"),
        ("!claw stop ../etc", "not the name"),
        ("!claw stop " + "x" * 1000, "not the name"),
        ("!claw stop écho", "not the name"),
    ],
)
def test_what_is_none_is_told(body: str, text: str) -> None:
    with pytest.raises(MisreadError) as caught:
        read_order(body)
    assert text in str(caught.value)
    assert len(str(caught.value)) < 300


def test_every_order_can_be_given_as_its_usage_says() -> None:
    for name, verb in VERBS.items():
        words = usage(name).replace("[", "").replace("]", "").replace("AGENT", "echo").split()
        for count in range(verb.least, verb.most + 1):
            assert read_order(" ".join(words[: 2 + count])).name == name


def test_who_it_is_about() -> None:
    assert read_order("!claw stop echo").agent == "echo"
    assert read_order("!claw use echo").agent is None  # it may be about an agent of anywhere
    assert str(read_order("!claw logs echo 5")) == "logs echo 5"
