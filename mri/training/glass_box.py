"""Fit the glass box: a ridge on the tone map, cut points and their steepness, all from one set.

`GlassBox.model` writes the numbers into a Keras model; `save_glass_box` saves it with its template.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.linear_model import Ridge
from sklearn.model_selection import StratifiedKFold

from mri._arguments import integers, require
from mri._files import file_sha256
from mri.data.scans import Scans
from mri.data.tone_map import HEIGHTS, STEP, tone_map
from mri.evaluation.persons import INPUT
from mri.models.files import read_card, save_model
from mri.subjects.person import Tones, people_tones, prepare_people
from mri.subjects.splits import Split, check_disjoint, split_facts
from mri.subjects.template import Template, make_template
from mri.training.crossval import keep_real, right_shares
from mri.training.ordinal import Ordinal, fit_ordinal, severity_of

if TYPE_CHECKING:
    from mri._keras import keras

PENALTY = 10.0
"""Of the ridge, in mean squared norms of a person's centred tone map."""


@dataclass(frozen=True, eq=False)
class GlassBox:
    """A severity that is a sum over places, and classes cut from it.

    Attributes
    ----------
    weights, centre : ndarray of float64, shape (8, r, c)
        What each place of a tone map counts, and the mean of the people fitted.
    intercept : float
        Severity of a person who is as the mean everywhere.
    ordinal : Ordinal
    inner : ndarray of float64, shape (n,)
        Severity that each person fitted got from the others, by inner folds.
    """

    weights: np.ndarray = field(repr=False)
    centre: np.ndarray = field(repr=False)
    intercept: float
    ordinal: Ordinal
    inner: np.ndarray = field(repr=False)

    def contributions(self, maps: np.ndarray) -> np.ndarray:
        """Return what each place adds to the severity, float64 (..., 8, r, c)."""
        return (np.asarray(maps, float) - self.centre) * self.weights

    def scores(self, maps: np.ndarray) -> np.ndarray:
        """Return the severity, float64 (n,), of tone maps (n, 8, r, c)."""
        return self.intercept + self.contributions(maps).sum((-3, -2, -1))

    def logits(self, maps: np.ndarray) -> np.ndarray:
        """Return class logits in label order, float64 (n, k), of tone maps (n, 8, r, c)."""
        return self.ordinal.logits(self.scores(maps))

    def model(self) -> keras.Model:
        """Return the same as a Keras model, from prepared slices (n, h, w, 32) to logits."""
        from mri.models.glass_box import glass_box

        return glass_box(
            self.weights,
            self.centre,
            self.intercept,
            slopes=self.ordinal.slopes,
            offsets=self.ordinal.offsets,
        )


def ridge_weights(
    maps: np.ndarray, severity: np.ndarray, *, penalty: float = PENALTY
) -> tuple[np.ndarray, np.ndarray, float]:
    """Fit a ridge.

    `penalty` is in units of the mean squared norm of a centred map, so that it does not depend on
    the size of `maps` (n, ...). The fit to `severity` (n,) is
    ``intercept + sum(weights * (map - centre))``; weights, centre and intercept are returned.
    """
    maps = np.asarray(maps, float)
    flat, centre = maps.reshape(len(maps), -1), maps.mean(0)
    scale = float(flat.var(0).sum())
    require(scale > 0, "maps must differ between people.", scale=scale)
    # With more places than people, this solver has one unknown a person.
    fitted = Ridge(penalty * scale, solver="cholesky").fit(flat, severity)
    return fitted.coef_.reshape(centre.shape), centre, float(np.mean(severity))


def fit_glass_box(
    maps: np.ndarray,
    labels: np.ndarray,
    class_names: tuple[str, ...],
    *,
    penalty: float = PENALTY,
    seed: int = 0,
) -> GlassBox:
    """Fit the glass box to people: each choice is made inside them.

    A ridge spreads the people it was fitted to too far apart. The cut points and the steepness
    therefore come from five inner folds, or fewer if a severity has fewer people.

    Parameters
    ----------
    maps : ndarray of float, shape (n, 8, r, c)
        From `tone_map`, one a person.
    labels, class_names
        Classes of the people, int (n,), and the names in `SEVERITY` in label order.
    penalty, seed
        Of the ridge (see `ridge_weights`) and of the inner folds.

    Raises
    ------
    ValueError
        If the maps are not finite numbers (n, 8, r, c), labels or names do not fit, a severity has
        fewer than two people, or `penalty` is not positive.
    """
    maps, severity = np.asarray(maps, float), severity_of(labels, class_names)
    fits = maps.ndim == 4 and len(maps) == len(severity) and bool(np.isfinite(maps).all())
    require(fits, "maps must be finite (n, 8, r, c), one a label.", shape=maps.shape)
    require(0 < penalty < np.inf, "penalty must be positive.", penalty=penalty)
    fewest = int(np.bincount(severity, minlength=3).min())
    require(fewest >= 2, "Each severity must have two people or more.", fewest=fewest)
    inner = np.empty(len(severity))
    folds = StratifiedKFold(min(5, fewest), shuffle=True, random_state=seed)
    for train, rest in folds.split(severity, severity):
        weights, centre, intercept = ridge_weights(maps[train], severity[train], penalty=penalty)
        inner[rest] = intercept + ((maps[rest] - centre) * weights).sum((1, 2, 3))
    found = ridge_weights(maps, severity, penalty=penalty)
    return GlassBox(*found, fit_ordinal(inner, np.asarray(labels), class_names), inner)


