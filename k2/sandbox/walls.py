"""What a sandbox process does to itself before it sees a statement, and cannot undo.

Limits hold everywhere. The other two are the kernel's, on Linux: Landlock (nothing can be opened
but the process's own folder) and seccomp (no sockets, programs, processes or higher limits).
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import struct
import sys
from pathlib import Path

__all__ = ["die_with_parent", "limit", "raise_walls", "virtual_bytes"]

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
_SECCOMP_MODE_FILTER = 2
_CAPABILITIES_VERSION = 0x20080522
_LANDLOCK_CREATE, _LANDLOCK_ADD, _LANDLOCK_RESTRICT = 444, 445, 446
_LANDLOCK_VERSION = 1
_LANDLOCK_PATH_BENEATH = 1
_EPERM, _ENOSYS = 1, 38

#: By Landlock's version, how many rights on files it knows; the first 13 are of version 1.
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
_FILE_RIGHTS_MAX = 16
#: In the own folder: write, read, list; remove and make folders and files; truncate.
_OWN_RIGHTS = sum(1 << right for right in (1, 2, 3, 4, 5, 7, 8, 14))
_READ_FILE = 1 << 2
#: DuckDB ends the process if it cannot read what these say of memory and processors.
_CGROUP = (Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))
_CONNECT_AND_BIND = 0b11
_SIGNALS_AND_ABSTRACT_SOCKETS = 0b11

#: System calls that nothing here needs, by machine.
_X86_64 = {
    "socket": 41, "connect": 42, "accept": 43, "bind": 49, "listen": 50,
    "socketpair": 53, "fork": 57, "vfork": 58, "execve": 59, "kill": 62, "ptrace": 101,
    "setrlimit": 160, "chroot": 161, "mount": 165, "umount2": 166, "swapon": 167, "reboot": 169,
    "init_module": 175, "tkill": 200, "add_key": 248, "request_key": 249, "keyctl": 250,
    "unshare": 272, "accept4": 288, "perf_event_open": 298, "open_by_handle_at": 304,
    "setns": 308, "process_vm_readv": 310, "process_vm_writev": 311, "finit_module": 313,
    "bpf": 321, "execveat": 322, "userfaultfd": 323, "pidfd_send_signal": 424,
    "io_uring_setup": 425, "open_tree": 428, "move_mount": 429, "fsopen": 430,
    "pidfd_open": 434, "pidfd_getfd": 438,
}  # fmt: skip
_AARCH64 = {
    "socket": 198, "socketpair": 199, "bind": 200, "listen": 201, "accept": 202, "connect": 203,
    "execve": 221, "kill": 129, "tkill": 130, "ptrace": 117, "setrlimit": 164,
    "chroot": 51, "mount": 40, "umount2": 39, "swapon": 224, "reboot": 142, "init_module": 105,
    "add_key": 217, "request_key": 218, "keyctl": 219, "unshare": 97, "accept4": 242,
    "perf_event_open": 241, "open_by_handle_at": 265, "setns": 268, "process_vm_readv": 270,
    "process_vm_writev": 271, "finit_module": 273, "bpf": 280, "execveat": 281,
    "userfaultfd": 282, "pidfd_send_signal": 424, "io_uring_setup": 425, "open_tree": 428,
    "move_mount": 429, "fsopen": 430, "pidfd_open": 434, "pidfd_getfd": 438,
}  # fmt: skip
#: Machine: its AUDIT_ARCH, its denied calls, its clone, clone3 and prlimit64.
_MACHINES = {
    "x86_64": (0xC000003E, _X86_64, 56, 435, 302),
    "aarch64": (0xC00000B7, _AARCH64, 220, 435, 261),
}
_CLONE_THREAD = 0x00010000
_X32 = 0x40000000

_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_ALLOW, _KILL = 0x7FFF0000, 0x80000000
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16


def die_with_parent(parent: int) -> None:
    """End with the worker's thread that started this process, however that ends."""
    if sys.platform == "linux":
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(0)


def virtual_bytes() -> int:
    """Address space that this process has; 0 where nobody says."""
    statm = Path("/proc/self/statm")
    return int(statm.read_text().split()[0]) * resource.getpagesize() if statm.exists() else 0


def limit(memory: int, file_bytes: int, files: int) -> None:
    """Hard limits: address space beyond the present one, a file's size, files open at once."""
    if present := virtual_bytes():
        _both(resource.RLIMIT_AS, present + memory)
    _both(resource.RLIMIT_FSIZE, file_bytes)
    _both(resource.RLIMIT_NOFILE, files)
    _both(resource.RLIMIT_CORE, 0)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write that is too long is an error instead


