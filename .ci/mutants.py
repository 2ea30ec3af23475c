"""Change a sample of lines, one at a time, and count the changes that the tests notice.

mutmut makes the mutants; each is then judged by the tests of its module in a process of its own,
since forks do not agree with TensorFlow. A killed run goes on: verdicts are kept in mutants/.
Rewrites the module's row of tests/mutants.md, which depends on the seed, the number and the version
of mutmut, all of which it names.
"""

import argparse
import importlib.metadata
import json
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

REPORT = Path("tests/mutants.md")
HEAD = """# Mutants

`make mutants` changes one operator, number, string or argument at a time and runs the tests of the
module, then those of arguments and extremes, until one fails. A mutant that no test notices
survives. Texts of errors count too.

| module | mutants | sampled (seed 0) | killed | survived | share killed |
|---|---|---|---|---|---|
"""


def make_mutants() -> None:
    """Write mutants/mri, where an environment variable says which mutant is alive."""
    from mutmut import __main__ as mutmut

    mutmut.set_mutant_under_test("mutant_generation")
    Path("mutants").mkdir(exist_ok=True)
    mutmut.copy_src_dir()
    mutmut.copy_also_copy_files()
    mutmut.create_mutants(os.cpu_count() or 1)


def passes(module: str, mutant: str = "", limit: float | None = None) -> bool:
    """Return whether the tests that reach the module pass; a hang is a failure."""
    room, _, name = module.partition("/")
    names = [f"tests/{room}/test_{name}.py", "tests/test_arguments.py", "tests/test_extremes.py"]
    options = ["-q", "-x", "-p", "no:cacheprovider", "-m", "not stress and not real_data", *names]
    try:
        code = subprocess.run(
            [sys.executable, "-m", "pytest", *options, "-k", "not bootstrap_by_loops"],
            cwd="mutants",
            env=os.environ
            | {"MUTANT_UNDER_TEST": mutant, "PYTHONPATH": os.path.abspath("mutants")},
            capture_output=True,
            timeout=limit,
        ).returncode
    except subprocess.TimeoutExpired:
        return False
    return code == 0


def main() -> None:
    """Sample, run, and rewrite the module's row of the report."""
    parser = argparse.ArgumentParser()
    parser.add_argument("modules", nargs="+", help="such as evaluation/metrics")
    parser.add_argument("--sample", type=int, default=100)
    options = parser.parse_args()
    make_mutants()
    for module in options.modules:
        meta = Path(f"mutants/mri/{module}.py.meta")
        names = sorted(json.loads(meta.read_text())["exit_code_by_key"])
        chosen = random.Random(0).sample(names, min(options.sample, len(names)))
        begin = time.monotonic()
        if not passes(module):
            sys.exit(f"tests of {module} fail without any mutant")
        limit = 60 + 5 * (time.monotonic() - begin)
        kept = Path(f"mutants/{module.replace('/', '.')}.verdicts.json")
        verdicts = json.loads(kept.read_text()) if kept.exists() else {}
        for done, name in enumerate(chosen):
            if name not in verdicts:
                verdicts[name] = "survived" if passes(module, name, limit) else "killed"
                kept.write_text(json.dumps(verdicts))
            print(f"{done + 1}/{len(chosen)} {name}: {verdicts[name]}", flush=True)
        survived = [name for name in chosen if verdicts[name] == "survived"]
        killed = len(chosen) - len(survived)
        cells = f"`{module}`", len(names), len(chosen), killed, len(survived)
        row = f"| {' | '.join(map(str, cells))} | {killed / len(chosen):.0%} |"
        text = REPORT.read_text() if REPORT.exists() else HEAD
        rows = [line for line in text.splitlines() if re.match(r"\| `", line)]
        rows = sorted([line for line in rows if not line.startswith(f"| `{module}`")] + [row])
        version = importlib.metadata.version("mutmut")
        REPORT.write_text(HEAD + "\n".join(rows) + f"\n\nMeasured with mutmut {version}.\n")
        print(row, *survived, sep="\n", flush=True)


if __name__ == "__main__":
    main()
