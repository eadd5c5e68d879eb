"""Attached files with what is known of them. The folder says which there are; the store remembers the rest."""

from __future__ import annotations

import json
from collections.abc import AsyncIterable, Mapping, Sequence
from pathlib import Path

import attrs
import trio

from armorclaw.config import CONFIGS_INSIDE, MIB, SHARED_CONFIGS, SHARED_INSIDE, is_name
from armorclaw.configs.files import ConfigFiles, Entry, folded, is_file_name
from armorclaw.errors import ArmorclawError
from armorclaw.guard.audit import AuditLog
from armorclaw.guard.limits import Quota
from armorclaw.store import Connection, Database, storage_full

FILE_LIMIT = 16 * MIB
"""Bytes of one file."""

AGENT_LIMIT = 64 * MIB
"""Bytes of all files of one agent, or of those that are for all."""

MAX_FILES = 512
"""Files there may be in all, so that a list of them fits into one message."""

MAX_UPLOADS = 16
"""Files being written at once; each may hold `FILE_LIMIT` bytes on disk."""

TYPE_LIMIT = 64
METADATA_LIMIT = 1024
"""Characters of the type; bytes of the metadata as JSON."""


@attrs.frozen
class Label:
    """What a file is called and whose it is; `agent` None is everybody's."""

    name: str
    agent: str | None = None
    type: str = ""
    encoding: str = "raw"
    metadata: Mapping[str, str] | None = None

    @property
    def owner(self) -> str:
        return self.agent if self.agent is not None else SHARED_CONFIGS


@attrs.frozen
class Config:
    """One attached file."""

    label: Label
    entry: Entry

    @property
    def path(self) -> str:
        """Where agents find it."""
        folder = CONFIGS_INSIDE if self.label.agent is not None else f"{CONFIGS_INSIDE}/{SHARED_INSIDE}"
        return f"{folder}/{self.label.name}"

    @property
    def config_id(self) -> str:
        return f"config-{self.label.name}-{self.entry.modified_ns // 1_000_000_000}"


