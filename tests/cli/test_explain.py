from __future__ import annotations

from typing import Any

from armorclaw.cli.explain import lines

ANSWER: dict[str, Any] = {
    "room_id": "!r:x",
    "account": "main",
    "membership": "join",
    "replaces": [],
    "level": "route",
    "routes": [{"agent": "echo", "respond": "always", "where": "agents.echo.rooms"}],
    "hearing": ["echo"],
    "sender": "@alice:x",
    "is_trusted": True,
    "may_command": False,
    "rule": "route",
    "where": "agents.echo.rooms",
    "why": "the room is routed so",
    "kept": True,
    "agents": ["echo"],
    "as_it_was": False,
}


def test_for_people() -> None:
    assert lines(ANSWER) == [
        "room     !r:x  join, account main",
        "route    echo             always    agents.echo.rooms",
        "said by  @alice:x  trusted",
        "rule     route decides (agents.echo.rooms): the room is routed so",
        "heard by echo",
    ]


def test_where_nobody_hears() -> None:
    stranger = {"sender": "@mallory:evil", "is_trusted": False, "rule": "stranger", "where": "access.trusted"}
    shown = lines({**ANSWER, **stranger, "routes": [], "membership": None, "kept": False, "agents": []})
    assert shown[0] == "room     !r:x  not known, account main"
    assert shown[1] == "route    none"
    assert shown[2] == "said by  @mallory:evil  not trusted by name"
    assert shown[-1] == "heard by nobody; it is not kept"
    kept = lines({**ANSWER, "kept": True, "agents": []})
    assert kept[-1] == "heard by nobody; it is kept for operators"


def test_what_an_account_is_deaf_to() -> None:
    deaf = "the room is encrypted, and accounts.main.encryption is off; switch it on"
    assert lines({**ANSWER, "kept": False, "agents": [], "deaf": deaf})[-1] == f"heard by nobody: {deaf}"


def test_a_direct_chat_and_what_was_said_there() -> None:
    more = {"direct": "@alice:x", "replaces": ["!old:x"], "may_command": True, "was_for": ["other"], "where": ""}
    shown = lines({**ANSWER, **more})
    assert shown[0].endswith("account main, direct chat with @alice:x")
    assert shown[1] == "         in place of !old:x"
    assert "said by  @alice:x  trusted, may give orders" in shown
    assert "rule     route decides: the room is routed so" in shown
    assert shown[-1] == "         when it came it was for other"
    assert lines({**ANSWER, "was_for": []})[-1] == "         when it came it was for nobody"
    assert lines({**ANSWER, "as_it_was": True})[3].startswith("rule     route decided then")
