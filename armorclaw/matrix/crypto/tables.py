"""Our tables in an account's crypto file, beside mautrix's `crypto_*` (its account, devices and cross-signing keys).

Migrations as in `armorclaw.store.schema`. Times are milliseconds since the epoch. Public keys are base64.
"""

from __future__ import annotations

from armorclaw.store.schema import Migration

_FIRST = """
CREATE TABLE facts (                 -- boot_id, user_id, device_id, made_ms, fallback_ms, synced (JSON), and trust's
    name TEXT PRIMARY KEY,
    value TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE seen (                  -- to-device messages that were handled
    hash BLOB PRIMARY KEY,
    at_ms INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE channels (              -- Olm sessions
    device_key TEXT NOT NULL,        -- Curve25519, of the other device
    session_id TEXT NOT NULL,
    pickle BLOB NOT NULL,
    used INTEGER NOT NULL,           -- counts up; the channel that last brought something is the one to use
    PRIMARY KEY (device_key, session_id)
) WITHOUT ROWID;
CREATE TABLE room_keys (             -- inbound Megolm sessions
    number INTEGER PRIMARY KEY,
    room_id TEXT NOT NULL,
    session_id TEXT NOT NULL,
    sender_key TEXT NOT NULL,        -- Curve25519, of the device that made it
    signing_key TEXT NOT NULL,       -- Ed25519, of the same, as claimed by who gave us the key
    owner TEXT,                      -- whose device that is; NULL: forwarded, so nobody has proved it
    first_index INTEGER NOT NULL,
    pickle BLOB NOT NULL,
    received_ms INTEGER NOT NULL,
    UNIQUE (room_id, session_id, sender_key)  -- whoever has a key can say that it is theirs
);
CREATE TABLE heard (                 -- messages that were decrypted: the same number twice is a replay
    key INTEGER NOT NULL REFERENCES room_keys (number) ON DELETE CASCADE,
    place INTEGER NOT NULL,          -- the message's number in its session
    event BLOB NOT NULL,             -- of a hash of the event id, 12 bytes
    PRIMARY KEY (key, place)
) WITHOUT ROWID;
CREATE TABLE withheld (              -- keys that somebody told us we will not get
    room_id TEXT NOT NULL,
    session_id TEXT NOT NULL,
    sender TEXT NOT NULL,
    code TEXT NOT NULL,
    at_ms INTEGER NOT NULL,
    PRIMARY KEY (room_id, session_id, sender)
) WITHOUT ROWID;
CREATE TABLE wanted (                -- room keys that we miss
    room_id TEXT NOT NULL,
    session_id TEXT NOT NULL,
    sender_key TEXT NOT NULL,
    request_id TEXT NOT NULL,
    since_ms INTEGER NOT NULL,
    asked_ms INTEGER,                -- NULL: nobody was asked yet
    PRIMARY KEY (room_id, session_id)
) WITHOUT ROWID;
CREATE TABLE rooms (                 -- that are encrypted
    room_id TEXT PRIMARY KEY,
    algorithm TEXT NOT NULL,
    period_ms INTEGER,
    period_messages INTEGER,
    complete INTEGER NOT NULL,       -- 1: `members` has everybody
    invited INTEGER NOT NULL         -- 1: who is invited may read, says the history's visibility
) WITHOUT ROWID;
CREATE TABLE members (               -- of encrypted rooms
    room_id TEXT NOT NULL,
    user_id TEXT NOT NULL,
    membership TEXT NOT NULL,        -- join or invite
    PRIMARY KEY (room_id, user_id)
) WITHOUT ROWID;
CREATE INDEX members_of ON members (user_id);
CREATE TABLE outdated (              -- whose list of devices must be asked for
    user_id TEXT PRIMARY KEY,
    mark INTEGER NOT NULL,           -- another one each time: what changes while we ask stays
    failures INTEGER NOT NULL,
    next_ms INTEGER NOT NULL,        -- not to be asked for before
    idle INTEGER NOT NULL            -- 1: only when it is needed
) WITHOUT ROWID;
CREATE TABLE outbound (              -- Megolm sessions of our own, one for each room
    room_id TEXT PRIMARY KEY,
    session_id TEXT NOT NULL,
    pickle BLOB NOT NULL,
    created_ms INTEGER NOT NULL,
    messages INTEGER NOT NULL
) WITHOUT ROWID;
CREATE TABLE recipients (            -- of their keys
    room_id TEXT NOT NULL REFERENCES outbound (room_id) ON DELETE CASCADE,
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    device_key TEXT NOT NULL,
    withheld TEXT NOT NULL,          -- '': has the key; '?': may have it; else the code it was told
    at_ms INTEGER NOT NULL,
    PRIMARY KEY (room_id, user_id, device_id)
) WITHOUT ROWID;
CREATE TABLE told (                  -- cross-signing identities that are not the first, and that somebody was told of
    user_id TEXT PRIMARY KEY,
    master TEXT NOT NULL
) WITHOUT ROWID;
"""

_PRUNING = """
ALTER TABLE room_keys ADD COLUMN used_ms INTEGER;  -- last, give or take an hour; NULL: it has opened nothing
-- when is not known: they age from now on
UPDATE room_keys SET used_ms = unixepoch() * 1000
    WHERE EXISTS (SELECT 1 FROM heard WHERE heard.key = room_keys.number);
CREATE INDEX room_keys_idle ON room_keys (used_ms, received_ms);
CREATE TABLE closed (                -- sessions that opened something and whose keys were deleted
    number INTEGER PRIMARY KEY,      -- from 1 on, one by one; the first is no longer there once any was dropped
    mark BLOB NOT NULL UNIQUE        -- of a hash of room and session, 12 bytes
);
"""

MIGRATIONS = (
    Migration(1, "the first schema of a crypto file", _FIRST),
    Migration(2, "room keys are deleted when they are no longer used", _PRUNING),
)