def bootstrap_weights(
    maps: np.ndarray,
    severity: np.ndarray,
    *,
    penalty: float = PENALTY,
    draws: int = 1000,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the weights and their 95% interval when people are drawn anew.

    Whole people are drawn with replacement, within each severity, and the ridge is fitted to each
    draw. A ridge shrinks weights towards 0, and the interval with them: it tells how sure the
    *sign* is, not how large a true weight.

    Parameters
    ----------
    maps : ndarray of float, shape (n, 8, r, c)
    severity : ndarray of int, shape (n,)

    Returns
    -------
    weights, low, high : ndarray of float64, shape (8, r, c)
        The sign is certain if ``low > 0`` or ``high < 0``.
    """
    maps, severity = np.asarray(maps, float), np.asarray(severity)
    require(draws >= 40, "draws must be at least 40.", draws=draws)
    rng = np.random.default_rng(seed)
    people = [np.flatnonzero(severity == k) for k in np.unique(severity)]
    # The maps span as many dimensions as there are people: all ridges are fitted in these.
    axes, spanned = np.linalg.qr(maps.reshape(len(maps), -1).T)
    drawn = np.empty((draws, len(spanned)))
    for i in range(draws):
        rows = np.concatenate([rng.choice(of, len(of)) for of in people])
        drawn[i] = ridge_weights(spanned.T[rows], severity[rows], penalty=penalty)[0]
    weights = (drawn @ axes.T).astype(np.float32)
    low, high = (x.reshape(maps.shape[1:]) for x in np.quantile(weights, [0.025, 0.975], axis=0))
    return ridge_weights(maps, severity, penalty=penalty)[0], low, high


@dataclass(frozen=True, eq=False)
class Fitted:
    """A glass box with tone maps (people, 8, r, c) and labels (people,) of those fitted."""

    box: GlassBox
    template: Template
    maps: np.ndarray = field(repr=False)
    labels: np.ndarray = field(repr=False)
    seconds: float


def train_people(
    scans: Scans, groups: np.ndarray, *, split: Split | None = None, registered: bool = True
) -> Fitted:
    """Fit a glass box to people: template, weights and cut points.

    Parameters
    ----------
    scans, groups
        The slices, and the person of each, int (n,).
    split : Split, optional
        Leaves out the people of `split.test`; by default everybody is used.
    registered : bool
        Whether slices are moved onto the template.

    Raises
    ------
    ValueError
        If the people cannot be prepared, or are too few of some severity.
    DataLeakageError
        If a person has slices on two sides of the split.
    """
    start = perf_counter()
    groups = integers("groups", groups, len(scans))
    sides = scans.images.shape[1:]
    fits = all(side % STEP == 0 for side in sides)
    expected = f"Slices must have sides that {STEP} divides; give read_scans a size."
    require(fits, expected, sides=sides)
    rows = np.arange(len(scans))
    if split is not None:
        check_disjoint(split, groups)
        rows = np.setdiff1d(rows, split.test)
    tones = list(people_tones(scans.images[rows], groups[rows]).values())
    labels = scans.labels[rows][np.unique(groups[rows], return_index=True)[1]]
    template, maps = maps_of(tones, tones, registered=registered)
    box = fit_glass_box(maps, labels, scans.class_names)
    return Fitted(box, template, maps, labels, perf_counter() - start)


def maps_of(
    people: Sequence[Tones], known: Sequence[Tones], *, registered: bool
) -> tuple[Template, np.ndarray]:
    """Return a template of the `known` people, and the tone maps (n, 8, r, c) of `people` by it."""
    whole = [person.images for person in known if len(person.images) == HEIGHTS]
    require(len(whole) > 0, f"Some person must have {HEIGHTS} slices.", people=len(known))
    template = make_template(whole, registered=registered)
    maps = [tone_map(person.images) for person in prepare_people(people, template)]
    return template, np.stack(maps)


def save_glass_box(
    path: str | os.PathLike[str],
    fitted: Fitted,
    *,
    scans: Scans,
    split: Split | None = None,
) -> dict[str, Any]:
    """Write ``<name>.keras``, its card ``<name>.json`` and ``<name>.npz``, the template.

    `scans` and `split` are those given to `train_people`. The card is returned.

    Raises
    ------
    ValueError
        If a model of phantoms would overwrite one of real slices, or `path` has another ending.
    """
    path = Path(path)
    require(path.suffix == ".keras", "path must end in .keras.", path=str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    keep_real(path, scans, read_card(path) or {})
    beside = path.with_suffix(".npz")
    fitted.template.save(beside)
    model, box = fitted.box.model(), fitted.box
    card: dict[str, Any] = {
        "builder": "glass_box",
        "input": INPUT,
        "template_sha256": file_sha256(beside),
        "recipe": {"penalty": PENALTY, "registered": fitted.template.registered},
        "people": len(fitted.labels),
        "parameters": model.count_params(),
        "class_names": list(scans.class_names),
        "synthetic": scans.synthetic,
        "data": scans.fingerprint(),
        "cuts": box.ordinal.cuts.tolist(),
        "temperature": 1.0,
        "seed": 0,
        "best_epoch": 0,
        "seconds": round(fitted.seconds, 1),
        "versions": {"python": platform.python_version(), "numpy": np.__version__},
        # By inner folds of the people fitted, one answer a person.
        "validation": right_shares(fitted.labels, box.ordinal.logits(box.inner)),
    }
    if split is not None:
        card |= {"split": split_facts(split), "test_rows": split.test.tolist()}
    return save_model(model, path, card)
