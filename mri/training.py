"""One `train` for every network and protocol, resumable after a kill to the same result."""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import recall_score
from sklearn.utils.class_weight import compute_class_weight

from mri.arguments import require, row_numbers
from mri.backend import keras, tf
from mri.callbacks import BalancedAccuracy, Batches, Checkpoint, HardExamples
from mri.cards import ModelFileError, load_model, read_card, save_model
from mri.data import Scans, find_data, read_scans
from mri.evaluation import fit_temperature
from mri.files import alone
from mri.models import DTYPES, build_model, initial_weights, list_models, predict_logits
from mri.phantom import write_phantom
from mri.subjects import (
    PARTS,
    DataLeakageError,
    Split,
    image_split,
    recover_subjects,
    subject_split,
)


def _positive(value: object) -> bool:
    return isinstance(value, int) and value >= 1


@dataclass(frozen=True)
class Recipe:
    """How a network is trained; the defaults are the recommended run.

    Attributes
    ----------
    epochs : int
        Passes over the training part; the learning rate reaches zero at the last one.
    batch_size : int
    learning_rate : float
        Peak of the AdamW schedule: linear warm-up over the first tenth of the steps, then a
        cosine (Loshchilov & Hutter, https://doi.org/10.48550/arXiv.1711.05101).
    weight_decay : float
    label_smoothing : float
        Share of the target spread evenly over the classes.
    balance : {'none', 'weights', 'sampling'}
        Leave the classes as they are, weight the loss by inverse class frequency, or draw every
        class equally often (with replacement).
    hardest : float
        Share of each batch, those of largest loss, that the gradient comes from: online hard
        example mining (Shrivastava et al. 2016, https://doi.org/10.1109/CVPR.2016.89).
    augment : bool
        See `mri.models.augmentation`.
    monitor : {'val_balanced_accuracy', 'val_loss'}
        What the best epoch is chosen by, on the validation part. On people it does not know, a
        network's loss is lowest before it has learnt to name the rarer classes at all.
    patience : int or None
        Stop after so many epochs without a better one.
    dtype : str
        Layer policy; 'auto' takes mixed_bfloat16 where the processor computes in it.

    Examples
    --------
    >>> Recipe(epochs=3, balance="weights").learning_rate
    0.001
    >>> Recipe(epochs=0)
    Traceback (most recent call last):
    ValueError: epochs must be a positive integer. Received: epochs=0
    """

    epochs: int = 15
    batch_size: int = 32
    learning_rate: float = 1e-3
    weight_decay: float = 4e-3
    label_smoothing: float = 0.0
    balance: str = "none"
    hardest: float = 1.0
    augment: bool = False
    monitor: str = "val_balanced_accuracy"
    patience: int | None = None
    dtype: str = "auto"

    def __post_init__(self) -> None:
        """Refuse values that would only fail in the middle of a run."""
        balances, monitors = ("none", "weights", "sampling"), ("val_balanced_accuracy", "val_loss")
        dtypes = ("auto", *DTYPES)
        for name, expected, valid in (
            ("epochs", "a positive integer", _positive(self.epochs)),
            ("batch_size", "a positive integer", _positive(self.batch_size)),
            ("patience", "a positive integer", self.patience is None or _positive(self.patience)),
            ("learning_rate", "positive", self.learning_rate > 0),
            ("weight_decay", "at least 0", self.weight_decay >= 0),
            ("label_smoothing", "in [0, 1)", 0 <= self.label_smoothing < 1),
            ("hardest", "in (0, 1]", 0 < self.hardest <= 1),
            ("balance", f"one of {balances}", self.balance in balances),
            ("monitor", f"one of {monitors}", self.monitor in monitors),
            ("dtype", f"one of {dtypes}", self.dtype in dtypes),
        ):
            require(valid, f"{name} must be {expected}.", **{name: getattr(self, name)})


