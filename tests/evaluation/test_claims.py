"""Forged cards, logits, labels and rows are refused or called claims; none leads the verified."""

import hashlib
import json
import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mri.data.decode import DataError
from mri.evaluation.comparison import compare
from mri.evaluation.logits import LogitsTable
from mri.models import own
from mri.models.files import read_card
from mri.subjects.splits import image_split, subject_split
from mri.training.loop import train
from mri.training.recipe import Recipe

# Keras' saving and loading.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

SIZE, NAMES = 16, ("Mild_Demented", "Moderate_Demented", "Non_Demented", "Very_Mild_Demented")


@pytest.fixture(scope="module")
def case(tmp_path_factory, striped_scans):
    """A folder with a subject-wise and an image-level network, run once."""
    folder = tmp_path_factory.mktemp("models")
    subjects = np.repeat(np.arange(40), 4)
    scans = striped_scans(subjects, SIZE, NAMES, np.random.default_rng(0))
    recipe = Recipe(epochs=2, batch_size=16, learning_rate=0.01, dtype="float32")
    options = {"recipe": recipe, "folder": folder, "verbose": 0}
    train("compact", scans, subject_split(scans.labels, subjects, folds=4), name="own", **options)
    by_image = image_split(scans.labels, np.arange(0, len(scans), 5))
    train("compact", scans, by_image, name="leaky", **options)
    found = compare(scans, subjects, folder)
    assert found.table["note"].str.startswith("verified").all()
    return folder, scans, subjects


class Forgery:
    """A copy of a network under another name, to be changed: card, kept logits, file."""

    def __init__(self, folder, target, name, of="own"):
        self.path = target / f"{name}.keras"
        for ending in (".keras", ".json", ".parquet"):
            content = (folder / f"{of}.keras").with_suffix(ending).read_bytes()
            self.path.with_suffix(ending).write_bytes(content)

    def card(self, **changes):
        card = read_card(self.path) | changes
        self.path.with_suffix(".json").write_text(json.dumps(card))

    def logits(self, change, **about):
        table = LogitsTable.read(self.path.with_suffix(".parquet"))
        frame = table.frame.copy()
        frame = change(frame, [f"logit_{name}" for name in NAMES])
        LogitsTable(frame, table.about | about).save(self.path.with_suffix(".parquet"))

    def without_file(self):
        self.path.unlink()


def perfect(frame, logits):
    return frame.assign(
        **{name: np.float32(9 * (frame["label"] == i)) for i, name in enumerate(logits)}
    )


def relabelled(forged, scans):
    forged.card(split=read_card(forged.path)["split"] | {"protocol": "subject"})


def forged_logits(forged, scans):
    forged.logits(perfect)


def forged_logits_without_file(forged, scans):
    forged.logits(perfect)
    forged.without_file()


def forged_size(forged, scans):
    forged.logits(lambda frame, logits: frame, parameters=3)


def an_unknown_end(forged, scans):
    """What it ends in is read anew."""
    forged.logits(perfect, output="<b>nothing</b>", sha256="0" * 64)
    forged.without_file()


def half_forged_logits(forged, scans):
    forged.logits(
        lambda frame, logits: pd.concat([perfect(frame[::2], logits), frame[1::2]]).sort_index()
    )


def forged_labels(forged, scans):
    def change(frame, logits):
        return frame.assign(label=frame[logits].to_numpy().argmax(1))

    forged.logits(change)
    forged.without_file()


def cherry_picked(forged, scans):
    """Only slices that it names rightly; whole people are torn."""

    def change(frame, logits):
        return frame[frame[logits].to_numpy().argmax(1) == frame["label"]]

    forged.logits(change)
    rows = LogitsTable.read(forged.path.with_suffix(".parquet")).rows
    forged.card(test_rows=rows.tolist())
    forged.without_file()


