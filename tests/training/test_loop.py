"""Training: the same result every time, killed or not, and chosen by what it says."""

import hashlib
import json
import math
import os
import signal
import subprocess
import sys
import zipfile
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from sklearn.metrics import balanced_accuracy_score, log_loss
from sklearn.utils.class_weight import compute_class_weight

import mri.__main__
import mri.training.loop
import mri.training.recipe
from mri.__main__ import main
from mri._keras import keras, tf
from mri.data.scans import Scans
from mri.evaluation.metrics import fit_temperature
from mri.models.builders import _BUILDERS, build_model, register
from mri.models.files import load_model, read_card, save_model
from mri.models.scores import predict_logits
from mri.subjects.splits import DataLeakageError
from mri.training.batches import BalancedAccuracy, Batches, HardExamples
from mri.training.checkpoint import Checkpoint
from mri.training.loop import _class_weights, _compile, train
from mri.training.recipe import Recipe, native_dtype
from small_runs import (
    PATIENT,
    RECIPE,
    SIZE,
    assert_same_run,
    flat,
    make_scans,
    make_split,
    run,
    speck,
    steady,
)

pytestmark = [
    # Keras' saving and loading.
    pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning"),
]

layers = keras.layers
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", autouse=True)
def registry():
    kept = dict(_BUILDERS)
    for builder in (speck, steady, flat):
        register(builder)
    yield
    _BUILDERS.clear()
    _BUILDERS.update(kept)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, registry):
    return run(tmp_path_factory.mktemp("unbroken"))


@pytest.fixture
def epochs_run(monkeypatch):
    """The numbers of the epochs that are trained during the test."""
    seen, original = [], Checkpoint.on_epoch_end

    def on_epoch_end(self, epoch, logs=None):
        seen.append(epoch)
        original(self, epoch, logs)

    monkeypatch.setattr(Checkpoint, "on_epoch_end", on_epoch_end)
    return seen


def interrupt(monkeypatch, folder, at, error=KeyboardInterrupt, **options):
    """Run until batch `at[1]` of epoch `at[0]`, or until the model would be saved."""

    def strike(*arguments, **options):
        raise error

    def on_train_batch_end(self, batch, logs=None):
        if (self.epochs_done, batch) == at:
            strike()

    with monkeypatch.context() as patch:
        if at == "saving":
            patch.setattr(mri.training.loop, "save_model", strike)
        else:
            patch.setattr(Checkpoint, "on_train_batch_end", on_train_batch_end, raising=False)
        with pytest.raises(error):
            run(folder, **options)
    return folder / ".m.state.npz"


# --- the same result ---


def test_the_same_seed_gives_the_same_run_to_the_bit(unbroken, tmp_path):
    assert_same_run(run(tmp_path), unbroken)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["m.json", "m.keras"]


@pytest.mark.slow
def test_another_seed_gives_another_run(unbroken, tmp_path, monkeypatch, epochs_run):
    """And a state that was left by another recipe is not continued."""
    state = interrupt(monkeypatch, tmp_path, (2, 3))
    assert state.exists()
    epochs_run.clear()
    other = run(tmp_path, seed=1)
    assert epochs_run == [0, 1, 2, 3]
    assert other.history["loss"] != unbroken.history["loss"]
    assert not state.exists()


# --- killed and resumed ---

