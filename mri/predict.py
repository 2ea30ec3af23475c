"""What a model says of one slice, or of a person: ``python -m mri predict IMAGE``."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy.special import softmax

from mri._text import for_line, for_terminal
from mri.data.decode import DataError
from mri.data.labels import Names, places_of
from mri.data.one_slice import PHANTOM, SIZE, OneSlice, check_slice, read_slice
from mri.data.parquet import CLASS_NAMES
from mri.evaluation.logits import RANDOM, differs, fitting_scorer
from mri.evaluation.persons import Answer, PersonModel, takes_person
from mri.models.child import CHILD, Arrays, Facts, run_here
from mri.models.files import ModelFile, ModelFileError, find_model, load_handed
from mri.models.inputs import READ_AS
from mri.models.own import is_own

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mri.gradcam.cam import Explanation


DEFAULT_MODEL = "compact-subject"
"""Comes with the repository; judged on people it had never seen, and its map is HiResCAM's."""

METHOD = "hirescam"
_SURE = 0.9999

_DEVICE = "Not a diagnostic device: 200 people of one study, for teaching and comparison only."
_MAP = (
    "The heatmap says where the network looked, not why, and only as far as its checks pass: no "
    "network that comes with the repository passes them all (models/heatmaps.md)."
)
_EXACT = (
    "The map is exact: what its places add sums to the severity. "
    "This does not make the answer right."
)


class Prediction(NamedTuple):
    """What a network says of a slice.

    `probabilities` maps class names to shares of 1, calibrated by the temperature of the card;
    `explanation` is of the class predicted, by HiResCAM, None where the network has no map to show.
    `person` is the answer of a model of whole people, whose map is exact; `slice` is then the first
    of theirs. `warnings` are to be read with all of it.
    """

    slice: OneSlice
    model: str
    probabilities: dict[str, float]
    explanation: Explanation | None
    warnings: tuple[str, ...]
    person: Answer | None = None

    @property
    def answer(self) -> str:
        """Name of the most probable class."""
        return max(self.probabilities, key=self.probabilities.__getitem__)

    def __str__(self) -> str:
        """Return what the command line prints."""
        lines = [for_line(f"{self.slice.place}, by {self.model}:")]
        for name, share in sorted(self.probabilities.items(), key=lambda item: -item[1]):
            lines.append(f"  {for_line(name.replace('_', ' '), 80):20s} {share:.3f}")
        if self.person is not None:
            lines.append(_severity(self.person))
        if self.slice.truth is not None:
            lines.append(for_line(f"The file itself says: {self.slice.truth.replace('_', ' ')}."))
        return for_terminal("\n".join([*lines, *self.warnings]))

    def draw(self) -> Figure:
        """Return slice, heatmap and overlay side by side; the slice alone where there is no map.

        Of a person, what each place adds to the severity, slab by slab.
        """
        from mri.plots.maps import heatmap_grid

        if self.person is not None:
            from mri.plots.glass_box import plot_person

            title = f"{for_line(self.slice.place, 60)}, by {for_line(self.model, 60)}"
            return plot_person(self.person, title=f"{title}; not a diagnostic device")
        if self.explanation is None:
            return _slice_alone(self)
        names = list(self.probabilities)
        said = f"predicted: {for_line(self.answer.replace('_', ' '), 40)}"
        at = None if self.slice.truth is None else places_of(names, [self.slice.truth])
        about = ", synthetic phantom" if PHANTOM in self.slice.notes else ""
        return heatmap_grid(
            self.slice.image[None],
            self.explanation,
            None if at is None else np.array(at),
            np.array([list(self.probabilities.values())]),
            names,
            title=f"{for_line(self.model, 60)}, {METHOD}{about}\n{said}; not a diagnostic device",
        )


