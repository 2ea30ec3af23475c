"""Training: an epoch, the way to 97.4%, and five folds, beside the same network in PyTorch.

The peer is the network `baseline` in the usual Dataset and DataLoader loop, one PIL image decoded
at a time, in batches of 32. Its ten epochs, and the folds of `baseline` here, are not run but
counted from the epochs that are.
"""

import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from harness import ROOT, clock, folder_of_slices, interleaved, main, optional, row, versus

from mri.data.scans import read_scans
from mri.evaluation.comparison import compare
from mri.models.builders import build_model
from mri.models.scores import predict_logits
from mri.subjects.recovery import recover_subjects
from mri.subjects.splits import image_split
from mri.training.batches import Batches
from mri.training.folds import cross_validate
from mri.training.loop import _compile, train
from mri.training.recipe import recipe_of

WANTED = 0.974
EPOCHS, FOLDS = recipe_of("baseline").epochs, 5
PARTS = "train", "test"


def read(folder):
    """Return all slices and the image-level split: the two files as published."""
    train_part, test_part = (read_scans(folder, split=part) for part in PARTS)
    scans = train_part + test_part
    return scans, image_split(scans.labels, np.arange(len(train_part), len(scans)))


def keras_epoch(scans, split):
    """Return a function that does what `train` does in one epoch of `baseline`."""
    recipe, model = recipe_of("baseline"), build_model("baseline")
    _compile(model, recipe, classes=4, steps=EPOCHS * len(split.train) // recipe.batch_size)
    options = {"classes": 4, "batch_size": recipe.batch_size, "balanced": False, "seed": 0}
    rows, held_out = split.train, split.validation
    batches = Batches(scans.images[rows], scans.labels[rows], epoch=0, **options)
    targets = np.eye(4, dtype=np.float32)[scans.labels[held_out]]
    validation = {
        "validation_data": (scans.images[held_out][..., None], targets),
        "validation_batch_size": 256,
    }
    # What is traced once a run, not once an epoch.
    model.fit(batches, steps_per_epoch=2, shuffle=False, verbose=0, **validation)
    return lambda: model.fit(batches, shuffle=False, verbose=0, **validation)


def torch_epoch(folder, scans, split):
    """Return a function that trains the peer for one epoch from the encoded slices."""
    from torch_baseline import trainer

    blobs = []
    for part in PARTS:
        for file in sorted(Path(folder).glob(f"{part}*.parquet")):
            column = pq.read_table(file, columns=["image"]).column("image")
            blobs += column.combine_chunks().field("bytes").to_pylist()
    return trainer(blobs, scans.labels, split.train, split.validation)


def time_to_accuracy(folder, seed, epochs):
    """Return the seconds from the files' bytes to the saved network, and its test accuracy."""
    with tempfile.TemporaryDirectory() as models:
        start = time.perf_counter()
        scans, split = read(folder)
        recipe = replace(recipe_of("fast"), epochs=epochs or recipe_of("fast").epochs)
        run = train("fast", scans, split, recipe=recipe, seed=seed, folder=models, verbose=0)
        seconds = time.perf_counter() - start
    logits = predict_logits(run.model, scans.images[split.test])
    return seconds, float((logits.argmax(1) == scans.labels[split.test]).mean())


def measure(quick: bool) -> list[dict]:
    folder = folder_of_slices()
    scans, split = read(folder)
    if quick:
        split = replace(split, train=split.train[:320], validation=split.validation[:64])
    runs = {"ours": keras_epoch(scans, split)}
    with optional("torch"):
        runs["torch"] = torch_epoch(folder, scans, split)
    seconds = interleaved(runs, 1 if quick else 2, warm_up=False)
    n, loop = len(split.train), "the usual PyTorch loop"
    found = [
        versus(seconds, f"an epoch of `baseline`, {n:,} slices", "ours", "torch", loop, at_least=5)
    ]

    seeds = range(1 if quick else 5)
    took, accuracy = np.transpose(
        [time_to_accuracy(folder, seed, epochs=1 if quick else None) for seed in seeds]
    )
    work = "parquet bytes to 97.4% image-level (`fast`)"
    digits = f"test accuracy {100 * accuracy.min():.2f} to {100 * accuracy.max():.2f}%"
    found += [
        row(work, f"{len(seeds)} seeds", list(took), "s", at_most=55, note=digits),
        row("seeds that reach it", "all", [(accuracy >= WANTED).sum()], at_least=len(seeds)),
    ]
    if "torch" in seconds:
        peer = EPOCHS * statistics.median(seconds["torch"])
        found.append(
            row(
                *(work, f"{loop}, {EPOCHS} epochs (one, times {EPOCHS})", list(peer / took)),
                "times as fast",
                at_least=15,
                note=f"against {clock([peer])}",
            )
        )
    return found + folds(scans, seconds["ours"], quick)


def folds(scans, epoch, quick):
    """Return the lines of the five subject-wise folds."""
    groups = recover_subjects(scans.images, scans.labels).groups
    recipe = replace(recipe_of("tissue"), epochs=1) if quick else None
    with tempfile.TemporaryDirectory() as models:
        start = time.perf_counter()
        result = cross_validate("tissue", scans, groups, folds=FOLDS, folder=models, recipe=recipe)
        took = time.perf_counter() - start
    # On the training parts of the image-level split, which are as large to 3%.
    counted = FOLDS * EPOCHS * statistics.median(epoch)
    auc = result.evaluate().metrics["subject"]["demented_auc"]
    zoo = compare(folder=ROOT / "models/zoo").evaluations
    figures = [zoo[f"{name}-subject"].metrics["slice"] for name in ("tissue", "baseline")]
    balanced = [of["balanced_accuracy"].value for of in figures]
    return [
        row(
            *("five folds of people never seen (`tissue`)", "`baseline`", [took / 60], "min"),
            at_most=10,
            note=f"against {clock([counted])}, counted from one epoch; AUC {auc.value:.3f}",
        ),
        row(
            *("its balanced accuracy there, fold 0", "`baseline`"),
            [100 * (balanced[0] - balanced[1])],
            "points more",
            at_least=0,
            note=f"{100 * balanced[0]:.1f} against {100 * balanced[1]:.1f}%",
        ),
    ]


if __name__ == "__main__":
    main("training", measure)
