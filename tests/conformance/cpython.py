"""Run CPython's own tests with Multipath TCP sockets, and compare by test. docs/conformance.md has the results.

    python tests/conformance/cpython.py [--quick] [--python PATH]... [--write]

The test modules are those of the interpreter's own ``test`` package (Debian: libpython3.11-testsuite). Each runs with
plain TCP ("tcp"), a subclass of socket.socket whose protocol is 262 ("bare"), mptcp.Socket in place of socket.socket
("Socket") and mptcp.patch() ("patch"), each in a network namespace of its own, by root or an ordinary user. A test that
fails is tried twice more, alone. ``--quick`` leaves out slow modules, and runs with the other kinds only the tests that
fail with ours.

The exit status is 1 if a test fails with ours that passes with a bare socket, or if a difference from plain TCP has no
reason in cpython_reasons.toml.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import contextlib
import fnmatch
import json
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path
from typing import Any

import mptcp

HERE = Path(__file__).parent
PAGE = HERE.parent.parent / "docs" / "conformance.md"
RESULTS = HERE.parent.parent / "docs" / "conformance-cpython.json"
REASONS = tomllib.loads((HERE / "cpython_reasons.toml").read_text())["reason"]

KINDS = ("tcp", "bare", "Socket", "patch")
OURS = ("Socket", "patch")
# Of asyncio's test modules, those that use sockets. sendfile is slow: the kernel copies what it sends.
ASYNCIO = {
    "base_events": "quick",
    "buffered_proto": "quick",
    "events": "quick",
    "selector_events": "quick",
    "sendfile": "",
    "server": "quick",
    "sock_lowlevel": "quick",
    "ssl": "quick",
    "sslproto": "quick",
    "streams": "quick",
    "unix_events": "quick",
}
SUITES = {
    "test_socket": "quick",
    "test_ssl": "quick",
    "test_selectors": "quick",
    "test_socketserver": "quick",
    "test_httplib": "quick",
    "test_httpservers": "quick",
    "test_ftplib": "",
    "test_smtplib": "quick",
    "test_poplib": "quick",
    "test_imaplib": "",
    "test_xmlrpc": "quick",
    "test_logging": "",
    "test_multiprocessing_fork": "",
}
# Of multiprocessing's tests, those of its connections, and of logging's, those that use sockets.
CLASSES = {
    "test_multiprocessing_fork": "Connection|Listener|Poll|TestWait|OtherTest",
    "test_logging": "Socket|SysLog|SMTP|HTTP|Datagram|ConfigDict",
}
SILENT = 150.0  # seconds that a test may take: with MPTCP a peer that is gone may be noticed after 60 s only


def modules(python: str, quick: bool) -> dict[str, list[str]]:
    """The modules of each suite."""
    program = "import os, test; print(os.path.dirname(test.__file__))"
    folder = Path(subprocess.run([python, "-c", program], check=True, capture_output=True, text=True).stdout.strip())
    if not (folder / "test_socket.py").exists():
        raise SystemExit(f"{python} has no tests of its own: install libpython3.x-testsuite")
    found = {}
    for suite, kind in SUITES.items():
        if quick and kind != "quick":
            continue
        if (folder / suite).is_dir():
            found[suite] = [f"test.{suite}.{path.stem}" for path in sorted((folder / suite).glob("test_*.py"))]
        else:
            found[suite] = [f"test.{suite}"]
    names = [name for name, kind in ASYNCIO.items() if not quick or kind == "quick"]
    found["test_asyncio"] = [f"test.test_asyncio.test_{name}" for name in names]
    return found


def run(python: str, module: str, suite: str, kind: str, only: list[str] | None = None) -> dict[str, Any]:
    """Run a module in one or more processes: a test that says nothing for too long ends its process."""
    tests: dict[str, list[str]] = {}
    counted = {"accepted": 0, "multipath": 0}
    while True:
        last, running, ended = run_once(python, module, suite, kind, only, tests)
        for key in counted:
            counted[key] += last.get(key, 0)
        if ended:
            break
        if running is None:
            tests[f"{module} (its process)"] = ["failed", "it ended before its tests"]
            break
        tests[running] = ["failed", f"no outcome within {SILENT:.0f} s, or the process ended"]
    return {"tests": tests, **counted}


def run_once(
    python: str, module: str, suite: str, kind: str, only: list[str] | None, tests: dict[str, list[str]]
) -> tuple[dict[str, int], str | None, bool]:
    reading, writing = os.pipe()
    # Its other end is held by this program alone: when that ends, in whatever way, the child's group is killed.
    watched, held = os.pipe()
    task = {
        "kind": kind,
        "module": module,
        "classes": CLASSES.get(suite),
        "only": only,
        "done": list(tests),
        "report": writing,
        "watched": watched,
    }
    last: dict[str, int] = {}
    running, ended = None, False
    unshare = ["unshare", "-n"] if os.geteuid() == 0 else ["unshare", "-Urn"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "PYTHON"))}
    environment["PYTHONPATH"] = str(Path(mptcp.__file__).parent.parent)
    environment["PYTHONDONTWRITEBYTECODE"] = "1"
    with (
        open(held, "w"),
        open(reading) as report,
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        open(os.path.join(folder, "stderr"), "w") as stderr,
    ):
        process = subprocess.Popen(
            [*unshare, python, str(HERE / "cpython_child.py"), json.dumps(task)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=stderr,
            env=environment,
            cwd=folder,
            pass_fds=(writing, watched),
            start_new_session=True,
        )
        os.close(writing)
        os.close(watched)
        try:
            for line in lines(report.fileno()):
                found = json.loads(line)
                last = found
                if found.get("end"):
                    ended = True
                    break
                if found["outcome"] == "started":
                    running = found["test"]
                    continue
                running = None
                if tests.get(found["test"], ("",))[0] != "failed":
                    tests[found["test"]] = [found["outcome"], found["text"]]
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if not ended and running is None:
            print(Path(folder, "stderr").read_text()[-2000:], file=sys.stderr)
    return last, running, ended


def lines(fd: int) -> Any:
    """The lines of a pipe, until nothing comes for SILENT seconds or it is closed."""
    buffer = b""
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ)
        while selector.select(SILENT) and (data := os.read(fd, 1 << 16)):
            *complete, buffer = (buffer + data).split(b"\n")
            yield from complete


def failed(outcome: list[str] | None) -> bool:
    return outcome is not None and outcome[0] == "failed"


class Runs:
    """The outcomes of one interpreter's tests, by suite and kind."""

    def __init__(self, python: str, quick: bool, jobs: int, suites: list[str]) -> None:
        self.python, self.quick, self.jobs = python, quick, jobs
        self.modules = {
            suite: names for suite, names in modules(python, quick).items() if not suites or suite in suites
        }
        self.kinds = [kind for kind in KINDS if kind != "patch" or hasattr(mptcp, "patch")]
        self.outcomes: dict[tuple[str, str], dict[str, list[str]]] = {}
        self.counted: dict[tuple[str, str], dict[str, int]] = {}

    def add(self, suite: str, kind: str, done: dict[str, Any]) -> None:
        outcomes = self.outcomes.setdefault((suite, kind), {})
        counted = self.counted.setdefault((suite, kind), {"accepted": 0, "multipath": 0})
        for test, outcome in done["tests"].items():
            # Of several tries, the best.
            if test not in outcomes or failed(outcomes[test]):
                outcomes[test] = outcome
        for key in counted:
            counted[key] += done[key]

    def everything(self) -> None:
        kinds = [kind for kind in self.kinds if not self.quick or kind in OURS]
        with concurrent.futures.ThreadPoolExecutor(self.jobs) as pool:
            tasks = {
                pool.submit(run, self.python, module, suite, kind): (suite, kind, module)
                for suite, names in self.modules.items()
                for module in names
                for kind in kinds
            }
            started = time.monotonic()
            for task in concurrent.futures.as_completed(tasks):
                suite, kind, module = tasks[task]
                done = task.result()
                self.add(suite, kind, done)
                bad = [test for test, outcome in done["tests"].items() if failed(outcome)]
                print(f"{time.monotonic() - started:4.0f} s {module} {kind}: {len(done['tests'])}, {len(bad)} failed")
                for test in bad:
                    print(f"       {test}: {(done['tests'][test][1].strip().splitlines() or [''])[-1]}")
                sys.stdout.flush()
        self.again()

    def again(self) -> None:
        """Run a test again that fails with some kinds only and is not explained, with each of those that fail.

        The first time also with the kinds that are not known yet.
        """
        for last in (False, False, True):
            for suite, names in self.modules.items():
                disputed = sorted(test for test in self.differing(suite, not last) if not self.explained(suite, test))
                for module in names:
                    mine = [test for test in disputed if test.startswith(f"{module}.")]
                    if not mine:
                        continue
                    for kind in self.kinds:
                        outcomes = self.outcomes.setdefault((suite, kind), {})
                        only = [test for test in mine if test not in outcomes or failed(outcomes[test])]
                        if only:
                            done = run(self.python, module, suite, kind, only)
                            self.add(suite, kind, {**done, "accepted": 0, "multipath": 0})

    def explained(self, suite: str, test: str) -> bool:
        """Whether a test fails with a bare socket too, for a known reason."""
        return reason(test) is not None and failed(self.outcomes.get((suite, "bare"), {}).get(test))

    def differing(self, suite: str, unknown: bool = False) -> set[str]:
        """The tests that fail with some kinds and not with others."""
        found = set()
        for test in {test for kind in self.kinds for test in self.outcomes.get((suite, kind), {})}:
            outcomes = [self.outcomes.get((suite, kind), {}).get(test) for kind in self.kinds]
            verdicts = {failed(outcome) for outcome in outcomes if outcome is not None}
            if len(verdicts) > 1 or (unknown and None in outcomes and True in verdicts):
                found.add(test)
        return found

    def summary(self) -> dict[str, Any]:
        """What the page shows: numbers by suite, and each test that differs with its outcomes."""
        suites = {}
        for suite in self.modules:
            kinds = {}
            for kind in self.kinds:
                outcomes = self.outcomes.get((suite, kind), {})
                kinds[kind] = {
                    "tests": sum(outcome[0] != "skipped" for outcome in outcomes.values()),
                    "failed": sum(failed(outcome) for outcome in outcomes.values()),
                    **self.counted.get((suite, kind), {}),
                }
            differences = {}
            for test in sorted(self.differing(suite)):
                outcomes = {kind: self.outcomes.get((suite, kind), {}).get(test) for kind in self.kinds}
                differences[test] = {
                    "fails": [kind for kind in self.kinds if failed(outcomes[kind])],
                    "text": next(
                        (out[1].strip().splitlines() or [""])[-1]
                        for kind in reversed(KINDS)
                        if failed(out := outcomes.get(kind)) and out
                    ),
                }
            suites[suite] = {"kinds": kinds, "differences": differences}
        return suites


