"""Whatever is said, said again, forgotten and forwarded, in whatever order: no message is ever accepted twice."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from armorclaw.clock import Clock
from armorclaw.matrix.crypto import pruning
from armorclaw.matrix.crypto.channels import Letter
from armorclaw.matrix.crypto.database import CryptoDatabase
from armorclaw.matrix.crypto.failures import Undecryptable
from armorclaw.matrix.crypto.olm import InboundGroupSession, OlmError, OutboundGroupSession
from armorclaw.matrix.crypto.pruning import DAY_MS, Pruning
from armorclaw.matrix.crypto.room_keys import ALGORITHM, RoomKeys
from armorclaw.matrix.crypto.tables import MIGRATIONS
from armorclaw.matrix.crypto.vault import Vault
from armorclaw.store.migrate import migrate

ROOM = "!room:hs.test"
ANN, MALLORY = "@ann:hs.test", "@mallory:hs.test"
SENDERS = st.sampled_from([ANN, MALLORY])
_HOW_MANY = st.integers(0, 30)


@attrs.define
class _Session:
    """One of Ann's; `said` are its messages, `shared` its key as it was at some of them."""

    outbound: OutboundGroupSession
    shared: list[str]
    exported: list[str]
    said: list[str] = attrs.field(factory=list)


class NeverTwice(RuleBasedStateMachine):
    """Ann says what she says once. Mallory has her keys and calls them theirs; the homeserver says and brings again
    whatever it likes. Each counts as the one in whose name it is said."""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self._vault = Vault(Path(self._folder.name), lambda: bytes(32))
        self._wall = 1_700_000_000.0
        self._clock = Clock(wall=lambda: self._wall)
        self._sessions: list[_Session] = []
        self._accepted: dict[tuple[str, int, int], str] = {}
        self._events = 0
        self._db: CryptoDatabase | None = None
        self._open()

    def _open(self) -> None:
        db = self._vault.open("main", expected=False)
        migrate(db.connection, MIGRATIONS, db.path)
        self._db = db
        self._keys = RoomKeys(db, self._clock)
        self._pruning = Pruning("main", db, self._keys, self._clock, days=30, counts=Counter())

    def teardown(self) -> None:
        assert self._db is not None
        self._db.close()
        self._folder.cleanup()

    @initialize()
    def first(self) -> None:
        self.begin()

    @rule()
    def begin(self) -> None:
        """A new session, whose key everybody gets."""
        if len(self._sessions) == 3:
            return
        outbound = OutboundGroupSession()
        session = _Session(outbound, [outbound.session_key], [_exported(outbound.session_key)])
        self._sessions.append(session)
        self._bring(session, ANN, 0)

    @rule(data=st.data(), sender=SENDERS)
    def bring(self, data: st.DataObject, sender: str) -> None:
        """A room key comes, perhaps not for the first time."""
        session = data.draw(st.sampled_from(self._sessions))
        self._bring(session, sender, data.draw(st.integers(0, len(session.shared) - 1)))

    @rule(data=st.data())
    def forward(self, data: st.DataObject) -> None:
        """A verified device of ours has it still."""
        session = data.draw(st.sampled_from(self._sessions))
        self._forward(session, data.draw(st.sampled_from(session.exported)))

    @rule()
    def all_of_it_again(self) -> None:
        """Every key comes once more, and what was accepted is said as other events."""
        for session in self._sessions:
            self._bring(session, ANN, 0)
            self._bring(session, MALLORY, 0)
            self._forward(session, session.exported[0])
        for sender, number, place in self._accepted:
            self._hear(number, place, sender, same=False)

    def _forward(self, session: _Session, key: str) -> None:
        facts = {"sender_key": f"key of {ANN}", "sender_claimed_ed25519_key": "s"}
        try:
            self._keys.receive_forwarded(self._content(session, key) | facts)
        except OlmError:
            pass

    @rule(data=st.data())
    def share_later(self, data: st.DataObject) -> None:
        session = data.draw(st.sampled_from(self._sessions))
        session.shared.append(session.outbound.session_key)
        session.exported.append(_exported(session.outbound.session_key))

    @rule(data=st.data())
    def say(self, data: st.DataObject) -> None:
        number = data.draw(st.integers(0, len(self._sessions) - 1))
        session = self._sessions[number]
        text = f'{{"type": "m.x", "room_id": "{ROOM}", "content": {{}}}}'
        session.said.append(session.outbound.encrypt(text))
        self._hear(number, len(session.said) - 1, ANN, same=False)

    @rule(data=st.data(), sender=SENDERS, same=st.booleans())
    def say_again(self, data: st.DataObject, sender: str, same: bool) -> None:
        """As the same event, or as another one."""
        number = data.draw(st.integers(0, len(self._sessions) - 1))
        if said := self._sessions[number].said:
            self._hear(number, data.draw(st.integers(0, len(said) - 1)), sender, same=same)

    @rule(data=st.data())
    def wait(self, data: st.DataObject) -> None:
        """A message waits for a key, or its device."""
        self._keys.waited_with(ROOM, data.draw(st.sampled_from(self._sessions)).outbound.id)

    @rule(days=st.sampled_from([0.1, 10, 31]))
    def time_passes(self, days: float) -> None:
        self._wall += days * DAY_MS / 1000

    @rule(unused=_HOW_MANY, used=_HOW_MANY, marks=_HOW_MANY, turns=st.integers(1, 8))
    def prune(self, unused: int, used: int, marks: int, turns: int) -> None:
        """So much of it as there is time for, for whatever reason."""
        excess, spared = pruning._Excess(unused, used, marks), set[int]()
        for _ in range(turns):
            if not self._pruning._turn(excess, spared):
                break

    @precondition(lambda self: self._events > 2)
    @rule()
    def another_life(self) -> None:
        assert self._db is not None
        self._db.close()
        self._open()

    @invariant()
    def marks_belong_to_keys(self) -> None:
        assert self._db is not None
        assert self._db.all("SELECT 1 FROM heard WHERE key NOT IN (SELECT number FROM room_keys)") == []
        used = "SELECT 1 FROM heard JOIN room_keys ON number = key WHERE used_ms IS NULL"
        assert self._db.all(used) == [], "a key with marks must not be taken for one that has opened nothing"

    def _bring(self, session: _Session, sender: str, which: int) -> None:
        letter = Letter("m.room_key", self._content(session, session.shared[which]), sender, f"key of {sender}", "s")
        try:
            self._keys.receive(letter)
        except OlmError:
            pass

    def _content(self, session: _Session, key: str) -> dict[str, Any]:
        return {"algorithm": ALGORITHM, "room_id": ROOM, "session_id": session.outbound.id, "session_key": key}

    def _hear(self, number: int, place: int, sender: str, *, same: bool) -> None:
        """As `Encryption._decrypt` does: open, judge, note."""
        which = sender, number, place
        if not same or which not in self._accepted:
            self._events += 1
            event_id = f"${self._events}"
        else:
            event_id = self._accepted[which]
        session = self._sessions[number]
        content = {
            "algorithm": ALGORITHM,
            "session_id": session.outbound.id,
            "ciphertext": session.said[place],
        }
        try:
            opened = self._keys.open(ROOM, {"sender": sender, "content": content})
            if opened.key.owner not in (sender, None) or opened.key.sender_key != f"key of {sender}":
                raise Undecryptable("mismatch")
            self._keys.heard(opened, event_id)
        except Undecryptable:
            return
        assert opened.place == place
        assert self._accepted.setdefault(which, event_id) == event_id, "a message was accepted twice"


def _exported(session_key: str) -> str:
    session = InboundGroupSession(session_key)
    return session.export_session(session.first_known_index)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that a turn ends within a key."""
    monkeypatch.setattr(pruning, "_KEYS_A_TURN", 2)
    monkeypatch.setattr(pruning, "_MARKS_A_TURN", 3)


class TestNeverTwice(NeverTwice.TestCase):  # type: ignore[misc, valid-type]
    settings = settings(
        max_examples=60,
        stateful_step_count=40,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
