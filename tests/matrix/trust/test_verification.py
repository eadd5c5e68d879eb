"""Two sides of a verification against each other, over a line that loses, repeats, reorders and forges."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armorclaw.matrix.trust.sas import End, KeyAgreement, commitment
from armorclaw.matrix.trust.verification import PREFIX, Message, Phase, Verification

ALICE, BOB = End("@alice:hs", "ADEV"), End("@bob:hs", "BDEV")
KEYS = {
    ALICE: {"ed25519:ADEV": "alice's device", "ed25519:AMASTER": "AMASTER"},
    BOB: {"ed25519:BDEV": "bob's device", "ed25519:BMASTER": "BMASTER"},
}


def side(own: End, other: End, *, asked: bool, in_room: bool = False, met: bool = False, **more: Any) -> Verification:
    made = Verification(
        "txn",
        own,
        other.user_id,
        own_keys=KEYS[own],
        their_device=other.device_id if met or not asked else None,
        in_room=in_room,
        we_asked=asked,
        **more,
    )
    made.known = dict(KEYS[other])
    return made


def taken(one: Verification) -> list[Message]:
    """What it has to say, as if it was sent."""
    messages = [message for _, message in one.pending]
    one.pending.clear()
    return messages


@attrs.define
class Line:
    """Alice asks Bob. What each has sent waits in a queue of its own."""

    alice: Verification
    bob: Verification
    to_alice: list[Message] = attrs.field(factory=list)
    to_bob: list[Message] = attrs.field(factory=list)
    sent: list[Message] = attrs.field(factory=list)

    def collect(self) -> None:
        for source, queue in ((self.alice, self.to_bob), (self.bob, self.to_alice)):
            for message in taken(source):
                queue.append(message)
                self.sent.append(message)

    def deliver(self, to: str, at: int = 0) -> None:
        queue, target = (self.to_alice, self.alice) if to == "alice" else (self.to_bob, self.bob)
        if queue:
            message = queue.pop(at % len(queue))
            target.receive(message.type, copy.deepcopy(message.content))

    def settle(self) -> None:
        self.collect()
        while self.to_alice or self.to_bob:
            self.deliver("bob")
            self.deliver("alice")
            self.collect()

    def kinds(self) -> list[str]:
        return [message.type.removeprefix(PREFIX) for message in self.sent]


def line(*, in_room: bool = False) -> Line:
    return Line(side(ALICE, BOB, asked=True, in_room=in_room), side(BOB, ALICE, asked=False, in_room=in_room))


def compared(one: Line) -> Line:
    """Up to the moment when both people compare."""
    one.bob.accept()
    one.settle()
    assert one.alice.phase is one.bob.phase is Phase.SHOWN
    return one


@pytest.mark.parametrize("in_room", [False, True])
def test_both_sides_prove_their_keys_to_each_other(in_room: bool) -> None:
    one = compared(line(in_room=in_room))
    assert one.alice.shown == one.bob.shown
    assert one.alice.shown is not None
    assert len(one.alice.shown.emoji) == 7
    one.bob.confirm(True)
    one.settle()
    assert str(one.bob.phase) == "confirmed"
    assert not one.alice.proven
    assert not one.bob.proven
    one.alice.confirm(True)
    one.settle()
    assert one.alice.phase is one.bob.phase is Phase.DONE
    assert one.alice.proven == KEYS[BOB]
    assert one.bob.proven == KEYS[ALICE]
    assert one.kinds() == ["ready", "start", "accept", "key", "key", "mac", "mac", "done", "done"]
    marks = [message.content.get("m.relates_to", message.content.get("transaction_id")) for message in one.sent]
    assert marks == [{"rel_type": "m.reference", "event_id": "txn"} if in_room else "txn"] * 9


def test_a_start_without_a_request_waits_for_the_person() -> None:
    alice = side(ALICE, BOB, asked=True, met=True)
    one = Line(alice, side(BOB, ALICE, asked=False))
    alice.start()
    one.settle()
    assert one.bob.phase is Phase.STARTED
    assert one.kinds() == ["start"]
    one.bob.accept()
    one.settle()
    for each in (one.alice, one.bob):
        each.confirm(True)
    one.settle()
    assert one.alice.proven == KEYS[BOB]
    assert one.bob.proven == KEYS[ALICE]


def test_when_both_start_the_smaller_user_did() -> None:
    one = line()
    one.bob.accept()
    one.bob.start()
    one.collect()
    one.deliver("alice")  # Bob is ready: Alice starts, too
    one.settle()
    assert one.alice.phase is one.bob.phase is Phase.SHOWN
    assert one.alice.shown == one.bob.shown
    assert one.kinds().count("start") == 2
    assert one.kinds().count("accept") == 1


@pytest.mark.parametrize("who", ["alice", "bob"])
@pytest.mark.parametrize("phase", ["requested", "ready", "shown", "confirmed"])
def test_each_side_can_cancel_at_any_time(who: str, phase: str) -> None:
    one = line()
    if phase != "requested":
        one.bob.accept()
        one.collect()
    if phase in ("shown", "confirmed"):
        one.settle()
    if phase == "confirmed":
        one.alice.confirm(True)
        one.settle()
    (one.alice if who == "alice" else one.bob).cancel()
    one.settle()
    for each in (one.alice, one.bob):
        assert (each.phase, each.code) == (Phase.CANCELLED, "m.user")
        assert not each.proven
    assert one.kinds().count("cancel") == 1


def test_in_a_room_what_another_device_of_ours_accepted_is_left_to_it() -> None:
    """Whoever is in the room sees all of it; to answer would end the verification of the other device."""
    bob = side(BOB, ALICE, asked=False, in_room=True)
    bob.receive(PREFIX + "start", {"from_device": "ADEV", "method": "m.sas.v1"})
    assert (bob.phase, bob.code) == (Phase.CANCELLED, "m.accepted")
    assert not taken(bob)


def test_what_is_not_the_same_proves_nothing() -> None:
    one = compared(line())
    one.alice.confirm(True)
    one.bob.confirm(False)
    one.settle()
    assert (one.alice.code, one.bob.code) == ("m.mismatched_sas", "m.mismatched_sas")
    assert not one.alice.proven
    assert not one.bob.proven


def test_time_passes() -> None:
    one = line()
    one.alice.expire()
    one.settle()
    assert (one.alice.code, one.bob.code) == ("m.timeout", "m.timeout")


def test_a_device_key_that_the_homeserver_made_up_is_found_out() -> None:
    one = compared(line())
    one.alice.known["ed25519:BDEV"] = "the homeserver's own"
    one.alice.confirm(True)
    one.bob.confirm(True)
    one.settle()
    assert one.alice.code == "m.key_mismatch"
    assert not one.alice.proven


def test_keys_that_nobody_knows_prove_nothing() -> None:
    one = compared(line())
    one.alice.known = {}
    one.alice.confirm(True)
    one.bob.confirm(True)
    one.settle()
    assert one.alice.code == "m.key_mismatch"


def test_who_sits_between_both_cannot_choose_a_key_after_seeing_the_other() -> None:
    """Without the commitment, the one between could try keys until the emoji on both sides are the same."""
    between = line()
    between.bob.accept()
    between.collect()
    between.deliver("alice")
    start = taken(between.alice)[0].content
    committed = commitment(KeyAgreement().public_key, start)
    accept = {
        "transaction_id": "txn",
        "key_agreement_protocol": "curve25519-hkdf-sha256",
        "hash": "sha256",
        "message_authentication_code": "hkdf-hmac-sha256.v2",
        "short_authentication_string": ["emoji"],
        "commitment": committed,
    }
    between.alice.receive(PREFIX + "accept", accept)
    between.alice.receive(PREFIX + "key", {"transaction_id": "txn", "key": KeyAgreement().public_key})
    assert between.alice.code == "m.mismatched_commitment"
    assert between.alice.shown is None


def test_a_second_message_that_differs_ends_it_and_the_same_again_does_not() -> None:
    one = compared(line())
    key = next(message for message in one.sent if message.type.endswith(".key"))
    one.bob.receive(key.type, dict(key.content))
    assert one.bob.phase is Phase.SHOWN
    one.bob.receive(key.type, {**key.content, "key": KeyAgreement().public_key})
    assert one.bob.code == "m.unexpected_message"


def test_another_device_that_answers_late_is_not_heard() -> None:
    one = line()
    one.bob.accept()
    one.settle()
    late = {"from_device": "OTHER", "methods": ["m.sas.v1"], "transaction_id": "txn"}
    one.alice.receive(PREFIX + "ready", late)
    assert one.alice.phase is Phase.SHOWN
    assert one.alice.their_device == "BDEV"


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"method": "m.qr_code.show.v1"}, "m.unknown_method"),
        ({"key_agreement_protocols": ["curve25519"]}, "m.unknown_method"),
        ({"hashes": []}, "m.unknown_method"),
        ({"message_authentication_codes": ["hmac-sha256"]}, "m.unknown_method"),
        ({"short_authentication_string": ["smoke"]}, "m.unknown_method"),
        ({"hashes": "sha256"}, "m.invalid_message"),
        ({"hashes": [1]}, "m.invalid_message"),
        ({"from_device": None}, "m.invalid_message"),
        ({"from_device": "OTHER"}, "m.key_mismatch"),
    ],
)
def test_a_start_that_cannot_be_used_says_why(change: dict[str, Any], code: str) -> None:
    one = line()
    one.bob.accept()
    one.collect()
    one.deliver("alice")
    (start,) = taken(one.alice)
    one.bob.receive(start.type, {**start.content, **change})
    assert one.bob.code == code
    assert taken(one.bob)[-1].content["code"] == code


def test_old_clients_have_the_old_mac() -> None:
    one = line()
    one.bob.accept()
    one.collect()
    one.deliver("alice")
    one.collect()
    old = {**one.to_bob.pop().content, "message_authentication_codes": ["hkdf-hmac-sha256"]}
    one.alice._start = old
    one.bob.receive(PREFIX + "start", old)
    one.settle()
    for each in (one.alice, one.bob):
        each.confirm(True)
    one.settle()
    assert one.alice.phase is one.bob.phase is Phase.DONE
    accept = next(message for message in one.sent if message.type.endswith(".accept"))
    assert accept.content["message_authentication_code"] == "hkdf-hmac-sha256"


def test_it_does_not_verify_itself() -> None:
    alice = side(ALICE, ALICE, asked=True)
    alice.receive(PREFIX + "ready", {"from_device": "ADEV", "methods": ["m.sas.v1"]})
    assert alice.code == "m.invalid_message"


# -- any line

Event = tuple[str, str, int]
_EVENTS = st.tuples(
    st.sampled_from(["deliver", "lose", "repeat", "again", "confirm", "start", "accept", "cancel", "expire"]),
    st.sampled_from(["alice", "bob"]),
    st.integers(0, 3),
)


def play(one: Line, events: list[Event]) -> None:
    one.collect()
    for what, who, at in events:
        target = one.alice if who == "alice" else one.bob
        queue = one.to_alice if who == "alice" else one.to_bob
        if what == "deliver":
            one.deliver(who, at)
        elif what == "lose" and queue:
            queue.pop(at % len(queue))
        elif what == "repeat" and queue:
            queue.append(queue[at % len(queue)])
        elif what == "again" and one.sent:
            message = one.sent[at % len(one.sent)]
            target.receive(message.type, copy.deepcopy(message.content))
        elif what == "confirm":
            # a person who looks at both screens
            target.confirm(one.alice.shown is not None and one.alice.shown == one.bob.shown)
        elif what in ("start", "accept", "cancel", "expire"):
            getattr(target, what)()
        one.collect()


@given(st.lists(_EVENTS, max_size=40))
def test_whatever_the_line_does_only_true_keys_are_proven(events: list[Event]) -> None:
    one = line()
    play(one, events)
    for each, other in ((one.alice, BOB), (one.bob, ALICE)):
        assert (each.phase is Phase.DONE) == bool(each.proven)
        assert each.proven in ({}, KEYS[other])
        assert (each.phase is Phase.CANCELLED) == bool(each.code)


@given(st.lists(st.tuples(st.sampled_from(["deliver", "repeat"]), st.sampled_from(["alice", "bob"]), st.just(0))))
def test_a_line_that_keeps_the_order_and_repeats_always_gets_there(events: list[Event]) -> None:
    one = line()
    one.bob.accept()
    play(one, events)
    one.settle()
    for each in (one.alice, one.bob):
        each.confirm(True)
    one.settle()
    assert one.alice.phase is one.bob.phase is Phase.DONE


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(max_size=20) | st.just("m.sas.v1"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
_NAMES = st.sampled_from(
    [
        "from_device",
        "methods",
        "method",
        "key_agreement_protocols",
        "hashes",
        "message_authentication_codes",
        "short_authentication_string",
        "key_agreement_protocol",
        "hash",
        "message_authentication_code",
        "commitment",
        "key",
        "mac",
        "keys",
        "code",
        "reason",
        "transaction_id",
    ]
)


@given(st.integers(0, 8), _NAMES, _JSON)
@settings(max_examples=300)
def test_a_message_changed_on_its_way_never_proves_a_wrong_key(number: int, name: str, value: Any) -> None:
    one = line()
    one.bob.accept()
    count = 0

    def forge(message: Message) -> Mapping[str, Any]:
        nonlocal count
        count += 1
        return {**message.content, name: value} if count - 1 == number else message.content

    for _ in range(40):
        one.collect()
        for queue, target in ((one.to_bob, one.bob), (one.to_alice, one.alice)):
            for message in queue:
                target.receive(message.type, forge(message))
            queue.clear()
        if one.alice.shown is not None and one.alice.shown == one.bob.shown:
            one.alice.confirm(True)
            one.bob.confirm(True)
    for each, other in ((one.alice, BOB), (one.bob, ALICE)):
        assert each.proven.items() <= KEYS[other].items()


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["ready", "start", "accept", "key", "mac", "done", "cancel", "other"]),
            st.dictionaries(_NAMES, _JSON | st.text(alphabet="ABab+/=", min_size=40, max_size=46), max_size=8),
        ),
        max_size=10,
    ),
    st.booleans(),
)
def test_a_stranger_who_says_anything_is_answered_with_one_cancel_at_most(
    said: list[tuple[str, dict[str, Any]]], asked: bool
) -> None:
    alice = side(ALICE, BOB, asked=asked)
    for kind, content in said:
        alice.receive(PREFIX + kind, content)
        alice.confirm(True)
    assert not alice.proven
    assert alice.phase is not Phase.DONE
    assert [message.type for message in taken(alice)].count(PREFIX + "cancel") <= 1
