"""Every method of the mission's table over a real socket, as clients in the field call it.

No client of ours is used here: bytes go in and bytes come out.
"""

from __future__ import annotations

import base64
import json
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from armorclaw.testing.handles import BridgeProcess, wait_until
from armorclaw.testing.homeserver import Homeserver
from armorclaw.testing.plugin import missing
from tests.e2e.field import ATTACHED, KEY, PATIENCE, STARTED, Field, FieldClient, LateError, check, error_of, in_time

TOKEN = "sk-canary-contract-51b9"


@pytest.fixture(scope="module")
def field(homeserver: Homeserver) -> Iterator[Field]:
    made = Field(homeserver)
    yield made
    made.end()


@pytest.mark.mission("C.status")
@in_time
def test_status(field: Field) -> None:
    account = {
        "account": str,
        "homeserver": str,
        "state": str,
        "connected": bool,
        "user_id": (str, None),
        "device_id": (str, None),
        "reason": str,
        "last_sync_s": (float, None),
        "rooms_missing": [str],
        "encryption": str,
        "undecryptable_waiting": int,
        "decrypt_failures": int,
        "sends_waiting": int,
        "deaf": bool,
        "signed": (bool, None),
        "hint": str,
    }
    agent = {
        "name": str,
        "state": str,
        "runtime": str,
        "image": (str, None),
        "container_id": (str, None),
        "generation": int,
        "since_ms": (int, None),
        "ready": bool,
        "last_end": str,
        "restarts": int,
        "status": str,
        "cpu_percent": (float, None),
        "memory_bytes": (int, None),
        "rooms": [str],
        "account": str,
    }
    status = check(
        field.client.call("status"),
        {
            "version": str,
            "state": "running",
            "socket": str(field.bridge.socket),
            "containers": int,
            "container_ids": [str],
            "uptime_s": int,
            "accounts": [account],
            "agents": [agent],
        },
    )
    assert status["containers"] == len(status["container_ids"]) >= 1


@pytest.mark.mission("C.health")
@in_time
def test_health(field: Field) -> None:
    health = check(field.client.call("health"), {"status": ("healthy", "degraded"), "reasons": [str]})
    assert (health["status"] == "healthy") == (health["reasons"] == [])


@pytest.mark.mission("C.store_key", "C.list_keys", "C.get_key")
@in_time
def test_keys(field: Field) -> None:
    """store_key without an id, list_keys as a bare array, get_key with the token; each refusal has its code."""
    client = field.client
    stored = check(
        client.call("store_key", provider="anthropic", token=TOKEN, display_name="für alle", tags=["a"]),
        {"id": "anthropic-default", "key_id": "anthropic-default", "provider": "anthropic", "created_at": int},
    )
    listed = check(client.call("list_keys"), [KEY])
    assert TOKEN not in json.dumps(listed)
    (key,) = check(client.call("list_keys", provider="anthropic"), [KEY])
    assert key["display_name"] == "für alle"
    assert client.call("list_keys", provider="unknown") == []
    got = check(client.call("get_key", id=stored["key_id"]), {**KEY, "token": TOKEN})
    assert {**got, "token": None} == {**key, "token": None}
    assert client.refusal("get_key", id="none")["code"] == -3
    assert client.refusal("get_key")["code"] == -32602
    assert client.refusal("store_key", provider="Not A Provider", token=TOKEN)["code"] == -32602
    client.call("store_key", id="old", provider="xai", token=TOKEN, expires_at=1)
    expired = client.refusal("get_key", id="old")
    assert (expired["code"], expired["message"].endswith("expired")) == (-3, True)
    assert client.call("rotate_key", id="old", token=TOKEN, expires_at=0)["expires_at"] == 0
    assert client.call("delete_key", id="old") == {"status": "deleted", "id": "old"}
    for error in (expired, client.refusal("delete_key", id="old")):
        assert TOKEN not in json.dumps(error)


