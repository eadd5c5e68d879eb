"""Whether a message is in the room: found, certainly not there, or not to be told; never a guess."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
import trio
from mautrix.errors import MatrixConnectionError, make_request_error

from armorclaw.delivery.transport import Delayed, Refused
from armorclaw.matrix import echo as module
from armorclaw.matrix.echo import CLOCKS_MS, find_echo

BOT = "@bot:x"
ROOM = "!room:x"
NOW = 1_700_000_000_000
HELLO = {"msgtype": "m.text", "body": "hello", "n": 1}


class Client:
    """Gives pages of a timeline, the newest first."""

    mxid = BOT

    def __init__(self, *pages: Sequence[dict[str, Any]] | Exception) -> None:
        self.pages = list(pages)
        self.asked: list[str | None] = []

    async def latest(
        self,
        room_id: str,
        limit: int,
        *,
        start: str | None,
        filter: str,  # noqa: A002
    ) -> tuple[list[Any], str | None]:
        await trio.lowlevel.checkpoint()
        assert json.loads(filter) == {"senders": [BOT], "types": ["m.room.message"]}
        self.asked.append(start)
        page = self.pages.pop(0)
        if isinstance(page, Exception):
            raise page
        return list(page), f"p{len(self.asked)}" if self.pages else None


def sent(event_id: str, content: Any = HELLO, *, at_ms: Any = NOW, **more: Any) -> dict[str, Any]:
    raw = {"type": "m.room.message", "sender": BOT, "event_id": event_id, "content": content}
    return {**raw, "origin_server_ts": at_ms, **more}


async def look(client: Client, *claimed: str, content: Any = HELLO, since_ms: int = NOW) -> str | None:
    async def is_claimed(event_id: str) -> bool:
        await trio.lowlevel.checkpoint()
        return event_id in claimed

    body = json.dumps(content, indent=1).encode()  # how it is written does not matter
    fake: Any = client
    return await find_echo(fake, ROOM, "m.room.message", body, since_ms, is_claimed)


async def test_found_on_a_later_page_behind_an_empty_one() -> None:
    client = Client([sent("$other", {"body": "hello"})], [], [sent("$mine")])
    assert await look(client) == "$mine"
    assert client.asked == [None, "p1", "p2"]


async def test_certainly_not_there() -> None:
    assert await look(Client([])) is None
    others = [sent("$1", sender="@ann:x"), sent("$2", type="m.reaction"), sent("$3", {**HELLO, "n": 2})]
    assert await look(Client(others, [sent("$4", content=None), {"sender": BOT}])) is None


async def test_of_several_the_oldest_that_no_other_message_has() -> None:
    pages = [sent("$3"), sent("$2")], [sent("$1")]
    assert await look(Client(*pages)) == "$1"
    assert await look(Client(*pages), "$1") == "$2"
    assert await look(Client(*pages), "$1", "$2", "$3") is None


async def test_what_is_older_than_the_attempt_is_another() -> None:
    """But for a homeserver's clock that is a little behind."""
    old, edge = sent("$old", at_ms=NOW - CLOCKS_MS - 1), sent("$edge", at_ms=NOW - CLOCKS_MS)
    client = Client([edge, old], [sent("$never asked")])
    assert await look(client) == "$edge"
    assert client.asked == [None]
    assert await look(Client([old])) is None
    assert await look(Client([sent("$odd", at_ms="never")])) == "$odd"


async def test_one_that_was_removed_may_have_been_it() -> None:
    removed = sent("$gone", {}, unsigned={"redacted_because": {}})
    with pytest.raises(Refused, match="removed"):
        await look(Client([removed]))
    assert await look(Client([removed]), "$gone") is None  # it was another
    assert await look(Client([removed, sent("$mine")]), "$gone") == "$mine"


@pytest.mark.parametrize(
    "trouble, outcome",
    [
        (MatrixConnectionError("lost"), Delayed),
        (make_request_error(502, "", None, "HTTP 502"), Delayed),
        (make_request_error(401, "", "M_UNKNOWN_TOKEN", "who?"), Delayed),
        (make_request_error(403, "", "M_FORBIDDEN", "no"), Refused),
    ],
    ids=repr,
)
async def test_trouble_is_no_answer(trouble: Exception, outcome: type[Exception]) -> None:
    with pytest.raises(outcome):
        await look(Client([sent("$other", {})], trouble))


async def test_too_much_to_look_through(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAGES", 3)
    client = Client(*[[sent(f"${n}", {})] for n in range(5)])
    with pytest.raises(Refused, match="too much"):
        await look(client)
    assert len(client.asked) == 3
