"""The networks and their files.

`builders` holds the registry: one decorated function makes a network known everywhere. `files`
saves a model with its card, and looks into a stranger's file before it is loaded.
"""

from mri import _face

__getattr__, __dir__, __all__ = _face(
    __name__,
    {
        "builders": "augmentation build_model layers list_models predict_logits register",
        "files": "ModelFile ModelFileError describe load_model read_card save_model",
    },
)
