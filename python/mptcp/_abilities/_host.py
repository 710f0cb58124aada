"""Other interfaces of the host: BPF, seccomp, real-time priority."""

from __future__ import annotations

import errno
import os
import socket
import threading

from mptcp._errors import UnsupportedError

from ._ground import Ground, Lack, absent, in_child


def btf(ground: Ground) -> None:
    if not os.access("/sys/kernel/btf/vmlinux", os.R_OK):
        raise Lack(
            "/sys/kernel/btf/vmlinux cannot be read: mount /sys, or use a kernel with CONFIG_DEBUG_INFO_BTF; without "
            "it options cannot be set on one subflow"
        )


def bpf(ground: Ground) -> None:
    # This is every socket's default, so nothing changes; only BPF can set it on one subflow.
    [subflow] = ground.multipath_connection().subflows()
    try:
        subflow.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 9)
    except PermissionError as error:
        raise Lack(f"{error.strerror}") from error
    except UnsupportedError as error:
        raise Lack(f"{error.strerror}") from error


def user_notification(ground: Ground) -> None:
    with absent(
        "other programs' calls cannot be served: needs Linux 5.19 with CONFIG_SECCOMP_FILTER, and, in a container, a "
        "filter that allows seccomp(2)",
        errno.ENOSYS,
        errno.EPERM,
        errno.EACCES,
        errno.EBUSY,
    ):
        in_child("user_notification")


def sched_fifo(ground: Ground) -> None:
    failures = []

    def try_it() -> None:
        try:
            # This affects only this thread, which ends here.
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        except OSError as error:
            failures.append(error)

    thread = threading.Thread(target=try_it)
    thread.start()
    thread.join()
    if failures:
        raise Lack(
            "recordings run at normal priority and miss more ticks: needs CAP_SYS_NICE, or an RLIMIT_RTPRIO of at "
            "least 1 (rtprio in /etc/security/limits.conf)"
        )
