"""What an image says of its Python: it may be anybody's, and may say anything."""

from __future__ import annotations

from typing import Any

import pytest

from armorclaw.containers.images.interpreter import Interpreter, check_interpreter
from armorclaw.errors import ArmorclawError

from .test_wheels import interpreter


def changed(**facts: Any) -> Interpreter:
    """A sound one but for this; markers are given by name."""
    sound: Interpreter = interpreter()
    fields = {name: getattr(sound, name) for name in sound.__struct_fields__}
    markers = {**sound.markers, **{name: fact for name, fact in facts.items() if name not in fields}}
    own = {name: fact for name, fact in facts.items() if name in fields}
    return Interpreter(**{**fields, "markers": markers, **own})


@pytest.mark.parametrize(
    "facts",
    [
        {},
        {"python_full_version": "3.15.0a1+"},
        {"python_full_version": "3.12.4+local.2-1"},
        {"libc": ("musl", 1, 2)},
        {"folder": "/opt/conda/lib/python3.12/site-packages"},
    ],
)
def test_sound(facts: dict[str, Any]) -> None:
    check_interpreter(changed(**facts), "anybodys")


@pytest.mark.parametrize(
    "facts",
    [
        {"libc": ("glibc", 2, 10**12)},  # each one of them would become a word of pip's command
        {"libc": ("glibc", 2, -1)},
        {"libc": ("", 0, 0)},
        {"python_version": "three"},
        {"python_version": ""},
        {"python_full_version": "--index-url=https://evil.example"},
        {"platform_machine": "x86_64 --pre"},
        {"platform_machine": ""},
        {"implementation_name": "pypy"},
        {"executable": "/usr/bin/python3\nexec evil"},
        {"executable": "python3"},
        {"folder": "/usr/lib/../../etc"},
        {"scripts": "/usr/bin\0"},
        {"markers": {}},
        {"markers": {"python_version": "3.12", "python_full_version": "3.12.1", "platform_machine": "arm"}},
    ],
)
def test_nonsense(facts: dict[str, Any]) -> None:
    with pytest.raises(ArmorclawError) as raised:
        check_interpreter(changed(**facts), "anybodys")
    assert raised.value.name == "config_invalid"
    assert "anybodys" in raised.value.what
    assert "--base" in raised.value.hint
