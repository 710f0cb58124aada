from __future__ import annotations

from typing import TYPE_CHECKING

from ._paths import Path, PathName, PathPolicy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .._connection import Connection
    from .._core import Subflow
    from .._policy import Opening


class Backup(PathPolicy):
    """Use two paths, of which the second carries data only while there is no subflow on the first.

    The subflow on ``backup`` stays open all the time, with the backup flag (RFC 8684, section 3.3.8). When the
    interface of ``primary`` goes down, its subflow is closed, so that the kernel does not have to detect the failure.
    """

    def __init__(self, primary: PathName, backup: PathName) -> None:
        super().__init__()
        self.primary: Path = Path(primary)
        self.backup: Path = Path(backup)

    def wanted(self, conn: Connection, subflows: list[Subflow], opening: Sequence[Opening]) -> None:
        self.ensure(conn, subflows, opening, self.primary)
        self.ensure(conn, subflows, opening, self.backup, backup=True)
        spare = [subflow for subflow in self.on_path(self.backup, subflows) if self.is_up(subflow)]
        for subflow in spare:
            if not subflow.backup:
                subflow.set_backup(True)
        for subflow in self.on_path(self.primary, subflows) if spare else ():
            if not self.is_up(subflow):
                conn.close_subflow(subflow)
