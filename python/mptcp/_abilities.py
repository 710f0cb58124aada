"""What this kernel and these privileges allow, each ability tried by using it.

Nothing is changed outside of a lab of the probes' own and of child processes that end. ``lack`` serves skip reasons::

    if reason := lack("netem"):
        pytest.skip(reason)
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mptcp import _socket
from mptcp._errors import UnsupportedError
from mptcp._path_manager import get_path_manager
from mptcp._socket import Socket
from mptcp.lab import Lab, Link, _programs

_DEADLINE = 10.0
_PROC = Path("/proc/sys")

# linux/mptcp.h and linux/tcp.h
_SOL_MPTCP = 284
_MPTCP_FULL_INFO = 4
_TCP_IS_MPTCP = 43
_FULL_INFO_SIZE = 256


@dataclass(frozen=True)
class Ability:
    """Something that a kernel and the caller's privileges allow or not."""

    name: str
    """What programs ask for it by."""
    what: str
    """What it is, in a line."""
    probe: Callable[[Ground], None]
    """Uses it. Raises _Lack, or an OSError whose text says what is lacking."""


@dataclass(frozen=True)
class Finding:
    """What came of a probe."""

    name: str
    what: str
    available: bool | None
    """None: it could not be tried."""
    advice: str
    """What is lacking and what to do about it; empty where nothing is."""


class _Lack(Exception):
    """What is lacking, and what to do about it."""


class _UntriedError(Exception):
    """Why an ability could not be tried."""


class Ground:
    """What probes share: a connection over loopback and a lab, made when first asked for. The findings so far."""

    def __init__(self) -> None:
        self.found: dict[str, Finding] = {}
        self._stack = contextlib.ExitStack()
        self._connection: Socket | None = None
        self._link: Link | OSError | None = None

    def __enter__(self) -> Ground:
        return self

    def __exit__(self, *unused: object) -> None:
        self._stack.close()

    def has(self, *names: str) -> bool:
        return all(self.find(name).available for name in names)

    def find(self, name: str) -> Finding:
        """The finding of an ability, which is tried once."""
        if name not in self.found:
            self.found[name] = self._try(_BY_NAME[name])
        return self.found[name]

    def _try(self, ability: Ability) -> Finding:
        available: bool | None = False
        advice = ""
        try:
            ability.probe(self)
            available = True
        except _UntriedError as error:
            available, advice = None, f"not tried: {error}"
        except _Lack as error:
            advice = str(error)
        except OSError as error:
            advice = error.strerror or str(error)
        return Finding(ability.name, ability.what, available, advice)

    def connection(self) -> Socket:
        """A connection over loopback in the caller's network namespace, fully established."""
        if self._connection is None:
            enter = self._stack.enter_context
            try:
                listener = enter(_socket.create_server(("127.0.0.1", 0)))
                sock = enter(_socket.create_connection(listener.getsockname(), _DEADLINE))
            except OSError as error:
                if error.errno in (errno.ENETUNREACH, errno.EADDRNOTAVAIL):
                    raise _Lack("the loopback interface is down: ip link set lo up") from error
                raise
            listener.settimeout(_DEADLINE)
            peer = enter(listener.accept()[0])
            _exchange(sock, peer)
            self._connection = sock
        return self._connection

    def multipath_connection(self) -> Socket:
        if not self.has("multipath"):
            raise _UntriedError("needs Multipath TCP")
        return self.connection()

    def link(self) -> Link:
        """A link, without limits, between two hosts of a lab. Raises the same OSError each time if there is none."""
        if self._link is None:
            try:
                lab = self._stack.enter_context(Lab())
                self._link = lab.link(lab.host("client"), lab.host("server"))
            except OSError as error:
                self._link = error
        if isinstance(self._link, OSError):
            raise self._link
        return self._link

    def needed_link(self) -> Link:
        """The same for what cannot be tried without a lab."""
        if not self.has("lab"):
            raise _UntriedError("needs a lab")
        return self.link()


def find(names: Iterable[str] | None = None) -> list[Finding]:
    """Try abilities, all of them by default, and return what was found, in the order of ABILITIES."""
    wanted = {ability.name for ability in ABILITIES} if names is None else set(names)
    with Ground() as ground:
        return [ground.find(ability.name) for ability in ABILITIES if ability.name in wanted]