def cherry_picked_people(forged, scans):
    """Whole people that it names rightly."""

    def change(frame, logits):
        right = frame[logits].to_numpy().argmax(1) == frame["label"]
        share = right.groupby(frame["subject"]).transform("mean")
        return frame[share == share.max()]

    forged.logits(change)
    rows = LogitsTable.read(forged.path.with_suffix(".parquet")).rows
    forged.card(test_rows=rows.tolist())


def rows_beyond(forged, scans):
    forged.logits(lambda frame, logits: frame.assign(row=frame["row"] + len(scans)))
    forged.card(test_rows=[row + len(scans) for row in read_card(forged.path)["test_rows"]])
    forged.without_file()


def negative_rows(forged, scans):
    forged.logits(lambda frame, logits: frame.assign(row=frame["row"] - 1000))
    forged.card(test_rows=[row - 1000 for row in read_card(forged.path)["test_rows"]])
    forged.without_file()


def repeated_rows(forged, scans):
    forged.logits(lambda frame, logits: frame.assign(row=frame["row"].iloc[0]))
    forged.card(
        test_rows=[read_card(forged.path)["test_rows"][0]]
        * len(read_card(forged.path)["test_rows"])
    )
    forged.without_file()


def classes_in_another_order(forged, scans):
    forged.logits(lambda frame, logits: frame, class_names=list(NAMES[::-1]))
    forged.card(class_names=list(NAMES[::-1]))
    forged.without_file()


def another_division(forged, scans):
    """The usual rows under a card of another seed."""
    forged.card(split=read_card(forged.path)["split"] | {"seed": 99})


def division_of_many_folds(forged, scans):
    forged.card(split=read_card(forged.path)["split"] | {"folds": 10**9})


def image_level_that_leads(forged, scans):
    forged.card(split={"protocol": "subject"})


FORGERIES = {
    relabelled: ("leaky", "people of its test part have slices outside it"),
    image_level_that_leads: ("leaky", "people of its test part have slices outside it"),
    forged_logits: ("own", "the logits kept are not the network's"),
    forged_size: ("own", r"kept \['parameters'\] are not the network's"),
    an_unknown_end: ("own", "these are not the logits that its card names.*and no .* to make it"),
    half_forged_logits: ("own", "the logits kept are not the network's"),
    forged_logits_without_file: ("own", "claimed: its model file is absent"),
    forged_labels: ("own", "labels of .* rows are not those of the slices"),
    cherry_picked: ("own", "people of its test part have slices outside it|claimed: its division"),
    cherry_picked_people: ("own", "claimed: its division is not one that can be computed again"),
    rows_beyond: ("own", "it names row"),
    negative_rows: ("own", "a list of different row numbers"),
    repeated_rows: ("own", "a list of different row numbers"),
    classes_in_another_order: ("own", "claimed: logits kept from other slices"),
    another_division: ("own", "claimed: its division"),
    division_of_many_folds: ("own", "claimed: its division"),
}


@pytest.fixture(scope="module")
def found(case, tmp_path_factory):
    """One comparison of the honest network with every forgery."""
    folder, scans, subjects = case
    target = tmp_path_factory.mktemp("forged")
    for forge, (of, _) in FORGERIES.items():
        forge(Forgery(folder, target, forge.__name__, of), scans)
    Forgery(folder, target, "own")
    Forgery(folder, target, "leaky", "leaky")
    return compare(scans, subjects, target)


@pytest.mark.parametrize("forge", FORGERIES, ids=lambda forge: forge.__name__)
def test_a_forgery_is_refused_or_called_a_claim(found, forge):
    row = found.table.set_index("model").loc[forge.__name__]
    assert re.search(FORGERIES[forge][1], row["note"]), row["note"]
    assert row["protocol"] == "–" or row["note"].startswith("claimed")
    assert forge.__name__ not in found.leading()


