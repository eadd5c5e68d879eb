"""Podman as an ordinary user: what it holds an agent to there, and what it does not."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest
import trio

from armorclaw.containers.engines.runtime import EngineRuntime
from armorclaw.containers.images.image import python_image
from armorclaw.containers.spec import ContainerSpec, Limits
from armorclaw.testing.plugin import missing
from tests.containers.conftest import UID, Door, MakeSpec

WAITS = "door.recv(1)"


def ordinary_user() -> pwd.struct_passwd:
    """One that may have users of its own, as rootless containers need."""
    if os.geteuid() != 0 or shutil.which("podman") is None or shutil.which("newuidmap") is None:
        missing("it needs root, podman and newuidmap; apt-get install podman uidmap")
    lines = Path("/etc/subuid").read_text().splitlines() if Path("/etc/subuid").exists() else []
    known = {user.pw_name: user for user in pwd.getpwall() if user.pw_uid}
    found = next((known[name] for name in (line.partition(":")[0] for line in lines) if name in known), None)
    if found is None:
        missing("there is no ordinary user with uids of its own; useradd --create-home NAME")
    return found


@attrs.frozen
class Rootless:
    user: pwd.struct_passwd
    folder: Path

    @property
    def socket_path(self) -> str:
        return str(self.folder / "p.sock")

    def command(self, *words: str) -> list[str]:
        ids = [f"--reuid={self.user.pw_uid}", f"--regid={self.user.pw_gid}", "--init-groups", "--pdeathsig=TERM"]
        runc = shutil.which("runc")  # crun refuses hosts that have both versions of cgroups
        store = ["--root", f"{self.folder}/s", "--runroot", f"{self.folder}/r", "--cgroup-manager", "cgroupfs"]
        return ["setpriv", *ids, "podman", *(["--runtime", runc] if runc else []), *store, *words]

    @property
    def environ(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "HOME": str(self.folder), "XDG_RUNTIME_DIR": str(self.folder)}


@pytest.fixture(scope="module")
def rootless() -> Iterator[Rootless]:
    user = ordinary_user()
    folder = Path(tempfile.mkdtemp(prefix="ac-", dir="/tmp"))
    os.chown(folder, user.pw_uid, user.pw_gid)
    made = Rootless(user, folder)
    where = {"cwd": folder, "env": made.environ, "stdin": subprocess.DEVNULL, "start_new_session": True}
    words = made.command("system", "service", "--time", "0", f"unix://{made.socket_path}")
    with (folder / "log").open("wb") as log:
        service = subprocess.Popen(words, stdout=log, stderr=log, **where)  # type: ignore[call-overload]
    try:
        deadline = time.monotonic() + 20
        while not Path(made.socket_path).exists():
            if service.poll() is not None or time.monotonic() > deadline:
                missing(f"rootless Podman does not run here: {(folder / 'log').read_text()[-300:]}")
            time.sleep(0.05)
        yield made
    finally:
        # What we started goes on as a child in the user's namespace: its group is ended, which is this fixture's own.
        os.killpg(service.pid, signal.SIGTERM)
        service.wait()
        subprocess.run(made.command("unshare", "rm", "-rf", f"{folder}/s"), check=False, **where)  # type: ignore[call-overload]
        for file in folder.rglob("pause.pid"):  # Podman leaves one process behind that keeps the namespace
            os.kill(int(file.read_text()), signal.SIGKILL)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def runtime_kind() -> str:
    """For `make_spec`, whose image is replaced."""
    return "sandbox"


async def test_an_agent_runs_and_is_known(rootless: Rootless, make_spec: MakeSpec, door: type[Door]) -> None:
    """By its namespace, where it has no control group; and `check` claims no limit that is not held."""
    async with EngineRuntime.open(rootless.socket_path) as runtime:
        image = await python_image(runtime.engine, tag="armorclaw-python:latest")
        spec: ContainerSpec = make_spec(
            f"door.send(open('/proc/self/status').read().encode()[:4000])\n{WAITS}\nraise SystemExit(4)",
            image=image,
            limits=Limits(memory=64 * 1024 * 1024),
        )
        async with door(spec) as listener, runtime.launch(spec) as running:
            await running.start()
            stream, peer = await listener.accept()
            assert peer.uid not in (0, UID, rootless.user.pw_uid)  # one of the user's own uids
            assert running.owns(peer)
            assert not running.owns(attrs.evolve(peer, pid=os.getpid()))
            assert not running.owns(attrs.evolve(peer, uid=rootless.user.pw_uid))
            status = (await stream.receive_some(4000)).decode()
            assert "CapEff:\t0000000000000000" in status
            assert "NoNewPrivs:\t1" in status
            assert "Seccomp:\t2" in status
            await stream.aclose()
            with trio.fail_after(20):
                assert (await running.wait()).code == 4
        assert await runtime.survivors(spec.instance) == []
        facts = await runtime.check()
        if "cgroup v1" in facts:
            assert "NO memory, processor, process and open-file limits" in facts