@pytest.mark.mission("C.start", "C.stop")
@in_time
def test_start_and_stop(field: Field) -> None:
    """With the members the field sends: agent_type names a declared agent; `stop` takes the container's id."""
    client = field.client
    client.call("store_key", id="start", provider="openai", token=TOKEN)
    client.call("stop", container_id="listener")
    started = check(client.call("start", key_id="start", agent_type="listener"), STARTED)
    assert started["status"] in ("running", "starting", "stopping")  # the latter two after 3.5 s
    wait_until(lambda: field.listener()["state"] == "running", PATIENCE, "it runs")
    container_id = field.listener()["container_id"]
    assert started["container_id"] == container_id or started["status"] != "running"
    assert container_id in client.call("status")["container_ids"]
    check(
        client.call("stop", container_id=container_id),
        {
            "status": ("stopped", "stopping"),
            "container_id": container_id,
            "container_name": started["container_name"],
            "name": "listener",
        },
    )
    wait_until(lambda: field.listener()["state"] == "stopped", PATIENCE, "it is stopped")
    assert client.refusal("stop", container_id="none")["code"] == -2
    assert client.refusal("stop")["code"] == -32602
    assert client.refusal("start", key_id="start")["code"] == -32602  # whom?
    assert client.refusal("start", agent_type="listener", key_id="none")["code"] == -3
    assert client.refusal("start", agent_type="nobody")["code"] == -2


@pytest.mark.mission("C.attach_config", "C.list_configs")
@in_time
def test_configs(field: Field) -> None:
    client = field.client
    assert client.call("list_configs") == []
    text = check(client.call("attach_config", name="a.env", content="A=é", encoding="raw"), ATTACHED)
    assert (text["path"], text["size"], text["type"]) == ("/config/shared/a.env", 4, "")
    content = base64.b64encode(bytes(740 * 1024)).decode()
    most = check(
        client.call("attach_config", name="b", content=content, encoding="base64", type="x", metadata={"k": "v"}),
        ATTACHED,
    )
    assert (most["size"], most["metadata"]) == (740 * 1024, {"k": "v"})
    listed = check(client.call("list_configs"), [{**ATTACHED, "modified": str}])
    assert [{**each, "modified": ""} for each in listed] == [{**each, "modified": ""} for each in (text, most)]
    for name in ("../../../etc/passwd", "/etc/passwd", "a/b", "x" * 256):
        assert client.refusal("attach_config", name=name, content="x")["code"] == -32602
    assert client.refusal("attach_config", name="no-content")["code"] == -32602
    assert client.refusal("attach_config", content="x")["code"] == -32602
    assert str(field.bridge.folder) not in json.dumps(listed)


def test_a_config_too_large_for_one_message_is_told_the_way(field: Field) -> None:
    content = base64.b64encode(bytes(800 * 1024)).decode()
    request = {"jsonrpc": "2.0", "id": 1, "method": "attach_config", "params": {"name": "c", "content": content}}
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(str(field.bridge.socket))
        sock.sendall(json.dumps(request).encode() + b"\n")
        (line,) = sock.makefile("rb").readlines()  # and then it is closed
    error = json.loads(line)["error"]
    assert (error["code"], error["data"]["limit"]) == (-32600, 1024 * 1024)
    assert "$/upload" in error["message"]


