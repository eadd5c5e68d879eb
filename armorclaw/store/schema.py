"""The tables of the one database, as numbered migrations.

Each migration runs once, in one transaction, in order. A migration that has been released is never edited: add the
next number. Times are milliseconds since the epoch; JSON is ASCII text without spaces.
"""

from __future__ import annotations

import attrs


@attrs.frozen
class Migration:
    """One step: `number` counts from 1 without gaps."""

    number: int
    title: str
    sql: str


_FIRST = """
CREATE TABLE audit (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    hash BLOB NOT NULL,              -- SHA-256(previous hash ‖ body)
    body BLOB NOT NULL               -- canonical JSON: {at_ms, kind, …}
);
CREATE TABLE keys (
    id TEXT PRIMARY KEY,
    provider TEXT NOT NULL,
    token TEXT NOT NULL,
    display_name TEXT NOT NULL,
    created_at INTEGER NOT NULL,     -- seconds since the epoch, as its clients read it
    expires_at INTEGER NOT NULL,     -- seconds since the epoch; 0 is never
    tags TEXT                        -- JSON array, or NULL
);
CREATE TABLE agents (
    name TEXT PRIMARY KEY,
    number INTEGER NOT NULL UNIQUE,  -- its uid is the installation's base plus this
    stopped INTEGER NOT NULL DEFAULT 0   -- 1: stopped by hand, and stays so
);
CREATE TABLE accounts (
    name TEXT PRIMARY KEY,
    homeserver TEXT NOT NULL,
    user_id TEXT NOT NULL,
    device_id TEXT NOT NULL,
    access_token TEXT NOT NULL,
    next_batch TEXT                  -- NULL until the first sync is journalled
);
CREATE TABLE rooms (
    account TEXT NOT NULL,
    room_id TEXT NOT NULL,
    membership TEXT NOT NULL,        -- join, invite, leave
    encrypted INTEGER NOT NULL,
    PRIMARY KEY (account, room_id)
) WITHOUT ROWID;
CREATE TABLE aliases (
    account TEXT NOT NULL,
    alias TEXT NOT NULL,
    room_id TEXT NOT NULL,           -- what the alias named when last looked up
    PRIMARY KEY (account, alias)
) WITHOUT ROWID;
CREATE TABLE journal (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    id TEXT NOT NULL UNIQUE,         -- ours, stable for dedupe
    type TEXT NOT NULL,
    at_ms INTEGER NOT NULL,
    account TEXT,
    agent TEXT,
    room_id TEXT,
    sender TEXT,
    event_id TEXT,
    content BLOB NOT NULL,           -- JSON
    stored_ms INTEGER NOT NULL       -- when it came here; at_ms is what its sender says
);
CREATE UNIQUE INDEX journal_matrix ON journal (account, event_id) WHERE event_id IS NOT NULL;
CREATE TABLE subscriptions (
    owner TEXT NOT NULL,             -- an agent's name, or '' for the operator
    name TEXT NOT NULL,
    filter TEXT NOT NULL,            -- JSON
    floor INTEGER NOT NULL,          -- everything up to here is acknowledged
    PRIMARY KEY (owner, name)
) WITHOUT ROWID;
CREATE TABLE acks (
    owner TEXT NOT NULL,
    name TEXT NOT NULL,
    seq INTEGER NOT NULL,            -- acknowledged, above the floor
    PRIMARY KEY (owner, name, seq),
    FOREIGN KEY (owner, name) REFERENCES subscriptions (owner, name) ON DELETE CASCADE
) WITHOUT ROWID;
CREATE TABLE outbox (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    delivery_id TEXT NOT NULL UNIQUE,
    txn_id TEXT NOT NULL UNIQUE,     -- the Matrix transaction id of every attempt
    account TEXT NOT NULL,
    agent TEXT NOT NULL,             -- '' for the operator
    idempotency_key TEXT,
    room_id TEXT NOT NULL,
    type TEXT NOT NULL,
    content BLOB NOT NULL,           -- JSON
    state TEXT NOT NULL,             -- queued, unknown, sent, delivered, read, failed, cancelled
    event_id TEXT,
    reason TEXT,
    created_ms INTEGER NOT NULL,
    settled_ms INTEGER,
    attempts INTEGER NOT NULL DEFAULT 0
);
CREATE UNIQUE INDEX outbox_idempotent ON outbox (agent, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX outbox_waiting ON outbox (account, seq) WHERE state = 'queued';
"""

