"""What an engine is told, field by field. That engines do as told is in test_engine.py."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from armorclaw.containers.engines.config import container_config, container_name
from armorclaw.containers.spec import ContainerSpec, Limits, Mount

SPEC = ContainerSpec(
    instance="home",
    name="ada",
    image="python:3.12-slim",
    command=("python3", "/opt/agent.py", "-v"),
    env={"B": "2", "A": "1=1"},
    uid=10001,
    gid=10002,
    socket_dir=Path("/state/mounts/ada"),
    mounts=(Mount(Path("/srv/agent"), "/opt"),),
    limits=Limits(memory=1000, cpus=0.5, pids=7, files=8, tmp=9),
)

BIND = {"Type": "bind", "ReadOnly": True, "BindOptions": {"Propagation": "rprivate"}}

DOCKER = {
    "Image": "python:3.12-slim",
    "User": "10001:10002",
    "Env": ["A=1=1", "B=2"],
    "Entrypoint": ["python3"],
    "Cmd": ["/opt/agent.py", "-v"],
    "Tty": False,
    "OpenStdin": False,
    "NetworkDisabled": True,
    "StopSignal": "SIGTERM",
    "Labels": {
        "armorclaw.instance": "home",
        "armorclaw.agent": "ada",
        "armorclaw.spec-hash": SPEC.digest(),
        "armorclaw.protocol": "1",
    },
    "HostConfig": {
        "Privileged": False,
        "CapAdd": [],
        "CapDrop": ["ALL"],
        "GroupAdd": [],
        "SecurityOpt": ["no-new-privileges"],
        "Devices": [],
        "NetworkMode": "none",
        "PidMode": "",
        "IpcMode": "none",
        "UTSMode": "",
        "UsernsMode": "",
        "CgroupnsMode": "private",
        "PublishAllPorts": False,
        "ReadonlyRootfs": True,
        "Tmpfs": {"/tmp": "rw,noexec,nosuid,nodev,size=9"},
        "Mounts": [
            {**BIND, "Source": "/state/mounts/ada", "Target": "/run/armorclaw/containers"},
            {**BIND, "Source": "/srv/agent", "Target": "/opt"},
        ],
        "Memory": 1000,
        "MemorySwap": 1000,
        "NanoCpus": 500_000_000,
        "PidsLimit": 7,
        "Ulimits": [{"Name": "nofile", "Soft": 8, "Hard": 8}, {"Name": "core", "Soft": 0, "Hard": 0}],
        "OomScoreAdj": 500,
        "RestartPolicy": {"Name": "no", "MaximumRetryCount": 0},
        "AutoRemove": False,
        "Init": True,
        "LogConfig": {"Type": "json-file", "Config": {"max-size": "1m", "max-file": "2"}},
    },
}


@pytest.mark.mission("S.2")
def test_golden_for_docker() -> None:
    assert container_config(SPEC, "docker") == DOCKER


@pytest.mark.mission("S.2")
def test_podman_differs_in_these_only() -> None:
    docker, podman = container_config(SPEC, "docker"), container_config(SPEC, "podman")
    host_docker, host_podman = docker.pop("HostConfig"), podman.pop("HostConfig")
    assert podman == docker
    differs = {key for key in host_docker | host_podman if host_docker.get(key) != host_podman.get(key)}
    assert differs == {"Init", "LogConfig", "Ulimits", "Tmpfs"}
    assert "Init" not in host_podman
    assert host_podman["LogConfig"] == {"Type": "k8s-file", "Config": {"max-size": "2m"}}
    assert host_podman["Ulimits"] == [*host_docker["Ulimits"], {"Name": "nproc", "Soft": 4096, "Hard": 4096}]
    own = "rw,noexec,nosuid,nodev,size=1m,mode=0755,notmpcopyup"
    assert host_podman["Tmpfs"] == {**host_docker["Tmpfs"], "/run": own, "/var/tmp": own}


def test_volumes_of_the_image_become_bounded_memory() -> None:
    tmpfs = container_config(SPEC, "docker", ["/data", "/tmp"])["HostConfig"]["Tmpfs"]
    assert tmpfs == dict.fromkeys(["/data", "/tmp"], "rw,noexec,nosuid,nodev,size=9")


def test_without_a_command_the_image_keeps_its_own() -> None:
    config = container_config(attrs.evolve(SPEC, command=()), "docker")
    assert "Cmd" not in config
    assert "Entrypoint" not in config


def test_name() -> None:
    assert container_name(SPEC) == "armorclaw-home-ada"
