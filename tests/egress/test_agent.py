"""A real agent in a real sandbox without network, a real bridge, a real TLS server."""

from __future__ import annotations

import shutil
import ssl
import textwrap
from pathlib import Path
from typing import Any

import pytest
import trio

from armorclaw.bridge import Bridge, open_bridge
from armorclaw.config import Config
from armorclaw.testing.plugin import missing
from tests.egress.conftest import Certificate

pytestmark = [pytest.mark.mission("P0.1"), pytest.mark.engine("sandbox")]

AGENT = """
import os, pathlib, socket, ssl, sys, time
sys.path.insert(0, os.environ["PYTHONPATH"])
allowed, cafile = open("/config/allowed").read(), "/config/cert.pem"

def proxy(target):
    door = socket.socket(socket.AF_UNIX)
    door.connect(os.environ["ARMORCLAW_EGRESS_SOCKET"])
    door.sendall(f"CONNECT {target} HTTP/1.1\\r\\nHost: {target}\\r\\n\\r\\n".encode())
    head = b""
    while b"\\r\\n\\r\\n" not in head:
        head += door.recv(1)
    return door, head.split(b"\\r\\n")[0].decode()

def direct(target):
    host, _, port = target.rpartition(":")
    try:
        socket.create_connection((host, int(port)), 2)
        return "reached"
    except OSError as error:
        return "no network"

print("direct:", direct(allowed), flush=True)
door, line = proxy(allowed)
print("allowed:", line, flush=True)
tls = ssl.create_default_context(cafile=cafile).wrap_socket(door, server_hostname="127.0.0.1")
tls.sendall(b"GET / HTTP/1.1\\r\\nHost: x\\r\\n\\r\\n")
print("said:", tls.recv(100).decode(), flush=True)
tls.close()
host, _, port = allowed.rpartition(":")
for other in (f"{host}:{int(port) ^ 1}", "169.254.169.254:80", "evil.example:443"):
    print("refused:", proxy(other)[1], flush=True)
print("done", flush=True)
time.sleep(60)
"""


async def records_with(bridge: Bridge, kind: str) -> list[dict[str, Any]]:
    """What the audit trail has of egress, once it has one of this kind."""
    with trio.fail_after(20):
        while True:
            found = await bridge.database.read(lambda db: bridge.audit.tail(db, 200))
            if any(each.kind == kind for each in found):
                return [{"kind": each.kind, **each.fields} for each in found if each.kind.startswith("egress.")]
            await trio.sleep(0.02)


async def printed(folder: Path, last: str) -> list[str]:
    log = trio.Path(folder / "state/logs/ada.log")
    with trio.fail_after(30):
        while True:
            lines = (await log.read_text()).splitlines() if await log.exists() else []
            assert not any("Error" in line for line in lines), "\n".join(lines)
            if last in lines:
                return lines
            await trio.sleep(0.05)


async def test_it_reaches_what_it_may(folder: Path, certificate: Certificate) -> None:
    if shutil.which("bwrap") is None:
        missing("bubblewrap is not installed; apt install bubblewrap")
    listeners = await trio.open_ssl_over_tcp_listeners(0, certificate.context(), host="127.0.0.1")
    port = listeners[0].transport_listener.socket.getsockname()[1]  # type: ignore[attr-defined]
    heard: list[bytes] = []

    async def answer(stream: trio.SSLStream[trio.SocketStream]) -> None:
        try:
            heard.append(bytes(await stream.receive_some()))
            await stream.send_all(b"hello from outside")
            await stream.receive_some()
        except (trio.BrokenResourceError, ssl.SSLError):
            pass  # it did not say goodbye

    (folder / "agent.py").write_text(textwrap.dedent(AGENT))
    config = Config.parse(
        {
            "bridge": {"state_dir": f"{folder}/state", "runtime_dir": f"{folder}/run"},
            "agents": {
                "ada": {
                    "runtime": "sandbox",
                    "code": f"{folder}/agent.py",
                    "egress": [f"127.0.0.1:{port}"],
                    "ready_timeout": 0.0,
                }
            },
        }
    )
    configs = folder / "state/configs/ada"
    for made in (folder / "state", folder / "state/configs", configs):
        made.mkdir(mode=0o711)
        made.chmod(0o711)
    (configs / "allowed").write_text(f"127.0.0.1:{port}")
    (configs / "cert.pem").write_bytes(certificate.path.read_bytes())
    for file in configs.iterdir():
        file.chmod(0o644)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, answer, listeners)
        async with open_bridge(config) as bridge:
            lines = await printed(folder, "done")
            assert lines[:3] == [
                "direct: no network",
                "allowed: HTTP/1.1 200 Connection established",
                "said: hello from outside",
            ]
            assert heard == [b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"]
            refused = [line.removeprefix("refused: HTTP/1.1 ") for line in lines if line.startswith("refused")]
            assert len(refused) == 3
            assert all(line.startswith("403 armorclaw: ") for line in refused)
            assert refused[2].endswith('add "evil.example:443" to egress in [agents.ada]')

            socket_path = folder / "run/mounts/ada/egress.sock"
            with trio.fail_after(20):
                async with await trio.open_unix_socket(socket_path) as stranger:  # we are not in its container
                    assert (await stranger.receive_some()).startswith(b"HTTP/1.1 403 ")

            kept = await records_with(bridge, "egress.closed")
            closed = [each for each in kept if each["kind"] == "egress.closed"]
            assert [each["kind"] for each in kept].count("egress.opened") == len(closed) == 1
            assert closed[0]["target"] == f"127.0.0.1:{port}"
            assert closed[0]["up"] > 100
            assert closed[0]["down"] > 100
            refusals = [each["verdict"] for each in kept if each["kind"] == "egress.refused"]
            assert refusals == ["not allowed"] * 3
            assert bridge.egress.counts()["ada", "opened"] == (1, closed[0]["up"] + closed[0]["down"])
            assert bridge.egress.counts()["ada", "refused"] == (3, 0)
        nursery.cancel_scope.cancel()
    assert not socket_path.exists()
