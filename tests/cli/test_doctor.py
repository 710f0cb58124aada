"""``mptcp doctor``: what it finds is what there is, and it leaves all as it was."""

from __future__ import annotations

import json
import os
import re
import resource
import shutil
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import pytest
from mptcp import _abilities, cli
from mptcp.lab import Host, Lab
from support import KERNEL, Marked, held, holds_no_more_than, sysctls

DEADLINE = 60.0
DOCTOR = [sys.executable, "-W", "error", "-m", "mptcp", "doctor"]
NAMES = [ability.name for ability in _abilities.ABILITIES]


def examined(command: list[str], host: Host | None = None, **options: Any) -> tuple[int, dict[str, dict[str, Any]]]:
    """The exit status, and the findings by name."""
    run = subprocess.run if host is None else host.run
    done = run([*command, "--json"], capture_output=True, text=True, timeout=DEADLINE, **options)
    report = json.loads(done.stdout)
    assert report["kernel"] == os.uname().release
    assert report["opens_subflows"] is (done.returncode == 0)
    assert done.stderr == ("" if done.returncode == 0 else "mptcp doctor: subflows cannot be opened\n")
    findings = {finding["name"]: finding for finding in report["abilities"]}
    assert list(findings) == NAMES
    for finding in findings.values():
        assert bool(finding["advice"]) is (finding["available"] is not True), finding
    return done.returncode, findings


def available(findings: Mapping[str, Mapping[str, Any]], *names: str) -> list[bool | None]:
    return [findings[name]["available"] for name in names]


@pytest.mark.usefixtures("mptcp_lab")
def test_it_finds_what_there_is_and_changes_nothing(prefix: list[str], marked: Marked) -> None:
    before = sysctls()
    status, findings = examined([*prefix, *DOCTOR], env=marked.environment)
    assert status == 0
    assert marked.processes() == set()
    assert sysctls() == before
    here = ("multipath", "mptcp_info", "mptcp_pm", "userspace")
    assert all(available(findings, *here, "lab", "in_lab", "nsenter", "links"))
    privileged = os.geteuid() == 0 and not prefix
    if not findings["inet_diag"]["available"]:
        assert not privileged
        assert KERNEL < (6, 15)
        assert "CAP_NET_ADMIN" in findings["inet_diag"]["advice"]
    assert available(findings, "net_admin", "here", "bpf") == [privileged] * 3
    if not privileged:
        assert "CAP_NET_ADMIN" in findings["net_admin"]["advice"]
        assert "CAP_BPF" in findings["bpf"]["advice"]
        allowed = resource.getrlimit(resource.RLIMIT_RTPRIO)[0] != 0
        assert findings["sched_fifo"]["available"] is allowed
        assert allowed or "RLIMIT_RTPRIO" in findings["sched_fifo"]["advice"]
    if os.geteuid():
        assert "CAP_NET_ADMIN" in findings["path_manager"]["advice"]


def test_in_a_host(mptcp_lab: Lab) -> None:
    """Where one is root of a network namespace, whoever one is outside."""
    status, findings = examined(DOCTOR, mptcp_lab.host("a"))
    assert status == 0
    assert available(findings, "here", "net_admin", "path_manager", "in_lab") == [True] * 4


def test_multipath_tcp_switched_off(mptcp_lab: Lab) -> None:
    host = mptcp_lab.host("a")
    host.sysctl("net.mptcp.enabled", 0)
    _, findings = examined(DOCTOR, host)
    assert available(findings, "multipath", "here") == [False, False]
    assert "set net.mptcp.enabled to 1" in findings["multipath"]["advice"]
    for name in ("mptcp_info", "full_info", "is_mptcp", "inet_diag"):
        assert findings[name]["available"] is None
    assert findings["in_lab"]["available"], "a lab has its own setting"


