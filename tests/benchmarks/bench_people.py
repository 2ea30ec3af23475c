"""Who is who and what leaks: an audit of the slices at hand, and recovery of up to a million.

The slices of the large sets are drawn: patterns of 64 × 64 pixels that change from slice to slice,
mapped from a file. A million of them need 8 GB of memory and 4 GB of disk, and are measured only
where the environment variable ``MILLION`` is set.
"""

import json
import math
import os
import statistics
import tempfile
from pathlib import Path

from harness import STATUS, child, folder_of_slices, main, row

AUDIT = """
import json, time, warnings
warnings.simplefilter("ignore")
from mri.data import read_scans
from mri.subjects import audit
scans = [read_scans({folder!r}, split=side) for side in ("train", "test")]
start, busy = time.perf_counter(), time.process_time()
audit(*scans)
print(json.dumps([time.perf_counter() - start, time.process_time() - busy]))
"""
RECOVER = (
    STATUS
    + """
import json, threading, time, warnings
warnings.simplefilter("ignore")
import cv2
import numpy as np
from mri.subjects import recover_subjects

side, slices, count = 64, 32, {count}
rng = np.random.default_rng(0)
order = rng.permutation(count)
images = np.memmap({file!r}, np.uint8, "w+", shape=(count, side, side))
def pattern():
    return cv2.GaussianBlur(rng.standard_normal((side, side), np.float32), (0, 0), 1)
for start in range(0, count, slices):
    one = pattern()
    for row in order[start : start + slices]:
        images[row] = (128 + 150 * one).clip(0, 255)
        one = 0.9 * one + np.sqrt(1 - 0.9**2) * pattern()
peak = [0]
def watch():
    while True:
        peak[0] = max(peak[0], status("RssAnon"))
        time.sleep(0.1)
threading.Thread(target=watch, daemon=True).start()
start, busy = time.perf_counter(), time.process_time()
groups = recover_subjects(images).groups
took = time.perf_counter() - start, time.process_time() - busy
truth = np.empty(count, int)
truth[order] = np.arange(count) // slices
pairs = len(np.unique(np.stack([groups, truth]), axis=1).T)
right = pairs == len(np.unique(truth)) == len(np.unique(groups))
print(json.dumps([*took, peak[0] / 1e9, bool(right)]))
"""
)


def audited(rounds: int) -> list[dict]:
    """Return the line of an audit of the slices at hand, each time in a process of its own."""
    code = AUDIT.format(folder=str(folder_of_slices()))
    seconds, busy = zip(*(json.loads(child(code)) for _ in range(rounds)), strict=True)
    note = f"{statistics.median(busy):.1f} s of processor time"
    return [row("audit of train and test, nothing known", "", seconds, "s", at_most=8, note=note)]


def recovered(count: int, rounds: int) -> tuple[float, dict, dict]:
    """Return seconds and the lines of the recovery of `count` drawn slices."""
    with tempfile.TemporaryDirectory() as folder:
        code = RECOVER.format(count=count, file=str(Path(folder, "slices")))
        found = [json.loads(child(code)) for _ in range(rounds)]
    seconds, busy, gigabytes, right = zip(*found, strict=True)
    work = f"recovery of {count // 32 * 32:,} drawn slices"
    told = f"{'all' if all(right) else 'NOT all'} people right"
    note = f"{statistics.median(busy):.0f} s of processor time; {told}"
    most = {100_000: 30, 1_000_000: 1200}.get(count)
    time = row(f"{work}: time", "", seconds, "s", at_most=most, note=note)
    room = row(f"{work}: peak memory beside the file of the slices", "", gigabytes, "GB",
               at_most=8 if count == 1_000_000 else None)  # fmt: skip
    return statistics.median(seconds), time, room


def measure(quick: bool) -> list[dict]:
    counts = [640, 1280] if quick else [10_016, 100_000]
    counts += [1_000_000] if os.environ.get("MILLION") else []
    found, first = audited(1 if quick else 3), None
    for count in counts:
        # The million takes ten minutes, so that it is measured once.
        seconds, *lines = recovered(count, 1 if quick or count == 1_000_000 else 3)
        found += lines
        if first:
            exponent = math.log(seconds / first[1]) / math.log(count / first[0])
            work = f"growth of that time from {first[0]:,} to {count:,} slices"
            found.append(row(work, "", [exponent], "is the exponent", at_most=1.3))
        first = first or (count, seconds)
    return found


if __name__ == "__main__":
    main("people", measure)