def predict_slice(
    source: str | os.PathLike[str] | np.ndarray | Sequence[str | os.PathLike[str]],
    *,
    model: str | os.PathLike[str] = DEFAULT_MODEL,
    row: int = 0,
    plane: int | None = None,
    check: bool = True,
    image: str = "image",
    label: str = "label",
    class_names: Names | None = None,
) -> Prediction:
    """Ask a trained model about one slice, or about a person.

    A model whose card says that it takes a person gets all slices that are given. It answers for
    one slice too, and warns of what it lacks.

    Parameters
    ----------
    source
        A file as for `mri.data.read_slice`, or pixels laid out as in the data set, uint8 (128, 128)
        or (n, 128, 128). Several are the slices of one person, in any order.
    model
        Name of a file of ``models/``, else of ``models/zoo/``, or a path ending in ``.keras``; the
        ending ``-subject`` may be left out.
    row
        Of a table, from 0.
    plane
        Of a volume or a series, from its lowest; by default the one most like the data set.
    check
        Refuse what does not look like a slice of the data set.
    image, label, class_names
        Of a table, as in `read_scans`.

    Raises
    ------
    DataError
        If there is no such slice or model, it is refused, or the model takes one slice and several
        are given.

    Examples
    --------
    >>> import mri
    >>> image = mri.make_phantoms(4, 1).images[0]
    >>> found = predict_slice(image, model="tissue-subject")
    >>> round(sum(found.probabilities.values()), 3), found.explanation.maps.shape
    (1.0, (1, 128, 128))
    """
    from mri.gradcam.cam import Explanation

    file = ModelFile(find_model(model))
    card = file.card or {}
    table = {"image": image, "label": label, "class_names": class_names}
    slices = list(_slices(source, row=row, plane=plane, check=check, **table))
    names = CLASS_NAMES
    if file.trained_here:
        names = tuple(card.get("class_names", CLASS_NAMES))
    explanation, person = None, None
    if takes_person(file):
        person, said = _asked_person(file, slices)
        logits = person.logits
    elif len(slices) > 1:
        raise DataError(
            f"{file.path}: takes one slice. Received: {len(slices)}; choose a model of people, "
            "such as glass_box"
        )
    else:
        with file.handed((SIZE, SIZE), names) as handed:
            facts = {"handed": handed, "class_names": list(names)}
            run = run_here if is_own(file) else CHILD.run
            told, values = run(answers, file.path, facts, {"image": slices[0].image})
        logits, said = values.pop("logits")[0], told["said"]
        explanation = Explanation(logits=logits[None], **values) if values else None
    shares = softmax(logits.astype(np.float64) / card.get("temperature", 1.0))
    probabilities = dict(zip(names, shares.tolist(), strict=True))
    notes = [note for of in slices for note in of.notes]
    known = (*_warnings(file, check, surest=shares.max()), *dict.fromkeys(notes))
    warnings = (*known, *said) if explanation is None else (*known, *said, _MAP)
    first = slices[0]
    if len(slices) > 1:
        first = first._replace(place=f"{first.place} and {len(slices) - 1} more")
    return Prediction(first, file.path.stem, probabilities, explanation, warnings, person)


def _slices(
    source: str | os.PathLike[str] | np.ndarray | Sequence[str | os.PathLike[str]],
    *,
    row: int,
    plane: int | None,
    check: bool,
    **table: Any,
) -> Iterator[OneSlice]:
    if not isinstance(source, np.ndarray):
        paths: Sequence[Any] = source if isinstance(source, list | tuple) else [source]
        if not paths or not all(isinstance(path, str | os.PathLike) for path in paths):
            given = type(source).__name__ if len(paths) else "no slice"
            raise DataError(f"expected a file, files, or pixels as an array. Received: {given}")
        for path in paths:
            yield read_slice(path, row=row, plane=plane, check=check, **table)
        return
    if row or plane:
        raise DataError(f"pixels have no rows or planes. Received: row={row}, plane={plane}")
    fits = source.shape[-2:] == (SIZE, SIZE) and source.ndim <= 3 and source.size
    if not fits or source.dtype != np.uint8:
        raise DataError(
            f"expected uint8 pixels ({SIZE}, {SIZE}), or (n, {SIZE}, {SIZE}) of a person. "
            f"Received: {source.shape}, {source.dtype}"
        )
    images = source.reshape(-1, SIZE, SIZE)
    for number, image in enumerate(images):
        place = "the slice" if len(images) == 1 else f"slice {number}"
        if check and (problem := check_slice(image)):
            raise DataError(f"{place}: {problem}")
        yield OneSlice(image, None, place)