@functools.cache
def lack(name: str) -> str | None:
    """What is lacking for an ability, as a reason to skip a test; None if nothing is. Tried once a process."""
    if name not in _BY_NAME:
        raise ValueError(f"an ability is one of {', '.join(_BY_NAME)}, not {name!r}")
    [finding] = find([name])
    return None if finding.available else f"needs {finding.what}: {finding.advice}"


# Multipath TCP and its options


def _multipath(ground: Ground) -> None:
    # The errors of a socket that cannot be made say what to do.
    if not ground.connection().is_mptcp:
        raise _Lack("a connection over loopback fell back to TCP: a packet filter here removes the options of MPTCP")


def _mptcp_info(ground: Ground) -> None:
    with _absent("this kernel is older than 5.16: neither a connection's token nor its subflows can be read"):
        ground.multipath_connection().info()


def _full_info(ground: Ground) -> None:
    sock = ground.multipath_connection()
    # It reads the header of its buffer, which must be zeros and cannot be given to Python's own getsockopt.
    buffer, length = ctypes.create_string_buffer(_FULL_INFO_SIZE), ctypes.c_uint32(_FULL_INFO_SIZE)
    with _absent("nothing: MPTCP_TCPINFO and MPTCP_SUBFLOW_ADDRS are read instead, and ids are ours (Linux 6.5)"):
        _check(_libc.getsockopt(sock.fileno(), _SOL_MPTCP, _MPTCP_FULL_INFO, buffer, ctypes.byref(length)))


def _is_mptcp(ground: Ground) -> None:
    with _absent("nothing: MPTCP_INFO tells instead (Linux 6.10)"):
        ground.multipath_connection().getsockopt(socket.IPPROTO_TCP, _TCP_IS_MPTCP)


def _inet_diag(ground: Ground) -> None:
    subflows = ground.multipath_connection().subflows()
    if not subflows or subflows[0].cookie is None:
        raise _Lack(
            "subflows open without it, but nobody tells who accepted them: modprobe tcp_diag mptcp_diag as root "
            "(CONFIG_INET_DIAG, CONFIG_INET_MPTCP_DIAG)"
        )
    if subflows[0].local_id is None:
        raise _Lack(
            "before Linux 6.15 the kernel tells subflows' ids and flags, and all of connections that one holds no "
            "descriptor of, with CAP_NET_ADMIN over this network namespace only: run as root, or work in a lab"
        )


# Who manages paths


def _mptcp_pm(ground: Ground) -> None:
    with _netlink() as netlink:
        _family(netlink)


def _userspace(ground: Ground) -> None:
    if ground.find("lab").available:
        # Hosts start under it.
        host = ground.link().hosts[0]
        host.set_path_manager("kernel")
        host.set_path_manager("userspace")
    else:
        get_path_manager()


def _path_manager(ground: Ground) -> None:
    path = next((path for path in _PATH_MANAGERS if path.exists()), None)
    if path is None:
        # Says that the kernel has none.
        get_path_manager()
        return
    try:
        # Opening asks the kernel, and only writing would change something.
        os.close(os.open(path, os.O_WRONLY))
    except OSError as error:
        sysctl = str(path.relative_to(_PROC)).replace("/", ".")
        if error.errno == errno.EROFS:
            raise _Lack(
                f"/proc/sys is mounted read-only, as containers have it: start the container with "
                f"--sysctl {sysctl}={_USERSPACE[path.name]}, or work in a lab"
            ) from error
        raise _Lack(
            f"{sysctl} may be set with CAP_NET_ADMIN over this network namespace only: run as root, or work in a lab"
        ) from error


_PATH_MANAGERS = (_PROC / "net/mptcp/path_manager", _PROC / "net/mptcp/pm_type")
_USERSPACE = {"path_manager": "userspace", "pm_type": "1"}


def _net_admin(ground: Ground) -> None:
    with _netlink() as netlink:
        try:
            # Without attributes it can do nothing, but the privilege is what the kernel looks at first.
            _request(netlink, _family(netlink), _SUBFLOW_DESTROY)
        except OSError as error:
            if error.errno == errno.EPERM:
                raise _Lack(
                    "path manager commands need CAP_NET_ADMIN in the user namespace that owns this network "
                    "namespace: run as root, give a container --cap-add NET_ADMIN, or work in a lab"
                ) from error
            if error.errno == errno.EOPNOTSUPP:
                raise _Lack("this kernel is older than 5.19 and has no commands that open subflows") from error


