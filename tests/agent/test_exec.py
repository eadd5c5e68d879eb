"""`python -m armorclaw.agent exec`: any program as an agent, with real children."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from .conftest import FINGERPRINT, KEYS, FakeBridge, Refuse, Spawn, eventually, no_warnings

WRAPPED = ("-m", "armorclaw.agent", "exec")


def wait_ready(bridge: FakeBridge) -> None:
    bridge.wait_for("agent.ready")
    bridge.wait(lambda: bridge._session is not None)


def wait_line(process: subprocess.Popen[str], line: str) -> None:
    assert process.stdout is not None
    assert process.stdout.readline() == line + "\n"


def script(code: str) -> list[str]:
    return ["sh", "-c", code]


@pytest.mark.parametrize(
    ("code", "status"), [("exit 0", 0), ("exit 7", 7), ("kill -KILL $$", 128 + 9)], ids=["ok", "seven", "killed"]
)
def test_it_ends_with_the_status_of_the_program(spawn: Spawn, bridge: FakeBridge, code: str, status: int) -> None:
    process = spawn(*WRAPPED, "--", *script(f"echo hello; {code}"))
    out, err = process.communicate(timeout=40)
    assert (process.returncode, out, err) == (status, "hello\n", "")
    assert bridge.of("events.subscribe") == []  # events are the program's to ask for


def test_a_program_that_cannot_be_started(spawn: Spawn, tmp_path: Path) -> None:
    process = spawn(*WRAPPED, "--", "/no/such/program")
    _, err = process.communicate(timeout=40)
    assert (process.returncode, err) == (127, "armorclaw: /no/such/program: no such program\n")
    process = spawn(*WRAPPED, "--", str(tmp_path))
    _, err = process.communicate(timeout=40)
    assert (process.returncode, err) == (126, f"armorclaw: {tmp_path}: may not be run\n")


def test_a_refusal_of_the_bridge(spawn: Spawn, bridge: FakeBridge) -> None:
    def refuse(params: Any) -> Any:
        raise Refuse(-32001, "denied")

    bridge.script["secrets.take"] = refuse
    process = spawn(*WRAPPED, "--", "true")
    _, err = process.communicate(timeout=40)
    assert (process.returncode, err) == (1, "armorclaw: refused: denied\n")


def test_secrets_come_in_a_sealed_file_and_nowhere_else(spawn: Spawn, bridge: FakeBridge) -> None:
    code = 'cat "$ARMORCLAW_SECRETS_PATH"; echo; cat <&"$ARMORCLAW_SECRETS_FD"; echo; env; exec sleep 60'
    process = spawn(*WRAPPED, "--", "bash", "-c", code)
    assert process.stdout is not None
    lines = [json.loads(process.stdout.readline()) for _ in range(2)]
    assert lines[0] == lines[1] == {**KEYS["keys"]["openai-default"], **KEYS}
    ready = bridge.wait_for("agent.ready")[0]
    assert ready["fingerprint"] == FINGERPRINT
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    for pid in [process.pid, *map(int, children)]:
        for place in ("environ", "cmdline"):
            assert b"canary" not in Path(f"/proc/{pid}/{place}").read_bytes()
    process.terminate()
    assert "canary" not in process.communicate(timeout=40)[0]


def test_keys_in_the_environment_only_where_asked_for(spawn: Spawn) -> None:
    process = spawn(*WRAPPED, "--env-keys", "--", *script('echo "$OPENAI_API_KEY $ARMORCLAW_PROVIDER"'))
    assert process.communicate(timeout=40)[0] == "sk-canary-1 openai\n"


@pytest.mark.parametrize("polite", [True, False], ids=["request", "notification"])
def test_pings_are_answered_and_a_shutdown_ends_the_program(spawn: Spawn, bridge: FakeBridge, polite: bool) -> None:
    process = spawn(*WRAPPED, "--", *script('trap "echo bye; exit 5" TERM; echo up; while :; do sleep 0.05; done'))
    wait_line(process, "up")
    wait_ready(bridge)
    assert bridge.ask("agent.ping")["result"] == {"pong": True}
    if polite:
        assert bridge.ask("agent.shutdown")["result"] == {}
    else:
        bridge.tell("agent.shutdown", {})
    out, err = process.communicate(timeout=40)
    assert (process.returncode, out) == (5, "bye\n")
    no_warnings(err)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1])
def test_signals_are_passed_on(spawn: Spawn, number: signal.Signals) -> None:
    name = number.name.removeprefix("SIG")
    process = spawn(*WRAPPED, "--", *script(f'trap "exit 9" {name}; echo up; while :; do sleep 0.05; done'))
    wait_line(process, "up")
    process.send_signal(number)
    assert process.wait(30) == 9


def test_the_program_stays_in_the_session_it_is_known_by(spawn: Spawn) -> None:
    process = spawn(*WRAPPED, "--", "cat", "/proc/self/stat")
    session = os.getsid(process.pid)
    out, _ = process.communicate(timeout=40)
    assert int(out.rpartition(")")[2].split()[3]) == session


def test_a_bridge_that_restarts_is_found_again(spawn: Spawn, bridge: FakeBridge) -> None:
    process = spawn(*WRAPPED, "--", *script("echo up; exec sleep 60"))
    wait_line(process, "up")
    wait_ready(bridge)
    bridge.stop()
    bridge.start()
    bridge.wait_for("agent.ready", 2)
    assert [ready["fingerprint"] for ready in bridge.of("agent.ready")] == [FINGERPRINT] * 2
    bridge.wait(lambda: bridge._session is not None)
    assert bridge.ask("agent.ping")["result"] == {"pong": True}
    process.terminate()
    assert process.wait(30) == 128 + 15


def test_sigterm_before_there_is_a_bridge(spawn: Spawn, bridge: FakeBridge) -> None:
    bridge.stop()
    process = spawn(*WRAPPED, "--", "true")
    assert process.stderr is not None
    assert "waiting for the bridge" in process.stderr.readline()
    process.terminate()
    assert process.wait(30) == 128 + 15


@pytest.mark.skipif(
    os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root and unshare: apt-get install util-linux"
)
def test_as_pid_1_it_reaps_orphans(spawn: Spawn, tmp_path: Path) -> None:
    """A program whose grandchildren lose their parent: PID 1 gets them, and none stays a zombie."""
    ends = tmp_path / "ends"
    ends.touch()
    orphans = f"for n in 1 2 3 4 5 6; do ( (sleep 0.1; echo >>{ends}) & ) ; done; "
    count = f"ended=$(wc -l <{ends}); zombies=$(cat /proc/[0-9]*/stat 2>/dev/null | grep -c ') Z '); "
    wait = f'for n in $(seq 200); do {count}[ "$ended $zombies" = "6 0" ] && break; sleep 0.05; done; '
    tell = "echo $ended $zombies; tr '\\0' ' ' </proc/1/cmdline"
    process = spawn(
        *WRAPPED, "--", *script(orphans + wait + tell), prefix=("unshare", "--pid", "--fork", "--mount-proc")
    )
    out, err = process.communicate(timeout=60)
    assert process.returncode == 0
    no_warnings(err)
    assert out.startswith("6 0\n")
    assert "armorclaw.agent exec" in out  # it really was PID 1


# --per-message


def test_per_message_feeds_stdin_and_sends_stdout(spawn: Spawn, bridge: FakeBridge) -> None:
    code = 'printf "%s|%s|%s|" "$ARMORCLAW_SENDER" "$ARMORCLAW_ROOM_ID" "$ARMORCLAW_EVENT_ID"; tr a-z A-Z; echo; echo'
    process = spawn(*WRAPPED, "--per-message", "--", *script(code))
    seqs = [bridge.say("good ☀ morning"), bridge.say("x" * 50_000, room="!two:x")]
    bridge.wait_acked(*seqs)
    sent = {params["room_id"]: params for params in bridge.of("matrix.send")}
    assert sent["!one:example.org"]["message"] == "@p:example.org|!one:example.org|$1|GOOD ☀ MORNING"
    assert sent["!one:example.org"]["idempotency_key"] == "$1:1"
    assert sent["!two:x"]["message"].endswith("X" * 50_000)
    process.terminate()
    _, err = process.communicate(timeout=40)
    assert (process.returncode, err) == (0, "")


def test_per_message_a_failure_is_told_and_tried_again(spawn: Spawn, bridge: FakeBridge) -> None:
    code = "read line; case $line in silent) ;; *) echo partial; exit 3;; esac"
    process = spawn(*WRAPPED, "--per-message", "--", *script(code))
    bad, silent = bridge.say("bad", room="!a:x"), bridge.say("silent", room="!c:x")
    bridge.wait_for("events.ack", 2)
    bridge.wait_acked(silent)
    (report,) = bridge.wait_for("agent.error")
    assert report["message"].endswith("failed: ProgramError: sh ended with status 3")
    assert bridge.acked == {silent}
    assert {ack["seq"]: ack.get("nack_ms") for ack in bridge.of("events.ack")} == {bad: 1000, silent: None}
    assert bridge.of("matrix.send") == []
    process.terminate()
    _, err = process.communicate(timeout=40)
    assert process.returncode == 0
    assert "armorclaw: sh ended with status 3; <Message m.room.message $1 in !a:x> will come again" in err
    assert "Traceback" not in err
    no_warnings(err)


def test_per_message_a_program_that_runs_long_is_said_to() -> None:
    """Now and then, whether it prints or not: so its message does not come again meanwhile."""
    code = (
        "import os, subprocess, time\n"
        "from armorclaw.agent.children import Children\n"
        "for program in ('sleep 0.5; echo done', 'for i in 1 2 3 4 5; do echo $i; sleep 0.1; done; echo done'):\n"
        "    told = []\n"
        "    child = Children(lambda: None).spawn(['sh', '-c', program], os.environ, stdout=subprocess.PIPE)\n"
        "    began = time.monotonic()\n"
        "    output = child.output(1000, 40, running=lambda: told.append(1), every=0.1)\n"
        "    most = (time.monotonic() - began) / 0.1 + 1\n"
        "    print(output.endswith(b'done\\n'), 1 <= len(told) <= most)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.split() == ["True"] * 4


def test_per_message_secrets_are_whole_for_each(spawn: Spawn, bridge: FakeBridge) -> None:
    spawn(*WRAPPED, "--per-message", "--", "bash", "-c", 'sleep 0.1; wc -c <&"$ARMORCLAW_SECRETS_FD"')
    bridge.wait_acked(*(bridge.say("x", room=f"!{n}:x") for n in range(4)))
    sizes = {sent["message"] for sent in bridge.of("matrix.send")}
    assert len(sizes) == 1
    assert int(sizes.pop()) > 50


def test_per_message_programs_that_hang_do_not_outlive_it(spawn: Spawn, bridge: FakeBridge, tmp_path: Path) -> None:
    pid_file = tmp_path / "pid"
    process = spawn(*WRAPPED, "--per-message", "--", *script(f"echo $$ >{pid_file}; exec sleep 60"))
    bridge.say("x")
    eventually(lambda: pid_file.exists() and pid_file.read_text().strip(), "the program")
    pid = int(pid_file.read_text())
    process.terminate()
    _, err = process.communicate(timeout=40)
    assert process.returncode == 0
    assert "1 handlers did not finish within 4 s" in err
    eventually(lambda: not Path(f"/proc/{pid}").exists(), "the end of the program")
    assert not bridge.acked


def test_per_message_something_left_in_the_background_holds_nothing_up(
    spawn: Spawn, bridge: FakeBridge, tmp_path: Path
) -> None:
    pid_file = tmp_path / "pid"
    code = f"read line; sleep 60 & echo $! >>{pid_file}; echo answer to $line"
    process = spawn(*WRAPPED, "--per-message", "--", *script(code))
    bridge.wait_acked(bridge.say("one"), bridge.say("two"))  # of one room: the second waits for the first
    assert [sent["message"] for sent in bridge.of("matrix.send")] == ["answer to one", "answer to two"]
    for pid in map(int, pid_file.read_text().split()):
        os.kill(pid, signal.SIGKILL)  # it was still there
    process.terminate()
    _, err = process.communicate(timeout=40)
    assert (process.returncode, err) == (0, "")


def test_per_message_what_closes_its_output_is_waited_for(spawn: Spawn, bridge: FakeBridge) -> None:
    spawn(*WRAPPED, "--per-message", "--", *script("echo partial; exec >&-; sleep 0.2; exit 3"))
    seq = bridge.say("x")
    assert bridge.wait_for("events.ack")[0] == {**bridge.of("events.ack")[0], "seq": seq, "nack_ms": 1000}
    assert bridge.of("matrix.send") == []


@pytest.mark.parametrize("code", ["sleep 60", "yes"], ids=["silent", "prints without end"])
def test_per_message_too_slow_is_killed_with_its_group_and_comes_again(
    spawn: Spawn, bridge: FakeBridge, tmp_path: Path, code: str
) -> None:
    pid_file = tmp_path / "pid"
    code = f"trap '' TERM; sleep 60 & echo $! $$ >{pid_file}; {code}; echo too late"
    process = spawn(*WRAPPED, "--per-message", "--timeout", "3", "--", *script(code))
    seq = bridge.say("x")
    ack = bridge.wait_for("events.ack")[0]
    assert (ack["seq"], ack["nack_ms"]) == (seq, 1000)
    for pid in pid_file.read_text().split():
        eventually(partial(ended, int(pid)), "the end of the program and of what it started")
    assert bridge.of("matrix.send") == []
    process.terminate()
    _, err = process.communicate(timeout=40)
    assert process.returncode == 0
    assert "armorclaw: sh did not end within 3 s and was killed; <Message m.room.message $1" in err
    no_warnings(err)


def ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


@pytest.mark.parametrize("seconds", ["0", "-1", "nan", "inf", "soon"])
def test_a_timeout_is_a_number_of_seconds(spawn: Spawn, seconds: str) -> None:
    process = spawn(*WRAPPED, "--per-message", f"--timeout={seconds}", "--", "true")
    _, err = process.communicate(timeout=40)
    assert process.returncode == 2
    assert "--timeout" in err


@pytest.mark.parametrize(
    "code",
    [
        "head -c 250000 /dev/zero",
        "yes ☀ | head -n 40000",
        "yes | head -c 10000000",
        "printf a; yes '' | head -c 250000",
    ],
    ids=["escapes", "not ASCII", "much", "line ends"],
)
def test_per_message_too_much_is_cut_not_tried_for_ever(spawn: Spawn, bridge: FakeBridge, code: str) -> None:
    process = spawn(*WRAPPED, "--per-message", "--", *script(code))
    bridge.wait_acked(bridge.say("x"))
    assert [ack.get("nack_ms") for ack in bridge.of("events.ack")] == [None]
    [sent] = bridge.of("matrix.send")
    text, note = sent["message"].rsplit("\n", 1)
    assert note == "[cut: the rest is too long]"
    assert 230_000 < len(json.dumps(sent["message"])) <= 240_000
    assert len(sent["message"]) <= 256 * 1024  # what the bridge takes
    assert "\ufffd" not in text
    process.terminate()
    assert "printed more than an answer may have" in process.communicate(timeout=40)[1]


def test_per_message_what_just_fits_is_whole(spawn: Spawn, bridge: FakeBridge) -> None:
    spawn(*WRAPPED, "--per-message", "--", *script("yes '' | head -c 100; head -c 239798 /dev/zero | tr '\\0' x"))
    bridge.wait_acked(bridge.say("x"))
    assert bridge.of("matrix.send")[0]["message"] == "\n" * 100 + "x" * 239_798


@pytest.mark.parametrize(("code", "format"), [("echo '*yes*'", "markdown"), ("yes | head -c 130000", None)])
def test_per_message_what_it_prints_may_be_markdown(
    spawn: Spawn,
    bridge: FakeBridge,
    code: str,
    format: str | None,  # noqa: A002
) -> None:
    spawn(*WRAPPED, "--per-message", "--markdown", "--", *script(code))
    bridge.wait_acked(bridge.say("x"))
    [sent] = bridge.of("matrix.send")
    assert sent.get("format") == format
