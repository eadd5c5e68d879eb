"""The transport against a homeserver that answers whatever it likes, over real HTTP."""

from __future__ import annotations

import email.utils
import gzip
import json
import secrets
import threading
import zlib
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import pytest
import trio
from mautrix.api import Method, Path
from mautrix.errors import MatrixConnectionError, MatrixError, MatrixRequestError, MUnknownToken, make_request_error

from armorclaw.clock import Clock
from armorclaw.delivery.transport import Delayed, Refused
from armorclaw.matrix import decoding, transport
from armorclaw.matrix.client import MatrixClient
from armorclaw.matrix.decoding import NotJSONError
from armorclaw.matrix.failures import judge
from armorclaw.matrix.transport import open_api

from .fake_homeserver import Asked, FakeHomeserver, Raw, Reply, fake_homeserver

WALL = 1_800_000_000.0
CLOCK = Clock(wall=lambda: WALL)


def always(reply: Reply | Raw) -> Callable[[Asked], Awaitable[Reply | Raw]]:
    async def script(asked: Asked) -> Reply | Raw:
        return reply

    return script


async def ask(url: str, token: str = "") -> Any:
    async with open_api(url, CLOCK) as api:
        api.token = token
        return await api.request(Method.GET, Path.v3.account.whoami)


async def test_one_request_and_its_answer() -> None:
    async with fake_homeserver(always(Reply({"user_id": "@a:b"}))) as fake:
        assert await ask(fake.url, "secret") == {"user_id": "@a:b"}
    (asked,) = fake.asked
    assert asked.target == "/_matrix/client/v3/account/whoami"
    assert asked.headers["authorization"] == "Bearer secret"
    assert "cookie" not in asked.headers


async def test_what_comes_from_outside_is_percent_encoded_in_the_path() -> None:
    async with fake_homeserver(always(Reply({"event_id": "$e"}))) as fake, open_api(fake.url, CLOCK) as api:
        await MatrixClient(api).put_event("!a:b/../../login", "m.room.message", "t/1?x#y%2f", b"{}")
    (asked,) = fake.asked
    assert asked.target == (
        "/_matrix/client/v3/rooms/%21a%3Ab%2F..%2F..%2Flogin/send/m.room.message/t%2F1%3Fx%23y%252f"
    )


async def test_a_homeserver_may_be_below_a_path() -> None:
    async with fake_homeserver(always(Reply())) as fake, open_api(f"{fake.url}/below/", CLOCK) as api:
        await api.request(Method.GET, Path.v3.sync, query_params={"since": "a b\N{SNOWMAN}"})
    (asked,) = fake.asked
    assert asked.target == "/below/_matrix/client/v3/sync?since=a%20b%E2%98%83"


@pytest.mark.parametrize("path", ["a b", "a\r\nHost: elsewhere", "a\0"])
async def test_a_path_cannot_end_the_first_line(path: str) -> None:
    async with fake_homeserver(always(Reply())) as fake, open_api(fake.url, CLOCK) as api:
        with pytest.raises(MatrixConnectionError):
            await api.request(Method.GET, path)
    assert fake.asked == []


@pytest.mark.parametrize("part", [".", ".."])
async def test_a_path_cannot_climb(part: str) -> None:
    async with fake_homeserver(always(Reply())) as fake, open_api(fake.url, CLOCK) as api:
        with pytest.raises(ValueError, match="no path"):
            await MatrixClient(api).put_event("!a:b", part, "t", b"{}")
    assert fake.asked == []


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_redirects_are_not_followed(status: int) -> None:
    async with fake_homeserver(always(Reply())) as elsewhere:
        target = {"location": f"{elsewhere.url}/steal"}
        async with fake_homeserver(always(Reply(b"", status, target))) as fake:
            with pytest.raises(MatrixRequestError) as caught:
                await ask(fake.url, "secret")
    assert elsewhere.asked == []
    assert judge(caught.value).again


async def test_proxies_of_the_environment_are_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    async with fake_homeserver(always(Reply({"user_id": "@a:b"}))) as fake:
        assert await ask(fake.url)


HTML = b"<html><body>Bad Gateway</body></html>"


