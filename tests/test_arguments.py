"""Every public function says what is wrong with a call before it begins to work."""

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest

import mri
from mri._arguments import integers, require, row_numbers
from mri._keras import keras
from mri.data import find_data, iter_batches, write_phantom
from mri.evaluation import pairwise, pick_examples
from mri.gradcam import ground_truth
from mri.models import describe
from mri.subjects import checklist
from mri.training import read_crossval

NO_CALL = {"CLASS_NAMES", "DataError", "DataLeakageError", "list_models"}
DRAWING = {"plots"}


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """What right calls are made of: 8 subjects of 2 slices, a network of one convolution."""
    phantoms = mri.make_phantoms(8, 2, size=64)
    layers = [
        *(keras.Input((64, 64, 1)), keras.layers.Conv2D(2, 3, name="last_conv")),
        *(keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(4)),
    ]
    rows, folder = np.arange(16), tmp_path_factory.mktemp("case")
    split = SimpleNamespace(
        protocol="subject", train=rows[:8], validation=rows[8:12], test=rows[12:]
    )
    logits = np.random.default_rng(0).normal(size=(16, 4))
    return SimpleNamespace(
        phantoms=phantoms,
        scans=phantoms.scans,
        images=phantoms.images,
        labels=phantoms.labels,
        groups=phantoms.subjects,
        logits=logits,
        figures=mri.evaluate(phantoms.labels, logits, phantoms.subjects, draws=2),
        model=keras.Sequential(layers),
        split=split,
        folder=folder,
        data=write_phantom(folder / "data", subjects=8, slices=2),
        runs={"one": SimpleNamespace(model=None, card={})},
    )


def beyond(split):
    """A split of more slices than there are."""
    return SimpleNamespace(**{**vars(split), "test": np.array([16])})


def empty(split):
    return SimpleNamespace(**{**vars(split), "train": np.array([], int)})


