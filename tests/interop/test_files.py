"""Pictures in encrypted rooms, both ways."""

from __future__ import annotations

import base64
import hashlib
import secrets
from pathlib import Path
from typing import Any

from tests.interop.ours import Bot, joined, room_of
from tests.interop.peers import Kind, Peers

SIZE = 500_001


async def test_a_picture_each_way(peers: Peers, bot: Bot, kind: Kind, tmp_path: Path) -> None:
    alice = await peers(kind)
    room = await room_of(bot, alice)
    picture = tmp_path / "theirs.png"
    picture.write_bytes(secrets.token_bytes(SIZE))
    async with bot.open(room) as ours:
        await joined(room, bot, alice)
        await alice.do("send_file", room_id=room, path=str(picture), mimetype="image/png", msgtype="m.image")
        heard = await ours.hears("theirs.png")
        found = b""
        async with ours.bridge.stream("matrix.download", room_id=room, event_id=heard.event_id) as download:
            async for piece in download:
                found += base64.b64decode(piece)
            told = await download.result()
        assert found == picture.read_bytes()
        assert (told["encrypted"], told["mimetype"]) == (True, "image/png")

        data = secrets.token_bytes(SIZE)
        asked: dict[str, Any] = {"room_id": room, "name": "ours.png", "size": SIZE, "mimetype": "image/png"}
        async with ours.bridge.stream("matrix.upload", **asked) as upload:
            for start in range(0, SIZE, 64 * 1024):
                await upload.send(data[start : start + 64 * 1024])
            await upload.end()
            kept = await upload.result()
        assert kept["encrypted"]
        await ours.say(room, "ours.png", content=kept["content"])
        content = (await alice.sees("ours.png"))["content"]
        assert (content["msgtype"], content["info"]["size"], "url" in content) == ("m.image", SIZE, False)
        assert await alice.do("fetch_file", file=content["file"]) == hashlib.sha256(data).hexdigest()


async def test_a_picture_whose_message_is_erased_here(peers: Peers, bot: Bot, kind: Kind, tmp_path: Path) -> None:
    """The homeserver still has the message, and the bridge its key."""
    alice = await peers(kind)
    room = await room_of(bot, alice)
    picture = tmp_path / "old.png"
    picture.write_bytes(secrets.token_bytes(1000))
    async with bot.open(room) as ours:
        await joined(room, bot, alice)
        await alice.do("send_file", room_id=room, path=str(picture), mimetype="image/png", msgtype="m.image")
        heard = await ours.hears("old.png")
        erase = "UPDATE journal SET content = x'7b7d', erased = 1 WHERE event_id = ?"
        await ours.bridge.database.write(lambda db: db.execute(erase, [heard.event_id]))
        async with ours.bridge.stream("matrix.download", room_id=room, event_id=heard.event_id) as download:
            found = b"".join([base64.b64decode(piece) async for piece in download])
        assert found == picture.read_bytes()
