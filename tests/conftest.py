"""Shared fixtures: quiet TensorFlow, the real slices where they are, seeded randomness."""

import os
from pathlib import Path

import numpy as np
import pytest

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


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
