"""Verifying, devices and recovery keys: what is asked, what a person is shown, and what they answer."""

from __future__ import annotations

import json
from typing import Any

import pytest

from armorclaw.testing.handles import wait_until
from tests.cli.conftest import FakeBridge, Run, Stream

EMOJI = [["🐶", "Dog"], ["🔧", "Spanner"]] * 3 + [["📌", "Pin"]]
COMPARE = {"state": "compare", "user_id": "@a:b", "device_id": "D", "emoji": EMOJI, "decimals": [1000, 2000, 3000]}
REQUESTED = {"state": "requested", "user_id": "@a:b", "device_id": "D"}
STEPS = [
    {"state": "asked", "user_id": "@a:b"},
    {"state": "agreeing", "user_id": "@a:b", "device_id": "D"},
    COMPARE,
    {"state": "confirmed", "user_id": "@a:b", "device_id": "D"},
]
GOOD = {"verified": True, "user_id": "@a:b", "device_id": "D", "keys": ["ed25519:D"], "code": "", "reason": ""}
BAD = {**GOOD, "verified": False, "keys": [], "code": "m.mismatched_sas", "reason": "not the same"}


def answers(fake: FakeBridge, number: int) -> list[Any]:
    """What was uploaded, once there is so much; the fake answers before it reads on."""

    def uploads() -> list[Any]:
        return [params["data"] for method, params in fake.asked if method == "$/upload"]

    wait_until(lambda: len(uploads()) >= number, 5, "the uploads are read")
    return uploads()


def test_emoji_are_shown_and_the_answer_goes_back(run: Run, fake: FakeBridge) -> None:
    fake.answers["matrix.verify"] = Stream(STEPS, GOOD)
    done = run("matrix", "verify", "@a:b", "D", "--room", "!r:b", "--direct", "--account", "x", stdin="y\n")
    assert (done.status, done.err) == (0, "")
    assert done.out.splitlines() == [
        "@a:b was asked; waiting for them to accept",
        "@a:b accepts, with the device D",
        "both sides must show the same:",
        "  🐶 Dog  🔧 Spanner  🐶 Dog  🔧 Spanner  🐶 Dog  🔧 Spanner  📌 Pin",
        "  or, in numbers: 1000  2000  3000",
        "waiting for @a:b to say the same",
        "@a:b D is verified",
    ]
    asked = {"user_id": "@a:b", "device_id": "D", "room_id": "!r:b", "direct": True, "account": "x"}
    assert fake.asked[0] == ("matrix.verify", asked)
    assert answers(fake, 1) == [{"state": "compare", "yes": True}]


@pytest.mark.parametrize("stdin", ["n\n", "", "maybe\n", "\n"])
def test_whatever_is_no_yes_is_a_no(run: Run, fake: FakeBridge, stdin: str) -> None:
    fake.answers["matrix.verify"] = Stream(STEPS, BAD)
    done = run("matrix", "verify", "@a:b", stdin=stdin)
    assert done.status == 1
    assert done.out.splitlines()[-1] == "@a:b D is not verified: not the same (m.mismatched_sas)"
    assert answers(fake, 1) == [{"state": "compare", "yes": False}]


def test_somebody_else_asks_first(run: Run, fake: FakeBridge) -> None:
    fake.answers["matrix.verify"] = Stream([{"state": "waiting"}, REQUESTED, COMPARE], GOOD)
    done = run("matrix", "verify", stdin="yes\nY\n")
    assert done.status == 0
    assert done.out.splitlines()[:2] == [
        "waiting for somebody to ask",
        "@a:b asks to be verified, with the device D",
    ]
    assert fake.asked[0] == ("matrix.verify", {})
    assert answers(fake, 2) == [{"state": "requested", "yes": True}, {"state": "compare", "yes": True}]


def test_a_program_reads_steps_and_writes_lines(run: Run, fake: FakeBridge) -> None:
    fake.answers["matrix.verify"] = Stream([REQUESTED, COMPARE], GOOD)
    done = run("matrix", "verify", "--json", stdin="y\ny\n")
    assert [json.loads(line) for line in done.out.splitlines()] == [REQUESTED, COMPARE, GOOD]


def test_nobody_is_written_as_nobody(run: Run, fake: FakeBridge) -> None:
    fake.answers["matrix.verify"] = Stream([STEPS[0]], {**BAD, "device_id": None, "code": "m.timeout"})
    assert run("matrix", "verify", "@a:b").out.splitlines()[-1] == "@a:b is not verified: not the same (m.timeout)"


DEVICES = {
    "user_id": "@a:b",
    "master": "M",
    "identity": "tofu",
    "devices": [
        {"device_id": "D", "name": "phone\x1b[2J", "fingerprint": "abcdefghi", "trust": "tofu", "own": False},
        {"device_id": "E", "name": "bridge", "fingerprint": "jklm", "trust": "verified", "own": True},
    ],
    "signed": False,
    "hint": "give the recovery key",
}


def test_devices(run: Run, fake: FakeBridge) -> None:
    fake.answers["matrix.devices"] = DEVICES
    lines = run("matrix", "devices", "@a:b").out.splitlines()
    assert lines[:2] == ["@a:b: identity tofu", "the device of the bridge is not signed: give the recovery key"]
    assert lines[3].split() == ["D", "phone�[2J", "tofu", "abcd", "efgh", "i"]
    assert lines[4].split() == ["E", "bridge", "verified", "jklm", "yes"]
    assert fake.asked == [("matrix.devices", {"user_id": "@a:b"})]
    assert json.loads(run("matrix", "devices", "--json").out) == DEVICES


def test_accept(run: Run, fake: FakeBridge) -> None:
    fake.answers["matrix.devices"] = {**DEVICES, "master": "abcdefghi"}
    fake.answers["matrix.accept_identity"] = {}
    assert run("matrix", "accept", "@a:b", "--yes").out == "accepted the identity of @a:b: abcd efgh i\n"
    assert fake.asked == [
        ("matrix.devices", {"user_id": "@a:b"}),
        ("matrix.accept_identity", {"user_id": "@a:b", "master": "abcdefghi"}),
    ]


def test_of_somebody_without_an_identity_there_is_nothing_to_accept(run: Run, fake: FakeBridge) -> None:
    fake.answers["matrix.devices"] = {**DEVICES, "master": None}
    done = run("matrix", "accept", "@a:b", "--yes")
    assert done.status != 0
    assert "@a:b has no identity" in done.err
    assert [method for method, _ in fake.asked] == ["matrix.devices"]


def test_recovery_key(run: Run, fake: FakeBridge) -> None:
    fake.answers["matrix.recovery_key"] = {"account": "main", "recovery_key": "EsTE s92N"}
    assert run("matrix", "recovery-key").out == "EsTE s92N\n"
    assert run("matrix", "recovery-key", "other", "--new", "--yes").out == "EsTE s92N\n"
    fake.answers["matrix.recovery_key"] = {"account": "main", "stored": "rk"}
    assert run("matrix", "recovery-key", "--store", "rk").out == "stored rk\n"
    assert fake.asked == [
        ("matrix.recovery_key", {}),
        ("matrix.recovery_key", {"account": "other", "new": True}),
        ("matrix.recovery_key", {"store": "rk"}),
    ]
