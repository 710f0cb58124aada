"""Run one of CPython's own test modules with one kind of socket, and report each test's outcome on a descriptor.

Run by cpython.py, in a network namespace of its own. It imports nothing that imports socket before it has replaced the
class: what a module imports from there is then the replacement.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys

IPPROTO_MPTCP = 262

_held = contextlib.ExitStack()  # to the end of the process


def use_bare() -> None:
    """A socket.socket whose default protocol is 262, and nothing else."""
    import socket

    class Bare(socket.socket):
        def __init__(self, family: int = -1, type: int = -1, proto: int = -1, fileno: int | None = None) -> None:
            if fileno is None and is_tcp(family, type, proto):
                proto = IPPROTO_MPTCP
            super().__init__(family, type, proto, fileno)

    # To replace the class is what this is for.
    socket.socket = Bare  # type: ignore[misc]


def use_socket() -> None:
    """mptcp.Socket in place of socket.socket. Of other families and types, it is a socket of their own protocol."""
    import socket

    import mptcp

    class Socket(mptcp.Socket):
        def __init__(self, family: int = -1, type: int = -1, proto: int = -1, fileno: int | None = None) -> None:
            if fileno is None and proto == -1 and not is_tcp(family, type, proto):
                proto = 0
            super().__init__(family, type, proto, fileno)

    # As above.
    socket.socket = Socket  # type: ignore[misc]


def use_patch() -> None:
    """mptcp.patch(), to the end of the process."""
    import mptcp

    _held.enter_context(mptcp.patch())


def is_tcp(family: int, type: int, proto: int) -> bool:
    import _socket

    return (
        family in (-1, _socket.AF_INET, _socket.AF_INET6)
        and (type == -1 or type & ~(_socket.SOCK_NONBLOCK | _socket.SOCK_CLOEXEC) == _socket.SOCK_STREAM)
        and proto in (-1, 0, _socket.IPPROTO_TCP)
    )


KINDS = {"tcp": lambda: None, "bare": use_bare, "Socket": use_socket, "patch": use_patch}


def counters() -> dict[str, int]:
    """What the kernel counts in this network namespace: accepted TCP connections, and those with Multipath TCP."""
    found = {}
    for name in ("/proc/self/net/snmp", "/proc/self/net/netstat"):
        with open(name) as file:
            lines = file.read().splitlines()
        for keys, values in zip(lines[::2], lines[1::2], strict=True):
            group = keys.split(":")[0]
            for key, value in zip(keys.split()[1:], values.split()[1:], strict=True):
                found[f"{group}.{key}"] = int(value)
    # SYNs with MP_CAPABLE at a Multipath TCP listener, less those that fell back in the third ACK. MPCapableACKRX would
    # leave out connections that ended before that.
    multipath = found.get("MPTcpExt.MPCapableSYNRX", 0) - found.get("MPTcpExt.MPCapableFallbackACK", 0)
    return {"accepted": found["Tcp.PassiveOpens"], "multipath": multipath}


def end_with_the_program(watched: int, report: int) -> None:
    """Kill this process's group when the program that started it has ended, which closes the other end of ``watched``.

    A process of its own does that, because what the tests start is to end too. It is nobody's child here, as some tests
    wait for any child.
    """
    if (middle := os.fork()) == 0:
        if os.fork() == 0:
            os.close(report)
            os.read(watched, 1)
            os.killpg(0, signal.SIGKILL)
        os._exit(0)
    os.waitpid(middle, 0)
    os.close(watched)


def loopback_up() -> None:
    import fcntl
    import socket
    import struct

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        fcntl.ioctl(sock, 0x8914, struct.pack("16sh14x", b"lo", 0x41))  # SIOCSIFFLAGS: IFF_UP | IFF_RUNNING


def main() -> None:
    task = json.loads(sys.argv[1])
    end_with_the_program(task["watched"], task["report"])
    loopback_up()
    KINDS[task["kind"]]()

    import importlib.util
    import re
    import types
    import unittest

    import test
    from test import support

    # A test module that asks for the network uses the loopback interface only.
    support.use_resources = ("network",) if task["module"] == "test.test_socketserver" else ()
    if task["module"] == "test.test_ftplib":
        # The kernel refuses an option that its server sets: every test waits for this long.
        support.LOOPBACK_TIMEOUT = 1.0
    if task["module"] == "test.test_multiprocessing_fork" and importlib.util.find_spec(task["module"]) is None:
        # Some builds leave this file out, which runs _test_multiprocessing with one way to start processes.
        import test._test_multiprocessing

        module = sys.modules[task["module"]] = types.ModuleType(task["module"])
        # The package does not have it: that is why it is made here.
        test.test_multiprocessing_fork = module  # type: ignore[attr-defined]
        test._test_multiprocessing.install_tests_in_module_dict(vars(module), "fork")
    report = os.fdopen(task["report"], "w", buffering=1)

    def tell(case: unittest.TestCase, outcome: str, text: str = "") -> None:
        report.write(json.dumps({"test": case.id(), "outcome": outcome, "text": text, **counters()}) + "\n")

    class Result(unittest.TestResult):
        def startTest(self, test: unittest.TestCase) -> None:
            super().startTest(test)
            tell(test, "started")

        def addSuccess(self, test: unittest.TestCase) -> None:
            tell(test, "passed")

        def addError(self, test: unittest.TestCase, err: object) -> None:
            tell(test, "failed", self._exc_info_to_string(err, test))

        addFailure = addError

        def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: object) -> None:
            if err is not None:
                tell(test, "failed", self._exc_info_to_string(err, test))

        def addSkip(self, test: unittest.TestCase, reason: str) -> None:
            tell(test, "skipped", reason)

        def addExpectedFailure(self, test: unittest.TestCase, err: object) -> None:
            tell(test, "passed")

        def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:
            tell(test, "failed", "unexpected success")

    def flat(suite: unittest.TestSuite) -> list[unittest.TestCase]:
        return [test for each in suite for test in (flat(each) if isinstance(each, unittest.TestSuite) else [each])]

    tests = flat(unittest.defaultTestLoader.loadTestsFromName(task["module"]))
    if task["classes"]:
        tests = [test for test in tests if re.search(f"{task['classes']}|_FailedTest", test.id())]
    # Addresses of VSOCK belong to the machine, not to a network namespace.
    tests = [test for test in tests if "VSOCK" not in test.id()]
    if task["only"] is not None:
        tests = [test for test in tests if test.id() in task["only"]]
    tests = [test for test in tests if test.id() not in task["done"]]
    unittest.TestSuite(tests).run(Result())
    report.write(json.dumps({"end": True, **counters()}) + "\n")
    report.flush()
    os._exit(0)  # whatever threads and children the tests have left


if __name__ == "__main__":
    main()
