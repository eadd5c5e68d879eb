"""Layers of configuration: which is stronger, what each value's origin is, and what is refused."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from armorclaw import layers
from armorclaw.config_layers import LINES_LIMIT, Effective, effective, key_lines, variables
from armorclaw.errors import ArmorclawError

FILE = """\
# a comment
[bridge]
state_dir = "state"

[agents.echo]
command = [
  "x",
]
limits = { memory = "1g" }
[agents."b-2"]
image = '''
i'''
env.A = "b"
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    made = tmp_path / "c.toml"
    made.write_text(FILE)
    return made


def origins(found: Effective) -> dict[str, str]:
    return {place: found.origin_of(place) for place, _ in found.values()}


def test_each_value_has_its_origin(file: Path) -> None:
    found = effective(
        file,
        environ={"ARMORCLAW_BRIDGE_UID_BASE": "20000", "ARMORCLAW_SOCKET": "/s", "ARMORCLAW_HOME": "x", "OTHER": "y"},
        flags=["agents.echo.limits.cpus=2", "agents.b-2.env.C=a=b"],
    )
    values, whence = dict(found.values()), origins(found)
    assert found.files == (str(file),)
    expected = {
        "bridge.state_dir": (str(file.parent / "state"), f"{file}:3"),
        "bridge.key_file": (str(file.parent / "state" / "armorclaw.key"), "default"),
        "bridge.uid_base": (20000, "ARMORCLAW_BRIDGE_UID_BASE"),
        "agents.echo.command": (["x"], f"{file}:6"),
        "agents.echo.limits.memory": (1024**3, f"{file}:9"),
        "agents.echo.limits.cpus": (2.0, "--set agents.echo.limits.cpus"),
        "agents.echo.limits.pids": (128, "default"),
        "agents.b-2.image": ("i", f"{file}:11"),
        "agents.b-2.env.A": ("b", f"{file}:13"),
        "agents.b-2.env.C": ("a=b", "--set agents.b-2.env.C"),
    }
    assert {place: (values[place], whence[place]) for place in expected} == expected


def test_layers_are_merged_key_by_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system, own = tmp_path / "etc.toml", tmp_path / "xdg" / "armorclaw" / "armorclaw.toml"
    monkeypatch.setattr(layers, "SYSTEM_FILE", str(system))
    own.parent.mkdir(parents=True)
    system.write_text(
        '[bridge]\nstate_dir = "a"\nuid_base = 1\n[agents.x]\nimage = "i"\nenv = { A = "1", B = "1" }\n'
    )
    own.write_text(
        '[bridge]\nruntime_dir = "b"\nuid_base = 2\n[agents.x]\nenv = { B = "2" }\n[agents.y]\nimage = "j"\n'
    )
    environ = {"XDG_CONFIG_HOME": str(tmp_path / "xdg"), "ARMORCLAW_BRIDGE_UID_BASE": ""}
    found = effective(environ=environ)
    config = found.config
    assert found.files == (str(system), str(own))
    assert config.bridge.state_dir == tmp_path / "a", "relative to its own file"
    assert config.bridge.runtime_dir == own.parent / "b"
    assert config.bridge.uid_base == 2, "a variable that is empty is none"
    assert dict(config.agents["x"].env) == {"A": "1", "B": "2"}
    assert set(config.agents) == {"x", "y"}
    assert effective(environ={**environ, "ARMORCLAW_BRIDGE_UID_BASE": "3"}).config.bridge.uid_base == 3
    flag = ["bridge.uid_base=4", "bridge.uid_base=5"]
    assert effective(environ={**environ, "ARMORCLAW_BRIDGE_UID_BASE": "3"}, flags=flag).config.bridge.uid_base == 5
    file = tmp_path / "c.toml"
    file.write_text("")
    assert effective(file, environ=environ).config.agents == {}, "a file that is named replaces both"


def faults(file: Path, environ: dict[str, str] | None = None, flags: list[str] | None = None) -> list[str]:
    with pytest.raises(ArmorclawError) as caught:
        effective(file, environ=environ or {}, flags=flags or [])
    assert (caught.value.name, caught.value.kind.exit_status) == ("config_invalid", 11)
    assert len(caught.value.lines()) == 3
    found: list[str] = caught.value.data["faults"]
    assert all(" → " in fault for fault in found)
    return found