def _asked_person(file: ModelFile, slices: list[OneSlice]) -> tuple[Answer, list[str]]:
    try:
        found = PersonModel(file).ask(np.stack([of.image for of in slices]))
    except DataError:
        raise
    except ValueError as error:
        raise DataError(f"{slices[0].place}: no person can be made of it ({error})") from error
    said = [f"Lacking: {of}." for of in found.warnings]
    return found, [*said, _EXACT]


def _severity(of: Answer) -> str:
    added = of.contributions.astype(float)
    return (
        f"Severity {of.severity:.2f} (0 not demented, 1 very mild, 2 mild): average person "
        f"{of.intercept:.2f}, {added[added > 0].sum():+.2f} speaks for dementia, "
        f"{added[added < 0].sum():+.2f} against."
    )


def answers(told: Facts, arrays: Arrays) -> Iterator[tuple[Facts, Arrays]]:
    """Yield nothing, and then what a model file says of one slice; see `Answers`."""
    from mri.gradcam.cam import GradCAM

    image, path = arrays["image"], told["handed"]["shown"]
    network = load_handed(**told["handed"])
    scorer = fitting_scorer(path, network, (1, *image.shape), told["class_names"])
    yield {}, {}
    try:
        cam = GradCAM(network, method=METHOD)
        values, kind, said = vars(cam(image)), cam.kind, []
    except ValueError as error:
        values, kind = {"logits": scorer(image[None])}, scorer.kind
        said = [f"No heatmap: {error}"]
    if not np.isfinite(values["logits"]).all():
        raise ModelFileError(f"{path}: gives logits that are not finite")
    # Of one slice alone, logits may lie from 0 to 1, and the others of a batch change nothing.
    many = scorer(np.stack([np.roll(image, shift, 1) for shift in range(8)]))
    kind = scorer.kind if kind == "unclear" else kind
    if scorer.kind == kind and differs(many[:1], values["logits"]):
        said.append(f"The network {RANDOM}.")
    said += [f"The network {READ_AS[kind]}."] if READ_AS[kind] else []
    yield {"said": said}, values


def _slice_alone(of: Prediction) -> Figure:
    from matplotlib import pyplot as plt

    from mri.plots.style import show_image

    figure, ax = plt.subplots(figsize=(3.4, 3.6), layout="compressed")
    show_image(ax, of.slice.image)
    said = f"predicted: {of.answer.replace('_', ' ')}, no heatmap\nnot a diagnostic device"
    ax.set_title(f"{of.model}\n{said}", fontsize=8, parse_math=False)
    return figure


def _warnings(file: ModelFile, checked: bool, surest: float) -> tuple[str, ...]:
    """Return what has to be known to read a prediction, most important first."""
    said, card = [_DEVICE], file.card
    if card is None:
        said.append("This model has no card: not calibrated, and its classes are guessed.")
        if surest > _SURE:
            said.append("It is all too sure: does it expect other values, such as 0 to 1?")
    elif not file.trained_here:
        named = "" if file.expects and file.expects.class_names else ", and its classes are guessed"
        said.append(f"The card of this model says what it expects, no more: not calibrated{named}.")
    elif card.get("synthetic"):
        said.append("This model was trained on synthetic phantoms: it knows no real slice.")
    elif "split" not in card or "balanced_accuracy" not in card.get("validation", {}):
        said.append("The card of this model does not say what it was trained on, nor how well.")
    elif card["split"]["protocol"] == "image":
        said.append(
            "This model was judged image-level: its figures measure recognition of people it "
            "knows; of a stranger it only guesses."
        )
    else:
        share = card["validation"]["balanced_accuracy"]
        what = "people" if takes_person(file) else "slices"
        said.append(
            f"This model named {share:.0%} of the validation {what} rightly (balanced over the "
            "classes there). It was not trained on them, but they chose its settings. "
            "A slice of the public set may be of a person whom it does know."
        )
    if not checked:
        said.append("Whether this is such a slice at all was not checked.")
    return tuple(said)
