"""What an agent in the sandbox can and cannot do: told by code that runs in it, as another uid."""

from __future__ import annotations

import errno
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio

from armorclaw.containers.local import sandbox
from armorclaw.containers.local.base import resource_limits
from armorclaw.containers.local.seccomp import denied_calls
from armorclaw.containers.runtime import Runtime
from armorclaw.containers.snapshot import snapshot_code
from armorclaw.containers.spec import ContainerSpec, Limits, Mount
from armorclaw.errors import ArmorclawError

pytestmark = [
    pytest.mark.mission("P0.1"),
    pytest.mark.engine("bubblewrap"),
    pytest.mark.parametrize("runtime_kind", ["sandbox"], indirect=True),
]

Door = Any  # the class of conftest.py, which test modules cannot import
MakeSpec = Any

TELL = """
def tell(**facts):
    door.sendall(json.dumps(facts).encode())

def attempt(call, *args):
    try:
        call(*args)
    except OSError as error:
        return error.errno
    return 0
"""


@pytest.fixture
def ask(runtime: Runtime, make_spec: MakeSpec, door: Door) -> Any:
    """`await ask(script)`: what `script`, run in a sandbox, says by `tell(**facts)`."""

    async def ask(script: str, **options: Any) -> Any:
        spec = make_spec(TELL + textwrap.dedent(script), **options)
        async with door(spec) as listener, runtime.launch(spec) as running:
            await running.start()
            return await listener.report()

    return ask


async def test_check(runtime: Runtime) -> None:
    facts = await runtime.check()
    assert "bubblewrap 0." in facts
    assert f"{len(denied_calls())} system calls refused" in facts
    assert "memory, processes and processor time limited in total (control groups, version" in facts


@pytest.mark.usefixtures("without_groups")
async def test_check_says_what_does_not_hold_without_groups(runtime: Runtime) -> None:
    facts = await runtime.check()
    assert "NOT in total, processor time NOT limited: no control group, as the test says so" in facts


async def test_no_privileges(ask: Any) -> None:
    seen = await ask(
        """
        tell(status=open("/proc/self/status").read(), me=os.getresuid() + os.getresgid(), groups=os.getgroups())
        """
    )
    status = dict(line.split(":\t", 1) for line in seen["status"].splitlines() if ":\t" in line)
    assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {"0" * 16}
    assert status["NoNewPrivs"] == "1"
    assert status["Seccomp"] == "2"
    assert seen["me"] == [10001] * 6
    assert seen["groups"] == []


async def test_the_uid_outside_is_the_agents(runtime: Runtime, make_spec: MakeSpec, door: Door) -> None:
    spec = make_spec("door.recv(1)")
    async with door(spec) as listener, runtime.launch(spec) as running:
        await running.start()
        _, peer = await listener.accept()
        assert peer.uid == 10001
        status = await trio.Path(f"/proc/{peer.pid}/status").read_text()
        assert "Uid:\t10001\t10001\t10001\t10001" in status


async def test_no_network(ask: Any) -> None:
    seen = await ask(
        """
        def connect(family, address):
            with socket.socket(family, socket.SOCK_STREAM) as s:
                s.settimeout(2)
                s.connect(address)
        tell(
            interfaces=[name for _, name in socket.if_nameindex()],
            outside=attempt(connect, socket.AF_INET, ("192.0.2.1", 80)),
            abstract=attempt(connect, socket.AF_UNIX, "\\0" + os.environ["ABSTRACT"]),
            hypervisor=attempt(socket.socket, 40, socket.SOCK_STREAM),
            packets=attempt(socket.socket, 17, socket.SOCK_RAW),
        )
        """,
        env={"ABSTRACT": "armorclaw-test"},
    )
    assert seen["interfaces"] == ["lo"]
    assert seen["outside"] == errno.ENETUNREACH
    assert seen["abstract"] == errno.ECONNREFUSED
    assert seen["hypervisor"] == seen["packets"] == errno.EAFNOSUPPORT


async def test_an_abstract_socket_of_the_host_is_out_of_reach(ask: Any) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("\0armorclaw-test-abstract")
        listener.listen()
        seen = await ask('tell(got=attempt(socket.socket(socket.AF_UNIX).connect, "\\0armorclaw-test-abstract"))')
    assert seen["got"] == errno.ECONNREFUSED


