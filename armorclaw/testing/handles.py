"""What the fixtures hand out: a bridge in a process of its own, its agents, people."""

from __future__ import annotations

import inspect
import json
import secrets
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import attrs

from armorclaw.config import Account, BridgeSection, Config
from armorclaw.errors import ArmorclawError
from armorclaw.rpc.blocking import call
from armorclaw.structure import Secret
from armorclaw.testing.homeserver import Homeserver
from armorclaw.testing.person import Person

START_SECONDS = 30.0
STOP_SECONDS = 20.0
READY_SECONDS = 30.0
POLL = 0.02
"""Seconds between looks at something that happens in another process."""


def new_person(homeserver: Homeserver, name: str) -> Person:
    """Registers `name` with a fresh suffix and logs in."""
    password = secrets.token_urlsafe(12)
    user_id = homeserver.register(f"{name}-{secrets.token_hex(4)}", password)
    return Person.login(homeserver.url, user_id, password)


def config_for(homeserver: Homeserver, folder: Path) -> Config:
    """A bridge below `folder` with a fresh account on `homeserver`."""
    password = secrets.token_urlsafe(12)
    user_id = homeserver.register(f"bot-{secrets.token_hex(4)}", password)
    return Config(
        bridge=BridgeSection(state_dir=folder / "state", runtime_dir=folder / "run"),
        accounts={"main": Account(homeserver=homeserver.url, user=user_id, password=Secret(password))},
    )


def through(config: Config, url: str) -> Config:
    """The same bridge with its homeserver at another address."""
    accounts = {name: attrs.evolve(account, homeserver=url) for name, account in config.accounts.items()}
    return attrs.evolve(config, accounts=accounts)


def to_toml(table: Mapping[str, Any]) -> str:
    """A table as TOML, nested ones inline; JSON's strings, numbers, booleans and lists are TOML's too."""
    return "".join(f"{json.dumps(key)} = {_value(value)}\n" for key, value in table.items())


def _value(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{json.dumps(key)} = {_value(inner)}" for key, inner in value.items()) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_value(item) for item in value) + "]"
    return json.dumps(str(value) if isinstance(value, Path) else value)


def wait_until(done: Callable[[], Any], seconds: float, what: str) -> Any:
    """The first true answer of `done`, asked again and again. Raises timed_out."""
    deadline = time.monotonic() + seconds
    while not (answer := done()):
        if time.monotonic() > deadline:
            raise ArmorclawError("timed_out", f"{what}: not within {seconds:g} s")
        time.sleep(POLL)
    return answer


class BridgeProcess:
    """`armorclaw run` as a child, with the calls of its socket."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self.folder = folder
        self.config = dict(config)
        self.config.setdefault("bridge", {"state_dir": folder / "state", "runtime_dir": folder / "run"})
        self.socket = Path(self.config["bridge"]["runtime_dir"]) / "bridge.sock"
        self.log = folder / "bridge.log"
        self.process: subprocess.Popen[bytes] | None = None

    @classmethod
    def for_homeserver(cls, homeserver: Homeserver, folder: Path, **sections: Any) -> Self:
        """One with a fresh account on `homeserver`; `sections` go into its configuration as they are."""
        config = config_for(homeserver, folder)
        account = config.accounts["main"]
        password_file = folder / "password"
        assert account.password is not None
        password_file.write_text(account.password.reveal())
        password_file.chmod(0o400)
        main = {"homeserver": account.homeserver, "user": account.user, "password_file": password_file}
        return cls(folder, {"accounts": {"main": main}, **sections})

    @property
    def user_id(self) -> str:
        """The Matrix user of its account `main`."""
        return str(self.config["accounts"]["main"]["user"])

    def start(self, *, connected: bool = True) -> None:
        """Start, and return when it answers and, if it has an account, is connected. Raises start_failed."""
        self.spawn()
        try:
            wait_until(self._answers, START_SECONDS, "the bridge answers")
            if connected and "accounts" in self.config:
                wait_until(self._connected, START_SECONDS, "the bridge is connected to Matrix")
        except BaseException:
            self.kill()
            raise

    def spawn(self) -> None:
        """Start, and return at once."""
        file = self.folder / "armorclaw.toml"
        file.write_text(to_toml(self.config), encoding="utf-8")
        with self.log.open("ab") as log:
            command = [sys.executable, "-m", "armorclaw", "run", "--config", str(file)]
            self.process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)

    def call(self, method: str, *, timeout: float = 30.0, **params: Any) -> Any:
        """Call a method as the operator; seconds. Raises what it answers, and daemon_unreachable."""
        return call(str(self.socket), method, params, timeout=timeout)

    def stop(self) -> int:
        """SIGTERM, and its exit status when it has ended."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self._ended()

    def kill(self) -> None:
        """As a crash would."""
        if self.process is not None:
            self.process.kill()
            self._ended()

    def _ended(self) -> int:
        assert self.process is not None
        try:
            return self.process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
        finally:
            self.process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.process is not None:
            self.stop()

    def _answers(self) -> bool:
        assert self.process is not None
        if (status := self.process.poll()) is not None:
            said = self.log.read_text(errors="replace")[-2000:]
            raise ArmorclawError("start_failed", f"the bridge ended with status {status}", why=said)
        try:
            return bool(self.call("status"))
        except ArmorclawError as error:
            if error.name not in ("daemon_unreachable", "socket_denied"):
                raise
            return False

    def _connected(self) -> bool:
        return all(account["connected"] for account in self.call("status")["accounts"])


