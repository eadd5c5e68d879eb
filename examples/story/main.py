"""An agent that tells stories: in a thread of their own, shown as they are written; reactions say how it goes."""

import asyncio
from collections.abc import AsyncIterator

from armorclaw.agent import AsyncAgent, AsyncMessage

agent = AsyncAgent()


async def tell(about: str) -> AsyncIterator[str]:
    """In place of a language model: word by word, as Markdown."""
    text = f"Once there was **{about}**.\n\n1. It came.\n2. It saw.\n3. And it lived *happily ever after*."
    for word in text.split(" "):
        await asyncio.sleep(0.1)
        yield f"{word} "


@agent.on_message
async def story(message: AsyncMessage) -> None:
    seen = await message.react("👀")
    async with message.stream(thread=True) as answer:  # people see typing, the first words, then edits
        async for words in tell(message.body):
            await answer.write(words)
    await message.room.redact(seen)
    await message.react("📖")


agent.run()
