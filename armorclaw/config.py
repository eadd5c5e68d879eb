"""What a bridge is told: frozen values, read from TOML or built in Python.

A wrong file is refused whole: every fault is named at once, each with its place, the reason and the fix. Unknown keys
are faults, because a misspelt limit is no limit. Secrets are given by reference (a file), never by value in the file.
"""

from __future__ import annotations

import grp
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import attrs
import platformdirs

from armorclaw.errors import ArmorclawError
from armorclaw.hosts import HostPattern
from armorclaw.layers import default_runtime_dir, read_toml
from armorclaw.structure import Fault, FaultError, Frequency, Secret, Size, converter, structure, within

RuntimeName = Literal["auto", "docker", "podman", "sandbox", "process", "attached"]

MIB = 1024 * 1024

CONFIGS_INSIDE = "/config"
"""Where an agent finds the files attached for it."""

SHARED_INSIDE = "shared"
"""The folder there with those that are for all agents."""

SHARED_CONFIGS = "_shared"
"""What holds those on the host, beside the folders of agents; no agent can have that name."""

EGRESS = "egress"
"""The name of the socket beside an agent's own by which it reaches the hosts it may."""

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,31}")
_ENV_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}")


def configs_root(state_dir: Path) -> Path:
    """Where files attached for agents are kept: a folder for each agent, and SHARED_CONFIGS."""
    return state_dir.absolute() / "configs"


def is_name(text: str) -> bool:
    """Whether `text` may name an agent, an account or a subscription; such names become file names."""
    return _NAME.fullmatch(text) is not None


def _check_name(text: str, what: str) -> None:
    if not is_name(text):
        raise FaultError(
            f"{what} {text!r} is not a name",
            "use 1 to 32 characters of a-z, 0-9, - and _, beginning with a letter or digit",
        )


def _positive(instance: object, attribute: attrs.Attribute[Any], value: float) -> None:
    if not value > 0:
        raise FaultError(f"{value!r} is not above zero", f"give a positive {attribute.name}, or leave the key out")


def _no_less_than_zero(instance: object, attribute: attrs.Attribute[Any], value: float) -> None:
    if not 0 <= value < float("inf"):
        raise FaultError(f"{value!r} is below zero, or has no end", "give seconds or a number, or 0 for none")


def _homeserver(instance: object, attribute: attrs.Attribute[Any], value: str) -> None:
    try:
        parts = urlsplit(value)
        port_ok = parts.port is None or parts.port > 0
    except ValueError:
        raise FaultError(f"{value!r} is not a URL", 'write it as "https://matrix.example.org"') from None
    if parts.username or parts.password:
        raise FaultError("a user or a password in a URL is no secret any more", "remove it, and name a password_file")
    plain = not (parts.query or parts.fragment or parts.path.strip("/"))
    if parts.scheme not in ("http", "https") or not parts.hostname or not port_ok or not plain:
        raise FaultError(f"{value!r} is not the URL of a homeserver", 'write it as "https://matrix.example.org"')
    if "example" in parts.hostname.split(".")[-2:]:
        raise FaultError(f"{value!r} is the placeholder of the example", "write the URL of your own homeserver")


def _rooms(instance: object, attribute: attrs.Attribute[Any], value: Sequence[str]) -> None:
    check_rooms(value)


def check_rooms(rooms: Sequence[str]) -> None:
    """Raise FaultError for what is neither a room id nor an alias."""
    for room in rooms:
        if not re.fullmatch(r"[!#][^\s/?%]{1,254}", room) or not room.isprintable():
            raise FaultError(
                f"{room!r} is neither a room id nor an alias",
                'write "!opaque:server" (room settings, advanced) or "#alias:server"',
            )


