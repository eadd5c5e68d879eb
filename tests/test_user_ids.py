from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armorclaw.structure import FaultError
from armorclaw.user_ids import UserPattern, Users, split_user_id


@pytest.mark.parametrize(
    "written",
    [
        "@alice:example.org",
        "@alice:example.org:8448",
        "@alice:10.0.0.5",
        "@alice:[2001:db8::5]:8448",
        "@alice:[::1]",
        "@a.b_c=d/e+f-g:localhost",
        "@Old.Name!:example.org",  # from before there was a grammar
        "@alice:xn--exmple-cua.org",
        "*:example.org",
        "*:example.org:8448",
    ],
)
def test_one_form(written: str) -> None:
    assert str(UserPattern.parse(written)) == written


@pytest.mark.parametrize(
    "written, fix",
    [
        ("", "@name:server"),
        ("alice", "@name:server"),
        ("@alice", "@name:server"),
        ("@:example.org", "@name:server"),
        ("alice:example.org", "@name:server"),
        ("*", "*:server"),
        ("*@example.org", "*:server"),
        ("@*", "*:server"),
        ("@al ice:example.org", "@name:server"),
        ("@alice:", "@name:server"),
        ("@alice:exa mple.org", "@name:server"),
        ("@alice:example.org/", "@name:server"),
        ("@alice:example..org", "@name:server"),
        ("@alice:.example.org", "@name:server"),
        ("@alice:-example.org", "@name:server"),
        ("@alice:example.org:0", "@name:server"),
        ("@alice:example.org:65536", "@name:server"),
        ("@alice:example.org:08448", "@name:server"),
        ("@alice:*.example.org", "@name:server"),
        ("@alice:evil.org:example.org", "@name:server"),
        ("@alice:example.org\n", "@name:server"),
        ("@alice:Example.org", 'write "@alice:example.org"'),
        ("*:EXAMPLE.org", 'write "*:example.org"'),
        ("@alice:example.org.", 'write "@alice:example.org"'),
        ("@аlice:example.org", "plain letters"),  # Cyrillic а
        ("@alice:exаmple.org", "xn--"),
        ("@alice:example。org", "plain letters"),
        ("@ali\u200dce:example.org", "plain letters"),
        (f"@{'a' * 255}:example.org", "@name:server"),
        ("!room:example.org", "@name:server"),
    ],
)
def test_what_could_be_read_as_another_is_refused(written: str, fix: str) -> None:
    with pytest.raises(FaultError) as refused:
        UserPattern.parse(written)
    assert fix in refused.value.fix


@pytest.mark.parametrize(
    "look_alike",
    [
        "@Alice:example.org",
        "@alice:EXAMPLE.org",
        "@alice:example.org.",
        "@alice:example.org:8448",
        "@alice:example.org:443",
        "@аlice:example.org",  # Cyrillic а
        "@alice:exаmple.org",
        "@alice:example。org",
        "@ａlice:example.org",  # of full width
        "@alice\u200b:example.org",
        "@alice :example.org",
        " @alice:example.org",
        "@alice:example.org ",
        "@alice:example.org\n",
        "@alice:example.org\x00",
        "@alice:evil.org:example.org",
        "@alice:example.org@evil.org",
        "@alice:sub.example.org",
        "@alice:notexample.org",
        "@alice:example.orge",
        "@a1ice:example.org",
        "@aIice:example.org",
        "alice:example.org",
        "@@alice:example.org",
        "*:example.org",
        "@*:example.org",
        "",
    ],
)
def test_look_alikes_are_somebody_else(look_alike: str) -> None:
    assert not UserPattern.parse("@alice:example.org").matches(look_alike)


@pytest.mark.parametrize(
    "user_id, is_there",
    [
        ("@alice:example.org", True),
        ("@Alice:example.org", True),
        ("@@alice:example.org", True),
        ("@alice:example.org:8448", False),
        ("@alice:sub.example.org", False),
        ("@alice:evil.org:example.org", False),
        ("@alice:Example.org", False),
        ("@аlice:example.org", False),
        ("@:example.org", False),
        ("!alice:example.org", False),
        ("alice:example.org", False),
        ("*:example.org", False),
    ],
)
def test_everybody_of_one_server(user_id: str, is_there: bool) -> None:
    assert UserPattern.parse("*:example.org").matches(user_id) is is_there


letters = st.text("@*:.-[]aAа019 \n!xn。", max_size=24)


@given(letters, letters)
def test_only_itself_matches_an_exact_pattern(written: str, other: str) -> None:
    try:
        pattern = UserPattern.parse(written)
    except FaultError:
        return
    assert pattern.matches(other) is (other == written if pattern.local is not None else _at(other, pattern.server))


@given(st.lists(letters | st.sampled_from(["@a:x", "*:x", "*:n", "@x:n"]), max_size=4), letters)
def test_several_patterns_match_what_one_of_them_does(written: list[str], other: str) -> None:
    patterns = []
    for each in written:
        try:
            patterns.append(UserPattern.parse(each))
        except FaultError:
            pass
    users = Users(map(str, patterns))
    for user_id in (other, "@a:x", "@b:x", "@x:n"):
        assert (user_id in users) is any(pattern.matches(user_id) for pattern in patterns)
    assert bool(users) is bool(patterns)
    example = users.example()
    assert (example is None) if not patterns else (example is not None and example in users)


@given(letters)
def test_what_is_split_is_whole(text: str) -> None:
    parts = split_user_id(text)
    if parts is not None:
        assert text == "@{}:{}".format(*parts)
        assert UserPattern.parse(text).matches(text)


def _at(user_id: str, server: str) -> bool:
    parts = split_user_id(user_id)
    return parts is not None and parts[1] == server