def reason(test: str) -> dict[str, Any] | None:
    for entry in REASONS:
        if any(fnmatch.fnmatchcase(test.removeprefix("test."), pattern) for pattern in entry["tests"]):
            return entry
    return None


def check(summary: dict[str, Any]) -> list[str]:
    """What must not be."""
    wrong = []
    for suite in summary.values():
        for test, difference in suite["differences"].items():
            ours = [kind for kind in OURS if kind in difference["fails"]]
            by_luck = (reason(test) or {}).get("luck", False)
            if ours and "bare" not in difference["fails"] and not by_luck:
                wrong.append(f"{test} fails with {' and '.join(ours)} and not with a bare socket: {difference['text']}")
            elif "tcp" not in difference["fails"] and reason(test) is None:
                wrong.append(
                    f"{test} fails with {', '.join(difference['fails'])}, without a reason: {difference['text']}"
                )
    return wrong


BEGIN, END = "<!-- CPython's tests: begin -->\n", "<!-- CPython's tests: end -->\n"


def page(results: dict[str, Any]) -> str:
    """The tables of docs/conformance.md."""
    text = ""
    used: dict[int, set[str]] = {}
    for version, summary in results.items():
        text += f"\n### CPython {version}\n\n"
        text += "| suite | tests | fail: TCP | bare | Socket | patch | MPTCP: bare | Socket | patch |\n"
        text += "|---|" + "---:|" * 8 + "\n"
        for name, suite in summary.items():
            kinds = [suite["kinds"][kind] for kind in KINDS]
            cells = [kinds[0]["tests"], *(kind["failed"] for kind in kinds)]
            cells += [f"{kind['multipath']} of {kind['accepted']}" for kind in kinds[1:]]
            text += f"| {name} | {' | '.join(map(str, cells))} |\n"
            for test in suite["differences"]:
                if (entry := reason(test)) is not None:
                    used.setdefault(REASONS.index(entry), set()).add(test.removeprefix("test."))
    text += "\n### The differences\n\n| tests | fail with | whose | reason |\n|---|---|---|---|\n"
    for index, entry in enumerate(REASONS):
        if index in used:
            patterns = ", ".join(f"`{pattern}`" for pattern in entry["tests"])
            failing = {
                kind
                for summary in results.values()
                for suite in summary.values()
                for test, difference in suite["differences"].items()
                if reason(test) is entry
                for kind in difference["fails"]
            }
            fails = ", ".join(kind for kind in KINDS if kind in failing)
            text += f"| {patterns} | {fails} | {entry['whose']} | {entry['text']} |\n"
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--quick", action="store_true", help="without slow modules, and other kinds only if ours fail")
    parser.add_argument("--python", action="append", help="an interpreter (default: this one); can be repeated")
    parser.add_argument("--write", action="store_true", help="write the results into docs/conformance.md")
    parser.add_argument("--jobs", type=int, default=4, help="processes at a time (default: 4)")
    parser.add_argument("suites", nargs="*", help="test_socket, ... (default: all)")
    arguments = parser.parse_args()
    wrong = []
    for python in arguments.python or [sys.executable]:
        program = (
            "import platform, sysconfig; threads = sysconfig.get_config_var('Py_GIL_DISABLED');"
            "print(platform.python_version() + (', free-threaded' if threads else ''))"
        )
        version = subprocess.run([python, "-c", program], check=True, capture_output=True, text=True).stdout.strip()
        print(f"CPython {version}: {python}", flush=True)
        runs = Runs(python, arguments.quick, arguments.jobs, arguments.suites)
        runs.everything()
        summary = runs.summary()
        for name, suite in summary.items():
            for test, difference in suite["differences"].items():
                print(f"  {test}: fails with {', '.join(difference['fails'])}")
            print(f"{name}: " + ", ".join(f"{kind} {json.dumps(found)}" for kind, found in suite["kinds"].items()))
        wrong += [f"{version}: {each}" for each in check(summary)]
        if arguments.write:
            results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
            results.setdefault(version, {}).update(summary)
            RESULTS.write_text(json.dumps(results, indent=1) + "\n")
            before, _, rest = PAGE.read_text().partition(BEGIN)
            PAGE.write_text(before + BEGIN + page(results) + "\n" + END + rest.partition(END)[2])
    print("\n".join(wrong))
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