def _here(ground: Ground) -> None:
    """The parts of opening a subflow. Doing it would take the path manager of this namespace for a moment."""
    for name in ("multipath", "mptcp_info", "mptcp_pm", "userspace", "net_admin"):
        if not ground.has(name):
            raise _Lack(f"lacks: {ground.find(name).what}")
    if not ground.has("path_manager") and get_path_manager() != "userspace":
        raise _Lack(f"connections here are under the in-kernel path manager; {ground.find('path_manager').advice}")


# The lab


def _user_namespaces(ground: Ground) -> None:
    try:
        _in_child("user_namespaces")
    except PermissionError as error:
        raise _Lack(_knobs() or error.strerror) from error


def _knobs() -> str:
    """The sysctls that deny namespaces, with what to set them to; empty if none does."""
    wrong = [
        f"{sysctl} is {value}: set it to {wanted}"
        for sysctl, denying, wanted in _KNOBS
        if (value := _read(_PROC / sysctl.replace(".", "/"))) == denying
    ]
    return "; ".join(wrong) + " as root" if wrong else ""


_KNOBS = (
    ("user.max_user_namespaces", "0", "10000"),
    ("user.max_net_namespaces", "0", "10000"),
    # Debian's and Ubuntu's own
    ("kernel.unprivileged_userns_clone", "0", "1"),
    ("kernel.apparmor_restrict_unprivileged_userns", "1", "0"),
)


def _lab(ground: Ground) -> None:
    with _absent(
        "/proc/sys is mounted read-only, as in containers: mount it read-write, or give the container --privileged",
        errno.EROFS,
    ):
        try:
            ground.link()
        except PermissionError as error:
            raise _Lack(_knobs() or error.strerror) from error


def _in_lab(ground: Ground) -> None:
    link = ground.needed_link()
    with _connected(link) as (sock, _):
        # Over the same addresses once more: it is the second subflow all the same.
        opened = sock.open_subflow(timeout=_DEADLINE)
        assert opened is not None
        opened.close()


def _sock_destroy(ground: Ground) -> None:
    link = ground.needed_link()
    before = link.hosts[0].set_path_manager("kernel")
    try:
        with (
            _connected(link) as (sock, _),
            _absent("subflows under the in-kernel path manager cannot be closed (CONFIG_INET_DIAG_DESTROY)"),
        ):
            sock.close_subflow(sock.subflows()[0], force=True)
    finally:
        link.hosts[0].set_path_manager(before)


def _nsenter(ground: Ground) -> None:
    with _absent("labs start programs by nsenter: install util-linux", errno.ENOENT):
        _programs.nsenter()
    if not ground.has("lab"):
        return
    nothing = subprocess.DEVNULL
    status = ground.link().hosts[0].run(["true"], stdin=nothing, stdout=nothing, stderr=nothing).returncode
    if status:
        raise _Lack(f"{_programs.nsenter()} cannot enter a lab's host: put util-linux's first on the PATH")


def _tbf(ground: Ground) -> None:
    link = ground.needed_link()
    with _absent("links of a lab can have no rate: modprobe sch_tbf as root (CONFIG_NET_SCH_TBF)", errno.ENOENT):
        link.set(rate="100mbit")
    link.set(rate=None)


def _netem(ground: Ground) -> None:
    link = ground.needed_link()
    link.set(delay="1ms", loss="0.1%")
    link.set(delay=None, loss=None)


# Other interfaces


def _btf(ground: Ground) -> None:
    if not os.access("/sys/kernel/btf/vmlinux", os.R_OK):
        raise _Lack(
            "/sys/kernel/btf/vmlinux is not readable: mount /sys, or use a kernel with CONFIG_DEBUG_INFO_BTF; without "
            "it options reach no single subflow"
        )


def _bpf(ground: Ground) -> None:
    # The default of every socket, so that nothing changes; it is read by BPF alone.
    [subflow] = ground.multipath_connection().subflows()
    try:
        subflow.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 9)
    except PermissionError as error:
        raise _Lack(f"{error.strerror}") from error
    except UnsupportedError as error:
        raise _Lack(f"{error.strerror}") from error


