"""The networks and their files.

`builders` holds the registry: one decorated function makes a network known everywhere. `files`
saves a model with its card, and looks into a stranger's file before it is loaded; `formats` says
what other files are. `inputs` puts before a model what it expects of slices, `scores` reads the
logits of whatever it ends in.
"""

from mri import _face

__getattr__, __dir__, __all__ = _face(
    __name__,
    {
        "builders": "augmentation build_model layers list_models register",
        "cards": "ModelFileError describe read_card",
        "files": "ModelFile declare find_model load_model save_model",
        "inputs": "READ_AS Expects adapt",
        "scores": "Scorer predict_logits",
    },
)
