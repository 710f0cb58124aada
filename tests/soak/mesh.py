"""The policy of the soak: a subflow from every local address, opened as a backup and made a full one when the peer has
accepted it. Data that follows a join at once meets a bug of the kernel: docs/kernel-bugs.md."""

from __future__ import annotations

import contextlib
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

    def on_subflow_established(self, conn: Connection, subflow: Subflow) -> None:
        super().on_subflow_established(conn, subflow)
        with contextlib.suppress(OSError):  # gone meanwhile
            subflow.set_backup(False)


policies = [Mesh()]