def _user_notification(ground: Ground) -> None:
    if os.uname().machine not in _SYS_SECCOMP:
        raise _UntriedError(f"the number of seccomp(2) on {os.uname().machine} is not known here")
    with _absent(
        "other programs' calls cannot be served: needs Linux 5.19 with CONFIG_SECCOMP_FILTER, and a container whose "
        "own filter allows seccomp(2)",
        errno.EINVAL,
        errno.ENOSYS,
        errno.EPERM,
        errno.EACCES,
        errno.EBUSY,
    ):
        _in_child("user_notification")


_SYS_SECCOMP = {"x86_64": 317, "aarch64": 277, "riscv64": 277, "loongarch64": 277, "ppc64le": 358, "s390x": 348}


def _sched_fifo(ground: Ground) -> None:
    failures = []

    def try_it() -> None:
        try:
            # Of this thread alone, which ends here.
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
        except OSError as error:
            failures.append(error)

    thread = threading.Thread(target=try_it)
    thread.start()
    thread.join()
    if failures:
        raise _Lack(
            "measuring goes on at normal priority and misses more ticks: needs CAP_SYS_NICE, or RLIMIT_RTPRIO of at "
            "least 1 (rtprio in /etc/security/limits.conf)"
        )


ABILITIES = (
    Ability("multipath", "Multipath TCP connections", _multipath),
    Ability("mptcp_info", "MPTCP_INFO: state of a connection", _mptcp_info),
    Ability("full_info", "MPTCP_FULL_INFO: subflows at one moment", _full_info),
    Ability("is_mptcp", "TCP_IS_MPTCP: whether it fell back", _is_mptcp),
    Ability("inet_diag", "inet_diag: subflows' ids and flags", _inet_diag),
    Ability("mptcp_pm", "generic netlink family mptcp_pm", _mptcp_pm),
    Ability("userspace", "userspace path manager", _userspace),
    Ability("path_manager", "setting the path manager here", _path_manager),
    Ability("net_admin", "CAP_NET_ADMIN here", _net_admin),
    Ability("here", "opening subflows here", _here),
    Ability("user_namespaces", "user namespaces with networks of their own", _user_namespaces),
    Ability("lab", "labs", _lab),
    Ability("in_lab", "opening subflows in a lab", _in_lab),
    Ability("nsenter", "nsenter: programs in a lab", _nsenter),
    Ability("tbf", "tbf: rates in a lab", _tbf),
    Ability("netem", "netem: delay, loss, jitter in a lab", _netem),
    Ability("sock_destroy", "SOCK_DESTROY: closing in-kernel subflows", _sock_destroy),
    Ability("btf", "BTF of the kernel (the file is there)", _btf),
    Ability("bpf", "options on one subflow", _bpf),
    Ability("user_notification", "seccomp user notification", _user_notification),
    Ability("sched_fifo", "SCHED_FIFO: measuring on time", _sched_fifo),
)

_BY_NAME = {ability.name: ability for ability in ABILITIES}


# What the probes use


@contextlib.contextmanager
def _absent(advice: str, *numbers: int) -> Iterator[None]:
    """Make the advice of the errors with which a kernel says that it has no such thing."""
    try:
        yield
    except OSError as error:
        if error.errno in (numbers or (errno.EOPNOTSUPP, errno.ENOPROTOOPT, errno.ENOSYS)):
            raise _Lack(advice) from error
        raise


@contextlib.contextmanager
def _connected(link: Link) -> Iterator[tuple[Socket, Socket]]:
    """A connection between the ends of a link, fully established."""
    client, server = link.hosts
    with (
        server.create_server((link.address(server), 0)) as listener,
        client.create_connection(listener.getsockname(), _DEADLINE) as sock,
    ):
        listener.settimeout(_DEADLINE)
        peer, _ = listener.accept()
        with peer:
            _exchange(sock, peer)
            yield sock, peer


def _exchange(sock: Socket, peer: Socket) -> None:
    """A byte in each direction, after which both ends are fully established."""
    peer.settimeout(_DEADLINE)
    for sender, receiver in ((sock, peer), (peer, sock)):
        sender.sendall(b"x")
        receiver.recv(1)


def _read(path: Path) -> str | None:
    try:
        return path.read_text().strip()
    except OSError:
        return None


_libc = ctypes.CDLL(None, use_errno=True)