WRONG = {
    "GradCAM": [
        (lambda c: mri.GradCAM("compact"), r"load_model\(name\) gives. Received: model='compact'"),
        (lambda c: mri.GradCAM(c.model, "hirescam"), r"method=…\). Received: layer='hirescam'"),
        (lambda c: mri.GradCAM(c.model, method="cam"), "Received: method='cam'"),
        (lambda c: mri.GradCAM(c.model, "no_such"), "Received: layer='no_such'"),
        (lambda c: mri.GradCAM(c.model, output=3), "Received: output=3"),
        (lambda c: mri.GradCAM(c.model)(c.images[:, :9]), r"Received: images.shape=\(16, 9, 64\)"),
        (lambda c: mri.GradCAM(c.model)(c.images, 4), "Received: classes=4"),
        (lambda c: mri.GradCAM(c.model)(c.images, [0, 1]), r"Received: classes=\[0, 1\]"),
        (lambda c: mri.GradCAM(c.model)(c.images, batch_size=0), "Received: batch_size=0"),
        (lambda c: mri.GradCAM(c.model)(c.images, "Ill"), "'Non_Demented'.*classes='Ill'"),
    ],
    "Recipe": [
        (lambda c: mri.Recipe(patience=3), "Received: patience=3, monitor='last'"),
        *[
            (
                lambda c, name=name, value=value: mri.Recipe(**{name: value}),
                f"Received: {name}={value!r}",
            )
            for name, value in [
                *[("epochs", 0), ("epochs", 1.5), ("batch_size", 0), ("batch_size", 32.0)],
                *[("patience", 0), ("learning_rate", -1.0), ("weight_decay", -0.1)],
                *[("label_smoothing", 1.0), ("hardest", 0.0), ("balance", "both")],
                *[("monitor", "loss"), ("dtype", "float8"), ("learning_rate", "fast")],
                *[("learning_rate", None), ("epochs", True), ("hardest", "0.5"), ("augment", 1)],
                *[("label_smoothing", float("nan"))],
            ]
        ],
    ],
    "audit": [
        (lambda c: mri.audit(c.scans, c.scans, folds=1), "Received: folds=1"),
        (
            lambda c: mri.audit(c.scans, replace(c.scans, labels=c.labels[:0])),
            r"Received: sizes=\(16, 0\)",
        ),
        (
            lambda c: mri.audit(c.scans, c.scans, subjects=SimpleNamespace(groups=c.groups)),
            r"subjects.groups must be 32 integers. Received: shape=\(16,\)",
        ),
        (lambda c: mri.audit(c.scans, replace(c.scans, synthetic=False)), "synthetic differ"),
    ],
    "build_model": [
        (lambda c: mri.build_model("nobody"), "Received: name='nobody'"),
        (lambda c: mri.build_model("tissue", input_shape=(8, 8)), r"input_shape=\(8, 8\)"),
        (lambda c: mri.build_model("tissue", input_shape=(8, 8, 3)), r"input_shape=\(8, 8, 3\)"),
        (lambda c: mri.build_model("tissue", classes="4"), "Received: classes='4'"),
        (lambda c: mri.build_model("tissue", classes=1), "Received: classes=1"),
        (lambda c: mri.build_model("tissue", dtype="float8"), "Received: dtype='float8'"),
    ],
    "check_heatmaps": [
        (lambda c: mri.check_heatmaps(c.model, c.images[0]), r"Received: shape=\(64, 64\)"),
        (
            lambda c: mri.check_heatmaps(c.model, c.images * 0),
            "must show a brain. Received: empty=",
        ),
        (lambda c: mri.check_heatmaps(c.model, c.images, subjects=[0]), r"Received: shape=\(1,\)"),
        (lambda c: mri.check_heatmaps(c.model, c.images, method="cam"), "Received: method='cam'"),
        (lambda c: mri.check_heatmaps(c.model, c.images, layer="no"), "Received: layer='no'"),
    ],
    "checklist": [
        (
            lambda c: checklist(c.scans, c.split, c.groups[1:]),
            r"Received: shape=\(15,\)",
        ),
        (
            lambda c: checklist(c.scans, beyond(c.split), c.groups),
            r"outside=array\(\[16\]\)",
        ),
        (lambda c: checklist(c.scans, empty(c.split), c.groups), r"sizes=\[0, 4, 4\]"),
    ],
    "compare": [
        (lambda c: mri.compare(by="macro_auc"), "Received: 'macro_auc'"),
        (lambda c: mri.compare(by="val_loss"), "'val_loss' is what the models were selected by"),
        (lambda c: mri.compare("models"), r"a folder is named: compare\(folder=…\)"),
        (lambda c: mri.compare(c.images, c.groups), "Received: scans='ndarray'"),
        (lambda c: mri.compare(c.scans, SimpleNamespace(groups=c.groups)), "give its .groups"),
        (lambda c: mri.compare(c.scans), "belong together. Received only one"),
        (lambda c: mri.compare(c.scans, c.groups[1:]), r"Received: shape=\(15,\)"),
        (lambda c: mri.compare(folder=c.folder / "none"), "none: no .keras file"),
    ],
    "cross_validate": [
        (
            lambda c: mri.cross_validate("nobody", c.scans, c.groups),
            r"Received: names=\['nobody'\]",
        ),
        (lambda c: mri.cross_validate("tissue", c.scans, c.groups, seeds=[]), r"seeds=\[\]"),
        (lambda c: mri.cross_validate("tissue", c.scans, c.groups[1:]), r"shape=\(15,\)"),
        (lambda c: mri.cross_validate("tissue", c.scans, c.groups, folds=1), "Received: folds=1"),
        (lambda c: mri.cross_validate("tissue", c.scans, c.groups, jobs=0), "Received: jobs=0"),
    ],
    "describe": [(lambda c: describe({"seed": 0}), r"Received: missing=\['best_epoch', ")],
    "dict_to_image": [
        (lambda c: mri.dict_to_image({"path": "a.jpg"}), "Received: record="),
        (lambda c: mri.dict_to_image(b"GIF"), "not a JPEG or PNG image"),
        (lambda c: mri.dict_to_image(b"", size=(0, 1)), r"Received: size=\(0, 1\)"),
    ],
    "evaluate": [
        (
            lambda c: mri.evaluate(c.labels, c.model),
            "such as predict_logits gives. Received: logits='Sequential'",
        ),
        (lambda c: mri.evaluate(c.labels[1:], c.logits), r"Received: shape=\(15,\)"),
        (lambda c: mri.evaluate(c.labels + 1, c.logits), r"Received: labels=array\(\["),
        (lambda c: mri.evaluate(c.labels, c.logits[:, :1]), r"Received: shape=\(16, 1\)"),
        (lambda c: mri.evaluate(c.labels, c.logits * np.inf), "must be finite. Received: row="),
        (lambda c: mri.evaluate(c.labels, c.logits, c.labels[1:]), r"Received: shape=\(15,\)"),
        (lambda c: mri.evaluate(c.labels, c.logits, c.groups * 0), "one label. Received: subject="),
        (lambda c: mri.evaluate(c.labels, c.logits, class_names=("a",)), r"class_names=\('a',\)"),
        (lambda c: mri.evaluate(c.labels, c.logits, temperature=0), "Received: temperature=0"),
        (lambda c: mri.evaluate(c.labels, c.logits, draws=0), "Received: draws=0"),
    ],
    "explore": [
        (lambda c: mri.explore({}, c.scans, c.groups, [0]), r"Received: networks=\[\], slices=1"),
        (lambda c: mri.explore({"a": c.model}, c.scans, c.groups, [0]), r"what mri\.train returns"),
        (lambda c: mri.explore(c.runs, c.scans, c.groups[1:], [0]), r"Received: shape=\(15,\)"),
        (lambda c: mri.explore(c.runs, c.scans, c.groups, [16]), r"outside=array\(\[16\]\)"),
    ],
    "find_data": [(lambda c: find_data(3), "os.PathLike object, not int")],
    "ground_truth": [
        (
            lambda c: ground_truth(c.model, c.phantoms, classes=[0, 1]),
            r"classes=array\(\[0, 1",
        ),
        (lambda c: ground_truth(c.model, c.phantoms, classes=4), "Received: classes="),
        (
            lambda c: ground_truth(c.model, c.phantoms, tolerance=-1),
            "Received: tolerance=-1",
        ),
        (
            lambda c: ground_truth(c.model, c.phantoms, layer="no"),
            "Received: layer='no'",
        ),
        (
            lambda c: ground_truth(c.model, c.phantoms, region=np.s_[99:, 99:]),
            r"region must hold pixels of slices \(64, 64\). Received: region=",
        ),
        (
            lambda c: ground_truth(c.model, c.phantoms.take(c.labels == 2)),
            r"No slice has a mask. Received: labels=array\(\[2\]\)",
        ),
    ],
    "image_split": [
        (lambda c: mri.image_split(c.labels, [16]), r"Received: outside=array\(\[16\]\)"),
        (lambda c: mri.image_split(c.labels, [1, 1]), "Received: repeats=1"),
        (lambda c: mri.image_split(c.labels, [0.5]), r"Received: .*dtype\('float64'\)"),
        (lambda c: mri.image_split(c.labels[:, None], [1]), r"Received: shape=\(16, 1\)"),
        (lambda c: mri.image_split(c.labels, np.arange(16)), "Received: most=0"),
    ],
    "iter_batches": [
        (lambda c: iter_batches(c.data, batch_size=0), "Received: batch_size=0"),
        (lambda c: iter_batches(c.data, size=(1, 2, 3)), r"Received: size=\(1, 2, 3\)"),
        (lambda c: iter_batches(c.data, on_error="warn"), "Received: on_error='warn'"),
        (lambda c: iter_batches(c.data, threads=0), "Received: threads=0"),
        (lambda c: iter_batches(c.folder / "none"), "none: no parquet file"),
    ],
    "load_model": [
        (
            lambda c: mri.load_model(c.model),
            "A model must be named: .* Received: model=<Sequential",
        ),
        (lambda c: mri.load_model(None), "A model must be named"),
        (lambda c: mri.load_model(c.folder / "m.h5"), "m.h5: expected a .keras file"),
        (lambda c: mri.load_model(c.folder / "m.keras"), "m.keras: no such model file"),
    ],
    "make_phantoms": [
        (lambda c: mri.make_phantoms(3), "Received: subjects=3"),
        (lambda c: mri.make_phantoms(slices=33), "Received: slices=33"),
        (lambda c: mri.make_phantoms(size=64.0), r"Received: size=64\.0"),
        (lambda c: mri.make_phantoms(seed=-1), "Received: seed=-1"),
    ],
    "pairwise": [
        (lambda c: pairwise({}, metric="macro_auc"), "Received: metric='macro_auc'"),
        (lambda c: pairwise({}, draws=0), "Received: draws=0"),
        (
            lambda c: pairwise({"a": c.figures, "b": c.figures}, unit="person"),
            "Received: unit='person'",
        ),
    ],
    "pick_examples": [
        (
            lambda c: pick_examples(c.labels, c.logits, ("a",)),
            r"class_names=\('a',\)",
        ),
        (lambda c: pick_examples(c.labels[1:], c.logits, "abcd"), r"shape=\(15,\)"),
    ],
    "predict_logits": [
        (
            lambda c: mri.predict_logits(c.images, c.model),
            r"load_model\(name\) gives. Received: model=array",
        ),
        (lambda c: mri.predict_logits(c.model, c.scans), "such as scans.images. Received"),
        (lambda c: mri.predict_logits(c.model, c.images[0]), r"Received: shape=\(64, 64\)"),
        (lambda c: mri.predict_logits(c.model, c.images[:, :9]), r"Received: shape=\(16, 9, 64\)"),
        (lambda c: mri.predict_logits(c.model, c.images[:0]), r"Received: shape=\(0, 64, 64\)"),
        (lambda c: mri.predict_logits(c.model, c.images.astype(str)), r"dtype=dtype\('<U3'\)"),
        (lambda c: mri.predict_logits(c.model, c.images, batch_size=0), "Received: batch_size=0"),
    ],
    "predict_slice": [
        (lambda c: mri.predict_slice(c.model), "a file, files, or pixels .* Received: Sequential"),
        (lambda c: mri.predict_slice(None), "Received: NoneType"),
        (lambda c: mri.predict_slice([c.images[0]]), "Received: list"),
        (lambda c: mri.predict_slice([]), "Received: no slice"),
        (lambda c: mri.predict_slice(c.images[0], model=c.model), "Received: model=<Sequential"),
        (lambda c: mri.predict_slice(c.images[0]), r"Received: \(64, 64\), uint8"),
        (lambda c: mri.predict_slice(c.images[0], model="none"), "no model 'none' in models or"),
        (lambda c: mri.predict_slice(c.folder / "none.png"), "none.png: no such file"),
        (
            lambda c: mri.predict_slice(c.data / "test.parquet", row=-1),
            "has rows 0 to .* Received: row=-1",
        ),
    ],
    "read_crossval": [
        (
            lambda c: read_crossval(c.folder / "none"),
            "none: not a table of logits",
        ),
        (
            lambda c: read_crossval(c.data / "test.parquet"),
            "not a table of logits",
        ),
    ],
    "read_scans": [
        (lambda c: mri.read_scans(c.data, size=128), "Received: size=128"),
        (lambda c: mri.read_scans(c.data, on_error="warn"), "Received: on_error='warn'"),
        (lambda c: mri.read_scans(c.data, threads=0), "Received: threads=0"),
        (lambda c: mri.read_scans([c.folder / "none"]), "none: no such file"),
    ],
    "recover_subjects": [
        (lambda c: mri.recover_subjects(c.images[0]), r"Received: shape=\(64, 64\)"),
        (lambda c: mri.recover_subjects(c.images.astype(str)), r"dtype=dtype\('<U3'\)"),
        (lambda c: mri.recover_subjects(c.images * np.nan), r"Received: slices=array\(\[0, 1, 2"),
        (lambda c: mri.recover_subjects(c.images, c.labels[1:]), r"Received: shape=\(15,\)"),
        (lambda c: mri.recover_subjects(c.images, min_margin=0), "Received: min_margin=0"),
    ],
    "register": [
        (lambda c: mri.register("tissue"), "Received: builder='tissue'"),
        (lambda c: mri.register(type("tissue", (), {})), "a builder named 'tissue' exists"),
    ],
    "subject_split": [
        (lambda c: mri.subject_split(c.labels, c.groups[1:]), r"Received: shape=\(15,\)"),
        (lambda c: mri.subject_split(c.labels / 2, c.groups), r"Received: .*dtype\('float64'\)"),
        (lambda c: mri.subject_split(c.labels, c.groups, fold=5), "Received: fold=5"),
        (lambda c: mri.subject_split(c.labels, c.groups, folds=1), "Received: folds=1"),
        (
            lambda c: mri.subject_split(c.labels, c.groups, folds=9),
            "need at least 9 subjects. Received: subjects=8",
        ),
    ],
    "train": [
        (lambda c: mri.train("nobody", c.scans, c.split), "Received: name='nobody'"),
        (lambda c: mri.train(c.model, c.scans, c.split), "builder must be a name .* builder=<Sequ"),
        (lambda c: mri.train("tissue", c.scans, "subject"), "subject_split .* split='subject'"),
        (lambda c: mri.train("tissue", c.images, c.split), "from mri.read.* scans='ndarray'"),
        (
            lambda c: mri.train("tissue", c.scans, c.split, epochs=3),
            r"in a recipe: recipe=Recipe\(epochs=3\). Received: epochs=3",
        ),
        (lambda c: mri.train("tissue", c.scans, c.split, sed=3), "mri.train. Received: sed=3"),
        (lambda c: mri.train("tissue", c.scans, c.split, recipe="fast"), "recipe='fast'"),
        (lambda c: mri.train("tissue", c.scans, empty(c.split)), r"Received: slices=\(0, 4\)"),
        (lambda c: mri.train("tissue", c.scans, beyond(c.split)), r"outside=array\(\[16\]\)"),
    ],
    "write_phantom": [
        (lambda c: write_phantom(c.folder / "new", subjects=3), "Received: subjects=3"),
        (lambda c: write_phantom(c.folder / "new", slices=0), "Received: slices=0"),
        (lambda c: write_phantom(c.folder / "new", seed=1.0), r"Received: seed=1\.0"),
    ],
}


