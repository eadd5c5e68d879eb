"""The sandbox's system call filter: a deny list in classic BPF, made by hand so that no libseccomp is needed.

bubblewrap sets no filter by itself; it loads the one given by `--seccomp FD`. The filter refuses what an agent has no
use for and kernels have had holes in: tracing, keyrings, BPF, io_uring, mounting, namespaces, clocks, modules; and
the memory that no limit of a process counts: System V's (queues and semaphores too), and secret memory. A deny list
is weaker than the allow list of a container engine: calls newer than this file pass.

The layout of `struct seccomp_data` and the return values are those of linux/seccomp.h; numbers are from the kernel's
syscall tables (arch/x86/entry/syscalls/syscall_64.tbl, include/uapi/asm-generic/unistd.h).
"""

from __future__ import annotations

import errno
import os
import platform
import socket
import struct
from collections.abc import Mapping

import attrs

from armorclaw.errors import ArmorclawError

_LOAD, _JUMP_EQUAL, _JUMP_AT_LEAST, _JUMP_ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NR, _ARCH, _ARG0, _ARG1 = 0, 4, 16, 24  # offsets in struct seccomp_data; the low half of an argument comes first
_KILL_PROCESS, _ALLOW, _ERRNO = 0x8000_0000, 0x7FFF_0000, 0x0005_0000

_X32 = 0x4000_0000
"""x86-64 kernels accept every call a second time under these numbers."""

_NEW_NAMESPACES = 0x7E02_0000
"""CLONE_NEWNS, NEWCGROUP, NEWUTS, NEWIPC, NEWUSER, NEWPID and NEWNET; time namespaces can't be had by clone(2)."""

_FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK)
"""Sockets that network namespaces confine; AF_VSOCK, say, would reach the hypervisor from any of them."""

_TERMINAL_TRICKS = (0x5412, 0x541C)
"""TIOCSTI and TIOCLINUX put characters into somebody else's terminal."""


@attrs.frozen
class _Architecture:
    audit: int
    x32: bool
    clone: int
    clone3: int
    socket: int
    ioctl: int
    denied: Mapping[str, int]


# Since Linux 5.1 new calls have one number everywhere.
_COMMON = {
    "fsconfig": 431,
    "fsmount": 432,
    "fsopen": 430,
    "fspick": 433,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "io_uring_setup": 425,
    "memfd_secret": 447,
    "mount_setattr": 442,
    "move_mount": 429,
    "open_tree": 428,
    "open_tree_attr": 467,
    "pidfd_getfd": 438,
    "quotactl_fd": 443,
}

# fmt: off
_X86_64 = {
    "acct": 163, "add_key": 248, "bpf": 321, "chroot": 161, "clock_adjtime": 305, "clock_settime": 227,
    "delete_module": 176, "fanotify_init": 300, "finit_module": 313, "init_module": 175, "ioperm": 173, "iopl": 172,
    "kcmp": 312, "kexec_file_load": 320, "kexec_load": 246, "keyctl": 250, "lookup_dcookie": 212, "modify_ldt": 154,
    "mount": 165, "move_pages": 279, "msgget": 68, "name_to_handle_at": 303, "open_by_handle_at": 304,
    "perf_event_open": 298, "pivot_root": 155, "process_vm_readv": 310, "process_vm_writev": 311, "ptrace": 101,
    "quotactl": 179, "reboot": 169, "request_key": 249, "semget": 64, "setns": 308, "settimeofday": 164, "shmat": 30,
    "shmget": 29, "swapoff": 168, "swapon": 167, "syslog": 103, "umount2": 166, "unshare": 272, "userfaultfd": 323,
    "vhangup": 153,
}
_AARCH64 = {
    "acct": 89, "add_key": 217, "bpf": 280, "chroot": 51, "clock_adjtime": 266, "clock_settime": 112,
    "delete_module": 106, "fanotify_init": 262, "finit_module": 273, "init_module": 105, "kcmp": 272,
    "kexec_file_load": 294, "kexec_load": 104, "keyctl": 219, "lookup_dcookie": 18, "mount": 40, "move_pages": 239,
    "msgget": 186, "name_to_handle_at": 264, "open_by_handle_at": 265, "perf_event_open": 241, "pivot_root": 41,
    "process_vm_readv": 270, "process_vm_writev": 271, "ptrace": 117, "quotactl": 60, "reboot": 142,
    "request_key": 218, "semget": 190, "setns": 268, "settimeofday": 170, "shmat": 196, "shmget": 194, "swapoff": 225,
    "swapon": 224, "syslog": 116, "umount2": 39, "unshare": 97, "userfaultfd": 282, "vhangup": 58,
}
# fmt: on

