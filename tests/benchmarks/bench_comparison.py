"""A comparison of sixteen models again after one more came, beside all of it anew.

And all of it anew in the process for models of strangers, beside all of it in the caller's.

The models are every registered network, with random weights, on the slices of fold 0; a network
costs what it costs, whatever its weights.
"""

import tempfile
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

from harness import folder_of_slices, interleaved, main, versus

from mri.data.scans import read_scans
from mri.evaluation.comparison import compare
from mri.models import builders as models
from mri.models.child import CHILD, run_here
from mri.models.files import save_model
from mri.subjects.recovery import recover_subjects
from mri.subjects.splits import subject_split

ADDED = "baseline"


def measure(quick: bool) -> list[dict]:
    models.DOWNLOAD = False
    source = folder_of_slices()
    scans = read_scans(source, split="train") + read_scans(source, split="test")
    groups = recover_subjects(scans.images, scans.labels).groups
    split = subject_split(scans.labels, groups)
    names = ["baseline", "tissue", "compact"] if quick else models.list_models()
    with tempfile.TemporaryDirectory() as folder:
        # The added one stands for any other, so it is one of middling cost; two more make sixteen.
        more = [] if quick else ["compact", "small_5x5"]
        for i, name in enumerate(chain(names, more)):
            path = Path(folder) / f"{name}-{i}.keras"
            save_model(models.build_model(name), path, card(scans, split))
            if name == ADDED:
                added = path.with_suffix(".parquet")

        def full():
            for path in Path(folder).glob("*.parquet"):
                path.unlink()
            CHILD.end()  # Its start counts.
            compare(scans, groups, folder)

        def here():
            trusting = SimpleNamespace(run=run_here, start=lambda: None)
            with mock.patch("mri.evaluation.comparison.CHILD", trusting):
                full()

        def again():
            added.unlink()
            compare(scans, groups, folder)

        runs = {"full": full, "here": here, "again": again}
        seconds = interleaved(runs, 1 if quick else 2)
        n = len(list(Path(folder).glob("*.keras")))
    return [
        versus(
            *(seconds, f"comparison of {n} models, one of them new", "again", "full"),
            "all of them new",
            at_most=1 / 8,
        ),
        versus(
            *(seconds, f"comparison of {n} new models in a process of their own", "full", "here"),
            "in the caller's process",
            at_most=1.1,
        ),
    ]


def card(scans, split):
    return {
        "class_names": list(scans.class_names),
        "data": scans.fingerprint(),
        "split": {"protocol": split.protocol},
        "temperature": 1.0,
        "test_rows": split.test.tolist(),
    }


if __name__ == "__main__":
    main("comparison", measure)
