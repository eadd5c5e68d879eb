"""The methods of the bridge with their types, for clients and for programs that embed it.

Generated from the registry of methods by `python -m tests.protocol`; do not edit.

    sent = await client.methods.matrix_send(room_id="!r:example.org", message="hello")
    print(sent.event_id)
    async with client.methods.containers_logs(name="echo") as logs:
        async for piece in logs:
            ...
"""

# ruff: noqa: A002 - the words of the wire

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal, Never

from armorclaw.calls.shapes import AddCandidate, AuditQuery, Candidate, EndCall, StartCall
from armorclaw.configs.shapes import AttachConfig, ConfigAttached, ConfigListed, ListConfigs
from armorclaw.containers.shapes import (
    AgentCall,
    AgentStats,
    Inspection,
    IsolationFact,
    LogChunk,
    Logs,
    LogsEnd,
    Standing,
    Start,
    Started,
    Stats,
    StatsEnd,
    Stop,
    Stopped,
    Which,
)
from armorclaw.delivery.shapes import DeliveryShown, ListDeliveries, WhichDelivery
from armorclaw.events.shapes import (
    Ack,
    DeadLetterShown,
    DeadLettersOf,
    Done,
    Forget,
    Publish,
    Published,
    Subscribe,
    Subscribed,
    SubscriptionStats,
    Unsubscribe,
    WhichDeadLetter,
)
from armorclaw.guard.shapes import (
    DeleteKey,
    GetKey,
    KeyDeleted,
    KeyShown,
    KeyStored,
    KeyWithToken,
    ListKeys,
    RotateKey,
    StoreKey,
)
from armorclaw.matrix.media.shapes import DownloadParams, MediaDownloaded, MediaUploaded, UploadParams
from armorclaw.matrix.message_shapes import (
    EditParams,
    MatrixSent,
    ReactParams,
    ReadParams,
    RedactParams,
    SendParams,
    TypingParams,
)
from armorclaw.matrix.room_shapes import Joined, JoinParams, LeaveParams, RoomShown, RoomsParams
from armorclaw.matrix.routing.shapes import Explained, ExplainParams
from armorclaw.matrix.shapes import (
    LoggedIn,
    LoginParams,
    MatrixStatus,
    Members,
    MembersParams,
    Profile,
    ProfileParams,
    Received,
    ReceiveParams,
    RoomStateContent,
    RoomStateParams,
)
from armorclaw.matrix.trust.shapes import (
    AcceptParams,
    DevicesParams,
    MatrixDevices,
    RecoveryKey,
    RecoveryKeyParams,
    Verified,
    VerifyAnswer,
    VerifyParams,
    VerifyStep,
)
from armorclaw.rpc.caller import NOTHING, Caller, OnProgress, Stream, ask, given, open_stream
from armorclaw.shapes import BridgeStatus, Health, MetricsText