def test_every_fault_of_every_layer_is_named_at_once(file: Path) -> None:
    file.write_text(FILE + '[agents.c]\nruntime = "vm"\n\n[agents.d]\n')
    found = faults(
        file,
        {"ARMORCLAW_BRIDGE_UID_BASE": "low", "ARMORCLAW_BRIDGE_STATE_DR": "/x"},
        ["agents.echo.limits.cpus=0", "bridge.colour=red"],
    )
    assert sorted(fault.split(": ")[0] + "|" + fault.split(": ")[1].partition(" ")[0] for fault in found) == sorted(
        [
            "ARMORCLAW_BRIDGE_STATE_DR|no",
            "ARMORCLAW_BRIDGE_UID_BASE|bridge.uid_base",
            "--set agents.echo.limits.cpus|agents.echo.limits.cpus",
            "--set bridge.colour|bridge.colour",
            f"{file}:15|agents.c.runtime",
            f"{file}:14|agents.c",
            f"{file}:17|agents.d",
        ]
    )


@pytest.mark.parametrize(
    "name, fix",
    [
        ("ARMORCLAW_BRIDGE_STATE_DR", "write ARMORCLAW_BRIDGE_STATE_DIR"),
        ("ARMORCLAW_BRDIGE_STATE_DIR", "write ARMORCLAW_BRIDGE_STATE_DIR"),
        ("ARMORCLAW_BRIDGE_COLOUR", "choose from: ARMORCLAW_BRIDGE_STATE_DIR, "),
        ("ARMORCLAW_ACCOUNTS_MAIN_PASSWORD", "secrets are never taken from the environment"),
        ("ARMORCLAW_AGENTS_ECHO_IMAGE", "write [agents.NAME] into a file"),
    ],
)
def test_a_variable_that_looks_like_configuration(file: Path, name: str, fix: str) -> None:
    (fault,) = faults(file, {name: "canary"})
    assert fault.startswith(f"{name}: ")
    assert fix in fault
    assert "canary" not in fault


def test_variables_are_the_plain_values_of_fixed_sections() -> None:
    known = variables()
    assert known["ARMORCLAW_BRIDGE_STATE_DIR"] == ("bridge", "state_dir")
    assert known["ARMORCLAW_SERVER_GROUP"] == ("server", "group")
    assert not [name for name in known if name.startswith(("ARMORCLAW_ACCOUNTS", "ARMORCLAW_AGENTS"))]
    assert all(effective(environ={name: ""}) for name in known)


@pytest.mark.parametrize(
    "flag", ["", "x", "=", "a b=1", "a=1\nb=2", "\n=1", '"=1', "[a]=1", "a.=1", "[" * 9999 + "=1"]
)
def test_a_flag_that_is_no_key_with_a_value(file: Path, flag: str) -> None:
    if flag == "a=1\nb=2":
        assert "there is no such key" in faults(file, flags=[flag])[0]
        return
    with pytest.raises(ArmorclawError) as caught:
        effective(file, environ={}, flags=[flag])
    assert caught.value.name == "config_invalid"
    assert "--set" in str(caught.value)


def test_no_secret_on_the_command_line(file: Path) -> None:
    flags = ["accounts.main.homeserver=https://m.here.org", "accounts.main.user=u", "accounts.main.password=canary"]
    (fault,) = faults(file, flags=flags)
    assert "canary" not in fault


def test_no_line_is_looked_for_in_a_long_file(tmp_path: Path) -> None:
    file = tmp_path / "c.toml"
    file.write_text("#\n" * LINES_LIMIT + "[bridge]\nuid_base = 7\n")
    assert origins(effective(file, environ={}))["bridge.uid_base"] == str(file)


def all_places(data: dict[str, Any], place: str = "") -> set[str]:
    from armorclaw.structure import within

    found = set()
    for key, value in data.items():
        here = within(place, key)
        found |= {here} | (all_places(value, here) if isinstance(value, dict) else set())
    return found


@given(
    st.lists(
        st.sampled_from(
            ["[a]", "[b.c]", '["x y"]', "k = 1", "l = [", "1,", "]", 'm = """', '"""', "# k = 2", "n.o = {p = 1}", ""]
        )
        | st.text("abk=[]\"'#\n {}", max_size=6),
        max_size=12,
    ).map("\n".join)
)
@example('[a]\nm = """\nk = 1\n"""\nk = 1')
def test_the_line_of_a_key_is_where_it_begins(text: str) -> None:
    """Against the definition: without the lines from there on it is not there, and nothing before is at fault."""
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError:
        key_lines(text)
        return
    lines = text.split("\n")
    found = key_lines(text)
    assert set(found) == all_places(data)
    for place, line in found.items():
        assert place not in all_places(tomllib.loads("\n".join(lines[: line - 1])))
