"""The process of one host: it holds the host's network namespace and executes the user's requests there."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from typing import Any

from mptcp import _core, _path_manager
from mptcp.lab import _capture, _channel, _namespaces, _sysctls
from mptcp.lab._network import Network


def main(channel: socket.socket, lifeline: socket.socket, forwarding: bool) -> None:
    """Become the process of a host. ``channel`` leads to the lab's user, ``lifeline`` to the helper process."""

    def start() -> tuple[dict[str, _channel.Handler], Any, list[int]]:
        _namespaces.enter_new_network_namespace()
        _sysctls.make_writable()
        host = _Host(forwarding, (channel, lifeline))
        files = [os.open(f"/proc/self/ns/{name}", os.O_RDONLY | os.O_CLOEXEC) for name in ("net", "user")]
        # The processes of captures are not waited for.
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        return host.handlers, {"pid": os.getpid(), "ipv6": host.ipv6}, files

    if _channel.serve(channel, lifeline, start):
        # The helper was killed: else it would have ended the lab's programs, and this process last.
        _namespaces.kill_programs({_namespaces.identity("/proc/self/ns/net")}, {os.getpid()})


class _Host:
    def __init__(self, forwarding: bool, channels: tuple[socket.socket, ...]) -> None:
        self._channels = channels
        self.ipv6 = os.path.exists("/proc/sys/net/ipv6")
        _sysctls.set_up_host(forwarding=forwarding, ipv6=self.ipv6)
        self.set_path_manager("userspace")
        self._network = Network()
        network = self._network
        self.handlers: dict[str, _channel.Handler] = {
            "socket": self.socket,
            "sysctl": self.sysctl,
            "netstat": self.netstat,
            "get_path_manager": lambda: (_path_manager.get_path_manager(), []),
            "set_path_manager": self.set_path_manager,
            "arrange": self.arrange,
            "capture": self.capture,
            "get_scheduler": lambda: (_core.get_scheduler(), []),
            "set_scheduler": self.set_scheduler,
            "available_schedulers": lambda: (_core.available_schedulers(), []),
            **{
                name: _without_result(getattr(network, name))
                for name in (
                    "attach",
                    "detach",
                    "up",
                    "down",
                    "wait_until_usable",
                    "set_gso_max_segs",
                    "set_mtu",
                    "require_congestion_control",
                    "set_congestion_control",
                )
            },
        }

    def socket(self, family: int, type: int, proto: int, path_manager: str | None) -> _channel.Reply:
        return None, [_core.create_socket(family, type, proto, path_manager)]

    def sysctl(self, path: str, value: str | None) -> _channel.Reply:
        before = _sysctls.read(path)
        if value is not None:
            _sysctls.write(path, value)
        return before, []

    def netstat(self) -> _channel.Reply:
        with open("/proc/self/net/netstat") as file:
            return file.read(), []

    def arrange(self, remote: dict[str, list[str]], fallback: dict[str, list[str]], memory: int) -> _channel.Reply:
        self._network.set_remote(remote, fallback)
        _sysctls.set_socket_memory(memory)
        return None, []

    def set_path_manager(self, name: str) -> _channel.Reply:
        return _path_manager.set_path_manager(name), []

    def set_scheduler(self, name: str) -> _channel.Reply:
        try:
            return {"before": _core.set_scheduler(name)}, []
        except ValueError as error:
            return {"refused": str(error)}, []

    def capture(self, name: str, limit: int | None, descriptors: list[int]) -> _channel.Reply:
        """Start writing the interface's packets to the files, in a process of its own; return a channel to it."""
        with contextlib.ExitStack() as stack:
            files = [stack.enter_context(open(descriptor, "wb")) for descriptor in descriptors]
            recorder = _capture.record(name, limit)
            ours, theirs = _channel.pair()
            if os.fork() == 0:
                try:
                    ours.close()
                    for channel in self._channels:
                        channel.close()
                    _capture.write(recorder, files, limit, theirs)
                except BaseException:
                    sys.excepthook(*sys.exc_info())
                finally:
                    os._exit(0)
            theirs.close()
            recorder.close()
        return None, [ours.detach()]


def _without_result(method: Any) -> _channel.Handler:
    def handler(**arguments: Any) -> _channel.Reply:
        method(**arguments)
        return None, []

    return handler
