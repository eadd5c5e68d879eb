"""A Trio program with a bridge in it: what people write in a room goes into a channel, where the program picks it up.

python examples/in_a_trio_program.py armorclaw.toml '!room:your.org'
"""

from __future__ import annotations

import sys
from pathlib import Path

import trio

from armorclaw import Config, open_bridge
from armorclaw.agent import AsyncMessage

Order = tuple[AsyncMessage, trio.Event]


async def count(orders: trio.MemoryReceiveChannel[Order]) -> None:
    """The program proper: it owns its tasks, and answers in its own time."""
    number = 0
    async for message, done in orders:
        number += 1
        await message.reply(f"order {number}: {message.body}")
        done.set()


async def main(config: Config, room: str) -> None:
    send, receive = trio.open_memory_channel[Order](0)  # a program that is busy slows the room down
    async with open_bridge(config) as bridge:
        orders = bridge.attach("orders", rooms=[room])

        @orders.on_message
        async def take(message: AsyncMessage) -> None:
            done = trio.Event()
            await send.send((message, done))
            await done.wait()  # returning acknowledges the message: only what was answered does not come again

        async with trio.open_nursery() as nursery:
            nursery.start_soon(count, receive)
            await nursery.start(orders.run)
            await bridge.until_joined([room])
            print("listening", flush=True)


if __name__ == "__main__":
    try:
        # Ctrl-C comes to `main` where it waits, not in the middle of whatever the bridge is doing
        trio.run(main, Config.load(Path(sys.argv[1])), sys.argv[2], restrict_keyboard_interrupt_to_checkpoints=True)
    except KeyboardInterrupt:
        pass
