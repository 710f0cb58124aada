"""mptcp.patch(): every TCP socket that Python code of this process creates is Multipath TCP."""

from __future__ import annotations

import _socket
import functools
import inspect
import os
import socket
import sys
import threading
import types
import warnings
from collections.abc import Callable
from typing import Any, TypeVar, cast

from . import _core
from ._errors import UnsupportedError
from ._socket import IPPROTO_MPTCP, is_tcp_stream

VARIABLE = "MPTCP_PATCH"
"""Is 1 while the process is patched. A process that imports mptcp with it, as a child may, is patched until it ends."""

_PARAMETERS = ("family", "type", "proto", "fileno")

_Function = TypeVar("_Function", bound=Callable[..., Any])

# Of the same thread again, so that a signal handler may fork, or patch, while its thread patches.
_lock = threading.RLock()
_depth = 0
# What each patched class had as its own constructor; None for the one that it inherits.
_originals: dict[type[Any], Callable[..., None] | None] = {}
_variable_before: str | None = None


def patch() -> _Block:
    """Make the TCP sockets that this process creates within the block Multipath TCP.

    It covers the whole process with all its threads. Blocks can be nested and can overlap; the end of the last one
    undoes it. Sockets that exist by then stay what they are. It is also a decorator for functions and coroutine
    functions, each call of which is a block; raises TypeError for generator functions.

    The classes stay the same: their constructors change, those of socket.socket and of any other class that derives
    directly from the C class, such as gevent's, even if it replaces socket.socket within the block. So everything in
    Python that creates a socket is covered, create_connection() and create_server() included, isinstance() holds for
    older sockets, and a module that imported the class before has it too. Protocols 0, -1, IPPROTO_TCP and 262 of
    SOCK_STREAM with AF_INET or AF_INET6 are Multipath TCP, and plain TCP where the kernel has no Multipath TCP,
    net.mptcp.enabled is 0 or a sandbox denies it. Other types and families stay as they are. Such a socket's ``proto``
    is IPPROTO_TCP; wrap() returns a Socket of it, with its subflows.

    Not covered: sockets that C code creates (uvloop, libpq, gRPC), for which there is ``mptcp run``; sockets passed as
    a descriptor; instances of the C class itself, which is socket.SocketType; a class with a constructor of its own
    over the C class, which a RuntimeWarning names; a class that a module derives from the C class within the block and
    does not put in place of socket.socket: import such a module, gevent.socket for instance, before.

    Children: a forked child stays patched, and one that multiprocessing or concurrent.futures starts is patched if this
    process is at that moment, with every start method. For others MPTCP_PATCH=1 is in the environment within the block:
    a program that imports mptcp with it is patched from there on.

    socket(IPPROTO_MPTCP). No privilege.
    """
    return _Block()


class _Block:
    """What patch() returns: a context manager that can be entered again, and a decorator.

    Not a generator's: if nobody kept that, its collection would end the block.
    """

    def __init__(self) -> None:
        self._entered = 0
        self._is_used = False

    def __del__(self) -> None:
        if not self._is_used:
            message = "mptcp.patch() alone has no effect: it is a block, 'with mptcp.patch():', or a decorator"
            warnings.warn(message, RuntimeWarning, stacklevel=2)

    def __enter__(self) -> None:
        self._is_used = True
        start()
        with _lock:
            self._entered += 1

    def __exit__(self, *unused: object) -> None:
        with _lock:
            if not self._entered:
                raise RuntimeError("this block of mptcp.patch() has not been entered, or has ended")
            self._entered -= 1
            _stop()

    def __call__(self, function: _Function) -> _Function:
        """Decorate a function, each call of which is a block."""
        self._is_used = True
        if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
            raise TypeError("mptcp.patch() cannot decorate a generator function: use it as a block within the function")
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def asynchronous(*arguments: Any, **options: Any) -> Any:
                with self:
                    return await function(*arguments, **options)

            return cast("_Function", asynchronous)

        @functools.wraps(function)
        def call(*arguments: Any, **options: Any) -> Any:
            with self:
                return function(*arguments, **options)

        return cast("_Function", call)


def start() -> None:
    """Patch the process; without a counterpart, until it ends."""
    _spawn()  # not under the lock

    global _depth, _variable_before
    with _lock:
        _depth += 1
        if _depth > 1:
            return
        _variable_before = os.environ.get(VARIABLE)
        os.environ[VARIABLE] = "1"
        socket.__class__ = _PatchedModule
        _tell_children()
        passed_over = _patch_classes()
    if passed_over:
        message = f"mptcp.patch() does not cover classes with a constructor of their own: {', '.join(passed_over)}"
        try:
            warnings.warn(message, RuntimeWarning, stacklevel=3)
        except RuntimeWarning:
            _stop()
            raise


# Children of multiprocessing

# What takes over a parent's state in a child. Its sys.path is not yet the parent's, by which this package may be found;
# a child of another interpreter may not have it at all.
_IN_THE_CHILD = """
import sys
path = sys.path[:]
sys.path.append({folder!r})
try:
    from mptcp import _patch
except ImportError:
    pass
else:
    _patch.take_over({patched})
finally:
    sys.path[:] = path
"""
_prepare: Callable[[str], dict[str, Any]] | None = None  # multiprocessing's own function, while ours is in its place


