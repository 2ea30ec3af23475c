"""Interactive heatmaps in a notebook: choose a person, a slice and a class.

This module has only the widgets. `GradCAM` makes the maps, `plots.heatmap_grid` the picture.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from functools import cache, cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import pyplot as plt
from matplotlib.figure import Figure
from scipy.special import softmax

from mri import plots
from mri._arguments import integers, require, row_numbers
from mri.data.scans import Scans
from mri.evaluation.persons import INPUT, PersonModel
from mri.models.files import ModelFile
from mri.subjects.recovery import order_slices

if TYPE_CHECKING:
    from mri.gradcam.cam import GradCAM
    from mri.gradcam.checks import HeatmapCheck
    from mri.training.loop import Trained


PREDICTED = "predicted class"
MARKED = "last convolution"
_CHECKED = {
    "passes": "such maps pass their checks",
    "fails": "such maps fail their checks",
    "not decidable": "checks of such maps: not decidable",
    "": "such maps were not checked",
}


class Explorer:
    """The choices of the controls of `explore`, whose parameters it has, and their picture."""

    def __init__(
        self,
        runs: Mapping[str, Trained],
        scans: Scans,
        groups: np.ndarray,
        rows: np.ndarray,
        *,
        checks: Mapping[tuple[str, str], HeatmapCheck] | None = None,
    ) -> None:
        expected = "Expected at least one network and one slice."
        require(bool(runs) and len(rows) > 0, expected, networks=list(runs), slices=len(rows))
        for name, run in runs.items():
            trained = hasattr(run, "model") and hasattr(run, "card")
            require(trained, "runs must map names to what mri.train returns.", **{name: run})
        n = len(scans.labels)
        groups, rows = integers("groups", groups, n), row_numbers("rows", rows, n)
        self.runs, self.scans, self.groups = dict(runs), scans, groups
        self.checks = dict(checks or {})
        self.people: dict[str, np.ndarray] = {}
        for subject in np.unique(groups[rows]):
            of = rows[groups[rows] == subject]
            name = scans.class_names[scans.labels[of[0]]].replace("_", " ")
            self.people[f"{subject}: {name}"] = of[order_slices(scans.images[of])]
        self._cam = cache(self._make_cam)

    def _make_cam(self, network: str, method: str, layer: str) -> GradCAM:
        from mri.gradcam.cam import GradCAM

        chosen = None if layer == MARKED else layer
        return GradCAM(self.runs[network].model, chosen, method=method)

    def layers(self, network: str) -> list[str]:
        """Return the names of the layers that can be explained, the usual one first."""
        found = [MARKED]
        layers = self.runs[network].model.layers
        layers = [layer for layer in layers if type(layer).__name__ != "InputLayer"]
        # A change of scale shows the image itself.
        for layer in layers[type(layers[0]).__name__ == "Rescaling" :]:
            # Layers of a model's own class have no output; those of open size may be large.
            shape = getattr(getattr(layer, "output", None), "shape", ())
            if len(shape) == 4 and all(side is None or side > 1 for side in shape[1:3]):
                found.append(layer.name)
        return found

    def draw(
        self,
        person: str,
        position: int,
        *,
        network: str | None = None,
        explained: str = PREDICTED,
        method: str = "hirescam",
        layer: str = MARKED,
        opacity: float = 0.6,
    ) -> Figure:
        """Return the figure of one slice, its heatmap and the answer of the network.

        `person` is a key of `people`, `position` counts their slices from the lowest, which is 0,
        and `explained` is a class name or 'predicted class'. By default, the first network answers.
        The others are as for `GradCAM` and `plots.heatmap_grid`.
        """
        network, names = network or next(iter(self.runs)), self.scans.class_names
        require(network in self.runs, f"network must be one of {[*self.runs]}.", network=network)
        require(person in self.people, f"person must be one of {[*self.people]}.", person=person)
        count, known = len(self.people[person]), (PREDICTED, *names)
        expected = f"position must be from 0 to {count - 1}."
        require(0 <= position < count, expected, position=position)
        require(explained in known, f"explained must be one of {known}.", explained=explained)
        if self.runs[network].card.get("input") == INPUT:
            return self._whole(network, person)
        row = self.people[person][position]
        wanted = None if explained == PREDICTED else names.index(explained)
        found = self._cam(network, method, layer)(self.scans.images[[row]], wanted)
        temperature = self.runs[network].card.get("temperature", 1.0)
        shares = softmax(found.logits / temperature, axis=1)
        title = f"person {person}, slice {position + 1} of {count}; network {network}, {method}\n"
        title += f"probabilities calibrated on validation slices (temperature {temperature:.2f})"
        notes = (self.known(network, row), self.checked(network, method, layer))
        slices = self.scans.images[[row]], found, self.scans.labels[[row]], shares, names
        return plots.heatmap_grid(*slices, opacity=opacity, notes=notes, title=title)

    @cached_property
    def _fingerprint(self) -> str:
        return self.scans.fingerprint()

    def _whole(self, network: str, person: str) -> Figure:
        """Return the exact map of a model of people, of all slices; no other choice matters."""
        from mri.plots.glass_box import plot_person

        model = PersonModel(ModelFile(self.runs[network].path))
        answer = model.ask(self.scans.images[self.people[person]])
        known = self.known(network, self.people[person][0])
        return plot_person(answer, title=f"person {person}, {network}, all slices; {known}")

    def known(self, network: str, row: int) -> str:
        """Return what a network may have seen of a slice and of its person."""
        card = self.runs[network].card
        held_out = card.get("test_rows")
        if "data" in card and card["data"] != self._fingerprint:
            return "trained on other slices than these"
        if held_out is None:
            return "may have been trained on this slice"
        if row not in held_out:
            return "used in training: this very slice"
        own = np.flatnonzero(self.groups == self.groups[row])
        if set(own.tolist()) - set(held_out):
            return "used in training: other slices of this person"
        return "person not used in training"

    def checked(self, network: str, method: str, layer: str = MARKED) -> str:
        """Return the verdict on maps of this kind."""
        check = self.checks.get((network, method)) if layer == MARKED else None
        return _CHECKED[check.verdict if check else ""]


def explore(
    runs: Mapping[str, Trained],
    scans: Scans,
    groups: np.ndarray,
    rows: np.ndarray,
    *,
    checks: Mapping[tuple[str, str], HeatmapCheck] | None = None,
) -> Any:
    """Return controls for heatmaps: network, person, slice, class, method, layer and opacity.

    The picture says whether the network was trained on the slice or its person, and whether maps
    of this network and method pass their checks.

    If widgets cannot run, for example on a code host, the result shows a picture of the first
    choice. Without ipywidgets, the result is that figure.

    Parameters
    ----------
    runs : networks by the name to show, each as `mri.train` returns it
    scans : Scans
    groups : int (n,), the subject of each slice
    rows : int, the slices to choose from, of whole subjects
    checks : from `mri.check_heatmaps`, by (name of the network, method)

    Raises
    ------
    ValueError
        If there is no network or no slice, or groups or rows belong to other slices.

    Examples
    --------
    >>> from mri.data import make_phantoms
    >>> from mri.models import build_model
    >>> from mri.training import Trained
    >>> phantoms = make_phantoms(4, 2, size=64)
    >>> run = Trained(build_model("compact", input_shape=(64, 64, 1)), {"temperature": 1.0}, None)
    >>> shown = explore({"compact": run}, phantoms.scans, phantoms.subjects, np.arange(8))
    """
    explorer = Explorer(runs, scans, groups, rows, checks=checks)
    first = next(iter(explorer.people))
    middle = len(explorer.people[first]) // 2
    try:
        import ipywidgets
    except ImportError:
        return explorer.draw(first, middle)
    chosen = _controls(explorer, first, middle)
    # Never larger than it is drawn: enlarged, its pixels and letters would blur.
    layout = {"max_width": "100%", "object_fit": "contain", "align_self": "flex-start"}
    picture = ipywidgets.Image(format="png", layout=layout)

    class Controls(ipywidgets.VBox):
        def _repr_mimebundle_(self, **options: Any) -> dict[str, Any]:
            bundle = super()._repr_mimebundle_(**options)
            # For viewers that run no widgets.
            return bundle | {"image/png": bytes(picture.value)}

    def update(change: Mapping[str, Any] | None = None) -> None:
        values = {name: of.value for name, of in chosen.items()}
        # The slider counts from 1, like the title.
        values["position"] -= 1
        figure, drawn = explorer.draw(**values), io.BytesIO()
        figure.savefig(drawn, format="png", dpi=100)
        plt.close(figure)
        picture.value = drawn.getvalue()

    others = [control for name, control in chosen.items() if name not in ("network", "person")]

    def renew(change: Mapping[str, Any]) -> None:
        """Adapt the slider to the person and the layers to the network, then draw once."""
        for control in others:
            control.unobserve(update, "value")
        chosen["position"].max = len(explorer.people[chosen["person"].value])
        chosen["layer"].options = explorer.layers(chosen["network"].value)
        for control in others:
            control.observe(update, "value")
        update()

    for name, control in chosen.items():
        control.observe(renew if name in ("network", "person") else update, "value")
    update()
    rows_of = [list(chosen.values())[i : i + 3] for i in (0, 3, 6)]
    return Controls([*(ipywidgets.HBox(of) for of in rows_of), picture])


def _controls(explorer: Explorer, person: str, middle: int) -> dict[str, Any]:
    import ipywidgets

    from mri.gradcam.cam import METHODS

    def dropdown(name: str, options: list[str]) -> Any:
        return ipywidgets.Dropdown(options=options, description=name)

    networks, count = list(explorer.runs), len(explorer.people[person])
    return {
        "network": dropdown("network", networks),
        "person": dropdown("person", list(explorer.people)),
        "position": ipywidgets.IntSlider(middle + 1, 1, count, description="slice"),
        "explained": dropdown("explain", [PREDICTED, *explorer.scans.class_names]),
        "method": dropdown("method", sorted(METHODS, key="hirescam".__ne__)),
        "layer": dropdown("layer", explorer.layers(networks[0])),
        "opacity": ipywidgets.FloatSlider(0.6, min=0, max=1, step=0.1, description="opacity"),
    }