@pytest.mark.mission("C.attach_config", "C.streaming")
@in_time
def test_a_config_of_more_than_one_message(field: Field) -> None:
    """With docs/protocol.md and a socket: eight pieces, then as many as are granted; one answer at the end."""
    piece, pieces = 192 * 1024, 40
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(str(field.bridge.socket))
        lines = sock.makefile("rb")

        def send(message: Any) -> None:
            sock.sendall(json.dumps({"jsonrpc": "2.0", **message}).encode() + b"\n")

        send({"id": "up", "method": "attach_config", "params": {"name": "large", "agent": "listener"}})
        credit = 8
        for seq in range(pieces):
            while not credit:
                granted = json.loads(lines.readline())
                assert (granted["method"], granted["params"]["id"]) == ("$/uploadCredit", "up")
                credit += granted["params"]["chunks"]
            credit -= 1
            data = base64.b64encode(bytes([seq]) * piece).decode()
            params = {"id": "up", "seq": seq, "data": data, **({"end": True} if seq == pieces - 1 else {})}
            send({"method": "$/upload", "params": params})
        answer: dict[str, Any] = {}
        while "result" not in answer:
            answer = json.loads(lines.readline())
            assert answer.get("method") in (None, "$/uploadCredit"), answer
    assert check(answer["result"], ATTACHED)["size"] == piece * pieces
    (listed,) = [each for each in field.client.call("list_configs") if each["name"] == "large"]
    assert (listed["path"], listed["size"]) == ("/config/large", piece * pieces)


@pytest.mark.mission("C.matrix.status")
@in_time
def test_matrix_status(field: Field) -> None:
    status = check(
        field.client.call("matrix.status"),
        {
            "enabled": True,
            "status": "connected",
            "user_id": field.bridge.user_id,
            "logged_in": True,
            "reason": str,
            "accounts": list,
        },
    )
    assert [each["account"] for each in status["accounts"]] == ["main"]


@pytest.mark.mission("C.matrix.send", "C.matrix.receive", "M.receive")
@in_time
def test_matrix_send_and_receive(field: Field) -> None:
    client = field.client
    client.call("matrix.receive")  # what was said before
    body = "grüße \U0001f980 " + "x" * 5000  # no client in the field survives a character cut in two
    said = field.person.send(field.room, body)
    event = {"type": str, "room_id": str, "sender": str, "content": dict, "origin_server": str, "event_id": str}
    shape = {"events": [event], "count": int, "cursor": str}
    events: list[Any] = []

    def heard_it() -> bool:
        got = check(client.call("matrix.receive"), shape)
        assert got["count"] == len(got["events"])
        events.extend(got["events"])
        return any(each["event_id"] == said for each in events)

    wait_until(heard_it, PATIENCE, "it is heard")
    (heard,) = [each for each in events if each["event_id"] == said]
    assert (heard["content"]["body"], heard["sender"]) == (body, field.person.user_id)
    sent = check(
        client.call("matrix.send", room_id=field.room, message="pong"),
        (
            {"event_id": str, "room_id": field.room, "delivery_id": str, "status": "sent"},
            {"event_id": None, "room_id": field.room, "delivery_id": str, "status": "queued"},  # after 3.5 s
        ),
    )

    def arrived() -> dict[str, Any] | None:
        state: dict[str, Any] = client.call("delivery.status", delivery_id=sent["delivery_id"])
        return state if state["state"] in ("sent", "delivered") else None

    state = wait_until(arrived, PATIENCE, "it is sent")
    check(state["event_id"], str)
    assert sent["event_id"] in (state["event_id"], None)
    listed = [each for name in ("sent", "delivered") for each in client.call("delivery.list", state=name)]
    assert sent["delivery_id"] in [each["delivery_id"] for each in listed]
    assert client.refusal("matrix.send", room_id="no room", message="x")["code"] == -32602
    assert client.refusal("matrix.send", message="x")["code"] == -32602
    # the longest poll there is, asked for as one version of the client does
    waiting = check(client.call("matrix.receive", cursor="", timeout_ms=30_000), shape)
    assert waiting["count"] <= 10


