"""Our own keys from another device of ours: taken of the one that was asked, over a channel, and of no other."""

from __future__ import annotations

import base64
from types import SimpleNamespace
from typing import Any

import pytest

from armorclaw.matrix.crypto.policy import Trust
from armorclaw.matrix.crypto.standing import Device
from armorclaw.matrix.trust.identity import USAGES, PrivateIdentity
from armorclaw.matrix.trust.secret_requests import SecretRequests

from .test_exchange import Post

BOT = "@bot:hs"
PHONE = Device(BOT, "PHONE", "phone's channel", "k", Trust.VERIFIED)
TABLET = Device(BOT, "TABLET", "tablet's channel", "k", Trust.VERIFIED)


class Standing:
    def __init__(self, *devices: Device) -> None:
        self.devices = devices

    def device_of_key(self, user_id: str, key: str) -> Device | None:
        return next((each for each in self.devices if (each.user_id, each.key) == (user_id, key)), None)


async def asked(*devices: Device) -> tuple[SecretRequests, dict[str, str]]:
    """What was asked of the phone: by usage, the id of the request."""
    post = Post()
    client: Any = SimpleNamespace(mxid=BOT, device_id="BRIDGE", api=post)
    standing: Any = Standing(*(devices or (PHONE, TABLET)))
    requests = SecretRequests(client, standing)
    await requests.ask("PHONE")
    assert {(kind, to) for kind, _, to, _ in post.sent} == {("m.secret.request", ("PHONE",))}
    ids = {content["name"].removeprefix("m.cross_signing."): content["request_id"] for *_, content in post.sent}
    assert set(ids) == set(USAGES)
    assert {content["requesting_device_id"] for *_, content in post.sent} == {"BRIDGE"}
    return requests, ids


def sent(requests: SecretRequests, request_id: str, secret: Any, **more: Any) -> PrivateIdentity | None:
    given = {"type_": "m.secret.send", "sender": BOT, "sender_key": PHONE.key, **more}
    return requests.take(
        given["type_"], given["sender"], {"request_id": request_id, "secret": secret}, given["sender_key"]
    )


def text(seed: bytes) -> str:
    return base64.b64encode(seed).rstrip(b"=").decode()


async def test_all_three_make_an_identity() -> None:
    requests, ids = await asked()
    private = PrivateIdentity.generate(BOT)
    *first, last = USAGES
    for usage in first:
        assert sent(requests, ids[usage], text(private.seeds()[usage])) is None
    found = sent(requests, ids[last], text(private.seeds()[last]) + "=")
    assert found is not None
    assert found.seeds() == private.seeds()


@pytest.mark.parametrize(
    "more",
    [
        {"sender_key": ""},
        {"sender_key": TABLET.key},
        {"sender_key": "nobody's"},
        {"sender": "@eve:hs"},
        {"type_": "m.secret.request"},
    ],
)
async def test_of_nobody_else(more: dict[str, Any]) -> None:
    requests, ids = await asked()
    for usage, seed in PrivateIdentity.generate(BOT).seeds().items():
        assert sent(requests, ids[usage], text(seed), **more) is None


async def test_not_of_a_device_that_is_not_verified() -> None:
    requests, ids = await asked(Device(BOT, "PHONE", PHONE.key, "k", Trust.TOFU))
    for usage, seed in PrivateIdentity.generate(BOT).seeds().items():
        assert sent(requests, ids[usage], text(seed)) is None


async def test_not_what_was_never_asked_for_or_is_none() -> None:
    requests, ids = await asked()
    for secret in (None, "", "!", 7, text(b"short"), "ü"):
        for usage in USAGES:
            assert sent(requests, ids[usage], secret) is None
        assert sent(requests, "another", text(bytes(32))) is None