@pytest.mark.parametrize(
    "reply",
    [
        Reply(HTML),
        Reply(b'{"next_batch": "s1"'),
        Reply(b""),
        Reply([1, 2]),
        Reply(b"[" * 100_000),
        Reply(b"\x1f\x8b broken", headers={"content-encoding": "gzip"}),
        Reply(HTML, 502),
        Reply(HTML, 403),
        Reply(HTML, 404),
        Reply({"errcode": 5, "error": []}, 500),
        Reply({"errcode": "M_LIMIT_EXCEEDED", "error": "slow"}, 429),
        Raw(b""),
        Raw(b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{}"),
        Raw(b"\x16\x03\x01 not HTTP"),
    ],
    ids=repr,
)
async def test_what_may_pass_is_delayed(reply: Reply | Raw) -> None:
    async with fake_homeserver(always(reply)) as fake:
        with pytest.raises(MatrixError) as caught:
            await ask(fake.url)
    verdict = judge(caught.value)
    assert verdict.again
    assert isinstance(verdict.exception(), Delayed)
    assert verdict.reason


@pytest.mark.parametrize(
    "reply",
    [
        Reply({"errcode": "M_FORBIDDEN", "error": "no"}, 403),
        Reply({"errcode": "M_TOO_LARGE", "error": "no"}, 413),
        Reply({"errcode": "M_OUR_OWN", "error": "no"}, 400),
        Reply(HTML, 413),
        Reply(HTML, 400),
    ],
    ids=repr,
)
async def test_what_will_not_pass_is_refused(reply: Reply) -> None:
    async with fake_homeserver(always(reply)) as fake:
        with pytest.raises(MatrixRequestError) as caught:
            await ask(fake.url)
    assert isinstance(judge(caught.value).exception(), Refused)


async def test_nobody_there_is_delayed() -> None:
    with pytest.raises(MatrixConnectionError, match="cannot connect") as caught:
        await ask("http://127.0.0.1:1")
    assert judge(caught.value).again


@pytest.mark.parametrize("soft", [True, False, None, "true"])
async def test_an_unknown_token_is_told_apart(soft: Any) -> None:
    said = {"errcode": "M_UNKNOWN_TOKEN", "error": "who?"} | ({} if soft is None else {"soft_logout": soft})
    async with fake_homeserver(always(Reply(said, 401))) as fake:
        with pytest.raises(MUnknownToken) as caught:
            await ask(fake.url, "old")
    assert judge(caught.value).unknown_token


@pytest.mark.parametrize(
    "headers, body, seconds",
    [
        ({}, {}, None),
        ({"retry-after": "7"}, {}, 7.0),
        ({"retry-after": "7"}, {"retry_after_ms": 1}, 7.0),
        ({"retry-after": email.utils.formatdate(WALL + 12, usegmt=True)}, {}, 12.0),
        ({"retry-after": email.utils.formatdate(WALL - 12, usegmt=True)}, {}, None),
        ({"retry-after": "-1"}, {}, None),
        ({"retry-after": "soon"}, {"retry_after_ms": 2500}, 2.5),
        ({"retry-after": "99999999999"}, {}, 300.0),
        ({}, {"retry_after_ms": 1e12}, 300.0),
        ({}, {"retry_after_ms": -5}, None),
        ({}, {"retry_after_ms": True}, None),
        ({}, {"retry_after_ms": "1"}, None),
    ],
)
async def test_how_long_to_wait(headers: dict[str, str], body: dict[str, Any], seconds: float | None) -> None:
    said = {"errcode": "M_LIMIT_EXCEEDED", "error": "slow", **body}
    async with fake_homeserver(always(Reply(said, 429, headers))) as fake:
        with pytest.raises(MatrixRequestError) as caught:
            await ask(fake.url)
    assert judge(caught.value).after == seconds


async def test_half_a_surrogate_pair_is_mended() -> None:
    async with fake_homeserver(always(Reply(b'{"a\\ud800": ["\\udc00x", {"b": "\\ud83d\\ude00"}]}'))) as fake:
        assert await ask(fake.url) == {"a\ufffd": ["\ufffdx", {"b": "\U0001f600"}]}


async def test_compressed_answers_are_read_and_too_large_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    packed = {"content-encoding": "gzip"}
    async with fake_homeserver(always(Reply(gzip.compress(b'{"a": 1}'), headers=packed))) as fake:
        assert await ask(fake.url) == {"a": 1}
    monkeypatch.setattr(decoding, "MAX_ANSWER", 100_000)
    for reply in (Reply(gzip.compress(b" " * 10_000_000), headers=packed), Reply(b" " * 10_000_000)):
        async with fake_homeserver(always(reply)) as fake:
            with pytest.raises(MatrixConnectionError):
                await ask(fake.url)


async def test_a_large_answer_is_decoded_in_a_thread() -> None:
    large = {"list": [{"n": n} for n in range(100_000)]}
    assert len(json.dumps(large)) > 1024 * 1024
    async with fake_homeserver(always(Reply(large))) as fake:
        assert await ask(fake.url) == large
    async with fake_homeserver(always(Reply(b" " * 2_000_000 + b"nonsense"))) as fake:
        with pytest.raises(NotJSONError):
            await ask(fake.url)


async def test_a_large_packed_answer_is_unpacked_in_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """However small it came: a megabyte of gzip can be a gigabyte."""
    here, unpacked = threading.get_ident(), []
    real = zlib.decompressobj

    class Watched:
        def __init__(self, **options: Any) -> None:
            self.real = real(**options)

        def decompress(self, data: bytes, limit: int) -> bytes:
            whole: bytes = self.real.decompress(data, limit)
            unpacked.append((threading.get_ident() == here, len(whole)))
            return whole

        @property
        def unconsumed_tail(self) -> bytes:
            return self.real.unconsumed_tail

    monkeypatch.setattr(zlib, "decompressobj", Watched)
    packed = {"content-encoding": "gzip"}
    large = {"text": "x" * 8_000_000}
    noise = {"text": secrets.token_hex(1_500_000)}
    for content in (large, noise, {"a": 1}):
        async with fake_homeserver(
            always(Reply(gzip.compress(json.dumps(content).encode()), headers=packed))
        ) as fake:
            assert await ask(fake.url) == content
    assert [size for on_loop, size in unpacked if on_loop and size > 1024 * 1024] == []
    assert max(size for on_loop, size in unpacked if not on_loop) > 8_000_000
    assert unpacked[-1] == (True, 8)  # the usual case needs none
    for body in (gzip.compress(b" " * 8_000_000), b"no gzip"):
        async with fake_homeserver(always(Reply(body, 502, packed))) as fake:
            with pytest.raises(MatrixRequestError, match="502"):
                await ask(fake.url)
    assert max(size for on_loop, size in unpacked if on_loop) <= 1024 * 1024


async def test_what_is_too_deep_for_any_reader_costs_itself_alone() -> None:
    deep = b'{"a":[' * 30_000 + b'"]}"' + b"]}" * 30_000
    body = b'{"one":%b,"two":{"th\\"re{e":%b},"four":[4]}' % (deep, deep)
    async with fake_homeserver(always(Reply(body))) as fake:
        answer = await ask(fake.url)
    assert list(answer) == ["one", "two", "four"]
    assert (list(answer["two"]), answer["four"]) == (['th"re{e'], [4])
    async with fake_homeserver(always(Reply(deep[:-2]))) as fake:
        with pytest.raises(NotJSONError):
            await ask(fake.url)


async def test_an_answer_that_dribbles_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transport, "ANSWER_TIMEOUT", 0.2)
    slow = Raw(b"HTTP/1.1 200 OK\r\ncontent-length: 100000\r\n\r\n" + b" " * 100_000, pause=0.01)
    async with fake_homeserver(always(slow)) as fake, open_api(fake.url, CLOCK) as api:
        with pytest.raises(MatrixConnectionError, match="too long"):
            await api.request(Method.GET, Path.v3.account.whoami, read_timeout=10)


