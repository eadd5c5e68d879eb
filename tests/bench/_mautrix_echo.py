"""The baseline of `conversation`: an echo agent as one writes it with mautrix on asyncio, and nothing around it.

`python -m tests.bench._mautrix_echo HOMESERVER USER_ID ROOM_ID`, with the password on stdin. It prints `ready` when
its sync runs. The answer it sends is the same event that the example agent of the bridge sends.
"""

from __future__ import annotations

import asyncio
import sys

from mautrix.client import Client
from mautrix.client.syncer import InternalEventType
from mautrix.types import (
    EventType,
    InReplyTo,
    MessageEvent,
    MessageType,
    PresenceState,
    RelatesTo,
    RoomID,
    TextMessageEventContent,
    UserID,
)


async def main(homeserver: str, user: str, room: str, password: str) -> None:
    client = Client(UserID(user), base_url=homeserver)
    client.ignore_initial_sync = True
    client.presence = PresenceState.OFFLINE

    async def echo(event: MessageEvent) -> None:
        if event.sender == client.mxid:
            return
        relation = RelatesTo(in_reply_to=InReplyTo(event_id=event.event_id))
        text = f"echo: {event.content.body}"
        content = TextMessageEventContent(msgtype=MessageType.TEXT, body=text)
        content.relates_to = relation
        await client.send_message(event.room_id, content)

    async def say_ready(data: object) -> None:
        print("ready", flush=True)
        client.remove_event_handler(InternalEventType.SYNC_SUCCESSFUL, say_ready)

    client.add_event_handler(EventType.ROOM_MESSAGE, echo)
    client.add_event_handler(InternalEventType.SYNC_SUCCESSFUL, say_ready)
    try:
        await client.login(password=password)
        await client.join_room_by_id(RoomID(room))
        await client.start(None)
    finally:
        await client.api.session.close()


if __name__ == "__main__":
    asyncio.run(main(sys.argv[1], sys.argv[2], sys.argv[3], sys.stdin.readline().strip()))
