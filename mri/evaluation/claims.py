"""What a card and its kept logits claim, held against the slices: verified, claimed or refused.

What contradicts the slices is refused. What cannot be checked is called claimed, and never leads
over what was checked. No check tells what a network has really been trained on: a card that names
the rows of the usual division may still lie about its network.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import cache
from typing import Any

import numpy as np
from scipy.special import softmax

from mri.data.decode import DataError
from mri.data.scans import Scans
from mri.evaluation.logits import LogitsTable, run_rows
from mri.models.cards import ModelFileError, check_rows
from mri.models.child import CHILD
from mri.models.files import ModelFile
from mri.models.own import is_own
from mri.subjects.splits import image_split, split_facts, subject_split

VERIFIED = "verified"
NO_SLICES = "claimed: no slices to verify it with"
OTHER_SLICES = "claimed: logits kept from other slices than these"
_SAMPLE = 48
# Of a probability: another processor's bfloat16 stays below a third of this.
_MOST_APART = 0.1


class Claims:
    """What can be checked with the slices at hand, each division computed once.

    Parameters
    ----------
    scans : Scans, optional
        Without them nothing can be verified.
    groups : ndarray of int, shape (n,), optional
        Subject of each slice.
    """

    def __init__(self, scans: Scans | None, groups: np.ndarray | None) -> None:
        self.scans = scans
        self.groups = None if groups is None else np.asarray(groups)
        self._division = cache(self._divided)

    def check(self, file: ModelFile, kept: LogitsTable, fingerprint: str | None, new: bool) -> str:
        """Return `VERIFIED`, or why it is only claimed.

        Parameters
        ----------
        file : ModelFile
        kept : LogitsTable
            Of the file, or of its card where the file is absent.
        fingerprint : str or None
            Of the slices at hand.
        new : bool
            Whether the logits were made just now.

        Raises
        ------
        ModelFileError
            If rows, labels, people or logits are not those of the slices or the network.
        """
        if self.scans is None or self.groups is None:
            return NO_SLICES
        if kept.about["data"] != fingerprint:
            return OTHER_SLICES
        try:
            return self._check(file, kept, new)
        except DataError as error:
            raise ModelFileError(f"{file.path}: its claim is refused: {error}") from error

    def _check(self, file: ModelFile, kept: LogitsTable, new: bool) -> str:
        scans, groups = self.scans, self.groups
        if scans is None or groups is None:
            raise DataError("no slices")
        rows = kept.rows
        if tuple(kept.about["class_names"]) != scans.class_names:
            raise DataError("its classes are not those of the slices")
        if problem := check_rows(rows, len(scans)):
            raise DataError(f"it names {problem}")
        if wrong := int((kept.labels != scans.labels[rows]).sum()):
            raise DataError(f"the labels of {wrong} rows are not those of the slices")
        split = (file.card or {}).get("split", {})
        if split.get("protocol") == "subject":
            tested = np.isin(groups, groups[rows])
            torn = np.unique(groups[np.setdiff1d(np.flatnonzero(tested), rows)])
            if len(torn):
                raise DataError(
                    f"its card says subject-wise, but {len(torn)} people of its test part have "
                    "slices outside it, as in an image-level division"
                )
        doubts = []
        if not file.trained_here:
            doubts.append("no card of its training")
        elif not self._is_division(split, rows):
            doubts.append("its division is not one that can be computed again")
        if not new and not is_own(file):
            if file.path.is_file():
                _predict_anew(file, kept, scans, groups)
            else:
                doubts.append("its model file is absent")
        return f"claimed: {', '.join(doubts)}" if doubts else VERIFIED

    def _is_division(self, split: Mapping[str, Any], rows: np.ndarray) -> bool:
        """Whether the rows are the test part, all of it, of the division that the card names."""
        numbers = [split.get(key) for key in ("fold", "folds", "seed")]
        if not all(type(number) is int for number in numbers):
            return False
        test = rows.tobytes() if split.get("protocol") == "image" else b""
        found = self._division(split.get("protocol"), tuple(numbers), test)
        return found == (split.get("rows_sha256"), rows.tobytes())

    def _divided(
        self, protocol: str, numbers: tuple[int, int, int], test: bytes
    ) -> tuple[str, bytes] | None:
        """Return the SHA-256 of a division, as `train` writes it into a card, and its test rows."""
        fold, folds, seed = numbers
        scans, groups = self.scans, self.groups
        if scans is None or groups is None or (not 2 <= folds <= 100 and protocol == "subject"):
            return None
        try:
            with warnings.catch_warnings(action="ignore"):
                split = (
                    subject_split(scans.labels, groups, fold=fold, folds=folds, seed=seed)
                    if protocol == "subject"
                    else image_split(scans.labels, np.frombuffer(test, np.int64), seed=seed)
                )
        except ValueError:
            return None
        return split_facts(split)["rows_sha256"], split.test.astype(np.int64).tobytes()


def _predict_anew(file: ModelFile, kept: LogitsTable, scans: Scans, groups: np.ndarray) -> None:
    """Raise DataError unless the network still says what was kept of a few rows."""
    # Which rows is nobody's to foresee; what is shown does not depend on it.
    at = np.random.default_rng().permutation(len(kept.rows))[:_SAMPLE]
    found = run_rows(file, scans, groups, kept.rows[at], CHILD.run)
    apart = np.abs(softmax(found, axis=1) - softmax(kept.logits[at], axis=1)).max(1)
    if not (apart < _MOST_APART).all():
        raise DataError(
            f"the logits kept are not the network's: of {len(at)} rows predicted anew "
            f"{int((~(apart < _MOST_APART)).sum())} differ; remove {file.path.stem}.parquet"
        )
