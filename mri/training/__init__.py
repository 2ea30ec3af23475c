"""One training loop for every network.

`recipe` says how a network is trained, and `loop` trains and saves it. With `batches` and
`checkpoint`, a killed run resumes to the same result. `folds` repeats the training over all people.
"""

from mri import _face

__getattr__, __dir__, __all__ = _face(
    __name__,
    {
        "folds": "CrossValidation cross_validate cross_validate_probes read_crossval sweep "
        "train_zoo",
        "loop": "Run Trained is_trained train",
        "recipe": "RECIPES Recipe recipe_of",
    },
)
