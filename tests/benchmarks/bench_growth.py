"""Ten and a hundred times the slices, as shards: time, memory, and training from the stream.

The shards are one file of 6400 encoded phantoms under many names (hard links), so that they are
made at once and reading them does not wait for a disk.
"""

import json
import os
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from harness import ROOT, STATUS, child, interleaved, main, row, versus

from mri._keras import keras, tf
from mri.data.phantom import write_phantom
from mri.data.scans import iter_batches, read_scans
from mri.models.builders import build_model

ROWS = 6400
STREAM = (
    STATUS
    + """
import json, time
from mri.data import iter_batches
for batch in iter_batches({one!r}, threads=2):
    pass  # A list would hold more than all that follows.
start = time.perf_counter()
rows = sum(len(labels) for _, labels in iter_batches({shards!r}, threads=2))
took = time.perf_counter() - start
print(json.dumps([took / rows, status("VmHWM") / 2**20]))
"""
)


def write_shards(folder: Path, numbers: tuple[int, ...]) -> dict[int, str]:
    """Write one shard and link it; return a pattern by the number of shards it stands for."""
    table = pq.read_table(write_phantom(ROOT / "data/phantom") / "train.parquet")
    table = table.take(pa.array(np.arange(ROWS) % len(table)))
    first = folder / "one.parquet"
    pq.write_table(table, first, row_group_size=1000)
    for number in numbers:
        (folder / str(number)).mkdir()
        for i in range(number):
            os.link(first, folder / str(number) / f"shard-{i:05d}.parquet")
    return {number: str(folder / str(number) / "*.parquet") for number in numbers}


def measure(quick: bool) -> list[dict]:
    numbers, rounds = ((1, 2), 1) if quick else ((1, 10, 100), 5)
    with tempfile.TemporaryDirectory() as folder:
        shards = write_shards(Path(folder), numbers)
        runs = {number: [] for number in numbers}
        for i in range(rounds):
            for number, pattern in shards.items():
                if number < 100 or not i:
                    code = STREAM.format(shards=pattern, one=shards[1])
                    runs[number].append(json.loads(child(code)))
        seconds, megabytes = ({n: np.transpose(of)[k] for n, of in runs.items()} for k in (0, 1))
        found = []
        for number in numbers[1:]:
            work, against = f"streaming {number * ROWS:,} slices", f"{ROWS:,} slices"
            for what, of, unit, goal in (
                ("time a slice", seconds, "times that", 1.1),
                ("peak memory", megabytes, "times that", 1.1),
            ):
                ratio = of[number] / np.median(of[1])
                digits = f"{1e6 * np.median(of[number]):.0f} µs" if of is seconds else ""
                digits = digits or f"{np.median(of[number]):.0f} MB"
                found.append(
                    row(f"{work}: {what}", against, list(ratio), unit, at_most=goal, note=digits)
                )
        found.append(training(shards[1], rounds))
    return found


def as_dataset(source: str, batch_size: int) -> tf.data.Dataset:
    """Wrap `iter_batches` as a prefetching dataset for `fit`."""
    signature = (tf.TensorSpec((None, 128, 128, 1), tf.uint8), tf.TensorSpec((None,), tf.int64))
    return tf.data.Dataset.from_generator(
        lambda: ((x[..., None], y) for x, y in iter_batches(source, batch_size=batch_size)),
        output_signature=signature,
    ).prefetch(2)


def training(source: str, rounds: int) -> dict:
    """Return the line of an epoch from the stream beside one from memory."""
    scans = read_scans(source)
    model = build_model("compact")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("adamw", loss)
    images, labels = scans.images[..., None], scans.labels
    runs = {
        "memory": lambda: model.fit(images, labels, batch_size=32, verbose=0),
        "stream": lambda: model.fit(as_dataset(source, batch_size=32), verbose=0),
    }
    seconds = interleaved(runs, rounds)
    work = f"an epoch of `compact` from the stream, {len(scans):,} slices"
    return versus(seconds, work, "stream", "memory", "from memory", at_most=1.1)


if __name__ == "__main__":
    main("growth", measure)