async def test_sees_its_own_processes_only(ask: Any) -> None:
    seen = await ask('tell(pids=[name for name in os.listdir("/proc") if name.isdigit()], me=os.getpid())')
    assert len(seen["pids"]) == 2  # its own and bubblewrap's reaper
    assert seen["me"] in map(int, seen["pids"])


async def test_writes_to_its_tmp_and_nowhere_else(ask: Any) -> None:
    seen = await ask(
        """
        writable = []
        for folder, folders, files in os.walk("/"):
            if folder == "/":
                folders.remove("proc")
                folders.remove("usr")
            try:
                with open(folder + "/x", "w"):
                    writable.append(folder)
            except OSError:
                pass
        tell(
            writable=writable,
            usr=attempt(open, "/usr/x", "w"),
            socket=attempt(os.unlink, os.environ["ARMORCLAW_SOCKET"]),
            place=attempt(open, os.path.dirname(os.environ["ARMORCLAW_SOCKET"]) + "/x", "w"),
            list=sorted(os.listdir("/")),
            hosts=os.path.exists("/root") or os.path.exists("/home") or os.path.exists("/var"),
        )
        """
    )
    assert set(seen["writable"]) <= {"/tmp", "/dev/pts"}
    assert "/tmp" in seen["writable"]
    assert {seen["usr"], seen["socket"], seen["place"]} == {errno.EROFS}
    assert set(seen["list"]) <= {
        "bin",
        "dev",
        "etc",
        "lib",
        "lib32",
        "lib64",
        "libx32",
        "proc",
        "run",
        "sbin",
        "tmp",
        "usr",
    }
    assert not seen["hosts"]


async def test_tmp_is_bounded(ask: Any) -> None:
    seen = await ask(
        """
        def fill():
            with open("/tmp/x", "wb", buffering=0) as file:
                for _ in range(64):
                    file.write(bytes(1024 * 1024))
        tell(got=attempt(fill), size=os.path.getsize("/tmp/x"))
        """,
        limits=Limits(tmp=2 * 1024 * 1024),
    )
    assert seen["got"] == errno.ENOSPC
    assert seen["size"] <= 2 * 1024 * 1024


@pytest.mark.usefixtures("without_groups")
async def test_limits(ask: Any) -> None:
    seen = await ask(
        """
        import resource
        children = []
        def fork():
            while True:
                pid = os.fork()
                if pid == 0:
                    time.sleep(60)
                    os._exit(0)
                children.append(pid)
        def eat():
            try:
                bytearray(300 * 1024 * 1024)
            except MemoryError:
                return "refused"
        def raise_limit():
            try:
                resource.setrlimit(resource.RLIMIT_NOFILE, (99, 100))
            except ValueError:
                raise OSError(1, "not allowed")
        eaten, forked = eat(), attempt(fork)
        tell(
            limits={name: resource.getrlimit(getattr(resource, "RLIMIT_" + name)) for name in
                ("AS", "CORE", "FSIZE", "NOFILE", "NPROC")},
            forked=forked,
            children=len(children),
            eaten=eaten,
            raised=attempt(raise_limit),
        )
        for pid in children:
            os.kill(pid, 9)
        """,
        limits=Limits(memory=256 * 1024 * 1024, files=64, pids=10),
    )
    most = [256 * 1024 * 1024] * 2
    assert seen["limits"] == {"AS": most, "CORE": [0, 0], "FSIZE": most, "NOFILE": [64, 64], "NPROC": [10, 10]}
    assert seen["forked"] == errno.EAGAIN
    assert 5 <= seen["children"] <= 9
    assert seen["eaten"] == "refused"
    assert seen["raised"] == errno.EPERM


LIMITS = Limits(memory=256 * 1024 * 1024, files=64, pids=10)