def test_loopback_that_is_down() -> None:
    if shutil.which("unshare") is None:
        pytest.skip("needs unshare of util-linux")
    command = ["unshare", "--user", "--map-root-user", "--net"]
    if subprocess.run([*command, "true"], capture_output=True).returncode:
        pytest.skip("needs user namespaces")
    _, findings = examined([*command, *DOCTOR])
    assert findings["multipath"]["advice"] == "the loopback interface is down: ip link set lo up"
    assert findings["net_admin"]["available"]


def test_proc_sys_that_is_read_only(mptcp_lab: Lab) -> None:
    for tool in ("unshare", "mount"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool} of util-linux")
    lock = 'mount --bind /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec "$@"'
    status, findings = examined(["unshare", "--mount", "sh", "-c", lock, "-", *DOCTOR], mptcp_lab.host("a"))
    # A lab remounts it for itself.
    assert available(findings, "path_manager", "lab", "in_lab", "links") == [False, True, True, True]
    assert "/proc/sys is mounted read-only" in findings["path_manager"]["advice"]
    assert "net.mptcp.p" in findings["path_manager"]["advice"], "the sysctl by name"
    # A host is under the userspace path manager already.
    assert status == 0
    mptcp_lab.host("b").set_path_manager("kernel")
    status, findings = examined(["unshare", "--mount", "sh", "-c", lock, "-", *DOCTOR], mptcp_lab.hosts["b"])
    # Only in a lab.
    assert (status, findings["here"]["available"]) == (0, False)
    assert "in-kernel path manager" in findings["here"]["advice"]


def test_namespaces_that_are_denied() -> None:
    for tool in ("unshare", "setpriv"):
        if shutil.which(tool) is None:
            pytest.skip(f"needs {tool} of util-linux")
    deny = 'echo 0 > /proc/sys/user/max_user_namespaces && exec setpriv --bounding-set=-all --inh-caps=-all "$@"'
    status, findings = examined(["unshare", "--user", "--map-root-user", "sh", "-c", deny, "-", *DOCTOR])
    assert status == 1
    assert available(findings, "here", "user_namespaces", "lab", "in_lab") == [False, False, False, None]
    for name in ("user_namespaces", "lab"):
        assert "user.max_user_namespaces is 0: set it to" in findings[name]["advice"]


@pytest.mark.mptcp_needs("user_notification")
def test_a_second_listener_for_user_notification() -> None:
    """A process tree has one at most: below a supervisor the kernel refuses another."""
    program = (
        "from mptcp import _abilities, _core\n"
        "_core.probe_user_notification()\n"
        "[finding] = _abilities.find(['user_notification'])\n"
        "print(finding.available, finding.advice)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=DEADLINE)
    assert done.stdout.startswith("False other programs' calls cannot be served"), done.stderr


def test_the_table(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "90")
    status = cli.main(["doctor"])
    printed, complaints = capsys.readouterr()
    lines = printed.splitlines()
    assert lines[0].startswith(f"kernel {os.uname().release}, Python ")
    assert re.fullmatch(r"Subflows can be opened .*\.", lines[-1])
    assert max(map(len, lines)) <= 90
    answers = re.findall(r"^(\S.*?) {2,}(yes|no|\?)(?: |$)", printed, re.MULTILINE)
    assert [what for what, _ in answers] == [ability.what for ability in _abilities.ABILITIES]
    assert (status, complaints) == (0, "") or "no subflows can be opened" in complaints


def test_reasons_to_skip(mptcp_lab: Lab) -> None:
    assert _abilities.lack("lab") is None
    assert _abilities.lack("lab") is _abilities.lack("lab")
    with pytest.raises(ValueError, match="name must be one of multipath, "):
        _abilities.lack("no such thing")


def test_probing_leaves_nothing_open() -> None:
    _abilities.find()
    before = held()
    _abilities.find()
    assert holds_no_more_than(before), held()


def test_every_ability_has_a_name_and_a_line() -> None:
    assert len(set(NAMES)) == len(NAMES)
    for ability in _abilities.ABILITIES:
        assert re.fullmatch("[a-z_]+", ability.name)
        assert len(ability.what) <= 42