_CONFIGS = """
CREATE TABLE configs (
    agent TEXT NOT NULL,             -- '' for what is for all agents
    name TEXT NOT NULL,
    modified_ns INTEGER NOT NULL,    -- of the file that this is about; any other of that name is unknown
    type TEXT NOT NULL,
    encoding TEXT NOT NULL,
    metadata TEXT NOT NULL,          -- JSON: an object of texts, or null
    PRIMARY KEY (agent, name)
) WITHOUT ROWID;
"""

_ENDS = """
CREATE TABLE ends (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    agent TEXT NOT NULL,
    generation INTEGER NOT NULL,     -- counted anew by each life of the bridge
    container_id TEXT NOT NULL,
    at_ms INTEGER NOT NULL,
    ran_ms INTEGER NOT NULL,
    cause TEXT NOT NULL,
    code INTEGER,                    -- exit status, or NULL
    signal INTEGER,                  -- that killed it, or NULL
    oom INTEGER,                     -- 1: some process was killed for want of memory; NULL: cannot be told
    text TEXT NOT NULL
);
CREATE INDEX ends_of ON ends (agent, seq);
CREATE TABLE begun (                 -- generations without an end yet: what is left by a bridge that was killed
    agent TEXT PRIMARY KEY,
    generation INTEGER NOT NULL,
    container_id TEXT NOT NULL,
    since_ms INTEGER NOT NULL,
    survives INTEGER NOT NULL        -- 1: its container may outlive the bridge
) WITHOUT ROWID;
"""

_GUARANTEES = """
ALTER TABLE journal ADD COLUMN severity TEXT;                    -- info, warning, error, critical; NULL: it has none
ALTER TABLE journal ADD COLUMN erased INTEGER NOT NULL DEFAULT 0;  -- 1: its content is gone, its id stays
CREATE INDEX journal_bodies ON journal (seq) WHERE erased = 0 AND room_id IS NOT NULL;  -- what may be erased
CREATE TABLE trimmed (               -- one row
    seq INTEGER NOT NULL             -- retention has deleted the journal up to here
);
INSERT INTO trimmed SELECT coalesce(min(seq), 1) - 1 FROM journal;
CREATE TABLE marks (                 -- up to where every named subscription was settled, and when that was seen
    at_ms INTEGER PRIMARY KEY,
    floor INTEGER NOT NULL
);
ALTER TABLE subscriptions ADD COLUMN reserved INTEGER NOT NULL DEFAULT 0;  -- up to here it may have been given
CREATE TABLE attempts (              -- of events given more than once and not settled
    owner TEXT NOT NULL,
    name TEXT NOT NULL,
    seq INTEGER NOT NULL,
    given INTEGER NOT NULL,          -- how often
    lost INTEGER NOT NULL,           -- how often of those nobody answered: connection ended, or deadline passed
    PRIMARY KEY (owner, name, seq),
    FOREIGN KEY (owner, name) REFERENCES subscriptions (owner, name) ON DELETE CASCADE
) WITHOUT ROWID;
CREATE TABLE dead_letters (          -- events given up for one subscription; the journal keeps them
    owner TEXT NOT NULL,
    name TEXT NOT NULL,
    seq INTEGER NOT NULL,
    at_ms INTEGER NOT NULL,
    given INTEGER NOT NULL,
    lost INTEGER NOT NULL,
    reason TEXT NOT NULL,
    again INTEGER NOT NULL DEFAULT 0,  -- 1: somebody wants it given once more
    PRIMARY KEY (owner, name, seq),
    FOREIGN KEY (owner, name) REFERENCES subscriptions (owner, name) ON DELETE CASCADE
) WITHOUT ROWID;
CREATE TABLE grants (                -- where each begins, for as long as it lasts
    agent TEXT NOT NULL,
    account TEXT NOT NULL,           -- '' with room '': whatever it is granted, it had before this table was made
    room TEXT NOT NULL,              -- id or alias
    since INTEGER NOT NULL,          -- it holds for what is numbered above
    guest INTEGER NOT NULL,          -- 1: for as long as it runs, and goes on with its next run
    PRIMARY KEY (agent, account, room)
) WITHOUT ROWID;
INSERT INTO grants SELECT owner, '', '', 0, 0 FROM subscriptions
    WHERE name = 'main' AND owner != '' AND owner NOT LIKE '@%';
ALTER TABLE outbox ADD COLUMN tried_ms INTEGER;   -- when the first attempt that may have arrived was made
ALTER TABLE outbox ADD COLUMN device_id TEXT;     -- which makes the attempts; NULL: there were none
ALTER TABLE outbox ADD COLUMN place INTEGER;      -- number in the journal of the event that told of its echo
DROP INDEX outbox_waiting;
CREATE INDEX outbox_waiting ON outbox (account, seq) WHERE state IN ('queued', 'unknown');
CREATE INDEX outbox_sent ON outbox (account, event_id) WHERE event_id IS NOT NULL;
CREATE INDEX outbox_unread ON outbox (account, room_id, place) WHERE state = 'delivered';
UPDATE outbox SET device_id = (SELECT device_id FROM accounts WHERE name = outbox.account),
    tried_ms = iif(attempts > 0, created_ms, NULL)  -- whether one of them may have arrived, nobody wrote down
    WHERE state = 'queued' OR (state = 'failed' AND reason LIKE 'not sent within%');
"""