# Writes machine code to where the first process, bubblewrap's, is about to return from a system call, so that it
# becomes python3 -c SCRIPT; then wakes it by leaving it an orphan to collect.
TAKE_OVER = """
import struct

def take_over(script):
    words = [b"/usr/bin/python3", b"-S", b"-c", script.encode()]
    until = time.monotonic() + 15
    while True:
        number, *_, counter = open("/proc/1/syscall").read().split()
        if number == "61":  # wait4
            break
        if time.monotonic() > until:
            raise OSError(11, "it does not wait for a child")
        time.sleep(0.01)
    start = int(counter, 16)
    data, places = b"", []
    for word in words:
        places.append(start + 64 + len(data))
        data += word + b"\\0"
    argv = start + 64 + len(data)
    end = argv + 8 * len(words)
    data += struct.pack("<5Q", *places, 0)
    code = b"".join((
        b"\\x48\\xbf", struct.pack("<Q", places[0]),  # mov rdi, path
        b"\\x48\\xbe", struct.pack("<Q", argv),  # mov rsi, argv
        b"\\x48\\xba", struct.pack("<Q", end),  # mov rdx, envp: an empty one
        b"\\xb8\\x3b\\0\\0\\0\\x0f\\x05",  # mov eax, execve; syscall
    ))
    with open("/proc/1/mem", "r+b", buffering=0) as memory:
        memory.seek(start)
        memory.write(code.ljust(64, b"\\x90") + data)
    if os.fork() == 0:
        if os.fork() == 0:
            time.sleep(0.2)  # an orphan by then
        os._exit(0)
    os.wait()
"""

USURPER = """
import json, os, resource, socket, time
door = socket.socket(socket.AF_UNIX)
door.connect(PATH)
held = []
def eat():
    try:
        held.append(bytearray(300 * 1024 * 1024))
    except MemoryError:
        return "refused"
def fork():
    count = 0
    try:
        while count < 50:
            if os.fork() == 0:
                time.sleep(60)
                os._exit(0)
            count += 1
    except OSError as error:
        return count, error.errno
    return count, 0
names = ("AS", "CORE", "FSIZE", "NOFILE", "NPROC")
door.sendall(json.dumps({
    "limits": {name: resource.getrlimit(getattr(resource, "RLIMIT_" + name)) for name in names},
    "me": os.getpid(), "eaten": eat(), "forked": fork(), "status": open("/proc/self/status").read(),
}).encode())
"""


@pytest.mark.usefixtures("without_groups")
async def test_the_first_process_is_limited_like_the_agents(ask: Any) -> None:
    seen = await ask('tell(first=open("/proc/1/limits").read(), own=open("/proc/self/limits").read())', limits=LIMITS)
    assert seen["first"] == seen["own"]


async def test_the_whole_is_limited_by_a_control_group(runtime: Runtime, make_spec: MakeSpec, door: Door) -> None:
    """Also its first process, bubblewrap's; and its address space is its own affair."""
    spec = make_spec("door.recv(1)", limits=LIMITS)
    async with door(spec) as listener, runtime.launch(spec) as running:
        await running.start()
        _, peer = await listener.accept()
        own, first = (said_of(pid, "cgroup") for pid in (peer.pid, parent_of(peer.pid)))
        assert own == first
        assert f"/armorclaw-{spec.instance}/{running.id}" in own
        assert "Max address space         unlimited" in said_of(peer.pid, "limits")
        usage = await running.usage()
        assert usage.memory_limit == LIMITS.memory
    assert groups_of(spec.instance) == []


async def test_memory_is_that_of_all_processes_together(ask: Any) -> None:
    seen = await ask(
        """
        for n in range(4):
            if os.fork() == 0:
                held = bytearray(40 * 1024 * 1024)
                for place in range(0, len(held), 4096): held[place] = 1
                time.sleep(60)
        ended = [os.wait()[1] for _ in range(2)]
        tell(ended=ended)
        """,
        limits=Limits(memory=100 * 1024 * 1024),
    )
    assert seen["ended"] == [signal.SIGKILL] * 2


async def test_processor_time_is_limited(ask: Any) -> None:
    seen = await ask(
        """
        began = time.monotonic()
        while time.monotonic() < began + 1: pass
        tell(used=time.process_time())
        """,
        limits=Limits(memory=64 * 1024 * 1024, cpus=0.2),
    )
    assert seen["used"] < 0.5


