"""Explainable Alzheimer's MRI classification, honestly evaluated.

Seven rooms, in the order of the work. Each imports only from those before it:

============= ======================================================================================
data          files to pixels: the decoder, parquet, phantoms, one slice of any format
models        the networks and their builders; model files with their cards
subjects      who is who from pixels; splits that keep people apart; data leakage
evaluation    figures with intervals; which differences are real; every model ranked
training      one training loop for all networks, resumable; cross-validation by person
gradcam       where a network looks, and whether to believe it
plots         draws all of it, in one style
============= ======================================================================================

`predict` asks a network about one slice, `report` makes pages for a browser, and
``python -m mri --help`` lists the commands. To read the core in an evening, begin with
`mri.data.decode`, `mri.models.builders`, `mri.training.loop` and `mri.gradcam.cam`.

`import mri` loads none of them; each is loaded when one of its names is first used.
"""

import importlib
from collections.abc import Callable, Mapping
from typing import Any

_Face = tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]


def _face(package: str, homes: Mapping[str, str]) -> _Face:
    """Return `__getattr__`, `__dir__` and `__all__` of a package whose names load when used.

    `homes` maps the modules of the package to their public names, separated by spaces.
    """
    home = {name: module for module, names in homes.items() for name in names.split()}
    public = sorted(home)

    def load(name: str) -> Any:
        if name in homes:
            return importlib.import_module(f"{package}.{name}")
        if name in home:
            return getattr(importlib.import_module(f"{package}.{home[name]}"), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}; there are {public}")

    return load, lambda: public, public


__getattr__, _, _names = _face(
    __name__,
    {
        "data": "CLASS_NAMES DataError dict_to_image make_phantoms read_scans",
        "models": "build_model list_models load_model predict_logits register",
        "subjects": "DataLeakageError audit image_split recover_subjects subject_split",
        "evaluation": "compare evaluate",
        "training": "Recipe cross_validate train",
        "gradcam": "GradCAM check_heatmaps",
        "plots": "explore",
        "predict": "predict_slice",
        "report": "",
    },
)
__all__ = sorted([*_names, "plots"])


def __dir__() -> list[str]:
    return __all__
