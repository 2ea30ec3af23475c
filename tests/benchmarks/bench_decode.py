"""Time from parquet file to uint8 array, beside pandas, Hugging Face `datasets` and a bare loop.

``MRI_DATA=… pytest tests/benchmarks/bench_decode.py -m benchmark -s`` prints one line a
contestant: the median over interleaved rounds of its time divided by that of `read_scans` in the
same round. Without the real slices it draws as many phantoms first (about a minute).
"""

import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from mri.data import dict_to_image, find_data, iter_batches, parquet_files, read_scans
from mri.phantom import write_phantom

ROUNDS, THREADS = 9, 2


def pandas_apply(file):
    """Decode row by row in a DataFrame, the usual recipe."""
    return lambda: np.stack(pd.read_parquet(file)["image"].apply(dict_to_image))


def hugging_face_datasets(file):
    """Decode with `datasets`, which hands out Pillow images; prepared and opened beforehand."""
    import datasets

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


@pytest.mark.benchmark
def test_time_from_parquet_to_array(tmp_path):
    (file,) = parquet_files(
        find_data() or write_phantom(tmp_path, subjects=200, slices=32), split="train"
    )
    runs = {
        "read_scans": lambda: read_scans(file, threads=THREADS).images,
        "iter_batches": lambda: np.concatenate(
            [images for images, _ in iter_batches(file, threads=THREADS)]
        ),
    }
    for peer in (pandas_apply, hugging_face_datasets, bare_simplejpeg):
        try:
            runs[peer.__name__] = peer(file)
        except ImportError as missing:
            print(f"{peer.__name__:>22}: not installed ({missing.name})")

    seconds = {name: [] for name in runs}
    expected = runs["read_scans"]()
    for run in runs.values():
        np.testing.assert_array_equal(run(), expected)
    for _ in range(ROUNDS):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    for name, times in seconds.items():
        ratio = statistics.median(np.divide(times, seconds["read_scans"]))
        print(f"{name:>22}: {ratio:5.2f} x read_scans ({statistics.median(times):.2f} s)")