def test_the_honest_network_leads_and_keeps_its_figures(found, case):
    folder, scans, subjects = case
    alone = compare(scans, subjects, folder).table.set_index("model")
    table = found.table.set_index("model")
    assert found.leading() == ["own"]
    assert found.table["model"].iloc[0] == "own"
    for name in ("own", "leaky"):
        pd.testing.assert_series_equal(table.loc[name], alone.loc[name])
    assert found.conclusion().startswith("On people never seen, own is first")
    assert table.loc["own", "note"] == "verified"
    board = found.leaderboard()
    assert board.index[board["leading"]].tolist() == ["own"]


def test_without_slices_nothing_is_verified_and_the_table_says_so(case):
    table = compare(folder=case[0]).table
    assert table["note"].str.startswith("claimed: no slices to verify it with").all()


def test_a_card_and_logits_of_this_version_need_no_model_file(case, tmp_path, monkeypatch):
    folder, scans, subjects = case
    copy = Forgery(folder, tmp_path, "own")
    copy.without_file()
    assert compare(scans, subjects, tmp_path).claims["own"] == "claimed: its model file is absent"
    monkeypatch.setattr(own, "_OWN", tmp_path / "own.txt")
    own.write_own(tmp_path)
    own._own.cache_clear()
    try:
        assert compare(scans, subjects, tmp_path).claims["own"] == "verified"
        copy.logits(perfect)
        assert compare(scans, subjects, tmp_path).claims["own"].startswith("claimed")
    finally:
        own._own.cache_clear()


def test_the_networks_of_the_repository_are_those_of_this_version():
    """Else, after training them anew: mri.models.own.write_own(Path("models/zoo"))."""
    from pathlib import Path

    zoo = Path(__file__).parents[2] / "models/zoo"
    kept = [path for path in zoo.glob("[!.]*.json") if path.with_suffix(".parquet").exists()]
    assert kept
    assert {path.stem for path in kept if own._digest(path) not in own._own()} == set()


def test_one_file_changes_neither_the_metric_nor_the_ranking_of_the_others(case, tmp_path):
    folder, scans, subjects = case
    before = compare(scans, subjects, folder)
    for name in ("own", "leaky"):
        Forgery(folder, tmp_path, name, name)
    other = Forgery(folder, tmp_path, "other")
    names = ["a", "b", "c", "d"]
    other.logits(
        lambda frame, logits: frame.rename(
            columns=dict(zip(logits, [f"logit_{name}" for name in names], strict=True))
        ),
        class_names=names,
    )
    other.card(class_names=names)
    other.without_file()
    large = Forgery(folder, tmp_path, "large")
    large.card(parameters=10**30)
    large.logits(lambda frame, logits: frame, parameters=10**14)
    one = Forgery(folder, tmp_path, "one")
    one.logits(lambda frame, logits: frame[frame["label"] == 2])
    rows = LogitsTable.read(one.path.with_suffix(".parquet")).rows.tolist()
    one.card(test_rows=rows)
    one.without_file()
    for given in ({"scans": scans, "groups": subjects}, {}):
        found = compare(folder=tmp_path, **given)
        assert found.by == before.by == "balanced_accuracy_3"
        table = found.table.set_index("model")
        figures = ["protocol", found.by, "low", "high", "accuracy", "log_loss"]
        expected = before.table.set_index("model")[figures]
        pd.testing.assert_frame_equal(table.loc[["own", "leaky"], figures], expected)
        assert "classes" in table.loc["other", "note"] and table.loc["other", "protocol"] == "–"
        assert "'parameters' is 1000" in table.loc["large", "note"]
        assert repr(found) and found._repr_html_()


# --- kept logits that are no such table ---


def altered(frame, about):
    """Arrow table as `LogitsTable.save` writes it."""
    return pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(
        {"mri_logits": json.dumps(about)}
    )


