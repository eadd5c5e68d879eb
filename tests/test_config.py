"""Wrong configuration is refused whole, with place, reason and fix for every fault."""

import contextlib
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from armorclaw.config import Account, Agent, Config, is_name
from armorclaw.errors import ArmorclawError
from armorclaw.structure import Secret

ACCOUNT: dict[str, Any] = {"homeserver": "http://127.0.0.1:8008", "user": "@bot:localhost"}
AGENT: dict[str, Any] = {"command": ["python3", "-m", "agent"]}


def faults(data: dict[str, Any]) -> list[str]:
    with pytest.raises(ArmorclawError) as caught:
        Config.parse(data)
    assert caught.value.name == "config_invalid"
    assert caught.value.kind.exit_status == 11
    found: list[str] = caught.value.data["faults"]
    assert all(" → " in fault for fault in found), "each fault says how to mend it"
    return found


def test_a_whole_file(tmp_path: Path) -> None:
    file = tmp_path / "armorclaw.toml"
    file.write_text(
        """
        [bridge]
        state_dir = "state"
        [accounts.main]
        homeserver = "https://matrix.here.org"
        user = "bot"
        password_file = "password"
        [agents.echo]
        code = "echo"
        rooms = ["!a:here.org", "#lobby:here.org"]
        keys = ["openai-default"]
        limits = { memory = "1g", cpus = 0.5 }
        """
    )
    (tmp_path / "password").write_text("hush\n")
    config = Config.load(file)
    assert config.bridge.state_dir == tmp_path / "state"
    assert config.bridge.key_file == tmp_path / "state" / "armorclaw.key"
    agent = config.agents["echo"]
    assert (agent.name, agent.code, agent.limits.memory) == ("echo", tmp_path / "echo", 1024**3)
    assert config.accounts["main"].find_password() == Secret("hush")
    assert config.accounts["main"].find_access_token() is None


def test_yes_and_no() -> None:
    """And no number, which a truth is to Python."""
    for value in (True, False):
        config = Config.parse({"accounts": {"main": {**ACCOUNT, "read_receipts": value}}})
        assert config.accounts["main"].read_receipts is value
    wrongs: list[Any] = [1, "true", []]
    for wrong in wrongs:
        (fault,) = faults({"accounts": {"main": {**ACCOUNT, "read_receipts": wrong}}})
        assert fault.startswith(f"accounts.main.read_receipts: {wrong!r} is neither true nor false")
    (fault,) = faults({"bridge": {"uid_base": True}})
    assert "is not a whole number" in fault


def test_how_long_events_are_kept_and_messages_wait() -> None:
    given = {
        "events": {"keep_days": 0.5, "max_lost": 3},
        "delivery": {"expire_after_h": 2},
        "media": {"max_size": "5m"},
    }
    config = Config.parse(given)
    assert config.media.max_size == 5 * 2**20
    assert (config.events.keep_days, config.events.max_lost, config.events.max_deliveries) == (0.5, 3, 20)
    assert config.delivery.expire_after_h == 2
    assert config.bridge.drain_s == 10
    wrong: dict[str, Any] = {
        "events": {"keep_mb": 0, "erase_after_h": -1, "max_deliveries": 0},
        "bridge": {"drain_s": -1},
    }
    places = [fault.split(":")[0] for fault in faults(wrong)]
    assert sorted(places) == ["bridge.drain_s", "events.erase_after_h", "events.keep_mb", "events.max_deliveries"]


def test_every_fault_is_named_at_once() -> None:
    found = faults(
        {
            "colour": "red",
            "bridge": {"uid_base": "low"},
            "accounts": {"main": {"homeserver": "ftp://x", "password": "hunter2"}, "Two!": ACCOUNT},
            "agents": {
                "a": {"runtime": "vm", "command": "x", "rooms": ["lobby"], "limits": {"memory": "lots", "pids": 0}},
                "b": {},
                "c": {**AGENT, "account": "other", "env": {"ARMORCLAW_SOCKET": "/x", "OK": "1"}},
                "d": "text",
            },
        }
    )
    places = sorted(fault.split(":")[0] for fault in found)
    assert places == sorted(
        [
            "colour",
            "bridge.uid_base",
            "accounts.main.homeserver",
            "accounts.main.user",
            "accounts.main.password",
            'accounts."Two!"',
            "agents.a.runtime",
            "agents.a.command",
            "agents.a.rooms",
            "agents.a.limits.memory",
            "agents.a.limits.pids",
            "agents.b",
            "agents.c.account",
            "agents.c.env",
            "agents.d",
        ]
    )
    assert "hunter2" not in str(found)


