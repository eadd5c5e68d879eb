"""The keys an agent is given: taken once from the bridge, kept in memory, never shown."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import resource
from collections.abc import Iterator, Mapping
from typing import Optional

_PR_SET_DUMPABLE = 4  # <linux/prctl.h>


class Secret:
    """One key. Its repr leaves the token out, so that logging one by accident tells nothing."""

    __slots__ = ("display_name", "id", "provider", "token")

    def __init__(self, key_id: str, provider: str, token: str, display_name: str = "") -> None:
        self.id = key_id
        self.provider = provider
        self.token = token
        self.display_name = display_name

    def __repr__(self) -> str:
        return f"Secret(id={self.id!r}, provider={self.provider!r})"

    @property
    def env_name(self) -> str:
        """What programs call the variable that holds this key: `OPENAI_API_KEY`."""
        return self.provider.upper().replace("-", "_") + "_API_KEY"


class Secrets(Mapping[str, Secret]):
    """The keys by id: `agent.secrets["openai-default"].token`.

    `payload` is what the bridge sent, byte for byte; None when none were taken. `fingerprint` is its SHA-256 in hex,
    by which the bridge knows that what arrived is what it sent.
    """

    def __init__(self, payload: Optional[bytes] = None) -> None:
        self.payload = payload
        self._keys = {} if payload is None else _parse(payload)

    @property
    def fingerprint(self) -> Optional[str]:
        return None if self.payload is None else hashlib.sha256(self.payload).hexdigest()

    def __getitem__(self, key: str) -> Secret:
        try:
            return self._keys[key]
        except KeyError:
            granted = ", ".join(self._keys) or "none"
            raise KeyError(f"{key!r} is not among the keys of this agent ({granted})") from None

    def __contains__(self, key: object) -> bool:
        return key in self._keys

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def __repr__(self) -> str:
        return f"Secrets({', '.join(self._keys)})"


def _parse(payload: bytes) -> dict[str, Secret]:
    try:
        keys = json.loads(payload)["keys"]
        return {
            key_id: Secret(key_id, str(key["provider"]), str(key["token"]), str(key.get("display_name") or ""))
            for key_id, key in keys.items()
        }
    except (ValueError, TypeError, KeyError, AttributeError):
        # neither the text nor what is wrong with it: both could show a key
        raise ValueError("the bridge sent secrets in a shape this library does not know") from None


def read_secrets(fd: int, size: int) -> bytes:
    """The first `size` bytes of `fd`, whose position stays where it is. Raises OSError when there are fewer."""
    parts = []
    at = 0
    while at < size:
        part = os.pread(fd, size - at, at)
        if not part:
            raise OSError(f"the secrets end after {at} of {size} bytes")
        parts.append(part)
        at += len(part)
    return b"".join(parts)


def secrets_file(secrets: Secrets) -> bytes:
    """What a child program finds in its sealed file: the payload, and its first key once more at the top.

    Programs written for the original bridge read one `provider` and `token` there.
    """
    keys = {
        key.id: {"provider": key.provider, "token": key.token, "display_name": key.display_name}
        for key in secrets.values()
    }
    first = next(iter(keys.values()), {})
    return json.dumps({**first, "keys": keys}, separators=(",", ":")).encode("ascii")


def sealed_memfd(data: bytes) -> int:
    """A file in memory that nobody can change any more, open for reading at its start. The caller closes it."""
    writable = os.memfd_create("armorclaw-secrets", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        with os.fdopen(os.dup(writable), "wb") as file:
            file.write(data)
        seals = fcntl.F_SEAL_SEAL | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE
        fcntl.fcntl(writable, fcntl.F_ADD_SEALS, seals)
        return os.open(f"/proc/self/fd/{writable}", os.O_RDONLY | os.O_CLOEXEC)
    finally:
        os.close(writable)


def close_all(fds: list[int]) -> None:
    """Close descriptors and forget their numbers."""
    for fd in fds:
        os.close(fd)
    fds.clear()


def harden_process() -> None:
    """No core file of this process, and no look into its memory by others of the same uid.

    Called before secrets are taken, by those who own the whole process: `Agent.run()` in the main thread of a
    program the bridge started, and the exec wrapper. A debugger cannot attach afterwards. Best effort: what a
    kernel or sandbox refuses here is no reason not to run.
    """
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    with contextlib.suppress(ImportError, OSError, AttributeError):
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
