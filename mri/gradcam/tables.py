"""Tables of the heatmap page: the layer that each network is explained at, and what checks say."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from mri._arguments import require
from mri.gradcam.checks import check_heatmaps
from mri.models.files import ModelFile

if TYPE_CHECKING:
    from mri.data.scans import Scans


def layer_table() -> Iterator[str]:
    """Name the layer that `GradCAM` explains in each network; yield rows of a Markdown table.

    The networks are built with random weights, and nothing is fetched.
    """
    from mri.gradcam.cam import GradCAM
    from mri.models import builders
    from mri.models.inputs import SLICE

    yield "| network | layer | kind | cells |"
    yield "|---|---|---|---|"
    kept, builders.DOWNLOAD = builders.DOWNLOAD, False
    try:
        for name in builders.list_models():
            cam = GradCAM(builders.build_model(name))
            rows, columns = cam(np.zeros((1, *SLICE), np.uint8)).raw.shape[1:]
            kind = type(cam.layer).__name__
            yield f"| `{name}` | `{cam.layer.name}` | {kind} | {rows} × {columns} |"
    finally:
        builders.DOWNLOAD = kept


def heatmap_table(
    paths: Sequence[str | os.PathLike[str]],
    scans: Scans,
    groups: np.ndarray,
    *,
    methods: Sequence[str] = ("grad-cam", "hirescam"),
    slices: int = 64,
    seed: int = 0,
) -> Iterator[str]:
    """Check the maps of model files on slices they have not seen; yield rows of a Markdown table.

    Of each ``.keras`` file of `paths`, some `slices` are drawn from its test part. `groups`, int
    (n,), are the subjects of `scans`.

    Raises
    ------
    ModelFileError
        If a file is not safe, or belongs to other slices.
    """
    headed = False
    for path in paths:
        file = ModelFile(path)
        tested, model = file.held_out(scans), file.load()
        require(
            slices <= len(tested),
            f"{file.path}: slices must be at most {len(tested)}, so many it has not seen.",
            slices=slices,
        )
        few = np.random.default_rng(seed).choice(tested, slices, replace=False)
        for method in methods:
            found = check_heatmaps(
                model, scans.images[few], subjects=groups[few], method=method, seed=seed
            )
            if not headed:
                names = [name.split(" with ")[0] for name in found.table.index]
                yield f"| network | method | {' | '.join(names)} | verdict |"
                yield "|---" * (len(names) + 3) + "|"
                headed = True
            pairs = zip(found.table["found"], found.table["verdict"], strict=True)
            cells = " | ".join(f"{of.value:.2f} {verdict}" for of, verdict in pairs)
            yield f"| `{model.name}` | {method} | {cells} | **{found.verdict}** |"
