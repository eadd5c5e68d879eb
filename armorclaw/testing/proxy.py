"""HTTP between a bridge and its homeserver, that loses answers and goes away when it is told to.

It runs in a thread and a Trio loop of its own, so that any test can hold one; what it is told takes effect before the
call returns. Bodies are passed on whole, one request at a time on each connection, as both sides do it.
"""

from __future__ import annotations

import re
import threading
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Literal, Self, get_args
from urllib.parse import urlsplit

import h11
import trio

from armorclaw.errors import ArmorclawError, one_error

How = Literal["silent", "down", "bad_gateway"]
"""A homeserver that is away: says nothing at all, refuses connections, or has a gateway in front that answers 502."""

_KIND = re.compile(r"(GET|PUT|POST|DELETE) \w+")

READ_SIZE = 64 * 1024
_SECONDS = 10.0
_HOP = (b"connection", b"keep-alive", b"transfer-encoding", b"content-length", b"te", b"upgrade")


class FaultProxy:
    """Passes on what comes to `url` to the homeserver at `upstream`. Use it as a context manager."""

    def __init__(self, upstream: str) -> None:
        parts = urlsplit(upstream)
        if parts.scheme != "http" or parts.hostname is None:
            raise ArmorclawError("invalid_params", f"a fault proxy speaks plain HTTP, not {upstream}")
        self.upstream = upstream
        self.port = 0
        self.lost: Counter[str] = Counter()
        """Answers that were lost, by kind of request, such as `PUT send`."""
        self._host, self._upstream_port = parts.hostname, parts.port or 80
        self._lose: Counter[str] = Counter()
        self._away: How | None = None
        self._back = trio.Event()
        self._connections: set[trio.CancelScope] = set()
        self._ready = threading.Event()
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="fault proxy", daemon=True)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def lose_next_response(self, kind: str = "PUT send", *, times: int = 1) -> None:
        """The next request of this kind is carried out, and the connection cut instead of its answer.

        `lost` counts those that were. Raises `invalid_params` for what is no kind of request.
        """
        if not _KIND.fullmatch(kind):
            hint = "name a method and what the request is about: PUT send, GET sync, POST receipt"
            raise ArmorclawError("invalid_params", f"{kind!r} is no kind of request", hint=hint)
        self._ask(self._will_lose, kind, times)

    @contextmanager
    def pause(self, how: How = "silent") -> Iterator[None]:
        """For the length of the block the homeserver is away. A silent one answers afterwards what it was asked.

        Raises `invalid_params` for another way of being away than there is.
        """
        if how not in get_args(How):
            raise ArmorclawError("invalid_params", f"how={how!r}", hint=f"one of {', '.join(get_args(How))}")
        self._ask(self._leave, how)
        try:
            yield
        finally:
            self._ask(self._return)

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._ready.wait(_SECONDS) or self._failure is not None:
            raise ArmorclawError("start_failed", "the fault proxy did not start", why=str(self._failure))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._token.run_sync_soon(lambda: self._nursery.cancel_scope.cancel(reason="the proxy is no longer needed"))
        self._thread.join()

    def _ask(self, do: Callable[..., Awaitable[object]], *args: Any) -> None:
        """Have it done in the proxy's loop. Blocks for a moment, also a Trio loop that this is called from."""
        done: Future[None] = Future()

        async def work() -> None:
            try:
                await do(*args)
            except BaseException as error:
                done.set_exception(error)
                raise
            done.set_result(None)

        self._token.run_sync_soon(self._nursery.start_soon, work)
        done.result(_SECONDS)

    # --- below: the proxy's own thread ---

    def _run(self) -> None:
        try:
            trio.run(self._main)
        except BaseException as error:  # noqa: BLE001 - whoever waits for the start is told
            self._failure = error
        finally:
            self._ready.set()

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        async with trio.open_nursery() as self._nursery:
            await self._listen()
            self._ready.set()
            await trio.sleep_forever()

    async def _listen(self) -> None:
        """On the same port each time."""
        (listener,) = await trio.open_tcp_listeners(self.port, host="127.0.0.1")
        self.port = listener.socket.getsockname()[1]
        self._listening = trio.CancelScope()

        async def serve() -> None:
            with self._listening:
                await trio.serve_listeners(self._serve, [listener], handler_nursery=self._nursery)

        self._nursery.start_soon(serve)

    async def _will_lose(self, kind: str, times: int) -> None:
        await trio.lowlevel.checkpoint()
        self._lose[kind] += times

    async def _leave(self, how: How) -> None:
        self._away, self._back = how, trio.Event()
        if how == "silent":
            await trio.lowlevel.checkpoint()
            return
        if how == "down":
            self._listening.cancel(reason="the homeserver is down")
        for scope in self._connections:
            scope.cancel(reason="the homeserver has gone")
        while self._connections:  # noqa: ASYNC110 - each ends by itself now
            await trio.sleep(0.001)

    async def _return(self) -> None:
        await trio.lowlevel.checkpoint()
        was, self._away = self._away, None
        if was == "down":
            await self._listen()
        self._back.set()

    async def _serve(self, client: trio.SocketStream) -> None:
        with trio.CancelScope() as scope:
            self._connections.add(scope)
            try:
                async with client:
                    upstream = await trio.open_tcp_stream(self._host, self._upstream_port)
                    async with upstream:
                        await self._pass_on(_Side(client, h11.SERVER), _Side(upstream, h11.CLIENT))
            except (OSError, trio.BrokenResourceError, h11.ProtocolError):
                pass  # one of both is gone, and with it the connection to the other
            finally:
                self._connections.discard(scope)

    async def _pass_on(self, client: _Side, upstream: _Side) -> None:
        while (asked := await client.receive()) is not None:
            request, body = asked
            assert isinstance(request, h11.Request)
            if self._away == "bad_gateway":
                await client.send(h11.Response(status_code=502, headers=[("content-type", "text/plain")]), b"away")
                continue
            await self._while_silent()
            headers = [(name, value) for name, value in request.headers if name not in _HOP]
            await upstream.send(h11.Request(method=request.method, target=request.target, headers=headers), body)
            answered = await self._answer(client, upstream)
            if answered is None:
                return
            await self._while_silent()
            kind = kind_of(request.method.decode(), request.target.decode())
            if self._lose[kind] > 0:
                self._lose[kind] -= 1
                self.lost[kind] += 1
                return
            response, answer = answered
            assert isinstance(response, h11.Response)
            kept = [(name, value) for name, value in response.headers if name not in _HOP]
            await client.send(h11.Response(status_code=response.status_code, headers=kept), answer)

    async def _answer(self, client: _Side, upstream: _Side) -> tuple[Any, bytes] | None:
        """What upstream answers; None as soon as the client no longer waits for it."""
        answered: tuple[Any, bytes] | None = None

        async def watch() -> None:
            await client.ended()
            nursery.cancel_scope.cancel(reason="nobody waits for the answer")

        with one_error():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(watch)
                answered = await upstream.receive()
                nursery.cancel_scope.cancel(reason="it is answered")
        return answered

    async def _while_silent(self) -> None:
        while self._away == "silent":
            await self._back.wait()