PLAIN = Recipe(epochs=10)
MINING = Recipe(epochs=20, learning_rate=3e-4, hardest=0.2)
RECIPES = {
    "default": Recipe(),
    "baseline": PLAIN,
    "baseline_dropout": PLAIN,
    "baseline_dropout_reduced": PLAIN,
    "baseline_dropout_light": PLAIN,
    "baseline_deep": PLAIN,
    "baseline_deep_plain": PLAIN,
    "small_5x5": PLAIN,
    "three_block_5x5": PLAIN,
    # Half a minute an epoch to minutes, and a decaying rate needs few of them.
    "keras_like": Recipe(epochs=6),
    "dual_path": Recipe(epochs=3),
    "resnet50": Recipe(epochs=6, learning_rate=5e-4),
    # Depthwise convolutions are faster in float32.
    "efficientnet_b3": Recipe(epochs=6, dtype="float32"),
    "fast": Recipe(epochs=8),
    "tissue": Recipe(epochs=10, learning_rate=1e-2, balance="weights"),
    "weighted_sampling": Recipe(epochs=10, balance="sampling"),
    # From a rate of 1e-3 one run in two never left a quarter right: with nothing but what a network
    # gets most wrong, it learns to say the same of every slice. The fewer slices there are in a
    # step, three of a batch of sixteen, the smaller a step it bears.
    "hard_mining_16": replace(MINING, batch_size=16, learning_rate=7.5e-5),
    "hard_mining_32": replace(MINING, learning_rate=1.5e-4),
    "hard_mining_64": replace(MINING, batch_size=64),
}
"""Recipes by name; a network of `mri.models` is trained by the one that bears its name."""


