"""Interleaved timing, and results kept with what they were measured on."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import contextmanager
from datetime import date
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).with_name("results.json")
PACKAGES = ("tensorflow", "keras", "numpy", "pandas", "pyarrow", "opencv-python")
STATUS = """
status = lambda key: int(open("/proc/self/status").read().split(key + ":")[1].split()[0]) * 1024
"""
"""For code run by `child`: bytes of VmRSS or VmHWM. (ru_maxrss begins with the parent's.)"""
PEERS = (
    *("torch", "datasets", "simplejpeg", "tf-keras-vis", "grad-cam"),
    *("cleanvision", "imagededup", "imgclean", "vision-data-doctor", "faiss-cpu"),
)


def interleaved(
    runs: Mapping[str, Callable[[], object]], rounds: int, *, warm_up: bool = True
) -> dict[str, list[float]]:
    """Return the seconds of each run in each round, by default after one that does not count.

    All runs take turns, so that what disturbs the machine meanwhile disturbs them alike.
    """
    seconds = {name: [] for name in runs}
    for _ in range(rounds + warm_up):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return {name: times[warm_up:] for name, times in seconds.items()}


def row(
    work: str,
    against: str,
    values: list[float] | None = None,
    unit: str = "",
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    note: str = "",
) -> dict:
    """Return one line of the table: the median of `values` is held against the goal.

    Without values it says by `note` why there are none.
    """
    goal = None if at_least is at_most is None else [at_least, at_most]
    found = [float(value) for value in values or []]
    return {"work": work, "against": against, "values": found, "unit": unit} | {
        "goal": goal,
        "note": note,
    }


def versus(
    seconds: Mapping[str, list[float]],
    work: str,
    ours: str,
    peer: str,
    against: str,
    *,
    at_least: float | None = None,
    at_most: float | None = None,
    note: str = "",
) -> dict:
    """Return the line of two contestants: how much faster ours is, with `at_most` ours / peer.

    A peer that is not in `seconds` is not installed.
    """
    if peer not in seconds:
        return row(work, against, at_least=at_least, at_most=at_most, note="not installed")
    pairs = list(zip(seconds[ours], seconds[peer], strict=True))
    faster = at_least is not None
    return row(
        work,
        against,
        [b / a if faster else a / b for a, b in pairs],
        "times as fast" if faster else "of its time",
        at_least=at_least,
        at_most=at_most,
        note="; ".join(
            [f"{clock(seconds[ours])} against {clock(seconds[peer])}", *filter(None, [note])]
        ),
    )


def clock(seconds: list[float]) -> str:
    """Return the median of some seconds, readable."""
    value = statistics.median(seconds)
    if value < 0.1:
        return f"{1000 * value:.2g} ms"
    return f"{value:.3g} s" if value < 180 else f"{value / 60:.3g} min"


@contextmanager
def optional(name: str):
    """Skip the body's remainder where the peer it imports is not installed, and say so."""
    try:
        yield
    except ImportError as missing:
        print(f"{name}: not installed ({missing.name})", file=sys.stderr)


def child(code: str) -> str:
    """Run Python code in a process of its own and return the last line it prints."""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    return done.stdout.strip().splitlines()[-1]


def main(section: str, measure: Callable[[bool], list[dict]]) -> None:
    """Run a section's command line: measure, print, and keep unless ``--quick``."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="see that it works; keep nothing")
    quick = parser.parse_args().quick
    start = time.perf_counter()
    rows = measure(quick)
    took = time.perf_counter() - start
    for found in rows:
        print(json.dumps(found, ensure_ascii=False))
    if quick:
        return
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    results[section] = {"on": machine(), "seconds": round(took), "rows": rows}
    temporary = RESULTS.with_suffix(".tmp")
    temporary.write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    temporary.replace(RESULTS)


def machine() -> dict:
    """Return what the figures hold for: processor, cores, versions, day and slices."""
    from mri.data.sources import find_data

    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":")[1] for line in info.read_text().splitlines() if "model name" in line
        ]
        processor = names[0].strip() if names else processor
    versions = {"python": platform.python_version()}
    for name in (*PACKAGES, *PEERS):
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            versions[name] = None
    return {
        "processor": processor,
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "versions": versions,
        "date": date.today().isoformat(),
        "slices": "MRI slices" if find_data() else "synthetic phantom slices",
    }


def folder_of_slices() -> Path:
    """Return the folder of the real slices, else of as many phantoms (drawn once, in a minute)."""
    from mri.data.phantom import write_phantom
    from mri.data.sources import find_data

    return find_data() or write_phantom(ROOT / "data/phantom-200", subjects=200)