class _Side:
    """One of the two connections, message by message."""

    def __init__(self, stream: trio.SocketStream, role: Any) -> None:
        self._stream = stream
        self._http = h11.Connection(role)

    async def receive(self) -> tuple[Any, bytes] | None:
        """The next message and its body; None at the end."""
        head: Any = None
        body = bytearray()
        while True:
            event = self._http.next_event()
            if event is h11.NEED_DATA:
                self._http.receive_data(await self._stream.receive_some(READ_SIZE))
            elif isinstance(event, h11.Request | h11.Response):
                head = event
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                return head, bytes(body)
            elif isinstance(event, h11.ConnectionClosed) or event is h11.PAUSED:
                return None

    async def send(self, head: h11.Request | h11.Response, body: bytes) -> None:
        """A whole message; the connection is then ready for the next."""
        headers = [*head.headers, (b"content-length", str(len(body)).encode())]
        if isinstance(head, h11.Request):
            head = h11.Request(method=head.method, target=head.target, headers=headers)
        else:
            head = h11.Response(status_code=head.status_code, headers=headers)
        if self._http.our_state is h11.DONE:
            self._http.start_next_cycle()
        parts = (head, h11.Data(data=body), h11.EndOfMessage())
        await self._stream.send_all(b"".join(self._http.send(part) or b"" for part in parts))
        if self._http.our_state is self._http.their_state is h11.DONE:
            self._http.start_next_cycle()

    async def ended(self) -> None:
        """Until the other end has closed; it must have nothing to say before it is answered."""
        await trio.lowlevel.wait_readable(self._stream.socket)


def kind_of(method: str, target: str) -> str:
    """A request in two words: the method, and what of the Matrix API it is about: `PUT send`, `POST keys_claim`."""
    words = target.partition("?")[0].strip("/").split("/")[3:] or [""]
    if words[0] == "keys":
        return f"{method} {'_'.join(words[:2])}"
    return f"{method} {words[2] if words[0] == 'rooms' and len(words) > 2 else words[0]}"