class _State:
    """Whether this process is patched, which a child takes over when it reads this.

    Children that are spawned or come from a forkserver read it before their program. The environment would not do: the
    forkserver keeps that of its own start, and a program need not import mptcp.
    """

    def __reduce__(self) -> tuple[Callable[..., None], tuple[str]]:
        folder = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
        return exec, (_IN_THE_CHILD.format(folder=folder, patched=_depth > 0),)


def take_over(patched: bool) -> None:
    """Be patched as the parent is, whatever the environment says."""
    if patched and not _depth:
        start()
    elif not patched:
        if _depth:
            _stop()
        os.environ.pop(VARIABLE, None)


def _spawn() -> Any:
    """multiprocessing.spawn, which takes longer to import than this package."""
    import multiprocessing.spawn

    return multiprocessing.spawn


def _preparation_data(name: str) -> dict[str, Any]:
    """What multiprocessing sends to a child that it does not fork itself, and the state of this process."""
    data = _prepare(name) if _prepare else {}
    data["mptcp.patch"] = _State()
    return data


def _tell_children() -> None:
    global _prepare
    if _prepare is None:
        _prepare = _spawn().get_preparation_data
        _spawn().get_preparation_data = _preparation_data


def _tell_children_no_more() -> None:
    global _prepare
    # Not if another has wrapped it meanwhile.
    if _spawn().get_preparation_data is _preparation_data:
        _spawn().get_preparation_data = _prepare
        _prepare = None


def _forkserver_runs() -> bool:
    """Whether this process has started multiprocessing's forkserver."""
    module = sys.modules.get("multiprocessing.forkserver")
    return getattr(getattr(module, "_forkserver", None), "_forkserver_pid", None) is not None


def _stop() -> None:
    global _depth
    with _lock:
        _depth -= 1
        if _depth > 0:
            return
        if _variable_before is None:
            os.environ.pop(VARIABLE, None)
        else:
            os.environ[VARIABLE] = _variable_before
        if type(socket) is _PatchedModule:
            # A module's class may be assigned; mypy knows it as read-only.
            socket.__class__ = types.ModuleType  # type: ignore[assignment]
        # A server that was started meanwhile has the environment of that moment.
        if not _forkserver_runs():
            _tell_children_no_more()
        for cls, original in _originals.items():
            # Not what another has put over it meanwhile: below that, ours does nothing any more.
            if not hasattr(cls.__init__, "_mptcp_patch"):
                continue
            if original is None:
                del cls.__init__
            else:
                cls.__init__ = original
        _originals.clear()


class _PatchedModule(types.ModuleType):
    """The module ``socket`` within a block: who replaces socket.socket, as gevent and eventlet do, is patched too."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name == "socket":
            with _lock:
                if _depth:
                    _patch_classes()


def _patch_classes() -> list[str]:
    """Patch every class that derives directly from the C class. Return the names of those that cannot be."""
    passed_over = []
    for cls in _socket.socket.__subclasses__():
        if cls in _originals or hasattr(cls.__init__, "_mptcp_patch"):
            continue
        own = vars(cls).get("__init__")
        code = getattr(own, "__code__", None)
        if own is not None and (code is None or code.co_varnames[1:5] != _PARAMETERS):
            passed_over.append(f"{cls.__module__}.{cls.__qualname__}")
            continue
        _originals[cls] = own
        # To replace the constructor is what this is for.
        cls.__init__ = _constructor(own or cls.__init__)  # type: ignore[method-assign]
    return passed_over


def _constructor(original: Callable[..., None]) -> Callable[..., None]:
    """A socket's constructor that does what ``original`` does, with Multipath TCP while the process is patched."""

    @functools.wraps(original)
    def __init__(self: Any, family: int = -1, type: int = -1, proto: int = -1, fileno: int | None = None) -> None:
        if not _depth:
            original(self, family, type, proto, fileno)
        elif fileno is not None:
            # As a Socket does: asyncio and others recognize a TCP socket by its protocol.
            is_multipath = proto == -1 and _core.protocol_of(fileno) == IPPROTO_MPTCP
            original(self, family, type, socket.IPPROTO_TCP if is_multipath else proto, fileno)
        elif (made := _multipath_socket(family, type, proto)) is None:
            original(self, family, type, socket.IPPROTO_TCP if proto == IPPROTO_MPTCP else proto, None)
        else:
            try:
                original(self, *made)
            except BaseException:
                os.close(made[3])
                raise

    # The mark by which a patched class is known; mypy knows no attributes of functions.
    __init__._mptcp_patch = True  # type: ignore[attr-defined]
    return __init__


def _multipath_socket(family: Any, type: Any, proto: Any) -> tuple[int, int, int, int] | None:
    """What a constructor is to be called with for a new Multipath TCP socket, or None where it is to be another."""
    if not (isinstance(family, int) and isinstance(type, int) and isinstance(proto, int)):
        return None
    family = socket.AF_INET if family == -1 else family
    type = socket.SOCK_STREAM if type == -1 else type
    if not is_tcp_stream(family, type, 0 if proto == -1 else proto):
        return None
    try:
        return family, type, socket.IPPROTO_TCP, _core.create_socket(family, type, IPPROTO_MPTCP, None)
    except (UnsupportedError, PermissionError):
        # A sandbox may deny protocol 262 alone. What denies TCP too says so to the constructor.
        return None


# A child forked while another thread patches would otherwise wait for that thread, which it does not have.
os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release)

if os.environ.get(VARIABLE) == "1":
    start()
