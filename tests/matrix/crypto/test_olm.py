"""Olm and Megolm on vodozemac, against libolm in the same process, and against whatever a stranger may send."""

from __future__ import annotations

import base64
import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from armorclaw.matrix.crypto import olm as ours
from armorclaw.matrix.crypto.olm import PREKEY, OlmError

libolm: Any = pytest.importorskip("olm")

WORDS = ("hello", "h\u00e9\u4f60\U0001f600", "x" * 2000)


def again(session: Any) -> Any:
    """As it is after it was on disk."""
    return type(session).from_pickle(session.pickle("passphrase"), "passphrase")


def account() -> tuple[ours.Account, str, str]:
    made = ours.Account()
    made.generate_one_time_keys(1)
    ((_, key),) = made.one_time_keys["curve25519"].items()
    made.mark_keys_as_published()
    return made, made.identity_keys["curve25519"], key


def their_account() -> tuple[Any, str, str]:
    made = libolm.Account()
    made.generate_one_time_keys(1)
    ((_, key),) = made.one_time_keys["curve25519"].items()
    made.mark_keys_as_published()
    return made, made.identity_keys["curve25519"], key


def theirs(message: tuple[int, str]) -> Any:
    kind, body = message
    return libolm.OlmPreKeyMessage(body) if kind == PREKEY else libolm.OlmMessage(body)


def mine(message: Any) -> tuple[int, str]:
    return (PREKEY if isinstance(message, libolm.OlmPreKeyMessage) else 1), message.ciphertext


@pytest.mark.parametrize("seed", range(5))
def test_we_open_a_channel_to_libolm(seed: int) -> None:
    dice = random.Random(seed)
    (us, our_key, _), (them, their_key, one_time_key) = account(), their_account()
    here = again(us.outbound_session(their_key, one_time_key))
    first = [here.encrypt(word) for word in WORDS]
    dice.shuffle(first)  # any of them may arrive first
    there = libolm.InboundSession(them, theirs(first[0]), our_key)
    them.remove_one_time_keys(there)
    assert there.id == here.id
    assert {there.decrypt(theirs(message)) for message in first} == set(WORDS)
    _converse(here, there, dice)


@pytest.mark.parametrize("seed", range(5))
def test_libolm_opens_a_channel_to_us(seed: int) -> None:
    dice = random.Random(seed)
    (us, our_key, one_time_key), (them, their_key, _) = account(), their_account()
    there = libolm.OutboundSession(them, our_key, one_time_key)
    first = [there.encrypt(word) for word in WORDS]
    dice.shuffle(first)
    here, plaintext = us.inbound_session(their_key, first[0].ciphertext)
    assert here.id == there.id
    rest = [again(here)]
    heard = {plaintext.decode()}
    for message in first[1:]:
        assert rest[0].matches(message.ciphertext)
        heard.add(rest[0].decrypt(*mine(message)).decode())
        rest[0] = again(rest[0])
    assert heard == set(WORDS)
    with pytest.raises(OlmError):  # the one-time key is used up
        us.inbound_session(their_key, first[0].ciphertext)
    _converse(rest[0], there, dice)


def _converse(here: Any, there: Any, dice: random.Random) -> None:
    """Back and forth; some messages are lost, some overtake others, and we are restarted now and then."""
    for turn in range(10):
        sent = [here.encrypt(f"{turn} {number}") for number in range(3)]
        for number in dice.sample(range(3), 2):
            assert there.decrypt(theirs(sent[number])) == f"{turn} {number}"
        back = [there.encrypt(f"{turn} {number}") for number in range(3)]
        for number in dice.sample(range(3), 2):
            assert here.decrypt(*mine(back[number])) == f"{turn} {number}".encode()
            with pytest.raises(OlmError):
                here.decrypt(*mine(back[number]))
        here = again(here)


def test_a_message_of_another_channel_does_not_match() -> None:
    (us, our_key, one_time_key), (them, their_key, _) = account(), their_account()
    there = libolm.OutboundSession(them, our_key, one_time_key)
    here, _ = us.inbound_session(their_key, there.encrypt("x").ciphertext)
    other = libolm.OutboundSession(libolm.Account(), our_key, one_time_key)
    assert not here.matches(other.encrypt("x").ciphertext)
    assert not here.matches("AAAA")