@pytest.mark.mission("C.matrix.login")
@in_time
def test_matrix_login(field: Field) -> None:
    client, user_id = field.client, field.bridge.user_id
    password = (field.bridge.folder / "password").read_text()
    later = {"status": "logging_in", "user_id": None}  # after 3.5 s
    answer = check(
        client.call("matrix.login", username=user_id, password=password),
        ({"status": "logged_in", "user_id": user_id}, later),
    )
    assert password not in json.dumps(answer)

    def connected() -> bool:
        status = client.call("matrix.status")
        return (status["status"], status["logged_in"], status["user_id"]) == ("connected", True, user_id)

    wait_until(connected, PATIENCE, "it is connected")

    def refused() -> dict[str, Any] | None:
        answer = client.answer("matrix.login", {"username": user_id, "password": "wrong" + TOKEN})
        if "result" in answer:
            check(answer["result"], later)
            return None
        return error_of(answer)

    error = wait_until(refused, PATIENCE, "another password is refused")
    assert error["data"]["name"] in ("matrix_login_failed", "unavailable")  # or the homeserver limits the rate
    assert TOKEN not in json.dumps(error)
    wait_until(connected, PATIENCE, "it still is connected")
    assert client.refusal("matrix.login", username="x")["code"] == -32602


CALLS: dict[str, dict[str, Any]] = {
    "webrtc.start": {"room_id": "!a:x", "ttl": "10m"},
    "webrtc.end": {"session_id": "sess_0123456789abcdef", "reason": "bye"},
    "webrtc.ice_candidate": {
        "session_id": "sess_0123456789abcdef",
        "candidate": {"candidate": "candidate:1", "sdpMid": "0", "sdpMLineIndex": 0},
    },
    "webrtc.list": {},
    "webrtc.get_audit_log": {"limit": 100},
}


@pytest.mark.parametrize("method", CALLS)
@in_time
def test_voice_calls_say_that_they_are_not_there_yet(field: Field, method: str) -> None:
    error = field.client.refusal(method, **CALLS[method])
    assert (error["code"], error["data"]["name"], error["data"]["retryable"]) == (-32009, "not_available", False)


@pytest.mark.parametrize(
    "written",
    [
        pytest.param(lambda request: json.dumps(request), id="without a newline"),
        pytest.param(lambda request: json.dumps(request, indent=2) + "\n", id="pretty-printed"),
        pytest.param(lambda request: json.dumps(request) + "\r\n", id="CRLF"),
    ],
)
@pytest.mark.parametrize("closes", [True, False])
def test_as_shells_and_other_programs_write_it(field: Field, written: Callable[[Any], str], closes: bool) -> None:
    """`echo … | socat` closes its half after the request, and reads on."""
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(PATIENCE)
        sock.connect(str(field.bridge.socket))
        for number, method in enumerate(("get_key", "health"), 1):
            sock.sendall(written({"jsonrpc": "2.0", "id": number, "method": method, "params": {}}).encode())
        if closes:
            sock.shutdown(socket.SHUT_WR)
        answers: dict[int, Any] = {}
        lines = sock.makefile("rb")
        while len(answers) < 2:
            answer = json.loads(lines.readline())
            answers[answer["id"]] = answer
    assert answers[1]["error"]["code"] == -32602
    assert "result" in answers[2]


@in_time
def test_all_in_time_when_all_behind_it_hangs(armorclaw_folder: Path) -> None:
    """A homeserver and a container engine that take connections and never say a word."""
    folder = Path(tempfile.mkdtemp(dir=armorclaw_folder))  # of this attempt
    with socket.socket(socket.AF_INET) as tcp, socket.socket(socket.AF_UNIX) as engine:
        tcp.bind(("127.0.0.1", 0))
        engine.bind(str(folder / "engine.sock"))
        for each in (tcp, engine):
            each.listen(128)
        password = folder / "password"
        password.write_text("x")
        password.chmod(0o400)
        where = f"http://127.0.0.1:{tcp.getsockname()[1]}"
        bridge = BridgeProcess(
            folder,
            {
                "bridge": {
                    "state_dir": folder / "state",
                    "runtime_dir": folder / "run",
                    "engine_socket": folder / "engine.sock",
                },
                "accounts": {"main": {"homeserver": where, "user": "bot", "password_file": password}},
                "agents": {"ada": {"image": "i", "runtime": "docker"}},
            },
        )
        bridge.start(connected=False)
        try:
            _call_all(bridge)
        finally:
            bridge.kill()


