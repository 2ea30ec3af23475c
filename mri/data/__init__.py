"""From files to pixels.

`decode` turns one JPEG or PNG into an image, `parquet` knows the files, `scans` reads them into one
array or a stream, `download` fetches the public ones, and `ready` says what a run will use.
`phantom` draws synthetic slices with known truth. `one_slice` reads a single slice of any format.
"""

from mri import _face

__getattr__, __dir__, __all__ = _face(
    __name__,
    {
        "decode": "DataError dict_to_image",
        "download": "download_slices",
        "one_slice": "OneSlice check_slice read_slice",
        "parquet": "CLASS_NAMES find_data parquet_files",
        "phantom": "SHORTCUT Phantoms make_phantoms write_phantom",
        "ready": "describe_data problems",
        "scans": "Scans iter_batches read_scans",
    },
)
