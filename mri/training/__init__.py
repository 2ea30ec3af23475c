"""One training loop for every network, and models of whole people.

`recipe` says how a network is trained, and `loop` trains and saves it. With `batches` and
`checkpoint`, a killed run resumes to the same result. `folds` repeats the training over all people.

`glass_box` fits a model of a person whose explanation is exact. `one_number` holds the single
numbers that it has to beat. `ordinal` cuts either into classes. `people` judges all people by both
and by simple probes, `crossval` holds everybody's answers, and `people_table` makes the tables.
"""

from mri import _face

__getattr__, __dir__, __all__ = _face(
    __name__,
    {
        "crossval": "CrossValidation read_crossval",
        "folds": "cross_validate sweep train_zoo",
        "glass_box": "GlassBox bootstrap_weights fit_glass_box save_glass_box train_people",
        "loop": "Run Trained is_trained train",
        "one_number": "fluid_share gray_share ventricle_share",
        "ordinal": "severity_of",
        "people": "cross_validate_probes judge_people",
        "people_table": "against_one_number by_ventricles over_divisions write_tables",
        "recipe": "RECIPES Recipe recipe_of",
    },
)
