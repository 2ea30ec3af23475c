"""Explainable Alzheimer's MRI classification, honestly evaluated.

The modules in the order of the work, each importing only from those before it:

============= ======================================================================================
arguments     what is wrong with a call, said before work starts
files         written whole or not at all, by one process at a time
decode        one JPEG or PNG to pixels
hub           fetch the public files
parquet       the container: schema, rows as buffer views
data          whole files to one array, or to a stream
ready         what a first run will meet
phantom       synthetic slices, with the truth included
slices        one slice of any file, laid out as in the data set, or why not
pose          slices turned, scaled and centred before any comparison
identity      which slices are alike, mirrored or not
heights       where along the head a slice lies
coverage      is a head torn in two
linking       from likeness to people
subjects      who is who from pixels; splits that keep subjects apart
leakage       how much of a split's accuracy is recognition of people
evaluation    figures with intervals, per slice and per subject
significance  which differences between models are real: paired tests
models        the registry of networks
cards         a model file and what is known about it
callbacks     what a resumable run needs and Keras lacks
training      one `train` for all
crossval      models × folds × seeds, resumable, here or on a cluster
geometry      which pixels the cells of a layer see
gradcam       where the network looks
map_measures  what a heatmap does when weights, pixels or the truth are known
faithfulness  whether to believe it
predictions   what a model says of its test part, kept beside it
comparison    every file in ``models/``, ranked and told apart
zoo           every registered network under both protocols
plots         draws all of it, in one style
ranking_plots draws a comparison
map_plots     draws heatmaps that belong together
explorer      heatmaps to play with in a notebook
predict       what a network says of one slice
report        notebooks and cards as pages for a browser
============= ======================================================================================

TensorFlow is loaded with the first of `models`, `training` or `gradcam` that is used.
"""

import importlib
from typing import Any

_HOME = {
    "CLASS_NAMES": "parquet",
    "DataError": "decode",
    "DataLeakageError": "subjects",
    "GradCAM": "gradcam",
    "Recipe": "training",
    "audit": "leakage",
    "build_model": "models",
    "check_heatmaps": "faithfulness",
    "checklist": "leakage",
    "compare": "comparison",
    "cross_validate": "crossval",
    "describe": "cards",
    "dict_to_image": "decode",
    "evaluate": "evaluation",
    "explore": "explorer",
    "find_data": "parquet",
    "ground_truth": "faithfulness",
    "image_split": "subjects",
    "iter_batches": "data",
    "list_models": "models",
    "load_model": "cards",
    "make_phantoms": "phantom",
    "pairwise": "significance",
    "parquet_files": "parquet",
    "pick_examples": "evaluation",
    "predict_logits": "models",
    "predict_slice": "predict",
    "read_crossval": "crossval",
    "read_scans": "data",
    "recover_subjects": "subjects",
    "register": "models",
    "subject_split": "subjects",
    "train": "training",
    "write_phantom": "phantom",
}
_MODULES = ("map_plots", "plots", "ranking_plots")
__all__ = sorted([*_HOME, *_MODULES])


def __getattr__(name: str) -> Any:
    """Import a public name, and with it its module, when it is first used."""
    if name in _HOME:
        return getattr(importlib.import_module(f"mri.{_HOME[name]}"), name)
    if name in _MODULES:
        return importlib.import_module(f"mri.{name}")
    raise AttributeError(f"module 'mri' has no attribute {name!r}; there are {__all__}")


def __dir__() -> list[str]:
    return __all__
