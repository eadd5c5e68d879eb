"""An asyncio program with a bridge in it. The bridge has a thread of its own; handlers cross over into the loop.

python examples/in_an_asyncio_program.py armorclaw.toml '!room:your.org'
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from armorclaw import Config, Message, run_in_thread
from armorclaw.threaded import ThreadedBridge


async def think(text: str) -> str:
    """Whatever the program awaits: a model, a database."""
    await asyncio.sleep(0.01)
    return text[::-1]


async def main(bridge: ThreadedBridge, room: str) -> None:
    loop = asyncio.get_running_loop()
    agent = bridge.attach("thinker", rooms=[room])

    @agent.on_message
    def answer(message: Message) -> None:  # on a worker thread; returning acknowledges the message
        message.reply(asyncio.run_coroutine_threadsafe(think(message.body), loop).result())

    agent.start()
    await asyncio.to_thread(bridge.until_joined, [room])
    print("listening", flush=True)
    await asyncio.Event().wait()


if __name__ == "__main__":
    with run_in_thread(Config.load(Path(sys.argv[1]))) as bridge:
        try:
            asyncio.run(main(bridge, sys.argv[2]))
        except KeyboardInterrupt:
            pass