def tables():
    frame = pd.DataFrame({"row": np.arange(8), "subject": np.arange(8) // 2, "label": [0, 1] * 4})
    frame = frame.assign(logit_a=np.float32(1), logit_b=np.float32(2))
    about = {"class_names": ["a", "b"], "sha256": "0" * 64, "data": "1" * 64, "parameters": 1}
    about |= {"bytes": 9, "milliseconds": [1.0, 2.0], "origin": "slices"}
    yield "sound", altered(frame, about), None
    changes = {
        "negative row": {"row": -1},
        "rows that repeat": {"row": 3},
        "rows of text": {"row": "one"},
        "rows with fractions": {"row": 0.5},
        "a label beyond": {"label": 2},
        "a label below": {"label": -1},
        "labels that are missing": {"label": pd.array([None, *[1] * 7], "Int64")},
        "subjects of text": {"subject": "x"},
        "an infinite logit": {"logit_a": np.float32(np.inf)},
        "a logit that is no number": {"logit_b": np.float32(np.nan)},
        "logits of text": {"logit_b": "many"},
        "a long text": {"model": "m" * 10**6, "fold": 0, "seed": 0, "part": "test"},
    }
    for name, change in changes.items():
        yield name, altered(frame.assign(**change), about), "not a table of logits"
    yield "no rows", altered(frame[:0], about), "0 rows"
    yield "a column too few", altered(frame.drop(columns="logit_b"), about), "no column 'logit_b'"
    facts = {
        "hash of other letters": {"sha256": "g" * 64},
        "hash of a number": {"sha256": 7},
        "class names that repeat": {"class_names": ["a", "a"]},
        "class names of lists": {"class_names": [["a"], ["b"]]},
        "one class": {"class_names": ["a"]},
        "no class names": {"class_names": None},
        "weights below none": {"parameters": -1},
        "more weights than fit": {"parameters": 10**30},
        "size that is true": {"bytes": True},
        "times of text": {"milliseconds": ["fast", "slow"]},
        "one time": {"milliseconds": [1.0]},
        "infinite time": {"milliseconds": [1.0, float("inf")]},
        "origin of a megabyte": {"origin": "x" * 10**6},
    }
    for name, change in facts.items():
        yield name, altered(frame, about | change), "not a table of logits"
    yield "facts in a list", altered(frame, [about]), "not a table of logits"
    yield "no facts", pa.Table.from_pandas(frame).replace_schema_metadata(None), "not a table"
    both = pa.concat_tables([altered(frame, about)])
    twice = pa.Table.from_arrays([*both.columns, both["row"]], [*both.column_names, "row"])
    yield "a column twice", twice.replace_schema_metadata(both.schema.metadata), "columns"
    rows = pa.table({name: np.zeros(20_000_000, np.int8) for name in ("row", "subject", "label")})
    yield "twenty million rows", rows, "rows in"


@pytest.mark.parametrize(
    ("table", "message"), [pytest.param(*of[1:], id=of[0].replace(" ", "_")) for of in tables()]
)
def test_kept_logits_are_checked_where_they_are_read(table, message, tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, compression="zstd")
    if message is None:
        assert len(LogitsTable.read(path).rows) == 8
        return
    with pytest.raises(DataError, match=message) as caught:
        LogitsTable.read(path)
    assert str(path) in str(caught.value)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize("kind", ["pipe", "folder", "device", "text"])
def test_what_is_no_file_of_logits_hangs_nobody(kind, tmp_path):
    import os

    path = tmp_path / "a.parquet"
    {
        "pipe": lambda: os.mkfifo(path),
        "folder": path.mkdir,
        "device": lambda: path.symlink_to("/dev/zero"),
        "text": lambda: path.write_text("PAR1" * 9),
    }[kind]()
    with pytest.raises(DataError, match="not a table of logits"):
        LogitsTable.read(path)


def test_the_digest_of_a_division_is_that_of_the_training(case):
    folder, scans, subjects = case
    card = read_card(folder / "own.keras")
    split = subject_split(scans.labels, subjects, folds=4)
    rows = hashlib.sha256()
    for part in (split.train, split.validation, split.test):
        rows.update(part.astype(np.int64).tobytes() + b"|")
    assert rows.hexdigest() == card["split"]["rows_sha256"]
