"""An agent that keeps files and gives them back, and takes back what people do not like."""

import os
from pathlib import Path

from armorclaw.agent import Agent, AgentError, Message

agent = Agent()
shelf = Path(os.environ["ARMORCLAW_DATA_DIR"])  # outlives the agent


@agent.on_message(typing=True)  # people see that it is at work
def keep(message: Message) -> None:
    if message.msgtype in ("m.image", "m.file", "m.audio", "m.video"):
        file = message.download(shelf / "newest")
        message.reply(markdown=f"I have **{file.size} bytes** of yours.", mentions=[message.sender])
    elif message.body == "give it back":
        message.room.send_file(shelf / "newest", name="yours", caption="here it is", reply_to=message.event_id)


@agent.on_event("m.reaction")
def judged(reaction: Message) -> None:
    relation = reaction.content.get("m.relates_to", {})
    if relation.get("key") == "👎":
        try:
            reaction.room.redact(relation["event_id"], "people did not like it")
        except AgentError as error:
            if error.name != "message_denied":  # it was not ours
                raise


agent.run()
