from __future__ import annotations

import pytest

from armorclaw.errors import ArmorclawError
from armorclaw.events.event import Event
from armorclaw.matrix.chat.answer import TEXT_LIMIT, Answer, line, listed, of_error, span, without_secrets

ASKED = Event.make("m.room.message", {}, at_ms=0, account="main", room_id="!r:x", sender="@ann:x", event_id="$asked")


def test_an_answer_is_a_notice_that_calls_nobody() -> None:
    assert Answer("@room all is well").content(ASKED, None) == {
        "msgtype": "m.notice",
        "body": "@room all is well",
        "m.mentions": {},
        "m.relates_to": {"m.in_reply_to": {"event_id": "$asked"}},
    }


def test_in_a_thread_it_stays_there() -> None:
    relation = Answer("well").content(ASKED, "$root")["m.relates_to"]
    assert (relation["rel_type"], relation["event_id"]) == ("m.thread", "$root")
    assert relation["m.in_reply_to"] == {"event_id": "$asked"}


def test_what_others_wrote_is_shown_as_it_is() -> None:
    content = Answer("echo printed:", "<b>&\nline").content(ASKED, None)
    assert content["body"] == "echo printed:\n<b>&\nline"
    assert content["formatted_body"] == "echo printed:<pre><code>&lt;b&gt;&amp;\nline</code></pre>"


@pytest.mark.parametrize(
    "answer", [Answer("x" * 100_000), Answer("x", "y" * 100_000), Answer("x" * 9999, "y" * 9999)]
)
def test_none_is_long(answer: Answer) -> None:
    content = answer.content(ASKED, None)
    assert len(content["body"]) <= TEXT_LIMIT + 5
    if answer.text == "x":
        assert content["body"].startswith("x\n…y")  # of what was printed the end counts


def test_nothing_in_it_is_more_than_text() -> None:
    body = Answer("a\x1b[2J\u202eb", "c\rd\x00").content(ASKED, None)["body"]
    assert body == "a [2J b\nc d "


def test_no_folder_of_this_host() -> None:
    content = Answer("see /var/lib/armorclaw/x.db", "in /home/me/agent/main.py").content(ASKED, None)
    assert content["body"] == "see …/x.db\nin …/main.py"
    error = ArmorclawError("storage_failed", "cannot read /srv/armorclaw/key", hint="chmod /srv/armorclaw/key")
    assert "/srv" not in str(of_error(error).content(ASKED, None))


def test_an_error_says_what_to_do() -> None:
    assert of_error(ArmorclawError("not_found", "no such thing", why="gone", hint="look")).text == (
        "That did not work: no such thing: gone\nhint: look"
    )
    assert of_error(ArmorclawError("not_found", "no such thing")).text == "That did not work: no such thing"


def test_secrets_are_left_out() -> None:
    assert without_secrets("a tok-1234 b tok-12345", ["tok-1234", "tok-12345"]) == "a [secret] b [secret]"
    assert without_secrets("abc", ["", "b"]) == "abc"  # too short to be looked for


def test_lists() -> None:
    assert listed("Agents:", ["a\nb", "c"]) == "Agents:\n• a b\n• c"
    assert listed("Agents:", map(str, range(60))).splitlines()[-1] == "… 10 more"
    assert len(line("x" * 1000)) == 300


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59, "59 s"), (120, "2 min"), (7_300, "2 h"), (200_000, "2 d")]
)
def test_spans(seconds: float, text: str) -> None:
    assert span(seconds) == text