def _check(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


# linux/netlink.h, linux/genetlink.h and linux/mptcp_pm.h
_MESSAGE = struct.Struct("=IHHII")
_GENERIC = struct.Struct("=BBH")
_ATTRIBUTE = struct.Struct("=HH")
_NLM_F_REQUEST_ACK = 1 | 4
_NLMSG_ERROR = 2
_GENL_ID_CTRL = 16
_CTRL_CMD_GETFAMILY = 3
_CTRL_ATTR_FAMILY_ID = 1
_CTRL_ATTR_FAMILY_NAME = 2
_SUBFLOW_DESTROY = 11


def _netlink() -> socket.socket:
    netlink = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 16)  # NETLINK_GENERIC
    netlink.settimeout(_DEADLINE)
    return netlink


def _request(netlink: socket.socket, family: int, command: int, attributes: bytes = b"") -> bytes:
    """Send a command of a generic netlink family and return the attributes of its reply; raise the error in it."""
    payload = _GENERIC.pack(command, 1, 0) + attributes
    netlink.send(_MESSAGE.pack(_MESSAGE.size + len(payload), family, _NLM_F_REQUEST_ACK, 1, 0) + payload)
    reply = b""
    while True:
        message = netlink.recv(1 << 16)
        if _MESSAGE.unpack_from(message)[1] != _NLMSG_ERROR:
            reply = message[_MESSAGE.size + _GENERIC.size :]
            continue
        number = -struct.unpack_from("=i", message, _MESSAGE.size)[0]
        if number:
            raise OSError(number, os.strerror(number))
        return reply


def _family(netlink: socket.socket) -> int:
    name = b"mptcp_pm\0"
    attribute = _ATTRIBUTE.pack(_ATTRIBUTE.size + len(name), _CTRL_ATTR_FAMILY_NAME) + name + bytes(-len(name) % 4)
    with _absent("this kernel has no Multipath TCP, or none that is told what to do (CONFIG_MPTCP)", errno.ENOENT):
        reply = _request(netlink, _GENL_ID_CTRL, _CTRL_CMD_GETFAMILY, attribute)
    while reply:
        length, kind = _ATTRIBUTE.unpack_from(reply)
        if kind == _CTRL_ATTR_FAMILY_ID:
            return int.from_bytes(reply[4:6], sys.byteorder)
        reply = reply[length + -length % 4 :]
    raise OSError(errno.EPROTO, "CTRL_CMD_GETFAMILY: a reply without the family's number")


# What is tried in a process of its own, because there is no way back


def _in_child(name: str) -> None:
    """Run a function of _CHILDREN in a new process, and raise the OSError that it met."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    command = [sys.executable, "-P", "-m", "mptcp._abilities", name]
    done = subprocess.run(
        command, stdin=subprocess.DEVNULL, capture_output=True, text=True, env=environment, timeout=_DEADLINE
    )
    if done.returncode:
        number, _, text = done.stdout.partition(" ")
        if not number:
            raise RuntimeError(f"the probe of {name} failed:\n{done.stderr}")
        raise OSError(int(number), text.strip())


def _enter_namespaces() -> None:
    from mptcp.lab import _namespaces

    _namespaces.enter_new_user_namespace()
    _namespaces.enter_new_network_namespace()


def _install_filter() -> None:
    """Get a listener for a filter that lets every call pass."""

    # linux/filter.h, linux/seccomp.h, linux/prctl.h
    class Filter(ctypes.Structure):
        _fields_ = (
            ("code", ctypes.c_uint16),
            ("jt", ctypes.c_uint8),
            ("jf", ctypes.c_uint8),
            ("k", ctypes.c_uint32),
        )

    class Program(ctypes.Structure):
        _fields_ = (("length", ctypes.c_uint16), ("filter", ctypes.POINTER(Filter)))

    allow = Filter(0x06, 0, 0, 0x7FFF0000)  # BPF_RET | BPF_K, SECCOMP_RET_ALLOW
    program = Program(1, ctypes.pointer(allow))
    new_listener, wait_killable_recv = 1 << 3, 1 << 5
    _check(_libc.prctl(38, 1, 0, 0, 0))  # PR_SET_NO_NEW_PRIVS
    number = _SYS_SECCOMP[os.uname().machine]
    _check(_libc.syscall(number, 1, new_listener | wait_killable_recv, ctypes.byref(program)))


_CHILDREN = {"user_namespaces": _enter_namespaces, "user_notification": _install_filter}

if __name__ == "__main__":
    try:
        _CHILDREN[sys.argv[1]]()
    except OSError as error:
        print(error.errno, error.strerror)
        sys.exit(1)