@pytest.mark.parametrize("seed", range(3))
def test_room_keys_serve_both(seed: int) -> None:
    dice = random.Random(seed)
    for outbound, inbound in (
        (ours.OutboundGroupSession(), libolm.InboundGroupSession),
        (libolm.OutboundGroupSession(), ours.InboundGroupSession),
    ):
        key = inbound(outbound.session_key)
        assert key.id == outbound.id
        said = [outbound.encrypt(f"{number}") for number in range(40)]
        for number in dice.sample(range(40), 40):
            assert _opened(key, said[number]) == (f"{number}", number)
        assert _opened(key, said[3]) == ("3", 3)
        late = inbound(again(outbound).session_key)
        assert late.first_known_index == 40
        passed_on = key.export_session(10)
        for kind in (ours.InboundGroupSession, libolm.InboundGroupSession):
            imported = again(kind.import_session(passed_on))
            assert imported.id == outbound.id
            assert imported.first_known_index == 10
            assert _opened(imported, said[12]) == ("12", 12)
            assert imported.export_session(20) == key.export_session(20)
            with pytest.raises((OlmError, libolm.OlmGroupSessionError)):
                imported.decrypt(said[9])


def _opened(key: Any, ciphertext: str) -> tuple[str, int]:
    plaintext, place = key.decrypt(ciphertext)
    return (plaintext if isinstance(plaintext, str) else plaintext.decode()), place


def test_whether_a_message_is_older_than_the_key() -> None:
    outbound = ours.OutboundGroupSession()
    before = outbound.encrypt("before")
    key = ours.InboundGroupSession(outbound.session_key)
    assert key.is_before(before)
    assert not key.is_before(outbound.encrypt("after"))
    assert not key.is_before("AAAA")


def test_signatures_serve_both() -> None:
    (us, _, _), (them, _, _) = account(), their_account()
    libolm.ed25519_verify(us.identity_keys["ed25519"], "text", us.sign("text"))
    ours.ed25519_verify(them.identity_keys["ed25519"], "text", them.sign("text"))
    with pytest.raises(OlmError):
        ours.ed25519_verify(them.identity_keys["ed25519"], "another", them.sign("text"))
    seed = ours.PkSigning.generate_seed()
    here, there = ours.PkSigning(seed), libolm.PkSigning(seed)
    assert (here.public_key, here.sign("text")) == (there.public_key, there.sign("text"))


def test_a_pickle_needs_its_passphrase() -> None:
    for thing in (ours.Account(), ours.OutboundGroupSession()):
        with pytest.raises(OlmError):
            type(thing).from_pickle(thing.pickle("right"), "wrong")
        with pytest.raises(OlmError):
            type(thing).from_pickle(b"nonsense", "right")


def test_a_fallback_key_serves_more_than_once() -> None:
    us = ours.Account()
    us.generate_fallback_key()
    ((_, key),) = us.fallback_key["curve25519"].items()
    us.mark_keys_as_published()
    assert us.fallback_key == {"curve25519": {}}
    for word in WORDS:
        them = libolm.Account()
        there = libolm.OutboundSession(them, us.identity_keys["curve25519"], key)
        _, plaintext = us.inbound_session(them.identity_keys["curve25519"], there.encrypt(word).ciphertext)
        assert plaintext.decode() == word


# -- whatever a stranger sends --

_US, _OUR_KEY, _ONE_TIME_KEY = account()
_THERE = ours.Account()
_CHANNEL = _THERE.outbound_session(_OUR_KEY, _ONE_TIME_KEY)
_PREKEY = _CHANNEL.encrypt("x" * 50)[1]
_HERE, _ = _US.inbound_session(_THERE.identity_keys["curve25519"], _PREKEY)
_REPLY = _HERE.encrypt("reply")[1]
_OUTBOUND = ours.OutboundGroupSession()
_ROOM_KEY = _OUTBOUND.session_key
_INBOUND = ours.InboundGroupSession(_ROOM_KEY)
_SAID = _OUTBOUND.encrypt("x" * 50)
_EXPORTED = _INBOUND.export_session(0)
_THEIR_KEY = _THERE.identity_keys["curve25519"]
_SIGNING_KEY, _SIGNATURE = _THERE.identity_keys["ed25519"], _THERE.sign("text")


