"""Connections of one listener, each served until it ends: bounded in number, in time and in what they may send."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection

import trio

from armorclaw.errors import one_error, trace
from armorclaw.log import get_logger
from armorclaw.rpc.quiet import Quiet
from armorclaw.rpc.unix import PeerCredentials, accept_one, peer_of
from armorclaw.web.exchange import Exchange, GoneError, Inbox, WebLimits
from armorclaw.web.head import Form
from armorclaw.web.messages import HttpError, Response

log = get_logger(__name__)

TURN_AWAYS = 8
"""Clients of one listener that are told why they cannot come in and have time to read it; any more are closed."""

Handler = Callable[[Exchange], Awaitable[Response | None]]
"""Answers one request: with what it returns, or by the means of the exchange; raises HttpError to refuse."""

PATHS_ONLY = frozenset({Form.ORIGIN})


async def serve_http(
    listener: trio.SocketListener,
    handler: Handler,
    *,
    name: str,
    limits: WebLimits | None = None,
    accepts: Collection[Form] = PATHS_ONLY,
    allow: Callable[[PeerCredentials], bool] | None = None,
    pause: Callable[[], float] | None = None,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve every connection of this listener until cancelled; `name` is what logs call it.

    `allow`, for a Unix socket, is asked before a byte is read. `pause` is asked before each accept and answers the
    seconds to wait. `accepts` says what targets of requests the handler knows; others are refused. One connection's
    fault never reaches another.
    """
    limits = limits or WebLimits()
    quiet = Quiet()
    room = trio.Semaphore(limits.connections)
    turned_away = 0

    async def serve_one(stream: trio.SocketStream) -> None:
        try:
            await serve_stream(stream, handler, name=name, limits=limits, accepts=accepts, quiet=quiet)
        finally:
            room.release()

    async def has_room(stream: trio.SocketStream) -> bool:
        try:
            room.acquire_nowait()
            return True
        except trio.WouldBlock:
            pass
        try:
            with trio.move_on_after(limits.room):
                await room.acquire()
                return True
        except trio.Cancelled:
            stream.socket.close()
            raise
        return False

    async def turn_away(stream: trio.SocketStream, why: HttpError) -> None:
        nonlocal turned_away
        try:
            exchange = Exchange(Inbox(stream), limits, accepts)
            await exchange.refuse(why.response())
            await exchange.finish()
        except GoneError:
            pass
        finally:
            turned_away -= 1
            stream.socket.close()

    async with listener, trio.open_nursery() as nursery:
        task_status.started()
        while True:
            if pause is not None and (seconds := pause()):
                await trio.sleep(seconds)
            stream = await accept_one(listener, quiet)
            if stream is None:
                continue
            why = None
            if allow is not None:
                with peer_of(stream.socket) as peer:
                    if not allow(peer):
                        quiet(log.warning, "caller refused", name=name, uid=peer.uid, pid=peer.pid)
                        why = HttpError(403, "this socket is not for your process")
            if why is None and not await has_room(stream):
                quiet(log.warning, "too many connections", name=name)
                why = HttpError(503, f"there are {limits.connections} connections already")
            if why is None:
                nursery.start_soon(serve_one, stream, name=f"{name} connection")
            elif turned_away < TURN_AWAYS:
                turned_away += 1
                nursery.start_soon(turn_away, stream, why, name=f"{name} turn away")
            else:
                stream.socket.close()


async def serve_stream(
    stream: trio.abc.Stream,
    handler: Handler,
    *,
    name: str = "web",
    limits: WebLimits | None = None,
    accepts: Collection[Form] = PATHS_ONLY,
    quiet: Quiet | None = None,
) -> None:
    """Serve one connection and close it. Raises nothing but Cancelled."""
    inbox, limits, quiet = Inbox(stream), limits or WebLimits(), quiet or Quiet()
    try:
        # each request has a new h11.Connection: what came behind the one before is looked at like any other head
        while await _serve_one(Exchange(inbox, limits, accepts), handler, name, quiet):
            pass
    except (GoneError, trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    except Exception as error:  # noqa: BLE001 - it is this connection's own
        quiet(log.error, "connection failed", name=name, trace=trace(error))
    finally:
        await trio.aclose_forcefully(stream)


async def _serve_one(exchange: Exchange, handler: Handler, name: str, quiet: Quiet) -> bool:
    """Whether there may be another request."""
    try:
        if not await exchange.begin():
            return False
        with one_error():
            await exchange.run(handler)
    except HttpError as error:
        await exchange.refuse(error.response())
    except (GoneError, trio.BrokenResourceError, trio.ClosedResourceError):
        raise
    except Exception as error:  # noqa: BLE001 - the handler's; the client hears no more than that
        quiet(log.error, "request failed", name=name, trace=trace(error))
        await exchange.refuse(Response.plain(500, "armorclaw: something went wrong; the bridge's log says what\n"))
    return await exchange.finish()
