"""The sysctls of a host's network namespace, also where /proc/sys is mounted read-only."""

from __future__ import annotations

import contextlib
import errno
import os

from mptcp import _core

_ROOT = "/proc/sys"

# In bytes, for each socket.
_LARGEST_INITIAL, _LARGEST_BUFFER = 16 << 20, 256 << 20

_HOST = {
    "net/ipv4/conf/{scope}/rp_filter": "0",  # a packet may arrive by another link than the route to its source
    "net/ipv4/fib_multipath_hash_policy": "1",  # parallel links: by ports, too
    "net/mptcp/enabled": "1",
}
_HOST_IPV6 = {
    "net/ipv6/conf/{scope}/disable_ipv6": "0",
    # Only the lab assigns addresses: none by router advertisements or by the kernel itself, and without duplicate
    # address detection.
    "net/ipv6/conf/{scope}/accept_ra": "0",
    "net/ipv6/conf/{scope}/accept_dad": "0",
    "net/ipv6/conf/{scope}/addr_gen_mode": "1",
    "net/ipv6/fib_multipath_hash_policy": "1",
}
_ROUTER = {"net/ipv4/ip_forward": "1"}
_ROUTER_IPV6 = {"net/ipv6/conf/all/forwarding": "1"}


def read(path: str) -> str:
    with open(f"{_ROOT}/{path}") as file:
        return file.read().strip()


def write(path: str, value: str) -> None:
    with open(f"{_ROOT}/{path}", "w") as file:
        file.write(value)


def set_up_host(*, forwarding: bool, ipv6: bool) -> None:
    """Set all sysctls of a new host's network namespace, as far as this kernel has them."""
    if not os.path.exists(f"{_ROOT}/net/mptcp/enabled"):
        raise OSError(errno.ENOSYS, "this kernel has no Multipath TCP (CONFIG_MPTCP)")
    settings = {**_HOST, **(_HOST_IPV6 if ipv6 else {})}
    if forwarding:
        settings |= {**_ROUTER, **(_ROUTER_IPV6 if ipv6 else {})}
    for name, value in settings.items():
        for path in dict.fromkeys(name.format(scope=scope) for scope in ("all", "default")):
            # Not every one of them exists under "all" in every kernel.
            with contextlib.suppress(FileNotFoundError):
                write(path, value)


def set_socket_memory(needed: int) -> None:
    """Make the buffers of new TCP sockets large enough for ``needed`` bytes, and never smaller than the kernel's.

    A connection over links of very different speeds buffers what arrives too early by the fast ones: see
    docs/kernel-bugs.md.
    """
    # The kernel counts the memory of a frame, which is up to twice its data.
    initial = max(131072, min(2 * needed, _LARGEST_INITIAL))
    for name, least, first, most in (("tcp_rmem", 4096, initial, 6 << 20), ("tcp_wmem", 4096, 16384, 4 << 20)):
        write(f"net/ipv4/{name}", f"{least} {first} {max(most, first, min(4 * needed, _LARGEST_BUFFER))}")


def make_writable() -> None:
    """Remount /proc/sys for writing, in a mount namespace of this process's own, if it is read-only.

    Containers have it read-only, although this process may set the sysctls of the network namespace that it created.
    Where it may not be remounted, as in a user namespace that inherited the mount, OSError (EROFS) says what to do.
    """
    if not os.statvfs(_ROOT).f_flag & os.ST_RDONLY:
        return
    try:
        _core.remount_writable(_ROOT)
    except OSError as error:
        raise OSError(
            errno.EROFS,
            "/proc/sys is mounted read-only and cannot be remounted "
            f"({error.strerror}), so the hosts of a lab cannot have sysctls of their own: start "
            "the container with --security-opt systempaths=unconfined (Docker) or --security-opt "
            "unmask=/proc/sys (Podman); docs/containers.md lists what each kind of host needs",
        ) from error
