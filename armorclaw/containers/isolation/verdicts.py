"""Rows of `containers.isolation`: what is looked at, and how one row comes to its verdict."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs

from armorclaw.containers.shapes import IsolationFact

MAX_FOUND = 300
"""Characters of what is shown of one row."""

ENGINES = ("docker", "podman")

Verdict = tuple[str, bool | None]
"""What was found, and whether the claim holds."""


@attrs.frozen
class Subject:
    """A running container: its main process, and what is claimed of it. `folders` are the bridge's on the host, of
    which parts may be shown to it; `python` is its virtual environment, if it has one; `told` is what its engine
    says, None where there is no engine."""

    kind: str
    pid: int
    uid: int
    memory: int
    cpus: float
    pids: int
    files: int
    tmp: int
    folders: tuple[Path, ...]
    python: Path | None = None
    told: Mapping[str, Any] | None = None

    @property
    def has_engine(self) -> bool:
        return self.kind in ENGINES


def row(what: str, claimed: str | None, source: str, find: Callable[[], Verdict]) -> IsolationFact:
    """One row; without a claim there is nothing that could hold, and what cannot be read is not known."""
    try:
        found, holds = find()
    except OSError as error:
        found, holds = f"not known: {error.strerror}", None
    except ValueError as error:
        found, holds = f"not known: {error}", None
    return IsolationFact(what, claimed, _short(found), None if claimed is None else holds, source)


def mib(count: float) -> str:
    return f"{count / 1024**2:g} MiB"


def _short(text: str) -> str:
    return text if len(text) <= MAX_FOUND else text[: MAX_FOUND - 1] + "…"
