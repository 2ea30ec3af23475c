"""Checks of arguments, before any work starts, with error messages of one form."""

from __future__ import annotations

import numpy as np


def require(valid: bool | np.bool, expected: str, **received: object) -> None:
    """Raise ValueError with the expected and the received values, unless `valid`.

    >>> require(2 >= 3, "draws must be at least 3.", draws=2)
    Traceback (most recent call last):
    ValueError: draws must be at least 3. Received: draws=2
    """
    if not valid:
        values = ", ".join(f"{name}={value!r}" for name, value in received.items())
        raise ValueError(f"{expected} Received: {values}")


def integers(name: str, values: object, n: int) -> np.ndarray:
    """Return `values` as an array; raise ValueError unless it holds `n` integers, (n,)."""
    array = np.asarray(values)
    valid = array.shape == (n,) and array.dtype.kind in "iu"
    hint = ": give its .groups" * hasattr(values, "groups")
    require(valid, f"{name} must be {n} integers{hint}.", shape=array.shape, dtype=array.dtype)
    return array


def row_numbers(name: str, rows: object, n: int) -> np.ndarray:
    """Return `rows` as an array; raise ValueError unless they are integers from 0 to `n` - 1."""
    array = np.asarray(rows)
    valid = array.ndim == 1 and array.dtype.kind in "iu"
    require(valid, f"{name} must be integers.", shape=array.shape, dtype=array.dtype)
    outside = array[(array < 0) | (array >= n)]
    require(not len(outside), f"{name} must be from 0 to {n - 1}.", outside=outside[:5])
    return array
