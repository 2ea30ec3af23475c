"""The common style of all figures, and small drawing functions that they share.

The colours are from Okabe & Ito 2008 and are safe for colour-blind readers. To give your own axes
the same style, create them under ``plt.rc_context(STYLE)``.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.image import AxesImage

from mri._text import for_line
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

# A name is a name, whatever dollars it holds.
NAMES: dict[RcKeyType, Any] = {"text.parse_math": False}
"""What every figure needs whose titles hold names; part of `STYLE`."""

STYLE: dict[RcKeyType, Any] = {
    **NAMES,
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
"""One style for all figures; it applies during a call and overrides the notebook's style."""


def readable(name: str) -> str:
    """Return a class name with spaces, on one line, cut where it is long."""
    return for_line(name.replace("_", " "), 30)


def stacked(name: str) -> str:
    """Return a class name a word a line, cut where it is long."""
    return "\n".join(for_line(word, 16) for word in name.split("_")[:4])


def severity_order(class_names: Sequence[str]) -> list[int]:
    """Return the labels in order of severity; unknown class names keep their order."""
    names = checked_names("class_names", class_names)
    if set(names) <= set(COLOURS):
        return sorted(range(len(names)), key=lambda c: list(COLOURS).index(names[c]))
    return list(range(len(class_names)))


# The first figure switches on a notebook's backend. Inside a style context, this switch to
# interactive would be undone at the end, and later figures would not be shown.
plt.switch_backend(plt.get_backend())


def class_colour(class_names: Sequence[str], label: int) -> str:
    """Return the colour of a class; classes outside the public set take spare colours in turn."""
    names = checked_names("class_names", class_names)
    if names[label] in COLOURS:
        return COLOURS[names[label]]
    others = [name for name in names if name not in COLOURS]
    spare = ["#009E73", "#CC79A7", "#F0E442", "#000000"]
    spare = [of for name, of in COLOURS.items() if name not in names] + spare
    return spare[others.index(names[label]) % len(spare)]


def figure_title(evaluation: Evaluation, unit: str) -> str:
    """Return the title of an evaluation with its number of slices or subjects."""
    size = f"per {unit}, n = {len(evaluation.sample(unit).labels)}"
    lines = [for_line(line, 80) for line in evaluation.title.splitlines()[:3]]
    return "\n".join([*lines, size])


def panel(ax: Axes | None, width: float, height: float) -> Axes:
    """Return `ax`, or the axes of a new figure of this size in inches."""
    return plt.subplots(figsize=(width, height))[1] if ax is None else ax


def bare(ax: Axes) -> None:
    """Remove ticks and frame."""
    ax.set(xticks=[], yticks=[])
    ax.spines[:].set_visible(False)


def show_image(ax: Axes, image: np.ndarray, **options: Any) -> AxesImage:
    """Draw an image without ticks and frame, by default gray values 0 to 255 (see `gray_values`).

    Every pixel stays a square: a smoothed picture would look finer than the slice is.
    """
    bare(ax)
    crisp = {"cmap": "gray", "vmin": 0, "vmax": 255, "interpolation": "nearest"}
    plain = np.ndim(image) == 2 and not options.keys() & {"vmin", "vmax", "norm"}
    return ax.imshow(gray_values(image) if plain else image, **{**crisp, **options})


def gray_values(image: np.ndarray) -> np.ndarray:
    """Return gray values 0 to 255 of a slice, also of one that was divided by 255."""
    image = np.asarray(image)
    small = image.dtype.kind == "f" and image.size and image.max() <= 1
    return 255 * image if small else image


def mark_ends(ax: Axes) -> None:
    """Write on a slice where the back and the front of the head are; see ``data/README.md``."""
    for text, y, side in (("back", 0.99, "top"), ("front", 0.01, "bottom")):
        options: dict[str, Any] = {"transform": ax.transAxes, "ha": "center", "va": side}
        ax.text(0.5, y, text, color="white", fontsize=8, **options)


def title_of(figure: Figure) -> str:
    """Return all titles of a figure in one line, for readers who do not see it."""
    own = [figure.get_suptitle(), *(ax.get_title(loc) for ax in figure.axes for loc in _PLACES)]
    parts = [of.get_suptitle() for of in figure.subfigs]
    return "; ".join(dict.fromkeys(" ".join(t.split()) for t in (*own, *parts) if t.strip()))


_PLACES: tuple[Any, ...] = ("left", "center", "right")


def _name_pictures() -> None:
    """Have a notebook keep the title of each figure as the alternative text of its picture."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    formatter = shell and shell.display_formatter.formatters["image/png"]
    if not formatter or not (draw := formatter.type_printers.get(Figure)):
        return

    def described(figure: Figure) -> Any:
        picture = draw(figure)
        # Of some formats, such as 'retina', it comes with its size.
        data, told = picture if isinstance(picture, tuple) else (picture, {})
        return data and (data, {**told, "alt": title_of(figure)})

    formatter.for_type(Figure, described)


_name_pictures()


def mark_epoch(ax: Axes, x: float, text: str) -> None:
    """Draw a vertical line with a text on top."""
    ax.axvline(x, color="black", linestyle=":", linewidth=1)
    frame: dict[str, Any] = {"xycoords": ("data", "axes fraction"), "textcoords": "offset points"}
    ax.annotate(text, (x, 1), (0, 2), ha="center", **frame)
