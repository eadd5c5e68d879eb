"""The smallest agent: says what it was told."""

from armorclaw.agent import Agent, Message

agent = Agent()


@agent.on_message
def reply(msg: Message) -> None:
    msg.reply("echo: " + msg.body)


agent.run()
