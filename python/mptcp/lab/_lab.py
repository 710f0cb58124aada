"""The Lab class: what its user holds of a lab."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import subprocess
import sys
import warnings
import weakref
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from mptcp import _interrupts, _topologies
from mptcp.lab import _channel, _limits, _link, _topology
from mptcp.lab._host import Host
from mptcp.lab._link import Link
from mptcp.lab._state import State

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
# A link's addresses have its number in two bytes. Routing tables and metrics have room for fewer.
_LAST_LINK = 0xFFFF
# The emulator knows so many wires.
_LAST_WIRE = 0xFFFF

# The helper gives programs 10 seconds to end; after that there is nothing more that it could do.
_END_SECONDS = 30.0


_labs: weakref.WeakSet[Lab] = weakref.WeakSet()
# Called with each link that is created, and with each lab before it is closed: the pytest plugin captures what passes
# and records the hosts.
link_created: list[Callable[[Link], None]] = []
lab_closes: list[Callable[[Lab], None]] = []


def open_links() -> list[Link]:
    """Return the links of all labs that are open in this process."""
    return [link for lab in _labs if not lab._closed and lab._owner == os.getpid() for link in lab._links]


class Lab(State):
    """Test hosts in network namespaces of their own, and links between them.

    ::

        with Lab() as lab:
            a, b = lab.host("a"), lab.host("b")
            wifi = lab.link(a, b, rate="20mbit")
            server = b.create_server((wifi.address(b), 5000))
            client = a.create_connection((wifi.address(b), 5000))

    Needs no privilege where unprivileged user namespaces are allowed: without CAP_SYS_ADMIN and CAP_NET_ADMIN the
    hosts are in a user namespace of their own, in which the caller is root. A helper process holds the lab, and one
    small process each host. They end when the lab is closed or the process that created it ends, even if it is killed;
    with them end the programs in the hosts, the links and the namespaces. Only sockets that the caller has not closed
    keep their host's namespace longer.

    Several labs can be open at once, and threads can share one. A lab belongs to the process that created it and cannot
    be used in a forked child.

    Every link passes through a namespace of the lab, where a thread receives its frames, holds them and forwards them
    as the link's limits require (AF_PACKET). ``seed``, an int of 64 bits, fixes the random numbers for losses and
    jitter; without one it is random, and ``lab.seed`` has it. If the machine was too slow, closing the lab issues a
    RuntimeWarning: if more than one frame in a hundred left later than a tenth of its link's delay, if one left very
    late, or if frames were lost because the emulator had no room. See docs/lab.md.

    Raises PermissionError, naming the sysctls, where namespaces are denied.
    """

    def __init__(self, *, seed: int | None = None) -> None:
        super().__init__()
        if seed is not None:
            _link.check_size(seed, "seed", 0, 2**64 - 1)
        #: The seed of the random numbers for losses and jitter.
        self.seed: int = int.from_bytes(os.urandom(8)) if seed is None else seed
        self._hosts: dict[str, Host] = {}
        self._links: list[Link] = []
        self._next_link = self._next_wire = 1

        try:
            with _interrupts.put_off():
                ours, theirs = _channel.pair()
                self._client = _channel.Client(ours, "the lab")
                with theirs:
                    try:
                        self._helper = _start_helper(theirs)
                    except BaseException:
                        self._client.close()
                        raise
                self._closed = False
            self._own_user_namespace = self._client.request("start", seed=self.seed)[0]
        except BaseException:
            self.close()
            raise
        _labs.add(self)

    def __enter__(self) -> Lab:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if not getattr(self, "_closed", True) and self._owner == os.getpid():
            described = repr(self)
            self.close()
            warnings.warn(f"unclosed {described}", ResourceWarning, stacklevel=2, source=self)

    def __repr__(self) -> str:
        hosts = ", ".join(self._hosts)
        return f"<Lab {'closed' if self._closed else 'open'}: {hosts or 'no hosts'}; {len(self._links)} links>"

    @property
    def hosts(self) -> dict[str, Host]:
        """The hosts by name, in the order of their creation."""
        return dict(self._hosts)

    @property
    def links(self) -> list[Link]:
        """The links, in the order of their creation."""
        return list(self._links)

    def host(self, name: str, *, forwarding: bool = False) -> Host:
        """Create a host and return it. With ``forwarding`` it is a router: it forwards packets for other hosts.

        The name is used in messages and in ``lab.hosts``. The host starts under the userspace path manager, without
        links. Raises ValueError for an invalid name or one that the lab already has, UnsupportedError on a kernel
        without Multipath TCP.
        """
        if not isinstance(name, str):
            raise TypeError(f"a host's name must be a str, not {type(name).__name__}")
        if not _NAME.fullmatch(name):
            raise ValueError(
                "a host's name must be 1 to 63 letters, digits, '.', '_' and '-', and begin with a letter or digit, "
                f"not {name!r}"
            )
        with self._locked():
            if name in self._hosts:
                raise ValueError(f"this lab already has a host {name!r}")

            def make() -> Host:
                facts, descriptors = self._client.request("host", forwarding=bool(forwarding))
                self._hosts[name] = Host(self, name, bool(forwarding), facts, descriptors)
                return self._hosts[name]

            def undo(host: Host) -> None:
                # Its process ends with the lab.
                del self._hosts[name]
                host._close()

            return _interrupts.made(make, undo)

    def link(
        self,
        a: Host,
        b: Host,
        *,
        name: str | None = None,
        rate: _link.Rates = None,
        trace: _link.Traces = None,
        queue: _link.Queues = None,
        aqm: _link.Aqms = None,
        loss: _link.Losses = None,
        delay: _link.Times = None,
        jitter: _link.Times = None,
        reorder: bool = False,
        mtu: int = 1500,
        parallel: int = 1,
        congestion_control: str | None = None,
    ) -> Link:
        """Create a link between two hosts, and return it once packets pass.

        Link number n, counted from 1, has the addresses 10.0.n.1 and fd00:0:0:n::1 on ``a``, and 10.0.n.2 and
        fd00:0:0:n::2 on ``b``. The first host, ``a``, routes by source: a packet from its address on the link leaves by
        that link and no other, whatever its destination. The second host routes by destination and reaches ``a``'s
        address only by this link. A subflow's link is therefore the link of its address at the first host, whichever
        side opened it. Other packets take the link to which the destination's address belongs, or the shortest route
        through routers.

        ``name`` is used in messages, recordings and plots. ``mtu`` is the size of the largest IP packet in bytes.
        ``parallel`` is the number of equal links between the same two addresses, each with these limits, among which
        the hosts choose by the hash of addresses and ports (ECMP). The other arguments are those of :meth:`Link.set`;
        where they are pairs, the first value is for what ``a`` sends and the second for what ``b`` sends.

        Raises TypeError and ValueError for wrong arguments, FileNotFoundError for an unknown congestion control.
        """
        return self._link(
            a,
            b,
            name=name,
            rate=rate,
            trace=trace,
            queue=queue,
            aqm=aqm,
            loss=loss,
            delay=delay,
            jitter=jitter,
            reorder=reorder,
            mtu=mtu,
            parallel=parallel,
            congestion_control=congestion_control,
        )

    def _link(
        self,
        a: Host,
        b: Host,
        *,
        name: str | None = None,
        mtu: int = 1500,
        parallel: int = 1,
        congestion_control: str | None = None,
        second_address_of: Link | None = None,
        **limited: Any,
    ) -> Link:
        """Link two hosts; on this link ``b`` can have the address of another of its links."""
        for host in (a, b):
            if not isinstance(host, Host):
                raise TypeError(f"a link must be between two hosts of the lab, not {type(host).__name__}")
            if host._state is not self:
                raise ValueError(f"host {host.name!r} belongs to another lab")
        if a is b:
            raise ValueError("a link must be between two different hosts")
        _link.check_name(name)
        _link.check_size(mtu, "mtu", *_link.MTU)
        _link.check_size(parallel, "parallel", *_link.PARALLEL)
        _link.check_congestion_control(congestion_control)
        limits = _limits.changed(_limits.UNLIMITED, **limited)
        with self._locked():
            for host in (a, b):
                host._check_alive()
            if name is not None and name in [link.name for link in self._links]:
                raise ValueError(f"this lab already has a link {name!r}")
            if self._next_link > _LAST_LINK or self._next_wire + parallel > _LAST_WIRE:
                raise ValueError(f"a lab cannot have more than {_LAST_LINK} links in its lifetime")
            with _interrupts.put_off():
                if self._middle_client is None:
                    facts, (channel,) = self._client.request("middle")
                    self._middle_pid = facts["pid"]
                    self._middle_client = _channel.Client(socket.socket(fileno=channel), "the middle of the links")
            wires = range(self._next_wire, self._next_wire + parallel)
            link = Link(self, self._next_link, wires, a, b, name, mtu, second_address_of)
            # Used up even if it fails or is interrupted, so that what it leaves behind cannot get in the way.
            self._next_link, self._next_wire = self._next_link + 1, self._next_wire + parallel
            before = [(host, {family: [*found] for family, found in host._addresses.items()}) for host in link.hosts]
            try:
                link._configure(limits, congestion_control)
                self._links.append(link)
                for host in link.hosts:
                    for family in link._families:
                        if (address := link.address(host, family)) not in host._addresses[family]:
                            host._addresses[family].append(address)
                self._arrange()
            except BaseException:
                with _interrupts.put_off():
                    if link in self._links:
                        self._links.remove(link)
                    for host, addresses in before:
                        host._addresses.update(addresses)
                    # What cannot be told now is told with the next link.
                    with contextlib.suppress(OSError):
                        link._discard()
                        self._arrange()
                raise
        for call in link_created:
            call(link)
        return link

    def close(self) -> None:
        """End every program in the hosts, and the hosts. Calling it again, or in a forked child, has no effect."""
        if self._owner != os.getpid():
            return
        with _interrupts.put_off():
            if not self._closed:
                for call in lab_closes:
                    call(self)
            with self._lock:
                if self._closed:
                    return
                late = self._lateness()
                self._closed = True
            try:
                self._end()
            finally:
                for host in self._hosts.values():
                    host._close()
                if self._middle_client is not None:
                    self._middle_client.close()
                self._client.close()
        if late:
            warnings.warn(late, RuntimeWarning, stacklevel=2)

    def _lateness(self) -> str:
        """Return a warning if links did not behave as they should have, otherwise an empty string."""
        if self._middle_client is None:
            return ""
        try:
            status = self._middle_client.request("status")[0]
            stats = {link: link.stats() for link in self._links}
        except OSError as error:
            return f"the link emulator ended early ({error.strerror}): results are suspect"
        said = []
        late = {link.name: most for link, directions in stats.items() if (most := link._too_late(directions))}
        if late:
            said.append(f"frames left up to {max(late.values()) / 1e6:.0f} ms late (links {', '.join(late)})")
        if lost := status["overruns"] + status["refused"]:
            where = [link.name for link, directions in stats.items() if any(each.overruns for each in directions)]
            links = f" (links {', '.join(where)})" if where else ""
            said.append(f"the link emulator had no room for {lost} frames{links}")
        return f"{'; '.join(said)}: results are suspect" if said else ""

    def _end(self) -> None:
        for program in self._programs:
            # Here too, because one that has just been started may not be in its host yet.
            program.kill()
        try:
            for capture in list(self._captures):
                capture.close()
        finally:
            self._client.hang_up()
            self._helper.wait(_END_SECONDS)
            for program in self._programs:
                program.wait()

    def _describe(self) -> dict[str, Any]:
        """Describe the hosts and links for the metadata of a recording."""
        return {
            "hosts": {name: host._describe() for name, host in self._hosts.items()},
            "links": [link._describe() for link in self._links],
            "seed": self.seed,
        }

    def _arrange(self) -> None:
        """Tell every host which addresses are behind which of its links, and how much memory its sockets need."""
        edges = [
            _topology.Edge(str(link._number), {host.name: link._addresses(host) for host in link.hosts})
            for link in self._links
        ]
        routers = {host.name for host in self._hosts.values() if host.forwarding}
        for host in self._hosts.values():
            own = [link for link in self._links if host in link.hosts]
            host._arrange(
                remote=_topology.remote_addresses(host.name, edges, routers),
                fallback=_fallback(own, host),
                memory=_link.memory(own, host),
            )


def _fallback(links: Sequence[Link], host: Host) -> dict[str, list[str]]:
    """Return, by each link of which ``host`` is the first host, the networks of its other links to the same host."""
    found: dict[str, list[str]] = {}
    for link in links:
        others = [
            network
            for other in links
            if other is not link and other.hosts == link.hosts and other._second_number == other._number
            for network in other._networks()
        ]
        if link.hosts[0] is host and others:
            found[str(link._number)] = others
    return found


def _open_labs() -> list[Lab]:
    return [lab for lab in list(_labs) if not lab._closed and lab._owner == os.getpid()]


_topologies.register(
    lambda: [lab._describe() for lab in _open_labs()],
    lambda: [link._report() for lab in _open_labs() for link in lab.links],
)


# The packages are created without running their __init__, which import everything that users may need: that would
# take longer than everything else.
_HELPER = """
import sys, types
package, descriptor, parent = sys.argv[1:]
for name, path in (("mptcp", package), ("mptcp.lab", package + "/lab")):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [path]
from mptcp.lab import _helper
_helper.run(int(descriptor), int(parent))
"""


def _start_helper(channel: socket.socket) -> subprocess.Popen[bytes]:
    # A new process rather than a fork, because the caller may have threads. It finds modules where we do.
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path or os.getcwd() for path in sys.path)}
    # A warning that the caller turns into an error should not end the helper, which is not the caller's code.
    environment.pop("PYTHONWARNINGS", None)
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    # Without site, because the path is passed.
    command = [sys.executable, "-P", "-S", "-c", _HELPER, package, str(channel.fileno()), str(os.getpid())]
    return subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        env=environment,
        pass_fds=[channel.fileno()],
        # A terminal's Ctrl-C and a kill of the caller's process group must not reach it.
        start_new_session=True,
    )
