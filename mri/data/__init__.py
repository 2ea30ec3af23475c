"""From files to pixels.

`decode` turns one JPEG or PNG into an image. `sources` and `folders` find what there is to read.
`formats`, `parquet` and `footer` read it as `parts`, and `labels` says what its labels mean.
`scans` makes one array or a stream of it, `glance` sees what shows nothing, and `cache` keeps the
array. `one_slice` and `headers` read a single slice of any format. `phantom` draws synthetic slices
with known truth.
"""

from mri import _face

__getattr__, __dir__, __all__ = _face(
    __name__,
    {
        "decode": "DataError dict_to_image",
        "download": "download_slices",
        "folders": "NoSlicesError",
        "one_slice": "OneSlice check_slice read_slice",
        "parquet": "CLASS_NAMES",
        "phantom": "SHORTCUT Phantoms make_phantoms write_phantom",
        "ready": "describe_data problems",
        "scans": "Scans iter_batches read_scans",
        "sources": "find_data first_record row_place",
    },
)