def test_every_public_function_has_an_entry():
    assert set(mri.__all__) - NO_CALL - DRAWING <= set(WRONG)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        pytest.param(*entry, id=f"{name}-{i}")
        for name, entries in WRONG.items()
        for i, entry in enumerate(entries)
    ],
)
def test_a_wrong_call_is_refused_clearly_and_leaves_nothing(call, message, case, monkeypatch):
    monkeypatch.chdir(case.folder)
    before = sorted(case.folder.rglob("*"))
    with pytest.raises((ValueError, TypeError, FileNotFoundError), match=message):
        call(case)
    assert sorted(case.folder.rglob("*")) == before


def test_a_requirement_names_all_that_was_received():
    require(np.bool(True), "Anything.")
    with pytest.raises(ValueError, match=r"^Two\. Received: a=1, b='x'$"):
        require(False, "Two.", a=1, b="x")


def test_integers_and_rows_come_back_as_arrays_and_nothing_else_does():
    assert integers("labels", [2, 0], 2).tolist() == [2, 0]
    assert row_numbers("rows", (3, 0, 3), 4).tolist() == [3, 0, 3]
    for values in ([1], [[1, 2]], [1.0, 2.0], [True, False], ["1", "2"]):
        with pytest.raises(ValueError, match=r"^labels must be 2 integers\. Received: shape="):
            integers("labels", values, 2)
    with pytest.raises(ValueError, match=r"from 0 to 3. Received: outside=array\(\[-1,  4\]\)"):
        row_numbers("rows", [-1, 4, 3], 4)
