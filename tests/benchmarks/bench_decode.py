"""From parquet file to uint8 array, beside pandas, Hugging Face `datasets` and a bare loop.

All results are compared pixel by pixel first. Peers that open or prepare the file once do so
beforehand, at no cost.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
from harness import ROOT, STATUS, child, folder_of_slices, interleaved, main, optional, row, versus

from mri.data.decode import dict_to_image
from mri.data.phantom import write_phantom
from mri.data.scans import iter_batches, read_scans

THREADS = 2
MEMORY = (
    STATUS
    + """
from mri.data.scans import read_scans
if {first!r}:
    read_scans({first!r}, threads={threads})
before = status("VmRSS")
images = read_scans({file!r}, threads={threads}).images
print((status("VmHWM") - before) / ({size} + images.nbytes))
"""
)


def pandas_apply(file):
    """Decode row by row in a DataFrame, the usual recipe."""
    return lambda: np.stack(pd.read_parquet(file)["image"].apply(dict_to_image))


def hugging_face_datasets(file):
    """Decode with `datasets`, which hands out Pillow images."""
    import datasets

    datasets.disable_progress_bars()
    table = datasets.Dataset.from_parquet(str(file)).cast_column("image", datasets.Image())
    return lambda: np.stack([np.asarray(row["image"]) for row in table])


def bare_simplejpeg(file):
    """Decode with nothing around the decoder: no check of any kind."""
    import simplejpeg

    def run():
        table = pq.ParquetFile(file).read(columns=["image.bytes"])
        blobs = table.column("image").combine_chunks().field("bytes").to_pylist()
        out = np.empty((len(blobs), 128, 128), np.uint8)

        def part(start):
            for i in range(start, len(blobs), THREADS):
                out[i] = simplejpeg.decode_jpeg(blobs[i], "GRAY")[..., 0]

        with ThreadPoolExecutor(THREADS) as pool:
            list(pool.map(part, range(THREADS)))
        return out

    return run


def peak(file, first=None):
    """Return by what memory grows while `file` is read, as a share of the file and its array."""
    size = file.stat().st_size
    return float(child(MEMORY.format(file=str(file), first=first, threads=THREADS, size=size)))


def measure(quick: bool) -> list[dict]:
    (file,) = Path(folder_of_slices()).glob("train*.parquet")
    runs = {
        "read_scans": lambda: read_scans(file, threads=THREADS).images,
        "iter_batches": lambda: np.concatenate(
            [images for images, _ in iter_batches(file, threads=THREADS)]
        ),
    }
    for peer in (pandas_apply, hugging_face_datasets, bare_simplejpeg):
        with optional(peer.__name__):
            runs[peer.__name__] = peer(file)
    expected = runs["read_scans"]()
    for run in runs.values():
        np.testing.assert_array_equal(run(), expected)
    seconds = interleaved(runs, 2 if quick else 11)
    work = f"parquet to array, {len(expected):,} slices"
    usual = "`pandas.read_parquet`, `apply(dict_to_image)`"
    rounds = 1 if quick else 3
    small = str(write_phantom(ROOT / "data/phantom-4", subjects=4))
    return [
        versus(seconds, work, "read_scans", "pandas_apply", usual, at_least=3),
        versus(seconds, work, "read_scans", "hugging_face_datasets", "`datasets`", at_least=6.5),
        versus(
            *(seconds, work, "read_scans", "bare_simplejpeg"),
            "the limit: bare `simplejpeg` loop, two threads, no checks",
            at_most=1.1,
        ),
        versus(
            *(seconds, "the same in batches of 256", "iter_batches", "read_scans"),
            "`read_scans`",
            at_most=1.1,
        ),
        row(
            *("its peak memory, library code included", "file + array"),
            [peak(file) for _ in range(rounds)],
            "of that",
            at_most=1.1,
        ),
        row(
            *("the same, once a small file has been read", "file + array"),
            [peak(file, first=small) for _ in range(rounds)],
            "of that",
            at_most=1.1,
        ),
    ]


if __name__ == "__main__":
    main("decode", measure)
