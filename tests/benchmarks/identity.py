"""Sweep of `recover_subjects` over changed, copied, mixed and missing slices: identity.md.

Run from the repository's root; a killed run goes on where it stopped:

    MRI_DATA=data python tests/benchmarks/identity.py [--minutes 60] [--columns randomised]

Rows of the log are kept in runs/identity.jsonl; a change of `mri/` asks for a new log. To leave
the machine to others, on one core: OMP_NUM_THREADS=1 nice -n 19 taskset -c 0 python ...
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from sklearn.metrics import adjusted_rand_score

from mri.data.scans import read_scans
from mri.data.sources import find_data
from mri.subjects.linking import UnclearSubjectsError
from mri.subjects.recovery import order_slices, recover_subjects

LOG, TABLE = Path("runs/identity.jsonl"), Path("tests/benchmarks/identity.md")
VERDICTS = "right", "right, warned", "warned", "refused", "SILENTLY WRONG"
RANDOMISED = 500
Change = Callable[[np.ndarray, np.random.Generator], np.ndarray]


def warp(image, angle=0.0, zoom=1.0, shift=(0.0, 0.0), shear=0.0, aspect=1.0):
    """Turn (degrees), zoom, shift (pixels), shear and stretch one slice about its middle."""
    height, width = image.shape
    turn = np.radians(angle)
    matrix = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    matrix = zoom * matrix @ np.array([[1, shear], [0, 1]]) @ np.diag([aspect, 1 / aspect])
    middle = np.array([(width - 1) / 2, (height - 1) / 2])
    full = np.column_stack([matrix, middle - matrix @ middle + np.array(shift)])
    return cv2.warpAffine(np.ascontiguousarray(image), full, (width, height))


def each(make: Callable[[np.ndarray, np.random.Generator], np.ndarray]) -> Change:
    """Apply `make` to every slice by itself, with values of its own."""
    return lambda images, rng: np.stack([make(image, rng) for image in images])


def clipped(values):
    return np.clip(np.round(values), 0, 255).astype(np.uint8)


def turned(most):
    return each(lambda x, r: warp(x, r.uniform(-most, most)))


def zoomed(low, high):
    return each(lambda x, r: warp(x, zoom=r.uniform(low, high)))


def shifted(most):
    return each(lambda x, r: warp(x, shift=r.uniform(-most, most, 2)))


def constant(**how):
    return each(lambda x, r: warp(x, **how))


def mirrored(images, rng):
    return images[:, :, ::-1]


def some_mirrored(images, rng):
    return np.where(rng.random((len(images), 1, 1)) < 0.5, images[:, :, ::-1], images)


def any_pose(image, rng):
    image = image[:, ::-1] if rng.random() < 0.5 else image
    return warp(image, rng.uniform(-10, 10), rng.uniform(0.9, 1.1), rng.uniform(-3, 3, 2))


def encoded(kind, quality):
    flag = cv2.IMWRITE_JPEG_QUALITY if kind == ".jpg" else cv2.IMWRITE_WEBP_QUALITY
    return each(lambda x, r: cv2.imdecode(cv2.imencode(kind, x, [flag, quality])[1], 0))


def brightened(share):
    return each(lambda x, r: clipped(x * r.uniform(1 - share, 1 + share)))


def lightened(most):
    return each(lambda x, r: clipped(x + r.uniform(0, most)))


def noised(deviation):
    return each(lambda x, r: clipped(x + r.normal(0, deviation, x.shape)))


def gamma(low, high):
    return each(lambda x, r: clipped(255 * (x / 255) ** r.uniform(low, high)))


def elastic(amplitude, smooth):
    def make(image, rng):
        field = rng.normal(0, 1, (2, *image.shape)).astype(np.float32)
        field = np.stack([cv2.GaussianBlur(part, (0, 0), smooth) for part in field])
        field *= amplitude / field.std()
        rows, columns = np.mgrid[: image.shape[0], : image.shape[1]].astype(np.float32)
        return cv2.remap(image, columns + field[0], rows + field[1], cv2.INTER_LINEAR)

    return each(make)


def blurred(deviation):
    return each(lambda x, r: cv2.GaussianBlur(x, (0, 0), deviation))


def coarse(side):
    def make(image, rng):
        small = cv2.resize(image, (side, side), interpolation=cv2.INTER_AREA)
        return cv2.resize(small, image.shape[::-1], interpolation=cv2.INTER_LINEAR)

    return each(make)


def patched(side):
    def make(image, rng):
        image = image.copy()
        row, column = rng.integers(0, np.array(image.shape) - side)
        image[row : row + side, column : column + side] = 0
        return image

    return each(make)


def equalised(images, rng):
    clahe = cv2.createCLAHE(2.0, (8, 8))
    return np.stack([clahe.apply(image) for image in images])


def chain(*changes: Change) -> Change:
    def run(images, rng):
        for change in changes:
            images = change(images, rng)
        return images

    return run


CHANGES: dict[str, Change] = {
    "mirrored": mirrored,
    "half of them mirrored": some_mirrored,
    "turned by 5°": constant(angle=5.0),
    "turned by -10°": constant(angle=-10.0),
    "turned by up to 5°": turned(5),
    "turned by up to 10°": turned(10),
    "zoomed to 0.9": constant(zoom=0.9),
    "zoomed to 1.1": constant(zoom=1.1),
    "zoomed by 0.9 to 1.1": zoomed(0.9, 1.1),
    "shifted by up to 1 pixel": shifted(1),
    "shifted by up to 3 pixels": shifted(3),
    "any pose, mirrored too": each(any_pose),
    "JPEG quality 60": encoded(".jpg", 60),
    "JPEG quality 5": encoded(".jpg", 5),
    "WebP quality 30": encoded(".webp", 30),
    "brightness ±5%": brightened(0.05),
    "brightness ±50%": brightened(0.5),
    "lighter by up to 60": lightened(60),
    "noise, sd 10": noised(10),
    "noise, sd 20": noised(20),
    "noise, sd 40": noised(40),
    "gamma 0.7 to 1.5": gamma(0.7, 1.5),
    "gamma 0.5 to 2": gamma(0.5, 2),
    "elastic, sd 1 pixel": elastic(1.0, 12),
    "elastic, sd 2 pixels": elastic(2.0, 12),
    "elastic, fine": elastic(1.0, 5),
    "blurred, sd 1": blurred(1),
    "blurred, sd 2": blurred(2),
    "64 pixels and back": coarse(64),
    "48 pixels and back": coarse(48),
    "a black patch of 24": patched(24),
    "contrast equalised": equalised,
    "negative": lambda images, rng: 255 - images,
    "upside down": lambda images, rng: images[:, ::-1],
    "turned by 90°": lambda images, rng: np.rot90(images, axes=(1, 2)),
    "sheared by 0.05": constant(shear=0.05),
    "stretched by 1.05": constant(aspect=1.05),
    "pose and JPEG 30": chain(each(any_pose), encoded(".jpg", 30)),
    "pose, gamma, noise 10": chain(each(any_pose), gamma(0.7, 1.5), noised(10)),
    "pose and elastic": chain(each(any_pose), elastic(1.0, 12)),
    "all of it, mildly": chain(each(any_pose), elastic(0.7, 12), gamma(0.8, 1.3), noised(5)),
}


def thinned(keep: Callable[[np.ndarray, np.ndarray, np.random.Generator], np.ndarray]):
    def run(images, who, height, rng):
        rows = np.flatnonzero(keep(who, height, rng))
        return images[rows], who[rows]

    return run


def gap(size, everyone):
    def keep(who, height, rng):
        start = rng.integers(3, 29 - size)
        hit = (height >= start) & (height < start + size)
        return ~hit if everyone else ~(hit & (who == rng.choice(np.unique(who))))

    return thinned(keep)


def repeated(times, share, change=None):
    def run(images, who, height, rng):
        people = np.unique(who)
        chosen = rng.choice(people, max(1, int(share * len(people))), replace=False)
        rows = np.repeat(np.flatnonzero(np.isin(who, chosen)), times)
        copies = images[rows] if change is None else change(images[rows], rng)
        return np.concatenate([images, copies]), np.concatenate([who, who[rows]])

    return run


def interpolated(share, near):
    def run(images, who, height, rng):
        n = max(1, int(share * len(images)))
        one = rng.integers(0, len(images), n)
        if near:
            place = {(int(p), int(h)): i for i, (p, h) in enumerate(zip(who, height, strict=True))}
            steps = rng.integers(1, 4, n)
            other = [place.get((int(who[i]), int(height[i] + s)), int(i))
                     for i, s in zip(one, steps, strict=True)]  # fmt: skip
        else:
            other = rng.integers(0, len(images), n)
        part = rng.uniform(0, 1, (n, 1, 1))
        made = clipped(part * images[one] + (1 - part) * images[other])
        owner = np.where(part[:, 0, 0] >= 0.5, who[one], who[other])
        return np.concatenate([images, made]), np.concatenate([who, owner])

    return run


SELECTIONS: dict[str, Callable[..., tuple[np.ndarray, np.ndarray]]] = {
    "as they are": lambda images, who, height, rng: (images, who),
    "a gap of 2 in one": gap(2, False),
    "a gap of 4 in one": gap(4, False),
    "a gap of 8 in one": gap(8, False),
    "a gap of 2 in all": gap(2, True),
    "a gap of 4 in all": gap(4, True),
    "a gap of 8 in all": gap(8, True),
    "every second": thinned(lambda who, height, rng: height % 2 == 0),
    "every third": thinned(lambda who, height, rng: height % 3 == 0),
    "every fourth": thinned(lambda who, height, rng: height % 4 == 0),
    "random 95%": thinned(lambda who, height, rng: rng.random(len(who)) < 0.95),
    "random 75%": thinned(lambda who, height, rng: rng.random(len(who)) < 0.75),
    "random 50%": thinned(lambda who, height, rng: rng.random(len(who)) < 0.5),
    "random 25%": thinned(lambda who, height, rng: rng.random(len(who)) < 0.25),
    "one slice a person": thinned(lambda who, height, rng: height == 15),
    "two slices a person": thinned(lambda who, height, rng: (height == 15) | (height == 16)),
    "lower halves of all": thinned(lambda who, height, rng: height < 16),
    "lower half of some, upper of others": thinned(
        lambda who, height, rng: (height < 16) == (who % 2 == 0)
    ),
    "5 copies of all": repeated(5, 1.0),
    "20 copies of a tenth": repeated(20, 0.1),
    "10 posed copies of a tenth": repeated(10, 0.1, each(any_pose)),
    "10% interpolated within people": interpolated(0.1, True),
    "50% interpolated within people": interpolated(0.5, True),
    "1% interpolated between people": interpolated(0.01, False),
    "20% interpolated between people": interpolated(0.2, False),
}


def real_slices() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Slices, person and height (0 to 31) of the real set, person after person."""
    folder = find_data()
    if folder is None:
        raise SystemExit("no real slices: set MRI_DATA")
    scans = read_scans(folder, split="train") + read_scans(folder, split="test")
    groups = recover_subjects(scans.images).groups
    lines = [np.flatnonzero(groups == person) for person in range(groups.max() + 1)]
    if [len(line) for line in lines] != [32] * 200:
        raise SystemExit("the unchanged slices are not 200 people of 32")
    rows = np.concatenate([line[order_slices(scans.images[line])] for line in lines])
    return scans.images[rows], np.repeat(np.arange(200), 32), np.tile(np.arange(32), 200)


