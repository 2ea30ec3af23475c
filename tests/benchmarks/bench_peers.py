"""What duplicate finders make of the split as published, beside `recover_subjects`.

Each gets the two published parts as folders of PNG, in a process of its own and with its own
defaults. Its pairs of a test and a train slice are held against the people of `recover_subjects`:
how many test slices are found whose person stands in train, and how many pairs are of one person.
A peer that takes too long is ended, and its row says after how long: so all are asked about the
slices of 50 people too.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import cv2
import numpy as np
from harness import ROOT, clock, folder_of_slices, main, row

from mri.data.scans import read_scans
from mri.subjects.recovery import recover_subjects

LIMIT = 360
"""Seconds that a peer may take."""
FEW = 50
"""People of the smaller run."""

COMMON = """
import json, os, resource, sys, time, warnings
warnings.simplefilter("ignore")
sys.stderr = open(os.devnull, "w")
from functools import cache
from pathlib import Path
import numpy as np
root = Path({root!r})
groups = dict(np.load(root / "groups.npz"))
@cache
def at(path):
    *_, side, name = str(path).replace(os.sep, "/").split("/")
    return side, int(name.split(".")[0])
def of(side, paths):
    return [at(path)[1] for path in paths if at(path)[0] == side]
def tell(pairs):
    '''Say how many test slices stand in a pair of one person, and how many pairs are such.'''
    test, train = np.array(list(pairs), int).reshape(-1, 2).T
    right = groups["test"][test] == groups["train"][train]
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    cpu = sum(who.ru_utime + who.ru_stime for who in used)
    found = len(np.unique(test[right]))
    print(json.dumps([found, float(right.mean()) if len(right) else None, cpu]))
"""

PEERS = {
    "cleanvision": """
from cleanvision import Imagelab
lab = Imagelab(data_path=str(root))
lab.find_issues({"exact_duplicates": {}, "near_duplicates": {}})
sets = [s for kind in ("exact_duplicates", "near_duplicates") for s in lab.info[kind]["sets"]]
tell((a, b) for s in sets for a in of("test", s) for b in of("train", s))
""",
    "imagededup, perceptual hash": """
from imagededup.methods import PHash
found = PHash(verbose=False).find_duplicates(image_dir=str(root), recursive=True)
tell((a, b) for one, more in found.items() for a in of("test", [one]) for b in of("train", more))
""",
    "imagededup, difference hash": """
from imagededup.methods import DHash
found = DHash(verbose=False).find_duplicates(image_dir=str(root), recursive=True)
tell((a, b) for one, more in found.items() for a in of("test", [one]) for b in of("train", more))
""",
    "imagededup, CNN": """
from imagededup.methods import CNN
found = CNN(verbose=False).find_duplicates(image_dir=str(root), recursive=True)
tell((a, b) for one, more in found.items() for a in of("test", [one]) for b in of("train", more))
""",
    "imgclean": """
from imgclean import scan_dataset
splits = {side: root / side for side in ("train", "test")}
report = scan_dataset(root, checks=["split_leakage"], splits=splits, cache=False)
tell((a, b) for one in report.findings for a in of("test", [one.file_path])
     for b in of("train", one.related_files))
""",
    "vision-data-doctor": """
from data_doctor import check_leakage
found = check_leakage(root / "train", root / "test")
tell((int(Path(leak["val"]).stem), int(Path(leak["train"]).stem))
     for leak in found.exact_leaks + found.near_leaks)
""",
    "this project, `recover_subjects`": """
import cv2
from mri.subjects.recovery import recover_subjects
paths = sorted(root.glob("t*/*.png"))
found = recover_subjects(np.stack([cv2.imread(str(path), 0) for path in paths])).groups
sides = [np.array([at(path)[0] == side for path in paths]) for side in ("test", "train")]
tell(np.argwhere(found[sides[0]][:, None] == found[sides[1]]))
""",
}


def write(root: Path, most: int | None) -> int:
    """Write both parts as PNG, and who is who; return how many test slices there are."""
    parts = {side: read_scans(folder_of_slices(), split=side) for side in ("train", "test")}
    images = np.concatenate([scans.images for scans in parts.values()])
    sizes = len(parts["train"]), len(parts["test"])
    groups = recover_subjects(images).groups
    both = dict(zip(parts, np.split(groups, sizes[:1]), strict=True))
    if most:
        # Whole people, or nobody is found.
        kept = groups < most
        images = images[kept]
        both = {side: of[of < most] for side, of in both.items()}
    np.savez(root / "groups.npz", **both)
    start = 0
    for side, of in both.items():
        (root / side).mkdir()
        for i in range(len(of)):
            cv2.imwrite(str(root / side / f"{i:05d}.png"), images[start + i])
        start += len(of)
    return int(np.isin(both["test"], both["train"]).sum())


def measure(quick: bool) -> list[dict]:
    return asked(12) if quick else asked(None) + asked(FEW)


def asked(most: int | None) -> list[dict]:
    """Return the rows of all peers, on all slices or on those of the first `most` people."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        of = write(root, most)
        people = f" ({most} people)" if most else ""
        work = f"test slices found, of {of:,} whose person stands in train{people}"
        for name, code in PEERS.items():
            print(f"{name}: measuring", file=sys.stderr, flush=True)
            told = limited(COMMON.format(root=str(root)) + guarded(code))
            rows.append(line(work, name, told))
    return rows


def limited(code: str) -> list | str:
    """Run Python code in a session of its own; return what it tells, or that time was up."""
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=ROOT, start_new_session=True
    )
    try:
        told = process.communicate(timeout=LIMIT)[0]
    except subprocess.TimeoutExpired:
        # A busy machine gives a peer less of the processor than the clock says.
        command = ["ps", "-o", "cputimes=", "-s", str(process.pid)]
        used = subprocess.run(command, capture_output=True, text=True).stdout.split()
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return f"not finished in {LIMIT} s ({sum(map(int, used))} s of processor time)"
    if process.returncode:
        return f"failed with exit code {process.returncode}"
    return json.loads(told.splitlines()[-1])


def guarded(code: str) -> str:
    """Return code that says why it cannot run."""
    inner = "\n    ".join(code.strip().splitlines())
    return (
        f"try:\n    {inner}\nexcept ModuleNotFoundError as missing:\n"
        '    print(json.dumps(f"not installed: {missing.name}"))\n'
        "except OSError as failed:\n"
        '    print(json.dumps(f"cannot run, its weights cannot be fetched: {failed}"[:120]))\n'
    )


def line(work: str, name: str, told: list | str) -> dict:
    if isinstance(told, str):
        return row(work, name, note=told)
    found, precision, seconds = told
    right = "no pair" if precision is None else f"pairs of one person {precision:.3f}"
    return row(work, name, [found], "slices", note=f"{right}; {clock([seconds])} of processor time")


if __name__ == "__main__":
    main("peers", measure)
