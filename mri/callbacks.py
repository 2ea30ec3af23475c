"""What a resumable, honestly selected run needs and Keras lacks."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mri.backend import keras
from mri.files import replacing


class BalancedAccuracy(keras.metrics.Metric):
    """Mean recall over the classes seen, from one-hot labels and logits."""

    def __init__(self, classes: int, name: str = "balanced_accuracy", **options: Any) -> None:
        super().__init__(name=name, **options)
        self.hits = self.add_weight(shape=(classes,), initializer="zeros", name="hits")
        self.seen = self.add_weight(shape=(classes,), initializer="zeros", name="seen")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Count a batch; sample weights change the loss, not this figure."""
        right = keras.ops.argmax(y_true, -1) == keras.ops.argmax(y_pred, -1)
        right = keras.ops.cast(right, y_true.dtype)[:, None]
        self.hits.assign_add(keras.ops.sum(y_true * right, axis=0))
        self.seen.assign_add(keras.ops.sum(y_true, axis=0))

    def result(self) -> Any:
        """Return the mean recall over the classes that have occurred."""
        recall = self.hits / keras.ops.maximum(self.seen, 1)
        present = keras.ops.cast(self.seen > 0, recall.dtype)
        return keras.ops.sum(recall) / keras.ops.maximum(keras.ops.sum(present), 1)


class HardExamples(keras.losses.CategoricalCrossentropy):
    """Cross-entropy of the hardest share of each batch; with 1, of all of it.

    Parameters
    ----------
    hardest : float
        Share of the batch in (0, 1], at least one slice; the mean is over these.
    **options
        Of `keras.losses.CategoricalCrossentropy`.
    """

    def __init__(self, hardest: float = 1.0, **options: Any) -> None:
        super().__init__(**options)
        self.hardest = hardest

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Return (batch,) losses, those of the easy zero and the hard in proportion larger."""
        losses = super().call(y_true, y_pred)
        if self.hardest == 1:
            return losses
        n = keras.ops.cast(keras.ops.shape(losses)[0], losses.dtype)
        kept = keras.ops.maximum(keras.ops.round(self.hardest * n), 1.0)
        rank = keras.ops.argsort(keras.ops.argsort(-losses))
        hard = keras.ops.cast(rank, losses.dtype) < kept
        return keras.ops.where(hard, losses * n / kept, 0.0)


class Batches(keras.utils.PyDataset):
    """Batches in an order that depends on (seed, epoch) alone, so that a resumed run repeats it.

    Parameters
    ----------
    images : ndarray of uint8, shape (n, h, w)
    labels : ndarray of int, shape (n,)
    classes : int
    batch_size : int
    balanced : bool
        Draw every class equally often, with replacement.
    seed, epoch : int
        Of the first epoch to come.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        *,
        classes: int,
        batch_size: int,
        balanced: bool,
        seed: int,
        epoch: int,
    ) -> None:
        super().__init__()
        self.images, self.labels, self.batch_size = images, labels, batch_size
        self.targets = np.eye(classes, dtype=np.float32)[labels]
        self.balanced, self.seed, self.epoch = balanced, seed, epoch
        self._draw()

    def _draw(self) -> None:
        rng = np.random.default_rng((self.seed, self.epoch))
        n = len(self.labels)
        if self.balanced:
            share = 1 / np.bincount(self.labels)[self.labels]
            self.order = rng.choice(n, n, p=share / share.sum())
        else:
            self.order = rng.permutation(n)

    @property
    def num_batches(self) -> int:
        """Number of full batches; the few slices left over differ from epoch to epoch."""
        return max(1, len(self.labels) // self.batch_size)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return images uint8 (batch, h, w, 1) and one-hot labels float32 (batch, classes)."""
        rows = self.order[index * self.batch_size : (index + 1) * self.batch_size]
        return self.images[rows][..., None], self.targets[rows]

    def on_epoch_begin(self) -> None:
        """Draw the order of the epoch that begins."""
        # Not on_epoch_end: `fit` calls that once before the first epoch too.
        self._draw()
        self.epoch += 1


class Checkpoint(keras.callbacks.Callback):
    """Keep everything that the rest of a run depends on, after every epoch, in one file.

    Keras' `BackupAndRestore` forgets the state of `EarlyStopping` and the history, so a resumed
    run would choose another epoch; here weights, optimiser, random states, best weights and
    history are written together, under a temporary name first.
    """

    def __init__(self, path: Path, stopper: keras.callbacks.EarlyStopping, signature: str) -> None:
        super().__init__()
        self.path, self.stopper, self.signature = path, stopper, signature
        self.record: list[dict[str, float]] = []
        self.epochs_done, self.seconds, self.stopped = 0, 0.0, False

    def _variables(self) -> list[keras.Variable]:
        return [*self.model.variables, *self.model.optimizer.variables]

    def restore(self, model: keras.Model) -> None:
        """Put the kept state of the same run into `model`; a damaged or foreign file is ignored."""
        self.set_model(model)
        try:
            with self.path.open("rb") as file, np.load(file) as state:
                meta = json.loads(str(state["meta"]))
                if meta["signature"] != self.signature:
                    return
                values = [state[f"v{i}"] for i in range(len(self._variables()))]
                best = [state[f"b{i}"] for i in range(len(model.weights))]
        except Exception:  # Of a damaged archive almost any kind; the run then starts anew.
            return
        for variable, value in zip(self._variables(), values, strict=True):
            variable.assign(value)
        self.epochs_done, self.record = meta["epochs_done"], meta["history"]
        self.seconds = meta["seconds"]
        self._stopping = {**meta["stopping"], "best_weights": best}
        self.stopped = self._stopping["wait"] >= self.stopper.patience

    def kept(self) -> str:
        """Say what a run that has ended too soon leaves behind."""
        if not self.epochs_done:
            return "No epoch was finished, so nothing is kept."
        return (
            f"Kept in {self.path}: {self.epochs_done} finished epochs, with the best weights so "
            "far; the same call goes on from there."
        )

    def on_train_begin(self, logs: Mapping[str, float] | None = None) -> None:
        """Hand its state back to the early stopping, which has just cleared it."""
        if self.epochs_done:
            vars(self.stopper).update(self._stopping)
        self._clock = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Write the state; runs after the early stopping has judged the epoch."""
        self.record.append({key: float(value) for key, value in (logs or {}).items()})
        now = time.perf_counter()
        self.seconds, self._clock = self.seconds + now - self._clock, now
        stopping = {key: getattr(self.stopper, key) for key in ("wait", "best", "best_epoch")}
        meta = {
            "signature": self.signature,
            "epochs_done": epoch + 1,
            "history": self.record,
            "seconds": self.seconds,
            "stopping": {key: float(value) for key, value in stopping.items()},
        }
        arrays: dict[str, Any] = {f"v{i}": np.asarray(v) for i, v in enumerate(self._variables())}
        arrays |= {f"b{i}": value for i, value in enumerate(self.stopper.best_weights)}
        # A file and not its name, to which NumPy might add an ending.
        with replacing(self.path) as temporary, temporary.open("wb") as file:
            np.savez(file, meta=json.dumps(meta), **arrays)
        self.epochs_done = epoch + 1