_MATRIX = """
ALTER TABLE accounts ADD COLUMN refresh_token TEXT;
ALTER TABLE accounts ADD COLUMN expires_ms INTEGER;  -- when the access token ends; NULL: nobody said
ALTER TABLE accounts ADD COLUMN identity_key TEXT;   -- Curve25519, of the device; NULL: it has published none yet
ALTER TABLE accounts ADD COLUMN base_url TEXT;       -- what discovery found for a server name; NULL: it is a URL
ALTER TABLE accounts ADD COLUMN given TEXT;          -- SHA-256 of the token that the configuration had then
ALTER TABLE accounts ADD COLUMN begun INTEGER NOT NULL DEFAULT 0;  -- 1: the next login of the device is under way
ALTER TABLE accounts ADD COLUMN told INTEGER NOT NULL DEFAULT 0;  -- 1: a sync has told all that `rooms` keeps
ALTER TABLE rooms ADD COLUMN direct TEXT;            -- with whom it is a direct chat, by m.direct or is_direct
ALTER TABLE rooms ADD COLUMN listed INTEGER NOT NULL DEFAULT 0;   -- 1: it is m.direct that says so
ALTER TABLE rooms ADD COLUMN name TEXT;
ALTER TABLE rooms ADD COLUMN alias TEXT;             -- the canonical one
ALTER TABLE rooms ADD COLUMN inviter TEXT;           -- who asked us in, while we are invited
ALTER TABLE rooms ADD COLUMN successor TEXT;         -- the room that is said to have replaced it
ALTER TABLE rooms ADD COLUMN predecessor TEXT;       -- the room that it says it has replaced
ALTER TABLE outbox ADD COLUMN refers TEXT;           -- the delivery whose event it is about, when it had no id yet
ALTER TABLE journal ADD COLUMN addressed TEXT;       -- JSON list of those it is for; NULL: all who may hear the room
CREATE TABLE undecrypted (           -- what waits for its room key
    seq INTEGER PRIMARY KEY AUTOINCREMENT,   -- in the order of their timelines
    account TEXT NOT NULL,
    event_id TEXT NOT NULL,
    room_id TEXT NOT NULL,
    session_id TEXT NOT NULL,
    raw BLOB NOT NULL,               -- JSON, as the homeserver gave it
    since_ms INTEGER NOT NULL,       -- when it came here
    UNIQUE (account, event_id)
);
CREATE INDEX undecrypted_session ON undecrypted (account, room_id, session_id);
CREATE TABLE routes (                -- what people chose with !claw use; goes before the configuration
    account TEXT NOT NULL,
    room_id TEXT NOT NULL,
    agent TEXT NOT NULL,
    respond TEXT NOT NULL,           -- always, mention, reply, command
    by TEXT NOT NULL,
    at_ms INTEGER NOT NULL,
    PRIMARY KEY (account, room_id)
) WITHOUT ROWID;
CREATE TABLE unrouted (              -- rooms that were told how to route
    account TEXT NOT NULL,
    room_id TEXT NOT NULL,
    at_ms INTEGER NOT NULL,
    PRIMARY KEY (account, room_id)
) WITHOUT ROWID;
"""

MIGRATIONS = (
    Migration(1, "the first schema", _FIRST),
    Migration(2, "attached configs", _CONFIGS),
    Migration(3, "how agents ended", _ENDS),
    Migration(4, "guarantees of delivery", _GUARANTEES),
    Migration(5, "matrix in full", _MATRIX),
)
