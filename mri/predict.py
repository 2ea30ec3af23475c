"""What a network says of one slice: ``python -m mri predict IMAGE``."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from scipy.special import softmax

from mri._text import for_line
from mri.data.decode import DataError
from mri.data.labels import places_of
from mri.data.one_slice import SIZE, OneSlice, check_slice, read_slice
from mri.data.parquet import CLASS_NAMES
from mri.models.files import ModelFile, ModelFileError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from mri.gradcam.cam import Explanation


DEFAULT_MODEL = "compact-subject"
"""Comes with the repository; judged on people it had never seen, and its map is HiResCAM's."""

METHOD = "hirescam"
FOLDERS = ("models", "models/zoo")

_DEVICE = "Not a diagnostic device: 200 people of one study, for teaching and comparison only."
_MAP = (
    "The heatmap says where the network looked, not why, and only as far as its checks pass: no "
    "network that comes with the repository passes them all (README, May a heatmap be believed?)."
)


class Prediction(NamedTuple):
    """What a network says of a slice.

    `probabilities` maps class names to shares of 1, calibrated by the temperature of the card;
    `explanation` is of the class predicted, by HiResCAM; `warnings` are to be read with them.
    """

    slice: OneSlice
    model: str
    probabilities: dict[str, float]
    explanation: Explanation
    warnings: tuple[str, ...]

    @property
    def answer(self) -> str:
        """Name of the most probable class."""
        return max(self.probabilities, key=self.probabilities.__getitem__)

    @property
    def truth(self) -> str | None:
        """Name of the class that the file gives, which need not be one of the network's."""
        if self.slice.truth is not None or self.slice.label is None:
            return self.slice.truth
        return list(self.probabilities)[self.slice.label]

    def __str__(self) -> str:
        """Return what the command line prints."""
        lines = [for_line(f"{self.slice.place}, by {self.model}:")]
        shares = [(for_line(name.replace("_", " "), 80), p) for name, p in self._by_share()]
        lines += [f"  {name:20s} {p:.3f}" for name, p in shares]
        if self.truth is not None:
            lines.append(for_line(f"The file itself says: {self.truth.replace('_', ' ')}."))
        return "\n".join([*lines, *self.warnings])

    def draw(self) -> Figure:
        """Return slice, heatmap and overlay side by side."""
        from mri.plots.maps import heatmap_grid

        names = list(self.probabilities)
        at = None if self.truth is None else places_of(names, [self.truth])
        return heatmap_grid(
            self.slice.image[None],
            self.explanation,
            None if at is None else np.array(at),
            np.array([list(self.probabilities.values())]),
            names,
            title=f"{for_line(self.model, 60)}, {METHOD}\nnot a diagnostic device",
        )

    def _by_share(self) -> list[tuple[str, float]]:
        return sorted(self.probabilities.items(), key=lambda item: -item[1])


def predict_slice(
    source: str | os.PathLike[str] | np.ndarray,
    *,
    model: str | os.PathLike[str] = DEFAULT_MODEL,
    row: int = 0,
    plane: int | None = None,
    check: bool = True,
) -> Prediction:
    """Ask a trained network about one slice.

    Parameters
    ----------
    source : path or ndarray of uint8, shape (128, 128)
        A file as for `mri.data.read_slice`, or pixels laid out as in the data set.
    model : str or path
        Name of a file of ``models/``, else of ``models/zoo/``, or a path ending in ``.keras``.
    row : int
        Of a parquet file.
    plane : int, optional
        Of a volume, from its lowest; by default the one most like the data set.
    check : bool
        Refuse what does not look like a slice of the data set.

    Returns
    -------
    Prediction

    Raises
    ------
    DataError
        If there is no such slice or model, or it is refused.

    Examples
    --------
    >>> import mri
    >>> image = mri.make_phantoms(4, 1).images[0]
    >>> found = predict_slice(image, model="tissue-subject")
    >>> round(sum(found.probabilities.values()), 3), found.explanation.maps.shape
    (1.0, (1, 128, 128))
    """
    file = ModelFile(find_model(model))
    path, card = file.path, file.card
    if isinstance(source, np.ndarray):
        if source.shape != (SIZE, SIZE) or source.dtype != np.uint8:
            raise DataError(
                f"expected uint8 pixels ({SIZE}, {SIZE}). Received: {source.shape}, {source.dtype}"
            )
        found = OneSlice(source, None, "the slice")
        if check and (problem := check_slice(source)):
            raise DataError(f"{found.place}: {problem}")
    else:
        found = read_slice(source, row=row, plane=plane, check=check)
    network = file.load()
    names = tuple((card or {}).get("class_names", CLASS_NAMES))
    expected = (None, SIZE, SIZE, 1), (None, len(names))
    if (network.input_shape, network.output_shape) != expected:
        raise ModelFileError(
            f"{path}: goes from {network.input_shape} to {network.output_shape}, expected "
            f"{expected[0]} to {expected[1]}; choose another --model"
        )
    from mri.gradcam.cam import GradCAM

    explanation = GradCAM(network, method=METHOD)(found.image)
    temperature = (card or {}).get("temperature", 1.0)
    shares = softmax(explanation.logits[0].astype(np.float64) / temperature)
    probabilities = dict(zip(names, shares.tolist(), strict=True))
    said = _warnings(card, check, found.notes)
    return Prediction(found, path.stem, probabilities, explanation, said)


def find_model(name: str | os.PathLike[str], folders: Sequence[str] = FOLDERS) -> Path:
    """Return the ``.keras`` file of that name, or path, looked for in `folders` in turn.

    Raises
    ------
    ModelFileError
        If there is none; the message lists those there are.
    """
    if not os.fspath(name):
        raise ModelFileError("the name of the model is empty; give a name or a .keras file")
    if Path(name).suffix == ".keras":
        return Path(name)
    # The folders of the repository, wherever the command is run from.
    homes = [home / folder for home in (Path(), Path(__file__).parents[1]) for folder in folders]
    for home in homes:
        if (path := home / f"{name}.keras").is_file():
            return path
    known = sorted({path.stem for home in homes for path in home.glob("[!.]*.keras")})
    raise ModelFileError(f"no model {name!r} in {' or '.join(folders)}; there are {known}")


def _warnings(
    card: Mapping[str, Any] | None, checked: bool, notes: tuple[str, ...]
) -> tuple[str, ...]:
    """Return what has to be known to read a prediction, most important first."""
    said = [_DEVICE]
    if card is None:
        said.append("This model has no card: not calibrated, and its classes are guessed.")
    elif card.get("synthetic"):
        said.append("This model was trained on synthetic phantoms: it knows no real slice.")
    elif not {"split", "validation"} <= card.keys():
        said.append("The card of this model does not say what it was trained on, nor how well.")
    elif card["split"]["protocol"] == "image":
        said.append(
            "This model was judged image-level: its figures measure recognition of people it "
            "knows; of a stranger it only guesses."
        )
    else:
        share = card["validation"]["balanced_accuracy"]
        said.append(
            f"Of people it had not been trained on, by whom its best epoch was chosen, this model "
            f"named {share:.0%} of the slices rightly (balanced over the classes; chance is 25%). "
            "A slice of the public set may be of a person whom it does know."
        )
    if not checked:
        said.append("Whether this is such a slice at all was not checked.")
    return (*said, *notes, _MAP)
