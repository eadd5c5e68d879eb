"""That the peers work without us, so that what fails with us is ours."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.interop.peers import Kind, Peer, PeerError, Peers

OTHERS: dict[Kind, Kind] = {"mautrix": "nio", "nio": "mautrix"}


async def pair(peers: Peers, kind: Kind) -> tuple[Peer, Peer, str]:
    """One of the kind, one of the other, and an encrypted room of theirs."""
    alice, bob = await peers(kind, "alice"), await peers(OTHERS[kind], "bob")
    room = await alice.create_room(bob.user_id)
    await alice.until_member(room, bob.user_id)
    await bob.until_member(room, alice.user_id)
    return alice, bob, room


async def trust_each_other(old: Peer, new: Peer) -> None:
    """Two devices of one person, as that kind of peer can."""
    if old.program.kind == "mautrix":
        await new.do("recover", recovery_key=await old.do("cross_sign"))
        for one, other in ((old, new), (new, old)):
            await one.until("trust", is_cross_signed, user_id=other.user_id, device_id=other.device_id)
    else:
        for one, other in ((old, new), (new, old)):
            await one.knows(other.user_id, other.device_id)
            await one.do("verify_by_hand", user_id=other.user_id, device_id=other.device_id)


def is_cross_signed(trust: str) -> bool:
    return trust.startswith("cross_signed")


async def test_a_conversation_with_a_file_and_many_at_once(peers: Peers, kind: Kind, tmp_path: Path) -> None:
    alice, bob, room = await pair(peers, kind)
    await alice.say(room, "hello")
    heard = await bob.sees("hello")
    assert (heard["encrypted"], heard["sender"]) == (True, alice.user_id)
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"\x89PNG" + bytes(range(256)) * 100)
    await alice.do("send_file", room_id=room, path=str(picture), mimetype="image/png", msgtype="m.image")
    content = (await bob.sees("picture.png"))["content"]
    assert "url" not in content
    assert await bob.do("fetch_file", file=content["file"]) == hashlib.sha256(picture.read_bytes()).hexdigest()
    many = [f"at once {number}" for number in range(20)]
    await alice.do("send_at_once", room_id=room, bodies=many)
    for body in many:
        assert (await bob.sees(body))["encrypted"]
    assert alice.unread() == bob.unread() == []


async def test_what_was_said_while_it_was_offline_comes_in_order(peers: Peers, kind: Kind) -> None:
    """More than a homeserver puts into one answer, and over a change of its client."""
    alice, bob, room = await pair(peers, OTHERS[kind])  # so that `kind` is the one that was away
    await bob.close()
    said = [f"while away {number}" for number in range(120)]
    for start in range(0, len(said), 20):
        await alice.do("send_at_once", room_id=room, bodies=said[start : start + 20])
    await bob.open()
    await alice.say(room, "the last")
    for peer in (alice, bob):
        await peer.sees("the last")
    assert bob.read(room) == alice.read(room)
    assert set(said) < set(bob.read(room))
    assert bob.unread() == []


async def test_devices_that_come_and_go(peers: Peers, kind: Kind) -> None:
    alice, bob, room = await pair(peers, kind)
    await alice.say(room, "before")
    await bob.sees("before")
    second = await peers(OTHERS[kind], of=bob)
    await alice.say(room, "to two devices")
    assert (await second.sees("to two devices"))["encrypted"]
    assert second.device_id in await alice.do("devices", user_id=bob.user_id)
    session = await alice.do("outbound", room_id=room)
    await second.do("log_out")
    await alice.until("devices", lambda devices: devices == [bob.device_id], user_id=bob.user_id)
    await alice.say(room, "to one device again")
    assert (await bob.sees("to one device again"))["session_id"] != session


async def test_a_megolm_session_ends(peers: Peers, kind: Kind) -> None:
    """After 100 messages, and when somebody leaves."""
    alice, bob, room = await pair(peers, kind)
    sessions = []
    for number in range(0, 101, 20):
        await alice.do("send_at_once", room_id=room, bodies=[f"{number + more}" for more in range(20)])
        sessions.append((await bob.sees(f"{number}"))["session_id"])
    assert sessions[0] == sessions[4] != sessions[5]
    carol = await peers(kind, "carol")
    await alice.do("invite", room_id=room, user_id=carol.user_id)
    await alice.until_member(room, carol.user_id)
    await alice.say(room, "with carol")
    await carol.sees("with carol")
    before = (await bob.sees("with carol"))["session_id"]
    await carol.do("leave", room_id=room)
    await alice.until_member(room, carol.user_id, "leave")
    await alice.say(room, "without carol")
    assert (await bob.sees("without carol"))["session_id"] != before


async def test_a_key_is_asked_of_ones_own_verified_device(peers: Peers, kind: Kind) -> None:
    alice, bob, room = await pair(peers, kind)
    await bob.say(room, "from before")
    await alice.sees("from before")
    second = await peers(kind, of=alice)
    missing = await second.unreadable(bob)
    await trust_each_other(alice, second)
    order = {name: missing[name] for name in ("room_id", "sender_key", "session_id")}
    await second.do("request_key", **order, devices=[alice.device_id])
    assert (await second.sees("from before"))["session_id"] == missing["session_id"]


async def test_emoji_are_compared(peers: Peers) -> None:
    alice, bob = await peers("nio", "alice"), await peers("nio", "bob")
    room = await alice.create_room(bob.user_id)
    await alice.until_member(room, bob.user_id)
    await bob.until_member(room, alice.user_id)
    for peer, other in ((alice, bob), (bob, alice)):
        await peer.knows(other.user_id, other.device_id)
    transaction = await alice.do("sas_start", user_id=bob.user_id, device_id=bob.device_id)
    await bob.wait("the start", lambda seen: seen.get("kind") == "KeyVerificationStart")
    await bob.do("sas_accept", transaction_id=transaction)
    for peer in (alice, bob):
        await peer.wait("the key", lambda seen: seen.get("kind") == "KeyVerificationKey")
    shown = [await peer.do("sas_emoji", transaction_id=transaction) for peer in (alice, bob)]
    assert shown[0] == shown[1]
    assert len(shown[0]) == 7
    for peer in (alice, bob):
        await peer.do("sas_confirm", transaction_id=transaction)
    for peer, other in ((alice, bob), (bob, alice)):
        await peer.wait("the code", lambda seen: seen.get("kind") == "KeyVerificationMac")
        assert await peer.do("trust", user_id=other.user_id, device_id=other.device_id) == "verified"


async def test_a_peer_that_fails_says_why(peers: Peers, kind: Kind) -> None:
    alice = await peers(kind, "alice")
    with pytest.raises(PeerError, match=r"(?s)could not send.*it said:\n.*Traceback"):
        await alice.say("!nowhere:localhost", "lost")
    with pytest.raises(PeerError, match="did not see the message 'never said'"):
        await alice.sees("never said", seconds=0.01)
