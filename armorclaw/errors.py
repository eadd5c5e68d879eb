"""One table of everything that can go wrong in a way a user may act on.

A name ties together what a JSON-RPC client, a shell script and a person see: the error code, the exit status,
whether trying again can help, and what to do next. Adapters map foreign errors to a name once, at their seam.
"""

from __future__ import annotations

import re
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple


class ErrorKind(NamedTuple):
    """A row of the table.

    `code` is the JSON-RPC error code, `exit_status` that of the command line, `hint` the next step when the place
    of failure knows no better one.
    """

    name: str
    code: int
    exit_status: int
    retryable: bool
    hint: str = ""


_ROWS = (
    # JSON-RPC 2.0, section 5.1
    ErrorKind("parse_error", -32700, 2, False, "send one JSON value per request"),
    ErrorKind("invalid_request", -32600, 2, False, "see docs/protocol.md for the envelope"),
    ErrorKind("method_not_found", -32601, 2, False, "armorclaw call rpc.discover lists the methods"),
    ErrorKind("invalid_params", -32602, 2, False, "armorclaw call rpc.discover says what each method takes"),
    ErrorKind("internal", -32603, 1, False, "see the log of the bridge"),
    # the number that the Language Server Protocol gave it, as the notification of the same name
    ErrorKind("cancelled", -32800, 130, False, "its caller cancelled it"),
    # codes that clients of the original bridge know
    ErrorKind("container_not_found", -2, 4, False, "armorclaw status lists the agents"),
    ErrorKind("key_not_found", -3, 4, False, "armorclaw keys ls, or list_keys, names the keys there are"),
    # ours
    ErrorKind("denied", -32001, 5, False, "this role may not do that"),
    ErrorKind("unavailable", -32002, 75, True, "try again in a moment"),
    ErrorKind("timed_out", -32003, 7, True, "try again, or allow more time"),
    ErrorKind("not_found", -32004, 4, False, ""),
    ErrorKind("conflict", -32005, 1, False, ""),
    ErrorKind("too_large", -32006, 2, False, ""),
    ErrorKind("secrets_taken", -32007, 5, False, "secrets are given once per start; restart the agent"),
    ErrorKind("rate_limited", -32008, 75, True, "wait as many seconds as retry_after says, then try again"),
    ErrorKind("not_available", -32009, 69, False, "it is not part of this version"),
    ErrorKind("room_denied", -32010, 5, False, "grant the room to the agent in the configuration"),
    ErrorKind("room_encrypted", -32011, 5, False, "switch encryption on for the account, or use a room without it"),
    ErrorKind(
        "matrix_not_configured", -32012, 1, False, "add [accounts.main] with a homeserver to the configuration"
    ),
    ErrorKind("matrix_login_failed", -32013, 1, False, "check user and password, then: armorclaw matrix login"),
    ErrorKind("matrix_refused", -32014, 1, False, ""),
    ErrorKind("message_denied", -32080, 5, False, "an agent may change and remove only what it sent itself"),
    ErrorKind("media_damaged", -32090, 1, False, "do not use what came of it; have it sent again"),
    ErrorKind("not_routable", -32070, 1, False, "choose an agent of the same account; armorclaw status lists them"),
    ErrorKind("image_missing", -32020, 1, False, "pull the image first"),
    ErrorKind("engine_unreachable", -32021, 75, True, 'start the container engine, or choose runtime = "sandbox"'),
    ErrorKind("engine_refused", -32022, 1, False, ""),
    ErrorKind("runtime_missing", -32023, 1, False, "install bubblewrap, Docker or Podman"),
    ErrorKind("start_failed", -32024, 1, True, ""),
    ErrorKind("quota_exceeded", -32025, 1, False, ""),
    ErrorKind("queue_full", -32030, 75, True, "try again in a moment"),
    ErrorKind("remote_failed", -32031, 1, False, ""),
    # at start, before there is a socket
    ErrorKind("daemon_unreachable", -32040, 3, True, "start it with: armorclaw run"),
    ErrorKind("socket_denied", -32041, 5, False, "run as the user that owns the bridge"),
    ErrorKind("config_invalid", -32042, 11, False, ""),
    ErrorKind("already_running", -32043, 1, False, "stop the other bridge first"),
    ErrorKind("storage_failed", -32044, 14, True, ""),
    ErrorKind("storage_full", -32050, 75, True, "make room on the disk of the bridge; it goes on by itself"),
    ErrorKind("draining", -32051, 75, True, "the bridge is about to end; try again when it is back"),
    ErrorKind("storage_newer", -32045, 14, False, "install the version of armorclaw that wrote it, or newer"),
    ErrorKind("storage_corrupt", -32046, 18, False, ""),
    ErrorKind("key_file_unreadable", -32047, 14, False, ""),
    ErrorKind("path_too_long", -32048, 11, False, "choose a shorter runtime_dir"),
    ErrorKind("gave_up", -32049, 70, True, "see the log for the child that kept failing"),
    # the command line's own
    ErrorKind("degraded", -32069, 8, True, "armorclaw status shows how each part is"),
)

ERRORS: Mapping[str, ErrorKind] = {row.name: row for row in _ROWS}


TEXT_LIMIT = 1000
"""Characters of a sentence on the wire: it may quote what was sent, which may have any length."""

_FOLDERS = re.compile(r"(?<![\w.~#/-])/(?:[\w.@+-]+/)+")


class ArmorclawError(Exception):
    """Something went wrong that the table knows; the sentence is built from its fields.

    `what` says what failed, with the value and the place; `why` the reason if known; `hint` the next step. `data`
    holds further fields for programs and must be free of secrets and, where it can reach an agent, of host paths.
    """

    def __init__(self, name: str, what: str, *, why: str = "", hint: str = "", **data: Any) -> None:
        self.kind = ERRORS[name]
        self.what = what
        self.why = why
        self.hint = hint or self.kind.hint
        self.data = data
        super().__init__(what)

    @property
    def name(self) -> str:
        return self.kind.name

    def __str__(self) -> str:
        return f"{self.what}: {self.why}" if self.why else self.what

    def lines(self) -> list[str]:
        """What a person reads: what failed, why, and the next step; lines without content are left out.

        Several reasons stand below each other.
        """
        why = ["why: " + self.why.replace("\n", "\n     ")] if self.why else []
        hint = [f"hint: {self.hint}"] if self.hint else []
        return [self.what, *why, *hint]

    def payload(self) -> dict[str, Any]:
        """The `error` member of a JSON-RPC reply: without the folders of this host, and never long."""
        data = {"name": self.name, "hint": _for_strangers(self.hint), "retryable": self.kind.retryable, **self.data}
        return {"code": self.kind.code, "message": _for_strangers(str(self)), "data": data}


def without_folders(text: str) -> str:
    """Without the folders of this host: of a path its last part stays."""
    return _FOLDERS.sub("…/", text)


def _for_strangers(text: str) -> str:
    return without_folders(text if len(text) <= TEXT_LIMIT else text[: TEXT_LIMIT - 1] + "…")


@contextmanager
def one_error() -> Iterator[None]:
    """Put this around a nursery that is an implementation detail: a single error comes out as itself, ungrouped."""
    try:
        yield
    except BaseExceptionGroup as group:
        error: BaseException = group
        while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
            error = error.exceptions[0]
        if isinstance(error, BaseExceptionGroup):
            raise
        raise error from error.__cause__


def trace(error: BaseException) -> str:
    """The traceback as text for a log: lines of code and the error's own sentence, no values of variables.

    Log renderers that are given the exception itself may show local variables, and those may be secrets.
    """
    return "".join(traceback.format_exception(error))