def _env(instance: object, attribute: attrs.Attribute[Any], value: Mapping[str, str]) -> None:
    for name in value:
        if not _ENV_NAME.fullmatch(name):
            raise FaultError(f"{name!r} is not the name of a variable", "use letters, digits and _")
        if name.startswith("ARMORCLAW_"):
            raise FaultError(f"{name} is the bridge's to set", "remove it")


def _names(instance: object, attribute: attrs.Attribute[Any], value: Sequence[str]) -> None:
    for text in value:
        # not quoted: what looks least like an id is a key itself, pasted here
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", text) or text.startswith(("sk-", "ghp_", "AKIA")):
            raise FaultError(
                "an entry is not the id of a key", "name keys as armorclaw keys ls shows them; never the key itself"
            )


def _egress(instance: object, attribute: attrs.Attribute[Any], value: Sequence[str]) -> None:
    for text in value:
        HostPattern.parse(text)


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
    """

    state_dir: Path = attrs.field(factory=_default_state_dir)
    runtime_dir: Path = attrs.field(factory=_default_runtime_dir)
    socket: Path = attrs.field(default=attrs.Factory(lambda self: self.runtime_dir / "bridge.sock", takes_self=True))
    key_file: Path = attrs.field(
        default=attrs.Factory(lambda self: self.state_dir / "armorclaw.key", takes_self=True)
    )
    engine_socket: Path | None = None
    uid_base: int = attrs.field(default=10001, validator=_positive)
    lag_alarm_ms: float = attrs.field(default=20.0, validator=_no_less_than_zero)

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

    agent_calls: Frequency = attrs.field(default=Frequency(500), validator=_positive)
    operator_calls: Frequency = attrs.field(default=Frequency(2_000), validator=_positive)


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
class Account:
    """A Matrix account: where it lives and how to log in, by password or by token.

    `user` may be `name`, `@name` or `@name:server`. In TOML the secrets are given by `password_file` and
    `access_token_file`; a program may give a Secret. What a login brings is kept in the encrypted store, so
    neither is needed again.
    """

    homeserver: str = attrs.field(validator=_homeserver)
    user: str = attrs.field()
    password: Secret | None = None
    access_token: Secret | None = None
    password_file: Path | None = None
    access_token_file: Path | None = None
    device_id: str | None = None
    name: str = "main"

    @user.validator
    def _check_user(self, attribute: attrs.Attribute[str], value: str) -> None:
        if not re.fullmatch(r"@?[^\s@:/]{1,255}(:[^\s@/]{1,255})?", value):
            raise FaultError(f"{value!r} is not a Matrix user", 'write "name" or "@name:server"')

    def find_password(self) -> Secret | None:
        """The password given, or what its file holds. Raises config_invalid when the file cannot be read."""
        return self.password or _secret_from(self.password_file, f"accounts.{self.name}.password_file")

    def find_access_token(self) -> Secret | None:
        """The access token given, or what its file holds. Raises config_invalid when the file cannot be read."""
        return self.access_token or _secret_from(self.access_token_file, f"accounts.{self.name}.access_token_file")


def _secret_from(path: Path | None, place: str) -> Secret | None:
    if path is None:
        return None
    try:
        return Secret(path.read_text(encoding="utf-8").strip())
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise ArmorclawError(
            "config_invalid", f"{place}: cannot read {path}", why=reason or "", hint=f"chmod 0400 {path} and own it"
        ) from error


@attrs.frozen
class AgentLimits:
    """What one container may use at most: bytes of memory and of /tmp, cores, processes, open files."""

    memory: Size = attrs.field(default=Size(512 * MIB), validator=_positive)
    cpus: float = attrs.field(default=1.0, validator=_positive)
    pids: int = attrs.field(default=128, validator=_positive)
    files: int = attrs.field(default=1024, validator=_positive)
    tmp: Size = attrs.field(default=Size(64 * MIB), validator=_positive)


def _at_least_one(instance: object, attribute: attrs.Attribute[Any], value: int) -> None:
    if value < 1:
        raise FaultError(f"{value!r} is below 1", f"give at least 1 for {attribute.name}")


def _seconds(given: Mapping[str, Any], key: str, default: float) -> float:
    """What is given, or 0 for what is no number and has a fault of its own."""
    value = given.get(key, default)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else 0.0


@attrs.frozen
class AgentHealth:
    """How an agent's life is watched, in seconds.

    Each `period` it is asked over its session whether its loop runs; `failures` in a row that took longer than
    `timeout` are a hang. `reconnect` is how long its session may be away. One that has had events in its hands for
    `stalled_after` without a sign of work is stalled, and over `stalled_limit` started again (0: never for that).
    """

    period: float = attrs.field(default=10.0, validator=_positive)
    timeout: float = attrs.field(default=1.0, validator=_positive)
    failures: int = attrs.field(default=3, validator=_at_least_one)
    reconnect: float = attrs.field(default=10.0, validator=_positive)
    stalled_after: float = attrs.field(default=120.0, validator=_positive)
    stalled_limit: float = attrs.field(default=600.0, validator=_no_less_than_zero)

    def __attrs_post_init__(self) -> None:
        self.check_together(attrs.asdict(self))

    @staticmethod
    def check_together(given: Mapping[str, Any]) -> None:
        """What no single value can tell."""
        period, timeout = _seconds(given, "period", 10.0), _seconds(given, "timeout", 1.0)
        if 0 < period < timeout:
            raise FaultError(f"timeout {timeout:g} is longer than period {period:g}", "give a longer period")
        after, limit = _seconds(given, "stalled_after", 120.0), _seconds(given, "stalled_limit", 600.0)
        if 0 < limit < after:
            raise FaultError(f"stalled_limit {limit:g} is below stalled_after {after:g}", "give more, or 0 for none")


RestartPolicy = Literal["always", "on-failure", "never"]


@attrs.frozen
class AgentRestart:
    """What follows the end of an agent that nobody asked for.

    The first start after it is at once, each further one after a pause that grows, at most `longest_pause` seconds,
    until one has lived for `stable` seconds. After `in_row` that did not, or `per_hour` ends of any kind within an
    hour, it is given up; 0 is no such limit. With "on-failure" exit status 0 is an end that stays.
    """

    policy: RestartPolicy = "always"
    in_row: int = attrs.field(default=6, validator=_no_less_than_zero)
    per_hour: int = attrs.field(default=20, validator=_no_less_than_zero)
    stable: float = attrs.field(default=600.0, validator=_positive)
    longest_pause: float = attrs.field(default=60.0, validator=_positive)


def _share(instance: object, attribute: attrs.Attribute[Any], value: float) -> None:
    if not 0 < value <= 1:
        raise FaultError(f"{value!r} is no share", "give more than 0 and at most 1: 0.8 warns at 80 %")


@attrs.frozen
class AgentQuota:
    """What an agent may do in any minute, over all its connections and restarts; 0 is no limit.

    `events` are those it publishes (agent.event, .status, .error and what is recorded of its progress), `messages`
    those it sends into rooms, `bytes` what is read from it, `calls` all its calls. At the share `soft` of one there
    is a warning. Beyond it is refused; with "stop" an agent that goes on regardless is ended, and stays so.
    """

    events: int = attrs.field(default=1_200, validator=_no_less_than_zero)
    messages: int = attrs.field(default=1_200, validator=_no_less_than_zero)
    bytes: Size = attrs.field(default=Size(1024 * MIB), validator=_no_less_than_zero)
    calls: int = attrs.field(default=60_000, validator=_no_less_than_zero)
    soft: float = attrs.field(default=0.8, validator=_share)
    on_exceeded: Literal["refuse", "stop"] = "refuse"


@attrs.frozen
class AgentData:
    """How much an agent may keep at /data: over `soft` there is a warning, over `hard` it is ended, and stays so.

    A file or folder counts with the room it takes on the disk and 4 KiB.
    """

    soft: Size = attrs.field(default=Size(256 * MIB), validator=_positive)
    hard: Size = attrs.field(default=Size(1024 * MIB), validator=_positive)

    def __attrs_post_init__(self) -> None:
        if self.soft > self.hard:
            raise FaultError(f"soft {self.soft} is above hard {self.hard}", "give a larger hard limit")


@attrs.frozen
class Agent:
    """One agent: what to run, where, and what it is granted.

    `code` is a file or folder of the host, copied and mounted read-only at /agent; with it the default command is
    `python3 /agent/main.py` (or the one file). `python` is a virtual environment of the host that an agent without an
    image runs in, read-only. `rooms` are the only rooms it hears and may write to; `keys` the only
    secrets it is given; `egress` the only hosts it may connect to, with a port each (`armorclaw.hosts`).
    `ready_timeout` is how many seconds it has to say it is ready; 0 never demands it.
    `on_restart` is what a starting bridge does with a container of it that an earlier bridge left. `lifetime` is how
    many seconds after its start it is stopped, for good; `idle_timeout` after how many without work it is put to
    sleep, until there is some, or stopped for good, as `on_idle` says. 0 is no such limit.
    Runtime "attached" is for one that lives in the program that embeds the bridge (`Bridge.attach`): declared, it
    misses nothing while that program is down.
    """

    image: str | None = None
    runtime: RuntimeName = "auto"
    command: tuple[str, ...] = ()
    code: Path | None = None
    python: Path | None = None
    rooms: tuple[str, ...] = attrs.field(default=(), validator=_rooms)
    keys: tuple[str, ...] = attrs.field(default=(), validator=_names)
    egress: tuple[str, ...] = attrs.field(default=(), validator=_egress)
    account: str = "main"
    env: Mapping[str, str] = attrs.field(factory=dict, validator=_env)
    limits: AgentLimits = attrs.field(factory=AgentLimits)
    quota: AgentQuota = attrs.field(factory=AgentQuota)
    health: AgentHealth = attrs.field(factory=AgentHealth)
    restart: AgentRestart = attrs.field(factory=AgentRestart)
    data: AgentData = attrs.field(factory=AgentData)
    on_restart: Literal["adopt", "kill"] = "adopt"
    lifetime: float = attrs.field(default=0.0, validator=_no_less_than_zero)
    idle_timeout: float = attrs.field(default=0.0, validator=_no_less_than_zero)
    on_idle: Literal["sleep", "stop"] = "sleep"
    uid: int | None = None
    ready_timeout: float = 30.0
    name: str = ""

    def __attrs_post_init__(self) -> None:
        self.check_together(attrs.asdict(self, recurse=False))

    @staticmethod
    def check_together(given: Mapping[str, Any]) -> None:
        """What no single value can tell; `given` may hold values that are wrong by themselves."""
        runtime, image = given.get("runtime"), given.get("image")
        has_work = bool(given.get("command") or given.get("code") or image)
        if runtime == "attached":
            if has_work:
                raise FaultError("an attached agent runs in a program of its own", "remove image, command and code")
            if given.get("lifetime") or given.get("idle_timeout"):
                raise FaultError("an attached agent is not the bridge's to end", "remove lifetime and idle_timeout")
            if given.get("egress"):
                raise FaultError("an attached agent has the network of its program", "remove egress")
        elif not has_work:
            raise FaultError("there is nothing to run", "give an image, a command or code")
        if runtime in ("docker", "podman") and image is None:
            raise FaultError(f'runtime "{runtime}" needs an image', 'add image = "…", or use runtime = "sandbox"')
        if given.get("python") is not None and (image is not None or runtime in ("docker", "podman", "attached")):
            raise FaultError(
                "python is a virtual environment of this host, for runtime sandbox or process",
                "remove it; into an image libraries come by armorclaw image build -r requirements.txt",
            )
        if runtime in ("sandbox", "process") and image is not None:
            raise FaultError(f'runtime "{runtime}" has no images', 'remove image, or use runtime = "docker"')


@attrs.frozen
class Config:
    """Everything a bridge is told."""

    bridge: BridgeSection = attrs.field(factory=BridgeSection)
    server: ServerSection = attrs.field(factory=ServerSection)
    limits: LimitsSection = attrs.field(factory=LimitsSection)
    alerts: AlertsSection = attrs.field(factory=AlertsSection)
    accounts: Mapping[str, Account] = attrs.field(factory=dict)
    agents: Mapping[str, Agent] = attrs.field(factory=dict)

    def __attrs_post_init__(self) -> None:
        # each entry carries its own name, so that it can travel alone
        object.__setattr__(self, "accounts", _named(self.accounts))
        object.__setattr__(self, "agents", _named(self.agents))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Config:
        """Read a TOML file; relative paths in it are relative to its folder.

        Raises config_invalid with one line per fault.
        """
        data = read_toml(path)
        file = Path(path)
        return cls.parse(data, source=str(file), folder=file.resolve().parent)

    @classmethod
    def parse(cls, data: Mapping[str, Any], *, source: str = "configuration", folder: Path | None = None) -> Config:
        """Structure what TOML gave. Raises config_invalid naming every fault: place, reason, fix."""
        config, faults = cls.examine(data, folder=folder)
        if faults or config is None:
            lines = [str(fault) for fault in faults]
            raise ArmorclawError(
                "config_invalid",
                f"{source}: {len(lines)} fault{'s' if len(lines) > 1 else ''}",
                why="\n".join(lines),
                hint=f"mend {source} and try again",
                faults=lines,
            )
        return config

    @classmethod
    def examine(cls, data: Mapping[str, Any], *, folder: Path | None = None) -> tuple[Config | None, list[Fault]]:
        """Structure what TOML gave, or say everything that is wrong with it."""
        faults: list[Fault] = []
        config = structure(converter(folder or Path.cwd()), cls, data, "", faults)
        faults += _faults_between(data)
        return config, faults


def _named(entries: Mapping[str, Any]) -> dict[str, Any]:
    return {name: attrs.evolve(entry, name=name) for name, entry in entries.items()}


def _faults_between(data: Mapping[str, Any]) -> list[Fault]:
    """What no single value can know: names of entries, and references from one to another."""
    faults = []
    tables = {section: data.get(section) for section in ("accounts", "agents")}
    entries = {section: table if isinstance(table, Mapping) else {} for section, table in tables.items()}
    for section, table in entries.items():
        for name in table:
            try:
                _check_name(name, section[:-1])
            except FaultError as fault:
                faults.append(Fault(within(section, name), fault.why, fault.fix))
    accounts = entries["accounts"]
    alerts = data.get("alerts")
    if isinstance(alerts, Mapping) and alerts.get("room"):
        wanted = alerts.get("account", "main")
        if isinstance(wanted, str) and wanted not in accounts:
            fix = f"add [accounts.{wanted}], or name one of: {', '.join(accounts) or 'none yet'}"
            faults.append(Fault("alerts.account", f"there is no account {wanted!r}", fix))
    own = entries["agents"].get(EGRESS)
    if isinstance(own, Mapping) and own.get("egress"):
        why = "the socket of an agent of that name would be where agents find their way out"
        faults.append(Fault(within("agents", EGRESS), why, "give it another name, or remove egress"))
    for name, agent in entries["agents"].items():
        if not isinstance(agent, Mapping) or not ("account" in agent or agent.get("rooms")):
            continue
        wanted = agent.get("account", "main")
        if wanted not in accounts:
            fix = f"add [accounts.{wanted}], or name one of: {', '.join(accounts) or 'none yet'}"
            faults.append(Fault(within("agents", name) + ".account", f"there is no account {wanted!r}", fix))
    return faults
