from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from armorclaw.clock import Surroundings
from armorclaw.configs.library import Configs
from armorclaw.guard.audit import AuditLog
from armorclaw.store import Database


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Where configs go; a secret lies beside it."""
    (tmp_path / "secret").write_text("of the host")
    return tmp_path / "configs"


@pytest.fixture
async def db(tmp_path: Path) -> AsyncIterator[Database]:
    async with Database.open(tmp_path / "bridge.db", bytes(32)) as database:
        yield database


@pytest.fixture
def configs(root: Path, db: Database) -> Configs:
    return Configs(root, db, AuditLog(Surroundings()))
