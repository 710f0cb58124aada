"""Run every benchmark that has a peer, and write docs/benchmarks.md.

    .venv/bin/maturin develop --release
    sudo .venv/bin/python tests/benchmarks/all.py [NAME]...

It takes some twenty minutes. With names, as `main_job` or `"recorder load"`, only these are run anew, and the page
keeps what it has of the others. Each part is written when its benchmark has ended, into the page as it is by then, so
that two runs at once keep each other's parts. Of what cannot be run here the page has the reason.

A benchmark that publishes rows, see turns.py, has tables there; of one that does not, the page has what it prints.
"""

from __future__ import annotations

import argparse
import datetime
import fcntl
import importlib.metadata
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from turns import ROWS, Row, texts

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
PAGE = ROOT / "docs" / "benchmarks.md"

#: Each question, and the programs with arguments that answer it.
BENCHMARKS = {
    "What the main job costs": ["main_job"],
    "Whether listing waits for a busy connection": ["connections --calls 200"],
    "Options on one subflow": ["subflow_options"],
    "`mptcp run`": ["run"],
    "Recording": [
        "recorder rows",
        "recorder load",
        "recorder missed",
        "recorder programs",
        "recorder sender",
        "live --rounds 4",
    ],
    "Calls through a broker": ["broker --calls 100"],
    "Replacing a lost subflow": ["policies --way here", "policies --way there", "policies --way down --rounds 40"],
    "What a policy costs a connection": ["policy_scale"],
    "Emulated links": ["links", "small_requests"],
    "Plots": ["plots"],
    "Captures": ["trace", "trace_large"],
    "Tracepoints": ["tracer"],
}
#: Programs that we compare with, and the commands that print their versions.
PROGRAMS = {
    "ss": ["ss", "-V"],
    "mptcpd": ["/usr/libexec/mptcpd", "--version"],
    "iperf3": ["iperf3", "--version"],
    "tshark": ["tshark", "--version"],
}
#: A part of the page: from the line that names its program to the next such, or the next title.
PART = re.compile(r"^`tests/benchmarks/(\w+)\.py ?([^`]*)`.*?(?=^`tests/benchmarks/|^## |\Z)", re.MULTILINE | re.DOTALL)
PACKAGES = ("mptcp", "pyroute2", "mptcplib", "numpy")

HEAD = """# Benchmarks

Each operation is compared with the same work done by other means: a ratio of 0.5 means half the peer's time. Absolute
times depend on the machine, ratios less so.

```sh
.venv/bin/maturin develop --release
.venv/bin/pip install mptcplib       # and with the system's package manager: iproute2 iperf3 mptcpd
sudo .venv/bin/python tests/benchmarks/all.py
```

writes this page; with a name, such as `main_job`, it repeats only that benchmark. The programs compared take turns
within one run, in random order. The ratio is the median of the ratios of all rounds; half of these lie between the
quartiles given. Each program in `tests/benchmarks/` says what it compares and how. If a peer is not available, the row
has the reason instead of a ratio. The cost of many connections, which has no peer, is on [its own page](scale.md).
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help="the start of a benchmark's name and arguments")
    names = parser.parse_args().names
    every = [command for commands in BENCHMARKS.values() for command in commands]
    chosen = [command for command in every if not names or any(command.startswith(name) for name in names)]
    if not chosen:
        parser.error(f"no such benchmark; choose from: {', '.join(every)}")
    if any(command.startswith("recorder") for command in chosen):
        subprocess.run(["cargo", "build", "--quiet", "--release", "--example", "bare_sampler"], cwd=ROOT, check=True)
    for command in chosen:
        print(f"== {command}", flush=True)
        replace(command, part(command, result_of(command)))
    print(f"\n{PAGE.relative_to(ROOT)} has been written")


def replace(command: str, text: str, page: Path = PAGE) -> None:
    """Give the page a part of this text, and leave the others as they are by now."""
    with open(page, "a+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        file.seek(0)
        parts = present(file.read()) | {command: text}
        sections = [section(title, commands, parts) for title, commands in BENCHMARKS.items()]
        file.truncate(0)
        file.write(HEAD + "".join(sections))


def present(page: str) -> dict[str, str]:
    """Return the parts of a page, by command."""
    return {f"{found[1]} {found[2]}".strip(): found[0].strip() for found in PART.finditer(page)}


def result_of(command: str) -> dict[str, Any]:
    program, *arguments = command.split()
    load = f"load {os.getloadavg()[0]:.1f} before it"
    with tempfile.NamedTemporaryFile("r", suffix=".json") as rows:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", HERE / f"{program}.py", *arguments],
            env={**os.environ, ROWS: rows.name},
            capture_output=True,
            text=True,
        )
        print(done.stdout + done.stderr, flush=True)
        return {
            "surroundings": surroundings(load),
            "tables": [json.loads(line) for line in rows],
            "output": done.stdout.strip("\n"),
            "failure": done.stderr.strip().rpartition("\n")[2] if done.returncode else None,
        }


def surroundings(load: str) -> str:
    date = datetime.datetime.now(datetime.UTC)
    versions = [f"Python {platform.python_version()}", *map(package, PACKAGES), *map(version, PROGRAMS)]
    return f"{date:%Y-%m-%d}, Linux {os.uname().release}, {os.cpu_count()} processors, {load}; {', '.join(versions)}."


def package(name: str) -> str:
    try:
        return f"{name} {importlib.metadata.version(name)}"
    except importlib.metadata.PackageNotFoundError:
        return f"no {name}"


def version(name: str) -> str:
    program, option = PROGRAMS[name]
    if shutil.which(program) is None:
        return f"no {name}"
    done = subprocess.run([program, option], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    found = re.search(r"[\w-]*\d(?:\.\d+)+", done.stdout)
    return f"{name} {found[0] if found else 'of an unknown version'}"


def section(title: str, commands: list[str], parts: dict[str, str]) -> str:
    found = (parts.get(command, f"`{command}` was not run.") for command in commands)
    return f"\n## {title}\n" + "".join(f"\n{text}\n" for text in found)


def part(command: str, result: dict[str, Any]) -> str:
    """Return the page's part for one benchmark, in the form that PART matches."""
    program, *arguments = command.split()
    head = f"`{' '.join([f'tests/benchmarks/{program}.py', *arguments])}`; {result['surroundings']}\n"
    if result["failure"]:
        return f"{head}\nIt could not be measured here: {result['failure']}"
    if result["tables"]:
        return (head + "".join(map(table, result["tables"]))).strip()
    return f"{head}\n```text\n{result['output']}\n```"


def table(published: dict[str, Any]) -> str:
    lines = [f"\n{published['title']}:\n\n| ours | time | peer | its time | ratio | quartiles | at most |\n"]
    lines.append("|---|---|---|---|---|---|---|\n")
    lines += [f"| {' | '.join(texts(Row(**row)))} |\n" for row in published["rows"]]
    return "".join(lines)


if __name__ == "__main__":
    main()
