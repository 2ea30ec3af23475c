"""Can heatmaps be trusted? A verdict from the measures of `mri.gradcam.measures`.

Control maps know nothing of the network, and every figure stands beside theirs. A map explains
nothing if it does no better than noise, or than a spot in the middle of the brain.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from mri._arguments import integers, require
from mri._text import for_terminal, progress
from mri.evaluation.metrics import Estimate
from mri.gradcam.measures import (
    brain_mask,
    cascade,
    control_maps,
    deletion_insertion,
    localisation,
    rank_correlation,
)

if TYPE_CHECKING:
    from mri._keras import keras
    from mri.data.phantom import Phantoms
    from mri.gradcam.cam import Explanation, GradCAM


SANE, AGREEING = 0.2, 0.7
"""Bounds of rank correlation: almost none, and half of the variance of the ranks in common."""

_PASSES, _FAILS, _OPEN = "passes", "fails", "not decidable"
_FEWEST, _DRAWS = 8, 2000  # subjects that an interval needs, and bootstrap draws
_SLICES = 24  # of a cascade, at most
_ALL = slice(None)


@dataclass(frozen=True, eq=False, repr=False)
class HeatmapCheck:
    """The result of `check_heatmaps`; it prints as a table.

    Attributes
    ----------
    table : one row per check: `Estimate` of the maps and of each control, criterion and verdict
    cascade : one row per stage of the cascade, named by its last layer: value, low, high
    verdict : 'passes', 'fails' or 'not decidable'
    reasons : why checks were not passed, and what else a reader must know
    """

    title: str
    table: pd.DataFrame
    cascade: pd.DataFrame
    verdict: str
    reasons: tuple[str, ...]

    @property
    def _notes(self) -> tuple[str, ...]:
        steps = ", ".join(f"{layer} {value:.2f}" for layer, value in self.cascade["value"].items())
        return *self.reasons, f"Correlation while weights are randomised, output first: {steps}."

    def __repr__(self) -> str:
        table = self.table.map(str).to_string()
        return for_terminal("\n".join([f"{self.title}: {self.verdict}", table, *self._notes]))

    def _repr_html_(self) -> str:
        reasons = "".join(f"<li>{escape(reason)}</li>" for reason in self._notes)
        head = f"<b>{escape(self.title)}: {self.verdict}</b>"
        return f"{head}{self.table.map(str).to_html()}<ul>{reasons}</ul>"


def check_heatmaps(
    model: keras.Model,
    images: np.ndarray,
    *,
    subjects: np.ndarray | None = None,
    layer: str | keras.Layer | None = None,
    method: str = "grad-cam",
    seed: int = 0,
) -> HeatmapCheck:
    """Test the heatmaps of the predicted classes and give a verdict.

    Each criterion is a margin whose mean must be positive. Its 95% interval is a bootstrap over
    subjects. A check passes if the interval lies above zero and fails if it lies below. Otherwise
    it is "not decidable". So is a check with fewer than 8 subjects, or one where most figures do
    not exist, for example because maps are zero. The model fails if one check fails, and passes if
    all pass.

    1. *random weights*: correlation at the last stage of `cascade` [1]_ must be within ±0.2. It
       uses at most 24 slices; its interval covers the random networks too.
    2. *deletion*, *insertion*: area under the curves of `deletion_insertion` [2]_. On average, 0 is
       the evidence of the blurred slice and 1 that of the slice. Deletion must be below each
       control, insertion above. Slices that lose no evidence when blurred are left out.
    3. *outside the brain*: this share of the map's sum must be below half of the random control's.
    4. *agreement* with HiResCAM [3]_ must be above 0.7, because HiResCAM marks only what a linear
       head uses. For method 'hirescam', the agreement is with Grad-CAM and has no criterion.
    5. *one-pixel shift*: the slice is moved to each of four sides, and its map is moved back. The
       agreement must be above 0.7.

    Agreement and correlation are Spearman's, over the pixels of `brain_mask`, because black pixels
    are ties. The same figures are measured for `control_maps`; margins from controls are paired.

    Parameters
    ----------
    model : from one image input to class scores, as for `GradCAM`
    images : uint8 or float (n, h, w), some dozen slices
    subjects : int (n,), the person of each slice; without it, the bootstrap draws slices
    layer, method : as for `GradCAM`
    seed : of controls, random weights, ties and bootstrap

    Raises
    ------
    ValueError
        If shapes disagree, a slice shows no brain, or `GradCAM` refuses the model or the images.

    Examples
    --------
    >>> from mri.data import make_phantoms
    >>> from mri.models import build_model
    >>> phantoms = make_phantoms(8, 1, size=64)
    >>> model = build_model("compact", input_shape=(64, 64, 1))  # Untrained: its maps show nothing.
    >>> check_heatmaps(model, phantoms.images, subjects=phantoms.subjects).verdict
    'fails'

    References
    ----------
    .. [1] Adebayo et al., Sanity checks for saliency maps, 2018, arXiv:1810.03292.
    .. [2] Petsiuk et al., RISE, 2018, arXiv:1806.07421.
    .. [3] Draelos and Carin, HiResCAM, 2020, arXiv:2011.08891.
    """
    from mri.gradcam.cam import GradCAM

    images = np.asarray(images)
    brain, n = brain_mask(images), len(images)
    require(brain.any((1, 2)).all(), "Every slice must show a brain.", empty=~brain.any((1, 2)))
    subjects = np.arange(n) if subjects is None else integers("subjects", subjects, n)
    cam = GradCAM(model, layer, method=method)
    plain = cam(images)
    kinds = {"found": plain.maps, **control_maps(plain.maps, brain, seed=seed)}
    case = _Case(cam, images, subjects, brain, plain, kinds, seed)
    steps: list[Callable[[_Case], Any]] = [_random_weights, _deletion_and_insertion]
    steps += [_outside_the_brain, _agreement, _one_pixel_shift]
    found: list[Any] = [step(case) for step in progress(steps, "checks of heatmaps", len(steps))]
    (randomised, fallen), (removed, usable), outside, agreeing, shifted = found
    rows = randomised | removed | outside | agreeing | shifted
    reasons = [
        f"{name}: {row['verdict']}; {row['found']} must be {row['criterion']}."
        for name, row in rows.items()
        if row["verdict"] in (_FAILS, _OPEN)
    ]
    if plain.zero.any():
        reasons.append(f"{plain.zero.sum()} of {n} maps are zero: no evidence for the class.")
    if usable < n:
        reasons.append(f"{n - usable} of {n} slices lose no evidence when they are blurred.")
    if len(np.unique(subjects)) == n:
        reasons.append("Each slice counts as a subject. If wrong, the intervals are too narrow.")
    return HeatmapCheck(
        f"{model.name}, {method} at {cam.layer.name}, {n} slices",
        pd.DataFrame.from_dict(rows, orient="index"),
        fallen,
        _worst([row["verdict"] for row in rows.values()]),
        tuple(reasons),
    )


Figures = dict[str, np.ndarray]
Rows = dict[str, dict[str, Any]]


@dataclass(frozen=True, eq=False)
class _Case:
    """What all checks share.

    `plain` explains the predicted classes; `kinds` are the maps to check under 'found', then those
    of each control.
    """

    cam: GradCAM
    images: np.ndarray
    subjects: np.ndarray
    brain: np.ndarray
    plain: Explanation
    kinds: Figures
    seed: int

    def interval(self, values: np.ndarray, at: np.ndarray | slice = _ALL) -> Estimate:
        """Return mean and interval of values (n,) or (r, n), without the slices of zero maps."""
        values = np.where(self.plain.zero[at], np.nan, values)
        return _interval(values, self.subjects[at], self.seed)

    def row(
        self,
        criterion: str,
        figures: Figures,
        margins: list[np.ndarray],
        at: np.ndarray | slice = _ALL,
    ) -> dict[str, Any]:
        """Return one row of the table: the figure of each kind of map, criterion and verdict."""
        estimates = {kind: self.interval(values, at) for kind, values in figures.items()}
        decided = [_decide(self.interval(margin, at)) for margin in margins]
        return {**estimates, "criterion": criterion, "verdict": _worst(decided) if decided else "–"}

    def agreement(
        self, others: Sequence[np.ndarray] | np.ndarray, at: np.ndarray | slice = _ALL
    ) -> Figures:
        """Return the rank correlations with other maps, (r, n), by kind of map."""
        brain = self.brain[at]
        return {
            kind: np.stack([rank_correlation(maps[at], other, brain) for other in others])
            for kind, maps in self.kinds.items()
        }

    def alike(self, others: list[np.ndarray], judged: bool = True) -> dict[str, Any]:
        """Return the row of agreement with other maps."""
        figures = self.agreement(others)
        margins = [figures["found"] - AGREEING] if judged else []
        return self.row(f"above {AGREEING}" if judged else "–", figures, margins)


def _random_weights(case: _Case) -> tuple[Rows, pd.DataFrame]:
    n = len(case.images)
    few = np.linspace(0, n - 1, min(n, _SLICES)).round().astype(int)
    fallen = cascade(case.cam, case.images[few], seed=case.seed)
    figures = case.agreement(fallen.maps, few)
    margins = [SANE - figures["found"], SANE + figures["found"]]
    stages = [case.interval(stage, few) for stage in fallen.correlation]
    rows = {"random weights": case.row(f"within ±{SANE}", figures, margins, few)}
    return rows, pd.DataFrame(stages, fallen.layers)


def _deletion_and_insertion(case: _Case) -> tuple[Rows, int]:
    """Return both rows, and the number of slices that lose evidence when blurred."""

    def logits(images: np.ndarray) -> np.ndarray:
        return case.cam(images).logits

    curves = {
        kind: deletion_insertion(logits, case.images, maps, case.plain.classes, seed=case.seed)
        for kind, maps in case.kinds.items()
    }
    whole, blurred = curves["found"].deletion[:, 0], curves["found"].deletion[:, -1]
    usable = np.flatnonzero(whole > blurred)
    unit = (whole - blurred)[usable].mean() if len(usable) else 1.0
    rows = {}
    for name, sign, side in (("deletion", -1, "below"), ("insertion", 1, "above")):
        figures = {
            kind: np.trapezoid(getattr(of, name) - blurred[:, None], of.fractions)[usable] / unit
            for kind, of in curves.items()
        }
        found, *controls = figures.values()
        margins = [sign * (found - control) for control in controls]
        rows[name] = case.row(f"{side} each control", figures, margins, usable)
    return rows, len(usable)


def _outside_the_brain(case: _Case) -> Rows:
    figures = {kind: 1 - localisation(maps, case.brain).energy for kind, maps in case.kinds.items()}
    margins = [figures["random"] / 2 - figures["found"]]
    return {"outside the brain": case.row("below half of random", figures, margins)}


def _agreement(case: _Case) -> Rows:
    # HiResCAM is the reference: its agreement with another method cannot judge it.
    judged = case.cam.method != "hirescam"
    other = "hirescam" if judged else "grad-cam"
    maps = case.cam.by(other)(case.images, case.plain.classes).maps
    return {f"agreement with {other}": case.alike([maps], judged)}


def _one_pixel_shift(case: _Case) -> Rows:
    moved = [
        np.roll(case.cam(np.roll(case.images, step, axis), case.plain.classes).maps, -step, axis)
        for axis in (1, 2)
        for step in (-1, 1)
    ]
    return {"one-pixel shift": case.alike(moved)}


def ground_truth(
    model: keras.Model,
    phantoms: Phantoms,
    *,
    region: tuple[slice, slice] | None = None,
    classes: np.ndarray | int | None = None,
    layer: str | keras.Layer | None = None,
    tolerance: int = 0,
    seed: int = 0,
) -> pd.DataFrame:
    """Measure how well the maps of each method find the pixels that the disease changed.

    Returns one row per method and kind of map ('found' or one of `control_maps`). Each measure of
    `localisation` has its mean and its 95% interval over subjects: value, low, high.

    Parameters
    ----------
    model, layer, tolerance : as for `GradCAM` and for `localisation`
    phantoms : only the slices that the disease changed are used
    region : rows and columns to find instead of the masks, such as `mri.data.phantom.SHORTCUT`
    classes : class to explain, one for all or int (n,); by default the labels
    seed : of controls and bootstrap

    Raises
    ------
    ValueError
        If no slice has a mask, the classes have a wrong shape or type, the tolerance is negative,
        the region is outside the slices, or `GradCAM` refuses the model or the classes.

    Examples
    --------
    >>> from mri.data import make_phantoms
    >>> from mri.models import build_model
    >>> model = build_model("compact", input_shape=(64, 64, 1))
    >>> table = ground_truth(model, make_phantoms(8, 1, size=64))
    >>> table.index.get_level_values(0).unique().tolist()
    ['grad-cam', 'grad-cam++', 'hirescam', 'layercam']
    """
    from mri.gradcam.cam import METHODS, GradCAM

    chosen = phantoms.masks.any((1, 2))
    require(chosen.any(), "No slice has a mask.", labels=np.unique(phantoms.labels))
    images, masks, subjects = (
        values[chosen] for values in (phantoms.images, phantoms.masks, phantoms.subjects)
    )
    classes = np.asarray(phantoms.labels if classes is None else classes)
    fits = classes.shape in ((), chosen.shape) and classes.dtype.kind in "iu"
    require(fits, f"classes must be one or {len(phantoms.labels)} integers.", classes=classes)
    require(tolerance >= 0, "tolerance must not be negative.", tolerance=tolerance)
    classes = np.broadcast_to(classes, chosen.shape)
    if region is not None:
        masks = np.zeros_like(masks)
        masks[:, *region] = True
        require(masks.any(), f"region must hold pixels of slices {masks.shape[1:]}.", region=region)
    rows, brain = {}, brain_mask(images)
    for method in METHODS:
        maps = GradCAM(model, layer, method=method)(images, classes[chosen]).maps
        for kind, of in {"found": maps, **control_maps(maps, brain, seed=seed)}.items():
            measured = localisation(of, masks, tolerance=tolerance)._asdict()
            rows[method, kind] = {
                (measure, field): figure
                for measure, values in measured.items()
                for field, figure in _interval(values, subjects, seed)._asdict().items()
            }
    return pd.DataFrame.from_dict(rows, orient="index")


def _interval(values: np.ndarray, subjects: np.ndarray, seed: int) -> Estimate:
    """Return the mean of `values` (n,) or (r, n) without NaN, and its interval.

    The bootstrap draws subjects. If there are several rows, it also draws rows, independently
    (Owen 2007, doi:10.1214/07-AOAS122).
    """
    values, (names, units) = np.atleast_2d(values), np.unique(subjects, return_inverse=True)
    usable, of_unit = np.isfinite(values), (units[:, None] == np.arange(len(names))).astype(float)
    sums, counts = np.where(usable, values, 0) @ of_unit, usable @ of_unit
    mean = sums.sum() / counts.sum() if counts.any() else np.nan
    if counts.any(0).sum() < _FEWEST or usable.mean() < 0.5:
        return Estimate(float(mean), np.nan, np.nan)
    rng, (r, m) = np.random.default_rng(seed), sums.shape
    rows = rng.multinomial(r, np.full(r, 1 / r), _DRAWS)
    columns = rng.multinomial(m, np.full(m, 1 / m), _DRAWS)
    total, size = ((rows @ part * columns).sum(1) for part in (sums, counts))
    low, high = np.percentile(total[size > 0] / size[size > 0], (2.5, 97.5))
    return Estimate(float(mean), float(low), float(high))


def _decide(margin: Estimate) -> str:
    return _PASSES if margin.low > 0 else _FAILS if margin.high < 0 else _OPEN


def _worst(verdicts: list[str]) -> str:
    return next((verdict for verdict in (_FAILS, _OPEN) if verdict in verdicts), _PASSES)
