"""Whatever comes has one defined answer, however it was split."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.web.smuggling import BODY, CASES, GOOD, POST
from tests.web.talk import converse, talk

CONTINUE = POST + b"Expect: 100-continue\r\nContent-Length: 31\r\n\r\n"


@pytest.mark.parametrize("name", CASES)
async def test_in_one_piece(name: str, autojump_clock: object) -> None:
    sent, statuses, closed = CASES[name]
    answer = await converse([sent])
    assert [each for each in answer.statuses if each != 100] == statuses, answer.raw[:300]
    assert answer.closed is closed
    assert b"smuggled" not in answer.raw


@pytest.mark.parametrize("name", [name for name, (sent, *_) in CASES.items() if len(sent) < 1000])
async def test_byte_by_byte(name: str, autojump_clock: object) -> None:
    sent, statuses, closed = CASES[name]
    answer = await converse([sent[at : at + 1] for at in range(len(sent))])
    assert [each for each in answer.statuses if each != 100] == statuses, answer.raw[:300]
    assert answer.closed is closed


@settings(max_examples=300)
@given(name=st.sampled_from(sorted(CASES)), data=st.data())
def test_in_any_pieces(name: str, data: st.DataObject) -> None:
    sent, statuses, closed = CASES[name]
    offsets = sorted(data.draw(st.lists(st.integers(0, min(len(sent), 20_000)), max_size=6)))
    pieces = [sent[a:b] for a, b in zip([0, *offsets], [*offsets, len(sent)], strict=True)]
    answer = talk([piece for piece in pieces if piece])
    assert [each for each in answer.statuses if each != 100] == statuses
    assert answer.closed is closed


def _fragments() -> st.SearchStrategy[bytes]:
    words = [
        *(b"\r\n", b"\n", b"\r", b" ", b"\t", b"\0", b":", b"0", b"1f", b";", b"chunked", b"GET ", b"/", b"HTTP/1.1"),
        *(b"Host: x\r\n", b"Content-Length: ", b"Transfer-Encoding: chunked\r\n", POST, GOOD, BODY),
    ]
    return st.lists(st.sampled_from(words) | st.binary(max_size=20), max_size=20).map(b"".join)


@settings(max_examples=400)
@given(sent=_fragments(), at=st.integers(0, 400))
def test_random_bytes_have_one_answer(sent: bytes, at: int) -> None:
    """No 500, which would be a fault of ours; no difference by how it was split; closed after any refusal."""
    whole = talk([sent])
    split = talk([piece for piece in (sent[:at], sent[at:]) if piece])
    assert whole == split
    assert all(status in (200, 400, 405, 408, 413, 417, 431, 505) for status in whole.statuses)
    refusals = [status for status in whole.statuses if status != 200]
    assert len(refusals) <= 1
    assert whole.closed or not refusals


async def test_who_waits_to_be_asked_is_asked(autojump_clock: object) -> None:
    answer = await converse([CONTINUE, BODY])
    assert answer.statuses == [100, 200]
