"""Shared fixtures: quiet TensorFlow, the real slices where they are, seeded randomness."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mri.data import Scans

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("MPLBACKEND", "agg")


@pytest.fixture(scope="session")
def real_data() -> Path:
    """Return the folder of the real slices, or skip."""
    from mri.data import find_data

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
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
