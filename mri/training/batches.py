"""Parts of a run: batches in a repeatable order, a loss and a metric."""

from __future__ import annotations

from typing import Any

import numpy as np

from mri._keras import keras


class BalancedAccuracy(keras.metrics.Metric):
    """Mean recall over the classes that occur, from one-hot labels and logits."""

    def __init__(self, classes: int, name: str = "balanced_accuracy", **options: Any) -> None:
        super().__init__(name=name, **options)
        self.hits = self.add_weight(shape=(classes,), initializer="zeros", name="hits")
        self.seen = self.add_weight(shape=(classes,), initializer="zeros", name="seen")

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """Count a batch; sample weights change the loss but not this metric."""
        right = keras.ops.argmax(y_true, -1) == keras.ops.argmax(y_pred, -1)
        right = keras.ops.cast(right, y_true.dtype)[:, None]
        self.hits.assign_add(keras.ops.sum(y_true * right, axis=0))
        self.seen.assign_add(keras.ops.sum(y_true, axis=0))

    def result(self) -> Any:
        """Return the mean recall of the classes so far."""
        recall = self.hits / keras.ops.maximum(self.seen, 1)
        present = keras.ops.cast(self.seen > 0, recall.dtype)
        return keras.ops.sum(recall) / keras.ops.maximum(keras.ops.sum(present), 1)


class HardExamples(keras.losses.CategoricalCrossentropy):
    """Cross-entropy, as a mean over the hardest share of each batch.

    `hardest` is in (0, 1] and 1 means the whole batch; at least one slice is taken.
    """

    def __init__(self, hardest: float = 1.0, **options: Any) -> None:
        super().__init__(**options)
        self.hardest = hardest

    def call(self, y_true: Any, y_pred: Any) -> Any:
        """Return losses (batch,): zero for easy slices, scaled up for hard ones."""
        losses = super().call(y_true, y_pred)
        if self.hardest == 1:
            return losses
        n = keras.ops.cast(keras.ops.shape(losses)[0], losses.dtype)
        kept = keras.ops.maximum(keras.ops.round(self.hardest * n), 1.0)
        rank = keras.ops.argsort(keras.ops.argsort(-losses))
        hard = keras.ops.cast(rank, losses.dtype) < kept
        return keras.ops.where(hard, losses * n / kept, 0.0)


class Batches(keras.utils.PyDataset):
    """Batches whose order depends only on (seed, epoch), so that a resumed run repeats it.

    `images` (n, h, w) are read batch by batch, so that a memory-mapped array stays on the disk.
    `rows` (m,) are those to draw from; if `balanced`, every class equally often, with replacement.
    `epoch` is the number of the first.
    """

    def __init__(
        self,
        images: np.ndarray,
        labels: np.ndarray,
        *,
        rows: np.ndarray | None = None,
        classes: int,
        batch_size: int,
        balanced: bool,
        seed: int,
        epoch: int,
    ) -> None:
        super().__init__()
        self.images, self.batch_size = images, batch_size
        self.rows = np.arange(len(labels)) if rows is None else rows
        self.labels = labels[self.rows]
        self.targets = np.eye(classes, dtype=np.float32)[self.labels]
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
        """Number of full batches; each epoch leaves out a few other slices."""
        return max(1, len(self.labels) // self.batch_size)

    def __getitem__(self, index: int) -> tuple[np.ndarray, np.ndarray]:
        """Return images uint8 (batch, h, w, 1) and one-hot labels float32 (batch, classes)."""
        drawn = self.order[index * self.batch_size : (index + 1) * self.batch_size]
        return self.images[self.rows[drawn]][..., None], self.targets[drawn]

    def on_epoch_begin(self) -> None:
        """Draw the order of the epoch that now begins."""
        # Not in on_epoch_end, because `fit` also calls that once before the first epoch.
        self._draw()
        self.epoch += 1
