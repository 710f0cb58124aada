"""What other tools read and do of a connection: ss by its text, pyroute2, mptcplib. What is not here is Missing."""

from __future__ import annotations

import errno
import importlib
import importlib.util
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Callable
from typing import Any, TypeAlias

import mptcp
import pure_python
from pyroute2 import DiagSocket
from pyroute2.netlink import NLM_F_ACK, NLM_F_REQUEST
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.generic import GenericNetlinkSocket
from pyroute2.netlink.generic.mptcp import MPTCP_GENL_NAME, mptcp_msg
from turns import Missing

Tool: TypeAlias = Callable[[], object] | Missing

_SUBFLOW_CREATE, _SUBFLOW_DESTROY = 10, 11
_ESTABLISHED = 1
_INET_DIAG_INFO = 1 << 1
_ULP_FLAG_FULLY_ESTABLISHED = 1 << 6
_IPPROTO_MPTCP = 262


def ss_text(*options: str) -> Tool:
    """Runs ss and makes of each line a dict, as scripts do."""
    program = shutil.which("ss")
    if program is None:
        return Missing("ss is not installed")

    def read() -> list[dict[str, str]]:
        done = subprocess.run([program, *options], capture_output=True, text=True, check=True)
        return [dict(re.findall(r"([a-z_]+):(\S+)", line)) for line in done.stdout.splitlines()]

    return read


def mptcplib(name: str, sock: socket.socket) -> Tool:
    """A function of mptcplib, of this socket."""
    if importlib.util.find_spec("mptcplib") is None:
        return Missing("mptcplib is not installed: pip install mptcplib")
    function = getattr(importlib.import_module("mptcplib"), name)
    return lambda: function(sock)


class _Command(mptcp_msg):
    """pyroute2 has the message of endpoints and limits: the attributes of a connection's commands are added."""

    nla_map = (
        *mptcp_msg.nla_map,
        ("MPTCP_PM_ATTR_TOKEN", "uint32"),
        ("MPTCP_PM_ATTR_LOC_ID", "uint8"),
        ("MPTCP_PM_ATTR_ADDR_REMOTE", "pm_addr"),
    )


class Pyroute2:
    """An IPv4 connection by pyroute2: inet_diag, and the path manager's commands. In the calling thread's namespace."""

    def __init__(self, sock: mptcp.Socket) -> None:
        self._token = sock.token
        self._diag = DiagSocket()
        self._diag.bind()
        self._commands = GenericNetlinkSocket()
        self._commands.bind(MPTCP_GENL_NAME, _Command)
        self._id = 100

    def close(self) -> None:
        self._diag.close()
        self._commands.close()

    def subflows(self) -> list[Any]:
        """The TCP sockets of the namespace that are subflows, with their tcp_info."""
        return [each for each in self._tcp() if each.get_attr("INET_DIAG_ULP_INFO")]

    def open(self, local: tuple[str, int], remote: tuple[str, int]) -> int:
        """Opens a subflow: the nanoseconds until the peer had accepted it."""
        for _ in range(255):
            self._id = self._id % 255 + 1
            start = time.perf_counter_ns()
            try:
                self._command(_SUBFLOW_CREATE, local, remote, self._id)
                break
            except NetlinkError as error:
                # The id is taken: closing a subflow frees that of any one from the same address.
                if error.code != errno.EINVAL:
                    raise
        while not any(map(_is_accepted, self._tcp(local[1]))):
            pass
        return time.perf_counter_ns() - start

    def destroy(self, local: tuple[str, int], remote: tuple[str, int]) -> int:
        """The nanoseconds of the command that closes a subflow."""
        start = time.perf_counter_ns()
        self._command(_SUBFLOW_DESTROY, local, remote, None)
        return time.perf_counter_ns() - start

    def _tcp(self, port: int = 0) -> tuple[Any, ...]:
        found = self._diag.get_sock_stats(family=socket.AF_INET, extensions=_INET_DIAG_INFO, sport=port)
        return tuple(found)

    def _command(self, command: int, local: tuple[str, int], remote: tuple[str, int], id: int | None) -> None:
        message = _Command()
        message["cmd"] = command
        message["version"] = 1
        message["attrs"] = [
            ("MPTCP_PM_ATTR_TOKEN", self._token),
            ("MPTCP_PM_ATTR_ADDR", _address(local, id), 0x8000),
            ("MPTCP_PM_ATTR_ADDR_REMOTE", _address(remote, None), 0x8000),
        ]
        self._commands.nlm_request(message, msg_type=self._commands.prid, msg_flags=NLM_F_REQUEST | NLM_F_ACK)


def pyroute2_connections() -> Tool:
    """The Multipath TCP connections of the namespace by pyroute2's inet_diag."""
    diag = DiagSocket()
    diag.bind()

    def read() -> object:
        return diag.get_sock_stats(family=socket.AF_INET, protocol=_IPPROTO_MPTCP)

    try:
        read()
    except Exception as error:
        # Its request has room for protocols below 256, and no attribute for others.
        diag.close()
        return Missing(f"pyroute2 cannot ask for them: {error}")
    return read


def _address(end: tuple[str, int], id: int | None) -> dict[str, Any]:
    names = {"FAMILY": socket.AF_INET, "ADDR4": end[0], "PORT": end[1], "ID": id}
    return {"attrs": [(f"MPTCP_PM_ADDR_ATTR_{name}", value) for name, value in names.items() if value is not None]}


def _is_accepted(message: Any) -> bool:
    ulp = message.get_attr("INET_DIAG_ULP_INFO")
    return (
        message["idiag_state"] == _ESTABLISHED
        and ulp is not None
        and bool(pure_python.ulp_info(bytes.fromhex(ulp.replace(":", "")))[0] & _ULP_FLAG_FULLY_ESTABLISHED)
    )