async def test_silence_is_given_up() -> None:
    async def script(asked: Asked) -> Reply:
        await trio.sleep_forever()
        raise AssertionError

    async with fake_homeserver(script) as fake, open_api(fake.url, CLOCK) as api:
        with pytest.raises(MatrixConnectionError, match="timed out"):
            await api.request(Method.GET, Path.v3.account.whoami, read_timeout=0.1)


async def test_words_of_the_homeserver_cannot_forge_log_lines() -> None:
    said = {"errcode": "M_FORBIDDEN", "error": "no\n2026 [info] all is well\x1b[31m" + "x" * 1000}
    async with fake_homeserver(always(Reply(said, 403))) as fake:
        with pytest.raises(MatrixRequestError) as caught:
            await ask(fake.url)
    reason = judge(caught.value).reason
    assert reason.isprintable()
    assert len(reason) < 300


async def test_a_token_that_cannot_be_sent_is_not_shown() -> None:
    with pytest.raises(MatrixConnectionError) as caught:
        await ask("http://127.0.0.1:1", "canary\nx")
    assert "canary" not in str(caught.value)


async def test_a_connection_is_kept_and_given_back_when_cancelled() -> None:
    waiting = trio.Event()

    async def script(asked: Asked) -> Reply:
        if "sync" in asked.path:
            waiting.set()
            await trio.sleep_forever()
        return Reply({"user_id": "@a:b"})

    async def poll(client: MatrixClient) -> None:
        await client.poll("s1", 30)

    async with fake_homeserver(script) as fake, open_api(fake.url, CLOCK) as api, trio.open_nursery() as nursery:
        nursery.start_soon(poll, MatrixClient(api))
        await waiting.wait()
        nursery.cancel_scope.cancel()
        with trio.CancelScope(shield=True), trio.fail_after(20):
            for _ in range(30):  # more than the pool has room for
                assert await api.request(Method.GET, Path.v3.account.whoami)


