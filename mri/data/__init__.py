"""From files to pixels.

`decode` turns one JPEG or PNG into an image. `sources` decides what a source is, and `folders` what
stands in a folder. `formats` has one function for each kind; `parquet` and `footer` know that
container. `parts` holds the rows of a source, and `labels` what its labels mean. `scans` reads all
into one array or a stream, and `cache` keeps it in a file. `download` fetches the public files, and
`ready` says what a run will use.
`phantom` draws synthetic slices with known truth. `one_slice` reads a single slice of any format.
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
