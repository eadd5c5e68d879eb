"""What is known of attached files, and how much there may be of them."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Iterable
from functools import partial
from pathlib import Path

import pytest
import trio

from armorclaw.clock import Surroundings
from armorclaw.configs import library
from armorclaw.configs.library import Configs, Label
from armorclaw.errors import ArmorclawError
from armorclaw.guard.audit import AuditLog
from armorclaw.store import Database


async def pieces(*data: bytes) -> AsyncIterator[bytes]:
    for piece in data:
        await trio.lowlevel.checkpoint()
        yield piece


async def attach(configs: Configs, name: str, agent: str | None = "ada", data: Iterable[bytes] = (b"x",)) -> None:
    await configs.attach(Label(name, agent), pieces(*data), by="uid 0")


async def refusal(configs: Configs, label: Label, *data: bytes) -> ArmorclawError:
    before = await configs.list()
    with pytest.raises(ArmorclawError) as caught:
        await configs.attach(label, pieces(*data), by="uid 0")
    assert await configs.list() == before
    return caught.value


async def test_attached_and_listed(configs: Configs, root: Path) -> None:
    assert await configs.list() == []
    label = Label("agent.toml", "ada", "toml", "raw", {"by": "ann"})
    config = await configs.attach(label, pieces(b"a = ", b"1"), by="uid 0")
    assert (root / "ada" / "agent.toml").read_bytes() == b"a = 1"
    assert (config.path, config.entry.size) == ("/config/agent.toml", 5)
    assert await configs.list() == [config]
    for_all = await configs.attach(Label("motd"), pieces(b""), by="uid 0")
    assert for_all.path == "/config/shared/motd"
    assert (root / "_shared" / "motd").read_bytes() == b""
    assert await configs.list() == [for_all, config]
    assert await configs.list("ada") == [for_all, config]
    assert await configs.list("bob") == [for_all]
    assert not (root / "bob").exists()  # asking makes nothing


async def test_attached_again_replaces_all_of_it(configs: Configs) -> None:
    await configs.attach(Label("a", "ada", "toml", "raw", {"k": "v"}), pieces(b"one"), by="uid 0")
    again = await configs.attach(Label("a", "ada"), pieces(b"three"), by="uid 0")
    assert again.entry.size == 5
    assert await configs.list() == [again]
    assert again.label.metadata is None


async def test_what_is_put_there_or_changed_by_hand_is_listed_without_what_was_known(
    configs: Configs, root: Path
) -> None:
    await configs.attach(Label("a", "ada", "toml", "raw", {"k": "v"}), pieces(b"one"), by="uid 0")
    (root / "ada" / "a").unlink()
    (root / "ada" / "a").write_text("changed")
    (root / "ada" / "shared").write_text("odd")
    listed = await configs.list()
    assert [(each.label, each.entry.size) for each in listed] == [
        (Label("a", "ada"), 7),
        (Label("shared", "ada"), 3),
    ]


async def test_what_is_known_of_files_that_are_gone_goes(configs: Configs, db: Database, root: Path) -> None:
    for name in ("a", "b"):
        await attach(configs, name)
    await attach(configs, "a", "bob")
    (root / "ada" / "a").unlink()
    await attach(configs, "c")
    rows = await db.read(lambda conn: conn.execute("SELECT agent, name FROM configs ORDER BY 1, 2").fetchall())
    assert rows == [("ada", "b"), ("ada", "c"), ("bob", "a")]


async def test_over_a_restart(configs: Configs, root: Path, db: Database) -> None:
    config = await configs.attach(Label("a", "ada", "toml", "base64", {"k": "v"}), pieces(b"one"), by="uid 0")
    assert await Configs(root, db, AuditLog(Surroundings())).list() == [config]


@pytest.mark.parametrize(
    ("field", "label"),
    [
        ("name", Label("../../../etc/passwd")),
        ("name", Label("shared", "ada")),
        ("name", Label("Shared", "ada")),
        ("agent", Label("a", "_shared")),
        ("agent", Label("a", "../bob")),
        ("agent", Label("a", "")),
        ("type", Label("a", "ada", "x" * 65)),
        ("type", Label("a", "ada", "x\n")),
        ("metadata", Label("a", "ada", metadata={"k": "v" * 1020})),
    ],
)
async def test_what_cannot_be_is_named(configs: Configs, field: str, label: Label, root: Path) -> None:
    error = await refusal(configs, label, b"x")
    assert (error.name, error.data["fields"]) == ("invalid_params", [field])
    assert not (root.parent / "etc").exists()


@pytest.mark.parametrize("second", ["README.MD", "Readme.md", "readme.md"])
async def test_names_that_differ_in_case_alone(configs: Configs, second: str) -> None:
    await attach(configs, "README.md")
    error = await refusal(configs, Label(second, "ada"), b"x")
    assert error.name == "conflict"
    assert "'README.md'" in error.why
    await attach(configs, second, "bob")
    await attach(configs, "README.md")


async def test_the_same_name_composed_and_decomposed(configs: Configs) -> None:
    await attach(configs, "\u00e9")
    assert (await refusal(configs, Label("e\u0301", "ada"), b"x")).name == "conflict"


async def test_limits(configs: Configs, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "FILE_LIMIT", 10)
    monkeypatch.setattr(library, "AGENT_LIMIT", 25)
    monkeypatch.setattr(library, "MAX_FILES", 5)
    error = await refusal(configs, Label("a", "ada"), b"12345", b"67890", b"1")
    assert (error.name, error.data["limit"]) == ("too_large", 10)
    for name in ("a", "b"):
        await attach(configs, name, data=[b"1234567890"])
    error = await refusal(configs, Label("c", "ada"), b"123456")
    assert (error.name, error.data["limit"]) == ("too_large", 25)
    await attach(configs, "b", data=[b"12345"])  # what it replaces does not count
    await attach(configs, "c", data=[b"1234567890"])
    for name in ("d", "e"):
        await attach(configs, name, "bob")
    error = await refusal(configs, Label("f", "carl"), b"")
    assert error.name == "queue_full"
    await attach(configs, "e", "bob")
    assert list((root / "_drafts").iterdir()) == []


async def test_uploads_at_once_are_limited(root: Path, db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(library, "MAX_UPLOADS", 2)
    configs = Configs(root, db, AuditLog(Surroundings()))
    go = trio.Event()

    async def slow() -> AsyncIterator[bytes]:
        await go.wait()
        yield b"x"

    async with trio.open_nursery() as nursery:
        for name in ("a", "b"):
            nursery.start_soon(partial(configs.attach, Label(name), slow(), by="uid 0"))
        await trio.testing.wait_all_tasks_blocked()
        assert (await refusal(configs, Label("c"), b"x")).name == "queue_full"
        go.set()
    await attach(configs, "c", None)
    assert len(await configs.list()) == 3


async def test_cut_short_leaves_what_was_there(configs: Configs, root: Path) -> None:
    await attach(configs, "a", data=[b"old"])

    async def endless() -> AsyncIterator[bytes]:
        while True:
            await trio.sleep(0.01)
            yield b"x"

    with trio.move_on_after(0.1):
        await configs.attach(Label("a", "ada"), endless(), by="uid 0")
    assert (root / "ada" / "a").read_bytes() == b"old"
    assert list((root / "_drafts").iterdir()) == []


async def test_many_at_once_are_each_whole(configs: Configs, root: Path) -> None:
    async with trio.open_nursery() as nursery:
        for number in range(8):
            data = [str(number).encode() * 1000] * 10
            nursery.start_soon(attach, configs, "same", "ada", data)
            nursery.start_soon(attach, configs, f"own{number}", "ada", data)
    assert len(set((root / "ada" / "same").read_bytes())) == 1
    assert all((root / "ada" / f"own{n}").read_bytes() == str(n).encode() * 10_000 for n in range(8))
    assert len(await configs.list("ada")) == 9


async def test_on_record_with_who_and_without_content(configs: Configs, db: Database) -> None:
    await attach(configs, "a", data=[b"sesame"])
    (record,) = await db.read(lambda conn: AuditLog(Surroundings()).tail(conn, 9))
    assert (record.kind, record.fields) == (
        "config_attached",
        {"agent": "ada", "name": "a", "size": 6, "by": "uid 0"},
    )


async def test_a_store_that_refuses_keeps_the_old_file(
    configs: Configs, db: Database, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    await attach(configs, "a", data=[b"old"])

    async def full(*_: object, **__: object) -> None:
        await trio.lowlevel.checkpoint()
        raise ArmorclawError("storage_failed", "the disk is full")

    monkeypatch.setattr(db, "write", full)
    assert (await refusal(configs, Label("a", "ada"), b"new")).name == "storage_failed"
    assert (root / "ada" / "a").read_bytes() == b"old"


async def test_on_a_full_disk_not_even_a_draft_is_written(configs: Configs, db: Database, root: Path) -> None:
    await attach(configs, "a", data=[b"old"])
    db._ballast.full = True
    assert (await refusal(configs, Label("a", "ada"), b"new")).name == "storage_full"
    assert (root / "ada" / "a").read_bytes() == b"old"


async def test_a_disk_that_fills_up_under_a_draft(
    configs: Configs, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    await attach(configs, "a", data=[b"old"])
    monkeypatch.setattr(os, "fsync", no_room)
    assert (await refusal(configs, Label("a", "ada"), b"new")).name == "storage_full"
    monkeypatch.undo()
    assert (root / "ada" / "a").read_bytes() == b"old"