def judged(images: np.ndarray, truth: np.ndarray, rng: np.random.Generator) -> dict[str, object]:
    """Recover, compare with the truth, and say how it ended."""
    order = rng.permutation(len(images))
    begin, figure, text = time.perf_counter(), None, ""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            groups = recover_subjects(images[order]).groups
        except UnclearSubjectsError as error:
            verdict, text = "refused", str(error)
        else:
            figure = float(adjusted_rand_score(truth[order], groups))
            named = [str(w.message) for w in heard if "group" in str(w.message)]
            verdict = "right" if figure >= 0.999 else "warned" if named else "SILENTLY WRONG"
            verdict += ", warned" * (verdict == "right" and bool(named))
            text = " | ".join(named)
    seconds = round(time.perf_counter() - begin, 1)
    return {"verdict": verdict, "ari": figure, "n": len(images), "seconds": seconds,
            "text": text[:300]}  # fmt: skip


def cases(images: np.ndarray, who: np.ndarray, height: np.ndarray):
    """Yield (name, column, maker): first what is quick."""

    def changed(change, people, mixed):
        def make(rng):
            chosen = rng.choice(200, people, replace=False)
            rows = np.flatnonzero(np.isin(who, chosen))
            new = change(images[rows], rng)
            if not mixed:
                return new, who[rows]
            return np.concatenate([images[rows], new]), np.concatenate([who[rows]] * 2)

        return make

    def selected(select, people, mixed):
        def make(rng):
            chosen = rng.choice(200, people, replace=False)
            rows = np.flatnonzero(np.isin(who, chosen))
            found, truth = select(images[rows], who[rows], height[rows], rng)
            if mixed:
                found = np.concatenate([found, found[:, :, ::-1]])
                truth = np.concatenate([truth, truth])
            return found, truth

        return make

    def random_case(rng):
        change = CHANGES[str(rng.choice(list(CHANGES)))]
        select = SELECTIONS[str(rng.choice(list(SELECTIONS)))]
        chosen = rng.choice(200, 20, replace=False)
        rows = np.flatnonzero(np.isin(who, chosen))
        found, truth = select(images[rows], who[rows], height[rows], rng)
        if rng.random() < 0.7:
            new = change(found, rng)
            both = rng.random() < 0.5
            found = np.concatenate([found, new]) if both else new
            truth = np.concatenate([truth, truth]) if both else truth
        return found, truth

    for column, people, mixed in (("20 people", 20, False), ("randomised", 0, False),
                                  ("all", 200, False), ("mixed", 200, True)):  # fmt: skip
        if column == "randomised":
            yield from ((f"case {i}", column, random_case) for i in range(RANDOMISED))
            continue
        yield from ((n, column, changed(c, people, mixed)) for n, c in CHANGES.items())
        yield from ((n, column, selected(s, people, mixed)) for n, s in SELECTIONS.items())


