"""The other side of `matrix`: mautrix on asyncio with python-olm and its SQLite stores; it receives, or sends.

It is the peer of the interoperability tests, which handles answers in order and pages for what they leave out. It
says what our side says.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

from tests.bench._matrix_child import cpu, say, settings
from tests.interop.children.mautrix_peer import MautrixDevice


def note(seen: str, **more: Any) -> None:
    """A message, when it can be read."""
    if seen == "timeline" and more["type"] == "m.room.message":
        say(body=more["content"]["body"], at=time.monotonic())


async def main(given: dict[str, Any]) -> None:
    device = MautrixDevice(note)
    say(began=time.monotonic())
    await device.do_open(given["homeserver"], given["user"], given["password"], given["folder"], "bench")
    await device.do_sync()
    say(ready=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.buffer.readline):
        say(**await _carry_out(device, json.loads(line)))
    await device.do_close()


async def _carry_out(device: MautrixDevice, order: dict[str, Any]) -> dict[str, Any]:
    match order["do"]:
        case "cpu":
            return {"cpu": cpu()}
        case "room":
            return {"room": await device.do_create_room(order["invite"], order["encrypted"], None, False)}
        case "send":
            content = {"msgtype": "m.text", "body": order["body"]}
            began = time.monotonic()
            await device.do_send(order["room"], content)
            return {"sent": began}
        case unknown:
            raise ValueError(unknown)


if __name__ == "__main__":
    asyncio.run(main(settings()))
