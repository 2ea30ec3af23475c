"""Train the zoo and its folds on a GPU that has JAX and no TensorFlow; join the results here.

Networks, recipes, loss and order of the slices are those of `mri.train`. Only the loop is another:
the slices lie on the GPU and an epoch is one compiled call. Random numbers are JAX's, so initial
weights and dropout are not those of TensorFlow.

On the machine of the project `plan` writes the runs into runs/accelerator/. On that with the GPU
`train` needs that folder, this repository, JAX, Keras and NumPy. Then `join` writes models/zoo and
models/crossval.parquet. `compare` shows that both loops have the same losses from the same weights.

    .venv/bin/python tests/benchmarks/accelerator.py plan [NAME ...] [--divisions 10]
    python tests/benchmarks/accelerator.py train [NAME ...]
    .venv/bin/python tests/benchmarks/accelerator.py join [NAME ...]
    .venv/bin/python tests/benchmarks/accelerator.py compare PYTHON_WITH_JAX

Several `train` may run beside each other: each takes runs that no other has.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import pickle
import subprocess
import sys
import types
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np

HOME = Path("runs/accelerator")
FOLDS = 5


class Planned(NamedTuple):
    """A run: its network, its recipe, the rows of its parts and the labels (n,) it is taught."""

    kind: str
    """'image', 'fold' or 'control'."""
    name: str
    division: int
    fold: int
    builder: str
    recipe: dict[str, Any]
    rows: tuple[np.ndarray, np.ndarray, np.ndarray]
    labels: np.ndarray

    @property
    def path(self) -> Path:
        """Where its result is kept."""
        return HOME / f"{self.kind}-{self.name}-{self.division}-{self.fold}.npz"


# --- here: what is to be trained ---


def planned(names: list[str], divisions: int) -> Iterator[Planned]:
    """Yield the runs of networks: the image-level split, all folds, and all on shuffled labels."""
    from mri.__main__ import protocols
    from mri.subjects.probes import shuffle_diagnoses
    from mri.training.crossval import folds_of
    from mri.training.recipe import chosen_entries

    scans, splits, groups = protocols()
    np.save(HOME / "slices.npy", scans.images)
    shuffled = shuffle_diagnoses(scans.labels, groups)
    for name, (builder, recipe) in chosen_entries(names).items():
        dtype = "mixed_bfloat16" if recipe.dtype == "auto" else recipe.dtype
        told = asdict(replace(recipe, dtype=dtype))
        taught = {"image": scans.labels, "fold": scans.labels, "control": shuffled}
        for kind, labels in taught.items():
            for division in range(divisions if kind == "fold" else 1):
                folds = folds_of(labels, groups, folds=FOLDS, division=division)
                for split in [splits["image"]] if kind == "image" else folds:
                    rows = split.train, split.validation, split.test
                    place = division, max(split.fold, 0)
                    yield Planned(kind, name, *place, builder, told, rows, labels)


def plan(names: list[str], divisions: int) -> None:
    HOME.mkdir(parents=True, exist_ok=True)
    runs = list(planned(names, divisions))
    (HOME / "plan.pickle").write_bytes(pickle.dumps(runs))
    print(f"{len(runs)} runs, {sum(run.recipe['epochs'] for run in runs)} epochs")


# --- there: training ---


def with_jax() -> types.ModuleType:
    """Return Keras on JAX, and have mri.models and mri.training.batches take it too."""
    os.environ["KERAS_BACKEND"] = "jax"
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import keras

    sys.path.insert(0, str(Path(__file__).parents[2]))
    stand_in = types.ModuleType("mri._keras")
    stand_in.keras, stand_in.tf = keras, None
    sys.modules["mri._keras"] = stand_in
    return keras


class Engine:
    """A network that is compiled once for all runs that differ in slices, labels and rates only."""

    def __init__(self, run: Planned, shape: tuple[int, int], classes: int = 4) -> None:
        self.keras = with_jax()
        import jax

        from mri.models import builders
        from mri.training.batches import HardExamples

        builders.DOWNLOAD = False
        recipe = run.recipe
        self.keras.utils.set_random_seed(0)
        self.model = builders.build_model(
            run.builder,
            input_shape=(*shape, 1),
            classes=classes,
            augment=recipe["augment"],
            dtype=recipe["dtype"],
        )
        self.adam = self.keras.optimizers.AdamW(1e-3, weight_decay=recipe["weight_decay"])
        self.adam.exclude_from_weight_decay(var_names=["bias", "gamma", "beta"])
        self.adam.build(self.model.trainable_variables)
        names = [variable.path for variable in self.adam.variables]
        (self.rate,) = (i for i, name in enumerate(names) if name.endswith("learning_rate"))
        options = {"from_logits": True, "label_smoothing": recipe["label_smoothing"]}
        self.loss = HardExamples(recipe["hardest"], **options)
        weights, state = self.model.trainable_variables, self.model.non_trainable_variables
        held = weights, state, self.adam.variables
        self.start = tuple([np.array(variable.value) for variable in of] for of in held)
        self.epoch = jax.jit(self._epoch, donate_argnums=0)
        self.answer = jax.jit(self._answer)

    def _epoch(self, held, images, targets, shares, order, rates, steps):
        """Return what `held` becomes, the mean loss, and right and all slices of each class."""
        import jax
        import jax.numpy as jnp

        def objective(weights, state, x, y, share):
            out, state = self.model.stateless_call(weights, state, x, training=True)
            return self.loss(y, out, sample_weight=share), (state, out)

        gradient = jax.value_and_grad(objective, has_aux=True)

        def step(i, carry):
            weights, state, moments, total, right, seen = carry
            x, y = images[order[i]][..., None].astype(jnp.float32), targets[order[i]]
            moments[self.rate] = rates[i]
            (loss, (state, out)), slope = gradient(weights, state, x, y, shares[order[i]])
            weights, moments = self.adam.stateless_apply(moments, slope, weights)
            hit = (jnp.argmax(y, -1) == jnp.argmax(out, -1)).astype(jnp.float32)[:, None]
            counts = right + (y * hit).sum(0), seen + y.sum(0)
            return weights, state, list(moments), total + loss, *counts

        none = jnp.zeros(targets.shape[1])
        carry = jax.lax.fori_loop(0, steps, step, (*held, jnp.zeros(()), none, none))
        return carry[:3], carry[3] / steps, *carry[4:]

    def _answer(self, weights, state, x):
        return self.model.stateless_call(weights, state, x[..., None].astype("float32"))[0]

    def answers(self, held, images, rows: np.ndarray) -> np.ndarray:
        """Return the logits of some rows, float32 (m, k)."""
        whole = np.concatenate([rows, np.zeros(-len(rows) % 256, int)])
        parts = [self.answer(held[0], held[1], images[at]) for at in whole.reshape(-1, 256)]
        return np.concatenate([np.asarray(part) for part in parts])[: len(rows)]

    def train(self, run: Planned, images, held=None) -> dict[str, Any]:
        """Train one run; return its history, and the logits of its validation and test rows."""
        import jax
        import jax.numpy as jnp

        from mri.training.batches import Batches

        recipe, (rows, validation, test) = run.recipe, run.rows
        size, classes = recipe["batch_size"], self.model.output_shape[1]
        steps, targets = max(1, len(rows) // size), np.eye(classes, dtype=np.float32)[run.labels]
        every, warm_up = recipe["epochs"] * steps, recipe["epochs"] * steps // 10
        schedule = self.keras.optimizers.schedules.CosineDecay(
            0.0, every - warm_up, warmup_target=recipe["learning_rate"], warmup_steps=warm_up
        )
        rates = np.asarray(jax.vmap(schedule)(jnp.arange(every)), np.float32).reshape(-1, steps)
        shares = np.ones(len(targets), np.float32)
        if recipe["balance"] == "weights":
            counts = np.bincount(run.labels[rows], minlength=classes)
            shares = (len(rows) / (np.count_nonzero(counts) * np.maximum(counts, 1)))[run.labels]
        fixed = images, jnp.asarray(targets), jnp.asarray(shares, jnp.float32)
        batches = Batches(
            np.zeros((len(targets), 1, 1), np.uint8),
            run.labels,
            rows=rows,
            classes=classes,
            batch_size=size,
            balanced=recipe["balance"] == "sampling",
            seed=0,
            epoch=0,
        )
        # Room for the largest part, so that runs of other sizes need no other program.
        order, rate = np.zeros((len(targets) // size + 1, size), np.int32), np.zeros(len(targets))
        held = tuple([jnp.array(value) for value in of] for of in held or self.start)
        history = []
        for epoch in range(recipe["epochs"]):
            batches.on_epoch_begin()
            order[:steps] = rows[batches.order[: steps * size]].reshape(steps, size)
            rate[:steps] = rates[epoch]
            device = jnp.asarray(order), jnp.asarray(rate, jnp.float32)
            held, loss, right, seen = self.epoch(held, *fixed, *device, steps)
            hits = np.asarray(right) / np.maximum(np.asarray(seen), 1)
            found = self.judged(self.answers(held, images, validation), run.labels[validation])
            history.append(
                {
                    "accuracy": float(right.sum() / seen.sum()),
                    "balanced_accuracy": float(hits[np.asarray(seen) > 0].mean()),
                    "loss": float(loss),
                    **found,
                }
            )
            if not np.isfinite(history[-1]["loss"]):
                raise RuntimeError(f"{run.path}: the loss is NaN")
        return {
            "held": held,
            "history": history,
            "validation": self.answers(held, images, validation),
            "test": self.answers(held, images, test),
        }

    def judged(self, logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
        """Return what Keras would report of validation slices (m,), in batches of 256."""
        y, right = np.eye(logits.shape[1], dtype=np.float32)[labels], logits.argmax(1) == labels
        parts = [slice(i, i + 256) for i in range(0, len(y), 256)]
        losses = [float(self.loss(y[at], logits[at])) * len(y[at]) for at in parts]
        return {
            "val_accuracy": float(right.mean()),
            "val_balanced_accuracy": float(np.mean([right[labels == k].mean() for k in {*labels}])),
            "val_loss": sum(losses) / len(y),
        }


def train(names: list[str]) -> None:
    import platform
    import time

    keras = with_jax()
    import jax
    import jax.numpy as jnp

    runs = pickle.loads((HOME / "plan.pickle").read_bytes())
    images, engine, made_for = jnp.asarray(np.load(HOME / "slices.npy")), None, None
    versions = {"python": platform.python_version(), "keras": keras.__version__}
    versions |= {"jax": jax.__version__, "numpy": np.__version__}
    versions |= {"device": jax.devices()[0].device_kind}
    for run in runs:
        if (names and run.name not in names) or run.path.exists():
            continue
        try:
            os.close(os.open(run.path.with_suffix(".taken"), os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            continue
        # What is compiled into the program; rates and numbers of epochs are not.
        recipe = {k: v for k, v in run.recipe.items() if k not in ("epochs", "learning_rate")}
        if made_for != (run.builder, recipe):
            engine, made_for = Engine(run, images.shape[1:]), (run.builder, recipe)
        start = time.perf_counter()
        found = engine.train(run, images)
        seconds = round(time.perf_counter() - start, 1)
        for variables, values in zip(
            (engine.model.trainable_variables, engine.model.non_trainable_variables),
            found["held"][:2],
            strict=True,
        ):
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)
        with TemporaryDirectory() as folder:
            engine.model.save(Path(folder, "model.keras"))
            content = Path(folder, "model.keras").read_bytes()
        facts = {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
        facts |= {"seconds": seconds, "versions": versions, "history": found["history"]}
        logits = {part: found[part] for part in ("validation", "test")}
        np.savez(run.path, facts=json.dumps(facts), **logits)
        print(f"{run.path.stem}: {found['history'][-1]}, {seconds} s", flush=True)


# --- here: cards and logits ---


def join(names: list[str]) -> None:
    import pandas as pd

    from mri.__main__ import protocols
    from mri.evaluation.doubts import known_logits
    from mri.evaluation.metrics import fit_temperature
    from mri.models.own import write_own
    from mri.training.crossval import SHUFFLED, answers, folds_of, read_crossval

    scans, splits, groups = protocols()
    output, frames = Path("models/crossval.parquet"), []
    for run in pickle.loads((HOME / "plan.pickle").read_bytes()):
        if (names and run.name not in names) or not run.path.exists():
            continue
        on, found = replace(scans, labels=run.labels), np.load(run.path)
        with known_logits():
            warmth = fit_temperature(run.labels[run.rows[1]], found["validation"])
        split = splits["image"]
        if run.kind != "image":
            options = {"folds": FOLDS, "division": run.division}
            split = folds_of(run.labels, groups, **options)[run.fold]
            logits = np.concatenate([found["validation"], found["test"]]) / warmth
            control = SHUFFLED * (run.kind == "control")
            frames.append(answers(run.name + control, on, groups, split, logits))
        if run.kind != "control" and not run.division and not run.fold:
            write_card(run, scans, split, groups, found, warmth)
    write_own(Path("models/zoo"))
    new, keys = pd.concat(frames, ignore_index=True), ["model", "division", "fold", "seed"]
    before = read_crossval(output)
    known = pd.MultiIndex.from_frame(before.frame[keys])
    kept = before.frame[~known.isin(pd.MultiIndex.from_frame(new[keys]))]
    replace(before, frame=pd.concat([kept, new[kept.columns]], ignore_index=True)).save(output)


def write_card(run: Planned, scans, split, groups, found, warmth: float) -> None:
    """Write card and logits of a network whose file stayed where it was trained."""
    from mri.evaluation.logits import VERSION, LogitsTable, logits_frame
    from mri.models.builders import initial_weights
    from mri.models.cards import CARD_VERSION
    from mri.training.crossval import right_shares
    from mri.training.loop import Run
    from mri.training.recipe import Recipe

    facts, of = json.loads(str(found["facts"])), Recipe(**run.recipe)
    here = Run(run.builder, scans, split, of, 0)
    path = Path(f"models/zoo/{run.name}-{split.protocol}.json")
    history = facts.pop("history")
    size = facts.pop("bytes")
    card = {
        "card_version": CARD_VERSION,
        **here.identity,
        "signature": here.signature,
        "class_names": list(scans.class_names),
        "synthetic": scans.synthetic,
        "initial_weights": initial_weights(here.model),
        "parameters": here.model.count_params(),
        "validation": right_shares(scans.labels[split.validation], found["validation"]),
        "temperature": warmth,
        "best_epoch": of.epochs - 1,
        "history": {key: [epoch[key] for epoch in history] for key in history[0]},
        "test_rows": split.test.tolist(),
        **facts,
    }
    # How long an answer takes depends on the network, not on its weights.
    table = LogitsTable.read(path.with_suffix(".parquet"))
    about = {**table.about, "version": VERSION, "sha256": facts["sha256"], "bytes": size}
    about |= {"output": "logits", "doubts": [], "expects": None}
    frame = logits_frame(scans, groups, split.test, found["test"])
    LogitsTable(frame, about).save(path.with_suffix(".parquet"))
    path.write_text(json.dumps(card, indent=1), encoding="utf-8")


# --- do both loops do the same? ---


def compare(python: str) -> None:
    """Train three short runs in both loops, from the same weights; print the losses of each."""
    from mri.data import make_phantoms
    from mri.subjects import subject_split
    from mri.training.checkpoint import Checkpoint
    from mri.training.loop import Run, _compile, _fit, _stopper
    from mri.training.recipe import Recipe

    phantoms = make_phantoms(20, 20, size=64)
    scans = phantoms.scans
    split = subject_split(scans.labels, phantoms.subjects)
    rows = split.train, split.validation, split.test
    for builder, recipe in (
        ("baseline", Recipe(epochs=3, hardest=0.2, dtype="float32")),
        ("tissue", Recipe(epochs=3, batch_size=16, balance="weights", dtype="float32")),
        ("baseline", Recipe(epochs=3, balance="sampling", dtype="float32")),
    ):
        run = Run(builder, scans, split, recipe)
        with TemporaryDirectory() as folder:
            held = [v.numpy() for v in run.model.trainable_variables]
            state = Checkpoint(Path(folder, "state.npz"), _stopper(recipe), "")
            state.set_model(run.model)
            steps = recipe.epochs * max(1, len(split.train) // recipe.batch_size)
            _compile(run.model, recipe, classes=4, steps=steps)
            _fit(run.model, run, state, verbose=0, callbacks=[])
            asked = Planned("fold", builder, 0, 0, builder, asdict(recipe), rows, scans.labels)
            told = pickle.dumps((asked, scans.images, held))
        there = subprocess.run([python, __file__, "one"], input=told, stdout=-1, check=True)
        losses = [epoch["loss"] for epoch in state.record], json.loads(there.stdout)
        print(builder, recipe.balance, *(np.round(of, 4).tolist() for of in losses))


def one() -> None:
    run, images, weights = pickle.loads(sys.stdin.buffer.read())
    engine = Engine(run, images.shape[1:])
    import jax.numpy as jnp

    found = engine.train(run, jnp.asarray(images), (weights, *engine.start[1:]))
    print(json.dumps([epoch["loss"] for epoch in found["history"]]))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=["plan", "train", "join", "compare", "one"])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--divisions", type=int, default=1)
    options = parser.parse_args()
    match options.command:
        case "plan":
            plan(options.names, options.divisions)
        case "train":
            train(options.names)
        case "join":
            join(options.names)
        case "compare":
            compare(*options.names)
        case "one":
            one()


if __name__ == "__main__":
    main()