def test_no_part_of_a_foreign_error_code_confuses_judgement() -> None:
    assert judge(make_request_error(503, "", "M_UNKNOWN", "busy")).again
    assert not judge(make_request_error(404, "", "M_NOT_FOUND", "no")).again


@pytest.mark.parametrize(
    ("reply", "sure"),
    [
        (Reply({"errcode": "M_LIMIT_EXCEEDED"}, 429), True),
        (Reply({"errcode": "M_UNKNOWN_TOKEN"}, 401), True),
        (Reply(b"slow down", 429), False),  # a proxy's words: what it did before nobody knows
        (Reply({"errcode": "M_UNKNOWN"}, 500), False),
        (Reply(b"", 504), False),
        (Raw(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{"), False),
        (None, True),  # nobody listens
    ],
)
async def test_whether_a_failed_message_certainly_did_not_arrive(reply: Reply | Raw | None, sure: bool) -> None:
    async with fake_homeserver(always(reply or Reply())) as fake:
        url = fake.url if reply is not None else "http://127.0.0.1:9"
        async with open_api(url, CLOCK) as api:
            with pytest.raises(MatrixError) as caught:
                await MatrixClient(api).put_event("!a:b", "m.room.message", "t", b"{}")
    delayed = judge(caught.value).exception()
    assert isinstance(delayed, Delayed)
    assert delayed.sure is sure


async def test_put_needs_an_event_id() -> None:
    async with fake_homeserver(always(Reply({"ok": True}))) as fake, open_api(fake.url, CLOCK) as api:
        with pytest.raises(MatrixError, match="event_id") as caught:
            await MatrixClient(api).put_event("!a:b", "m.room.message", "t", b"{}")
    assert judge(caught.value).again


def test_the_fake_is_only_on_loopback() -> None:
    assert FakeHomeserver("http://127.0.0.1:1", always(Reply())).to("x") == []


async def test_a_body_that_cannot_be_sent_again_has_a_good_token_the_next_time() -> None:
    async def script(asked: Asked) -> Reply:
        if asked.headers.get("authorization") != "Bearer new":
            return Reply({"errcode": "M_UNKNOWN_TOKEN", "error": "old"}, 401)
        return Reply({"kept": asked.body.decode()})

    renewed: list[str] = []
    async with fake_homeserver(script) as fake, open_api(fake.url, CLOCK) as api:

        async def renew(token: str) -> bool:
            renewed.append(token)
            api.token = "new"
            return True

        async def post() -> bytes:
            headers = {"Content-Length": "3"}
            body = httpx.ByteStream(b"abc")
            async with api.open(Method.POST, "upload", headers=headers, body=body) as incoming:
                return await incoming.start(100)

        api.token, api.renew = "old", renew
        with pytest.raises(MUnknownToken):
            await post()
        assert json.loads(await post()) == {"kept": "abc"}
    assert renewed == ["old"]
    assert [asked.body for asked in fake.asked] == [b"abc", b"abc"]


async def test_what_is_streamed_without_a_token_shows_none() -> None:
    async with fake_homeserver(always(Reply(b"abc"))) as fake, open_api(fake.url, CLOCK) as api:
        api.token = "secret"
        async with api.open(Method.GET, "file", query={"a": "b c"}, authorized=False) as incoming:
            assert (incoming.length, await incoming.next(), await incoming.next()) == (3, b"abc", None)
    (asked,) = fake.asked
    assert asked.target == "/file?a=b%20c"
    assert "authorization" not in asked.headers


async def test_a_stream_that_breaks_off_is_a_lost_connection() -> None:
    broken = Raw(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc")
    async with fake_homeserver(always(broken)) as fake, open_api(fake.url, CLOCK) as api:
        with pytest.raises(MatrixConnectionError, match="connection lost"):
            async with api.open(Method.GET, "file") as incoming:
                await incoming.start(100)
