"""The way out, whole: real clients in real agents without network, through the bridge, to a server of ours.

With it: how libraries get into agents. A virtual environment for the sandbox, `armorclaw image build` for an engine.
"""

from __future__ import annotations

import datetime
import ipaddress
import shutil
import ssl
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from armorclaw.containers.engines.http import Engine
from armorclaw.containers.images.image import HostFiles, chunks
from armorclaw.rpc.blocking import call
from armorclaw.testing.engines import EngineWithImage
from armorclaw.testing.handles import AgentHandle, BridgeProcess, to_toml, wait_until

AGENT = Path(__file__).with_name("egress_agent.py")
ADDRESS = "127.0.0.2"  # loopback as well, but no client spares it the proxy as it does 127.0.0.1
CLIENTS = ["httpx", "requests", "urllib", "curl", "node"]
LIBRARIES = "httpx\nrequests\nnodejs-wheel>=24\n"
BASE = "armorclaw-egress-base:1"

pytestmark = pytest.mark.timeout(600)  # libraries are fetched, and an image is made of them

PLAIN = """
import ssl, sys, time, urllib.request
context = ssl.create_default_context(cafile="/agent/ca.pem")
with urllib.request.urlopen(sys.argv[1], context=context, timeout=20) as answer:
    print("fetched:", answer.read().decode(), flush=True)
time.sleep(600)
"""


