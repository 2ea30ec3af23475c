"""The state of a run after each epoch; from it, a killed run resumes to the same result."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mri._files import replacing
from mri._keras import keras


class Checkpoint(keras.callbacks.Callback):
    """After every epoch, write all that the rest of the run depends on into one file.

    Keras' `BackupAndRestore` forgets the history and the state of `EarlyStopping`, so a resumed run
    could choose another epoch.
    """

    def __init__(self, path: Path, stopper: keras.callbacks.EarlyStopping, signature: str) -> None:
        super().__init__()
        self.path, self.stopper, self.signature = path, stopper, signature
        self.record: list[dict[str, float]] = []
        self.epochs_done, self.seconds, self.stopped = 0, 0.0, False

    def _variables(self) -> list[keras.Variable]:
        return [*self.model.variables, *self.model.optimizer.variables]

    def restore(self, model: keras.Model) -> None:
        """Load the state of the same run into `model`; ignore a damaged or foreign file."""
        self.set_model(model)
        try:
            with self.path.open("rb") as file, np.load(file) as state:
                meta = json.loads(str(state["meta"]))
                if meta["signature"] != self.signature:
                    return
                values = [state[f"v{i}"] for i in range(len(self._variables()))]
                best = (
                    [state[f"b{i}"] for i in range(len(model.weights))] if "b0" in state else None
                )
        except Exception:  # A damaged archive can raise almost anything; the run starts anew.
            return
        for variable, value in zip(self._variables(), values, strict=True):
            variable.assign(value)
        self.epochs_done, self.record = meta["epochs_done"], meta["history"]
        self.seconds = meta["seconds"]
        self._stopping = {**meta["stopping"], "best_weights": best}
        self.stopped = self._stopping["wait"] >= self.stopper.patience

    def kept(self) -> str:
        """Say what an interrupted run leaves behind."""
        if not self.epochs_done:
            return "No epoch was finished, so nothing is kept."
        return (
            f"Kept in {self.path}: {self.epochs_done} finished epochs. Repeat the same call to "
            "continue."
        )

    def on_train_begin(self, logs: Mapping[str, float] | None = None) -> None:
        """Give the early stopping its state back, because it has just cleared it."""
        if self.epochs_done:
            vars(self.stopper).update(self._stopping)
        self._clock = time.perf_counter()

    def on_epoch_end(self, epoch: int, logs: Mapping[str, float] | None = None) -> None:
        """Write the state, after the early stopping has judged the epoch."""
        self.record.append({key: float(value) for key, value in (logs or {}).items()})
        now = time.perf_counter()
        self.seconds, self._clock = self.seconds + now - self._clock, now
        stopping = {key: getattr(self.stopper, key) for key in ("wait", "best", "best_epoch")}
        meta = {"signature": self.signature, "epochs_done": epoch + 1, "history": self.record}
        meta |= {"seconds": self.seconds, "stopping": {k: float(v) for k, v in stopping.items()}}
        arrays: dict[str, Any] = {f"v{i}": np.asarray(v) for i, v in enumerate(self._variables())}
        arrays |= {f"b{i}": value for i, value in enumerate(self.stopper.best_weights or [])}
        # An open file, because NumPy may add an ending to a name.
        with replacing(self.path) as temporary, temporary.open("wb") as file:
            np.savez(file, meta=json.dumps(meta), **arrays)
        self.epochs_done = epoch + 1
