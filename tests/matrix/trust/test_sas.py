"""The arithmetic against libolm's own, and against the words of the specification."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
from nio.crypto import Sas as NioSas

from armorclaw.matrix.trust.emoji import EMOJI
from armorclaw.matrix.trust.sas import MAC_V1, MAC_V2, End, KeyAgreement, SasError, check_key, commitment

olm: Any = importlib.import_module("olm")  # it names nothing that it exports
ALICE, BOB = End("@alice:hs", "ADEVICE"), End("@bob:hs", "BDEVICE")


def test_the_emoji_are_those_of_other_clients() -> None:
    assert [emoji for emoji, _ in EMOJI] == [emoji for emoji, _ in NioSas.emoji]
    assert len({name for _, name in EMOJI}) == 64
    assert EMOJI[0] == ("🐶", "Dog")
    assert EMOJI[34] == ("🔧", "Spanner")
    assert EMOJI[63] == ("📌", "Pin")


@pytest.mark.parametrize("we_started", [True, False])
def test_emoji_and_numbers_are_what_the_specification_makes_of_the_bytes(we_started: bool) -> None:
    ours = KeyAgreement()
    theirs = olm.Sas(ours.public_key)
    secret = ours.agree(theirs.pubkey)
    shown = secret.short_auth(ALICE, BOB, "txn", we_started=we_started)

    alice, bob = f"@alice:hs|ADEVICE|{ours.public_key}", f"@bob:hs|BDEVICE|{theirs.pubkey}"
    first, second = (alice, bob) if we_started else (bob, alice)
    raw = theirs.generate_bytes(f"MATRIX_KEY_VERIFICATION_SAS|{first}|{second}|txn", 6)
    bits = "".join(f"{byte:08b}" for byte in raw)
    assert shown.emoji == tuple(EMOJI[int(bits[at : at + 6], 2)] for at in range(0, 42, 6))
    b = raw
    assert shown.decimals == (
        (b[0] << 5 | b[1] >> 3) + 1000,
        ((b[1] & 0x7) << 10 | b[2] << 2 | b[3] >> 6) + 1000,
        ((b[3] & 0x3F) << 7 | b[4] >> 1) + 1000,
    )


def test_a_commitment_is_bound_to_key_and_start() -> None:
    start = {"method": "m.sas.v1", "transaction_id": "t", "from_device": "Ä", "hashes": ["sha256"]}
    text = 'KEY{"from_device":"Ä","hashes":["sha256"],"method":"m.sas.v1","transaction_id":"t"}'
    assert commitment("KEY", start) == olm.sha256(text)
    # what `openssl sha256 -binary` makes of the same text
    assert commitment("KEY", start) == "QTJa9mwwjLJur8OeC33QEo6LRkY+gOCpWaGHL+cU4VA"
    assert commitment("KEX", start) != commitment("KEY", start)
    assert commitment("KEY", {**start, "more": 1}) != commitment("KEY", start)


def test_macs_are_those_of_libolm_in_both_encodings() -> None:
    ours = KeyAgreement()
    theirs = olm.Sas(ours.public_key)
    secret = ours.agree(theirs.pubkey)
    keys = {"ed25519:ZDEV": "key of the device", "ed25519:master": "master"}
    info = "MATRIX_KEY_VERIFICATION_MAC@alice:hsADEVICE@bob:hsBDEVICEtxn"
    for method, reference in ((MAC_V2, theirs.calculate_mac_fixed_base64), (MAC_V1, theirs.calculate_mac)):
        assert secret.macs(method, keys, ALICE, BOB, "txn") == {
            "mac": {key_id: reference(key, info + key_id) for key_id, key in keys.items()},
            "keys": reference("ed25519:ZDEV,ed25519:master", info + "KEY_IDS"),
        }


def test_only_what_was_meant_is_proven() -> None:
    ours, theirs = KeyAgreement(), KeyAgreement()
    mine, peers = ours.agree(theirs.public_key), theirs.agree(ours.public_key)
    known = {"ed25519:BDEVICE": "K1", "ed25519:other": "K2"}
    said = peers.macs(MAC_V2, {"ed25519:BDEVICE": "K1", "ed25519:strange": "K3"}, BOB, ALICE, "txn")

    def proves(mac: dict[str, str], listed: str, keys: dict[str, str] = known, txn: str = "txn") -> object:
        return mine.proves(MAC_V2, mac, listed, keys, BOB, ALICE, txn)

    assert proves(said["mac"], said["keys"]) == {"ed25519:BDEVICE": "K1"}
    assert proves(said["mac"], said["keys"], {"ed25519:BDEVICE": "other"}) is None
    assert proves(said["mac"], said["keys"], {}) == {}
    assert proves(said["mac"], said["keys"], txn="another") is None
    left_out = {key: mac for key, mac in said["mac"].items() if key != "ed25519:strange"}
    assert proves(left_out, said["keys"]) is None
    assert proves({**said["mac"], "ed25519:more": "x"}, said["keys"]) is None
    # what we sent ourselves is not theirs
    own = mine.macs(MAC_V2, known, ALICE, BOB, "txn")
    assert proves(own["mac"], own["keys"]) is None


# of RFC 7748, section 6.1; not made here, lest tests be named anew in each process
KEY = "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo"


@pytest.mark.parametrize(
    "key", ["", "x", "A" * 42, "A" * 44, KEY + "=", KEY[:-1] + "!", KEY + KEY, "é" * 43, KEY[:20] + " " + KEY[21:]]
)
def test_a_key_has_one_form(key: str) -> None:
    with pytest.raises(SasError):
        check_key(key)
    with pytest.raises(SasError):
        KeyAgreement().agree(key)


def test_a_key_whose_secret_everybody_knows_is_refused() -> None:
    with pytest.raises(SasError):
        KeyAgreement().agree("A" * 43)