_ARCHITECTURES = {
    "x86_64": _Architecture(0xC000_003E, True, 56, 435, 41, 16, {**_COMMON, **_X86_64}),
    "aarch64": _Architecture(0xC000_00B7, False, 220, 435, 198, 29, {**_COMMON, **_AARCH64}),
}


def denied_calls(machine: str | None = None) -> Mapping[str, int]:
    """The calls refused with EPERM whatever their arguments, by name, with their numbers on `machine` (this one)."""
    return _architecture(machine).denied


def filter_program(machine: str | None = None) -> bytes:
    """The filter for `machine` (`platform.machine()`; this one) as an array of struct sock_filter.

    Refused calls fail with EPERM, sockets of other families with EAFNOSUPPORT, clone3 with ENOSYS (its flags lie in
    memory that a filter cannot read; C libraries then fall back to clone). A foreign architecture is killed, as its
    numbers mean other calls. Raises `runtime_missing` for a machine without a list.
    """
    arch = _architecture(machine)
    program = [
        _instruction(_LOAD, _ARCH),
        _instruction(_JUMP_EQUAL, arch.audit, 1, 0),
        _instruction(_RETURN, _KILL_PROCESS),
        _instruction(_LOAD, _NR),
    ]
    if arch.x32:
        program += [_instruction(_JUMP_AT_LEAST, _X32, 0, 1), _fail(errno.EPERM)]
    for number in sorted(arch.denied.values()):
        program += [_instruction(_JUMP_EQUAL, number, 0, 1), _fail(errno.EPERM)]
    program += [_instruction(_JUMP_EQUAL, arch.clone3, 0, 1), _fail(errno.ENOSYS)]
    program += _when(
        arch.clone,
        _instruction(_LOAD, _ARG0),
        _instruction(_JUMP_ANY_BIT, _NEW_NAMESPACES, 0, 1),
        _fail(errno.EPERM),
        _instruction(_RETURN, _ALLOW),
    )
    program += _when(
        arch.socket,
        _instruction(_LOAD, _ARG0),
        *(_instruction(_JUMP_EQUAL, family, len(_FAMILIES) - place, 0) for place, family in enumerate(_FAMILIES)),
        _fail(errno.EAFNOSUPPORT),
        _instruction(_RETURN, _ALLOW),
    )
    program += _when(
        arch.ioctl,
        _instruction(_LOAD, _ARG1),  # the kernel looks at these 32 bits alone
        *(
            _instruction(_JUMP_EQUAL, request, len(_TERMINAL_TRICKS) - place, 0)
            for place, request in enumerate(_TERMINAL_TRICKS)
        ),
        _instruction(_RETURN, _ALLOW),
        _fail(errno.EPERM),
    )
    program.append(_instruction(_RETURN, _ALLOW))
    return b"".join(program)


def filter_fd() -> int:
    """A descriptor to read this machine's filter from; the caller closes it."""
    program = filter_program()
    fd = os.memfd_create("armorclaw-seccomp", os.MFD_CLOEXEC)
    os.write(fd, program)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd


def _architecture(machine: str | None) -> _Architecture:
    machine = machine or platform.machine()
    try:
        return _ARCHITECTURES[machine]
    except KeyError:
        raise ArmorclawError(
            "runtime_missing",
            f"the sandbox has no system call filter for {machine}",
            why=f"its calls are numbered for {' and '.join(_ARCHITECTURES)} only",
            hint="use Docker or Podman on this machine",
        ) from None


def _when(number: int, *instructions: bytes) -> list[bytes]:
    """Instructions, each path of which returns, for call `number`; other calls skip them, its number still loaded."""
    return [_instruction(_JUMP_EQUAL, number, 0, len(instructions)), *instructions]


def _fail(error: int) -> bytes:
    return _instruction(_RETURN, _ERRNO | error)


def _instruction(code: int, operand: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, operand)
