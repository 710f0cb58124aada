"""The policy of the soak: a subflow from every local address, as a backup. Data that follows a join at once meets a bug
of the kernel, docs/kernel-bugs.md, so that making them full ones is left to who knows that the server has them."""

from __future__ import annotations

from collections.abc import Sequence

from mptcp import Connection, Opening, Subflow
from mptcp.policies import FullMesh


class Mesh(FullMesh):
    def wanted(self, conn: Connection, subflows: list[Subflow], opening: Sequence[Opening]) -> None:
        there = {one.local[0] for one in (*subflows, *opening)}
        for local in self.addresses():
            remotes = self.remotes(conn, local)
            if remotes and local.address not in there and self.may_try(conn, local):
                conn.open_subflow(local.address, remotes[0], backup=True)


policies = [Mesh()]
