"""What an agent is written with: standard library only, Python 3.9 or newer.

Ten lines make an agent:

    from armorclaw.agent import Agent

    agent = Agent()

    @agent.on_message
    def reply(msg):
        msg.reply("echo: " + msg.body)

    agent.run()

`AsyncAgent` is the same for asyncio. The bridge mounts this package into any image that has a Python; what it sets
up there, and the wire for agents in other languages, is in docs/agent.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from armorclaw.agent.agent import Agent
from armorclaw.agent.answers import Answer, AsyncAnswer
from armorclaw.agent.calls import AsyncCall, Call
from armorclaw.agent.errors import AgentError, CallCancelledError
from armorclaw.agent.events import Delivery, Event, Receipt
from armorclaw.agent.files import File
from armorclaw.agent.link import Stream
from armorclaw.agent.messages import AsyncMessage, Message
from armorclaw.agent.rooms import AsyncRoom, Room
from armorclaw.agent.secrets import Secret, Secrets

if TYPE_CHECKING:
    from armorclaw.agent.aio import AsyncAgent
    from armorclaw.agent.aio_link import AsyncStream

__all__ = [
    "Agent",
    "AgentError",
    "Answer",
    "AsyncAgent",
    "AsyncAnswer",
    "AsyncCall",
    "AsyncMessage",
    "AsyncRoom",
    "AsyncStream",
    "Call",
    "CallCancelledError",
    "Delivery",
    "Event",
    "File",
    "Message",
    "Receipt",
    "Room",
    "Secret",
    "Secrets",
    "Stream",
]


def __getattr__(name: str) -> object:
    if name in ("AsyncAgent", "AsyncStream"):  # asyncio doubles the time and memory a small agent takes to start
        from armorclaw.agent import aio

        value: object = getattr(aio, name)
        return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
