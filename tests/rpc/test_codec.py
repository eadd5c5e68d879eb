from __future__ import annotations

import json

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from armorclaw.rpc.codec import MsgspecCodec
from armorclaw.rpc.jsoncodec import Codec, EnvelopeError, JsonCodec

codec = MsgspecCodec()


def test_members_stay_text() -> None:
    assert codec.decode(b'{"a": [1, 2] , "b":{"c":"d"}}') == {"a": b"[1, 2]", "b": b'{"c":"d"}'}
    assert codec.decode(b'[1, "x" ]') == [b"1", b'"x"']


def test_ready_json_is_copied_and_made_ascii() -> None:
    assert codec.encode({"a": msgspec.Raw('{"é": 1}'.encode())}) == b'{"a":{"\\u00e9": 1}}'


@pytest.mark.parametrize("either", [MsgspecCodec(), JsonCodec()])
@pytest.mark.parametrize(
    "text",
    [b'{"a":"\xff"}', b'{"a":"\\ud800"}', b'{"a":NaN}', b"1e400", b"{", b"", b'\xef\xbb\xbf{"a":1}',
     '{"a":1}'.encode("utf-16-le"), b"[" * 100_000, b'{"a":\x0b1}'],
)  # fmt: skip
def test_what_is_not_json_is_a_value_error(either: Codec, text: bytes) -> None:
    with pytest.raises((ValueError, RecursionError)):
        either.decode(text)


def test_a_number_out_of_range_is_found_when_wanted() -> None:
    member = codec.decode(b'{"a":1e400}')["a"]
    with pytest.raises(ValueError):
        codec.value(member)


@pytest.mark.parametrize("either", [MsgspecCodec(), JsonCodec()])
@pytest.mark.parametrize("value", [object(), iter([]), {"a": object()}])
def test_what_cannot_be_written_is_said(either: Codec, value: object) -> None:
    with pytest.raises((ValueError, TypeError)):
        either.encode(value)


@given(st.dictionaries(st.text(), st.text() | st.lists(st.text()), max_size=5), st.booleans(), st.booleans())
def test_no_object_with_different_names_is_taken_for_one_that_repeats(
    value: dict[str, object], pretty: bool, ensure_ascii: bool
) -> None:
    try:
        text = json.dumps(value, indent=2 if pretty else None, ensure_ascii=ensure_ascii).encode()
    except UnicodeEncodeError:
        return
    plain = all('"' not in name and json.dumps(name) == f'"{name}"' for name in value)
    try:
        members = codec.decode(text)
    except EnvelopeError:
        assert not plain  # a name that is itself written with quotation marks
        return
    except ValueError:
        assert "\\ud" in text.decode().lower()
        return
    assert {name: json.loads(member) for name, member in members.items()} == value