class Configs:
    """Attaches and lists."""

    def __init__(self, root: Path, db: Database, audit: AuditLog) -> None:
        self._files = ConfigFiles(root)
        self._db = db
        self._audit = audit
        self._changing = trio.Lock()
        self._uploads = Quota("configs being attached", MAX_UPLOADS)

    async def attach(self, label: Label, pieces: AsyncIterable[bytes], *, by: str) -> Config:
        """Keeps a file durably, in place of one of the same name: agents see the old one or the new, whole.

        Raises invalid_params, too_large, conflict, queue_full, storage_full, storage_failed, and what `pieces`
        raises; then nothing has changed.
        """
        _check(label)
        if self._db.full:  # before a draft takes the room that the store has just given up
            raise storage_full()
        with self._uploads.hold("all", "the bridge"):
            return await self._attach(label, pieces, by)

    async def list(self, agent: str | None = None) -> list[Config]:
        """Those that `agent` can read, or all there are: everybody's first, then by agent and name."""
        _check_agent(agent)
        known = await self._db.read(lambda db: {row[:3]: row[3:] for row in db.execute(_ALL)})
        found = []
        for owner, entries in (await trio.to_thread.run_sync(self._files.entries)).items():
            if agent is not None and owner not in (agent, SHARED_CONFIGS):
                continue
            whose = None if owner == SHARED_CONFIGS else owner
            for entry in entries:
                # of one that somebody put there by hand nothing is known
                kind, encoding, metadata = known.get(
                    (whose or "", entry.name, entry.modified_ns), ("", "raw", "null")
                )
                label = Label(entry.name, whose, kind, encoding, json.loads(metadata))
                found.append(Config(label, entry))
        return found

    async def _attach(self, label: Label, pieces: AsyncIterable[bytes], by: str) -> Config:
        async with self._changing:
            draft = await trio.to_thread.run_sync(self._files.draft)
        try:
            async for piece in pieces:
                if draft.size + len(piece) > FILE_LIMIT:
                    raise too_large(label.name)
                await trio.to_thread.run_sync(draft.write, piece)
            modified_ns = await trio.to_thread.run_sync(draft.finish)
            config = Config(label, Entry(label.name, draft.size, modified_ns))
            async with self._changing:
                beside = await self._check_place(config)
                await self._db.write(lambda db: self._remember(db, config, beside, by), durable=True, grows=True)
                await trio.to_thread.run_sync(self._files.publish, draft, label.owner, label.name)
            return config
        finally:
            draft.close()

    async def _check_place(self, config: Config) -> Sequence[str]:
        """The names of the owner's other files, once there is room beside them."""
        label = config.label
        others = [each for each in await self.list() if each.path != config.path or each.label.agent != label.agent]
        beside = [each for each in others if each.label.agent == label.agent]
        for each in beside:
            if folded(each.label.name) == folded(label.name):
                why = f"there is {each.label.name!r}, which differs in case or accents alone"
                raise ArmorclawError("conflict", f"config {label.name!r}", why=why, hint="choose another name")
        if sum(each.entry.size for each in beside) + config.entry.size > AGENT_LIMIT:
            why = f"the files of one agent may have {AGENT_LIMIT // MIB} MiB together"
            raise ArmorclawError("too_large", f"config {label.name!r}", why=why, limit=AGENT_LIMIT)
        if len(others) >= MAX_FILES:
            raise ArmorclawError("queue_full", f"there are {MAX_FILES} configs already", hint="remove some")
        return [each.label.name for each in beside]

    def _remember(self, db: Connection, config: Config, beside: Sequence[str], by: str) -> None:
        """Before the file is in its place: what is kept of a file that then does not get there fits to no file."""
        label, agent = config.label, config.label.agent or ""
        gone = {name for (name,) in db.execute("SELECT name FROM configs WHERE agent = ?", (agent,))} - {*beside}
        db.executemany("DELETE FROM configs WHERE agent = ? AND name = ?", [(agent, name) for name in gone])
        row = (agent, label.name, config.entry.modified_ns, label.type, label.encoding, json.dumps(label.metadata))
        db.execute(_INSERT, row)
        self._audit.append(db, "config_attached", agent=label.agent, name=label.name, size=config.entry.size, by=by)


_ALL = "SELECT agent, name, modified_ns, type, encoding, metadata FROM configs"
_INSERT = (
    "INSERT OR REPLACE INTO configs (agent, name, modified_ns, type, encoding, metadata) VALUES (?, ?, ?, ?, ?, ?)"
)


def _check(label: Label) -> None:
    _check_agent(label.agent)
    if not is_file_name(label.name):
        rule = "a file name of 1 to 255 bytes: no folder, no control characters, and not beginning with - . or ~"
        raise _invalid("name", rule)
    if label.agent is not None and folded(label.name) == SHARED_INSIDE:
        raise _invalid("name", f"another than {SHARED_INSIDE}: that is the folder of what is for all agents")
    if len(label.type) > TYPE_LIMIT or not label.type.isprintable():
        raise _invalid("type", f"at most {TYPE_LIMIT} characters on one line")
    if len(json.dumps(label.metadata)) > METADATA_LIMIT:
        raise _invalid("metadata", f"at most {METADATA_LIMIT} bytes of JSON")


def _check_agent(agent: str | None) -> None:
    """Raises invalid_params for what cannot be an agent's name; one that is not known yet may have files."""
    if agent is not None and not is_name(agent):
        raise _invalid("agent", "the name of an agent")


def too_large(name: str) -> ArmorclawError:
    """A file has at most `FILE_LIMIT` bytes."""
    why = f"a file may have {FILE_LIMIT // MIB} MiB"
    return ArmorclawError("too_large", f"config {name!r}", why=why, hint="split it", limit=FILE_LIMIT)


def _invalid(field: str, rule: str) -> ArmorclawError:
    return ArmorclawError("invalid_params", f"{field} is not valid", why=f"it must be {rule}", fields=[field])
