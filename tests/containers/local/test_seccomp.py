"""The filter, run by a small interpreter of classic BPF for both machines; in the kernel: see test_sandbox.py."""

from __future__ import annotations

import errno
import socket
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from armorclaw.containers.local.seccomp import denied_calls, filter_program
from armorclaw.errors import ArmorclawError

pytestmark = pytest.mark.mission("P0.1")

ALLOW, KILL = 0x7FFF_0000, 0x8000_0000
MACHINES = ("x86_64", "aarch64")
AUDIT = {"x86_64": 0xC000_003E, "aarch64": 0xC000_00B7}
CLONE = {"x86_64": 56, "aarch64": 220}
SOCKET = {"x86_64": 41, "aarch64": 198}
IOCTL = {"x86_64": 16, "aarch64": 29}
NEEDED = {  # read, write, close, mmap, execve, futex, wait4, exit_group, openat, prlimit64
    "x86_64": (0, 1, 3, 9, 59, 202, 61, 231, 257, 302),
    "aarch64": (63, 64, 57, 222, 221, 98, 260, 94, 56, 261),
}


def refused(error: int) -> int:
    return 0x0005_0000 | error


def verdict(machine: str, call: int, *args: int, audit: int | None = None) -> int:
    """What the kernel would do (Documentation/networking/filter.rst), for the instructions the filter uses."""
    padded = (*args, *[0] * (6 - len(args)))
    data = struct.pack("=IIQ6Q", call & 0xFFFF_FFFF, AUDIT[machine] if audit is None else audit, 0, *padded)
    program = list(struct.iter_unpack("=HBBI", filter_program(machine)))
    place, loaded = 0, 0
    while True:
        code, if_true, if_false, operand = program[place]
        place += 1
        match code:
            case 0x20:
                (loaded,) = struct.unpack_from("=I", data, operand)
            case 0x15 | 0x35 | 0x45:
                holds = {0x15: loaded == operand, 0x35: loaded >= operand, 0x45: bool(loaded & operand)}[code]
                place += if_true if holds else if_false
            case 0x06:
                return int(operand)
            case _:
                pytest.fail(f"unknown instruction {code:#x}")


@pytest.mark.parametrize("machine", MACHINES)
def test_denied_calls_are_not_permitted(machine: str) -> None:
    calls = denied_calls(machine)
    assert len(set(calls.values())) == len(calls)
    assert {"ptrace", "keyctl", "bpf", "unshare", "setns", "mount", "io_uring_setup", "pidfd_getfd"} <= set(calls)
    assert {"open_tree_attr", "memfd_secret", "shmget", "shmat", "semget", "msgget"} <= set(calls)
    assert ("modify_ldt" in calls) == (machine == "x86_64")
    for number in calls.values():
        assert verdict(machine, number) == refused(errno.EPERM)


@pytest.mark.parametrize("machine", MACHINES)
def test_what_every_program_needs_is_allowed(machine: str) -> None:
    for number in NEEDED[machine]:
        assert verdict(machine, number) == ALLOW


@given(machine=st.sampled_from(MACHINES), call=st.integers(0, 2**32 - 1), first=st.integers(0, 2**64 - 1))
def test_every_call_has_a_verdict(machine: str, call: int, first: int) -> None:
    given = verdict(machine, call, first)
    if call in denied_calls(machine).values():
        assert given == refused(errno.EPERM)
    elif call not in (CLONE[machine], SOCKET[machine], IOCTL[machine], 435) and call < 0x4000_0000:
        assert given == ALLOW


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("audit", [0x4000_0003, 0x4000_0028, 0])  # i386, arm, nonsense
def test_a_foreign_architecture_is_killed(machine: str, audit: int) -> None:
    assert verdict(machine, 1, audit=audit) == KILL


@pytest.mark.parametrize("call", [0, 101, 59])
def test_x32_numbers_are_refused(call: int) -> None:
    assert verdict("x86_64", 0x4000_0000 | call) == refused(errno.EPERM)


@pytest.mark.parametrize("machine", MACHINES)
def test_clone_makes_threads_and_processes_but_no_namespaces(machine: str) -> None:
    assert verdict(machine, CLONE[machine], 0x3D0F00) == ALLOW  # pthread_create
    assert verdict(machine, CLONE[machine], 0x0120_0011) == ALLOW  # fork
    for bit in (0x0002_0000, *(1 << n for n in range(25, 31))):
        assert verdict(machine, CLONE[machine], bit | 17) == refused(errno.EPERM)
    assert verdict(machine, 435) == refused(errno.ENOSYS)  # clone3: C libraries fall back to clone


@pytest.mark.parametrize("machine", MACHINES)
def test_sockets_of_confined_families_only(machine: str) -> None:
    for good in (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK):
        assert verdict(machine, SOCKET[machine], good) == ALLOW
    for bad in (socket.AF_VSOCK, socket.AF_ALG, socket.AF_PACKET, 31, 0, 255):  # 31: AF_BLUETOOTH
        assert verdict(machine, SOCKET[machine], bad) == refused(errno.EAFNOSUPPORT)


@pytest.mark.parametrize("machine", MACHINES)
def test_no_typing_into_somebody_elses_terminal(machine: str) -> None:
    assert verdict(machine, IOCTL[machine], 0, 0x5412) == refused(errno.EPERM)
    assert verdict(machine, IOCTL[machine], 0, 0x541C) == refused(errno.EPERM)
    # The kernel ignores the upper half, so it must not hide what the lower half says.
    assert verdict(machine, IOCTL[machine], 0, 0x1_0000_5412) == refused(errno.EPERM)
    assert verdict(machine, IOCTL[machine], 0, 0x5413) == ALLOW  # TIOCGWINSZ


def test_an_unknown_machine_is_refused() -> None:
    with pytest.raises(ArmorclawError) as caught:
        filter_program("riscv64")
    assert caught.value.name == "runtime_missing"
    assert "riscv64" in caught.value.what
