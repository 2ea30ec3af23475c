"""What was checked is what is used, whoever changes files meanwhile; only regular files are opened.

A file is changed at the worst moment: after it was looked into, before it is read.
"""

import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mri._files import read_regular
from mri._keras import keras
from mri.data.decode import DataError
from mri.data.one_slice import read_slice
from mri.data.phantom import write_phantom
from mri.data.scans import iter_batches, read_scans
from mri.models.files import ModelFile, ModelFileError, read_card, save_model

# Keras' saving and loading.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")

LIMIT = 1000


def pipe(path):
    os.mkfifo(path)


def folder(path):
    path.mkdir()


def endless_device(path):
    path.symlink_to("/dev/zero")


def link_to_a_pipe(path):
    os.mkfifo(path.with_name("other"))
    path.symlink_to(path.with_name("other"))


def link_to_itself(path):
    path.symlink_to(path)


def dead_link(path):
    path.symlink_to(path.with_name("nowhere"))


def too_long(path):
    path.write_bytes(bytes(LIMIT + 1))


def sparse(path):
    with path.open("wb") as file:
        file.truncate(2**40)


ODD = [pipe, folder, endless_device, link_to_a_pipe, link_to_itself, dead_link, sparse]


@pytest.mark.parametrize("odd", [*ODD, too_long], ids=lambda of: of.__name__)
def test_what_is_no_file_of_bounded_size_is_not_read(odd, tmp_path):
    odd(tmp_path / "a")
    with pytest.raises(OSError):
        read_regular(tmp_path / "a", LIMIT)


@pytest.mark.parametrize("odd", ODD, ids=lambda of: of.__name__)
@pytest.mark.parametrize("name", ["a.parquet", "a.jpg", "a.nii.gz", "a.mgz", "a.dcm", "a.hdr"])
def test_no_reader_of_slices_hangs_or_fills_the_memory(odd, name, tmp_path):
    for module in ("nibabel", "pydicom"):
        pytest.importorskip(module)
    odd(tmp_path / name)
    with pytest.raises(DataError, match="a\\."):
        read_slice(tmp_path / name)
    if name == "a.parquet":
        with pytest.raises(DataError, match="a\\.parquet"):
            read_scans([tmp_path / name])


@pytest.mark.parametrize("odd", ODD, ids=lambda of: of.__name__)
@pytest.mark.parametrize("name", ["a.keras", "a.json"])
def test_no_reader_of_models_hangs_or_fills_the_memory(odd, name, tmp_path):
    odd(tmp_path / name)
    if name == "a.json" and odd is not dead_link:
        with pytest.raises(ModelFileError, match=r"a\.json: unreadable card"):
            read_card(tmp_path / "a.keras")
    with pytest.raises(ModelFileError, match=r"a\.(keras|json)"):
        ModelFile(tmp_path / "a.keras").load()


@pytest.fixture
def two(tmp_path):
    """Two networks of the same shape with their cards."""
    for name, seed in (("one", 0), ("two", 1)):
        keras.utils.set_random_seed(seed)
        model = keras.Sequential(
            [keras.Input((8, 8, 1)), keras.layers.Flatten(), keras.layers.Dense(4)]
        )
        save_model(model, tmp_path / f"{name}.keras", {"who": name})
    return tmp_path


def test_a_model_changed_after_it_was_inspected_is_not_loaded(two):
    first = ModelFile(two / "one.keras").load().get_weights()[0]
    file = ModelFile(two / "one.keras")
    file.inspect()
    (two / "two.keras").replace(two / "one.keras")
    np.testing.assert_array_equal(file.load().get_weights()[0], first, "what was inspected")
    with pytest.raises(ModelFileError, match=r"one\.keras: was changed while it was read"):
        file.load()
    with pytest.raises(ModelFileError, match="was changed while it was read"):
        file.load_into(keras.Sequential([keras.Input((8, 8, 1)), keras.layers.Flatten()]))


def test_a_model_changed_while_keras_reads_is_the_one_inspected(two, monkeypatch):
    first = ModelFile(two / "one.keras").load().get_weights()[0]
    load = keras.saving.load_model

    def swapped(path, **options):
        (two / "one.keras").write_bytes((two / "two.keras").read_bytes())
        return load(path, **options)

    monkeypatch.setattr(keras.saving, "load_model", swapped)
    np.testing.assert_array_equal(ModelFile(two / "one.keras").load().get_weights()[0], first)


def test_a_card_is_read_once(two):
    file = ModelFile(two / "one.keras")
    assert file.card["who"] == "one"
    (two / "one.json").write_text(json.dumps({"who": "me"}))
    assert file.card["who"] == "one"


def renamed_classes(path):
    table = pq.read_table(path)
    about = {"info": {"features": {"label": {"names": ["a", "b", "c", "d"]}}}}
    metadata = {**table.schema.metadata, b"huggingface": json.dumps(about)}
    pq.write_table(table.replace_schema_metadata(metadata), path)


def more_rows(path):
    table = pq.read_table(path)
    pq.write_table(pa.concat_tables([table, table]), path)


def other_columns(path):
    pq.write_table(pa.table({"x": [1]}), path)


def cut(path):
    path.write_bytes(path.read_bytes()[:-100])


def gone(path):
    path.unlink()


def now_a_pipe(path):
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    "change",
    [renamed_classes, more_rows, other_columns, cut, gone, now_a_pipe],
    ids=lambda of: of.__name__,
)
def test_slices_changed_after_they_were_checked_are_refused(change, tmp_path):
    path = Path(write_phantom(tmp_path, subjects=8, slices=4)) / "test.parquet"
    batches = iter_batches(path, batch_size=4)
    change(path)
    with pytest.raises(DataError, match=r"test\.parquet"):
        list(batches)
