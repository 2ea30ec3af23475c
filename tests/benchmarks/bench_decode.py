"""From parquet file to uint8 array, beside pandas, Hugging Face `datasets` and a bare loop.

All results are compared pixel by pixel first. Peers that open or prepare the file once do so
beforehand, at no cost. Each peer takes turns with the project's decoder in a process of its own:
memory that a third one has freed would make whoever comes next up to a quarter faster.
"""

import json
from collections import deque
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
TURNS = """
import json, sys, warnings
warnings.simplefilter("ignore")
sys.path.insert(0, {here!r})
import bench_decode
print(json.dumps(bench_decode.in_turns({file!r}, {pair!r}, {rounds})))
"""
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


def whole(file):
    """Decode with the project, all slices at once."""
    return lambda: read_scans(file, threads=THREADS).images


def batches(file):
    """Decode with the project in batches of 256, each of which is let go before the next."""
    return lambda: deque(iter_batches(file, threads=THREADS), maxlen=0)


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


def in_turns(file, pair, rounds):
    """Return the seconds of each run of two decoders, after a look at their pixels."""
    runs = {name: globals()[name](file) for name in pair}
    expected = read_scans(file, threads=THREADS).images
    for name, run in runs.items():
        found = np.concatenate([x for x, _ in iter_batches(file)]) if name == "batches" else run()
        np.testing.assert_array_equal(found, expected)
        del found
    del expected
    return interleaved(runs, rounds)


def turns(file, ours, peer, rounds):
    """Return `in_turns` of a process of its own, only ours if the peer is not installed."""
    with optional(peer):
        globals()[peer](file)
        pair, here = (ours, peer), str(Path(__file__).parent)
        return json.loads(child(TURNS.format(here=here, file=str(file), pair=pair, rounds=rounds)))
    return {}


def peak(file, first=None):
    """Return by what memory grows while `file` is read, as a share of the file and its array."""
    size = file.stat().st_size
    return float(child(MEMORY.format(file=str(file), first=first, threads=THREADS, size=size)))


def measure(quick: bool) -> list[dict]:
    (file,) = Path(folder_of_slices()).glob("train*.parquet")
    work = f"parquet to array, {pq.ParquetFile(file).metadata.num_rows:,} slices"
    usual = "`pandas.read_parquet`, `apply(dict_to_image)`"
    limit = "the limit: bare `simplejpeg` loop, two threads, no checks"
    rows = [
        versus(turns(file, ours, peer, 2 if quick else 15), what, ours, peer, against, **goal)
        for ours, peer, what, against, goal in (
            ("whole", "pandas_apply", work, usual, {"at_least": 3}),
            ("whole", "hugging_face_datasets", work, "`datasets`", {"at_least": 6.5}),
            ("whole", "bare_simplejpeg", work, limit, {"at_most": 1.1}),
            ("batches", "whole", "the same in batches of 256", "`read_scans`", {"at_most": 1.1}),
        )
    ]
    rounds = 1 if quick else 3
    small = str(write_phantom(ROOT / "data/phantom-4", subjects=4))
    return [
        *rows,
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
