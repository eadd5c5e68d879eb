from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from armorclaw.config import AccessSection, Config, Talk
from armorclaw.config_layers import effective
from armorclaw.errors import ArmorclawError

ACCOUNTS = {name: {"homeserver": "http://localhost", "user": f"@{name}:localhost"} for name in ("main", "other")}


def faults(data: dict[str, Any]) -> list[str]:
    with pytest.raises(ArmorclawError) as caught:
        Config.parse(data)
    found: list[str] = caught.value.data["faults"]
    return found


def test_nobody_is_named_by_default() -> None:
    assert Config.parse({}).access == AccessSection((), (), "ignore", (), ())


def test_all_of_it(tmp_path: Path) -> None:
    file = tmp_path / "armorclaw.toml"
    file.write_text(
        """
        [access]
        trusted = ["@alice:example.org", "*:example.net"]
        rooms = ["!one:example.org", "!no-server-part"]
        strangers = "reject"
        commands = ["@alice:example.org"]

        [[access.talk]]
        from = "planner"
        to = "writer"

        [[access.talk]]
        from = "@bot:example.net"
        to = "planner"

        [accounts.main]
        homeserver = "http://localhost"
        user = "one"
        [accounts.other]
        homeserver = "http://localhost"
        user = "two"
        [agents]
        planner = { command = ["x"] }
        writer = { command = ["x"], account = "other" }
        """
    )
    found = effective(file)
    assert found.config.access == AccessSection(
        ("@alice:example.org", "*:example.net"),
        ("!one:example.org", "!no-server-part"),
        "reject",
        ("@alice:example.org",),
        (Talk("planner", "writer"), Talk("@bot:example.net", "planner")),
    )
    shown = dict(found.values())
    assert shown["access.talk"] == [
        {"from": "planner", "to": "writer"},
        {"from": "@bot:example.net", "to": "planner"},
    ]
    assert shown["access.trusted"] == ["@alice:example.org", "*:example.net"]
    assert found.origin_of("access.strangers") == f"{file}:5"


@pytest.mark.parametrize(
    "access, place, fix",
    [
        ({"trusted": ["alice"]}, "access.trusted", "@name:server"),
        ({"trusted": ["@аlice:example.org"]}, "access.trusted", "plain letters"),
        ({"trusted": ["@alice:Example.org"]}, "access.trusted", "@alice:example.org"),
        ({"trusted": ["*"]}, "access.trusted", "*:server"),
        ({"trusted": "@alice:example.org"}, "access.trusted", "write ["),
        ({"commands": ["@alice:example.org."]}, "access.commands", "@alice:example.org"),
        ({"rooms": ["#alias:example.org"]}, "access.rooms", "!opaque:server"),
        ({"rooms": ["lobby"]}, "access.rooms", "!opaque:server"),
        ({"rooms": ["!о:example.org"]}, "access.rooms", "!opaque:server"),
        ({"strangers": "maybe"}, "access.strangers", "ignore, reject"),
        ({"talk": [{"from": "Nobody!", "to": "echo"}]}, "access.talk[0].from", "@name:server"),
        ({"talk": [{"from": "echo"}]}, "access.talk[0].to", "add to"),
        ({"talk": [{"from": "echo", "to": "nobody"}]}, "access.talk[0].to", "[agents.nobody]"),
        ({"talk": [{"from": "nobody", "to": "echo"}]}, "access.talk[0].from", "[agents.nobody]"),
        ({"talk": [{"from": "echo", "to": "near"}]}, "access.talk[0]", "an account of its own"),
        ({"talk": {"from": "echo", "to": "far"}}, "access.talk", "write [[access.talk]]"),
        ({"talk": ["echo"]}, "access.talk[0]", "a table"),
        ({"trust": []}, "access.trust", "trusted"),
    ],
)
def test_what_is_wrong(access: dict[str, Any], place: str, fix: str) -> None:
    agents = {"echo": {"command": ["x"]}, "near": {"command": ["x"]}, "far": {"command": ["x"], "account": "other"}}
    (fault,) = faults({"access": access, "accounts": ACCOUNTS, "agents": agents})
    assert fault.startswith(f"{place}: ")
    assert fix in fault


def test_every_fault_is_named_at_once() -> None:
    talk = [{"from": 7, "to": "nobody"}, {"odd": True}]
    found = faults({"access": {"trusted": ["alice"], "talk": talk}, "agents": {"echo": {"command": ["x"]}}})
    assert [each.split(": ")[0] for each in found] == [
        "access.trusted",
        "access.talk[0].from",
        "access.talk[1].odd",
        "access.talk[1].from",
        "access.talk[1].to",
        "access.talk[0].to",
    ]


@pytest.mark.parametrize("invites", ["granted", "trusted", "none"])
def test_which_invitations_an_account_accepts(invites: str) -> None:
    config = Config.parse({"accounts": {"main": {**ACCOUNTS["main"], "invites": invites}}})
    assert config.accounts["main"].invites == invites


def test_by_default_an_account_accepts_what_is_granted() -> None:
    assert Config.parse({"accounts": ACCOUNTS}).accounts["main"].invites == "granted"
    (fault,) = faults({"accounts": {"main": {**ACCOUNTS["main"], "invites": "all"}}})
    assert fault.startswith("accounts.main.invites: ")
