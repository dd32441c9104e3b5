"""The system calls that no tested program needs, refused by the kernel: a filter in classic BPF (see seccomp(2)).

Some doors have no namespace: memory that no limit counts (System V, memfd), the keyring, sockets to the host of a
virtual machine, tracing, and interfaces whose bugs have been ways out.
"""

from __future__ import annotations

import platform
import struct

from posttrain.errors import PosttrainError, Problem

ALLOW, REFUSE = 0x7FFF0000, 0x00050001  # SECCOMP_RET_ALLOW; SECCOMP_RET_ERRNO with EPERM
LOAD, EQUAL, AT_LEAST, RETURN = 0x20, 0x15, 0x35, 0x06
NUMBER, ARCHITECTURE, FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
X32 = 0x40000000
FAMILIES = (1, 2, 10)  # AF_UNIX, AF_INET, AF_INET6; vsock, for one, knows no namespace

# Audit architecture, the number of socket(2), and what is refused.
_NEW = [*range(425, 434), 438, 442, 447]  # io_uring, mounts by descriptor, pidfd_getfd, mount_setattr, memfd_secret
MACHINES: dict[str, tuple[int, int, list[int]]] = {
    "x86_64": (
        0xC000003E,
        41,
        [
            *(101, 310, 311, 312, 298, 321, 323),  # ptrace, process_vm_*, kcmp, perf_event_open, bpf, userfaultfd
            *(29, 30, 64, 68, 240, 319),  # shmget, shmat, semget, msgget, mq_open, memfd_create
            *(248, 249, 250, 272, 308, 165, 166, 155, 161),  # keys; unshare, setns; mount, umount2, pivot_root, chroot
            *(303, 304, 246, 320, 175, 313, 176, 163, 179, 167, 168, 169),  # handles, kexec, modules, acct, quota, swap
            *(103, 135, 154, 172, 173, 300, 278, 279, 237, 238, 256),  # syslog, personality, ports, fanotify, NUMA
        ],
    ),
    "aarch64": (
        0xC00000B7,
        198,
        [
            *(117, 270, 271, 272, 241, 280, 282),
            *(194, 196, 190, 186, 180, 279),
            *(217, 218, 219, 97, 268, 40, 39, 41, 51),
            *(264, 265, 104, 294, 105, 273, 106, 89, 60, 224, 225, 142),
            *(116, 92, 262, 75, 239, 235, 237, 238),
        ],
    ),
}


def filter_program() -> bytes:
    """The filter for this machine.

    Raises:
        PosttrainError: its system calls are not known here.
    """
    known = MACHINES.get(platform.machine())
    if known is None:
        why = "the sandbox filters system calls, whose numbers differ"
        remedy = f"run where the machine is one of {', '.join(MACHINES)}"
        raise PosttrainError(Problem(f"no sandbox on {platform.machine()}", why=why, remedy=remedy))
    architecture, socket, refused = known
    refused = [*refused, *_NEW]
    # A jump's two numbers say how many instructions to leave out: if it holds, and if not. The last two are the ends.
    length = 4 + len(refused) + 2 + len(FAMILIES) + 2
    allow, refuse = length - 2, length - 1
    code = [(LOAD, 0, 0, ARCHITECTURE), (EQUAL, 0, refuse - 2, architecture), (LOAD, 0, 0, NUMBER)]
    code.append((AT_LEAST, refuse - 4, 0, X32))
    code += [(EQUAL, refuse - place - 1, 0, number) for place, number in enumerate(refused, 4)]
    code.append((EQUAL, 0, allow - len(code) - 1, socket))
    code.append((LOAD, 0, 0, FIRST_ARGUMENT))
    for family in FAMILIES[:-1]:
        code.append((EQUAL, allow - len(code) - 1, 0, family))
    code.append((EQUAL, allow - len(code) - 1, refuse - len(code) - 1, FAMILIES[-1]))
    code += [(RETURN, 0, 0, ALLOW), (RETURN, 0, 0, REFUSE)]
    assert len(code) == length
    return b"".join(struct.pack("HBBI", *instruction) for instruction in code)
