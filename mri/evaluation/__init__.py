"""How good a model is, and whether it is better than another.

`metrics` measures one model with 95% intervals over people, `significance` tests differences, and
`logits` keeps what a model answered. `comparison` ranks every file in ``models/``; its result is a
`leaderboard`.
"""

from mri import _face

__getattr__, __dir__, __all__ = _face(
    __name__,
    {
        "comparison": "compare reported_table",
        "leaderboard": "Comparison",
        "logits": "find_logits keep_logits",
        "metrics": "Estimate Evaluation evaluate fit_temperature metric_label pick_examples "
        "pooled_three reliability_bins",
        "significance": "holm leading_group pairwise sign_flip",
    },
)
