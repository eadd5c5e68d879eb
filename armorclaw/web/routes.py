"""Which handler answers: an exact table, nothing resolved, nothing decoded."""

from __future__ import annotations

from collections.abc import Mapping

from armorclaw.web.exchange import Exchange
from armorclaw.web.messages import HttpError, Response
from armorclaw.web.server import Handler


class Routes:
    """A handler made of handlers, by method and path. HEAD is answered where GET is."""

    def __init__(self, table: Mapping[tuple[str, str], Handler]) -> None:
        self._table = dict(table)

    async def __call__(self, exchange: Exchange) -> Response | None:
        """Raises HttpError 404 and 405."""
        path, method = exchange.request.path, exchange.request.method
        handler = self._table.get(("GET" if method == "HEAD" else method, path))
        if handler is not None:
            return await handler(exchange)
        methods = sorted(method for method, known in self._table if known == path)
        if not methods:
            raise HttpError(404, "there is nothing here")
        if "GET" in methods:
            methods.append("HEAD")
        raise HttpError(405, "not by this method", headers=(("allow", ", ".join(methods)),))
