"""From a client to a town, without a socket: for tests in simulated time."""

from __future__ import annotations

import httpx
import trio

from tests.faults.town import Town
from tests.matrix.fake_homeserver import Asked, Raw


class Wire(httpx.AsyncBaseTransport):
    """`log` has the kinds of what was asked, in order, `tokens` those access tokens that came along."""

    def __init__(self, town: Town) -> None:
        self.town = town
        self.log: list[str] = []
        self.tokens: set[str] = set()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        headers = {name.decode().lower(): value.decode() for name, value in request.headers.raw}
        asked = Asked(request.method, request.url.raw_path.decode(), headers, request.content)
        self.log.append(self.town.kind(asked))
        if "authorization" in headers:
            self.tokens.add(headers["authorization"].removeprefix("Bearer "))
        await trio.sleep(0.01)
        reply = await self.town.answer(asked)
        if isinstance(reply, Raw):
            raise httpx.RemoteProtocolError("the connection was cut")
        return httpx.Response(reply.status, headers=reply.headers, stream=httpx.ByteStream(reply.body))
