from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from ._path import Path, PathName
from ._path_policy import PathPolicy

if TYPE_CHECKING:
    from collections.abc import Sequence

    from .._connection import Connection
    from .._core import Subflow
    from .._policy import Opening


class Prefer(PathPolicy):
    """Use one path at a time: the first of ``order`` that works. With ``Prefer("c", "a", "b")``, a over b if c is down.

    A path works if its interface is up and the peer accepts a subflow over it. The connection moves to a better path as
    soon as that one works, and only then are the subflows on the others closed: make before break.

    Raises ValueError without a path.
    """

    def __init__(self, *order: PathName, exclude: PathName | Iterable[PathName] = (), bind: bool | None = None) -> None:
        super().__init__(exclude=exclude, bind=bind)
        if not order:
            raise ValueError("Prefer() needs a path")
        self.order: list[Path] = [Path(name) for name in order]

    def wanted(self, conn: Connection, subflows: list[Subflow], opening: Sequence[Opening]) -> None:
        for path in self.order:
            best = [subflow for subflow in self.on_path(path, subflows) if self.is_up(subflow)]
            if best:
                for other in subflows:
                    if other not in best:
                        conn.close_subflow(other)
                self._prepare(conn, path, best)
                return
            if self.ensure(conn, subflows, opening, path):
                return

    def _prepare(self, conn: Connection, path: Path, best: list[Subflow]) -> None:
        """Order what is done anyway when a subflow on the path in use is lost, or its interface goes down."""
        for subflow in best:
            self.keep(conn, subflow, path=path)
            interface = self.local_of(subflow).interface
            others = [(other, local) for other in self.order for local in self.addresses_on(other, conn)]
            spare = next(((other, local) for other, local in others if local.interface != interface), None)
            if interface and spare is not None:
                self.when_lost(conn, interface, spare[1], path=spare[0])