def _encoded(data: bytes) -> str:
    return base64.b64encode(data).rstrip(b"=").decode()


@st.composite
def mutated(draw: st.DrawFn, text: str) -> str:
    """The text with bytes changed, cut, put in; or something else altogether."""
    data = bytearray(base64.b64decode(text + "=" * (-len(text) % 4)))
    how = draw(st.sampled_from(["change", "cut", "insert", "random", "text"]))
    place = draw(st.integers(0, len(data) - 1))
    if how == "change":
        data[place] ^= draw(st.integers(1, 255))
    elif how == "cut":
        del data[place:]
    elif how == "insert":
        data[place:place] = draw(st.binary(min_size=1, max_size=40))
    elif how == "random":
        data = bytearray(draw(st.binary(max_size=300)))
    else:
        return draw(st.text(max_size=80))
    return _encoded(bytes(data))


_ENTRANCES: dict[str, tuple[str, Callable[[str], object]]] = {
    "a first message": (_PREKEY, lambda text: _US.inbound_session(_THEIR_KEY, text)),
    "whose it is": (_THEIR_KEY, lambda text: _US.inbound_session(text, _PREKEY)),
    "a first message of a channel": (_PREKEY, lambda text: _HERE.decrypt(PREKEY, text)),
    "which channel": (_PREKEY, _HERE.matches),
    "a message": (_REPLY, lambda text: _CHANNEL.decrypt(1, text)),
    "a device's key": (_THEIR_KEY, lambda text: _US.outbound_session(text, _ONE_TIME_KEY)),
    "a one-time key": (_ONE_TIME_KEY, lambda text: _US.outbound_session(_THEIR_KEY, text)),
    "what is said in a room": (_SAID, _INBOUND.decrypt),
    "its number": (_SAID, _INBOUND.is_before),
    "a room key": (_ROOM_KEY, ours.InboundGroupSession),
    "a room key passed on": (_EXPORTED, ours.InboundGroupSession.import_session),
    "who signed": (_SIGNING_KEY, lambda text: ours.ed25519_verify(text, "text", _SIGNATURE)),
    "a signature": (_SIGNATURE, lambda text: ours.ed25519_verify(_SIGNING_KEY, "text", text)),
}


@pytest.mark.parametrize("entrance", list(_ENTRANCES))
@settings(max_examples=200)
@given(data=st.data())
def test_a_stranger_raises_nothing_but_our_error(entrance: str, data: st.DataObject) -> None:
    """A Rust panic would be a BaseException, and take down the whole session."""
    text, enter = _ENTRANCES[entrance]
    try:
        enter(data.draw(mutated(text)))
    except OlmError:
        pass


@pytest.mark.parametrize("index", [-1, 2**32, 2**70])
def test_an_index_beyond_all_is_an_error(index: int) -> None:
    with pytest.raises(OlmError):
        _INBOUND.export_session(index)


def test_a_panic_is_an_error() -> None:
    """vodozemac 0.10 panics over a key of 33 bytes; should it do so elsewhere, it is caught."""

    class PanicException(BaseException):
        __module__ = "pyo3_runtime"

    with pytest.raises(OlmError, match="oh no"), ours.guarded(OlmError):
        raise PanicException("oh no")
    with pytest.raises(KeyboardInterrupt), ours.guarded(OlmError):
        raise KeyboardInterrupt
    with pytest.raises(OlmError):
        ours.ed25519_verify(_encoded(bytes(33)), "text", _SIGNATURE)


def test_mautrix_runs_on_it_and_libolm_stays_for_others() -> None:
    from armorclaw.matrix.crypto import upstream

    ours.load_mautrix_crypto()
    assert issubclass(upstream.OlmAccount, ours.Account)
    assert sys.modules["olm"] is libolm


def test_mautrix_takes_along_no_drivers_that_nobody_needs() -> None:
    """What an embedding program has imported itself, or imports later, it gets as it is."""
    script = """
import sys
import armorclaw.matrix.crypto.encryption
print(*sorted({"asyncpg", "aiosqlite", "sqlite3", "cffi"} & set(sys.modules)))
import asyncpg, sqlite3
print(asyncpg.UniqueViolationError.__module__, sqlite3.IntegrityError.__name__)
"""
    ran = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    assert ran.stdout.splitlines() == ["", "asyncpg.exceptions IntegrityError"]
