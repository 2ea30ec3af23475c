"""Change a sample of lines, one at a time, and count the changes that the tests notice.

Writes tests/mutants.md, keeping the rows of other modules. What it finds depends on the seed, the
number and the version of mutmut, all of which it names.
"""

import argparse
import importlib.metadata
import json
import random
import re
import subprocess
from pathlib import Path

KILLED = {1, 3}  # Exit codes of pytest: tests failed, or could not even be collected.
REPORT = Path("tests/mutants.md")
HEAD = """# Mutants

`make mutants` changes one operator, number, string or argument at a time and runs the tests that
reach it. A mutant that no test notices survives.

| module | mutants | sampled (seed 0) | killed | survived | share killed |
|---|---|---|---|---|---|
"""


def mutmut(*names: str) -> None:
    """Run these mutants, one at a time."""
    subprocess.run([".venv/bin/mutmut", "run", "--max-children", "1", *names], check=False)


def main() -> None:
    """Sample, run, and rewrite the module's row of the report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("module", help="such as evaluation")
    parser.add_argument("--sample", type=int, default=100)
    options = parser.parse_args()
    mutmut(f"mri.{options.module}.none")  # Only makes the mutants: none is named so.
    meta = Path(f"mutants/mri/{options.module}.py.meta")
    names = sorted(json.loads(meta.read_text())["exit_code_by_key"])
    chosen = random.Random(0).sample(names, min(options.sample, len(names)))
    mutmut(*chosen)
    codes = json.loads(meta.read_text())["exit_code_by_key"]
    found = {name: codes[name] for name in chosen if codes[name] is not None}
    survived = sorted(name for name, code in found.items() if code not in KILLED)
    killed = len(found) - len(survived)
    cells = f"`{options.module}`", len(names), len(found), killed, len(survived)
    row = f"| {' | '.join(map(str, cells))} | {killed / len(found):.0%} |"
    text = REPORT.read_text() if REPORT.exists() else HEAD
    rows = [line for line in text.splitlines() if re.match(r"\| `", line)]
    rows = sorted([line for line in rows if not line.startswith(f"| `{options.module}`")] + [row])
    version = importlib.metadata.version("mutmut")
    REPORT.write_text(HEAD + "\n".join(rows) + f"\n\nMeasured with mutmut {version}.\n")
    print(row, *survived, sep="\n")


main()
