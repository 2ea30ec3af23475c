"""SIGKILL at random moments of a training, a sweep and a save: nothing is half-written or lost."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("kill.py")


@pytest.mark.slow
@pytest.mark.parametrize(
    "kills", [4, pytest.param(50, marks=[pytest.mark.stress])], ids=["few", "many"]
)
@pytest.mark.parametrize("what", ["train", "sweep", "save"])
def test_killed_anywhere_and_begun_again(what, kills, keep_figures):
    """The checks are in the script: it ends with an error where one fails."""
    if not hasattr(os, "fork"):
        pytest.skip("needs fork, which this system has not")
    done = subprocess.run(
        [sys.executable, str(SCRIPT), what, str(kills)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["kills"] == kills
    if kills > 9:
        keep_figures(f"killed: {what}", **found)
    if what == "save" and kills > 9:
        assert found["half-written, removed"], "no kill came while a file was being written"
