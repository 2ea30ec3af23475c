"""One `train` for every network and protocol; a killed run resumes to the same result."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from dataclasses import replace as with_
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from mri._arguments import require, row_numbers
from mri._files import alone
from mri._keras import keras, tf
from mri.data.scans import Scans
from mri.evaluation.doubts import known_logits
from mri.evaluation.metrics import fit_temperature
from mri.models.builders import DTYPES, build_model, initial_weights
from mri.models.files import ModelFile, ModelFileError, save_model
from mri.models.scores import predict_logits
from mri.subjects.splits import PARTS, DataLeakageError, Split, split_facts
from mri.training.batches import BalancedAccuracy, Batches, HardExamples
from mri.training.checkpoint import Checkpoint
from mri.training.crossval import keep_real, right_shares
from mri.training.recipe import Recipe, native_dtype, recipe_of


@dataclass(frozen=True, eq=False)
class Run:
    """All that determines the result; the `dtype` of the recipe is resolved, not 'auto'."""

    builder: str
    scans: Scans
    split: Split
    recipe: Recipe
    seed: int = 0

    def build(self) -> keras.Model:
        """Return the network with the initial weights of the seed."""
        keras.utils.set_random_seed(self.seed)
        return build_model(
            self.builder,
            input_shape=(*self.scans.images.shape[1:], 1),
            classes=len(self.scans.class_names),
            augment=self.recipe.augment,
            dtype=self.recipe.dtype,
        )

    @cached_property
    def model(self) -> keras.Model:
        """The network that is trained; built once."""
        return self.build()

    @cached_property
    def identity(self) -> dict[str, Any]:
        """All that determines the result, JSON-ready."""
        # A builder may be edited between two runs; Keras numbers layers on from one to the next.
        network = re.sub(r'_\d+(?=")', "", self.model.to_json())
        return {
            "builder": self.builder,
            "network_sha256": hashlib.sha256(network.encode()).hexdigest(),
            "recipe": asdict(self.recipe),
            "seed": self.seed,
            "data": self.scans.fingerprint(),
            "split": split_facts(self.split),
        }

    @cached_property
    def signature(self) -> str:
        """SHA-256 of the identity: equal where the results are."""
        return hashlib.sha256(json.dumps(self.identity, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class Trained:
    """A trained network, its card (the content of ``models/<name>.json``) and its file."""

    model: keras.Model
    card: dict[str, Any]
    path: Path

    @property
    def history(self) -> dict[str, list[float]]:
        """Losses and metrics per epoch, one list per name."""
        return self.card["history"]

    @property
    def best_epoch(self) -> int:
        """Number of the epoch that was kept, counted from 0."""
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
    replace: bool = False,
    verbose: str | int = "auto",
    callbacks: Sequence[keras.callbacks.Callback] = (),
    **options: Any,
) -> Trained:
    """Train a registered network and save it with its card; say whether it is new or resumed.

    Parameters
    ----------
    builder : str
        One of `mri.list_models`.
    scans, split
        All slices, and from `subject_split` or `image_split` which are used for what. The test part
        is never touched.
    name : str, optional
        File name without ending; by default ``<builder>-<protocol>``.
    recipe : Recipe, optional
        By default `mri.training.recipe_of` the builder.
    seed : int
        Seed of the initial weights, the order of the slices, augmentation and dropout.
    folder : path
        Where ``<name>.keras`` and ``<name>.json`` are written. If another process trains under the
        same name, this call waits for it.
    resume : bool
        If True, a killed run continues after its last whole epoch, to the same result, and a
        finished run is returned as it is. If False, training starts anew.
    replace : bool
        Whether a finished run of another recipe, seed, split or network may be lost.
    verbose : 'auto', 0, 1 or 2
        As for ``fit`` of Keras. With 0, nothing is printed.
    callbacks : sequence of keras.callbacks.Callback
        They watch the epochs of this call and do not change the result. A finished run calls none.

    Raises
    ------
    ValueError
        If there is no such builder, the split has an empty part or belongs to other slices, another
        run has that name, or a network of phantoms would overwrite one of real slices.
    DataLeakageError
        If parts of the split share a slice.
    RuntimeError
        If the loss becomes NaN or infinite. Lower the learning rate.
    OSError
        If `folder` cannot be written or its disk is full.

    Examples
    --------
    >>> from tempfile import TemporaryDirectory
    >>> from mri.data import make_phantoms
    >>> from mri.subjects import subject_split
    >>> phantoms, short = make_phantoms(24, 2, size=64), Recipe(epochs=2, batch_size=8)
    >>> split = subject_split(phantoms.labels, phantoms.subjects, folds=2)
    >>> with TemporaryDirectory() as folder:
    ...     run = train("tissue", phantoms.scans, split, recipe=short, folder=folder, verbose=0)
    >>> run.path.name, len(run.history["loss"])
    ('tissue-subject.keras', 2)
    """
    _check_call(builder, scans, split, recipe, options)
    recipe = recipe or recipe_of(builder)
    _check_split(split, len(scans))
    file = ModelFile(Path(folder) / f"{name or f'{builder}-{split.protocol}'}.keras")
    card = _card_of(file)
    keep_real(file.path, scans, card)
    wanted = Run(builder, scans, split, recipe, seed)
    dtype = native_dtype() if recipe.dtype == "auto" else recipe.dtype
    run = _same_run(wanted, card) or with_(wanted, recipe=with_(recipe, dtype=dtype))
    say = print if verbose else lambda *_: None
    if resume and (done := _finished(file, run)):
        say(f"{file.path}: trained before, loaded")
        return done
    with alone(file.path):
        file = ModelFile(file.path)  # While this call waited, another process may have written it.
        if resume and (done := _finished(file, run)):
            say(f"{file.path}: trained by another process, loaded")
            return done
        other = _differences(_card_of(file), run)
        expected = f"{file.path} holds another run: take another name, or replace=True to lose it."
        require(replace or not other, expected, **other)
        if other:
            say(f"{file.path}: another run is replaced, of other: {', '.join(other)}")
        return _trained(file.path, run, resume=resume, verbose=verbose, callbacks=callbacks)


def _check_call(
    builder: object, scans: object, split: object, recipe: object, options: Mapping[str, Any]
) -> None:
    fields = Recipe.__dataclass_fields__
    how = ", ".join(f"{name}={value!r}" for name, value in options.items() if name in fields)
    require(not how, f"Epochs and the like must be in a recipe: recipe=Recipe({how}).", **options)
    require(not options, "Options must be those of mri.train.", **options)
    named, kind = isinstance(builder, str), type(scans).__name__
    require(named, "builder must be a name of mri.list_models().", builder=builder)
    require(isinstance(scans, Scans), "scans must be Scans, from mri.read_scans().", scans=kind)
    whole = all(hasattr(split, name) for name in (*PARTS, "protocol"))
    require(whole, "split must be a Split, from subject_split or image_split.", split=split)
    require(recipe is None or isinstance(recipe, Recipe), "recipe must be a Recipe.", recipe=recipe)


def is_trained(
    builder: str, scans: Scans, split: Split, path: Path, *, recipe: Recipe, seed: int = 0
) -> bool:
    """Return whether the card at `path` belongs to this run; the model file may be missing.

    A recipe with dtype 'auto' also matches a run on a machine with another arithmetic.
    """
    wanted = Run(builder, scans, split, recipe, seed)
    return _same_run(wanted, _card_of(ModelFile(path))) is not None


def _same_run(run: Run, card: Mapping[str, Any]) -> Run | None:
    """Return the run with the dtype of the card, or None if the card is of another run."""
    dtype = card.get("recipe", {}).get("dtype")
    if run.recipe.dtype not in ("auto", dtype) or dtype not in DTYPES:
        return None
    run = with_(run, recipe=with_(run.recipe, dtype=dtype))
    return run if card.get("signature") == run.signature else None


def _differences(card: Mapping[str, Any], run: Run) -> dict[str, str]:
    """Return how a run differs from the finished one of that card; empty if there is none."""
    if card.get("signature") in (None, run.signature):
        return {}
    kept, now = (
        pd.json_normalize(dict(of), sep="_").to_dict("records")[0] for of in (card, run.identity)
    )
    return {
        key: f"{str(kept.get(key))[:16]} before, now {str(value)[:16]}"
        for key, value in now.items()
        if kept.get(key) != value
    }


def _check_split(split: Split, n: int) -> None:
    sizes = len(split.train), len(split.validation)
    require(all(sizes), "train and validation parts must not be empty.", slices=sizes)
    parts = [row_numbers(f"split.{x}", getattr(split, x), n) for x in PARTS]
    rows, times = np.unique(np.concatenate(parts), return_counts=True)
    if len(twice := rows[times > 1]):
        raise DataLeakageError(
            f"{len(twice)} rows occur twice in the split, for example {twice[0]}. Divide the "
            "slices with subject_split."
        )


def _card_of(file: ModelFile) -> dict[str, Any]:
    """Return the card of a file, or an empty dict if it is absent or damaged."""
    with suppress(ModelFileError):
        return file.card or {}
    return {}


def _finished(file: ModelFile, run: Run) -> Trained | None:
    """Return the finished run, or None; a damaged model is trained again."""
    card = _card_of(file)
    if card.get("signature") != run.signature:
        return None
    with suppress(ModelFileError):
        file.load_into(run.model)
        return Trained(run.model, card, file.path)
    return None


def _trained(path: Path, run: Run, *, resume: bool, **options: Any) -> Trained:
    state = path.with_name(f".{path.stem}.state.npz")
    if not resume:
        state.unlink(missing_ok=True)
    checkpoint = Checkpoint(state, _stopper(run.recipe), run.signature)
    # `run.model` may hold weights that were read from a file.
    model = run.build()
    steps = run.recipe.epochs * max(1, len(run.split.train) // run.recipe.batch_size)
    _compile(model, run.recipe, classes=len(run.scans.class_names), steps=steps)
    checkpoint.restore(model)
    if options["verbose"]:
        done = checkpoint.epochs_done
        print(f"{path}: {f'resumed after epoch {done}' if done else 'trained anew'}")
    _fit(model, run, checkpoint, **options)
    # Without optimiser and metrics the file has a third of the size, and any Keras can load it.
    final = run.build()
    final.set_weights(model.get_weights())
    card = save_model(final, path, _card(final, run, checkpoint))
    state.unlink(missing_ok=True)
    return Trained(final, card, path)


def _stopper(recipe: Recipe) -> keras.callbacks.EarlyStopping:
    last = recipe.monitor == "last"  # Then it neither stops early nor restores another epoch.
    return keras.callbacks.EarlyStopping(
        monitor="val_loss" if last else recipe.monitor,
        mode="max" if recipe.monitor == "val_balanced_accuracy" else "min",
        patience=recipe.patience or recipe.epochs,
        restore_best_weights=not last,
    )


def _fit(
    model: keras.Model,
    run: Run,
    checkpoint: Checkpoint,
    *,
    verbose: str | int,
    callbacks: Sequence[keras.callbacks.Callback],
) -> None:
    """Train the epochs that the checkpoint lacks; an error gets a note on what is kept."""
    scans, split, recipe = run.scans, run.split, run.recipe
    classes = len(scans.class_names)
    targets = np.eye(classes, dtype=np.float32)[scans.labels[split.validation]]
    batches = Batches(
        scans.images,
        scans.labels,
        rows=split.train,
        classes=classes,
        batch_size=recipe.batch_size,
        balanced=recipe.balance == "sampling",
        seed=run.seed,
        epoch=checkpoint.epochs_done,
    )
    watch = keras.callbacks.TerminateOnNaN(raise_error=True)
    try:
        model.fit(
            batches,
            epochs=checkpoint.epochs_done if checkpoint.stopped else recipe.epochs,
            initial_epoch=checkpoint.epochs_done,
            validation_data=(scans.images[split.validation][..., None], targets),
            validation_batch_size=256,
            class_weight=_class_weights(scans.labels[split.train], recipe, classes),
            # Keras would use Python's global random state, which no checkpoint keeps.
            shuffle=False,
            callbacks=[watch, checkpoint.stopper, checkpoint, *callbacks],
            verbose=verbose,
        )
    except BaseException as error:  # Includes Ctrl-C.
        if isinstance(error, RuntimeError) and "NaN or Inf" in str(error):
            error.add_note(f"Lower the learning rate; it is {recipe.learning_rate} now.")
        error.add_note(checkpoint.kept())
        raise


def _card(model: keras.Model, run: Run, checkpoint: Checkpoint) -> dict[str, Any]:
    rows = run.split.validation
    logits, labels = predict_logits(model, run.scans.images[rows]), run.scans.labels[rows]
    if not np.isfinite(logits).all():  # The last step spoilt it, behind the last loss.
        rate = run.recipe.learning_rate
        raise RuntimeError(f"The network answers NaN. Lower the learning rate; it is {rate} now.")
    with known_logits():
        temperature = fit_temperature(labels, logits)
    last = run.recipe.monitor == "last"
    return {
        **run.identity,
        "signature": run.signature,
        "class_names": list(run.scans.class_names),
        "synthetic": run.scans.synthetic,
        "initial_weights": initial_weights(model),
        "parameters": model.count_params(),
        "validation": right_shares(labels, logits),
        "temperature": temperature,
        "best_epoch": checkpoint.epochs_done - 1 if last else int(checkpoint.stopper.best_epoch),
        "seconds": round(checkpoint.seconds, 1),
        "history": {key: [e[key] for e in checkpoint.record] for key in checkpoint.record[0]},
        "test_rows": run.split.test.tolist(),
        "versions": {
            "python": platform.python_version(),
            "keras": keras.__version__,
            "tensorflow": tf.__version__,
            "numpy": np.__version__,
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
    # `model.optimizer`, because Keras may have wrapped the optimizer to scale the loss.
    model.optimizer.build(model.trainable_variables)


def _class_weights(labels: np.ndarray, recipe: Recipe, classes: int) -> dict[int, float] | None:
    if recipe.balance != "weights":
        return None
    counts = np.bincount(labels, minlength=classes)
    present = np.count_nonzero(counts)
    return {c: len(labels) / (present * n) if n else 0.0 for c, n in enumerate(counts.tolist())}
