"""What is installed is newer than the last version of which something bad is known."""

import re
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

FOLDER = Path(__file__).parents[1] / ".ci"
ROWS = re.findall(
    r"^\| ([a-z0-9-]+) \| (.*?) \| .* \| ([\d.]+) \|$", (FOLDER / "advisories.md").read_text(), re.M
)
LOCK = (FOLDER / "requirements.lock").read_text()
LOCKED = dict(re.findall(r"^([a-z0-9-]+)(?:\[.*\])?==([^ ]+) \\$", LOCK, re.M))


def test_the_tables_were_read():
    assert len(ROWS) >= 15
    named = " ".join(advisory for _, advisory, _ in ROWS)
    assert all(f"CVE-2026-{of}" in named for of in ("12570", "32711", "26200"))
    assert len(LOCKED) > 100


@pytest.mark.parametrize(("package", "advisory", "sound"), ROWS)
def test_the_lock_is_past_every_advisory(package, advisory, sound):
    assert Version(LOCKED[package]) >= Version(sound), advisory


def test_requirements_leave_no_room_for_a_version_with_one():
    """`requirements.txt` names ranges: their lower ends are sound too."""
    text = (FOLDER.parent / "requirements.txt").read_text()
    lowest = dict(re.findall(r"^([a-z0-9-]+)~=([\d.]+)", text, re.M))
    for package, advisory, sound in ROWS:
        if package in lowest:
            assert Version(lowest[package]) >= Version(sound), advisory


def test_the_lock_names_the_extras_that_a_package_asks_for():
    """Of a name without them, pip takes the newest version, and stops at its unknown hash."""
    asked = {
        f"{of.name.lower()}[{','.join(sorted(of.extras))}]=="
        for one in metadata.distributions()
        if one.name.lower().replace("_", "-") in LOCKED
        for of in map(Requirement, one.requires or ())
        if of.extras and (of.marker is None or of.marker.evaluate({"extra": ""}))
    }
    missing = {of for of in asked if of.partition("[")[0] in LOCKED and f"\n{of}" not in LOCK}
    assert asked and not missing
