"""kill -9 while a file is on its way through the bridge: it can be done again, and nothing of it lies about."""

from __future__ import annotations

import base64
import hashlib
import json
import secrets
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.interop.daemons import Daemon, behind_a_proxy, until_dead
from tests.interop.ours import Bot, joined, room_of
from tests.interop.peers import Peers

MARK = secrets.token_bytes(64)
"""All of the plaintext, over and over: no block of a disk has any of the file and not this."""

DATA = MARK * 50_000
PIECE = 64 * 1024


async def upload(daemon: Daemon, room: str, *, upto: int = len(DATA)) -> dict[str, Any]:
    """What a message about it says; killed in between if it is not all."""
    asked: dict[str, Any] = {"room_id": room, "name": "ours.bin", "size": len(DATA)}
    async with daemon.bridge.stream("matrix.upload", **asked) as stream:
        for start in range(0, upto, PIECE):
            await stream.send(DATA[start : start + PIECE])
        if upto < len(DATA):
            await daemon.kill()
        await stream.end()
        kept: dict[str, Any] = (await stream.result())["content"]
        return kept


async def download(daemon: Daemon, room: str, event_id: str, *, die: bool = False) -> str:
    """Its hash."""
    found = hashlib.sha256()
    async with daemon.bridge.stream("matrix.download", room_id=room, event_id=event_id) as stream:
        async for piece in stream:
            found.update(base64.b64decode(piece))
            if die:
                await daemon.kill()
        await stream.result()
    return found.hexdigest()


async def test_while_files_are_on_their_way(
    peers: Peers, bot: Bot, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setenv("TMPDIR", str(temporary))  # the bridge's own
    alice = await peers("mautrix")
    room = await room_of(bot, alice)
    async with behind_a_proxy(bot, room) as daemon:

        def clean() -> None:
            assert not list(temporary.iterdir())
            found = [path for path in bot.folder.rglob("*") if path.is_file() and MARK in path.read_bytes()]
            assert not found

        await daemon.start()
        await joined(room, bot, alice)
        async with daemon.connected():
            assert not await until_dead(partial(upload, daemon, room, upto=len(DATA) // 2))
            clean()
            await daemon.start()
            await daemon.die_at("POST upload", partial(upload, daemon, room))
            clean()
            await daemon.start()
            content = json.dumps(await upload(daemon, room))
            say = partial(
                daemon.bridge.call, "matrix.send", room_id=room, message="ours.bin", content=json.loads(content)
            )
            daemon.proxy.lose_next_response("GET sync")  # else it may hear from there that it was sent
            await daemon.die_at("PUT send", partial(say, idempotency_key="once"))
            clean()
            await daemon.start()
            await say(idempotency_key="once")
            seen = await alice.sees("ours.bin")
            assert await alice.do("fetch_file", file=seen["content"]["file"]) == hashlib.sha256(DATA).hexdigest()
            await daemon.converse(alice, room, "after uploads")
            assert [seen["sender"] for seen in alice.seen if seen["seen"] == "timeline"] == [
                bot.user_id,
                alice.user_id,
                bot.user_id,
            ]
            assert alice.unread() == []

            theirs = tmp_path / "theirs.bin"
            theirs.write_bytes(DATA)
            order: dict[str, Any] = {"path": str(theirs), "mimetype": "application/octet-stream", "msgtype": "m.file"}
            event_id = (await alice.do("send_file", room_id=room, **order))["event_id"]
            await daemon.converse(alice, room, "after the file")
            assert not await until_dead(partial(download, daemon, room, event_id, die=True))
            clean()
            await daemon.start()
            await daemon.die_at("GET media", partial(download, daemon, room, event_id))
            clean()
            await daemon.start()
            assert await download(daemon, room, event_id) == hashlib.sha256(DATA).hexdigest()
            await daemon.kill()
            clean()