@attrs.frozen
class AgentHandle:
    """An agent that a test started."""

    name: str
    bridge: BridgeProcess

    @property
    def standing(self) -> dict[str, Any]:
        """Its line of `containers.list`."""
        rows = self.bridge.call("containers.list")
        found: dict[str, Any] = next(row for row in rows if row["name"] == self.name)
        return found

    def wait_ready(self, *, generation: int = 1, seconds: float = READY_SECONDS) -> dict[str, Any]:
        """Until it is ready, in its `generation`-th life or a later one; returns how it stands."""

        def ready() -> dict[str, Any] | None:
            now = self.standing
            return now if now["ready"] and now["generation"] >= generation else None

        found: dict[str, Any] = wait_until(ready, seconds, f"agent {self.name} is ready")
        return found

    def stop(self) -> None:
        self.bridge.call("stop", name=self.name)


_SCRIPT = """\
from __future__ import annotations

from armorclaw.agent import Agent

agent = Agent()


{source}

agent.on_message({name})
agent.run()
"""


class AgentFactory:
    """`agent(function or script, rooms=[…])`: see the plugin."""

    def __init__(self, bridge: BridgeProcess, missing: Callable[[str], None]) -> None:
        self._bridge = bridge
        self._missing = missing

    def __call__(
        self,
        what: Callable[[Any], Any] | Path | str,
        *,
        rooms: list[str],
        name: str = "",
        keys: list[str] | None = None,
        runtime: str = "sandbox",
        image: str | None = None,
    ) -> AgentHandle:
        """Start it and wait until it is ready and the bridge in its rooms.

        A function must stand alone: it is copied as source into a script.
        """
        if runtime == "sandbox" and shutil.which("bwrap") is None:
            self._missing("bubblewrap is not installed: apt-get install bubblewrap")
        name = name or (what.__name__ if callable(what) else Path(what).stem).replace("_", "-").lower()
        code = self._bridge.folder / "agents" / name
        code.mkdir(parents=True, exist_ok=True)
        main = code / "main.py"
        if callable(what):
            source = textwrap.dedent(inspect.getsource(what))
            main.write_text(_SCRIPT.format(source=source, name=what.__name__), encoding="utf-8")
        else:
            main.write_bytes(Path(what).read_bytes())
        asked: dict[str, Any] = {
            "name": name,
            "runtime": runtime,
            "code": str(code),
            "rooms": rooms,
            "keys": keys or [],
        }
        if image is not None:
            asked["image"] = image
        self._bridge.call("start", **asked)
        handle = AgentHandle(name, self._bridge)
        handle.wait_ready()
        # what is said before the bridge has joined is not for the agent
        wait_until(lambda: not self._missing_rooms().intersection(rooms), READY_SECONDS, "the bridge is in the rooms")
        return handle

    def _missing_rooms(self) -> set[str]:
        return {room for account in self._bridge.call("status")["accounts"] for room in account["rooms_missing"]}
