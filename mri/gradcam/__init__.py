"""Where a network looks, and whether to believe it.

`cam` holds `GradCAM` and its methods, `trace` follows the model's graph to a layer and to the
logits, `receptive_fields` puts the map on the right pixels. `measures` and `checks` test the maps,
`tables` makes those of models/heatmaps.md.
"""

from mri import _face

__getattr__, __dir__, __all__ = _face(
    __name__,
    {
        "cam": "METHODS Explanation GradCAM",
        "checks": "HeatmapCheck check_heatmaps ground_truth",
        "measures": "brain_mask cascade control_maps deletion_insertion localisation "
        "rank_correlation",
        "tables": "heatmap_table layer_table",
    },
)