def recipe_of(builder: str) -> Recipe:
    """Return the recipe that `train` takes for a builder where none is given."""
    return RECIPES.get(builder, RECIPES["default"])


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained network with all that is known about it.

    Attributes
    ----------
    model : keras.Model
        With the weights of the best epoch.
    card : dict
        What ``models/<name>.json`` says.
    path : Path
        The ``.keras`` file.
    """

    model: keras.Model
    card: dict[str, Any]
    path: Path

    @property
    def history(self) -> dict[str, list[float]]:
        """Losses and metrics per epoch, one list per name."""
        return self.card["history"]

    @property
    def best_epoch(self) -> int:
        """Number of the epoch kept, from 0."""
        return self.card["best_epoch"]


def train(
    builder: str,
    scans: Scans,
    split: Split,
    *,
    name: str | None = None,
    recipe: Recipe | None = None,
    seed: int = 0,
    folder: str | os.PathLike[str] = "models",
    resume: bool = True,
    verbose: str | int = "auto",
    callbacks: Sequence[keras.callbacks.Callback] = (),
) -> Trained:
    """Train a registered network and save it with its card.

    Parameters
    ----------
    builder : str
        One of `mri.models.list_models`.
    scans : Scans
        All slices; `split` says which are used for what, the test part is never touched.
    split : Split
        From `subject_split` or `image_split`: the validation part is cut as the test part is.
    name : str, optional
        File name without ending; by default ``<builder>-<protocol>``.
    recipe : Recipe, optional
        By default the one of its name in `RECIPES`, else ``Recipe()``.
    seed : int
        Of the initial weights, the order of the slices, augmentation and dropout.
    folder : path
        Where ``<name>.keras`` and ``<name>.json`` go.
    resume : bool
        Continue a killed run after its last whole epoch, to the same result; return a finished
        one as it is. With False, start anew. Where another process trains under the same name,
        wait for it.
    verbose : 'auto', 0, 1 or 2
        Of Keras' progress bar.
    callbacks : sequence of keras.callbacks.Callback
        That watch the epochs trained in this call, such as TensorBoard's or MLflow's; the result
        is the same with and without them, and a finished run calls none.

    Returns
    -------
    Trained

    Raises
    ------
    ValueError
        If there is no such builder, or the split has an empty train or validation part or is not
        of these slices, or a network of real slices would be overwritten by one of phantoms.
    DataLeakageError
        If parts of the split share a slice.
    RuntimeError
        If the loss becomes NaN or infinite; lower the learning rate.
    OSError
        If `folder` cannot be written, or its disk is full.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from mri.phantom import make_phantoms
    >>> phantoms, short = make_phantoms(24, 2, size=64), Recipe(epochs=2, batch_size=8)
    >>> split = subject_split(phantoms.labels, phantoms.subjects, folds=2)
    >>> with TemporaryDirectory() as folder:
    ...     run = train("tissue", phantoms.scans, split, recipe=short, folder=folder, verbose=0)
    >>> run.path.name, len(run.history["loss"])
    ('tissue-subject.keras', 2)
    """
    recipe = recipe or recipe_of(builder)
    _check_split(split, len(scans))
    path = Path(folder) / f"{name or f'{builder}-{split.protocol}'}.keras"
    card = _card_of(path)
    require(
        not scans.synthetic or card.get("synthetic", True),
        "A network of real slices is not overwritten by one of phantoms; take another folder.",
        path=str(path),
    )
    if recipe.dtype == "auto":
        done_before = is_trained(builder, scans, split, path, recipe=recipe, seed=seed)
        recipe = replace(recipe, dtype=card["recipe"]["dtype"] if done_before else native_dtype())
    keras.utils.set_random_seed(seed)
    classes = len(scans.class_names)
    model = _build(builder, scans, recipe)
    identity = _identity(model, scans, split, recipe, seed)
    signature = _signature(identity)
    # Looked for again where another process had to be waited for.
    if resume and (done := _finished(path, signature)):
        return done
    with alone(path):
        if resume and (done := _finished(path, signature)):
            return done
        state = path.with_name(f".{path.stem}.state.npz")
        if not resume:
            state.unlink(missing_ok=True)
        checkpoint = Checkpoint(state, _stopper(recipe), signature)
        _compile(model, recipe, classes=classes, steps=recipe.epochs * _steps(split, recipe))
        _fit(model, scans, split, recipe, seed, checkpoint, verbose, callbacks)
        # Saved without optimiser and metrics: a third of the size, and any Keras can load it.
        final = _build(builder, scans, recipe)
        final.set_weights(model.get_weights())
        card = save_model(final, path, _card(final, scans, split, identity, signature, checkpoint))
        state.unlink(missing_ok=True)
    return Trained(final, card, path)


def is_trained(
    builder: str, scans: Scans, split: Split, path: Path, *, recipe: Recipe, seed: int = 0
) -> bool:
    """Whether the card at `path` is of this very run, with its model file or without.

    A recipe that leaves the arithmetic to the machine fits a run on any.
    """
    card = _card_of(path)
    dtype = card.get("recipe", {}).get("dtype")
    if recipe.dtype not in ("auto", dtype) or dtype not in DTYPES:
        return False
    recipe = replace(recipe, dtype=dtype)
    model = _build(builder, scans, recipe)
    return card.get("signature") == _signature(_identity(model, scans, split, recipe, seed))


def _check_split(split: Split, n: int) -> None:
    sizes = len(split.train), len(split.validation)
    require(all(sizes), "train and validation parts must not be empty.", slices=sizes)
    parts = [row_numbers(f"split.{x}", getattr(split, x), n) for x in PARTS]
    rows, times = np.unique(np.concatenate(parts), return_counts=True)
    if len(twice := rows[times > 1]):
        raise DataLeakageError(
            f"{len(twice)} rows stand twice in the split, such as {twice[0]}; divide the slices "
            "with subject_split"
        )


def _build(builder: str, scans: Scans, recipe: Recipe) -> keras.Model:
    return build_model(
        builder,
        input_shape=(*scans.images.shape[1:], 1),
        classes=len(scans.class_names),
        augment=recipe.augment,
        dtype=recipe.dtype,
    )


def _card_of(path: Path) -> dict[str, Any]:
    """Return the card at `path`, empty where it is absent or damaged."""
    with suppress(ModelFileError):
        return read_card(path) or {}
    return {}


def _signature(identity: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def _finished(path: Path, signature: str) -> Trained | None:
    """Return the finished run of that signature; what is damaged is trained again."""
    with suppress(ModelFileError):
        if (card := read_card(path) or {}).get("signature") == signature:
            return Trained(load_model(path), card, path)
    return None


def _steps(split: Split, recipe: Recipe) -> int:
    return max(1, len(split.train) // recipe.batch_size)


def _stopper(recipe: Recipe) -> keras.callbacks.EarlyStopping:
    return keras.callbacks.EarlyStopping(
        monitor=recipe.monitor,
        mode="min" if recipe.monitor == "val_loss" else "max",
        patience=recipe.patience or recipe.epochs,
        restore_best_weights=True,
    )


def _fit(
    model: keras.Model,
    scans: Scans,
    split: Split,
    recipe: Recipe,
    seed: int,
    checkpoint: Checkpoint,
    verbose: str | int,
    callbacks: Sequence[keras.callbacks.Callback],
) -> None:
    """Train what the checkpoint has not yet; an error says what is kept."""
    classes = len(scans.class_names)
    checkpoint.restore(model)
    validation = (
        scans.images[split.validation][..., None],
        np.eye(classes, dtype=np.float32)[scans.labels[split.validation]],
    )
    batches = Batches(
        scans.images[split.train],
        scans.labels[split.train],
        classes=classes,
        batch_size=recipe.batch_size,
        balanced=recipe.balance == "sampling",
        seed=seed,
        epoch=checkpoint.epochs_done,
    )
    try:
        model.fit(
            batches,
            epochs=checkpoint.epochs_done if checkpoint.stopped else recipe.epochs,
            initial_epoch=checkpoint.epochs_done,
            validation_data=validation,
            validation_batch_size=256,
            class_weight=_class_weights(scans.labels[split.train], recipe, classes),
            # Keras would shuffle the batches by Python's global random state, which no file keeps.
            shuffle=False,
            callbacks=[
                keras.callbacks.TerminateOnNaN(raise_error=True),
                checkpoint.stopper,
                checkpoint,
                *callbacks,
            ],
            verbose=verbose,
        )
    except BaseException as error:  # Ctrl-C too.
        if isinstance(error, RuntimeError) and "NaN or Inf" in str(error):
            error.add_note(f"Lower the learning rate, it is {recipe.learning_rate}.")
        error.add_note(checkpoint.kept())
        raise


def _card(
    model: keras.Model,
    scans: Scans,
    split: Split,
    identity: dict[str, Any],
    signature: str,
    checkpoint: Checkpoint,
) -> dict[str, Any]:
    """Return all that is known of a finished run, JSON-ready."""
    logits = predict_logits(model, scans.images[split.validation])
    labels = scans.labels[split.validation]
    return {
        **identity,
        "signature": signature,
        "class_names": list(scans.class_names),
        "synthetic": scans.synthetic,
        "initial_weights": initial_weights(model),
        "parameters": model.count_params(),
        "validation": {
            "accuracy": float((logits.argmax(1) == labels).mean()),
            "balanced_accuracy": float(
                recall_score(labels, logits.argmax(1), labels=np.unique(labels), average="macro")
            ),
        },
        "temperature": fit_temperature(labels, logits),
        "best_epoch": int(checkpoint.stopper.best_epoch),
        "seconds": round(checkpoint.seconds, 1),
        "history": {key: [e[key] for e in checkpoint.record] for key in checkpoint.record[0]},
        "test_rows": split.test.tolist(),
        "versions": {
            "python": platform.python_version(),
            "keras": keras.__version__,
            "tensorflow": tf.__version__,
            "numpy": np.__version__,
        },
    }


def native_dtype() -> str:
    """Return the fastest policy that this machine computes in: 'mixed_bfloat16' or 'float32'."""
    gpus = tf.config.list_physical_devices("GPU")
    if gpus:
        capability = tf.config.experimental.get_device_details(gpus[0]).get("compute_capability")
        return "mixed_bfloat16" if capability and capability >= (8, 0) else "float32"
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return "float32"
    return "mixed_bfloat16" if "avx512_bf16" in flags or "amx_bf16" in flags else "float32"


def _identity(
    model: keras.Model, scans: Scans, split: Split, recipe: Recipe, seed: int
) -> dict[str, Any]:
    """Return all that determines the result of a run, JSON-ready."""
    rows = hashlib.sha256()
    for part in PARTS:
        rows.update(np.ascontiguousarray(getattr(split, part), np.int64).tobytes() + b"|")
    # A builder may be edited between two runs; Keras numbers layers on from one to the next.
    network = re.sub(r'_\d+(?=")', "", model.to_json())
    return {
        "builder": model.name,
        "network_sha256": hashlib.sha256(network.encode()).hexdigest(),
        "recipe": asdict(recipe),
        "seed": seed,
        "data": scans.fingerprint(),
        "split": {
            "protocol": split.protocol,
            "fold": split.fold,
            "folds": split.folds,
            "seed": split.seed,
            "slices": [len(split.train), len(split.validation), len(split.test)],
            "rows_sha256": rows.hexdigest(),
        },
    }


def _compile(model: keras.Model, recipe: Recipe, *, classes: int, steps: int) -> None:
    warm_up = steps // 10
    schedule = keras.optimizers.schedules.CosineDecay(
        0.0, steps - warm_up, warmup_target=recipe.learning_rate, warmup_steps=warm_up
    )
    optimizer = keras.optimizers.AdamW(schedule, weight_decay=recipe.weight_decay)
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
    model.compile(
        optimizer,
        HardExamples(recipe.hardest, from_logits=True, label_smoothing=recipe.label_smoothing),
        metrics=["accuracy", BalancedAccuracy(classes)],
    )
    # Keras may have wrapped it, to scale the loss.
    model.optimizer.build(model.trainable_variables)


def _class_weights(labels: np.ndarray, recipe: Recipe, classes: int) -> dict[int, float] | None:
    if recipe.balance != "weights":
        return None
    present = np.unique(labels)
    weights = compute_class_weight("balanced", classes=present, y=labels)
    found = dict(zip(present.tolist(), weights.tolist(), strict=True))
    return {label: found.get(label, 0.0) for label in range(classes)}


def protocols() -> tuple[Scans, dict[str, Split], np.ndarray]:
    """Read the slices that are there, or phantoms, and divide them in both ways.

    Returns
    -------
    tuple
        The scans, the splits 'subject' (fold 0 of 5) and 'image' (the two files as published), and
        the subject of each slice, int (n,).
    """
    folder = find_data() or write_phantom("data/phantom")
    train_part, test_part = (read_scans(folder, split=part) for part in ("train", "test"))
    scans = train_part + test_part
    groups = recover_subjects(scans.images, scans.labels).groups
    by_image = image_split(scans.labels, np.arange(len(train_part), len(scans)))
    return scans, {"subject": subject_split(scans.labels, groups), "image": by_image}, groups


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line: ``python -m mri.training NAME --protocol image``."""
    parser = argparse.ArgumentParser(
        prog="python -m mri.training", description="Train a registered network into models/."
    )
    parser.add_argument("name", choices=list_models())
    parser.add_argument("--recipe", choices=sorted(RECIPES), help="by default that of its name")
    parser.add_argument("--protocol", choices=("subject", "image"), default="subject")
    parser.add_argument("--epochs", type=int)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--learning-rate", type=float)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tensorboard", metavar="DIR", type=Path, help="write the curves there")
    options = parser.parse_args(arguments)
    if options.tensorboard and not find_spec("tensorboard"):
        parser.error("--tensorboard needs: .venv/bin/python -m pip install tensorboard")
    folder = options.tensorboard
    scans, splits, _ = protocols()
    split = splits[options.protocol]
    names = ("epochs", "batch_size", "learning_rate")
    given = {key: value for key in names if (value := getattr(options, key)) is not None}
    recipe = RECIPES[options.recipe] if options.recipe else recipe_of(options.name)
    name = "_".join(filter(None, (options.name, options.recipe))) + f"-{split.protocol}"
    recipe = replace(recipe, **given)
    result = train(
        options.name,
        scans,
        split,
        name=name,
        recipe=recipe,
        seed=options.seed,
        verbose=2,
        callbacks=[keras.callbacks.TensorBoard(folder / name)] if folder else (),
    )
    print(f"{result.path}: validation {result.card['validation']}, {result.card['seconds']} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
