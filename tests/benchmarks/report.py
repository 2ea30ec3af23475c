"""Run the benchmarks and write their table: ``make bench``.

``python tests/benchmarks/report.py [SECTION ...]`` measures the named sections, by default all,
each in a process of its own; every one is kept in ``results.json`` once it is done, and with
``--resume`` those that are there already are not measured again. Then ``results.md`` is written
from it; ``--render`` does only that, ``--quick`` only sees whether all of them run.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import textwrap
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RESULTS, TABLE = HERE / "results.json", HERE / "results.md"
SECTIONS = ("start", "decode", "gradcam", "comparison", "growth", "people", "training", "peers")
HEAD = """# Speed

`make bench` measures each goal beside a peer, in turns in one run, and writes this page.

- **Decoding.** On two cores the bare loop of `simplejpeg` is the limit of any decoder. It is
  itself less than three times as fast as pandas, so the goals of 3 and 6.5 cannot be reached here.
  The time above the bare loop pays for the checks of every row.
- **Training.** An epoch of `baseline` is the same arithmetic in Keras and in PyTorch, if the
  processor has no bfloat16. A short training comes from a smaller network on a shorter schedule:
  `fast`.
- **Peers.** Duplicate finders with their own defaults, on the slices as published. Who is who is
  what `recover_subjects` says, so its own row is no test of it. Times are of the processor.

"""


def render(results: dict) -> str:
    """Return the table of all sections in Markdown, then what it was measured on."""
    lines = ["| work | against | median [lowest, highest] | goal | |", "|---|---|---|---|---|"]
    machines = {}
    for section in filter(results.get, SECTIONS):
        for row in results[section]["rows"]:
            cells = [row["work"], row["against"], _measured(row), _goal(row), verdict(row)]
            lines.append(f"| {' | '.join(cells)} |")
        machines.setdefault(json.dumps(results[section]["on"], sort_keys=True), []).append(section)
    for key, sections in machines.items():
        on = json.loads(key)
        versions = ", ".join(f"{name} {v}" for name, v in on["versions"].items() if v)
        which = f"{', '.join(sections)}: " if len(machines) > 1 else ""
        told = f"({which}{on['processor']}, {on['cores']} cores, {on['slices']}, {on['date']}; "
        lines += ["", *textwrap.wrap(f"{told}{versions}.)", 100)]
    return HEAD + "\n".join(lines) + "\n"


def verdict(row: dict) -> str:
    """Return 'reached', or by how much the median misses its goal."""
    if row["goal"] is None or not row["values"]:
        return ""
    value = statistics.median(row["values"])
    low, high = row["goal"]
    if low is not None and value < low:
        return f"**missed** by {100 * (1 - value / low):.2g}%"
    if high is not None and value > high:
        return f"**missed** by {100 * (value / high - 1):.2g}%"
    return "reached"


def _measured(row: dict) -> str:
    note = row["note"]
    if not row["values"]:
        return note
    value, low, high = (f(row["values"]) for f in (statistics.median, min, max))
    spread = f" [{_number(low)}, {_number(high)}]" if len(row["values"]) > 1 else ""
    return f"{_number(value)}{spread} {row['unit']}" + (f" ({note})" if note else "")


def _goal(row: dict) -> str:
    if row["goal"] is None:
        return ""
    low, high = row["goal"]
    return f"≥ {_number(low)}" if low is not None else f"≤ {_number(high)}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"


def main() -> int:
    """Measure what is asked for, then write the table."""
    parser = argparse.ArgumentParser(description="Measure against peers; write the table.")
    parser.add_argument("sections", nargs="*", metavar="SECTION", help=f"of {', '.join(SECTIONS)}")
    parser.add_argument("--resume", action="store_true", help="skip what results.json has")
    parser.add_argument("--render", action="store_true", help="measure nothing")
    parser.add_argument("--quick", action="store_true", help="see that all run; keep nothing")
    options = parser.parse_args()
    if unknown := sorted(set(options.sections) - set(SECTIONS)):
        parser.error(f"no section of that name, there are {SECTIONS}. Received: {unknown}")
    kept = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    wanted = [] if options.render else options.sections or SECTIONS
    failed = []
    for section in wanted:
        if options.resume and section in kept:
            continue
        print(f"{section}: measuring", flush=True)
        command = [sys.executable, "-W", "ignore", str(HERE / f"bench_{section}.py")]
        command += ["--quick"] if options.quick else []
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        environment = os.environ | {"PYTHONPATH": paths, "TF_CPP_MIN_LOG_LEVEL": "2"}
        if subprocess.run(command, env=environment, cwd=ROOT).returncode:
            failed.append(section)
    if RESULTS.exists() and not options.quick:
        table = render(json.loads(RESULTS.read_text()))
        TABLE.write_text(table)
        print(table)
    if failed:
        print(f"failed: {', '.join(failed)}; the others are kept, go on with --resume")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