@attrs.frozen
class Server:
    """Serves https:// with a certificate for its address, signed by itself."""

    port: int
    certificate: Path

    @property
    def url(self) -> str:
        return f"https://{ADDRESS}:{self.port}/greeting"


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b"good morning"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def _certificate(folder: Path) -> tuple[Path, Path]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address(ADDRESS))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    certificate, key_file = folder / "ca.pem", folder / "key.pem"
    certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    no_password = serialization.NoEncryption()
    key_file.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, no_password)
    )
    return certificate, key_file


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    certificate, key = _certificate(tmp_path_factory.mktemp("tls"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with ThreadingHTTPServer((ADDRESS, 0), _Handler) as serving:
        serving.socket = context.wrap_socket(serving.socket, server_side=True)
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield Server(serving.server_address[1], certificate)
        serving.shutdown()


@pytest.fixture(scope="module")
def virtualenv() -> Iterator[Path]:
    """With the clients in it, where every agent may read."""
    folder = Path(tempfile.mkdtemp(prefix="armorclaw-venv-", dir="/tmp"))
    folder.chmod(0o755)
    try:
        subprocess.run(["/usr/bin/python3", "-m", "venv", "--without-pip", folder / "venv"], check=True)
        (folder / "requirements.txt").write_text(LIBRARIES)
        pip = [sys.executable, "-m", "pip", "--python", str(folder / "venv/bin/python3"), "install", "--quiet"]
        subprocess.run([*pip, "--disable-pip-version-check", "-r", str(folder / "requirements.txt")], check=True)
        yield folder / "venv"
    finally:
        shutil.rmtree(folder)


async def _base_with_curl(engine_socket: str) -> None:
    python, curl = HostFiles.of_python(), HostFiles.of_program(Path("/usr/bin/curl"))
    async with Engine.open(engine_socket) as engine:
        with tempfile.TemporaryFile() as file:
            HostFiles(curl.files | python.files, python.links).write_tar(file)
            file.seek(0)
            repository, version = BASE.split(":")
            made = await engine.import_image(chunks(file), repository=repository, tag=version)
            await engine.tag_image(made, repository, version)


@pytest.fixture(params=["sandbox", "docker"])
def way(request: pytest.FixtureRequest, armorclaw_folder: Path) -> dict[str, Any]:
    """What makes an agent with the clients in it: keys of its configuration; `engine_socket` is the bridge's."""
    if request.param == "sandbox":
        # Node reserves address space without end, and where there is no control group that is what is limited
        return {"runtime": "sandbox", "python": request.getfixturevalue("virtualenv"), "limits": {"memory": "256g"}}
    engine: EngineWithImage = request.getfixturevalue("docker")
    trio.run(_base_with_curl, engine.socket_path)
    requirements, config = armorclaw_folder / "requirements.txt", armorclaw_folder / "image.toml"
    requirements.write_text(LIBRARIES)
    config.write_text(to_toml({"bridge": {"engine_socket": engine.socket_path}}))
    command = [sys.executable, "-m", "armorclaw", "image", "build", "--config", str(config)]
    built = subprocess.run(
        [*command, "-r", str(requirements), "--base", BASE, "--tag", "armorclaw-clients:1"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (built.returncode, built.stdout) == (0, "armorclaw-clients:1\n"), built.stderr
    return {
        "runtime": "docker",
        "image": "armorclaw-clients:1",
        "engine_socket": engine.socket_path,
        "limits": {"memory": "1g"},
    }


def bridge_with(folder: Path, server: Server, way: dict[str, Any], **agent: Any) -> BridgeProcess:
    code = folder / "code"
    code.mkdir()
    shutil.copy(AGENT, code / "main.py")
    shutil.copy(server.certificate, code / "ca.pem")
    (code / "plain.py").write_text(PLAIN)
    section: dict[str, Any] = {"state_dir": folder / "state", "runtime_dir": folder / "run"}
    way = dict(way)
    if "engine_socket" in way:
        section["engine_socket"] = way.pop("engine_socket")
    declared = {"code": code, "egress": [f"{ADDRESS}:{server.port}"], **way, **agent}
    return BridgeProcess(folder, {"bridge": section, "agents": {"ada": declared}})


def fetch(bridge: BridgeProcess, client: str, url: str) -> dict[str, str]:
    asked = {"agent": "ada", "method": "fetch", "params": {"client": client, "url": url}}
    answer: dict[str, str] = call(str(bridge.socket), "agent.call", asked, timeout=60.0)
    return answer


def test_clients_reach_what_is_allowed_and_nothing_else(
    armorclaw_folder: Path, server: Server, way: dict[str, Any]
) -> None:
    with bridge_with(armorclaw_folder, server, way) as bridge:
        AgentHandle("ada", bridge).wait_ready(seconds=60)
        for client in CLIENTS:
            assert fetch(bridge, client, server.url) == {"text": "good morning"}, client
        for client in CLIENTS:
            refused = fetch(bridge, client, f"https://{ADDRESS}:4433/")
            assert "403" in refused["error"], (client, refused)
        # the words of the refusal arrive with those that show them
        for client in ("httpx", "requests", "urllib"):
            assert "is not allowed" in fetch(bridge, client, "https://example.org/")["error"], client


def test_a_wrapped_program_goes_out_as_well(armorclaw_folder: Path, server: Server) -> None:
    command = ["python3", "-m", "armorclaw.agent", "exec", "--", "python3", "/agent/plain.py", server.url]
    with bridge_with(armorclaw_folder, server, {"runtime": "sandbox"}, command=command) as bridge:
        handle = AgentHandle("ada", bridge)
        handle.wait_ready()
        log = armorclaw_folder / "said"
        with log.open("wb") as file:
            verb = [
                sys.executable,
                "-m",
                "armorclaw",
                "containers",
                "logs",
                "ada",
                "-f",
                "--socket",
                str(bridge.socket),
            ]
            with subprocess.Popen(verb, stdout=file) as following:
                try:
                    wait_until(lambda: b"fetched: good morning" in log.read_bytes(), 30, "it has fetched it")
                finally:
                    following.kill()


def test_without_permission_there_is_no_way_out(armorclaw_folder: Path, server: Server) -> None:
    with bridge_with(armorclaw_folder, server, {"runtime": "sandbox"}, egress=[]) as bridge:
        AgentHandle("ada", bridge).wait_ready()
        assert "Network is unreachable" in fetch(bridge, "urllib", "https://192.0.2.1/")["error"]
        assert "text" not in fetch(bridge, "urllib", server.url)