DEATHS = {
    "mid": {"at": (2, 3)},
    "saving": {"at": "saving"},
    "patience": {"at": (3, 2), "builder": "steady", "recipe": PATIENT},
}


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Folders in which a process of its own has died, by name."""
    folders = {name: tmp_path_factory.mktemp(name) for name in DEATHS}
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    children = {
        name: subprocess.Popen(
            [sys.executable, __file__, name, str(folder)],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        for name, folder in folders.items()
    }
    for name, child in children.items():
        output = child.communicate(timeout=300)[0].decode()
        assert child.returncode == -signal.SIGKILL, (name, output)
    return folders


def die(name, folder):
    """Run in the process that is to be killed."""

    def kill(*arguments, **options):
        os.kill(os.getpid(), signal.SIGKILL)

    for builder in (speck, steady):
        register(builder)
    at, options = DEATHS[name]["at"], {k: v for k, v in DEATHS[name].items() if k != "at"}
    if at == "saving":
        mri.training.loop.save_model = kill
    else:
        Checkpoint.on_train_batch_end = lambda self, batch, logs=None: (
            kill() if (self.epochs_done, batch) == at else None
        )
    run(Path(folder), **options)


@pytest.mark.parametrize(("death", "left"), [("mid", [2, 3]), ("saving", [])])
def test_a_killed_run_resumes_to_the_same_bits(killed, unbroken, epochs_run, death, left):
    """Weights, dropout, augmentation, sampling, history and choice as if nothing had been."""
    folder = killed[death]
    assert sorted(entry.name for entry in folder.iterdir()) == [".m.lock", ".m.state.npz"]
    resumed = run(folder)
    assert epochs_run == left, "only the missing epochs are trained"
    assert_same_run(resumed, unbroken)
    assert sorted(entry.name for entry in folder.iterdir()) == ["m.json", "m.keras"]


@pytest.mark.slow
def test_patience_is_not_forgotten_in_a_kill(killed, tmp_path, epochs_run):
    """The first epoch stays the best, so patience 3 ends the run after the fourth, killed or not.

    A stopping that began to count anew would go on for two epochs more.
    """
    whole = run(tmp_path, "steady", PATIENT)
    assert epochs_run == [0, 1, 2, 3]
    assert len(set(whole.history["loss"])) == 4, "dropout differs from epoch to epoch"
    epochs_run.clear()
    resumed = run(killed["patience"], "steady", PATIENT)
    assert epochs_run == [3]
    assert_same_run(resumed, whole)
    assert whole.best_epoch == 0


@pytest.mark.slow
def test_a_run_that_had_stopped_early_does_not_go_on(tmp_path, monkeypatch, epochs_run):
    interrupt(monkeypatch, tmp_path, "saving", builder="steady", recipe=PATIENT)
    assert epochs_run == [0, 1, 2, 3]
    resumed = run(tmp_path, "steady", PATIENT)
    assert epochs_run == [0, 1, 2, 3]
    assert len(resumed.history["loss"]) == 4
    assert resumed.best_epoch == 0


@pytest.mark.slow
def test_a_run_may_be_interrupted_again_and_again(unbroken, tmp_path, monkeypatch, epochs_run):
    state = interrupt(monkeypatch, tmp_path, (1, 0))
    assert state.exists(), "Ctrl-C keeps what was done"
    assert not (tmp_path / "m.keras").exists()
    interrupt(monkeypatch, tmp_path, (1, 5))
    interrupt(monkeypatch, tmp_path, (3, 6), error=OSError)
    assert_same_run(run(tmp_path), unbroken)
    assert epochs_run == [0, 1, 2, 3]


@pytest.mark.slow
def test_a_truncated_state_starts_anew(unbroken, tmp_path, monkeypatch, epochs_run):
    state = interrupt(monkeypatch, tmp_path, (2, 0))
    state.write_bytes(state.read_bytes()[:-100])
    epochs_run.clear()
    assert_same_run(run(tmp_path), unbroken)
    assert epochs_run == [0, 1, 2, 3]


@pytest.fixture
def checkpoint(tmp_path):
    """A model, its checkpoint after one epoch, and the same model before."""
    models = []
    for _ in range(2):
        keras.utils.set_random_seed(3)
        model = build_model("speck", input_shape=(SIZE, SIZE, 1))
        _compile(model, RECIPE, classes=4, steps=20)
        models.append(model)
    stopper = keras.callbacks.EarlyStopping("val_loss", patience=3, restore_best_weights=True)
    kept = Checkpoint(tmp_path / "state", stopper, "signature")
    kept.set_model(models[0])
    stopper.set_model(models[0])
    stopper.on_train_begin()
    kept.on_train_begin()
    rng = np.random.default_rng(0)
    for epoch in range(2):
        for _ in range(3):
            x = rng.uniform(0, 255, (8, SIZE, SIZE, 1))
            models[0].train_on_batch(x, np.eye(4, dtype=np.float32)[rng.integers(0, 4, 8)])
        stopper.on_epoch_end(epoch, {"val_loss": 1.0 + epoch})
        kept.on_epoch_end(epoch, {"loss": 1 / 3, "val_loss": 1.0 + epoch})
    return kept, models[0], models[1]


def everything(model):
    return [np.asarray(v) for v in (*model.variables, *model.optimizer.variables)]


def test_restoring_puts_every_variable_back(checkpoint):
    kept, trained, fresh = checkpoint
    names = {v.path.split("/")[-1] for v in (*trained.variables, *trained.optimizer.variables)}
    assert {"kernel", "moving_mean", "iteration", "seed_generator_state"} <= names
    stopper = keras.callbacks.EarlyStopping("val_loss", patience=3, restore_best_weights=True)
    again = Checkpoint(kept.path, stopper, "signature")
    again.restore(fresh)
    for one, two in zip(everything(trained), everything(fresh), strict=True):
        np.testing.assert_array_equal(one, two)
    stopper.set_model(fresh)
    stopper.on_train_begin()
    again.on_train_begin()
    assert (again.epochs_done, again.stopped) == (2, False)
    assert again.record == [{"loss": 1 / 3, "val_loss": 1.0}, {"loss": 1 / 3, "val_loss": 2.0}]
    assert (stopper.wait, stopper.best, stopper.best_epoch) == (1, 1.0, 0)
    for one, two in zip(stopper.best_weights, kept.stopper.best_weights, strict=True):
        np.testing.assert_array_equal(one, two)
    assert again.seconds == kept.seconds > 0


@pytest.mark.slow
def test_a_damaged_state_is_ignored_wherever_it_is_damaged(checkpoint, rng):
    kept, _, fresh = checkpoint
    whole, before = kept.path.read_bytes(), everything(fresh)
    other = kept.path.with_name("other")
    np.save(other.with_suffix(".npy"), np.zeros(3))
    with zipfile.ZipFile(other, "w") as file:
        file.writestr("meta.npy", b"no array")
    damaged = [b"", b"text", other.read_bytes(), other.with_suffix(".npy").read_bytes()]
    damaged += [whole[:n] for n in rng.integers(1, len(whole), 40)]
    for at in [
        *range(60),
        *range(len(whole) - 60, len(whole)),
        *rng.integers(0, len(whole), 99),
    ]:
        damaged.append(whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :])
    ignored = 0
    for content in damaged:
        kept.path.write_bytes(content)
        again = Checkpoint(kept.path, kept.stopper, "signature")
        again.restore(fresh)
        if not again.epochs_done:
            ignored += 1
            for one, two in zip(before, everything(fresh), strict=True):
                np.testing.assert_array_equal(one, two)
        else:  # A flipped byte of a date or the like: everything is there, and as it was.
            for one, two in zip(everything(kept.model), everything(fresh), strict=True):
                np.testing.assert_array_equal(one, two)
            for variable, value in zip(
                (*fresh.variables, *fresh.optimizer.variables), before, strict=True
            ):
                variable.assign(value)
    assert ignored > 150


def test_a_state_of_another_run_or_none_is_ignored(checkpoint):
    kept, _, fresh = checkpoint
    before = everything(fresh)
    for path, signature in ((kept.path, "another"), (kept.path.with_name("none"), "signature")):
        again = Checkpoint(path, kept.stopper, signature)
        again.restore(fresh)
        assert (again.epochs_done, again.record, again.stopped) == (0, [], False)
    for one, two in zip(before, everything(fresh), strict=True):
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("dtype", ["float32", "mixed_bfloat16", "mixed_float16"])
def test_all_variables_exist_before_the_first_step(dtype):
    """What is made later could not be restored."""
    model = build_model("speck", input_shape=(SIZE, SIZE, 1), dtype=dtype)
    _compile(model, RECIPE, classes=4, steps=20)
    before = [v.path for v in (*model.variables, *model.optimizer.variables)]
    model.train_on_batch(np.ones((4, SIZE, SIZE, 1)), np.eye(4, dtype=np.float32))
    assert [v.path for v in (*model.variables, *model.optimizer.variables)] == before


# --- finished runs ---


def test_a_finished_run_is_returned_as_it_is(unbroken, epochs_run):
    before = unbroken.path.read_bytes()
    again = run(unbroken.path.parent)
    assert epochs_run == []
    assert again.card == unbroken.card
    assert again.path == unbroken.path
    assert unbroken.path.read_bytes() == before
    assert_same_run(again, unbroken)


def copy_of(trained, folder):
    for path in (trained.path, trained.path.with_suffix(".json")):
        (folder / path.name).write_bytes(path.read_bytes())
    return folder / trained.path.name


@pytest.mark.slow
def test_without_resume_a_finished_run_is_trained_again(unbroken, tmp_path, epochs_run):
    copy_of(unbroken, tmp_path)
    again = run(tmp_path, resume=False)
    assert epochs_run == [0, 1, 2, 3]
    assert_same_run(again, unbroken)


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["model", "card", "no model"])
def test_a_damaged_result_is_trained_again(unbroken, tmp_path, epochs_run, damage):
    path = copy_of(unbroken, tmp_path)
    if damage == "model":
        path.write_bytes(path.read_bytes()[:-9])
    elif damage == "card":
        path.with_suffix(".json").write_text("{")
    else:
        path.unlink()
    run(tmp_path)
    assert epochs_run == [0, 1, 2, 3]
    load_model(path)


def test_what_determines_a_run_is_in_its_signature(unbroken, tmp_path, monkeypatch):
    """A changed recipe, seed, split, slice, label or builder is another run."""

    class ReachedTraining(Exception):
        pass

    def reach(*arguments, **options):
        raise ReachedTraining

    monkeypatch.setattr(mri.training.loop, "_compile", reach)
    copy_of(unbroken, tmp_path)
    scans, split = make_scans(), make_split()
    changed = Scans(scans.images.copy(), scans.labels.copy(), scans.class_names, scans.rejected)
    changed.images[5, 5, 5] ^= 1
    relabelled = Scans(scans.images, scans.labels.copy(), scans.class_names, scans.rejected)
    relabelled.labels[5] = (relabelled.labels[5] + 1) % 4
    plain = ("speck", scans, split)
    same = {"recipe": RECIPE, "folder": tmp_path, "name": "m"}
    train(*plain, **same)
    for arguments, options in [
        (plain, {"seed": 1}),
        (("speck", changed, split), {}),
        (("speck", relabelled, split), {}),
        (("speck", scans, replace(split, validation=split.validation[:-1])), {}),
        (("speck", scans, replace(split, test=split.test[:-1])), {}),
        (("speck", scans, replace(split, train=split.train[::-1])), {}),
        (("steady", scans, split), {}),
        *((plain, {"recipe": replace(RECIPE, **change)}) for change in CHANGES),
    ]:
        with pytest.raises(ReachedTraining):
            train(*arguments, **same | options | {"replace": True})

    edited = {"layers": layers}
    exec("def speck(x, classes):\n    return layers.Dense(classes)(layers.Flatten()(x))", edited)
    monkeypatch.setitem(_BUILDERS, "speck", edited["speck"])
    with pytest.raises(ReachedTraining):
        train(*plain, **same, replace=True)


CHANGES = [
    {"epochs": 5},
    {"batch_size": 9},
    {"learning_rate": 0.03},
    {"weight_decay": 0.1},
    {"label_smoothing": 0.0},
    {"balance": "none"},
    {"augment": False},
    {"monitor": "val_loss"},
    {"patience": 2},
    {"dtype": "mixed_bfloat16"},
]


# --- the choice ---


def validation(trained, scans=None):
    """Labels and logits of the validation part, from the saved file."""
    scans, rows = scans or make_scans(), make_split().validation
    return scans.labels[rows], predict_logits(load_model(trained.path), scans.images[rows])


def test_the_saved_model_is_the_first_best_epoch(unbroken):
    scores = unbroken.history["val_balanced_accuracy"]
    assert len(scores) == 4
    assert len(set(scores)) > 1
    assert unbroken.best_epoch == int(np.argmax(scores))
    labels, logits = validation(unbroken)
    found = balanced_accuracy_score(labels, logits.argmax(1))
    assert found == pytest.approx(scores[unbroken.best_epoch], abs=1e-6)
    accuracy = (labels == logits.argmax(1)).mean()
    assert accuracy == pytest.approx(unbroken.history["val_accuracy"][unbroken.best_epoch])
    assert unbroken.card["validation"]["balanced_accuracy"] == pytest.approx(found)
    assert unbroken.card["validation"]["accuracy"] == pytest.approx(accuracy)
    assert unbroken.card["temperature"] == pytest.approx(fit_temperature(labels, logits))
    np.testing.assert_array_equal(logits, validation(unbroken)[1])


@pytest.mark.slow
def test_by_default_the_last_epoch_is_kept(unbroken, tmp_path, monkeypatch):
    """The choice of epoch changes no step: the loss is that of the run which keeps the best one."""
    last = replace(RECIPE, monitor="last")
    whole = run(tmp_path / "whole", recipe=last)
    assert whole.best_epoch == 3
    assert whole.history == unbroken.history
    labels, logits = validation(whole)
    found = balanced_accuracy_score(labels, logits.argmax(1))
    assert found == pytest.approx(whole.history["val_balanced_accuracy"][-1], abs=1e-6)
    assert unbroken.best_epoch == 2  # So these are not the weights that are kept elsewhere.
    kernels = whole.model.get_weights()[0], unbroken.model.get_weights()[0]
    assert not np.array_equal(*kernels)
    interrupt(monkeypatch, tmp_path / "killed", (2, 0), recipe=last)
    assert_same_run(run(tmp_path / "killed", recipe=last), whole)


@pytest.mark.slow
def test_by_loss_the_saved_model_is_the_epoch_of_least_loss(tmp_path):
    """Of diagnoses that do not belong to the slices, the better one learns the worse one names."""
    scans, recipe = make_scans(), replace(RECIPE, epochs=8, monitor="val_loss", label_smoothing=0)
    rows = make_split().validation
    scans.labels[rows] = (scans.labels[rows] + 1) % 4
    trained = train(
        "flat", scans, make_split(), recipe=recipe, name="m", folder=tmp_path, verbose=0
    )
    losses = trained.history["val_loss"]
    assert trained.best_epoch == int(np.argmin(losses)) < 7
    labels, logits = validation(trained, scans)
    probabilities = np.exp(logits - np.logaddexp.reduce(logits.astype(float), 1, keepdims=True))
    assert log_loss(labels, probabilities, labels=range(4)) == pytest.approx(
        losses[trained.best_epoch], rel=1e-4
    )


@pytest.mark.parametrize("absent", [False, True])
def test_balanced_accuracy_equals_scikit_learn(rng, absent):
    metric = BalancedAccuracy(4)
    labels = rng.integers(0, 3 if absent else 4, 53)
    logits = rng.normal(size=(53, 4))
    logits[:, 3] -= 9 * absent  # An absent class that is guessed makes scikit-learn warn.
    for start in (0, 20, 21):
        stop = {0: 20, 20: 21, 21: 53}[start]
        metric.update_state(
            np.eye(4, dtype=np.float32)[labels[start:stop]],
            logits[start:stop],
            sample_weight=rng.uniform(size=stop - start),
        )
        expected = balanced_accuracy_score(labels[:stop], logits[:stop].argmax(1))
        assert float(metric.result()) == pytest.approx(expected, abs=1e-6)
    metric.reset_state()
    assert float(metric.result()) == 0


# --- the batches ---


def batches(n=50, balanced=False, seed=0, epoch=0, labels=None, **options):
    labels = np.arange(n) % 4 if labels is None else labels
    images = np.arange(len(labels), dtype=np.uint8)[:, None, None] * np.ones((1, 2, 3), np.uint8)
    options = {"classes": 4, "batch_size": 8} | options
    return Batches(images, labels, balanced=balanced, seed=seed, epoch=epoch, **options)


def rows_of(made):
    return [made[i][0][:, 0, 0, 0].tolist() for i in range(made.num_batches)]


def test_every_slice_is_seen_once_an_epoch_up_to_the_remainder():
    made = batches()
    assert made.num_batches == 6
    left_over = set()
    for _ in range(5):
        made.on_epoch_begin()
        rows = np.concatenate(rows_of(made))
        assert len(set(rows)) == len(rows) == 48
        left_over |= set(range(50)) - set(rows)
    assert len(left_over) > 2, "not the same slices every time"


def test_keras_sees_every_slice_once_an_epoch():
    """What `fit` draws, workers and queues included."""
    made = batches(48)
    model = keras.Sequential([keras.Input((2, 3, 1)), layers.Flatten(), layers.Dense(4)])
    values = []

    class Record(keras.metrics.Metric):
        def update_state(self, y_true, y_pred, sample_weight=None):
            values.append(np.asarray(y_pred)[:, 0])

        def result(self):
            return 0.0

    model.set_weights([np.full((6, 4), 1 / 6), np.zeros(4)])
    model.compile(keras.optimizers.SGD(0.0), "mse", metrics=[Record()], run_eagerly=True)
    model.fit(made, epochs=3, shuffle=False, verbose=0)
    for epoch in range(3):
        expected = np.concatenate(rows_of(batches(48, epoch=epoch)))
        found = np.concatenate(values[6 * epoch : 6 * epoch + 6])
        np.testing.assert_allclose(found, expected, atol=1e-3)
        np.testing.assert_array_equal(np.sort(expected), np.arange(48))


def test_batches_are_images_and_one_hot_labels():
    images, targets = batches()[0]
    assert (images.shape, images.dtype) == ((8, 2, 3, 1), np.uint8)
    assert (targets.shape, targets.dtype) == ((8, 4), np.float32)
    np.testing.assert_array_equal(targets.argmax(1), images[:, 0, 0, 0] % 4)
    np.testing.assert_array_equal(targets.sum(1), 1)


def test_few_slices_make_one_batch():
    made = batches(5)
    assert made.num_batches == 1
    assert sorted(made[0][0][:, 0, 0, 0]) == [0, 1, 2, 3, 4]


def test_the_order_depends_on_seed_and_epoch_alone():
    made = batches(seed=2)
    for epoch in range(4):
        np.random.seed(epoch)  # noqa: NPY002
        made.on_epoch_begin()
        assert rows_of(made) == rows_of(batches(seed=2, epoch=epoch))
    orders = {
        str(rows_of(batches(seed=seed, epoch=epoch))) for seed in range(4) for epoch in range(4)
    }
    assert len(orders) == 16, "seed 1 in epoch 0 is not seed 0 in epoch 1"


def test_balanced_sampling_draws_the_classes_equally():
    labels = np.repeat(np.arange(4), [150, 5, 60, 35])
    made = batches(labels=labels, balanced=True, batch_size=10)
    drawn = []
    for _ in range(80):
        drawn.append(np.concatenate([made[i][1].argmax(1) for i in range(made.num_batches)]))
        made.on_epoch_begin()
    counts = np.bincount(np.concatenate(drawn))
    n = counts.sum()
    assert n == 80 * 250
    np.testing.assert_allclose(counts / n, 0.25, atol=5 * math.sqrt(0.25 * 0.75 / n))


def test_balanced_sampling_of_an_absent_class():
    made = batches(labels=np.array([0, 0, 0, 3] * 30), balanced=True)
    drawn = np.concatenate([made[i][1].argmax(1) for i in range(made.num_batches)])
    assert set(drawn) == {0, 3}


# --- the recipe ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs must be a positive integer. Received: epochs=0"),
        ({"batch_size": -1}, "batch_size must be a positive integer. Received: batch_size=-1"),
        ({"learning_rate": 0.0}, r"learning_rate must be positive. Received: learning_rate=0\.0"),
        (
            {"learning_rate": math.nan},
            "learning_rate must be positive. Received: learning_rate=nan",
        ),
        ({"balance": "both"}, r"balance must be one of .*'sampling'\). Received: balance='both'"),
        ({"hardest": 0.0}, r"hardest must be in \(0, 1\]. Received: hardest=0\.0"),
        ({"hardest": 1.5}, r"hardest must be in \(0, 1\]. Received: hardest=1\.5"),
        ({"monitor": "loss"}, "monitor must be one of .*'val_loss'.*. Received: monitor='loss'"),
    ],
)
def test_recipes_that_cannot_work_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Recipe(**change)


def test_class_weights_equal_scikit_learn():
    labels = make_scans().labels
    expected = compute_class_weight("balanced", classes=np.arange(4), y=labels)
    weights = _class_weights(labels, replace(RECIPE, balance="weights"), 4)
    assert weights == pytest.approx(dict(enumerate(expected)))
    present = labels[labels != 1]
    weights = _class_weights(present, replace(RECIPE, balance="weights"), 4)
    expected = compute_class_weight("balanced", classes=np.array([0, 2, 3]), y=present)
    assert weights == pytest.approx({0: expected[0], 1: 0, 2: expected[1], 3: expected[2]})
    for balance in ("none", "sampling"):
        assert _class_weights(labels, replace(RECIPE, balance=balance), 4) is None


@pytest.mark.slow
@pytest.mark.parametrize("balance", ["none", "weights"])
def test_the_first_loss_is_the_weighted_cross_entropy(tmp_path, balance):
    """At a vanishing learning rate: over the initial weights, with smoothed targets."""
    recipe = Recipe(
        epochs=1,
        batch_size=10,
        learning_rate=1e-12,
        label_smoothing=0.2,
        balance=balance,
        dtype="float32",
    )
    trained = run(tmp_path, "flat", recipe, seed=4)
    keras.utils.set_random_seed(4)
    model = build_model("flat", input_shape=(SIZE, SIZE, 1))
    scans, rows = make_scans(), make_split().train
    labels = scans.labels[rows]
    logits = predict_logits(model, scans.images[rows]).astype(float)
    log_p = logits - np.logaddexp.reduce(logits, 1, keepdims=True)
    losses = -(0.8 * log_p[np.arange(60), labels] + 0.2 * log_p.mean(1))
    counts = np.bincount(labels)
    weights = 60 / (4 * counts[labels]) if balance == "weights" else np.ones(60)
    assert trained.history["loss"][0] == pytest.approx((weights * losses).mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("n", "share", "kept"), [(10, 0.2, 2), (32, 0.2, 6), (3, 0.2, 1), (8, 1.0, 8)]
)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_hard_examples_are_the_mean_over_the_largest_losses(rng, n, share, kept, smoothing):
    """By sorting; and the others get no gradient at all."""
    logits, labels = rng.normal(0, 2, (n, 4)), rng.integers(0, 4, n)
    log_p = logits - np.logaddexp.reduce(logits, 1, keepdims=True)
    losses = -(1 - smoothing) * log_p[np.arange(n), labels] - smoothing * log_p.mean(1)
    loss = HardExamples(share, from_logits=True, label_smoothing=smoothing)
    x = tf.constant(logits, tf.float32)
    with tf.GradientTape() as tape:
        tape.watch(x)
        found = loss(np.eye(4, dtype=np.float32)[labels], x)
    assert float(found) == pytest.approx(np.sort(losses)[-kept:].mean(), rel=1e-5)
    touched = np.flatnonzero(np.any(tape.gradient(found, x), axis=1))
    assert set(touched) == set(np.argsort(losses)[-kept:])


def test_hard_examples_of_equal_losses_are_as_many():
    loss = HardExamples(0.25, from_logits=True)
    assert float(loss(np.eye(4, dtype=np.float32), np.zeros((4, 4)))) == pytest.approx(np.log(4))


@pytest.mark.parametrize("steps", [50, 207])
def test_the_learning_rate_warms_up_linearly_and_falls_as_a_cosine(steps):
    model = build_model("flat", input_shape=(SIZE, SIZE, 1))
    _compile(model, RECIPE, classes=4, steps=steps)
    rate = [float(model.optimizer._learning_rate(step)) for step in range(steps + 1)]
    warm, peak = steps // 10, RECIPE.learning_rate
    expected = [
        peak * step / warm
        if step < warm
        else peak * (1 + math.cos(math.pi * (step - warm) / (steps - warm))) / 2
        for step in range(steps + 1)
    ]
    np.testing.assert_allclose(rate, expected, atol=1e-7)
    assert rate[0] == 0
    assert rate[warm] == pytest.approx(peak)
    assert rate[-1] == pytest.approx(0, abs=1e-8)


def test_a_run_takes_the_steps_that_the_schedule_was_made_for(tmp_path, monkeypatch):
    planned, models = [], []

    def spy(model, recipe, *, classes, steps):
        planned.append(steps)
        models.append(model)
        _compile(model, recipe, classes=classes, steps=steps)

    monkeypatch.setattr(mri.training.loop, "_compile", spy)
    run(tmp_path, "flat", replace(RECIPE, epochs=2, batch_size=7, augment=False))
    assert planned == [2 * (60 // 7)]
    assert int(models[0].optimizer.iterations) == planned[0]


def test_weights_decay_but_biases_and_normalisation_do_not():
    model = build_model("speck", input_shape=(SIZE, SIZE, 1))
    _compile(model, replace(RECIPE, weight_decay=0.5), classes=4, steps=10)
    assert model.optimizer.weight_decay == 0.5
    decays = {v.path: model.optimizer._use_weight_decay(v) for v in model.trainable_variables}
    assert set(decays.values()) == {True, False}
    assert all(decay is path.endswith("kernel") for path, decay in decays.items())


def test_a_loss_that_is_not_finite_raises(tmp_path):
    recipe = Recipe(epochs=3, batch_size=8, learning_rate=1e38, dtype="float32")
    with pytest.raises(RuntimeError, match="NaN or Inf loss encountered"):
        run(tmp_path, "flat", recipe)
    assert not (tmp_path / "m.keras").exists()


class Last(keras.callbacks.Callback):
    """Spoils the weights behind the last loss, as a last step that is too long does."""

    def on_train_batch_end(self, batch, logs=None):
        self.model.set_weights([np.full_like(w, np.nan) for w in self.model.get_weights()])


def test_a_last_step_that_diverges_is_named(tmp_path):
    recipe = Recipe(epochs=1, batch_size=1000, learning_rate=0.5, dtype="float32")
    with pytest.raises(RuntimeError, match=r"answers NaN. Lower the learning rate; it is 0.5 now"):
        run(tmp_path, "flat", recipe, callbacks=[Last()])
    assert not (tmp_path / "m.keras").exists()


class Poison(keras.callbacks.Callback):
    """Spoils the weights in the third epoch, as a diverging run does."""

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == 2:
            self.model.set_weights([np.full_like(w, np.nan) for w in self.model.get_weights()])


@pytest.mark.slow
def test_a_run_that_diverges_keeps_what_was_good(unbroken, tmp_path):
    """Two whole epochs, from which the same call goes on to the result of an unspoilt run."""
    with pytest.raises(RuntimeError, match="NaN or Inf loss encountered") as caught:
        run(tmp_path, callbacks=[Poison()])
    assert caught.value.__notes__ == [
        "Lower the learning rate; it is 0.02 now.",
        f"Kept in {tmp_path / '.m.state.npz'}: 2 finished epochs. Repeat the same call to "
        "continue.",
    ]
    assert [path.name for path in tmp_path.iterdir()] == [".m.state.npz"]
    with np.load(tmp_path / ".m.state.npz") as state:
        assert all(np.isfinite(state[name]).all() for name in state if name.startswith("b"))
    assert_same_run(run(tmp_path), unbroken)


class Draws(keras.callbacks.Callback):
    """Watches, and meddles with the global random states."""

    epochs = 0

    def on_epoch_begin(self, epoch, logs=None):
        keras.utils.set_random_seed(epoch + 77)
        self.epochs += 1

    def on_train_batch_end(self, batch, logs=None):
        np.random.default_rng().normal()
        tf.random.normal((3,))


def test_callbacks_are_called_and_change_nothing(unbroken, tmp_path):
    pytest.importorskip("tensorboard")
    watcher = Draws()
    curves = keras.callbacks.TensorBoard(tmp_path / "curves")
    assert_same_run(run(tmp_path, callbacks=[watcher, curves]), unbroken)
    assert watcher.epochs == RECIPE.epochs
    assert list((tmp_path / "curves/train").glob("events.*"))
    assert list((tmp_path / "curves/validation").glob("events.*"))


@pytest.mark.filterwarnings("ignore")
def test_mlflow_follows_a_run_through_its_own_callback(unbroken, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    mlflow = pytest.importorskip("mlflow")
    mlflow.set_tracking_uri((tmp_path / "mlruns").as_uri())
    with mlflow.start_run() as started:
        result = run(tmp_path, callbacks=[mlflow.keras.MlflowCallback()])
    assert_same_run(result, unbroken)
    found = mlflow.get_run(started.info.run_id).data.metrics
    last = {key: values[-1] for key, values in result.history.items()}
    assert last.keys() <= found.keys()
    for key, value in last.items():
        np.testing.assert_allclose(found[key], value, rtol=1e-5)


def test_parts_without_slices_are_refused(tmp_path):
    empty = np.array([], np.int64)
    for part, counts in (("train", "0, 40"), ("validation", "60, 0")):
        split = replace(make_split(), **{part: empty})
        message = rf"must not be empty. Received: slices=\({counts}\)"
        with pytest.raises(ValueError, match=message):
            train("flat", make_scans(), split, folder=tmp_path)


def test_an_unknown_builder_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no model of that name.*name='nobody'"):
        run(tmp_path, "nobody")
    assert list(tmp_path.iterdir()) == []


# --- the card ---


def test_the_card_says_all(unbroken):
    scans, split, card = make_scans(), make_split(), unbroken.card
    assert card == read_card(unbroken.path)
    assert card == json.loads(unbroken.path.with_suffix(".json").read_text())
    assert card["sha256"] == hashlib.sha256(unbroken.path.read_bytes()).hexdigest()
    assert card["builder"] == "speck"
    assert Recipe(**card["recipe"]) == RECIPE
    assert card["seed"] == 0
    assert card["data"] == scans.fingerprint()
    assert card["synthetic"] is True
    assert tuple(card["class_names"]) == scans.class_names
    rows = card["split"].pop("rows_sha256")
    assert card["split"] == {
        "protocol": "subject",
        "fold": 2,
        "folds": 6,
        "seed": 7,
        "slices": [60, 40, 20],
    }
    card["split"]["rows_sha256"] = rows
    assert card["test_rows"] == split.test.tolist()
    assert card["parameters"] == unbroken.model.count_params()
    assert set(card["history"]) == {
        *("loss", "accuracy", "balanced_accuracy"),
        *("val_loss", "val_accuracy", "val_balanced_accuracy"),
    }
    assert all(len(values) == 4 for values in card["history"].values())
    assert card["versions"] == {
        "python": sys.version.split()[0],
        "keras": keras.__version__,
        "tensorflow": __import__("tensorflow").__version__,
        "numpy": np.__version__,
    }
    assert card["seconds"] > 0


def test_the_default_name_says_builder_and_protocol(tmp_path):
    recipe = Recipe(epochs=1, batch_size=8)
    trained = run(tmp_path / "new", "flat", recipe, name=None)
    assert trained.path == tmp_path / "new" / "flat-subject.keras"
    assert trained.card["recipe"]["dtype"] == native_dtype() in ("float32", "mixed_bfloat16")


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("flags : sse avx512f avx512_bf16 fma", "mixed_bfloat16"),
        ("flags : amx_bf16", "mixed_bfloat16"),
        ("flags : sse avx2", "float32"),
        (None, "float32"),
    ],
)
def test_the_native_dtype_follows_the_processor(monkeypatch, flags, expected):
    def read_text(self, **options):
        if flags is None:
            raise FileNotFoundError
        return flags

    monkeypatch.setattr(mri._keras.tf.config, "list_physical_devices", lambda kind: [])
    monkeypatch.setattr(mri.training.recipe.Path, "read_text", read_text)
    assert native_dtype() == expected


# --- the command line ---


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:fewer subjects than the 5 folds")
@pytest.mark.parametrize("protocol", ["subject", "image"])
def test_the_command_line_trains_on_what_it_finds(tmp_path, monkeypatch, capsys, protocol):
    from mri.data.phantom import write_phantom

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MRI_DATA", str(write_phantom("data", subjects=10, slices=12)))
    options = ["--protocol", protocol, "--epochs", "1", "--batch-size", "20", "--seed", "3"]
    assert main(["train", "flat", *options]) == 0
    card = read_card(f"models/flat-{protocol}.keras")
    assert (card["seed"], card["recipe"]["epochs"], card["recipe"]["batch_size"]) == (3, 1, 20)
    assert card["split"]["protocol"] == protocol
    assert card["synthetic"] is True
    tested = card["test_rows"]
    if protocol == "image":
        assert tested == list(range(sum(card["split"]["slices"][:2]), 120))
    assert f"models/flat-{protocol}.keras: validation" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:fewer subjects than the 5 folds")
def test_the_command_line_takes_a_recipe_by_name(tmp_path, monkeypatch):
    from mri.data.phantom import write_phantom

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MRI_DATA", str(write_phantom("data", subjects=10, slices=12)))
    assert main(["train", "flat", "--recipe", "hard_mining_64", "--epochs", "1"]) == 0
    assert not list(tmp_path.rglob("events.*"))
    recipe = read_card("models/flat_hard_mining_64-subject.keras")["recipe"]
    assert (recipe["hardest"], recipe["batch_size"], recipe["epochs"]) == (0.2, 64, 1)
    assert main(["train", "flat", "--recipe", "none_such"]) == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:fewer subjects than the 5 folds")
def test_the_command_line_writes_curves_for_tensorboard(tmp_path, monkeypatch, capsys):
    from mri.data.phantom import write_phantom

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MRI_DATA", str(write_phantom("data", subjects=10, slices=12)))
    monkeypatch.setattr(mri.__main__, "find_spec", lambda name: None)
    assert main(["train", "flat", "--tensorboard", "curves"]) == 1
    assert "pip install tensorboard" in capsys.readouterr().err
    monkeypatch.undo()
    pytest.importorskip("tensorboard")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MRI_DATA", "data")
    assert main(["train", "flat", "--epochs", "1", "--tensorboard", "curves"]) == 0
    assert list((tmp_path / "curves/flat-subject/validation").glob("events.*"))


if __name__ == "__main__":
    die(*sys.argv[1:])


@pytest.mark.slow
def test_a_network_of_real_slices_is_not_overwritten_by_one_of_phantoms(tmp_path):
    done = run(tmp_path)
    save_model(done.model, done.path, done.card | {"synthetic": False})
    before = done.path.read_bytes()
    with pytest.raises(ValueError, match="not overwritten by one of phantoms"):
        run(tmp_path, recipe=replace(RECIPE, epochs=1))
    assert done.path.read_bytes() == before


def test_a_slice_on_two_sides_of_a_split_is_refused(tmp_path):
    split = replace(make_split(), validation=make_split().train[-5:])
    with pytest.raises(DataLeakageError, match="5 rows occur twice"):
        train("speck", make_scans(), split, recipe=RECIPE, folder=tmp_path)


def test_a_finished_run_keeps_its_arithmetic_on_another_machine(tmp_path, monkeypatch):
    recipe = replace(RECIPE, dtype="auto", epochs=1)
    monkeypatch.setattr(mri.training.loop, "native_dtype", lambda: "mixed_bfloat16")
    done = run(tmp_path, recipe=recipe)
    monkeypatch.setattr(mri.training.loop, "native_dtype", lambda: "float32")
    monkeypatch.setattr(keras.Model, "fit", lambda *a, **k: pytest.fail("trained again"))
    again = run(tmp_path, recipe=recipe)
    assert again.card == done.card and again.card["recipe"]["dtype"] == "mixed_bfloat16"


@pytest.mark.slow
def test_another_run_of_that_name_is_not_lost_unasked(tmp_path, capsys):
    short = replace(RECIPE, epochs=1)
    first = run(tmp_path, recipe=short, verbose=2)
    assert f"{first.path}: trained anew" in capsys.readouterr().out
    kept = first.path.read_bytes()
    run(tmp_path, recipe=short, verbose=2)
    assert capsys.readouterr().out == f"{first.path}: trained before, loaded\n"
    other = replace(short, learning_rate=0.01)
    with pytest.raises(ValueError, match=r"replace=True.*learning_rate='0.02 before, now 0.01'"):
        run(tmp_path, recipe=other, replace=False)
    assert first.path.read_bytes() == kept
    run(tmp_path, recipe=other, verbose=2)
    assert "another run is replaced, of other: recipe_learning_rate" in capsys.readouterr().out
    assert first.path.read_bytes() != kept
    assert run(tmp_path, recipe=other, replace=False).card["recipe"]["learning_rate"] == 0.01


@pytest.mark.parametrize(
    ("gpus", "told", "expected"),
    [
        (["a GPU"], (9, 0), "mixed_bfloat16"),
        (["a GPU"], (7, 5), "float32"),
        (["a GPU"], None, "float32"),
        ([], "flags: avx512_bf16", "mixed_bfloat16"),
        ([], "flags: avx512f", "float32"),
        ([], OSError("no such file"), "float32"),
    ],
)
def test_the_fastest_arithmetic_is_that_of_the_machine(gpus, told, expected, monkeypatch):
    def read_text(path, **options):
        if isinstance(told, OSError):
            raise told
        return told

    found = SimpleNamespace(
        list_physical_devices=lambda kind: gpus,
        experimental=SimpleNamespace(get_device_details=lambda gpu: {"compute_capability": told}),
    )
    monkeypatch.setattr("mri.training.recipe.tf", SimpleNamespace(config=found))
    monkeypatch.setattr("mri.training.recipe.Path.read_text", read_text)
    assert native_dtype() == expected
