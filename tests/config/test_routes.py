from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from armorclaw.config import Config, Route
from armorclaw.config_layers import effective
from armorclaw.errors import ArmorclawError
from armorclaw.structure import FaultError

ACCOUNT = {"homeserver": "http://localhost", "user": "@bot:localhost"}
DATA: dict[str, Any] = {
    "access": {"trusted": ["@alice:localhost"]},
    "accounts": {"main": ACCOUNT, "other": ACCOUNT},
    "agents": {"echo": {"command": ["x"]}, "far": {"command": ["x"], "account": "other"}},
}


def faults(data: dict[str, Any]) -> list[str]:
    with pytest.raises(ArmorclawError) as caught:
        Config.parse(data)
    found: list[str] = caught.value.data["faults"]
    return found


def test_there_are_none_by_default() -> None:
    assert Config.parse({}).routes == ()


def test_all_of_it(tmp_path: Path) -> None:
    file = tmp_path / "armorclaw.toml"
    file.write_text(
        """
        [access]
        trusted = ["@alice:localhost"]
        [accounts.main]
        homeserver = "http://localhost"
        user = "bot"
        [agents.echo]
        command = ["x"]
        [[routes]]
        agent = "echo"
        room = "#lobby:localhost"
        respond = "mention"
        [[routes]]
        agent = "echo"
        dm = true
        account = "main"
        """
    )
    found = effective(file)
    assert found.config.routes == (
        Route("echo", room="#lobby:localhost", respond="mention"),
        Route("echo", dm=True, account="main"),
    )
    shown = dict(found.values())["routes"]
    assert shown[0] == {"agent": "echo", "room": "#lobby:localhost", "dm": False, "account": "", "respond": "mention"}


@pytest.mark.parametrize(
    "route, place, fix",
    [
        ({"room": "!r:x"}, "routes[0].agent", "add agent"),
        ({"agent": "nobody", "room": "!r:x"}, "routes[0].agent", "[agents.nobody]"),
        ({"agent": "echo"}, "routes[0]", "dm = true"),
        ({"agent": "echo", "room": "!r:x", "dm": True}, "routes[0]", "dm = true"),
        ({"agent": "echo", "dm": False}, "routes[0]", "dm = true"),
        ({"agent": "echo", "room": "lobby"}, "routes[0].room", "!opaque:server"),
        ({"agent": "echo", "dm": 1}, "routes[0].dm", "true or false"),
        ({"agent": "echo", "room": "!r:x", "respond": "never"}, "routes[0].respond", "always, mention"),
        ({"agent": "echo", "room": "!r:x", "account": "other"}, "routes[0].account", "remove it"),
        ({"agent": "echo", "room": "!r:x", "to": "x"}, "routes[0].to", "choose from"),
    ],
)
def test_what_is_wrong(route: dict[str, Any], place: str, fix: str) -> None:
    found = faults({**DATA, "routes": [route]})
    assert found[0].startswith(f"{place}: ")
    assert fix in found[0]


def test_one_place_is_routed_to_an_agent_once() -> None:
    twice = [{"agent": "echo", "room": "!r:x"}, {"agent": "far", "room": "!r:x"}, {"agent": "echo", "room": "!r:x"}]
    (fault,) = faults({**DATA, "routes": twice})
    assert fault.startswith("routes[2]: it is for the same place and agent as routes[0]")


def test_an_account_must_be_there() -> None:
    (fault,) = faults({"agents": {"echo": {"command": ["x"]}}, "routes": [{"agent": "echo", "room": "!r:x"}]})
    assert fault.startswith("routes[0].account: there is no account 'main'")


@pytest.mark.parametrize("access", [None, {}, {"trusted": []}])
def test_direct_chats_need_people_that_are_trusted(access: dict[str, Any] | None) -> None:
    data = {**DATA, "routes": [{"agent": "echo", "dm": True}]}
    data = {key: value for key, value in {**data, "access": access}.items() if value is not None}
    (fault,) = faults(data)
    assert fault.startswith("routes[0].dm: ")
    assert "trusted" in fault
    assert Config.parse({**data, "access": {"commands": ["@alice:localhost"]}}).routes


@pytest.mark.parametrize("routes", ["echo", {"agent": "echo"}, ["echo"], [7]])
def test_routes_are_a_list_of_tables(routes: object) -> None:
    (fault,) = faults({**DATA, "routes": routes})
    assert fault.startswith("routes")


def test_a_program_is_told_too() -> None:
    with pytest.raises(FaultError):
        Route("echo")
