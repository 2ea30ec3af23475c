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

    `groups` (n,) has the subject of each slice. Without slices nothing can be verified.
    """

    def __init__(self, scans: Scans | None, groups: np.ndarray | None) -> None:
        self.scans = scans
        self.groups = np.asarray([] if groups is None else groups)
        self.fingerprint = None if scans is None else scans.fingerprint()
        self._division = cache(self._divided)

    def check(self, file: ModelFile, kept: LogitsTable, *, new: bool) -> str:
        """Return `VERIFIED`, or why it is only claimed; `new` logits were made just now.

        Raises
        ------
        ModelFileError
            If rows, labels, people or logits are not those of the slices or the network.
        """
        if self.scans is None:
            return NO_SLICES
        if kept.about["data"] != self.fingerprint:
            return OTHER_SLICES
        try:
            self._refuse(self.scans, file, kept)
            doubts = []
            if not file.trained_here:
                doubts.append("no card of its training")
            elif not self._is_division((file.card or {}).get("split", {}), kept.rows):
                doubts.append("its division is not one that can be computed again")
            if not new and not is_own(file):
                if file.path.is_file():
                    _predict_anew(file, kept, self.scans, self.groups)
                else:
                    doubts.append("its model file is absent")
        except DataError as error:
            raise ModelFileError(f"{file.path}: its claim is refused: {error}") from error
        return f"claimed: {', '.join(doubts)}" if doubts else VERIFIED

    def _refuse(self, scans: Scans, file: ModelFile, kept: LogitsTable) -> None:
        """Raise DataError where a table or its card contradicts the slices."""
        rows = kept.rows
        if tuple(kept.about["class_names"]) != scans.class_names:
            raise DataError("its classes are not those of the slices")
        if problem := check_rows(rows, len(scans)):
            raise DataError(f"it names {problem}")
        if wrong := int((kept.labels != scans.labels[rows]).sum()):
            raise DataError(f"the labels of {wrong} rows are not those of the slices")
        outside = np.delete(self.groups, rows)
        torn = np.intersect1d(self.groups[rows], outside)
        if len(torn) and (file.card or {}).get("split", {}).get("protocol") == "subject":
            raise DataError(
                f"its card says subject-wise, but {len(torn)} people of its test part have slices "
                "outside it, as in an image-level division"
            )

    def _is_division(self, split: Mapping[str, Any], rows: np.ndarray) -> bool:
        """Whether the rows are the test part, all of it, of the division that the card names."""
        numbers = tuple(split.get(key) for key in ("fold", "folds", "seed"))
        if not all(type(number) is int for number in numbers):
            return False
        test = rows.tobytes() if split.get("protocol") == "image" else b""
        found = self._division(split.get("protocol"), numbers, test)
        return found == (split.get("rows_sha256"), rows.tobytes())

    def _divided(
        self, protocol: str, numbers: tuple[int, int, int], test: bytes
    ) -> tuple[str, bytes] | None:
        """Return the SHA-256 of a division, as `train` writes it into a card, and its test rows."""
        fold, folds, seed = numbers
        if self.scans is None or (protocol == "subject" and not 2 <= folds <= 100):
            return None
        labels, groups = self.scans.labels, self.groups
        try:
            with warnings.catch_warnings(action="ignore"):
                split = (
                    subject_split(labels, groups, fold=fold, folds=folds, seed=seed)
                    if protocol == "subject"
                    else image_split(labels, np.frombuffer(test, np.int64), seed=seed)
                )
        except ValueError:
            return None
        return split_facts(split)["rows_sha256"], split.test.astype(np.int64).tobytes()


def _predict_anew(file: ModelFile, kept: LogitsTable, scans: Scans, groups: np.ndarray) -> None:
    """Raise DataError unless the network still says what was kept of a few rows."""
    # Which rows is nobody's to foresee; what is shown does not depend on it.
    at = np.random.default_rng().permutation(len(kept.rows))[:_SAMPLE]
    facts, found = run_rows(file, scans, groups, kept.rows[at], CHILD.run)
    if wrong := [
        key for key in ("parameters", "output") if facts[key] != kept.about.get(key, facts[key])
    ]:
        raise DataError(f"kept {wrong} are not the network's; remove {file.path.stem}.parquet")
    apart = np.abs(softmax(found, axis=1) - softmax(kept.logits[at], axis=1)).max(1)
    if differ := int((~(apart < _MOST_APART)).sum()):
        raise DataError(
            f"the logits kept are not the network's: of {len(at)} rows predicted anew {differ} "
            f"differ; remove {file.path.stem}.parquet"
        )
