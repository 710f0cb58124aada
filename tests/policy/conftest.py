"""Three links and what runs over them, for the tests of policies."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Callable, Iterator

import mptcp
import pytest
from flows import PORT, SENDER, Flow, Site
from mptcp.lab import Lab, Link
from support import PYTHON, RUN


@pytest.fixture
def site(mptcp_lab: Lab) -> Iterator[Site]:
    client, server = mptcp_lab.host("client"), mptcp_lab.host("server")
    links = [mptcp_lab.link(client, server, rate="20mbit") for _ in range(3)]
    with server.create_server(("", PORT), backlog=64) as listener, server.run_policy(mptcp.Policy()):
        site = Site(client, server, links, listener)
        thread = threading.Thread(target=site.serve)
        thread.start()
        yield site
        with contextlib.suppress(OSError):
            listener.shutdown(2)
        thread.join(10)


@pytest.fixture
def start(site: Site) -> Iterator[Callable[..., Flow]]:
    with contextlib.ExitStack() as stack:

        def start(link: Link, to: Link | None = None, executable: str | None = None) -> Flow:
            """Begins over a link, to the server's address on another one, which that link leads to as well."""
            ends = link.address(site.client), (to or link).address(site.server)
            command = [*RUN, executable or PYTHON, "-c", SENDER, *ends, str(PORT)]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            process = stack.enter_context(site.client.popen(command, text=True, **pipes))
            stack.callback(process.kill)
            return Flow(site, process)

        yield start
