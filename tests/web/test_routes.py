from __future__ import annotations

import pytest

from armorclaw.web.exchange import Exchange
from armorclaw.web.messages import Response
from armorclaw.web.routes import Routes
from tests.web.talk import converse


async def page(exchange: Exchange) -> Response:
    return Response.plain(200, "page")


async def form(exchange: Exchange) -> Response:
    return Response.plain(200, f"form {len(await exchange.body())}")


ROUTES = Routes({("GET", "/"): page, ("POST", "/"): form, ("POST", "/only"): form})


@pytest.mark.parametrize(
    "line, status",
    [
        ("GET /", 200),
        ("GET /?a=b", 200),
        ("HEAD /", 200),
        ("POST /", 200),
        ("GET /only", 405),
        ("HEAD /only", 405),
        ("PUT /", 405),
        ("GET /nowhere", 404),
        ("GET /only/", 404),
        ("GET /./", 404),
        ("GET /%2e", 404),
        ("GET /%6fnly", 404),
        ("GET /ONLY", 404),
    ],
)
async def test_the_table_is_exact(line: str, status: int, autojump_clock: object) -> None:
    answer = await converse([f"{line} HTTP/1.1\r\nHost: x\r\n\r\n".encode()], ROUTES)
    assert answer.statuses == [status]
    assert not answer.closed


async def test_it_says_which_methods_there_are(autojump_clock: object) -> None:
    answer = await converse([b"PUT / HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /only HTTP/1.1\r\nHost: x\r\n\r\n"], ROUTES)
    assert b"allow: GET, POST, HEAD\r\n" in answer.raw
    assert b"allow: POST\r\n" in answer.raw