@pytest.mark.parametrize(
    ("agent", "word"),
    [
        ({"runtime": "docker", "command": ["x"]}, "image"),
        ({"runtime": "sandbox", "image": "python:3", "command": ["x"]}, "images"),
        ({"command": ["x\x00"]}, "NUL"),
        ({"command": ["x"], "limits": {"cpus": True}}, "number"),
        ({"command": ["x"], "limits": {"memory": -5}}, "above zero"),
        ({"command": ["x"], "rooms": ["!a:b/../../login"]}, "room"),
        ({"command": ["x"], "ready_timeout": "soon"}, "number"),
        ({"command": ["x"], "health": {"period": 0}}, "give 0.1 to 3600 seconds"),
        ({"command": ["x"], "health": {"period": 0.01, "timeout": 0.001}}, "give 0.1 to 3600 seconds"),
        ({"command": ["x"], "health": {"period": 3601}}, "give 0.1 to 3600 seconds"),
        ({"command": ["x"], "health": {"period": 0.5}}, "give a longer period, or a shorter timeout"),
        ({"command": ["x"], "health": {"stalled_after": 900}}, "give stalled_limit, too: more than 900, or 0"),
        ({"command": ["x"], "ready_timeout": -1}, "below zero"),
        ({"command": ["x"], "lifetime": 1e300}, "is too large"),
        ({"command": ["x"], "lifetime": float("inf")}, "is too large"),
        ({"command": ["x"], "lifetime": float("nan")}, "is not a number"),
        ({"command": ["x"], "data": {"hard": "10m"}}, "lower soft"),
        ({"command": ["x"], "health": {"period": "often"}}, "number"),
        ({"command": ["x"], "health": {"failures": 0}}, "below 1"),
        ({"command": ["x"], "health": {"period": 1, "timeout": 2}}, "longer than period"),
        ({"command": ["x"], "health": {"stalled_after": 700}}, "below stalled_after"),
        ({"command": ["x"], "health": {"stalled_limit": -1}}, "below zero"),
        ({"command": ["x"], "restart": {"policy": "sometimes"}}, "always, on-failure, never"),
        ({"command": ["x"], "restart": {"in_row": -1}}, "below zero"),
        ({"command": ["x"], "restart": {"stable": 0}}, "above zero"),
        ({"command": ["x"], "quota": {"messages": -1}}, "below zero"),
        ({"command": ["x"], "data": {"soft": 0}}, "above zero"),
        ({"command": ["x"], "data": {"soft": "2g"}}, "above hard"),
        ({"command": ["x"], "quota": {"soft": 80}}, "at most 1"),
        ({"command": ["x"], "quota": {"on_exceeded": "kill"}}, "refuse, stop"),
    ],
)
def test_faults_of_an_agent(agent: dict[str, Any], word: str) -> None:
    (fault,) = faults({"accounts": {"main": ACCOUNT}, "agents": {"a": agent}})
    assert word in fault


@pytest.mark.parametrize(
    "url",
    [
        "localhost",
        "here.org:8448",
        "127.0.0.1",
        "127.0.0.1:8008",
        "[::1]",
        "here..org",
        "-here.org",
        "here.org.",
        "here.org/x",
        "here.org\n",
        "bücher.org",
        "matrix.example",
        "ftp://a",
        "http://",
        "https://u:p@h",
        "https://h/?q",
        "https://h:99999",
        "https://matrix.example",
    ],
)
def test_a_homeserver_is_a_plain_url_or_a_server_name(url: str) -> None:
    (fault,) = faults({"accounts": {"main": {**ACCOUNT, "homeserver": url}}})
    assert fault.startswith("accounts.main.homeserver")


@pytest.mark.parametrize(
    "homeserver, server_name",
    [
        ("https://matrix.here.org", None),
        ("http://127.0.0.1:8008", None),
        ("here.org", "here.org"),
        ("Matrix-1.Here.Org", "Matrix-1.Here.Org"),
        ("xn--bcher-kva.org", "xn--bcher-kva.org"),
    ],
)
def test_a_server_name_is_to_be_asked_for_its_homeserver(homeserver: str, server_name: str | None) -> None:
    read = Config.parse({"accounts": {"main": {**ACCOUNT, "homeserver": homeserver}}})
    assert read.accounts["main"].server_name == server_name


@pytest.mark.parametrize(
    ("section", "place", "word"),
    [
        ({"server": {"group": "no-such-group"}}, "server.group", "groupadd --system no-such-group"),
        ({"server": {"observer_group": "0"}}, "server.observer_group", "there is no group"),
        ({"server": {"group": "root", "observer_group": "root"}}, "server", "the same group"),
        ({"server": {"mode": "0666"}}, "server.mode", "choose from: group, observer_group"),
        ({"limits": {"agent_calls": "fast"}}, "limits.agent_calls", '"500/s"'),
        ({"limits": {"agent_calls": "0/s"}}, "limits.agent_calls", "above zero"),
        ({"limits": {"operator_calls": True}}, "limits.operator_calls", "frequency"),
        ({"limits": {"agent_call": "5/s"}}, "limits.agent_call", "no such key"),
        ({"alerts": {"room": "ops"}, "accounts": {"main": ACCOUNT}}, "alerts.room", "neither a room id nor an alias"),
        ({"alerts": {"severity": "fatal"}}, "alerts.severity", "choose from: info, warning, error"),
        ({"alerts": {"room": "!a:b"}}, "alerts.account", "there is no account 'main'"),
        ({"alerts": {"account": "other"}, "accounts": {"main": ACCOUNT}}, "alerts.account", "no account 'other'"),
        ({"alerts": {"room": "!a:b", "account": []}}, "alerts.account", "not text"),
    ],
)
def test_faults_of_groups_and_limits(section: dict[str, Any], place: str, word: str) -> None:
    (fault,) = faults(section)
    assert fault.startswith(f"{place}: ")
    assert word in fault


