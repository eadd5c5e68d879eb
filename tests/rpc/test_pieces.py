from __future__ import annotations

import base64
import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from armorclaw.errors import ArmorclawError
from armorclaw.rpc.flow import BYTES_MAX, CHUNK_MAX
from armorclaw.rpc.pieces import Note, bulk_of, head_of, text_of


def wanted(name: str, number: int) -> bool:
    return True


def frame_of(name: str, params: str) -> bytes:
    return f'{{"jsonrpc":"2.0","method":"$/{name}","params":{params}}}'.encode()


@given(st.sampled_from(["chunk", "upload"]), st.integers(0, 10**15 - 1), st.integers(0, 10**15 - 1), st.binary())
def test_what_we_write_of_bytes_is_understood_at_once(name: str, number: int, seq: int, data: bytes) -> None:
    head = head_of(f"$/{name}", b"%d" % number)
    found = bulk_of(b'%s,"seq":%d,"data":%s}}' % (head, seq, text_of(data)), wanted)
    assert found is not None
    assert (found[0], found[1].id, found[1].seq, found[1].data) == (f"$/{name}", number, seq, data)


@given(st.text(alphabet='{}[]",:\\01AQ=/\x00 é$dataseqid', max_size=12), st.integers(0, 60))
def test_whatever_it_takes_means_the_same_to_everybody_else(garbage: str, place: int) -> None:
    """One frame with anything put in at any place: it is taken only if it is JSON, and as what it says."""
    frame = frame_of("chunk", '{"id":1,"seq":2,"data":"QUFB"}').decode()
    place = min(place + 30, len(frame))
    text = (frame[:place] + garbage + frame[place:]).encode()
    found = bulk_of(text, wanted)
    if found is not None:
        message = json.loads(text, object_pairs_hook=dict)
        params = msgspec.json.decode(text, type=dict[str, msgspec.Raw])["params"]
        note = msgspec.json.decode(params, type=Note)
        assert message["method"] == found[0]
        assert message["params"].keys() == {"id", "seq", "data"}
        assert (note.id, note.seq, base64.b64decode(message["params"]["data"])) == (
            found[1].id,
            found[1].seq,
            found[1].data,
        )


@pytest.mark.parametrize(
    "frame",
    [
        frame_of("chunk", '{"id":"1","seq":0,"data":"QUFB"}'),
        frame_of("chunk", '{"id":01,"seq":0,"data":"QUFB"}'),
        frame_of("chunk", '{"id":1,"seq":-1,"data":"QUFB"}'),
        frame_of("chunk", '{"id":1,"seq":0,"data":"QUF"}'),
        frame_of("chunk", '{"id":1,"seq":0,"data":"QU\\u0046B"}'),
        frame_of("chunk", '{"id":1,"seq":0,"data":"QU\nFB"}'),
        frame_of("chunk", '{"id":1,"seq":0,"data":"QUFB","data":"QUFB"}'),
        frame_of("upload", '{"id":1,"seq":0,"data":"QUFB","end":true}'),
        frame_of("credit", '{"id":1,"seq":0,"data":"QUFB"}'),
        frame_of("chunk", '{"id":1,"seq":0,"data":"QUFB"}') + b"}",
        frame_of("chunk", '{"id":1,"seq":0,"data":"QUFB"}')[:-1],
        b"",
    ],
)
def test_anything_else_goes_the_usual_way(frame: bytes) -> None:
    found = bulk_of(frame, wanted)
    assert found is None


def test_how_large_a_piece_may_be() -> None:
    assert len(text_of(b"x" * BYTES_MAX)) == len(text_of("x" * CHUNK_MAX)) == CHUNK_MAX + 2
    for value in (b"x" * (BYTES_MAX + 1), "x" * (CHUNK_MAX + 1), "é" * (CHUNK_MAX // 6 + 1)):
        with pytest.raises(ArmorclawError) as large:
            text_of(value)
        assert large.value.name == "too_large"
    assert text_of(msgspec.Raw(b'{"a":\n"\xc3\xa9"}')) == b'{"a": "\\u00e9"}'


def test_who_wants_no_bytes_has_them_left_alone() -> None:
    asked = []

    def refuse(name: str, number: int) -> bool:
        asked.append((name, number))
        return False

    assert bulk_of(frame_of("upload", '{"id":12,"seq":0,"data":"QUFB"}'), refuse) is None
    assert asked == [("$/upload", 12)]
