"""Run a program to which one system call is denied, as by the seccomp profile of a container.

``python denied.py ERRNO CALL[:ARGUMENT[@POSITION]] PROGRAM...``; with an argument only calls are denied that have it as
their first, or at a position that counts from 0.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import sys

# asm/unistd.h of x86-64, and asm-generic/unistd.h, which the other architectures share.
NUMBERS = {"socket": (41, 198), "bpf": (321, 280), "unshare": (272, 97), "pidfd_open": (434, 434)}

# linux/filter.h, linux/bpf_common.h: load a word, jump if equal, return
_LOAD, _EQUAL, _RETURN = 0x20, 0x15, 0x06
_NUMBER, _ARGUMENTS = 0, 16  # offsets in struct seccomp_data; the arguments have 8 bytes each
_ERRNO, _ALLOW = 0x00050000, 0x7FFF0000
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, _PR_SET_NO_NEW_PRIVS = 22, 2, 38


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_void_p))


def deny(call: str, argument: int | None, position: int, number: int) -> None:
    code = [(_LOAD, 0, 0, _NUMBER), (_EQUAL, 0, 1 if argument is None else 3, _of_this_machine(call))]
    if argument is not None:
        code += [(_LOAD, 0, 0, _ARGUMENTS + 8 * position), (_EQUAL, 0, 1, argument)]
    code += [(_RETURN, 0, 0, _ERRNO | number), (_RETURN, 0, 0, _ALLOW)]
    raw = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *one) for one in code))
    program = _Program(len(code), ctypes.addressof(raw))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in (
        (_PR_SET_NO_NEW_PRIVS, 1, None, 0, 0),
        (_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program), 0, 0),
    ):
        if libc.prctl(*arguments) != 0:
            raise OSError(ctypes.get_errno(), "prctl")


def _of_this_machine(call: str) -> int:
    return NUMBERS[call][0 if platform.machine() == "x86_64" else 1]


if __name__ == "__main__":
    name, _, text = sys.argv[2].partition(":")
    value, _, place = text.partition("@")
    deny(name, int(value) if value else None, int(place or 0), getattr(errno, sys.argv[1]))
    os.execvp(sys.argv[3], sys.argv[3:])
