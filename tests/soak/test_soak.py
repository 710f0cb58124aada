"""A few hundred rounds of the soak; ten thousand are by command, see docs/soak.md."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from support import PATIENCE, STRICT

SOAK = Path(__file__).with_name("soak.py")


@pytest.mark.timeout(900)
def test_three_hundred_rounds() -> None:
    rounds = round(300 / PATIENCE)
    command = [
        *STRICT,
        str(SOAK),
        "--rounds",
        str(rounds),
        "--seed",
        "1",
    ]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
    outcome = json.loads(run.stdout.partition("\n")[2])
    assert outcome["rounds"] == rounds
    assert outcome["held"][-1]["descriptors"] == outcome["held"][0]["descriptors"]
    assert sum(outcome["sent"].values()) > rounds << 16
