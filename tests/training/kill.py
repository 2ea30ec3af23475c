"""Kill processes at random moments and look at what they leave: ``kill.py train 50``.

TensorFlow is imported once, then every life begins with a fork, so that it may be short.
"""

import hashlib
import json
import os
import random
import signal
import sys
import tempfile
import time
import warnings
import zipfile
from pathlib import Path

import numpy as np

sys.path[:0] = [str(folder) for folder in Path(__file__).parents[1:3]]


def weights_of(path):
    """SHA-256 of the weights in a model file, which must be whole; its archive holds a date."""
    import h5py

    digest = hashlib.sha256()
    with zipfile.ZipFile(path) as archive, archive.open("model.weights.h5") as packed:
        assert archive.testzip() is None
        with h5py.File(packed) as file:
            values = {}
            file.visititems(
                lambda name, item: (
                    values.update({name: item[()]}) if isinstance(item, h5py.Dataset) else None
                )
            )
    for name in sorted(values):
        digest.update(name.encode() + values[name].tobytes())
    return digest.hexdigest()


def live(work, seconds=None):
    """Do `work` in a fork; kill it after so many seconds. Return whether it has ended itself."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    end = time.monotonic() + (seconds or 300)
    while time.monotonic() < end:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            assert status == 0, f"exit status {status}"
            return True
        time.sleep(0.005)
    assert seconds, "hangs"
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return False


def left_in(folder):
    """Names of files, without a lock's: a kill after the last renaming leaves its empty file."""
    return sorted(name for name in os.listdir(folder) if not name.endswith(".lock"))


def timed(work):
    begin = time.monotonic()
    assert live(work)
    return time.monotonic() - begin


def kill_train(kills, rng, place):
    """Training: the result of an unbroken run, and no finished epoch is trained again."""
    import small_runs as cases
    from mri._keras import keras
    from mri.models.builders import register
    from mri.training.recipe import Recipe

    recipe = Recipe(**(vars(cases.RECIPE) | {"epochs": 12}))
    register(cases.speck)

    class Log(keras.callbacks.Callback):
        """Runs after the checkpoint, so that what it calls done is kept."""

        def __init__(self, path):
            super().__init__()
            self.path = path

        def note(self, *words):
            with self.path.open("a") as file:
                print(*words, file=file, flush=True)

        def on_epoch_begin(self, epoch, logs=None):
            self.note("begin", epoch)

        def on_epoch_end(self, epoch, logs=None):
            self.note("done", epoch)

    def work(folder, log):
        cases.run(folder, recipe=recipe, callbacks=[Log(log)])

    def result(folder):
        assert left_in(folder) == ["m.json", "m.keras"]
        card = json.loads((folder / "m.json").read_text())
        file = (folder / "m.keras").read_bytes()
        assert hashlib.sha256(file).hexdigest() == card["sha256"]
        for varying in ("sha256", "seconds"):
            del card[varying]
        return card, weights_of(folder / "m.keras")

    length = timed(lambda: work(place / "whole", place / "whole.log"))
    whole, killed, runs = result(place / "whole"), 0, 0
    while killed < kills:
        folder, log = place / f"run{runs}", place / f"run{runs}.log"
        while not live(lambda: work(folder, log), rng.uniform(0, length)):  # noqa: B023
            killed += 1
            if killed == kills:
                assert live(lambda: work(folder, log))  # noqa: B023
                break
        assert result(folder) == whole
        done = set()
        for word, epoch in map(str.split, log.read_text().splitlines()):
            assert epoch not in done, f"epoch {epoch} was trained again"
            done |= {epoch} if word == "done" else set()
        runs += 1
    return {"kills": killed, "runs": runs}


def kill_sweep(kills, rng, place):
    """A sweep: the logits of an unbroken one, and what was finished stays as it is."""
    import pyarrow.parquet as pq

    import small_runs as cases
    from mri.models.builders import register
    from mri.training.folds import cross_validate
    from mri.training.recipe import Recipe

    register(cases.flat)
    register(cases.steady)
    scans = cases.make_scans()
    groups = np.zeros(len(scans), int)
    for label in range(4):  # Two people a class and more, ten slices each at most.
        rows = np.flatnonzero(scans.labels == label)
        groups[rows] = 100 * label + np.arange(len(rows)) * max(2, len(rows) // 10) // len(rows)
    recipe = Recipe(epochs=2, batch_size=8, dtype="float32")

    def work(folder):
        found = cross_validate(
            ["flat", "steady"], scans, groups, recipe=recipe, folds=2, folder=folder
        )
        found.save(folder / "all")

    def finished(folder):
        """Identity of every finished network and of its logits."""
        found = {}
        for card in folder.glob("[!.]*.json"):
            for path in (card, card.with_suffix(".keras"), card.with_suffix(".cell.parquet")):
                if path.exists():
                    found[path.name] = (path.stat().st_ino, path.stat().st_mtime_ns)
        return found

    length = timed(lambda: work(place / "whole"))
    whole, killed, runs = pq.read_table(place / "whole/all"), 0, 0
    names = left_in(place / "whole")
    while killed < kills:
        folder, before = place / f"run{runs}", {}
        # A resumed sweep is shorter, so most would end before a later moment.
        while not live(lambda: work(folder), rng.uniform(0, 0.6 * length)):  # noqa: B023
            killed += 1
            after = finished(folder)
            assert {name: after[name] for name in before} == before
            before = after
            if killed == kills:
                assert live(lambda: work(folder))  # noqa: B023
                break
        assert {name: finished(folder)[name] for name in before} == before
        assert pq.read_table(folder / "all").equals(whole)
        assert left_in(folder) == names
        runs += 1
    return {"kills": killed, "runs": runs}


def kill_save(kills, rng, place):
    """Two networks saved in turn under one name: at any moment the file is one of them, whole."""
    import small_runs as cases
    from mri._files import alone
    from mri._keras import keras
    from mri.models.builders import build_model, register
    from mri.models.files import save_model

    register(cases.flat)
    path, begun = place / "m.keras", place / "begun"

    def networks():
        models = []
        for seed in (0, 1):
            keras.utils.set_random_seed(seed)
            models.append(build_model("flat", input_shape=(96, 96, 1)))
        return models

    def keep():
        for seed, model in enumerate(networks()):
            model.save(place / f"{seed}.keras")

    def save_forever():
        models = networks()
        while True:
            for seed, model in enumerate(models):
                save_model(model, path, {"seed": seed})
            begun.touch()

    assert live(keep)
    known = [weights_of(place / f"{seed}.keras") for seed in (0, 1)]
    assert known[0] != known[1]
    between = left = 0
    for _ in range(kills):
        begun.unlink(missing_ok=True)
        child = os.fork()
        if child == 0:
            save_forever()
        while not begun.exists():
            time.sleep(0.005)
        time.sleep(rng.uniform(0, 0.3))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        card = json.loads(path.with_suffix(".json").read_text())
        same = card["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        assert weights_of(path) in known
        if same:
            assert weights_of(path) == known[card["seed"]]
        between += not same
        left += any(".tmp" in name for name in os.listdir(place))
        with alone(path):
            assert not [name for name in os.listdir(place) if ".tmp" in name]
    assert left_in(place) == ["0.keras", "1.keras", "begun", "m.json", "m.keras"]
    return {"kills": kills, "between the two renamings": between, "half-written, removed": left}


def main():
    what, kills = sys.argv[1], int(sys.argv[2])
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as place:
        print(json.dumps(globals()[f"kill_{what}"](kills, random.Random(0), Path(place))))


if __name__ == "__main__":
    main()