async def test_files_in_memory_count_as_memory(runtime: Runtime, make_spec: MakeSpec) -> None:
    spec = make_spec(
        """
        import os
        fd = os.memfd_create("much")
        while True: os.write(fd, bytes(1024 * 1024))
        """,
        limits=Limits(memory=32 * 1024 * 1024),
        hello=False,
    )
    async with runtime.launch(spec) as running:
        await running.start()
        with trio.fail_after(20):
            end = await running.wait()
    assert (end.signal, end.oom) == (signal.SIGKILL, True)


def said_of(pid: int, name: str) -> str:
    return Path(f"/proc/{pid}/{name}").read_text()


def parent_of(pid: int) -> int:
    return int(said_of(pid, "stat").rpartition(")")[2].split()[1])


def groups_of(instance: str) -> list[Path]:
    return list(Path("/sys/fs/cgroup").glob(f"**/armorclaw-{instance}*"))


@pytest.mark.skipif(os.uname().machine != "x86_64", reason="the machine code is for x86-64")
@pytest.mark.usefixtures("without_groups")
async def test_taking_over_the_first_process_gains_nothing(runtime: Runtime, make_spec: MakeSpec, door: Door) -> None:
    spec = make_spec(
        TELL
        + TAKE_OVER
        + f"""
code = {USURPER!r}.replace("PATH", repr(os.environ["ARMORCLAW_SOCKET"]))
door.sendall(b"%d" % attempt(take_over, code))
door.close()
time.sleep(100)
""",
        limits=LIMITS,
    )
    async with door(spec) as listener, runtime.launch(spec) as running:
        await running.start()
        refused = await listener.report()
        if refused in (errno.EPERM, errno.EACCES):
            pytest.skip(f"this kernel refuses it: {os.strerror(refused)}")
        assert refused == 0
        seen = await listener.report()
    assert seen["me"] == 1
    most = [256 * 1024 * 1024] * 2
    assert seen["limits"] == {"AS": most, "CORE": [0, 0], "FSIZE": most, "NOFILE": [64, 64], "NPROC": [10, 10]}
    assert seen["eaten"] == "refused"
    count, error = seen["forked"]
    assert (error, count <= 9) == (errno.EAGAIN, True)
    assert "Seccomp:\t2" in seen["status"]
    assert "CapEff:\t0000000000000000" in seen["status"]


