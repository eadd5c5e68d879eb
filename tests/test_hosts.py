from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armorclaw.hosts import HostPattern, Target
from armorclaw.structure import FaultError


@pytest.mark.parametrize(
    "written, shown",
    [
        ("api.example.org:443", "api.example.org:443"),
        ("API.Example.ORG.:443", "api.example.org:443"),
        ("bücher.example:443", "xn--bcher-kva.example:443"),
        ("ＡＢＣ.example:443", "abc.example:443"),
        ("my_host.internal:8080", "my_host.internal:8080"),
        ("localhost:1", "localhost:1"),
        ("*.Example.org:65535", "*.example.org:65535"),
        ("*.bücher.example:443", "*.xn--bcher-kva.example:443"),
        ("10.0.0.5:8080", "10.0.0.5:8080"),
        ("10.0.0.0/8:443", "10.0.0.0/8:443"),
        ("[2001:DB8::5]:443", "[2001:db8::5]:443"),
        ("[2001:db8::/32]:443", "[2001:db8::/32]:443"),
        ("[::1]:080", "[::1]:80"),
    ],
)
def test_one_form(written: str, shown: str) -> None:
    pattern = HostPattern.parse(written)
    assert str(pattern) == shown
    assert HostPattern.parse(shown) == pattern


@pytest.mark.parametrize(
    "written, fix",
    [
        ("api.example.org", 'write "api.example.org:443"'),
        ("", "host:port"),
        (":443", "host:port"),
        ("https://api.example.org:443", "host:port"),
        ("api.example.org:443/path", "host:port"),
        ("api.example.org:https", "host:port"),
        ("api.example.org:0", "65535"),
        ("api.example.org:65536", "65535"),
        ("api.example.org:+443", "host:port"),
        ("user@api.example.org:443", "host:port"),
        ("*:443", "*.example.org:443"),
        ("*", "*.example.org:443"),
        ("[fe80::%eth0/64]:443", "10.0.0.0/8:443"),
        ("*.*.example.org:443", "host:port"),
        ("api.*.org:443", "*.example.org:443"),
        ("*example.org:443", "*.example.org:443"),
        ("*.:443", "host:port"),
        ("*.10.0.0.5:443", "10.0.0.0/8:443"),
        ("a..b:443", "host:port"),
        ("-a.example:443", "host:port"),
        ("a b.example:443", "host:port"),
        (f"{'a' * 64}.example:443", "host:port"),
        (f"{'a.' * 127}example:443", "host:port"),
        ("10.0.0:443", "four numbers"),
        ("127.1:443", "four numbers"),
        ("0x7f000001:443", "four numbers"),
        ("2130706433:443", "four numbers"),
        ("010.0.0.1:443", "four numbers"),
        ("１２７.1:443", "four numbers"),
        ("10.0.0.5/8:443", "10.0.0.0/8:443"),
        ("10.0.0.0/33:443", "10.0.0.0/8:443"),
        ("a.example/8:443", "10.0.0.0/8:443"),
        ("2001:db8::5:443", "host:port"),
        ("2001:db8::/32:443", "host:port"),
        ("[10.0.0.5]:443", "[2001:db8::5]:443"),
        ("[10.0.0.0/8]:443", "host:port"),
        ("[fe80::1%eth0]:443", "[2001:db8::5]:443"),
        ("[::1]", "host:port"),
    ],
)
def test_faults_say_what_to_write(written: str, fix: str) -> None:
    with pytest.raises(FaultError) as caught:
        HostPattern.parse(written)
    assert fix in caught.value.fix


@pytest.mark.parametrize(
    "pattern, target, matches",
    [
        ("a.example:443", "a.example:443", True),
        ("a.example:443", "A.EXAMPLE.:443", True),
        ("a.example:443", "a.example:80", False),
        ("a.example:443", "b.a.example:443", False),
        ("a.example:443", "aa.example:443", False),
        ("*.example:443", "a.example:443", True),
        ("*.example:443", "a.b.example:443", True),
        ("*.example:443", "example:443", False),
        ("*.example:443", "notexample:443", False),
        ("*.example:443", "example.evil:443", False),
        ("10.0.0.5:443", "10.0.0.5:443", True),
        ("10.0.0.5:443", "10.0.0.6:443", False),
        ("10.0.0.0/8:443", "10.255.0.1:443", True),
        ("10.0.0.0/8:443", "11.0.0.1:443", False),
        ("10.0.0.0/8:443", "a.example:443", False),
        ("10.0.0.0/8:443", "[::ffff:10.0.0.5]:443", False),
        ("[2001:db8::/32]:443", "[2001:db8:1::2]:443", True),
        ("[2001:db8::/32]:443", "10.0.0.5:443", False),
    ],
)
def test_matches(pattern: str, target: str, matches: bool) -> None:
    assert HostPattern.parse(pattern).matches(Target.parse(target)) is matches


@given(st.text(max_size=60) | st.from_regex(r"[\[\]a-z0-9.:%/*-]{1,40}:[0-9]{1,6}", fullmatch=True))
def test_anything_is_a_fault_or_has_one_form(text: str) -> None:
    for kind in (Target, HostPattern):
        try:
            found = kind.parse(text)
        except FaultError:
            continue
        assert kind.parse(str(found)) == found
        assert str(found).isascii()
