"""The look that all figures share, and the small pieces that they are made of.

The colours are those of Okabe & Ito 2008, safe for the colour-blind. Make axes of your own under
``plt.rc_context(STYLE)``, so that they look like the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.image import AxesImage

from mri.data.labels import checked_names

if TYPE_CHECKING:
    from matplotlib.typing import RcKeyType

    from mri.evaluation.metrics import Evaluation


COLOURS = {
    "Non_Demented": "#0072B2",
    "Very_Mild_Demented": "#56B4E9",
    "Mild_Demented": "#E69F00",
    "Moderate_Demented": "#D55E00",
}
"""Colours of the four public classes, in order of severity."""

BLUE, GREEN, PINK, GREY, BLACK = "#0072B2", "#009E73", "#CC79A7", "#777777", "#000000"

STYLE: dict[RcKeyType, Any] = {
    "axes.edgecolor": "#555555",
    "axes.facecolor": "white",
    "axes.labelcolor": "black",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 10,
    "figure.constrained_layout.use": True,
    "figure.dpi": 84,
    "figure.facecolor": "white",
    "figure.titlesize": 10.5,
    "font.size": 9,
    "grid.color": "#E5E5E5",
    "legend.frameon": False,
    "text.color": "black",
    "xtick.color": "#333333",
    "ytick.color": "#333333",
}
"""One look, set for the time of a call, whatever the notebook's own style is."""


def readable(name: str) -> str:
    """Return a class name with spaces."""
    return name.replace("_", " ")


def severity_order(class_names: Sequence[str]) -> list[int]:
    """Return the labels by severity; those of other class names as they are."""
    names = checked_names("class_names", class_names)
    if set(names) <= set(COLOURS):
        return sorted(range(len(names)), key=lambda c: list(COLOURS).index(names[c]))
    return list(range(len(class_names)))


# A notebook's backend is switched on by the first figure; within a style context the switch to
# interactive would be undone at its end, and no later figure shown.
plt.switch_backend(plt.get_backend())


def class_colour(class_names: Sequence[str], label: int) -> str:
    """Return the colour of a class; names that are not public take spare ones in turn."""
    spare = [*COLOURS.values(), "#009E73", "#CC79A7", "#F0E442", "#000000"]
    name = checked_names("class_names", class_names)[label]
    return COLOURS.get(name, spare[label % len(spare)])


def figure_title(evaluation: Evaluation, unit: str) -> str:
    """Return model, data and split, with the number of slices or subjects."""
    size = f"per {unit}, n = {len(evaluation.sample(unit).labels)}"
    return f"{evaluation.title}\n{size}" if evaluation.title else size


def panel(ax: Axes | None, width: float, height: float) -> Axes:
    """Return `ax`, or the axes of a new figure of that size in inches."""
    return plt.subplots(figsize=(width, height))[1] if ax is None else ax


def bare(ax: Axes) -> None:
    """Take ticks and frame away."""
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def show_image(ax: Axes, image: np.ndarray, **options: Any) -> AxesImage:
    """Draw an image, gray values 0 to 255 unless told, without ticks and frame."""
    bare(ax)
    return ax.imshow(image, **{"cmap": "gray", "vmin": 0, "vmax": 255, **options})


def beside(ax: Axes, text: str, place: tuple[float, float], **options: Any) -> None:
    """Write a text to the right of a place."""
    ax.annotate(text, place, (6, 0), textcoords="offset points", va="center", **options)


def mark_epoch(ax: Axes, x: float, text: str) -> None:
    """Draw a vertical line with its name on top."""
    ax.axvline(x, color="black", linestyle=":", linewidth=1)
    frame: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
    ax.annotate(text, (x, 1), (0, 2), ha="center", **frame)
