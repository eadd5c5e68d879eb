"""What comes over a channel: that a channel opens it does not make it what its sender, or the homeserver, says."""

from __future__ import annotations

import json

import pytest
from structlog.testing import capture_logs

from armorclaw.matrix.crypto.channels import ALGORITHM
from tests.matrix.crypto.conftest import ANN, BEN, EVE, Party, Raw, Town

VERIFY = "m.key.verification.request"


async def letter(writer: Party, to: Party, content: Raw, changed: Raw | None = None) -> Raw:
    """The content of an m.room.encrypted that `writer` writes to `to`, with parts of the letter as it likes."""
    channels = writer.encryption.channels
    device = writer.encryption.standing.device(to.user, to.device)
    assert device is not None
    await channels.establish([device])
    whole = {
        "sender": writer.user,
        "sender_device": writer.device,
        "keys": {"ed25519": channels.account.signing_key},
        "recipient": to.user,
        "recipient_keys": {"ed25519": to.encryption.channels.account.signing_key},
        "type": VERIFY,
        "content": content,
        **(changed or {}),
    }
    session = next(iter(channels._sessions(device.key)))
    kind, body = session.encrypt(json.dumps(whole))
    channels._put(device.key, session, heard=False)
    own, other = channels.account.identity_key, to.encryption.identity_key
    return {"algorithm": ALGORITHM, "sender_key": own, "ciphertext": {other: {"type": kind, "body": body}}}


def heard_by(party: Party) -> list[tuple[str, str, Raw, bool]]:
    """What came to it of verifications, from now on."""
    heard: list[tuple[str, str, Raw, bool]] = []
    party.encryption.on_verification = lambda *told: heard.append(told)
    return heard


@pytest.mark.mission("S.5")
@pytest.mark.parametrize(
    ("changed", "by"),
    [
        ({"sender": EVE}, ANN),
        ({}, EVE),  # the homeserver says that it is from somebody else
        ({"recipient": EVE}, ANN),
        ({"recipient_keys": {"ed25519": "another device's"}}, ANN),
    ],
    ids=["sender in it", "sender outside", "recipient", "recipient key"],
)
async def test_what_is_from_or_for_somebody_else_is_refused_and_counted(town: Town, changed: Raw, by: str) -> None:
    """Else whoever has a letter could have it delivered as another's, or to another."""
    ann, ben = await town.pair()
    await ann.say()  # so she knows his device, and he her channel
    await ben.catch_up()
    heard, counts = heard_by(ben), ben.encryption.counts
    before = dict(counts)
    town.server.tell(BEN, "B", "m.room.encrypted", by, await letter(ann, ben, {"forged": True}, changed))
    with capture_logs() as logs:
        await ben.catch_up()
    assert heard == []
    assert counts["messages_refused"] == before.get("messages_refused", 0) + 1
    assert [(entry["event"], entry["sender"], entry["why"]) for entry in logs] == [
        ("a message of a device is refused", by, "it says that it is from or for somebody else")
    ]
    # nothing else is wrong with such letters: an honest one, by the same way, is heard
    town.server.tell(BEN, "B", "m.room.encrypted", ANN, await letter(ann, ben, {"forged": False}))
    await ben.catch_up()
    assert heard == [(VERIFY, ANN, {"forged": False}, True)]
    assert counts["messages_refused"] == before.get("messages_refused", 0) + 1


async def test_a_room_key_for_somebody_else_is_none(town: Town) -> None:
    """What Ann gave Ben, a homeserver cannot give him as Eve's."""
    ann, ben = await town.pair()
    raw = await ann.say()
    [message] = [each for each in town.server.inbox[BEN, "B"] if each["type"] == "m.room.encrypted"]
    message["sender"] = EVE
    await ben.catch_up()
    assert (await ben.why_not(raw)).reason == "no_key"
    assert ben.keys == []
    assert ben.encryption.counts["messages_refused"] == 1
