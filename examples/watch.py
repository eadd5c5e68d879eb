"""A program beside the bridge: what happens in it, as it happens, over restarts of the bridge and of this program.

python examples/watch.py /run/armorclaw/bridge.sock
"""

from __future__ import annotations

import sys

import trio

import armorclaw


async def main(socket: str) -> None:
    async with armorclaw.connect(socket) as client, trio.open_nursery() as nursery:
        status = await client.methods.status()
        print(f"bridge {status.version}, {status.containers} containers", flush=True)
        for agent in await client.methods.containers_list():
            nursery.start_soon(follow, client, agent.name)
        # the bridge remembers under this name how far we got: after a crash the rest comes, not everything
        async with client.subscribe("watch", types=["m.room.message"]) as events:
            async for event in events:  # asking for the next acknowledges the last
                print(f"{event['sender']} in {event['room_id']}: {event['content'].get('body')}", flush=True)


async def follow(client: armorclaw.Client, agent: str) -> None:
    """What an agent prints. While this program is stopped, nothing more is sent to it."""
    async with client.methods.containers_logs(name=agent, follow=True, tail=5) as logs:
        async for piece in logs:
            print(f"{agent} | {piece.text}", end="", flush=True)


if __name__ == "__main__":
    try:
        trio.run(main, sys.argv[1], restrict_keyboard_interrupt_to_checkpoints=True)
    except* KeyboardInterrupt:
        pass
