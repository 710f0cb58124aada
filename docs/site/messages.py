"""Write the page of error messages, from the sources that raise them: python docs/site/messages.py prints it.

A reader who searches the site for the words of a message finds it there, below a link to the page on its subject. What
differs from case to case is "...".
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]

# Titles of sections, the page that says more, and the sources whose messages are there. The first that fits counts.
SECTIONS: list[tuple[str, str, tuple[str, ...]]] = [
    ("mptcp run", "run.md", ("src/supervisor", "src/py/supervisor", "python/mptcp/cli/run")),
    ("The broker", "broker.md", ("src/broker", "src/sys/sandbox", "python/mptcp/_broker", "python/mptcp/cli/broker")),
    (
        "Labs and links",
        "lab.md",
        ("src/emulation", "src/py/emulation", "python/mptcp/lab", "python/mptcp/_topologies", "python/mptcp/cli/lab"),
    ),
    (
        "Policies",
        "policies.md",
        ("python/mptcp/_policy", "python/mptcp/policies", "python/mptcp/cli/policy", "src/watcher", "src/py/watcher"),
    ),
    (
        "Recording, measuring and plots",
        "measuring.md",
        (
            "src/sampler",
            "src/samples",
            "src/tracing",
            "src/tcp_sock",
            "src/endings",
            "src/py/sampler",
            "python/mptcp/_recording",
            "python/mptcp/measures",
            "python/mptcp/plot",
            "python/mptcp/_rows",
            "python/mptcp/cli/record",
        ),
    ),
    (
        "Captures",
        "traces.md",
        ("src/capture", "src/traces", "src/py/trace", "python/mptcp/_trace", "python/mptcp/_qlog"),
    ),
    ("Options on one subflow", "subflow-options.md", ("src/options", "src/bpf", "src/sys/bpf")),
    ("The socket options of 2016", "enhanced-api.md", ("src/enhanced_api", "src/py/enhanced", "python/mptcp/enhanced")),
    ("Tests", "testing.md", ("python/mptcp/testing", "python/mptcp/pytest_plugin")),
    ("Commands", "reference/commands.md", ("python/mptcp/cli", "python/mptcp/_abilities", "python/mptcp/__main__")),
    (
        "The in-kernel path manager and endpoints",
        "path-managers.md",
        ("python/mptcp/_path_manager", "python/mptcp/_endpoints", "src/py/endpoints", "src/netlink/pm"),
    ),
    ("Sockets, connections, subflows and events", "why.md", ("src/", "python/")),
]

# Strings of Rust, and what else may contain a quotation mark.
RUST = re.compile(r'//[^\n]*|/\*.*?\*/|r#"(?P<raw>.*?)"#|"(?P<text>(?:\\.|[^"\\])*)"|\'(?:\\.|[^\'\\])\'', re.DOTALL)
NEVER_SHOWN = re.compile(r"(expect|assert\w*!|unreachable!|panic!)\(\s*$")
RUST_TESTS = re.compile(r"^#\[cfg\(test\)\]\s*mod ", re.MULTILINE)
# Calls whose strings are messages.
RAISERS = re.compile(r"(Error|Warning|Lack|_denied|fail|warn|error|refuse\w*)$")
SHORTEST = 3


def page() -> str:
    """Return the page as the sources have it now."""
    lines = [
        "# Error messages",
        "",
        "The messages of errors and warnings, by subject, each with its cause and what to do where there is something;",
        '"..." stands for a name or a number. Search this site for the words that you have.',
        "[Errors](reference/errors.md) has the exceptions.",
        "",
    ]
    for (title, link, _), found in zip(SECTIONS, messages(), strict=True):
        lines += [f"## {title}", "", f"See [{title}]({link}).", ""]
        lines += [f"- {_escaped(message)}" for message in found]
        lines.append("")
    return "\n".join(lines)


def messages() -> list[list[str]]:
    """Return the messages of each section, without those that an earlier one has."""
    sections: list[set[str]] = [set() for _ in SECTIONS]
    for path in sorted([*(ROOT / "src").rglob("*.rs"), *(ROOT / "python" / "mptcp").rglob("*.py")]):
        name = path.relative_to(ROOT).as_posix()
        section = next(number for number, (_, _, starts) in enumerate(SECTIONS) if name.startswith(starts))
        sections[section].update(_kept(_of_rust(path.read_text()) if path.suffix == ".rs" else _of_python(path)))
    seen: set[str] = set()
    result = []
    for found in sections:
        result.append(sorted(found - seen, key=str.casefold))
        seen |= found
    return result


def pattern(message: str) -> re.Pattern[str]:
    """Return what an error's text matches if it was made of this message."""
    return re.compile(".*".join(re.escape(part) for part in message.split("...")), re.DOTALL)


def _of_rust(text: str) -> Iterator[str]:
    for match in RUST.finditer(RUST_TESTS.split(text)[0]):
        found = match["raw"] or match["text"]
        if found is None or NEVER_SHOWN.search(text[: match.start()][-40:]):
            continue
        found = re.sub(r"\\\n\s*", "", found).replace('\\"', '"').replace("\\n", "\n").replace("\\\\", "\\")
        yield re.sub(r"\{[^{}]*\}", "...", found).replace("{{", "{").replace("}}", "}")


def _of_python(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and node.exc is not None:
            yield from _strings(node.exc)
        elif isinstance(node, ast.Call) and RAISERS.search(ast.unparse(node.func)):
            for argument in node.args:
                yield from _strings(argument)


def _strings(node: ast.AST) -> Iterator[str]:
    """Yield the strings in an expression, each f-string as one."""
    if isinstance(node, ast.JoinedStr):
        yield "".join(str(part.value) if isinstance(part, ast.Constant) else "..." for part in node.values)
    elif isinstance(node, ast.Constant):
        if isinstance(node.value, str):
            yield node.value
    else:
        for child in ast.iter_child_nodes(node):
            yield from _strings(child)


def _kept(texts: Iterable[str]) -> Iterator[str]:
    """Leave out what is not a sentence: names, formats, parts of commands."""
    for text in texts:
        line = " ".join(text.split())
        words = re.findall(r"(?<![\w/.-])[A-Za-z][a-z']+(?![\w/(])", line)
        if len(words) >= SHORTEST:
            yield line


def _escaped(message: str) -> str:
    """Return Markdown that shows it as it is."""
    return re.sub(r"([\\`*_\[\]<>#|])", r"\\\1", message)


if __name__ == "__main__":
    print(page())
