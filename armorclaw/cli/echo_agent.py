"""The agent of `armorclaw demo`: says back what it hears. It runs as a copy of this one file, in a container."""

from __future__ import annotations

from armorclaw.agent import Agent, Message

agent = Agent()


@agent.on_message
def answer(message: Message) -> None:
    """Reply to each message of the room."""
    message.reply(f"echo: {message.body}")


if __name__ == "__main__":
    agent.run()