def test_groups_and_limits() -> None:
    config = Config.parse({"server": {"group": "root"}, "limits": {"agent_calls": "30/m", "operator_calls": 5000}})
    assert (config.server.group, config.server.observer_group) == ("root", "")
    assert attrs.astuple(config.limits) == (0.5, 5000)


def test_alerts_and_quotas() -> None:
    quota = {"messages": 30, "bytes": "64m", "calls": 0, "media": "1g", "on_exceeded": "stop"}
    config = Config.parse(
        {
            "alerts": {"room": "#ops:here.org", "severity": "warning"},
            "accounts": {"main": ACCOUNT},
            "agents": {"a": {**AGENT, "quota": quota}, "b": AGENT},
        }
    )
    assert attrs.astuple(config.alerts) == ("#ops:here.org", "main", "warning")
    a, b = config.agents["a"].quota, config.agents["b"].quota
    assert (a.messages, a.bytes, a.calls, a.events, a.on_exceeded) == (30, 64 * 1024**2, 0, b.events, "stop")
    assert (a.media, b.media, b.on_exceeded) == (2**30, 256 * 2**20, "refuse")
    assert Config.parse({"alerts": {"severity": "info"}}).alerts.room == ""


def test_egress() -> None:
    written = ["api.here.org:443", "*.here.org:443", "10.0.0.0/8:443", "[::1]:80"]
    assert Config.parse({"agents": {"a": {**AGENT, "egress": written}}}).agents["a"].egress == tuple(written)
    (fault,) = faults({"agents": {"a": {**AGENT, "egress": ["api.here.org:443", "api.here.org"]}}})
    assert fault == "agents.a.egress: 'api.here.org' has no port → write \"api.here.org:443\" for https"
    (fault,) = faults({"agents": {"egress": {**AGENT, "egress": written}}})
    assert "give it another name" in fault
    (fault,) = faults({"agents": {"a": {"runtime": "attached", "egress": written}}})
    assert "the network of its program" in fault
    assert Config.parse({"agents": {"egress": AGENT}}).agents["egress"].egress == ()


@pytest.mark.parametrize("text", ["not toml =", "a = 1\na = 2", "\ufeff[bridge"])
def test_what_is_not_toml(tmp_path: Path, text: str) -> None:
    file = tmp_path / "c.toml"
    file.write_text(text)
    with pytest.raises(ArmorclawError) as caught:
        Config.load(file)
    assert len(caught.value.lines()) == 3


def test_a_missing_file_and_a_missing_secret(tmp_path: Path) -> None:
    with pytest.raises(ArmorclawError, match="cannot read"):
        Config.load(tmp_path / "none.toml")
    account = Account(**ACCOUNT, password_file=tmp_path / "none")
    with pytest.raises(ArmorclawError, match="password_file"):
        account.find_password()


def test_secrets_do_not_show_themselves() -> None:
    account = Account(**ACCOUNT, password=Secret("canary"))
    assert "canary" not in f"{account!r} {account.password} {attrs.asdict(account)}"


@pytest.mark.parametrize("name", ["", "A", "../x", "x/y", "a" * 33, "-a", "a b", "a\n", "ä"])
def test_names_that_are_none(name: str) -> None:
    assert not is_name(name)
    assert any(fault.startswith("agents.") for fault in faults({"agents": {name: AGENT}}))


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["bridge", "accounts", "agents", "main", "homeserver", "command", "limits", "env", "x"]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )
)
def test_no_data_makes_it_stumble(data: object) -> None:
    if not isinstance(data, dict):
        data = {"agents": data}
    with contextlib.suppress(ArmorclawError):
        assert all(isinstance(agent, Agent) for agent in Config.parse(data).agents.values())


@pytest.mark.parametrize("kind", [str, Path])
def test_a_file_is_named_by_a_text_or_a_path(kind: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "armorclaw.toml").write_text('[bridge]\nstate_dir = "state"\n')
    monkeypatch.chdir(tmp_path)
    assert Config.load(kind("armorclaw.toml")).bridge.state_dir == tmp_path / "state"
