"""Figures for the notebooks: each function draws what it gets and computes nothing.

A function for one panel takes ``ax=None`` and returns the axes. A function for a grid returns the
figure. No function calls ``show``, because a notebook shows figures by itself (end the line with a
semicolon). Classes are in order of severity and keep their colours.
"""

from mri import _face

__getattr__, __dir__, __all__ = _face(
    __name__,
    {
        "explorer": "Explorer explore",
        "figures": "anatomy bootstrap class_counts confusion metric_intervals reliability roc "
        "sample_grid separation similarity_histogram training_curves within_person",
        "glass_box": "plot_person plot_weights slab_means",
        "maps": "heatmap_grid overlay overlay_columns overlay_scale",
        "ranking": "cost leaderboard p_values side_by_side",
        "style": "COLOURS STYLE",
    },
)