class Methods:
    """Every method that an operator may call. A point in its name on the wire is an underscore here.

    Raises ArmorclawError: what the bridge answers, what keeps the call from being made, and `remote_failed` for an
    answer that has not the shape it should have.
    """

    def __init__(self, caller: Caller) -> None:
        self._caller = caller

    def agent_call(
        self, *, agent: str, method: str, params: Any = None, on_progress: OnProgress | None = None
    ) -> AbstractAsyncContextManager[Stream[Any, Never, Any]]:
        """Call a method that an agent offers; its pieces, its progress and its answer are the agent's own words. One
        that sleeps is woken for it. Ends with unavailable when the agent has no session or goes meanwhile,
        method_not_found if it offers no such, remote_failed if its handler fails.

        What to ask an agent: a method that it offers, and its params, null as {}.
        """
        return open_stream(
            self._caller,
            "agent.call",
            given(AgentCall, {"agent": agent, "method": method, "params": params}),
            on_progress,
            chunk=Any,
            result=Any,
        )

    def attach_config(
        self,
        *,
        name: str,
        content: str | None = None,
        encoding: Literal["raw", "base64"] = "raw",
        type: str = "",
        metadata: Mapping[str, str] | None = None,
        agent: str | None = None,
        on_progress: OnProgress | None = None,
    ) -> AbstractAsyncContextManager[Stream[Never, bytes, ConfigAttached]]:
        """Give agents a file to read, at once and while they run. It is kept over restarts, in place of one of the
        same name. Up to 16 MiB by `$/upload`, in pieces of base64, of which the first must come within 3 s; for an
        empty file the end alone, `{"id":…,"seq":0,"end":true}`. As `content` what fits into one message, about 740
        KiB as base64.

        `name` is a file name without a folder: 1 to 255 bytes, printable, no slash or backslash, no - . ~ or space at
        its beginning and no space at its end; for one agent, `shared` is taken. `agent` is who may read it; without
        one, all agents may. It need not be declared yet, as its files may be there before it. `content` is text, or
        with `encoding` "base64" any bytes. Without `content` the bytes come by `$/upload`, which is the way for what
        does not fit into one message. `type`, up to 64 characters on one line, and `metadata`, up to 1024 bytes as
        JSON, are yours: they are kept and listed.
        """
        return open_stream(
            self._caller,
            "attach_config",
            given(
                AttachConfig,
                {
                    "name": name,
                    "content": content,
                    "encoding": encoding,
                    "type": type,
                    "metadata": metadata,
                    "agent": agent,
                },
            ),
            on_progress,
            chunk=None,
            result=ConfigAttached,
        )

    async def containers_inspect(self, *, name: str) -> Inspection:
        """All that is known of one agent, but no secret.

        `name` of an agent, or the id or name of its container.
        """
        return await ask(self._caller, "containers.inspect", Inspection, given(Which, {"name": name}))

    async def containers_isolation(self, *, name: str) -> list[IsolationFact]:
        """What really confines a running agent: asked of the kernel and its engine, not of what it was told to be.
        Raises unavailable when no container of it runs.

        `name` of an agent, or the id or name of its container.
        """
        return await ask(self._caller, "containers.isolation", list[IsolationFact], given(Which, {"name": name}))

    async def containers_list(self) -> list[Standing]:
        """All agents."""
        return await ask(self._caller, "containers.list", list[Standing], {})

    def containers_logs(
        self,
        *,
        name: str,
        follow: bool = False,
        tail: int | None = 100,
        since_ms: int | None = None,
        timestamps: bool = False,
        on_progress: OnProgress | None = None,
    ) -> AbstractAsyncContextManager[Stream[LogChunk, Never, LogsEnd]]:
        """What an agent printed and, with `follow`, prints: over its restarts, until it is removed. Ends with
        engine_unreachable when the engine is lost: call again, with since_ms.

        What an agent printed: the last `tail` lines (null: all that is kept) of those since `since_ms`. With `follow`
        also what it prints from then on, over restarts, until the agent is removed or the call cancelled. With
        `timestamps` chunks say when they were written.
        """
        return open_stream(
            self._caller,
            "containers.logs",
            given(
                Logs, {"name": name, "follow": follow, "tail": tail, "since_ms": since_ms, "timestamps": timestamps}
            ),
            on_progress,
            chunk=LogChunk,
            result=LogsEnd,
        )

    async def containers_restart(self, *, name: str) -> Started:
        """Stop an agent if it runs, and start it with a clear record, also one that was stopped or given up. `status`
        is "running", or "restarting" when that takes longer than the caller would wait.

        `name` of an agent, or the id or name of its container.
        """
        return await ask(self._caller, "containers.restart", Started, given(Which, {"name": name}))

    def containers_stats(
        self,
        *,
        name: str | None = None,
        interval_ms: int = 1000,
        count: int | None = None,
        history: bool = False,
        on_progress: OnProgress | None = None,
    ) -> AbstractAsyncContextManager[Stream[list[AgentStats], Never, StatsEnd]]:
        """What agents use: each chunk is one reading of the agent named, until it is removed, or of all.

        What one agent uses, or all: a reading at once, then one each `interval_ms`, `count` in all (null: no end).
        With `history` first those of the last ten minutes, one a second, many of one agent in a chunk, oldest first;
        they do not count. Of those `state` is running, and `cpu_ns`, `memory_limit`, `throttled_ns`, `oom_kills` and
        peaks are null.
        """
        return open_stream(
            self._caller,
            "containers.stats",
            given(Stats, {"name": name, "interval_ms": interval_ms, "count": count, "history": history}),
            on_progress,
            chunk=list[AgentStats],
            result=StatsEnd,
        )

    async def delete_key(self, *, id: str) -> KeyDeleted:
        """Forget a key. Agents that run keep what they have; one that is granted it cannot start without it."""
        return await ask(self._caller, "delete_key", KeyDeleted, given(DeleteKey, {"id": id}))

    async def delivery_cancel(self, *, delivery_id: str) -> DeliveryShown:
        """Take back a message that waits. One of which an attempt may have reached the homeserver stays.

        `delivery_id` is what `matrix.send` answered.
        """
        return await ask(
            self._caller, "delivery.cancel", DeliveryShown, given(WhichDelivery, {"delivery_id": delivery_id})
        )

    async def delivery_list(
        self,
        *,
        state: Literal["queued", "unknown", "sent", "delivered", "read", "failed", "cancelled"] | None = None,
        room_id: str | None = None,
        limit: int = 100,
    ) -> list[DeliveryShown]:
        """The last messages, the newest first.

        The newest `limit` messages, of one state or room if that is given.
        """
        return await ask(
            self._caller,
            "delivery.list",
            list[DeliveryShown],
            given(ListDeliveries, {"state": state, "room_id": room_id, "limit": limit}),
        )

    async def delivery_retry(self, *, delivery_id: str) -> DeliveryShown:
        """Try a failed message again, or one that waits now. It keeps its transaction id. What may have been seen
        already is looked for in its room first. What was cancelled stays so.

        `delivery_id` is what `matrix.send` answered.
        """
        return await ask(
            self._caller, "delivery.retry", DeliveryShown, given(WhichDelivery, {"delivery_id": delivery_id})
        )

    async def delivery_status(self, *, delivery_id: str) -> DeliveryShown:
        """What became of a message.

        `delivery_id` is what `matrix.send` answered.
        """
        return await ask(
            self._caller, "delivery.status", DeliveryShown, given(WhichDelivery, {"delivery_id": delivery_id})
        )

    async def events_ack(
        self,
        *,
        subscription: str,
        seq: int,
        cumulative: bool = False,
        nack_ms: int | None = None,
        working: bool = False,
    ) -> Done:
        """Say what became of an event.

        `nack_ms` asks for the event again after so many milliseconds, 0 to 3,600,000; `cumulative` means all up to
        `seq`. `working` acknowledges nothing: it says that the event is still being worked on, so that it is not
        given again for want of an answer; the time for that begins anew.
        """
        return await ask(
            self._caller,
            "events.ack",
            Done,
            given(
                Ack,
                {
                    "subscription": subscription,
                    "seq": seq,
                    "cumulative": cumulative,
                    "nack_ms": nack_ms,
                    "working": working,
                },
            ),
        )

    async def events_dead_letters(self, *, limit: int = 100, agent: str | None = None) -> list[DeadLetterShown]:
        """Events that were given up, each for one subscription: given too often, or lost too often. The newest first.
        An agent sees its own.

        `agent` is for operators: those of one agent, "" for their own; without it, all.
        """
        return await ask(
            self._caller,
            "events.dead_letters",
            list[DeadLetterShown],
            given(DeadLettersOf, {"limit": limit, "agent": agent}),
        )

    async def events_drop(self, *, subscription: str, seq: int, agent: str | None = None) -> Done:
        """Delete a dead letter: nobody wants it any more.

        `agent` is for operators: whose subscription it is; without it, their own.
        """
        return await ask(
            self._caller,
            "events.drop",
            Done,
            given(WhichDeadLetter, {"subscription": subscription, "seq": seq, "agent": agent}),
        )

    async def events_forget(self, *, subscription: str) -> Done:
        """Delete what is kept for a name: where it stands, and what was acknowledged beyond. It is free then, and
        begins anew if it is used again. A connection that has the subscription hears `events.closed`. An agent
        keeps its own, `main`.

        `subscription` is a name.
        """
        return await ask(self._caller, "events.forget", Done, given(Forget, {"subscription": subscription}))

    async def events_publish(
        self,
        *,
        type: str,
        content: Mapping[str, Any] = NOTHING,
        severity: Literal["info", "warning", "error", "critical"] | None = None,
        ephemeral: bool = False,
    ) -> Published:
        """Publish an event of your own, for operators to hear; an agent does not hear those about itself, nor of
        others. It is kept like any event, unless it is ephemeral: then it goes to those who follow at this moment,
        and who is slow hears how many were missed.

        `type` begins with "app."; `content` has at most 48 KiB as JSON. An `ephemeral` event is kept nowhere: it goes
        to those who follow now, without a name, and have room.
        """
        return await ask(
            self._caller,
            "events.publish",
            Published,
            given(Publish, {"type": type, "content": content, "severity": severity, "ephemeral": ephemeral}),
        )

    async def events_redrive(self, *, subscription: str, seq: int, agent: str | None = None) -> Done:
        """Give a dead letter to its subscription once more: now if somebody is connected, else when somebody is. An
        acknowledgement then removes it; if it fails again it is a dead letter again.

        `agent` is for operators: whose subscription it is; without it, their own.
        """
        return await ask(
            self._caller,
            "events.redrive",
            Done,
            given(WhichDeadLetter, {"subscription": subscription, "seq": seq, "agent": agent}),
        )

    async def events_stats(self) -> list[SubscriptionStats]:
        """How subscriptions stand, connected or not: what is in hand, how far each is behind. An agent sees its own,
        an operator all.
        """
        return await ask(self._caller, "events.stats", list[SubscriptionStats], {})

    async def events_subscribe(
        self, *, name: str | None = None, filter: Mapping[str, Any] = NOTHING, from_: str | int = "now"
    ) -> Subscribed:
        """Have events pushed as `event` notifications. A connection of an operator has at most 32 subscriptions, and
        so has an agent on all its connections; of names there are at most 64, used or not. An agent cannot begin
        one before what it has acknowledged of its own, `main`: rooms granted later may have been others' before.

        With a `name` the subscription outlives the connection and its events want to be acknowledged. A name has 1 to
        64 of the characters A-Z, a-z, 0-9 and _ . - of which the first is a letter or a digit. `from` is where a new
        one begins: "now", the number of the last event already seen, or a time in RFC 3339, such as
        2026-01-31T09:30:00Z, from which on events came to the bridge. For an agent that is never before what it has
        acknowledged of its subscription "main".
        """
        return await ask(
            self._caller,
            "events.subscribe",
            Subscribed,
            given(Subscribe, {"name": name, "filter": filter, "from_": from_}),
        )

    async def events_unsubscribe(self, *, subscription: str) -> Done:
        """End a subscription of this connection. What is kept for its name stays: see `events.forget`."""
        return await ask(self._caller, "events.unsubscribe", Done, given(Unsubscribe, {"subscription": subscription}))

    async def get_key(self, *, id: str) -> KeyWithToken:
        """One key with its token."""
        return await ask(self._caller, "get_key", KeyWithToken, given(GetKey, {"id": id}))

    async def health(self) -> Health:
        """Whether all is well."""
        return await ask(self._caller, "health", Health, {})

    async def list_configs(self, *, agent: str | None = None) -> list[ConfigListed]:
        """The files that are attached.

        `agent`: what that one can read, its own and what is for all; without it everything there is.
        """
        return await ask(self._caller, "list_configs", list[ConfigListed], given(ListConfigs, {"agent": agent}))

    async def list_keys(self, *, provider: str = "") -> list[KeyShown]:
        """The keys there are."""
        return await ask(self._caller, "list_keys", list[KeyShown], given(ListKeys, {"provider": provider}))

    async def matrix_accept_identity(self, *, user_id: str, master: str, account: str | None = None) -> None:
        """Believe the cross-signing identity that somebody has now, although it is not the first that was seen. Its
        key is named, lest another one be believed than the one that was looked at.

        Whose identity is to count as it is now; `master` is its key, as matrix.devices tells it.
        """
        await ask(
            self._caller,
            "matrix.accept_identity",
            None,
            given(AcceptParams, {"user_id": user_id, "master": master, "account": account}),
        )

    async def matrix_devices(self, *, user_id: str | None = None, account: str | None = None) -> MatrixDevices:
        """The devices of a user, and how far each is trusted.

        `user_id` is the account's own by default.
        """
        return await ask(
            self._caller,
            "matrix.devices",
            MatrixDevices,
            given(DevicesParams, {"user_id": user_id, "account": account}),
        )

    def matrix_download(
        self,
        *,
        room_id: str | None = None,
        event_id: str | None = None,
        part: Literal["file", "thumbnail"] = "file",
        mxc: str | None = None,
        file: Mapping[str, Any] | None = None,
        account: str | None = None,
        on_progress: OnProgress | None = None,
    ) -> AbstractAsyncContextManager[Stream[bytes, Never, MediaDownloaded]]:
        """The file that a message is about, in pieces of up to 192 KiB, decrypted if it is encrypted. An agent may
        have those of messages it may hear. Use no piece before the answer: only then it is known that the file is
        whole, and what its sender encrypted. Each must be taken within 30 s.

        The file that the message `event_id` of a room is about, or its `part` "thumbnail". For operators there is
        also `mxc`, an mxc:// URI, and `file`, an EncryptedFile of Matrix; and `account`.
        """
        return open_stream(
            self._caller,
            "matrix.download",
            given(
                DownloadParams,
                {
                    "room_id": room_id,
                    "event_id": event_id,
                    "part": part,
                    "mxc": mxc,
                    "file": file,
                    "account": account,
                },
            ),
            on_progress,
            chunk=bytes,
            result=MediaDownloaded,
        )

    async def matrix_edit(
        self,
        *,
        room_id: str,
        message: str,
        event_id: str | None = None,
        delivery_id: str | None = None,
        msgtype: str = "m.text",
        content: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
        account: str | None = None,
        format: Literal["plain", "markdown"] = "plain",
        thread: str | None = None,
        mentions: Sequence[str] = (),
        interim: bool = False,
        wait_ms: int = 3500,
    ) -> MatrixSent:
        """Make a message another one, for all who see it. An agent may do so with what it sent itself. It is answered
        as by matrix.send, with the id of the event that says so.

        The message is given by `event_id`, or by `delivery_id` as matrix.send answered it, also while it is queued.
        `thread` is where new messages go if the text has become too long for one. `interim`: one of many that follow
        each other. It is cut to what one event holds, and refused (`unavailable`) while the message, or an edit of it
        before, is not sent yet.
        """
        return await ask(
            self._caller,
            "matrix.edit",
            MatrixSent,
            given(
                EditParams,
                {
                    "room_id": room_id,
                    "message": message,
                    "event_id": event_id,
                    "delivery_id": delivery_id,
                    "msgtype": msgtype,
                    "content": content,
                    "idempotency_key": idempotency_key,
                    "account": account,
                    "format": format,
                    "thread": thread,
                    "mentions": mentions,
                    "interim": interim,
                    "wait_ms": wait_ms,
                },
            ),
        )

    async def matrix_join(self, *, room: str, via: Sequence[str] = (), account: str | None = None) -> Joined:
        """Join a room. Agents hear and answer there only once it is granted to them.

        `room` is a room id or an alias; `via` are servers that are in it, for an id of elsewhere.
        """
        return await ask(
            self._caller, "matrix.join", Joined, given(JoinParams, {"room": room, "via": via, "account": account})
        )

    async def matrix_leave(self, *, room_id: str, reason: str | None = None, account: str | None = None) -> None:
        """Leave a room, or refuse an invite. If it is granted to an agent, only an invite brings the account back.

        `reason` is seen by everybody in the room.
        """
        await ask(
            self._caller,
            "matrix.leave",
            None,
            given(LeaveParams, {"room_id": room_id, "reason": reason, "account": account}),
        )

    async def matrix_login(self, *, username: str, password: str, account: str | None = None) -> LoggedIn:
        """Log a Matrix account in with a password. A session that runs goes on if this fails.

        `account` names one of the configuration; by default the first.
        """
        return await ask(
            self._caller,
            "matrix.login",
            LoggedIn,
            given(LoginParams, {"username": username, "password": password, "account": account}),
        )

    async def matrix_members(
        self, *, room_id: str, after: str = "", limit: int = 500, account: str | None = None
    ) -> Members:
        """Who has joined a room, page by page. An agent may ask for the rooms that are granted to it.

        `after` is `next` of the answer before, or empty. `account` is for operators.
        """
        return await ask(
            self._caller,
            "matrix.members",
            Members,
            given(MembersParams, {"room_id": room_id, "after": after, "limit": limit, "account": account}),
        )

    async def matrix_profile(
        self, *, user_id: str, room_id: str | None = None, account: str | None = None
    ) -> Profile:
        """What is known of a person. An agent asks for one of the rooms that are granted to it, and must name it.

        With `room_id` as the person is seen there; without, which is for operators, as their own server says.
        """
        return await ask(
            self._caller,
            "matrix.profile",
            Profile,
            given(ProfileParams, {"user_id": user_id, "room_id": room_id, "account": account}),
        )

    async def matrix_react(
        self,
        *,
        room_id: str,
        key: str,
        event_id: str | None = None,
        delivery_id: str | None = None,
        idempotency_key: str | None = None,
        account: str | None = None,
        wait_ms: int = 3500,
    ) -> MatrixSent:
        """React to an event, with an emoji or a word. matrix.redact of what is answered takes that back. The same
        reaction twice is refused by homeservers.

        `key` is the emoji, or a word. The event is given as for matrix.edit, but may be anybody's.
        """
        return await ask(
            self._caller,
            "matrix.react",
            MatrixSent,
            given(
                ReactParams,
                {
                    "room_id": room_id,
                    "key": key,
                    "event_id": event_id,
                    "delivery_id": delivery_id,
                    "idempotency_key": idempotency_key,
                    "account": account,
                    "wait_ms": wait_ms,
                },
            ),
        )

    async def matrix_read(self, *, room_id: str, event_id: str, account: str | None = None) -> None:
        """Show the people in a room that everything up to an event is read. What an agent acknowledges is read
        without this. Answered at once; an account with `read_receipts` off shows nothing.

        Everything in the room up to this event is read. `account` is for operators.
        """
        await ask(
            self._caller,
            "matrix.read",
            None,
            given(ReadParams, {"room_id": room_id, "event_id": event_id, "account": account}),
        )

    async def matrix_receive(
        self, *, cursor: str = "", timeout_ms: int = 0, limit: int = 10, consumer: str = ""
    ) -> Received:
        """Poll for events of granted rooms. Each call acknowledges the batch before. Without a cursor, a batch whose
        answer was lost on its way is lost; a call with the cursor of the last answer that did arrive has it again.
        Each consumer has all events from its first call on: an agent is one, and operators are one for each
        `consumer` they name, or for each uid. A consumer has one call at a time. Events that are pushed to a
        connection of an agent cannot be polled as well.

        `cursor` is the one of the answer before, or empty; `timeout_ms` is how long to wait for the first event,
        where more than 3500 counts as 3500. `consumer` is for operators: each name has all events, by default each
        uid has.
        """
        return await ask(
            self._caller,
            "matrix.receive",
            Received,
            given(ReceiveParams, {"cursor": cursor, "timeout_ms": timeout_ms, "limit": limit, "consumer": consumer}),
        )

    async def matrix_recovery_key(
        self, *, account: str | None = None, store: str | None = None, new: bool = False
    ) -> RecoveryKey:
        """The recovery key of the account's cross-signing identity, which is told once: then it is forgotten here.

        `store` is the id of a key in the keystore to put it into instead of showing it. `new` makes another one; the
        one before opens nothing from then on.
        """
        return await ask(
            self._caller,
            "matrix.recovery_key",
            RecoveryKey,
            given(RecoveryKeyParams, {"account": account, "store": store, "new": new}),
        )

    async def matrix_redact(
        self,
        *,
        room_id: str,
        event_id: str | None = None,
        delivery_id: str | None = None,
        reason: str | None = None,
        idempotency_key: str | None = None,
        account: str | None = None,
        wait_ms: int = 3500,
    ) -> MatrixSent:
        """Remove an event's content, for everybody and for good. An agent may do so with what it sent itself.

        The event is given as for matrix.edit. `reason` is seen by everybody in the room, and left out in encrypted
        ones.
        """
        return await ask(
            self._caller,
            "matrix.redact",
            MatrixSent,
            given(
                RedactParams,
                {
                    "room_id": room_id,
                    "event_id": event_id,
                    "delivery_id": delivery_id,
                    "reason": reason,
                    "idempotency_key": idempotency_key,
                    "account": account,
                    "wait_ms": wait_ms,
                },
            ),
        )

    async def matrix_rooms(self, *, account: str | None = None) -> list[RoomShown]:
        """The rooms that are known, those we were invited to or have left among them; for an agent, those granted.

        `account` is for operators, who without it are told of all.
        """
        return await ask(self._caller, "matrix.rooms", list[RoomShown], given(RoomsParams, {"account": account}))

    async def matrix_send(
        self,
        *,
        room_id: str,
        message: str,
        msgtype: str = "m.text",
        content: Mapping[str, Any] | None = None,
        idempotency_key: str | None = None,
        account: str | None = None,
        format: Literal["plain", "markdown"] = "plain",
        reply_to: str | None = None,
        thread: str | None = None,
        mentions: Sequence[str] = (),
        wait_ms: int = 3500,
    ) -> MatrixSent:
        """Send a message to a room, once as others see it. One that is too long for an event becomes several. Waits
        up to 3.5 s for the event id. Then `status` is `queued` and event_id null; the message goes out as soon as
        the homeserver takes it.

        `format`: whether `message` is Markdown. `reply_to` and `thread` are event ids; that of a thread is its first
        event. `mentions` are user ids, or "@room". `content` adds to, or replaces, what becomes of all that. The same
        `idempotency_key` again sends nothing, whatever the rest says. `wait_ms` is how long to wait for the event id,
        where more than 3500 counts as 3500.
        """
        return await ask(
            self._caller,
            "matrix.send",
            MatrixSent,
            given(
                SendParams,
                {
                    "room_id": room_id,
                    "message": message,
                    "msgtype": msgtype,
                    "content": content,
                    "idempotency_key": idempotency_key,
                    "account": account,
                    "format": format,
                    "reply_to": reply_to,
                    "thread": thread,
                    "mentions": mentions,
                    "wait_ms": wait_ms,
                },
            ),
        )

    async def matrix_state(
        self, *, room_id: str, type: str, state_key: str = "", account: str | None = None
    ) -> RoomStateContent:
        """One piece of a room's state, as it is now. An agent may ask for the rooms that are granted to it.

        `state_key` is empty for most types. `account` is for operators.
        """
        return await ask(
            self._caller,
            "matrix.state",
            RoomStateContent,
            given(RoomStateParams, {"room_id": room_id, "type": type, "state_key": state_key, "account": account}),
        )

    async def matrix_status(self) -> MatrixStatus:
        """Whether the Matrix account works: an agent's own, else the main one and a list of all."""
        return await ask(self._caller, "matrix.status", MatrixStatus, {})

    async def matrix_typing(
        self, *, room_id: str, typing: bool = True, timeout_ms: int = 30000, account: str | None = None
    ) -> None:
        """Show the people in a room that somebody is writing, or no more. Answered at once; while the homeserver is
        away nobody is shown anything.

        `timeout_ms` is how long it is shown at most, unless this is called again. `account` is for operators.
        """
        await ask(
            self._caller,
            "matrix.typing",
            None,
            given(TypingParams, {"room_id": room_id, "typing": typing, "timeout_ms": timeout_ms, "account": account}),
        )

    def matrix_upload(
        self,
        *,
        room_id: str,
        name: str,
        size: int,
        mimetype: str = "application/octet-stream",
        kind: Literal["image", "video", "audio", "voice", "file"] | None = None,
        caption: str = "",
        width: int | None = None,
        height: int | None = None,
        duration_ms: int | None = None,
        waveform: Sequence[int] = (),
        account: str | None = None,
        on_progress: OnProgress | None = None,
    ) -> AbstractAsyncContextManager[Stream[Never, bytes, MediaUploaded]]:
        """Have the homeserver keep a file for a room, encrypted if the room is. Nobody sees it before it is sent.
        What is answered as `content` is sent by matrix.send. The bytes come by `$/upload`, pieces at most 30 s
        apart. If they are not as many as `size` says, or the call is cancelled before their end, nothing is kept.

        `size` is how many bytes will come by `$/upload`, exactly. `kind` is how people are to see the file; by
        default its `mimetype` says so, and "voice" is never a default. `caption` is text beside it. `width` and
        `height` are pixels; `waveform` of a voice message is how loud it is, from 0 to 1024, at even distances.
        `account` is for operators.
        """
        return open_stream(
            self._caller,
            "matrix.upload",
            given(
                UploadParams,
                {
                    "room_id": room_id,
                    "name": name,
                    "size": size,
                    "mimetype": mimetype,
                    "kind": kind,
                    "caption": caption,
                    "width": width,
                    "height": height,
                    "duration_ms": duration_ms,
                    "waveform": waveform,
                    "account": account,
                },
            ),
            on_progress,
            chunk=None,
            result=MediaUploaded,
        )

    def matrix_verify(
        self,
        *,
        user_id: str | None = None,
        device_id: str | None = None,
        room_id: str | None = None,
        direct: bool = False,
        account: str | None = None,
        on_progress: OnProgress | None = None,
    ) -> AbstractAsyncContextManager[Stream[VerifyStep, VerifyAnswer, Verified]]:
        """Verify somebody, or another device of the account, by comparing emoji or numbers. Each chunk is how it
        stands; those of state `requested` and `compare` want an answer, as a piece of the upload. Whoever ends the
        call cancels the verification. It ends by itself within ten minutes.

        Whom to verify: `user_id`, which may be the account's own, or one `device_id` of theirs; in the room
        `room_id`, by default the direct chat with them if there is one, else from device to device. Without `user_id`
        the next who asks to be verified is waited for. `direct` begins without asking first, as old clients want it;
        it takes a `device_id`.
        """
        return open_stream(
            self._caller,
            "matrix.verify",
            given(
                VerifyParams,
                {
                    "user_id": user_id,
                    "device_id": device_id,
                    "room_id": room_id,
                    "direct": direct,
                    "account": account,
                },
            ),
            on_progress,
            chunk=VerifyStep,
            result=Verified,
        )

    async def metrics(self) -> MetricsText:
        """All figures for monitoring, as Prometheus reads them. docs/operations.md has what each means."""
        return await ask(self._caller, "metrics", MetricsText, {})

    async def policy_explain(
        self,
        *,
        room: str,
        account: str | None = None,
        sender: str | None = None,
        text: str = "hello",
        event: str | None = None,
    ) -> Explained:
        """Which rule decides who hears what is said in a room. Raises not_found for a room that the account is not
        in, unless it is asked about an event of it.

        `room` is an id or an alias. `sender` says `text` there, by default somebody who is heard, and a few words; or
        `event` names what was said. `account` is by default the one that is in the room, of several the one that
        answers orders there.
        """
        return await ask(
            self._caller,
            "policy.explain",
            Explained,
            given(ExplainParams, {"room": room, "account": account, "sender": sender, "text": text, "event": event}),
        )

    async def rotate_key(self, *, id: str, token: str, expires_at: int | None = None) -> KeyShown:
        """Give a key another token. Agents that run keep the one they have; the next start takes the new one.

        `token` is the new one; `expires_at` says until when it holds, if that changes: 0 is for ever.
        """
        return await ask(
            self._caller,
            "rotate_key",
            KeyShown,
            given(RotateKey, {"id": id, "token": token, "expires_at": expires_at}),
        )

    async def rpc_discover(self) -> dict[str, Any]:
        """This description of the methods that the caller may call, as an OpenRPC document."""
        return await ask(self._caller, "rpc.discover", dict[str, Any], {})

    async def start(
        self,
        *,
        name: str = "",
        key_id: str = "",
        agent_type: str = "",
        image: str | None = None,
        runtime: Literal["auto", "docker", "podman", "sandbox", "process", "attached"] = "auto",
        command: Sequence[str] = (),
        code: str | None = None,
        rooms: Sequence[str] = (),
        keys: Sequence[str] = (),
        account: str = "main",
        env: Mapping[str, str] = NOTHING,
    ) -> Started:
        """Start an agent.

        What to start: a declared agent by `name` (or `agent_type`), or a new one. A new one lasts as long as the
        bridge; if it cannot be started nothing of it is kept. One that is at rest may be described anew. `code` is a
        file or folder of the host that becomes /agent. `key_id` is one more key to grant, `keys` are all of them.
        """
        return await ask(
            self._caller,
            "start",
            Started,
            given(
                Start,
                {
                    "name": name,
                    "key_id": key_id,
                    "agent_type": agent_type,
                    "image": image,
                    "runtime": runtime,
                    "command": command,
                    "code": code,
                    "rooms": rooms,
                    "keys": keys,
                    "account": account,
                    "env": env,
                },
            ),
        )

    async def status(self) -> BridgeStatus:
        """How the bridge is."""
        return await ask(self._caller, "status", BridgeStatus, {})

    async def stop(self, *, container_id: str = "", name: str = "") -> Stopped:
        """Stop an agent; it stays stopped."""
        return await ask(self._caller, "stop", Stopped, given(Stop, {"container_id": container_id, "name": name}))

    async def store_key(
        self,
        *,
        provider: str,
        token: str,
        id: str = "",
        display_name: str = "",
        expires_at: int = 0,
        tags: Sequence[str] | None = None,
    ) -> KeyStored:
        """Store a key, or replace it.

        Without `id` it is `<provider>-default`; `expires_at` is seconds since the epoch, 0 for never.
        """
        return await ask(
            self._caller,
            "store_key",
            KeyStored,
            given(
                StoreKey,
                {
                    "provider": provider,
                    "token": token,
                    "id": id,
                    "display_name": display_name,
                    "expires_at": expires_at,
                    "tags": tags,
                },
            ),
        )

    async def webrtc_end(self, *, session_id: str, reason: str = "") -> None:
        """End a voice call. Not available yet: answers the error `not_available`."""
        await ask(self._caller, "webrtc.end", None, given(EndCall, {"session_id": session_id, "reason": reason}))

    async def webrtc_get_audit_log(
        self, *, limit: int = 100, event_type: str = "", session_id: str = "", room_id: str = ""
    ) -> None:
        """What happened in voice calls. Not available yet: answers the error `not_available`.

        The newest `limit` entries, of one type of event, call or room if that is given.
        """
        await ask(
            self._caller,
            "webrtc.get_audit_log",
            None,
            given(
                AuditQuery, {"limit": limit, "event_type": event_type, "session_id": session_id, "room_id": room_id}
            ),
        )

    async def webrtc_ice_candidate(self, *, session_id: str, candidate: Candidate) -> None:
        """Add an ICE candidate of the caller. Not available yet: answers the error `not_available`."""
        await ask(
            self._caller,
            "webrtc.ice_candidate",
            None,
            given(AddCandidate, {"session_id": session_id, "candidate": candidate}),
        )

    async def webrtc_list(self) -> None:
        """The voice calls there are. Not available yet: answers the error `not_available`."""
        await ask(self._caller, "webrtc.list", None, {})

    async def webrtc_start(self, *, room_id: str, ttl: str = "10m") -> None:
        """Start a voice call. Not available yet: answers the error `not_available`.

        `ttl` is how long the call may last, such as "90s", "10m" or "1h".
        """
        await ask(self._caller, "webrtc.start", None, given(StartCall, {"room_id": room_id, "ttl": ttl}))
