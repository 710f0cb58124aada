"""OnlyFor(programs=...) says so where the names of other users' programs cannot be read."""

from __future__ import annotations

import subprocess
import sys

import pytest
from support import ROOT

# A connection of root's, looked at without the capabilities that it takes to see who holds it.
_LOOK = """
import logging, os, signal, socket, sys
import mptcp.lab
from mptcp.policies import OnlyFor
logging.basicConfig(format="%(message)s")
with mptcp.lab.two_paths() as (client, server, paths):
    with server.create_server(("", 5000)) as listener:
        sock = client.create_connection(("10.0.1.2", 5000))
        token, (ours, theirs) = sock.token, socket.socketpair()
        holder = os.fork()
        if holder == 0:
            ours.close()
            theirs.recv(1)
            os._exit(0)
        sock.close()
        policy = OnlyFor("10.0.2.0/24", programs=["curl"])
        conn = next(one for one in client.connections() if one.token == token)
        if sys.argv[1] == "other":
            os.setresuid(0, 65534, 0)  # the effective capabilities go with uid 0
        print(policy.is_for(conn), policy.is_for(conn), conn.program)
        os.setresuid(0, 0, 0)
        ours.send(b"x")
        os.waitpid(holder, 0)
        ours.close(), theirs.close()
"""


@pytest.mark.skipif(not ROOT, reason="needs root to give up the capabilities for a moment")
def test_a_program_that_cannot_be_read_is_logged_once() -> None:
    command = [sys.executable, "-W", "error", "-c", _LOOK]
    own = subprocess.run([*command, "own"], capture_output=True, text=True, timeout=60)
    assert own.stdout.startswith("False False python"), own
    assert own.stderr == ""
    other = subprocess.run([*command, "other"], capture_output=True, text=True, timeout=60)
    assert other.stdout == "False False None\n", other
    assert other.stderr.count("CAP_DAC_READ_SEARCH") == 1
