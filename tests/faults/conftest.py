"""The place where agents come to harm, by kind."""

from __future__ import annotations

import shutil

import pytest

from armorclaw.testing.plugin import missing
from tests.faults.ward import Place


@pytest.fixture(params=["sandbox", "docker", "podman"])
def place(request: pytest.FixtureRequest) -> Place:
    """Every kind of container; narrow it with parametrize("place", […], indirect=True)."""
    kind = str(request.param)
    if shutil.which("bwrap") is None:  # the witness lives there
        missing("bubblewrap is not installed: apt-get install bubblewrap")
    return Place(kind) if kind == "sandbox" else Place(kind, request.getfixturevalue(kind))