def table(rows: list[dict[str, object]]) -> str:
    """Return the log as Markdown."""
    cells: dict[str, dict[str, str]] = {}
    for row in rows:
        if row["column"] != "randomised":
            verdict = str(row["verdict"])
            if verdict == "warned" or verdict.startswith("SILENT"):
                verdict += f" (ARI {row['ari']:.3f})"
            cells.setdefault(str(row["name"]), {})[str(row["column"])] = verdict
    wanted = 3 * (len(CHANGES) + len(SELECTIONS)) + RANDOMISED
    lines = ["# Who is who, after changes", "", "Written by `tests/benchmarks/identity.py`, which "
             f"resumes: {len(rows)} of {wanted} cases have been run.", ""]  # fmt: skip
    lines += ["Right: adjusted Rand index of at least 0.999 against the people of the unchanged "
              "slices. Warned: a warning named groups. Mixed: changed slices and originals "
              "together (of selections: the selected and their mirror images).", ""]  # fmt: skip
    lines += ["| kind | all (200 people) | mixed (200 people) | 20 people |", "|---|---|---|---|"]
    for name in [*CHANGES, *SELECTIONS]:
        found = [cells.get(name, {}).get(c, "not run") for c in ("all", "mixed", "20 people")]
        lines.append(f"| {name} | {' | '.join(found)} |")
    lines += ["", "| column | cases | " + " | ".join(VERDICTS) + " |", "|---" * 7 + "|"]
    for column in ("all", "mixed", "20 people", "randomised"):
        count = Counter(str(row["verdict"]) for row in rows if row["column"] == column)
        numbers = " | ".join(str(count[verdict]) for verdict in VERDICTS)
        lines.append(f"| {column} | {count.total()} | {numbers} |")
    lines += ["", "Randomised: 20 people, a random selection of the kinds above, in seven of ten "
              "cases changed by a random kind, alone or beside the originals.", ""]  # fmt: skip
    return "\n".join(lines)


def main() -> None:
    """Run what the log lacks, then write the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1e9)
    parser.add_argument("--columns", nargs="+", default=["20 people", "randomised", "all", "mixed"])
    args = parser.parse_args()
    LOG.parent.mkdir(exist_ok=True)
    rows = [json.loads(line) for line in LOG.read_text().splitlines()] if LOG.exists() else []
    known = {(row["name"], row["column"]) for row in rows}
    end = time.monotonic() + 60 * args.minutes
    for name, column, make in cases(*real_slices()):
        if (name, column) in known or column not in args.columns or time.monotonic() > end:
            continue
        rng = np.random.default_rng(zlib.crc32(f"{name}/{column}".encode()))
        row = {"name": name, "column": column, **judged(*make(rng), rng)}
        with LOG.open("a") as log:
            log.write(json.dumps(row) + "\n")
        print(row, flush=True)
    rows = [json.loads(line) for line in LOG.read_text().splitlines()]
    TABLE.write_text(table(rows))


if __name__ == "__main__":
    main()
