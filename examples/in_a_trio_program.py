"""A Trio program with a bridge in it: what people write in a room goes into a channel, where the program picks it up.

python examples/in_a_trio_program.py armorclaw.toml '!room:your.org'
"""

from __future__ import annotations

import sys
from pathlib import Path

import trio

from armorclaw import Config, open_bridge
from armorclaw.agent import AsyncMessage


async def count(orders: trio.MemoryReceiveChannel[AsyncMessage]) -> None:
    """The program proper: it owns its tasks, and answers in its own time."""
    number = 0
    async for message in orders:
        number += 1
        await message.reply(f"order {number}: {message.body}")


async def main(config: Config, room: str) -> None:
    send, receive = trio.open_memory_channel[AsyncMessage](0)  # a full channel slows the room down, loses nothing
    async with open_bridge(config) as bridge:
        orders = bridge.attach("orders", rooms=[room])

        @orders.on_message
        async def take(message: AsyncMessage) -> None:
            await send.send(message)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(count, receive)
            await nursery.start(orders.run)
            await bridge.until_joined([room])
            print("listening", flush=True)


if __name__ == "__main__":
    try:
        trio.run(main, Config.load(Path(sys.argv[1])), sys.argv[2])
    except KeyboardInterrupt:
        pass
