"""What an engine tells of a container, and what /proc does of a tree of processes."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armorclaw.containers.resources.usage import Usage, usage_below, usage_told

DOCKER: dict[str, Any] = {
    "pids_stats": {"current": 2, "limit": 128},
    "blkio_stats": {
        "io_service_bytes_recursive": [
            {"major": 8, "minor": 0, "op": "Read", "value": 10},
            {"major": 8, "minor": 0, "op": "Write", "value": 20},
            {"major": 9, "minor": 0, "op": "read", "value": 1},
            {"major": 8, "minor": 0, "op": "Total", "value": 30},
        ]
    },
    "cpu_stats": {"cpu_usage": {"total_usage": 33262184}},
    "memory_stats": {"usage": 5000, "limit": 67108864, "stats": {"total_inactive_file": 1000}},
}


def test_all_that_docker_tells() -> None:
    assert usage_told(DOCKER) == Usage(33262184, 4000, 67108864, 2, 11, 20)


def test_cgroup_v2_names() -> None:
    memory = {"usage": 5000, "stats": {"inactive_file": 500}}
    usage = usage_told({**DOCKER, "memory_stats": memory})
    assert (usage.memory_bytes, usage.memory_limit) == (4500, None)


def test_podman_tells_less() -> None:
    blkio: dict[str, list[object]] = {"io_service_bytes_recursive": []}
    usage = usage_told({**DOCKER, "blkio_stats": blkio, "memory_stats": {"usage": 5000, "limit": 9}})
    assert (usage.memory_bytes, usage.read_bytes, usage.written_bytes) == (5000, None, None)


@pytest.mark.parametrize(
    "answer",
    [
        {},
        {**DOCKER, "memory_stats": {}},  # Docker, of one that has ended: zeros all over
        {"memory_stats": None, "cpu_stats": 3},
    ],
)
def test_nothing_is_made_up(answer: dict[str, Any]) -> None:
    assert usage_told(answer) == Usage()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.dictionaries(
        st.sampled_from(["memory_stats", "cpu_stats", "cpu_usage", "usage", "stats", "total_usage", "current", "x"]),
        inner,
        max_size=5,
    ),
    max_leaves=20,
)


@given(st.dictionaries(st.sampled_from(["memory_stats", "cpu_stats", "pids_stats", "blkio_stats"]), JSON))
def test_any_answer_is_stood(answer: dict[str, Any]) -> None:
    usage = usage_told(answer)
    assert usage.cpu_ns is None or usage.cpu_ns >= 0


def test_a_tree_of_processes() -> None:
    """Children of a thread that is not the first count, and so does the time of those that were collected."""
    script = """
import os, subprocess, sys, threading, time
def child():
    inner = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    subprocess.run([sys.executable, "-c", "import time\\nwhile time.process_time() < 0.3: pass"])
    print("ready", flush=True)
    inner.wait()
thread = threading.Thread(target=child)
thread.start()
time.sleep(60)
"""
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, start_new_session=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
            usage = usage_below(process.pid)
        finally:
            os.killpg(process.pid, 9)
    assert usage.pids == 3
    assert usage.cpu_ns is not None
    assert 0.25e9 < usage.cpu_ns < 5e9
    assert usage.memory_bytes is not None
    assert usage.memory_bytes > 4 * 1024 * 1024
    assert (usage.memory_limit, usage.read_bytes, usage.written_bytes) == (None, None, None)


def test_nobody_there() -> None:
    assert usage_below(2**22 + 1) == Usage()
