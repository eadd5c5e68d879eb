"""An agent on asyncio: answers people, and is asked by programs, whom it shows how far it got.

armorclaw call agent.call --params '{"agent": "counter", "method": "primes", "params": {"below": 30}}'
"""

import asyncio

from armorclaw.agent import AsyncAgent, AsyncCall, AsyncMessage

agent = AsyncAgent()


async def primes(below: int) -> list[int]:
    """Slowly, so that others get a turn."""
    found: list[int] = []
    for number in range(2, below):
        if all(number % prime for prime in found):
            found.append(number)
        await asyncio.sleep(0)
    return found


@agent.on_message
async def reply(message: AsyncMessage) -> None:
    await message.reply(f"{len(await primes(int(message.body)))} primes")


@agent.on_call("primes")
async def tell(call: AsyncCall) -> int:
    found = await primes(call.params["below"])
    for done, prime in enumerate(found, 1):
        await call.send(prime)  # waits while the caller does not read; a caller that leaves ends this
        call.progress(done, len(found), f"{prime} is one")
    return len(found)


agent.run()