def _call_all(bridge: BridgeProcess) -> None:
    calls: list[tuple[str, dict[str, Any]]] = [
        ("status", {}),
        ("health", {}),
        ("store_key", {"provider": "openai", "token": "t"}),
        ("list_keys", {}),
        ("get_key", {"id": "none"}),
        ("attach_config", {"name": "a", "content": "x"}),
        ("list_configs", {}),
        ("start", {"name": "ada"}),
        ("start", {"name": "bob", "image": "i", "runtime": "docker"}),
        ("start", {"name": "carl", "image": "i"}),
        ("stop", {"name": "ada"}),
        ("containers.restart", {"name": "ada"}),
        ("matrix.status", {}),
        ("matrix.send", {"room_id": "!a:x", "message": "x"}),
        ("matrix.receive", {"timeout_ms": 30_000}),
        ("matrix.login", {"username": "bot", "password": "x"}),
        *CALLS.items(),
    ]
    answers: dict[str, dict[str, Any]] = {}
    failed: list[tuple[str, Any, Exception]] = []

    def one(method: str, params: dict[str, Any]) -> None:
        try:
            answers[method] = FieldClient(bridge.socket).answer(method, params)
        except (AssertionError, OSError) as error:
            failed.append((method, params, error))

    threads = [threading.Thread(target=one, args=each) for each in calls]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    late = [error for _, _, error in failed if isinstance(error, LateError)]
    if late and len(late) == len(failed):
        raise late[0]
    assert failed == []
    queued = answers["matrix.send"]["result"]
    check(queued, {"event_id": None, "room_id": "!a:x", "delivery_id": str, "status": "queued"})
    assert answers["matrix.login"]["result"] == {"status": "logging_in", "user_id": None}
    assert answers["health"]["result"]["status"] == "degraded"


@in_time
def test_a_config_is_readable_inside(field: Field) -> None:
    """Its own and everybody's, at the paths that attach_config answered, by an agent that can change neither."""
    if shutil.which("bwrap") is None:
        missing("bubblewrap is not installed: apt-get install bubblewrap")
    client = field.client
    script = (
        "import pathlib, sys, time\n"
        "def show(path):\n"
        "    try: return path.read_text()\n"
        "    except OSError as error: return error.strerror\n"
        "while True:\n"
        "    for path in map(pathlib.Path, ('/config/own.txt', '/config/shared/all.txt', '/config/late.txt')):\n"
        "        print(path, show(path), flush=True)\n"
        "    try: pathlib.Path('/config/own.txt').write_text('mine')\n"
        "    except OSError as error: print('writing', error.strerror, flush=True)\n"
        "    time.sleep(0.1)\n"
    )
    own = client.call("attach_config", name="own.txt", content="for the reader", agent="reader")
    for_all = client.call("attach_config", name="all.txt", content="for all")
    assert (own["path"], for_all["path"]) == ("/config/own.txt", "/config/shared/all.txt")
    client.call("start", name="reader", command=["/usr/bin/python3", "-S", "-c", script], runtime="sandbox")
    log = Path(field.bridge.config["bridge"]["state_dir"]) / "logs" / "reader.log"
    try:
        wanted = ["/config/own.txt for the reader", "/config/shared/all.txt for all", "writing Read-only file system"]
        _wait_for(log, wanted)
        client.call("attach_config", name="late.txt", content="while it ran", agent="reader")
        client.call("attach_config", name="own.txt", content="anew", agent="reader")
        _wait_for(log, ["/config/late.txt while it ran", "/config/own.txt anew"])
    finally:
        client.call("stop", name="reader")


def _wait_for(log: Path, lines: list[str]) -> None:
    deadline = time.monotonic() + PATIENCE
    while missing_lines := [line for line in lines if not log.exists() or line not in log.read_text()]:
        said = log.read_text()[-500:] if log.exists() else ""
        assert time.monotonic() < deadline, (missing_lines, said)
        time.sleep(0.05)