def _both(which: int, value: int) -> None:
    hard = resource.getrlimit(which)[1]
    if hard != resource.RLIM_INFINITY:
        value = min(value, hard)
    resource.setrlimit(which, (value, value))


def raise_walls(folder: Path) -> list[str]:
    """Shut this process in; returns which of the kernel's walls could not be raised.

    Args:
        folder: the only place where files may be made or opened from now on.
    """
    if sys.platform != "linux":
        return ["landlock", "seccomp"]
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    _prctl(_PR_SET_DUMPABLE, 0)
    # Whoever is root loses what root may.
    nothing = struct.pack("<6I", *[0] * 6)
    if _libc().capset(struct.pack("<Ii", _CAPABILITIES_VERSION, 0), nothing):
        raise OSError(ctypes.get_errno(), "capset")
    if (threads := len(os.listdir("/proc/self/task"))) != 1:
        raise RuntimeError(f"{threads} threads: the walls would stand round one of them only")
    missing = []
    if not _landlock(folder):
        missing.append("landlock")
    if not _seccomp():
        missing.append("seccomp")
    return missing


def _landlock(folder: Path) -> bool:
    libc = _libc()
    version = libc.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), _LANDLOCK_VERSION)
    if version < 1:
        return False
    files = (1 << _FILE_RIGHTS.get(version, _FILE_RIGHTS_MAX)) - 1
    network = _CONNECT_AND_BIND if version >= 4 else 0
    scoped = _SIGNALS_AND_ABSTRACT_SOCKETS if version >= 6 else 0
    known = {1: 8, 2: 8, 3: 8, 4: 16, 5: 16}.get(version, 24)
    rules = struct.pack("<QQQ", files, network, scoped)[:known]
    ruleset = libc.syscall(_LANDLOCK_CREATE, rules, ctypes.c_size_t(known), 0)
    if ruleset < 0:
        return False
    try:
        added = _allow(ruleset, folder, _OWN_RIGHTS & files)
        for path in _CGROUP:
            added = added and (not path.exists() or _allow(ruleset, path, _READ_FILE))
        return added and libc.syscall(_LANDLOCK_RESTRICT, ruleset, 0) == 0
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: Path, rights: int) -> bool:
    place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    try:
        beneath = struct.pack("<Qi", rights, place)
        return bool(
            _libc().syscall(_LANDLOCK_ADD, ruleset, _LANDLOCK_PATH_BENEATH, beneath, 0) == 0
        )
    finally:
        os.close(place)


def _seccomp() -> bool:
    machine = os.uname().machine
    if machine not in _MACHINES:
        return False
    code = _filter(*_MACHINES[machine])
    program = b"".join(struct.pack("<HBBI", *step) for step in code)
    buffer = ctypes.create_string_buffer(program, len(program))
    # struct sock_fprog: a count, and behind padding the address.
    described = struct.pack("@HP", len(code), ctypes.addressof(buffer))
    return bool(_libc().prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, described, 0, 0) == 0)


_Step = tuple[int, int, int, int]


def _filter(
    architecture: int, denied: dict[str, int], clone: int, clone3: int, prlimit: int
) -> list[_Step]:
    """The program that judges each system call: kill, refuse, or allow."""
    refuse = (_RETURN, 0, 0, 0x00050000 | _EPERM)
    allow = (_RETURN, 0, 0, _ALLOW)
    steps: list[_Step] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER),
        (_AT_LEAST, 0, 1, _X32),
        refuse,
        # Its arguments cannot be seen: as if there were none, which makes glibc take `clone`.
        (_EQUAL, 0, 1, clone3),
        (_RETURN, 0, 0, 0x00050000 | _ENOSYS),
        # Threads yes, processes no.
        (_EQUAL, 0, 4, clone),
        (_LOAD, 0, 0, _ARGUMENTS),
        (_ANY_BIT, 0, 1, _CLONE_THREAD),
        allow,
        refuse,
        # Limits may be read: a new value is the third argument, two halves of a pointer.
        (_EQUAL, 0, 6, prlimit),
        (_LOAD, 0, 0, _ARGUMENTS + 16),
        (_EQUAL, 0, 2, 0),
        (_LOAD, 0, 0, _ARGUMENTS + 20),
        (_EQUAL, 1, 0, 0),
        refuse,
        allow,
    ]
    for number in sorted(set(denied.values())):
        steps += [(_EQUAL, 0, 1, number), refuse]
    return [*steps, allow]


def _prctl(option: int, value: int) -> None:
    if _libc().prctl(option, value, 0, 0, 0):
        raise OSError(ctypes.get_errno(), f"prctl {option}")


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)