async def test_a_first_process_that_cannot_be_limited_is_no_sandbox(
    runtime: Runtime, make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(limits: Any, *, pid: int | None = None) -> list[str]:
        return resource_limits(limits) if pid is None else ["/bin/sh", "-c", "echo not permitted; exit 1"]

    monkeypatch.setattr(sandbox, "resource_limits", refuse)
    with pytest.raises(ArmorclawError) as caught:
        async with runtime.launch(make_spec()):
            pytest.fail("it was made")
    assert caught.value.name == "engine_refused"
    assert caught.value.why == "its first process cannot be limited: not permitted"


@pytest.mark.usefixtures("without_groups")
async def test_files_in_memory_are_bounded(ask: Any) -> None:
    seen = await ask(
        """
        fd = os.memfd_create("much")
        tell(
            truncated=attempt(os.ftruncate, fd, 256 * 1024 * 1024 + 1),
            allowed=attempt(os.ftruncate, fd, 256 * 1024 * 1024),
            written=attempt(os.pwrite, fd, b"x", 256 * 1024 * 1024),
        )
        """,
        limits=LIMITS,
    )
    assert seen == {"truncated": errno.EFBIG, "allowed": 0, "written": errno.EFBIG}


@pytest.mark.usefixtures("without_groups")
async def test_tmp_may_be_filled_though_it_is_larger_than_memory(ask: Any) -> None:
    seen = await ask(
        'tell(got=attempt(os.ftruncate, os.open("/tmp/x", os.O_RDWR | os.O_CREAT), 100 * 1024 * 1024))',
        limits=Limits(memory=64 * 1024 * 1024, tmp=100 * 1024 * 1024),
    )
    assert seen["got"] == 0


async def test_code_in_a_folder_that_cannot_be_listed(ask: Any, folder: Path) -> None:
    (folder / "mine").mkdir()
    (folder / "mine" / "x.py").write_text("y = 7")
    copy = snapshot_code(folder / "mine", folder)
    seen = await ask(
        'sys.path.insert(0, "/code")\nimport x\ntell(y=x.y, list=os.listdir("/code"))', mounts=(Mount(copy, "/code"),)
    )
    assert seen == {"y": 7, "list": ["x.py"]}


async def test_denied_calls_are_refused_by_this_kernel(ask: Any) -> None:
    seen = await ask(
        """
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        def call(number, *args):
            ctypes.set_errno(0)
            return ctypes.get_errno() if libc.syscall(number, *args) == -1 else 0
        calls = json.loads(os.environ["CALLS"])
        tell(
            denied={name: call(number, 0, 0, 0, 0, 0, 0) for name, number in calls.items()},
            unshare=call(calls["unshare"], 0x10000000),
            clone=call(int(os.environ["CLONE"]), 0x10000000 | 17, 0, 0, 0, 0),
            clone3=call(435, 0, 0),
            getppid=libc.getppid(),
        )
        """,
        env={
            "CALLS": json.dumps(dict(denied_calls())),
            "CLONE": "220" if os.uname().machine == "aarch64" else "56",
        },
    )
    assert {name for name, got in seen["denied"].items() if got != errno.EPERM} == set()
    assert seen["unshare"] == seen["clone"] == errno.EPERM
    assert seen["clone3"] == errno.ENOSYS
    assert seen["getppid"] == 1


async def test_no_descriptor_of_the_bridge(ask: Any) -> None:
    seen = await ask(
        """
        names = {}
        for name in os.listdir("/proc/self/fd"):
            try:
                names[name] = os.readlink("/proc/self/fd/" + name)
            except OSError:
                pass
        names.pop(str(door.fileno()))
        tell(names=names)
        """
    )
    assert seen["names"].pop("0") == "/dev/null"
    assert seen["names"].pop("1").startswith("pipe:")
    assert seen["names"].pop("2").startswith("pipe:")
    assert all(name.startswith("/proc/") for name in seen["names"].values())


def command_lines() -> list[bytes]:
    """Of everything that runs here, as everybody may read them."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            lines.append(path.read_bytes())
        except (FileNotFoundError, ProcessLookupError):
            continue
    return lines


async def test_its_environment_is_not_on_a_command_line(runtime: Runtime, make_spec: MakeSpec, door: Door) -> None:
    spec = make_spec("door.recv(1)", env={"CANARY": "quite-private"})
    async with door(spec) as listener, runtime.launch(spec) as running:
        await running.start()
        await listener.accept()
        lines = command_lines()
    assert any(b"bwrap" in line for line in lines)
    assert not any(b"quite-private" in line for line in lines)


async def test_mounts_are_there_and_read_only(ask: Any, folder: Path) -> None:
    code = folder / "code"
    code.mkdir(mode=0o755)
    (code / "x.py").write_text("y = 7")
    (code / "x.py").chmod(0o666)
    seen = await ask(
        """
        sys.path.insert(0, "/opt/armorclaw")
        import x
        tell(y=x.y, write=attempt(open, "/opt/armorclaw/x.py", "a"), single=open("/etc/one").read())
        """,
        mounts=(Mount(code, "/opt/armorclaw"), Mount(code / "x.py", "/etc/one")),
    )
    assert seen == {"y": 7, "write": errno.EROFS, "single": "y = 7"}


async def test_has_a_name_and_a_home(ask: Any) -> None:
    seen = await ask("import pwd\ntell(who=pwd.getpwuid(os.getuid())[:], host=socket.gethostname(), cwd=os.getcwd())")
    assert seen["who"][0] == "agent"
    assert seen["who"][5] == "/tmp"
    assert (seen["host"], seen["cwd"]) == ("ada", "/")


async def test_grandchildren_in_their_own_session_are_gone_too(
    runtime: Runtime, make_spec: MakeSpec, door: Door
) -> None:
    spec = make_spec(
        """
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                signal.signal(signal.SIGTERM, signal.SIG_IGN)
                door = socket.socket(socket.AF_UNIX)
                door.connect(os.environ["ARMORCLAW_SOCKET"])
                time.sleep(100)
            os._exit(0)
        door.recv(1)
        """
    )
    async with door(spec) as listener:
        async with runtime.launch(spec) as running:
            await running.start()
            await listener.accept()
            _, grandchild = await listener.accept()
            assert running.owns(grandchild)
            assert not grandchild.gone()
            await running.stop(0.05)
            await running.wait()
        assert grandchild.gone()  # not soon: now


async def test_owns_a_process_that_hides_its_memory(
    runtime: Runtime, make_spec: MakeSpec, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = make_spec("import ctypes; ctypes.CDLL(None).prctl(4, 0); door.send(b'1'); door.recv(1)")
    async with door(spec) as listener, runtime.launch(spec) as running:
        await running.start()
        stream, peer = await listener.accept()
        await stream.receive_some(1)
        assert running.owns(peer)
        # What an ordinary user's bridge sees of it: no namespaces.
        monkeypatch.setattr(sandbox, "pid_namespace", lambda pid: None)
        assert running.owns(peer)
        assert not running.owns(attrs.evolve(peer, pid=os.getpid()))


async def test_what_it_prints_is_kept(runtime: Runtime, make_spec: MakeSpec, folder: Path) -> None:
    spec = make_spec("import sys; print('hello', flush=True); print('trouble', file=sys.stderr)", hello=False)
    async with runtime.launch(spec) as running:
        await running.start()
        await running.wait()
    assert (folder / "logs" / "ada.log").read_text() == "hello\ntrouble\n"


@pytest.mark.parametrize(
    "changes, why",
    [
        ({"mounts": (Mount(Path("/nowhere"), "/x"),)}, "/nowhere"),
        ({"mounts": (Mount(Path("/root"), "/x"),)}, "Permission denied"),
        ({"mounts": (Mount(Path("/etc/shadow"), "/usr/new"),)}, "/usr/new"),
    ],
)
async def test_a_sandbox_that_cannot_be_made(
    runtime: Runtime, make_spec: MakeSpec, changes: dict[str, Any], why: str, folder: Path
) -> None:
    if "denied" in why:
        (folder / "private" / "x").mkdir(parents=True)
        (folder / "private").chmod(0o700)
        changes = {"mounts": (Mount(folder / "private" / "x", "/x"),)}
    with pytest.raises(ArmorclawError) as caught:
        async with runtime.launch(make_spec(**changes)):
            pytest.fail("it was made")
    assert caught.value.name == "engine_refused"
    assert why in caught.value.why
    if "denied" in why:
        assert "10001" in caught.value.hint


async def test_a_program_that_is_not_there(runtime: Runtime, make_spec: MakeSpec) -> None:
    for program in ("/nowhere", "nowhere", "/root/.bashrc", "/tmp/x"):
        async with runtime.launch(make_spec(command=(program,))) as running:
            with pytest.raises(ArmorclawError) as caught:
                await running.start()
        assert caught.value.name == "start_failed"
        assert program in caught.value.why


async def test_no_command_and_no_nul(runtime: Runtime, make_spec: MakeSpec) -> None:
    for changes in (
        {"command": ()},
        {"command": ("/bin/true", "a\0--bind")},
        {"env": {"A": "b\0--bind\0/\0/"}},
        {"env": {"A=B": "c"}},
        {"mounts": (Mount(Path("/usr"), "/x\0--bind\0/\0/"),)},
    ):
        with pytest.raises(ArmorclawError) as caught:
            async with runtime.launch(make_spec(**changes)):
                pytest.fail("it was made")
        assert caught.value.name == "config_invalid"


async def test_without_bubblewrap(runtime: Runtime, make_spec: MakeSpec, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *_, **__: None)
    for attempt in (runtime.check, runtime.launch(make_spec()).__aenter__):
        with pytest.raises(ArmorclawError) as caught:
            await attempt()
        assert caught.value.name == "runtime_missing"
        assert caught.value.hint == "apt install bubblewrap"


async def test_where_namespaces_are_forbidden(
    runtime: Runtime, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = folder / "bwrap"
    fake.write_text("#!/bin/sh\necho 'bwrap: No permissions to create a new namespace' >&2\nexit 1\n")
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    with pytest.raises(ArmorclawError) as caught:
        await runtime.check()
    assert caught.value.name == "runtime_missing"
    assert caught.value.why == "No permissions to create a new namespace"
    assert "user namespaces" in caught.value.hint


async def test_no_descriptor_is_left(runtime: Runtime, make_spec: MakeSpec) -> None:
    async def come_and_go(**changes: Any) -> None:
        with suppress(ArmorclawError):
            async with runtime.launch(make_spec("import time; time.sleep(100)", hello=False, **changes)) as running:
                await running.start()

    await come_and_go()  # Trio's worker threads and the like are there from here on
    before = set(os.listdir("/proc/self/fd"))
    await come_and_go()
    await come_and_go(mounts=(Mount(Path("/nowhere"), "/x"),))
    await come_and_go(command=("/nowhere",))
    assert set(os.listdir("/proc/self/fd")) == before


async def test_many_at_once(runtime: Runtime, make_spec: MakeSpec) -> None:
    codes = {}

    async def run(number: int) -> None:
        async with runtime.launch(
            make_spec(f"raise SystemExit({number})", name=f"a{number}", hello=False)
        ) as running:
            await running.start()
            codes[number] = (await running.wait()).code

    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(run, number)
    assert codes == {number: number for number in range(8)}


async def test_nothing_survives(runtime: Runtime, make_spec: MakeSpec) -> None:
    assert not runtime.survives
    assert await runtime.survivors("any") == []


BRIDGE = """
import ctypes, os, pickle, sys, trio
from pathlib import Path
from armorclaw.containers.local.sandbox import SandboxRuntime
async def main():
    logs, spec, user = pickle.load(sys.stdin.buffer)
    if user is not None:
        os.setgroups([])
        os.setgid(user)
        os.setuid(user)
        ctypes.CDLL(None).prctl(4, 1)  # dumpable again, as a program that this user started is
    async with SandboxRuntime(logs).launch(spec) as running:
        await running.start()
        await trio.sleep_forever()
trio.run(main)
"""


@pytest.fixture
def bridge(folder: Path) -> Iterator[Any]:
    """`bridge(spec)` runs it in a bridge of its own, in another process."""
    started = []

    def start(spec: ContainerSpec, as_user: int | None = None) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-c", BRIDGE], stdin=subprocess.PIPE)
        started.append(process)
        assert process.stdin is not None
        process.stdin.write(pickle.dumps((folder / "logs", spec, as_user)))
        process.stdin.close()
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


@pytest.mark.mission("P0.3")
async def test_ends_with_a_bridge_that_is_killed(make_spec: MakeSpec, door: Door, bridge: Any) -> None:
    spec = make_spec(
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\nos.setsid() if os.fork() == 0 else 0\ntime.sleep(100)"
    )
    async with door(spec) as listener:
        process = bridge(spec)
        _, peer = await listener.accept()
        process.send_signal(signal.SIGKILL)
        await peer.ended()


@pytest.mark.long
async def test_lives_longer_than_trios_worker_threads(runtime: Runtime, make_spec: MakeSpec) -> None:
    """A sandbox forked in a worker thread would be killed after 10 s (see spawn.py)."""
    async with runtime.launch(make_spec("import time; time.sleep(100)", hello=False)) as running:
        await running.start()
        with trio.move_on_after(12) as cut:
            await running.wait()
        assert cut.cancelled_caught


async def test_an_ordinary_user_runs_it_as_himself(
    make_spec: MakeSpec, door: Door, bridge: Any, folder: Path
) -> None:
    (folder / "logs").mkdir()
    os.chown(folder / "logs", 12345, 12345)
    script = f"{TELL}\ntell(me=os.getresuid(), status=open('/proc/self/status').read())\ndoor.recv(1)"
    async with door(spec := make_spec(script)) as listener:
        process = bridge(spec, as_user=12345)
        stream, peer = await listener.accept()
        seen = json.loads(await stream.receive_some())
        assert peer.uid == 12345
        assert seen["me"] == [12345] * 3
        assert "Seccomp:\t2" in seen["status"]
        assert "CapEff:\t0000000000000000" in seen["status"]
        process.send_signal(signal.SIGTERM)
        await peer.ended()
