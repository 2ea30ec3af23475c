"""Shared fixtures: quiet TensorFlow, the real slices where they are, seeded randomness."""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from filelock import FileLock

from mri.data.scans import Scans
from mri.evaluation.comparison import Comparison
from mri.evaluation.metrics import evaluate
from mri.evaluation.significance import pairwise

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("MPLBACKEND", "agg")

# Scripts of `make bench`, which import packages that the tests do without.
collect_ignore = ["benchmarks"]


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of the real slices, or skip."""
    from mri.data.sources import find_data

    folder = find_data()
    if folder is None:
        pytest.skip("no real slices: set MRI_DATA to the folder of the two parquet files")
    return folder


@pytest.fixture(scope="session")
def striped_scans() -> Callable[..., Scans]:
    """Return a maker of one slice a subject number, from 0 without gaps.

    Each subject is a noise of its own with a bright bar whose place tells the class, the remainder
    of its number by four.
    """

    def make(
        subjects: np.ndarray, size: int, names: tuple[str, ...], rng: np.random.Generator
    ) -> Scans:
        labels, step = subjects % 4, size // 4
        images = rng.normal(110, 40, (subjects.max() + 1, size, size))[subjects]
        for image, label in zip(images, labels, strict=True):
            image[step * label : step * label + 2] += 60
        images = (images + rng.normal(0, 20, images.shape)).clip(0, 255).astype(np.uint8)
        rejected = pd.DataFrame(columns=["file", "row", "cause"])
        return Scans(images, labels, names, rejected, synthetic=True)

    return make


@pytest.fixture
def closed() -> Iterator[None]:
    """Close the figures of a test when it ends."""
    yield
    from matplotlib import pyplot as plt

    plt.close("all")


ROWS = (
    *[("a-subject", "subject", 0.9, 300), ("b-subject", "subject", 0.88, 100)],
    *[("c-subject", "subject", 0.2, 200), ("d-subject", "subject", 0.1, 50)],
    *[("c-image", "image", 0.99, 200), ("a-image", "image", 0.7, 300)],
    *[("b-image", "image", 0.3, 100), ("x", "–", np.nan, np.nan)],
)


@pytest.fixture(scope="session")
def made_up() -> Callable[..., Comparison]:
    """Return a maker of comparisons on the same random slices: 24 people of 3, four classes.

    Rows are (model, protocol, figure, parameters): the figure orders the table and is about the
    share of the slices that the model's logits name correctly.
    """

    def make(rows: Sequence[tuple] = ROWS) -> Comparison:
        rng, subjects = np.random.default_rng(0), np.repeat(np.arange(24), 3)
        labels, evaluations = (np.arange(24) % 4)[subjects], {}
        table = pd.DataFrame(rows, columns=["model", "protocol", "balanced_accuracy", "parameters"])
        for name, share in zip(table["model"], table["balanced_accuracy"], strict=True):
            right = rng.random(len(labels)) < (0 if np.isnan(share) else share)
            logits = 3.0 * np.eye(4)[np.where(right, labels, (labels + 1) % 4)]
            evaluations[name] = evaluate(labels, logits, subjects, draws=50)
        for column in ("size_mb", "ms_1", "ms_64", "seconds"):
            table[column] = np.nan
        table["note"] = ""
        p = {
            protocol: pairwise({name: evaluations[name] for name in of["model"]}, draws=500)
            for protocol, of in table.groupby("protocol")
            if protocol != "–"
        }
        return Comparison(table, evaluations, p, "balanced_accuracy", {}, {}, ())

    return make


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


FIGURES = Path("runs/faults.json")


@pytest.fixture
def keep_figures() -> Callable[..., None]:
    """Return a function that puts counts into ``runs/faults.json``, where README's are from."""

    def keep(heading: str, **counts: float) -> None:
        FIGURES.parent.mkdir(exist_ok=True)
        with FileLock(FIGURES.with_suffix(".lock")):  # Two tests run at a time.
            known = json.loads(FIGURES.read_text()) if FIGURES.exists() else {}
            FIGURES.write_text(json.dumps(known | {heading: counts}, indent=1))
        print(f"{heading}: {counts}")

    return keep
