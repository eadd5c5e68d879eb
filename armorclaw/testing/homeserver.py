"""A real Matrix homeserver of one's own: Synapse from PyPI as a child process, for the demo and for tests.

Plain and synchronous, so that any program can hold one; from Trio call it in a thread. Everything it needs and
writes is in one folder. It listens on loopback only and speaks to no other homeserver. Synapse itself is never
imported here.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import importlib.util
import json
import os
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from armorclaw.errors import ArmorclawError

START_TIMEOUT = 60.0
"""Seconds until /health must answer; about 2 are usual, a loaded machine needs more."""

STOP_GRACE = 5.0
"""Seconds between asking to stop and killing."""

_POLL = 0.02
_REQUEST_TIMEOUT = 10.0

# Synapse ends with its owner, even when the owner is killed: the owner holds the other end of stdin. (A parent-death
# signal would not do: it fires when the *thread* that started the child ends.)
_BOOT = """
import os, runpy, signal, sys, threading
def watch(fd=os.dup(0)):
    os.read(fd, 1)
    os.kill(os.getpid(), signal.SIGTERM)
threading.Thread(target=watch, daemon=True).start()
sys.argv[0] = "synapse"
runpy.run_module("synapse.app.homeserver", run_name="__main__", alter_sys=True)
"""

_UNLIMITED = {"per_second": 10_000, "burst_count": 10_000}

# Every limit that a test or a demo could run into (Synapse's configuration manual, "Ratelimiting").
_RATE_LIMITS: Mapping[str, object] = {
    "rc_message": _UNLIMITED,
    "rc_registration": _UNLIMITED,
    "rc_login": {"address": _UNLIMITED, "account": _UNLIMITED, "failed_attempts": _UNLIMITED},
    "rc_admin_redaction": _UNLIMITED,
    "rc_joins": {"local": _UNLIMITED, "remote": _UNLIMITED},
    "rc_joins_per_room": _UNLIMITED,
    "rc_invites": {"per_room": _UNLIMITED, "per_user": _UNLIMITED, "per_issuer": _UNLIMITED},
    "rc_key_requests": _UNLIMITED,
    "rc_third_party_invite": _UNLIMITED,
    "rc_media_create": _UNLIMITED,
    "rc_room_creation": _UNLIMITED,
    "rc_presence": {"per_user": _UNLIMITED},
    "rc_delayed_event_mgmt": _UNLIMITED,
}

_LOGGING: Mapping[str, object] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s: %(message)s"}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
    "root": {"level": "WARNING", "handlers": ["stderr"]},
}


class Homeserver:
    """One Synapse in one folder. The folder outlives the process: users, rooms and the port are kept in it.

    `python` is the interpreter that has Synapse, by default this one. `settings` are keys of Synapse's configuration
    that a new folder is to have instead of the usual ones.
    """

    def __init__(
        self,
        state_dir: Path | str,
        *,
        server_name: str = "localhost",
        python: str = sys.executable,
        settings: Mapping[str, object] | None = None,
    ) -> None:
        self.state_dir = Path(state_dir).absolute()
        self.server_name = server_name
        self.port = 0
        self._python = python
        self._process: subprocess.Popen[bytes] | None = None
        self._registration_secret = ""
        self._settings = settings or {}

    @classmethod
    def attach(cls, state_dir: Path | str) -> Self:
        """One that another process started and keeps: it can be used, not stopped."""
        attached = cls(state_dir)
        config = json.loads(attached._config_path.read_bytes())
        attached.port = config["listeners"][0]["port"]
        attached._registration_secret = config["registration_shared_secret"]
        return attached

    @property
    def url(self) -> str:
        """The base URL of the client-server API; known after the first start, and the same after a restart."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int | None:
        """The child's process id while it runs."""
        return self._process.pid if self._process is not None else None

    @property
    def log_path(self) -> Path:
        """What Synapse says: warnings and errors."""
        return self.state_dir / "synapse.log"

    def start(self) -> None:
        """Start, and return when /health answers. Raises runtime_missing without Synapse, else start_failed."""
        if self._process is not None:
            raise ArmorclawError("already_running", f"the homeserver in {self.state_dir}")
        if self._python == sys.executable and importlib.util.find_spec("synapse") is None:
            raise self._missing()
        self._write_config()
        command = [self._python, "-c", _BOOT, "--config-path", str(self._config_path)]
        with self.log_path.open("ab") as log:
            log_start = log.tell()
            self._process = subprocess.Popen(
                command, cwd=self.state_dir, stdin=subprocess.PIPE, stdout=log, stderr=log, start_new_session=True
            )
        try:
            self._wait_until_healthy(log_start)
        except BaseException:
            self.kill()
            raise

    def stop(self) -> None:
        """Ask to stop, wait up to `STOP_GRACE` seconds, then kill. Does nothing if it does not run."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        """Kill it as a crash would."""
        self._end(signal.SIGKILL)

    def restart(self) -> None:
        """Stop and start again, on the same port."""
        self.stop()
        self.start()

    def register(self, name: str, password: str) -> str:
        """Make an ordinary user and return its id. Raises conflict if there is one of that name."""
        path = "/_synapse/admin/v1/register"
        nonce: str = self._call("GET", path)["nonce"]
        parts = (nonce, name, password, "notadmin")
        message = b"\0".join(part.encode() for part in parts)
        mac = hmac.new(self._registration_secret.encode(), message, hashlib.sha1).hexdigest()
        body = {"nonce": nonce, "username": name, "password": password, "admin": False, "mac": mac}
        user_id: str = self._call("POST", path, body)["user_id"]
        return user_id

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def _config_path(self) -> Path:
        return self.state_dir / "homeserver.yaml"

    def _write_config(self) -> None:
        """Write what is not there yet, and a free port. JSON is YAML too, so no YAML library is needed.

        Synapse can make a configuration itself, but that costs another start of four seconds.
        """
        self.state_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        if self._config_path.exists():
            config = json.loads(self._config_path.read_bytes())
        else:
            config = self._first_config()
        listener = config["listeners"][0]
        listener["port"] = self.port = _free_port(listener["port"])
        self._registration_secret = config["registration_shared_secret"]
        _write_private(self._config_path, json.dumps(config, indent=1))

    def _first_config(self) -> dict[str, Any]:
        seed = base64.b64encode(secrets.token_bytes(32)).decode().rstrip("=")
        signing_key, log_config = self.state_dir / "signing.key", self.state_dir / "log.yaml"
        _write_private(signing_key, f"ed25519 a_{secrets.token_hex(2)} {seed}\n")
        _write_private(log_config, json.dumps(_LOGGING))
        resources = [{"names": ["client"], "compress": False}]
        listener = {"port": 0, "bind_addresses": ["127.0.0.1"], "type": "http", "resources": resources}
        return {
            "server_name": self.server_name,
            "pid_file": str(self.state_dir / "synapse.pid"),
            "listeners": [listener],
            "database": {"name": "sqlite3", "args": {"database": str(self.state_dir / "homeserver.db")}},
            "media_store_path": str(self.state_dir / "media"),
            "log_config": str(log_config),
            "signing_key_path": str(signing_key),
            "registration_shared_secret": secrets.token_hex(16),
            "macaroon_secret_key": secrets.token_hex(16),
            "form_secret": secrets.token_hex(16),
            "report_stats": False,
            "enable_registration": False,
            "trusted_key_servers": [],
            "suppress_key_server_warning": True,
            "federation_domain_whitelist": [],
            "presence": {"enabled": False},
            "bcrypt_rounds": 4,
            **_RATE_LIMITS,
            **self._settings,
        }

    def _wait_until_healthy(self, log_start: int) -> None:
        process = self._process  # kept here: another thread may `kill` meanwhile, which ends the wait
        assert process is not None
        deadline = time.monotonic() + START_TIMEOUT
        while not self._healthy():
            if process.poll() is not None or time.monotonic() > deadline:
                with self.log_path.open("rb") as log:
                    log.seek(log_start)
                    said = log.read().decode(errors="replace").strip()
                if "No module named 'synapse" in said:
                    raise self._missing()
                why = said.splitlines()[-1] if said else "it said nothing"
                hint = f"read {self.log_path}"
                raise ArmorclawError("start_failed", "Synapse did not start", why=why, hint=hint)
            time.sleep(_POLL)

    def _healthy(self) -> bool:
        with contextlib.suppress(OSError, urllib.error.URLError):
            with _opener().open(f"{self.url}/health", timeout=_REQUEST_TIMEOUT) as answer:
                return bool(answer.status == 200)
        return False

    def _call(self, method: str, path: str, body: Mapping[str, object] | None = None) -> dict[str, Any]:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"}
        url = self.url + path  # always http://127.0.0.1
        request = urllib.request.Request(url, data=data, headers=headers, method=method)  # noqa: S310
        try:
            with _opener().open(request, timeout=_REQUEST_TIMEOUT) as answer:
                result: dict[str, Any] = json.loads(answer.read())
        except urllib.error.HTTPError as error:
            with error:
                said = json.loads(error.read())
            name = "conflict" if said.get("errcode") == "M_USER_IN_USE" else "matrix_refused"
            raise ArmorclawError(name, f"{method} {path} at {self.url}", why=said.get("error", "")) from None
        except OSError as error:
            raise ArmorclawError("unavailable", f"{method} {path} at {self.url}", why=str(error)) from error
        return result

    def _end(self, how: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.send_signal(how)
        try:
            process.wait(STOP_GRACE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdin is not None
        process.stdin.close()

    def _missing(self) -> ArmorclawError:
        what = f"there is no Synapse for {self._python}"
        return ArmorclawError("runtime_missing", what, hint="pip install 'armorclaw[demo]'")


def _opener() -> urllib.request.OpenerDirector:
    """HTTP without the proxies of the environment, which would be asked for loopback addresses as well."""
    return urllib.request.build_opener(urllib.request.ProxyHandler({}))


def _free_port(wanted: int) -> int:
    """`wanted` if it is free, else any free port of the loopback interface (0: no wish)."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Synapse does: TIME_WAIT is no hindrance
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", port))
                number: int = probe.getsockname()[1]
                return number
    raise ArmorclawError("start_failed", "no free TCP port on 127.0.0.1")


def _write_private(path: Path, text: str) -> None:
    """Replace a file in one step; nobody else may read it at any moment."""
    partial = path.with_name(path.name + ".new")
    partial.unlink(missing_ok=True)
    with open(os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)
    partial.replace(path)
