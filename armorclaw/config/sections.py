"""What is true of the whole bridge: `[bridge]`, `[server]`, `[limits]`, `[alerts]`, `[events]`, `[delivery]`."""

from __future__ import annotations

import grp
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import attrs
import platformdirs

from armorclaw.config.checks import check_rooms, is_name, no_less_than_zero, positive
from armorclaw.layers import default_runtime_dir
from armorclaw.structure import FaultError, Frequency, Size


def _group(instance: object, attribute: attrs.Attribute[Any], value: str) -> None:
    if not value:
        return
    try:
        grp.getgrnam(value)
    except KeyError:
        fix = f"make it: sudo groupadd --system {value}" if is_name(value) else "name a group, not its number"
        raise FaultError(f"there is no group {value!r}", fix) from None


def _default_state_dir() -> Path:
    if os.geteuid() == 0:
        return Path("/var/lib/armorclaw")
    return Path(platformdirs.user_state_dir("armorclaw"))


def _default_runtime_dir() -> Path:
    return Path(default_runtime_dir())


@attrs.frozen
class BridgeSection:
    """Where the bridge keeps things, and what is true of all its agents.

    `state_dir` holds the database and its key and must be the bridge's own; `runtime_dir` holds sockets. `socket` is
    by default `<runtime_dir>/bridge.sock`. `uid_base` is the uid of the first agent, where the bridge may choose one.
    `lag_alarm_ms`: a step of the bridge that holds up all others for so many milliseconds is told; 0: none is.
    `drain_s`: seconds that a bridge asked to stop may take to finish what it has accepted.
    """

    state_dir: Path = attrs.field(factory=_default_state_dir)
    runtime_dir: Path = attrs.field(factory=_default_runtime_dir)
    socket: Path = attrs.field(default=attrs.Factory(lambda self: self.runtime_dir / "bridge.sock", takes_self=True))
    key_file: Path = attrs.field(
        default=attrs.Factory(lambda self: self.state_dir / "armorclaw.key", takes_self=True)
    )
    engine_socket: Path | None = None
    uid_base: int = attrs.field(default=10001, validator=positive)
    lag_alarm_ms: float = attrs.field(default=20.0, validator=no_less_than_zero)
    drain_s: float = attrs.field(default=10.0, validator=no_less_than_zero)

    @property
    def database(self) -> Path:
        return self.state_dir / "armorclaw.db"

    @property
    def observer_socket(self) -> Path:
        return self.socket.with_name("observer.sock")


@attrs.frozen
class ServerSection:
    """Who may connect, beside the bridge's own user and root. Each is the name of a group; "" for nobody.

    Members of `group` are operators: they may do everything, keys included. Members of `observer_group` may look at
    how things are, at a socket of their own.
    """

    group: str = attrs.field(default="", validator=_group)
    observer_group: str = attrs.field(default="", validator=_group)

    def __attrs_post_init__(self) -> None:
        self.check_together(attrs.asdict(self))

    @staticmethod
    def check_together(given: Mapping[str, Any]) -> None:
        """What no single value can tell."""
        if given.get("group") and given.get("group") == given.get("observer_group"):
            raise FaultError("operators and observers are the same group", "give them one each, or leave one out")


@attrs.frozen
class LimitsSection:
    """How often a caller may call. Twice as many may come at once, after a rest.

    `agent_calls`, of one agent on all its connections together: ten times what a busy agent needs for its events,
    each with an answer and an acknowledgement, and at some 0.1 ms a call a twentieth of a core. `operator_calls`, of
    one connection: more than a shell loop or a dashboard asks for; all connections of one user have four times that.
    """

    agent_calls: Frequency = attrs.field(default=Frequency(500), validator=positive)
    operator_calls: Frequency = attrs.field(default=Frequency(2_000), validator=positive)


def _alert_room(instance: object, attribute: attrs.Attribute[Any], value: str) -> None:
    if value:
        check_rooms([value])


@attrs.frozen
class AlertsSection:
    """Where people are told what needs them: a room of an account, from a severity on. No room: nowhere.

    The bridge itself joins the room; no agent hears it or may write to it by that.
    """

    room: str = attrs.field(default="", validator=_alert_room)
    account: str = "main"
    severity: Literal["info", "warning", "error"] = "error"


@attrs.frozen
class EventsSection:
    """How long events are kept, and how often one is given before it is given up.

    `keep_days` and `keep_mb` bound the journal, whatever is acknowledged; whoever comes too late hears of the gap.
    `erase_after_h`: hours after the last durable acknowledgement until the bodies of messages are erased. An event
    that was given and not answered comes again after `redeliver_after_s` seconds. It becomes a dead letter once it
    was given `max_deliveries` times, or `max_lost` times without any answer: its reader ended, or took too long.
    """

    keep_days: float = attrs.field(default=30.0, validator=positive)
    keep_mb: float = attrs.field(default=1024.0, validator=positive)
    erase_after_h: float = attrs.field(default=24.0, validator=no_less_than_zero)
    redeliver_after_s: float = attrs.field(default=900.0, validator=positive)
    max_deliveries: int = attrs.field(default=20, validator=positive)
    max_lost: int = attrs.field(default=5, validator=positive)


@attrs.frozen
class DeliverySection:
    """How long a message may wait for its homeserver: after `expire_after_h` hours it has failed."""

    expire_after_h: float = attrs.field(default=24.0, validator=positive)


@attrs.frozen
class MediaSection:
    """Images, files and voice messages: `max_size` is bytes of the largest, up or down."""

    max_size: Size = attrs.field(default=Size(100 * 1024 * 1024), validator=positive)
