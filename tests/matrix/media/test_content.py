"""Messages about files, as people's clients write and read them."""

from __future__ import annotations

from typing import Any

import pytest

from armorclaw.matrix.media.attachment import MalformedError, Sealing
from armorclaw.matrix.media.content import UNKNOWN_TYPE, Description, Kind, Source, kind_of, parts_of_uri

URI = "mxc://example.org/AbC_d-1"


def described(kind: Kind, **more: Any) -> dict[str, Any]:
    return Description("a.bin", "image/png", 10, kind, **more).content(URI, None)


def test_an_image() -> None:
    assert described("image", width=3, height=2) == {
        "msgtype": "m.image",
        "body": "a.bin",
        "filename": "a.bin",
        "info": {"mimetype": "image/png", "size": 10, "w": 3, "h": 2},
        "url": URI,
    }


def test_a_caption_stands_where_the_name_would() -> None:
    content = described("file", caption="see page 3")
    assert (content["body"], content["filename"]) == ("see page 3", "a.bin")


def test_a_voice_message() -> None:
    content = described("voice", duration_ms=1500, waveform=[0, 512, 1024])
    assert content["msgtype"] == "m.audio"
    assert content["info"]["duration"] == 1500
    assert content["org.matrix.msc3245.voice"] == {}
    assert content["org.matrix.msc1767.audio"] == {"duration": 1500, "waveform": [0, 512, 1024]}
    assert "org.matrix.msc3245.voice" not in described("audio", duration_ms=1500)


def test_of_an_encrypted_file_the_message_has_the_key_and_no_url() -> None:
    key = Sealing().key()
    content = Description("a", "video/mp4", 10, "video").content(URI, key)
    assert "url" not in content
    assert content["file"] == key.written(URI)
    source = Source.of_content(content)
    assert source == Source(URI, key, "a", "video/mp4", 10)
    assert source.place == ("example.org", "AbC_d-1")


@pytest.mark.parametrize(
    ("mimetype", "kind"),
    [
        ("image/png", "image"),
        ("IMAGE/PNG", "image"),
        ("video/mp4", "video"),
        ("audio/ogg", "audio"),
        ("text/html", "file"),
        ("application/octet-stream", "file"),
    ],
)
def test_the_kind_that_a_type_suggests(mimetype: str, kind: str) -> None:
    assert kind_of(mimetype) == kind


def test_where_a_file_in_the_clear_is() -> None:
    content = {
        "body": "caption",
        "filename": "../../etc/\x1bpasswd",
        "url": URI,
        "info": {"mimetype": "a/b", "size": 5},
    }
    source = Source.of_content(content)
    assert (source.uri, source.key, source.mimetype, source.size) == (URI, None, "a/b", 5)
    assert source.name == ".._.._etc__passwd"


def test_the_name_is_in_the_body_of_older_messages() -> None:
    assert Source.of_content({"body": "a.png", "url": URI}).name == "a.png"


def test_the_thumbnail() -> None:
    key = Sealing().key()
    info = {"thumbnail_file": key.written(URI), "thumbnail_info": {"mimetype": "image/jpeg", "size": 3}}
    source = Source.of_content({"body": "b", "url": "mxc://x/other", "info": info}, "thumbnail")
    assert source == Source(URI, key, "", "image/jpeg", 3)
    plain = Source.of_content({"info": {"thumbnail_url": URI}}, "thumbnail")
    assert plain == Source(URI)
    with pytest.raises(MalformedError, match="no thumbnail"):
        Source.of_content({"url": URI}, "thumbnail")


def test_what_is_encrypted_goes_before_what_is_not() -> None:
    key = Sealing().key()
    assert Source.of_content({"url": "mxc://x/clear", "file": key.written(URI)}).key == key


@pytest.mark.parametrize(
    "content",
    [
        {},
        {"url": None},
        {"url": "https://example.org/a.png"},
        {"url": "mxc://example.org"},
        {"url": "mxc://example.org/"},
        {"url": "mxc:///abc"},
        {"url": "mxc://example.org/a/b"},
        {"url": "mxc://example.org/.."},
        {"url": "mxc://example.org/."},
        {"url": "mxc://example.org/a?b=c"},
        {"url": "mxc://example.org/a%2fb"},
        {"url": "mxc://user@example.org/a"},
        {"url": "mxc://example.org/a\n"},
        {"url": "mxc://example.org/" + "a" * 300},
        {"file": {}},
        {"file": {"url": URI}},
        {"file": {**Sealing().key().written("mxc://x/.."), "v": "v2"}},
        {"file": "x", "info": []},
    ],
)
def test_what_is_about_no_file(content: dict[str, Any]) -> None:
    with pytest.raises(MalformedError):
        Source.of_content(content)


@pytest.mark.parametrize("info", [None, [], {"size": True, "mimetype": 5}, {"size": -1, "mimetype": "a/b\r\nX: y"}])
def test_what_is_said_of_a_file_may_be_anything(info: object) -> None:
    source = Source.of_content({"body": 5, "url": URI, "info": info})
    assert (source.name, source.mimetype, source.size) == ("", UNKNOWN_TYPE, None)


@pytest.mark.parametrize("server", ["example.org", "example.org:8448", "127.0.0.1:80", "[::1]:8448"])
def test_servers(server: str) -> None:
    assert parts_of_uri(f"mxc://{server}/a") == (server, "a")
