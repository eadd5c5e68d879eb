from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from armorclaw.config import MIB
from armorclaw.containers.spec import ContainerSpec, Exit, Limits, Mount
from armorclaw.errors import ArmorclawError

SPEC = ContainerSpec(
    instance="home",
    name="ada",
    image="python:3.12-slim",
    command=("python3", "/opt/agent.py"),
    env={"B": "2", "A": "1"},
    uid=10001,
    gid=10001,
    socket_dir=Path("/var/lib/armorclaw/mounts/ada"),
    mounts=(Mount(Path("/srv/agent"), "/opt"),),
)


def changed(**fields: Any) -> ContainerSpec:
    return attrs.evolve(SPEC, **fields)


CHANGED: list[dict[str, Any]] = [
    {"instance": "away"},
    {"name": "bob"},
    {"image": None},
    {"image": "python:3.13-slim"},
    {"command": ("python3 /opt/agent.py",)},
    {"env": {"A": "1"}},
    {"uid": 10002},
    {"gid": 10002},
    {"socket_dir": Path("/elsewhere")},
    {"mounts": ()},
    {"mounts": (Mount(Path("/srv/agent"), "/other"),)},
    {"limits": Limits(memory=513 * MIB)},
    {"limits": Limits(cpus=1.5)},
    {"limits": Limits(pids=127)},
    {"limits": Limits(files=1023)},
    {"limits": Limits(tmp=1)},
]


def test_digest_is_stable_across_processes_and_order() -> None:
    # A golden value: a survivor of an older process is recognised by it.
    assert SPEC.digest() == attrs.evolve(SPEC, env={"A": "1", "B": "2"}).digest()
    assert SPEC.digest() == "6278babee93a59858921d104fbfc73b52ca8b464ccb160bc8e79728dfd78c03d"


def test_every_field_changes_the_digest() -> None:
    digests = [SPEC.digest(), *(changed(**change).digest() for change in CHANGED)]
    assert len(set(digests)) == len(digests)
    assert {field for change in CHANGED for field in change} == {field.name for field in attrs.fields(ContainerSpec)}


@pytest.mark.parametrize(
    "name", ["", "..", ".a", "a/b", "../etc", "a b", "A", "a\n", "a\0", "-a", "ä", "x" * 64, "a:b", "a%2fb"]
)
@pytest.mark.parametrize("field", ["name", "instance"])
@pytest.mark.mission("S.2")
def test_names_that_would_be_more_than_a_name(field: str, name: str) -> None:
    with pytest.raises(ArmorclawError) as raised:
        changed(**{field: name})
    assert raised.value.name == "invalid_params"
    assert len(raised.value.lines()) == 3


@given(st.from_regex(r"[a-z0-9][a-z0-9_.-]{0,62}", fullmatch=True))
def test_names_that_are_names(name: str) -> None:
    assert attrs.evolve(SPEC, name=name).name == name


@pytest.mark.parametrize("field", ["uid", "gid"])
def test_root_is_refused(field: str) -> None:
    with pytest.raises(ValueError, match=field):
        changed(**{field: 0})


@pytest.mark.parametrize(
    "status, oom, code, number, text",
    [
        (0, None, 0, None, "exit 0"),
        (3, False, 3, None, "exit 3"),
        (3, True, 3, None, "exit 3, out of memory seen"),
        (127, None, 127, None, "exit 127 (the command was not found)"),
        (128, None, 128, None, "exit 128"),
        (137, False, None, 9, "killed by SIGKILL (or exit 137)"),
        (137, True, None, 9, "killed by SIGKILL, out of memory"),
        (143, None, None, 15, "killed by SIGTERM (or exit 143)"),
        (161, None, None, 33, "killed by signal 33 (or exit 161)"),
        (255, None, 255, None, "exit 255"),
    ],
)
def test_exit_of_a_status(status: int, oom: bool | None, code: int | None, number: int | None, text: str) -> None:
    assert Exit.of(status, oom=oom) == Exit(code, number, oom, text)


def test_a_status_that_is_exact_is_never_a_signal() -> None:
    assert Exit.of(137, oom=False, exact=True) == Exit(137, None, False, "exit 137")


@given(st.integers(0, 255))
def test_exit_is_a_code_or_a_signal(status: int) -> None:
    end = Exit.of(status)
    assert (end.code is None) != (end.signal is None)
    assert status == (end.code if end.code is not None else 128 + (end.signal or 0))
