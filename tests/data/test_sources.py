"""Every source is built here and read; what cannot be read says what was found and expected."""

import base64
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mri.data.decode import DataError
from mri.data.parquet import CLASS_NAMES, SCHEMA
from mri.data.phantom import write_phantom
from mri.data.ready import describe_data
from mri.data.scans import iter_batches, read_scans
from mri.data.sources import find_data, first_record, row_place

H, W = 208, 176  # As the commonest class folders of this data set: 176 wide, 208 high.
NAMES = ("NonDemented", "VeryMildDemented", "MildDemented", "ModerateDemented")


def pictures(n, h=24, w=20, seed=0):
    coarse = np.random.default_rng(seed).integers(0, 256, (n, 4, 4), dtype=np.uint8)
    return np.stack([cv2.resize(c, (w, h), interpolation=cv2.INTER_CUBIC) for c in coarse])


def png(image):
    return cv2.imencode(".png", image)[1].tobytes()


def jpeg(image):
    return cv2.imencode(".jpg", image)[1].tobytes()


def decoded(blob):
    return cv2.imdecode(np.frombuffer(blob, np.uint8), cv2.IMREAD_GRAYSCALE)


def class_tree(root, of=3, encode=png, ending=".png", seed=0, h=24, w=20, names=NAMES):
    """Write `of` pictures for each class; return name to pictures as they are decoded."""
    made = {}
    for at, name in enumerate(names):
        (root / name).mkdir(parents=True)
        blobs = [encode(x) for x in pictures(of, h, w, seed + at)]
        for i, blob in enumerate(blobs):
            (root / name / f"{i}{ending}").write_bytes(blob)
        made[name] = [decoded(blob) for blob in blobs]
    return made


def by_name(scans):
    """Class name to its slices, in the order read."""
    return {
        name: scans.images[scans.labels == label] for label, name in enumerate(scans.class_names)
    }


def same(scans, made):
    """Whether the slices of every class are those made, whatever the spelling of the names."""
    found = {name.replace("_", ""): images for name, images in by_name(scans).items()}
    assert found.keys() >= {name.replace("_", "") for name in made}
    for name, images in made.items():
        np.testing.assert_array_equal(found[name.replace("_", "")], images)


def exactly(text):
    return re.escape(str(text))


# Class folders ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("encode", "ending"),
    [(jpeg, ".jpg"), (jpeg, ".JPEG"), (png, ".PNG"), (jpeg, ".JPG"), (png, "")],
)
def test_class_folders(tmp_path, encode, ending):
    made = class_tree(tmp_path, encode=encode, ending=ending, h=H, w=W)
    (tmp_path / "readme.txt").write_text("no slice")
    (tmp_path / "NonDemented/Thumbs.db").write_bytes(b"no slice")
    scans = read_scans(tmp_path)
    assert scans.images.shape == (12, H, W)
    assert scans.class_names == CLASS_NAMES, "in the public spelling"
    same(scans, made)
    assert len(scans.rejected) == 0


def test_class_folders_stream_as_they_read(tmp_path):
    class_tree(tmp_path)
    bulk = read_scans(tmp_path)
    images, labels = zip(*iter_batches(tmp_path, batch_size=5), strict=True)
    np.testing.assert_array_equal(np.concatenate(images), bulk.images)
    np.testing.assert_array_equal(np.concatenate(labels), bulk.labels)


@pytest.mark.parametrize("sides", [("train", "test"), ("Training", "Testing"), ("TRAIN", "Test")])
@pytest.mark.parametrize("wrap", ["", "Data", "Alzheimer_s Dataset"])
def test_train_and_test_folders_and_a_class_that_one_lacks(tmp_path, sides, wrap):
    train = class_tree(tmp_path / wrap / sides[0])
    test = class_tree(tmp_path / wrap / sides[1], of=2, seed=9, names=NAMES[1:])
    parts = [read_scans(tmp_path, split=split) for split in ("train", "test")]
    assert parts[0].class_names == parts[1].class_names == CLASS_NAMES
    same(parts[0], train)
    same(parts[1], test)
    assert (parts[1].labels != CLASS_NAMES.index("Non_Demented")).all()
    assert find_data(tmp_path) == tmp_path
    assert describe_data(tmp_path) == f"{tmp_path}: 18 real slices."
    assert len(read_scans(tmp_path)) == 18
    with pytest.raises(DataError, match=r"no part 'validation' found, there are \['train', 'test'"):
        read_scans(tmp_path, split="validation")


def test_a_folder_for_each_person_below_the_class(tmp_path):
    for name, person in (("sick", "a"), ("well", "b"), ("well", "c")):
        (tmp_path / name / person).mkdir(parents=True)
        (tmp_path / name / person / "1.png").write_bytes(png(pictures(1)[0]))
    scans = read_scans(tmp_path)
    assert scans.class_names == ("sick", "well") and scans.labels.tolist() == [0, 1, 1]


def test_mixed_sizes_want_a_size(tmp_path):
    class_tree(tmp_path / "a", names=("x",))
    class_tree(tmp_path / "b", names=("x",), h=10)
    for at, name in enumerate("ab"):
        shutil.move(tmp_path / name / "x", tmp_path / f"class {at}")
        (tmp_path / name).rmdir()
    with pytest.raises(DataError, match=r"class 1.\d\.png: size \(10, 20\) differs .*pass size="):
        read_scans(tmp_path)
    assert read_scans(tmp_path, size=(12, 12)).images.shape == (6, 12, 12)


def test_a_bad_picture_of_a_folder_is_named_and_counted(tmp_path):
    class_tree(tmp_path)
    (tmp_path / "NonDemented/1.png").write_bytes(b"broken")
    (tmp_path / "NonDemented/x.tiff").write_bytes(b"II*\0")
    (tmp_path / "MildDemented/2.png").write_text(
        "version https://git-lfs.github.com/spec/v1\noid 5"
    )
    with pytest.raises(
        DataError, match=r"MildDemented.2\.png: .*is a Git LFS pointer, not the file"
    ):
        read_scans(tmp_path)
    with pytest.warns(UserWarning, match="3 of 13 rows rejected"):
        scans = read_scans(tmp_path, on_error="skip")
    assert len(scans) == 10
    assert [Path(file).name for file in scans.rejected["file"]] == ["2.png", "1.png", "x.tiff"]
    assert scans.rejected["cause"].str.contains("Git LFS pointer|not a JPEG or PNG").all()


def test_a_picture_outside_the_class_folders_is_no_slice_without_a_class(tmp_path):
    class_tree(tmp_path)
    (tmp_path / "loose.png").write_bytes(png(pictures(1)[0]))
    with pytest.raises(DataError, match=r"loose\.png: it lies in no class folder"):
        read_scans(tmp_path)


def test_two_data_sets_side_by_side_are_not_classes(tmp_path):
    for name in ("AugmentedAlzheimerDataset", "OriginalDataset"):
        class_tree(tmp_path / name)
    told = "several data sets, in AugmentedAlzheimerDataset, OriginalDataset: each has milddemented"
    with pytest.raises(DataError, match=told):
        read_scans(tmp_path)
    assert len(read_scans(tmp_path / "OriginalDataset")) == 12


def test_two_folders_of_one_class_are_refused(tmp_path):
    class_tree(tmp_path, names=("Mild Demented", "mild_demented", "other"))
    with pytest.raises(DataError, match="'Mild Demented' and 'mild_demented' name the same class"):
        read_scans(tmp_path)


def test_folders_named_by_numbers_count_as_numbers(tmp_path):
    made = class_tree(tmp_path, names=("1", "2", "3", "4"))
    with pytest.warns(UserWarning, match="assumed: 1 = Mild_Demented, 2 = Moderate_Demented, 3 ="):
        scans = read_scans(tmp_path)
    np.testing.assert_array_equal(by_name(scans)["Non_Demented"], made["3"])


# Tables -------------------------------------------------------------------------------------------

LABELS = ["Mild Demented", "nondemented", "Very-Mild-Demented", "nondemented"]


@pytest.fixture
def stored(tmp_path):
    """Four pictures in files, their relative paths, bytes and pixels."""
    images = pictures(4)
    for i, image in enumerate(images):
        (tmp_path / "img").mkdir(exist_ok=True)
        (tmp_path / f"img/{i}.png").write_bytes(png(image))
    return images, [f"img/{i}.png" for i in range(4)], [png(image) for image in images]


def expected(scans, images):
    np.testing.assert_array_equal(scans.images, images)
    assert [scans.class_names[label] for label in scans.labels] == [
        "Mild_Demented", "Non_Demented", "Very_Mild_Demented", "Non_Demented",
    ]  # fmt: skip


def test_a_table_of_bytes_pixels_paths_or_records(tmp_path, stored, monkeypatch):
    images, paths, blobs = stored
    monkeypatch.chdir(tmp_path)
    cells = {
        "bytes": blobs,
        "records": [{"bytes": blob, "path": None} for blob in blobs],
        "paths": paths,
        "absolute": [tmp_path / path for path in paths],
        "windows": [path.replace("/", "\\") for path in paths],
        "pixels": list(images),
        "one channel": [image[..., None] for image in images],
        "numbers": [image.astype(np.int64) for image in images],
        "whole floats": [image.astype(float) for image in images],
    }
    for kind, column in cells.items():
        frame = pd.DataFrame({"image": pd.Series(column, dtype=object), "label": LABELS})
        expected(read_scans(frame), images), kind
    frame = frame.rename(columns={"image": "Scan", "label": "Group"})
    expected(read_scans(frame, image="Scan", label="Group"), images)
    with pytest.raises(
        DataError, match=r"columns \['Scan', 'Group'\], expected one 'image'.*image="
    ):
        read_scans(frame)
    expected(
        read_scans(frame.rename(columns={"Scan": "image", "Group": "label"}).to_dict("list")),
        images,
    )
    records = [{"image": blob, "label": label} for blob, label in zip(blobs, LABELS, strict=True)]
    expected(read_scans(records), images)


def test_pillow_pictures_and_colour(stored):
    image = pytest.importorskip("PIL.Image")
    images, _, _ = stored
    frame = pd.DataFrame({"image": [image.fromarray(x) for x in images], "label": LABELS})
    expected(read_scans(frame), images)
    colour = np.zeros((8, 8, 3), np.uint8)
    colour[...] = (200, 100, 50)
    scans = read_scans(pd.DataFrame({"image": [colour] * 2, "label": ["a", "b"]}))
    assert (
        np.abs(scans.images.astype(float) - (0.299 * 200 + 0.587 * 100 + 0.114 * 50)).max() <= 0.5
    )


@pytest.mark.parametrize(
    ("pixels", "cause"),
    [
        (
            np.full((4, 4), 0.5),
            "float64 from 0.5 to 0.5, expected gray values 0 to 255; if they go",
        ),
        (np.full((4, 4), 7.5), "gray values are fractions, expected whole numbers"),
        (np.full((4, 4), 300), "gray values go from 300 to 300, expected 0 to 255"),
        (np.full((4, 4), np.nan), "gray values go from nan to nan"),
        (np.zeros((4, 4, 2)), r"pixels are of shape \(4, 4, 2\), expected"),
        (np.zeros(5), r"pixels are of shape \(5,\)"),
        (object(), "a object is no image, expected bytes, pixels or a path"),
        (None, "the image is null"),
    ],
)
def test_pixels_whose_meaning_is_open_are_refused(pixels, cause):
    good = np.full((4, 4), 9, np.uint8)
    frame = pd.DataFrame({"image": pd.Series([good, pixels], dtype=object), "label": ["a", "b"]})
    with pytest.raises(DataError, match=f"the table, row 1: .*{cause}"):
        read_scans(frame)


def test_csv_of_paths_bytes_and_arrays(tmp_path, stored):
    images, paths, blobs = stored
    cells = {
        "paths": paths,
        "bytes": [repr(blob) for blob in blobs],
        "base64": [base64.b64encode(blob).decode() for blob in blobs],
        "arrays": [json.dumps(image.tolist()) for image in images],
    }
    for kind, column in cells.items():
        file = tmp_path / f"{kind}.csv"
        pd.DataFrame({"image": column, "label": LABELS}).to_csv(file, index=False)
        expected(read_scans(file), images)
    pd.DataFrame({"image": paths, "label": LABELS}).to_csv(
        tmp_path / "a.tsv", sep="\t", index=False
    )
    expected(read_scans(tmp_path / "a.tsv"), images)
    pd.DataFrame({"image": paths, "label": LABELS}).to_csv(tmp_path / "b.csv", sep=";", index=False)
    expected(read_scans(tmp_path / "b.csv"), images)


def test_none_and_na_are_names_and_a_gap_makes_no_float(tmp_path, stored):
    _, paths, _ = stored
    frame = pd.DataFrame({"image": paths, "label": ["None", "NA", "None", ""]})
    frame.to_csv(tmp_path / "a.csv", index=False)
    with pytest.warns(UserWarning, match="1 of 4 rows rejected"):
        scans = read_scans(tmp_path / "a.csv", on_error="skip")
    assert scans.class_names == ("NA", "None") and scans.labels.tolist() == [1, 0, 1]
    assert scans.rejected[["row", "cause"]].values.tolist() == [[3, "the label is null"]]
    frame.assign(label=["2", "", "0", "1"]).to_csv(tmp_path / "b.csv", index=False)
    with pytest.warns(UserWarning, match="1 of 4 rows rejected"):
        assert read_scans(
            tmp_path / "b.csv", on_error="skip", class_names=("a", "b", "c")
        ).labels.tolist() == [2, 0, 1]


def test_missing_paths_say_so(tmp_path, stored):
    _, paths, _ = stored
    frame = pd.DataFrame({"image": ["a.png", "b.png"], "label": ["x", "y"]})
    for write, name in ((frame.to_csv, "a.csv"), (frame.to_parquet, "a.parquet")):
        write(tmp_path / name, index=False)
        told = f"{tmp_path / name}: only paths are stored here, and 'a.png' is no file in"
        with pytest.raises(DataError, match=exactly(told)):
            read_scans(tmp_path / name)
    pd.DataFrame({"image": [*paths, "gone.png"], "label": [*LABELS, "nondemented"]}).to_parquet(
        tmp_path / "b.parquet"
    )
    with pytest.raises(
        DataError, match=r"b\.parquet, row 4: only paths are stored here, and 'gone"
    ):
        read_scans(tmp_path / "b.parquet")


@pytest.mark.parametrize("kind", ["text", "struct", "struct with null bytes", "dictionary"])
def test_a_parquet_of_paths_reads_them(tmp_path, stored, kind):
    images, paths, _ = stored
    column = pa.array(paths)
    if kind == "dictionary":
        column = column.dictionary_encode()
    if kind.startswith("struct"):
        fields = {"path": column}
        if "null" in kind:
            fields = {"bytes": pa.nulls(4, pa.binary()), **fields}
        column = pa.StructArray.from_arrays(list(fields.values()), list(fields))
    pq.write_table(pa.table({"image": column, "label": LABELS}), tmp_path / "a.parquet")
    expected(read_scans(tmp_path / "a.parquet"), images)


def test_a_parquet_of_pixels(tmp_path):
    images = pictures(3, 4, 5)
    table = pa.table({"image": images.tolist(), "label": ["a", "b", "a"]})
    pq.write_table(table, tmp_path / "a.parquet")
    np.testing.assert_array_equal(read_scans(tmp_path / "a.parquet").images, images)


@pytest.mark.filterwarnings("ignore:.*of which the train part has no slice")
@pytest.mark.parametrize("form", ["parquet", "csv", "frame", "table"])
def test_a_column_split_divides_the_rows(tmp_path, stored, form):
    images, paths, _ = stored
    sides = ["Train", "test", "train", "TEST"]
    frame = pd.DataFrame(
        {"image": [str(tmp_path / p) for p in paths], "label": LABELS, "split": sides}
    )
    source = frame if form == "frame" else tmp_path / f"all.{form}"
    if form == "parquet":
        frame.to_parquet(source)
    elif form == "csv":
        frame.to_csv(source, index=False)
    elif form == "table":
        source = pa.Table.from_pandas(frame)
    np.testing.assert_array_equal(read_scans(source, split="train").images, images[[0, 2]])
    test = read_scans(source, split="test")
    np.testing.assert_array_equal(test.images, images[[1, 3]])
    assert test.class_names == ("Mild_Demented", "Non_Demented", "Very_Mild_Demented")
    expected(read_scans(source), images)
    if form == "parquet":
        assert find_data(tmp_path) == tmp_path
        assert row_place(source, split="test", row=1) == (source, 3)
    bad = frame.assign(split=["train", "test", None, "test"])
    with pytest.raises(
        DataError, match=r"row 2: column 'split' is (None|nan), expected train, test"
    ):
        read_scans(bad)


# Hugging Face -------------------------------------------------------------------------------------


class FakeDataset:
    """As much of `datasets.Dataset` as is used, over an Arrow table."""

    def __init__(self, table, names=None):
        self.table, self.names = table, names
        self.column_names = table.column_names
        self.features = {name: object() for name in table.column_names}
        if names:
            self.features["label"] = type("ClassLabel", (), {"names": names})()

    def __len__(self):
        return len(self.table)

    def with_format(self, kind):
        assert kind == "arrow"
        return self

    def select_columns(self, names):
        return FakeDataset(self.table.select(names))

    def __getitem__(self, key):
        return self.table[key]


def rows_table(images, labels):
    return pa.table({"image": [{"bytes": png(x), "path": None} for x in images], "label": labels})


def test_a_data_set_by_its_methods():
    images = pictures(5)
    names = ["well", "sick"]
    scans = read_scans(FakeDataset(rows_table(images, [0, 1, 1, 0, 1]), names))
    np.testing.assert_array_equal(scans.images, images)
    assert scans.class_names == ("well", "sick") and scans.labels.tolist() == [0, 1, 1, 0, 1]
    both = {
        "train": FakeDataset(rows_table(images[:3], [0, 1, 1]), names),
        "test": FakeDataset(rows_table(images[3:], [0, 1]), names),
    }
    np.testing.assert_array_equal(read_scans(both, split="test").images, images[3:])
    np.testing.assert_array_equal(read_scans(both).images, images)


def test_a_data_set_of_the_package(tmp_path):
    datasets = pytest.importorskip("datasets")
    images = pictures(6)
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["well", "sick"])}
    )
    rows = {"image": [{"bytes": png(x), "path": None} for x in images], "label": [0, 1, 1, 0, 1, 0]}
    whole = datasets.Dataset.from_dict(rows, features=features)
    scans = read_scans(whole)
    np.testing.assert_array_equal(scans.images, images)
    assert scans.class_names == ("well", "sick")
    turned = whole.select([4, 2, 0])
    np.testing.assert_array_equal(read_scans(turned).images, images[[4, 2, 0]])
    divided = datasets.DatasetDict({"train": whole.select(range(4)), "test": whole.select([5, 4])})
    np.testing.assert_array_equal(read_scans(divided, split="test").images, images[[5, 4]])
    divided.save_to_disk(tmp_path / "saved")
    turned.save_to_disk(tmp_path / "one")
    np.testing.assert_array_equal(
        read_scans(tmp_path / "saved", split="test").images, images[[5, 4]]
    )
    assert read_scans(tmp_path / "saved").class_names == ("well", "sick")
    np.testing.assert_array_equal(read_scans(tmp_path / "one").images, images[[4, 2, 0]])
    with pytest.raises(DataError, match="without streaming=True"):
        read_scans(whole.to_iterable_dataset())


def save_to_disk(folder, images, labels, names, shards=2):
    """Write what `Dataset.save_to_disk` writes."""
    folder.mkdir(parents=True)
    files = [f"data-{i:05d}-of-{shards:05d}.arrow" for i in range(shards)]
    table = rows_table(images, labels)
    for i, name in enumerate(files):
        some = table.take(np.array_split(np.arange(len(images)), shards)[i])
        with pa.OSFile(str(folder / name), "wb") as sink, pa.ipc.new_stream(sink, some.schema) as w:
            w.write_table(some)
    state = {"_data_files": [{"filename": name} for name in files], "_format_type": None}
    (folder / "state.json").write_text(json.dumps(state))
    features = {"image": {"_type": "Image"}, "label": {"names": names, "_type": "ClassLabel"}}
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))


def test_a_saved_data_set_is_read_without_the_package(tmp_path):
    images = pictures(7)
    save_to_disk(tmp_path / "d/train", images[:5], [0, 1, 1, 0, 1], ["well", "sick"])
    save_to_disk(tmp_path / "d/test", images[5:], [1, 0], ["well", "sick"], shards=1)
    (tmp_path / "d/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    for source in (tmp_path / "d", tmp_path):
        scans = read_scans(source, split="train")
        np.testing.assert_array_equal(scans.images, images[:5])
        assert scans.class_names == ("well", "sick")
        np.testing.assert_array_equal(read_scans(source).labels, [0, 1, 1, 0, 1, 1, 0])
    np.testing.assert_array_equal(read_scans(tmp_path / "d/test").images, images[5:])
    shard = tmp_path / "d/train/data-00001-of-00002.arrow"
    shard.write_bytes(shard.read_bytes()[:100])
    with pytest.raises(DataError, match=r"data-00001-of-00002\.arrow: not a readable Arrow file"):
        read_scans(tmp_path / "d")


# What labels mean ---------------------------------------------------------------------------------


def table_of(labels, names=None):
    table = pa.table({"image": [png(pictures(1)[0])] * len(labels), "label": labels})
    features = {"label": {"names": names, "_type": "ClassLabel"}}
    meta = {"huggingface": json.dumps({"info": {"features": features}})}
    return table.replace_schema_metadata(meta) if names else table


@pytest.mark.parametrize("labels", [[1, 2, 3, 4], [4, 1, 1, 3], [2, 4, 4, 4]])
def test_labels_from_one_cost_no_class(labels):
    with pytest.warns(UserWarning, match="assumed: 1 = Mild_Demented, 2 = Moderate_Demented, 3"):
        scans = read_scans(table_of(labels), on_error="skip")
    assert (scans.labels + 1).tolist() == labels
    with pytest.warns(UserWarning, match="labels count from 1: 1 = a, 2 = b, 3 = c, 4 = d"):
        scans = read_scans(table_of(labels, ["a", "b", "c", "d"]))
    assert (scans.labels + 1).tolist() == labels


def test_a_part_counts_as_the_whole_does():
    """The test part alone, 1 to 3, would be read from 0."""
    both = {"train": table_of([1, 2, 3, 4]), "test": table_of([3, 1, 2])}
    with pytest.warns(UserWarning, match="assumed: 1 = "):
        assert read_scans(both, split="test").labels.tolist() == [2, 0, 1]


def test_where_labels_count_from_is_said_if_it_cannot_be_told():
    with pytest.warns(
        UserWarning, match=r"labels 1 to 3 occur, taken to count from 0.*class_names="
    ):
        read_scans(table_of([1, 3]))
    with pytest.raises(
        DataError, match=r"labels 1 to 5 are not those of the 4 classes .*class_names="
    ):
        read_scans(table_of([1, 2, 3, 4, 5]), on_error="skip")


def test_names_given_by_the_caller():
    scans = read_scans(table_of([10, 20, 10]), class_names={10: "well", 20: "sick"})
    assert scans.class_names == ("well", "sick") and scans.labels.tolist() == [0, 1, 0]
    scans = read_scans(table_of([0, 1, 0]), class_names=["well", "sick"])
    assert scans.class_names == ("well", "sick")
    # Names in the data stay; the order becomes that of the caller.
    scans = read_scans(table_of([0, 1, 0], ["well", "sick"]), class_names=["Sick", "Well"])
    assert scans.class_names == ("Sick", "Well") and scans.labels.tolist() == [1, 0, 1]
    with pytest.raises(
        DataError, match=r"its classes are \('well', 'sick'\)\. Received: class_names="
    ):
        read_scans(table_of([0, 1], ["well", "sick"]), class_names=["a", "b"])
    scans = read_scans(table_of(["AD", "CN"]), class_names={"ad": "Demented", "cn": "Non_Demented"})
    assert [scans.class_names[label] for label in scans.labels] == ["Demented", "Non_Demented"]
    with pytest.raises(DataError, match=r"row 1: label 'CN' is none of the 1 classes"):
        read_scans(table_of(["AD", "CN"]), class_names=["AD"])


@pytest.mark.parametrize("names", [["Mild", "mild", "x"], ["a b", "A_B"], ["a", ""]])
def test_duplicate_and_empty_names_are_refused(names):
    with pytest.raises(DataError, match=r"are the same name|is empty"):
        read_scans(table_of([0, 1], names))


def test_the_label_minus_one_is_a_row_without_a_label():
    with pytest.raises(DataError, match=r"row 1: label -1 is outside .*; pass on_error='skip'"):
        read_scans(table_of([0, -1], ["a", "b"]))


def test_parts_in_another_order_are_added_by_name():
    one = read_scans(table_of([0, 1, 1], ["well", "sick"]))
    two = read_scans(table_of([0, 1, 0], ["Sick", "Well"]))
    both = one + two
    assert both.class_names == ("well", "sick") and both.labels.tolist() == [0, 1, 1, 1, 0, 1]
    more = read_scans(table_of([2], ["sick", "well", "mild"]))
    assert (one + more).class_names == ("sick", "well", "mild")
    assert (one + more).labels.tolist() == [1, 0, 0, 2]
    with pytest.raises(ValueError, match=r"class_names differ: \('well', 'sick'\), \('a', 'b'\)"):
        one + read_scans(table_of([0], ["a", "b"]))


def test_files_of_one_folder_in_another_order_are_read_by_name(tmp_path):
    pq.write_table(table_of([0, 1], ["well", "sick"]), tmp_path / "train.parquet")
    pq.write_table(table_of([0, 0, 1], ["sick", "well"]), tmp_path / "test.parquet")
    test = read_scans(tmp_path, split="test")
    assert [test.class_names[label] for label in test.labels] == ["sick", "sick", "well"]
    assert test.class_names == read_scans(tmp_path, split="train").class_names
    assert len(read_scans(tmp_path)) == 5


def test_a_part_with_more_classes_keeps_them():
    """The third class of the test part would be a label without a name."""
    both = {
        "train": table_of([0, 1], ["well", "sick"]),
        "test": table_of([0, 2, 1], ["sick", "mild", "well"]),
    }
    scans = read_scans(both)
    assert scans.class_names == ("sick", "mild", "well")
    assert scans.labels.tolist() == [2, 0, 0, 2, 1]
    assert read_scans(both, split="train").labels.tolist() == [2, 0]


@pytest.mark.parametrize(
    ("labels", "found"),
    [
        (pa.array([0.0, 2.0, 1.0]), [0, 2, 1]),
        (pd.Series([0, 1.0, 3], dtype=object), [0, 1, 3]),
        (pd.Series([0, 3, 1], dtype="UInt8"), [0, 3, 1]),
        (["0.0", " 3", "1."], [0, 3, 1]),
        (["01", "00", "03"], [1, 0, 3]),
        (pd.Categorical([3, 0, 1]), [3, 0, 1]),
    ],
)
def test_whole_numbers_are_labels_however_they_are_stored(labels, found):
    source = {"image": [png(pictures(1)[0])] * 3, "label": labels}
    frame = pa.table(source) if isinstance(labels, pa.Array) else pd.DataFrame(source)
    with pytest.warns(UserWarning, match="assumed: 0 = Mild_Demented, 1"):
        assert read_scans(frame).labels.tolist() == found


@pytest.mark.parametrize("labels", [[0, None, 2], [0.0, np.nan, 2.0], pd.array([0, None, 2])])
def test_a_gap_among_numbers_is_one_row_without_a_label(labels):
    frame = pd.DataFrame({"image": [png(pictures(1)[0])] * 3, "label": labels})
    for source in (frame, pa.Table.from_pandas(frame)):
        names = ("a", "b", "c")
        with pytest.raises(DataError, match="row 1: the label is null"):
            read_scans(source, class_names=names)
        with pytest.warns(UserWarning, match="1 of 3 rows rejected"):
            scans = read_scans(source, class_names=names, on_error="skip")
        assert scans.labels.tolist() == [0, 2]


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        ([0.0, 0.5], "labels must be whole numbers or names. Received: 0.5; write grades"),
        ([0.0, np.inf], "labels must be whole numbers or names. Received: inf"),
        (
            [True, False],
            "column 'label' is bool, expected .*; write the names of the classes there",
        ),
        ([[0, 1], [1, 0]], r"column 'label' is list<.*>, expected an integer"),
        ([0, "a"], "column 'label' mixes types"),
        ([10, 20], r"labels 10 to 20 are not those of the 4 classes .*class_names="),
    ],
)
def test_labels_whose_meaning_is_open_are_refused(labels, told):
    labels = pd.Series(labels, dtype=object)
    frame = pd.DataFrame({"image": [png(pictures(1)[0])] * 2, "label": labels})
    with pytest.raises(DataError, match=f"the table: {told}"):
        read_scans(frame, on_error="skip")


def test_names_and_numbers_are_not_mixed_unless_all_are_named():
    labels = ["0", "1", "Non_Demented"]
    with pytest.raises(DataError, match="some labels are numbers, such as '0', and some are names"):
        read_scans(table_of(labels))
    named = {"0": "mild", "1": "moderate", "Non_Demented": "well"}
    assert read_scans(table_of(labels), class_names=named).labels.tolist() == [0, 1, 2]
    assert read_scans(table_of(["0", "0.5", "1"])).class_names == ("0", "0.5", "1"), "grades"


def test_two_spellings_of_an_accent_are_one_name():
    scans = read_scans(table_of(["De\u0301mence", "Démence", "sain\u200b", "Sain"]))
    assert len(scans.class_names) == 2 and scans.labels.tolist() == [0, 0, 1, 1]


# Where slices are found, and where not ------------------------------------------------------------


def parquet(path, n=3, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    images = [{"bytes": png(x), "path": "x"} for x in pictures(n, seed=seed)]
    labels = [i % 4 for i in range(n)]
    pq.write_table(pa.table({"image": images, "label": labels}, schema=SCHEMA), path)
    return path


@pytest.mark.parametrize("below", ["", "data", "Data", "clone/data", "x/data/train.parquet"])
def test_a_folder_is_found_below_the_one_given(tmp_path, below):
    folder = tmp_path / below
    folder = folder.parent if folder.suffix else folder
    parquet(folder / "Train.parquet")
    parquet(folder / "TEST-00000-of-00001-abc.parquet", seed=1)
    assert find_data(tmp_path) == tmp_path
    assert len(read_scans(tmp_path, split="train")) == len(read_scans(tmp_path, split="test")) == 3


def test_a_clone_is_its_data_folder_and_nothing_else(tmp_path):
    for name in ("models", "runs"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").write_bytes(png(pictures(1)[0]))
    (tmp_path / "pyproject.toml").touch()
    parquet(tmp_path / "data/phantom/train.parquet")
    with pytest.raises(
        DataError, match=r"no slices in this folder, found \['data', 'models', 'pyp"
    ):
        find_data(tmp_path)
    parquet(tmp_path / "data/train.parquet")
    parquet(tmp_path / "data/test.parquet", seed=1)
    assert len(read_scans(tmp_path)) == 6


def test_splits_in_folders_of_their_own(tmp_path):
    parquet(tmp_path / "train/0.parquet")
    parquet(tmp_path / "test/0.parquet", seed=1)
    assert len(read_scans(tmp_path, split="test")) == 3
    np.testing.assert_array_equal(read_scans(tmp_path, split="train").images, pictures(3))


def test_two_copies_of_one_split_are_refused(tmp_path):
    hub = "train-00000-of-00001-c08a401c53fe5312.parquet"
    parquet(tmp_path / "test.parquet", seed=1)
    first = parquet(tmp_path / "train.parquet")
    for other in (hub, "train (1).parquet", "train-copy.parquet", "train_00000-of-00001.parquet"):
        shutil.copy(first, tmp_path / other)
        with pytest.raises(DataError, match="two copies of the train part"):
            read_scans(tmp_path)
        (tmp_path / other).unlink()
    parquet(tmp_path / "train-2.parquet", seed=5)
    assert len(read_scans(tmp_path, split="train")) == 6, "shards are no copies"
    first.rename(tmp_path / "train-00000-of-00003.parquet")
    (tmp_path / "train-2.parquet").rename(tmp_path / "train-00002-of-00003.parquet")
    with pytest.raises(DataError, match="file 1 of 0 to 2 of the train part is missing"):
        read_scans(tmp_path)


@pytest.mark.parametrize("names", [("train", "test"), ("all", "all (1)")])
def test_one_file_under_two_names_is_refused(tmp_path, names):
    first = parquet(tmp_path / f"{names[0]}.parquet")
    shutil.copy(first, tmp_path / f"{names[1]}.parquet")
    with pytest.raises(DataError, match="two copies of the same part, the same slices"):
        read_scans(tmp_path)


def test_a_table_of_labels_beside_class_folders_is_not_ignored(tmp_path):
    class_tree(tmp_path / "train")
    (tmp_path / "train/metadata.csv").write_text("file_name,label\nNonDemented/0.png,a\n")
    with pytest.raises(DataError, match=r"two data sets, folders .* and tables \(metadata\.csv\)"):
        read_scans(tmp_path)


def test_a_class_whose_files_are_no_pictures_is_told(tmp_path):
    class_tree(tmp_path)
    (tmp_path / "Other").mkdir()
    (tmp_path / "Other/0.npy").touch()
    with pytest.warns(UserWarning, match="no JPEG or PNG images in Other, so these are no classes"):
        assert len(read_scans(tmp_path)) == 12


def test_a_folder_of_masks_is_no_class(tmp_path):
    class_tree(tmp_path)
    (tmp_path / "Masks").mkdir()
    (tmp_path / "Masks/0.png").write_bytes(png(pictures(1)[0]))
    with pytest.raises(DataError, match="the folder 'Masks' is no class; move it away"):
        read_scans(tmp_path)


def test_a_tree_beside_a_parquet_of_one_name_is_refused(tmp_path):
    parquet(tmp_path / "train.parquet")
    class_tree(tmp_path / "train")
    with pytest.raises(DataError, match=r"two data sets, parquet files .* and folders"):
        read_scans(tmp_path)


def test_a_folder_of_pictures_beside_a_table_is_that_of_its_paths(tmp_path, stored):
    images, paths, _ = stored
    with pytest.raises(DataError, match=r"no slices in this folder, found \['img'\]"):
        read_scans(tmp_path)
    pd.DataFrame({"image": paths, "label": LABELS}).to_csv(tmp_path / "labels.csv", index=False)
    expected(read_scans(tmp_path), images)
    (tmp_path / "more").mkdir()
    (tmp_path / "more/x.png").write_bytes(png(images[0]))
    with pytest.raises(DataError, match=r"two data sets, folders .* and tables \(labels\.csv\)"):
        read_scans(tmp_path)
    (tmp_path / "labels.csv").write_text("ID,Age\n1,70\n")
    assert read_scans(tmp_path).class_names == ("img", "more"), "a table of something else"


def test_pointers_of_git_lfs_are_named(tmp_path):
    (tmp_path / "train.parquet").write_text(
        "version https://git-lfs.github.com/spec/v1\noid sha:5\n"
    )
    parquet(tmp_path / "test.parquet")
    with pytest.raises(DataError, match=r"train\.parquet: is a Git LFS pointer.*run: git lfs pull"):
        read_scans(tmp_path)


def test_a_part_that_cannot_be_read_is_not_left_out(tmp_path):
    """A dead link, a pipe: without an error, only the other part would be read."""
    parquet(tmp_path / "test.parquet")
    train = tmp_path / "train.parquet"
    train.symlink_to(tmp_path / "gone")
    with pytest.raises(DataError, match=r"train\.parquet: no such file"):
        read_scans(tmp_path)
    for name in ("train.parquet", "train.csv"):
        train.unlink(missing_ok=True)
        os.mkfifo(tmp_path / name)
        with pytest.raises(DataError, match=r"train\.\w+: it is no regular file"):
            read_scans(tmp_path if "parquet" in name else tmp_path / name)


LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:5\nsize 9\n"


@pytest.mark.parametrize(
    "name", ["train.csv", "x.arrow", "dataset_dict.json", "state.json", "train/Mild/1.jpg"]
)
def test_every_kind_of_pointer_is_named(tmp_path, name):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(LFS)
    source = tmp_path / name if name.endswith("arrow") else tmp_path
    with pytest.raises(DataError, match=f"{exactly(tmp_path / name)}: is a Git LFS pointer"):
        read_scans(source)


def test_one_file_for_two_parts_says_which_folder_to_give(tmp_path):
    parquet(tmp_path / "test.parquet")
    file = parquet(tmp_path / "train.parquet", seed=1)
    told = f"{file}: only the train part; give the folder that holds the test part too, such as "
    with pytest.raises(DataError, match=exactly(told + str(tmp_path))):
        find_data(file)


@pytest.mark.parametrize("call", [find_data, describe_data, read_scans])
@pytest.mark.parametrize("empty", ["", " "])
def test_an_empty_name_is_not_the_folder_here(tmp_path, monkeypatch, call, empty):
    monkeypatch.chdir(tmp_path)
    parquet(tmp_path / "train.parquet")
    parquet(tmp_path / "test.parquet", seed=1)
    with pytest.raises(ValueError, match=r"must not be an empty path. Received: "):
        call(empty)


@pytest.mark.parametrize("below", ["train.parquet/part-0.parquet", "train_images/0.parquet"])
def test_folders_that_begin_with_a_split(tmp_path, below):
    parquet(tmp_path / below)
    parquet(tmp_path / below.replace("train", "test"), seed=1)
    np.testing.assert_array_equal(read_scans(tmp_path, split="train").images, pictures(3))


def test_an_archive_in_a_folder_is_to_be_unpacked(tmp_path):
    (tmp_path / "archive.zip").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"found \['archive\.zip'\]\. Unpack archive\.zip"):
        read_scans(tmp_path)


def test_a_tree_far_below(tmp_path):
    made = class_tree(tmp_path / "archive/Alzheimer_s Dataset/v 2/train")
    class_tree(tmp_path / "archive/Alzheimer_s Dataset/v 2/test", seed=9)
    same(read_scans(tmp_path, split="train"), made)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_folder_that_may_not_be_read(tmp_path):
    (tmp_path / "a").mkdir(mode=0)
    with pytest.raises(DataError, match=r"a: cannot be read \(Permission denied\)"):
        read_scans(tmp_path / "a")


def test_without_a_source_the_data_at_hand_are_read_and_named(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MRI_DATA", raising=False)
    write_phantom("data/phantom", subjects=4, slices=1)
    for read in (read_scans, iter_batches):
        with pytest.raises(
            DataError, match=r"data: no slices in this folder, found .*phantom.*Put"
        ):
            read()
    parquet(tmp_path / "data/all.parquet")
    assert len(read_scans()) == 3
    assert capsys.readouterr().out == "data: 3 real slices.\n"
    parquet(tmp_path / "mine/train.parquet", n=5, seed=1)
    monkeypatch.setenv("MRI_DATA", str(tmp_path / "mine"))
    assert len(read_scans(split="train")) == 5
    assert capsys.readouterr().out == f"{tmp_path / 'mine'}: 5 real slices.\n"
    monkeypatch.setenv("MRI_DATA", str(tmp_path / "gone"))
    with pytest.raises(DataError, match="gone: no parquet file found"):
        read_scans()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("a.zip", "an archive; unpack it and give the folder"),
        ("a.png", "one picture without a label"),
        ("a.txt", "of no known kind, it begins with b'a,b.*expected one of .parquet, .pq, .csv"),
        ("a.csv", "columns .*expected one 'image' and one 'label'"),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path, name, told):
    (tmp_path / name).write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=f"{exactly(tmp_path / name)}: {told}"):
        read_scans(tmp_path / name)


@pytest.mark.parametrize("source", [7, [1, 2], ["a", 3]])
def test_what_is_no_source(source):
    with pytest.raises(ValueError, match=r"source must be a path.*Received: source=\w+"):
        read_scans(source)


def test_an_undivided_source_has_no_parts(tmp_path):
    class_tree(tmp_path)
    with pytest.raises(DataError, match="no part 'train' found, it is not divided"):
        read_scans(tmp_path, split="train")
    with pytest.raises(DataError, match="not divided into a train and a test part; name the files"):
        find_data(tmp_path)


def test_the_first_record_of_a_folder_is_its_file(tmp_path):
    class_tree(tmp_path)
    record = first_record(tmp_path)
    file = tmp_path / "MildDemented/0.png"
    assert record["image"] == {"bytes": file.read_bytes(), "path": str(file)}
    assert record["label"] == "MildDemented"


# Splits ----


def test_several_splits_are_read_in_turn_and_told_apart(tmp_path):
    class_tree(tmp_path / "test", of=2, seed=9)
    class_tree(tmp_path / "train")
    whole = read_scans(tmp_path, split=("train", "test"))
    assert whole.splits.tolist() == ["train"] * 12 + ["test"] * 8
    both = [read_scans(tmp_path, split=split) for split in ("train", "test")]
    assert (both[0] + both[1]).fingerprint() == whole.fingerprint()
    assert (both[0] + both[1]).splits.tolist() == whole.splits.tolist()
    for part, split in zip(both, ("train", "test"), strict=True):
        assert whole.part(split).fingerprint() == part.fingerprint()
        assert np.shares_memory(whole.part(split).images, whole.images)
    for wrong in ((), ("train", "train")):
        with pytest.raises(ValueError, match=r"split must name a part, or .*Received: split=\("):
            read_scans(tmp_path, split=wrong)
    with pytest.raises(
        ValueError, match=r"split must be one of \['test', 'train'\]. Received: spl"
    ):
        whole.part("validation")


def test_rows_divided_by_a_column_keep_their_order_and_split():
    images = pictures(5)
    sides = ["test", "train", "train", "test", "train"]
    frame = pd.DataFrame({"image": list(images), "label": list("abaab"), "split": sides})
    scans = read_scans(frame)
    assert scans.splits.tolist() == sides
    np.testing.assert_array_equal(scans.part("test").images, images[[0, 3]])
    turned = read_scans(frame, split=("train", "test"))
    np.testing.assert_array_equal(turned.images, images[[1, 2, 4, 0, 3]])


@pytest.mark.filterwarnings("ignore:.*of which the train part has no slice")
def test_of_a_rejected_row_the_split_goes_too(tmp_path):
    images = pictures(4)
    cells = pd.Series([images[0], None, images[2], images[3]], dtype=object)
    sides = ["test", "train", "test", "train"]
    frame = pd.DataFrame({"image": cells, "label": list("abab"), "split": sides})
    with pytest.warns(UserWarning, match="1 of 4"):
        scans = read_scans(frame, on_error="skip", cache=tmp_path / "a.npy")
    assert scans.splits.tolist() == ["test", "test", "train"]


def test_a_mapping_says_what_its_files_are(tmp_path):
    """Whatever these are called."""
    parquet(tmp_path / "a/train.parquet")
    parquet(tmp_path / "b/train.parquet", n=4, seed=1)
    both = {"train": tmp_path / "a", "test": tmp_path / "b/train.parquet"}
    assert len(read_scans(both, split="train")) == 3
    assert len(read_scans(both, split="test")) == 4


# The cache ----------------------------------------------------------------------------------------


def test_a_cache_is_mapped_and_made_once(tmp_path, monkeypatch):
    class_tree(tmp_path / "d")
    (tmp_path / "d/NonDemented/9.png").write_bytes(b"broken")
    plain = {}
    for name, options in (("plain", {}), ("cache", {"cache": tmp_path / "c/slices.npy"})):
        with pytest.warns(UserWarning, match="1 of 13 rows rejected"):
            plain[name] = read_scans(tmp_path / "d", on_error="skip", **options)
    assert plain["plain"].fingerprint() == plain["cache"].fingerprint()
    assert isinstance(plain["cache"].images, np.memmap)
    monkeypatch.setattr("mri.data.scans.decode_into", None)
    with pytest.warns(UserWarning, match="1 of 13 rows rejected"):
        again = read_scans(tmp_path / "d", on_error="skip", cache=tmp_path / "c/slices.npy")
    assert again.fingerprint() == plain["plain"].fingerprint()
    pd.testing.assert_frame_equal(again.rejected, plain["plain"].rejected)
    assert again.class_names == plain["plain"].class_names


def test_a_cache_of_other_data_or_options_is_made_anew(tmp_path):
    class_tree(tmp_path / "d")
    cache = tmp_path / "slices.npy"
    first = read_scans(tmp_path / "d", cache=cache)
    assert read_scans(tmp_path / "d", size=(8, 8), cache=cache).images.shape == (12, 8, 8)
    (tmp_path / "d/NonDemented/0.png").write_bytes(png(pictures(1, seed=77)[0]))
    changed = read_scans(tmp_path / "d", cache=cache)
    assert changed.fingerprint() == read_scans(tmp_path / "d").fingerprint() != first.fingerprint()
    frame = pd.DataFrame({"image": list(pictures(3)), "label": ["a", "b", "a"]})
    read_scans(frame, cache=cache)
    frame.loc[1, "label"] = "a"
    assert read_scans(frame, cache=cache).labels.tolist() == [0, 0, 0]
    cache.write_bytes(b"half a file")
    assert len(read_scans(tmp_path / "d", cache=cache)) == 12
    other = tmp_path / "other.npy"
    other.write_bytes(b"precious")
    with pytest.raises(DataError, match=r"other\.npy: is there, but no cache of slices"):
        read_scans(tmp_path / "d", cache=other)
    assert other.read_bytes() == b"precious"
    with pytest.raises(ValueError, match="cache must be the name of a file"):
        read_scans(tmp_path / "d", cache="")


def test_a_cache_on_a_disk_that_cannot_be_written_is_read(tmp_path, monkeypatch):
    class_tree(tmp_path / "d")
    cache = tmp_path / "c/slices.npy"
    first = read_scans(tmp_path / "d", cache=cache)

    def refuse(path):
        raise PermissionError(13, "Read-only file system", str(path))

    monkeypatch.setattr("mri.data.cache.os.access", lambda path, mode: False)
    monkeypatch.setattr("mri.data.cache.alone", refuse)
    assert read_scans(tmp_path / "d", cache=cache).fingerprint() == first.fingerprint()
    with pytest.raises(PermissionError, match=r"Read-only.*slices\.npy\.json"):
        read_scans(tmp_path / "d", size=(8, 8), cache=cache)


MEMORY = """
import numpy as np
from mri.data.scans import read_scans

def private():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) / 1024 for line in status if line.startswith("RssAnon"))

read_scans({tree!r}, split="train", cache={cache!r} + "0", threads=1)
before = private()
whole = read_scans({tree!r}, split=("train", "test"), size=(512, 512), cache={cache!r}, threads=1)
parts = [whole.part(split) for split in ("train", "test")]
joined = [parts[0] + parts[1], parts[1] + parts[0], whole + whole]
assert isinstance(joined[1].images, np.memmap) and not joined[1].images.flags.writeable
assert [len(of) for of in joined] == [600, 600, 1200]
assert joined[0].fingerprint() == whole.fingerprint()
assert np.shares_memory(joined[0].images, whole.images)
assert np.array_equal(joined[1].images[:200], parts[1].images)
assert np.array_equal(joined[1].images[200:], parts[0].images)
assert np.array_equal(joined[2].images[600:], whole.images)
print(private() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="resident memory is in /proc")
def test_mapped_slices_are_put_together_without_memory(tmp_path):
    """Three arrays of 150 to 300 MB in all, of which nothing is private memory."""
    class_tree(tmp_path / "d/train", of=100)
    class_tree(tmp_path / "d/test", of=50, seed=9)
    script = MEMORY.format(tree=str(tmp_path / "d"), cache=str(tmp_path / "c.npy"))
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) < 40
    assert sorted(of.name for of in tmp_path.iterdir() if "c.npy" in of.name) == [
        "c.npy", "c.npy.json", "c.npy0", "c.npy0.json",
    ]  # fmt: skip


def test_a_cache_notices_another_column(tmp_path):
    table = pa.table({"image": [png(x) for x in pictures(2)], "label": [0, 1], "sex": [1, 0]})
    with (
        pa.OSFile(str(tmp_path / "a.arrow"), "wb") as sink,
        pa.ipc.new_stream(sink, table.schema) as writer,
    ):
        writer.write_table(table)
    for label, found in (("label", [0, 1]), ("sex", [1, 0])):
        options = {"label": label, "class_names": ("a", "b"), "cache": tmp_path / "a.npy"}
        assert read_scans(tmp_path / "a.arrow", **options).labels.tolist() == found


@pytest.mark.filterwarnings("ignore:.*of which the train part has no slice")
def test_a_cache_notices_another_division(tmp_path):
    frame = pd.DataFrame({"image": list(pictures(3)), "label": list("abc")})
    for sides, labels in (("train train test", [0, 1]), ("train test train", [0, 2])):
        divided = frame.assign(split=sides.split())
        scans = read_scans(divided, split="train", cache=tmp_path / "a.npy")
        assert scans.labels.tolist() == labels


def test_the_minus_of_a_number_is_no_hyphen(tmp_path):
    blobs = [png(x) for x in pictures(4)]

    def read(labels, **options):
        return read_scans(pd.DataFrame({"image": blobs, "label": labels}), **options)

    named = {"-1": "healthy", "1": "ill"}
    assert read(["-1", "1"] * 2, class_names=named).labels.tolist() == [0, 1, 0, 1]
    with pytest.raises(DataError, match=r"row 0: label '?-1'? "):
        read(["-1", "0", "1", "1"], class_names={"0": "healthy", "1": "ill"})
    grades = read(["-0.5", "0.5"] * 2)
    assert (grades.class_names, grades.labels.tolist()) == (("-0.5", "0.5"), [0, 1, 0, 1])
    with pytest.raises(DataError, match="names a label twice"):
        read(["a", "A"] * 2, class_names={"a": "x", "A": "y"})


@pytest.mark.parametrize("kind", ["csv", "parquet", "frame", "arrow"])
def test_a_cache_knows_when_a_picture_that_a_table_names_has_changed(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    first, second, other = pictures(3)
    for name, image in (("p.png", first), ("q.png", second)):
        Path(name).write_bytes(png(image))
    table = pd.DataFrame({"image": ["p.png", "q.png"], "label": ["a", "b"]})
    source = {"csv": "s.csv", "parquet": "s.parquet", "frame": table, "arrow": "s.arrow"}[kind]
    if kind == "csv":
        table.to_csv(source, index=False)
    elif kind == "parquet":
        table.to_parquet(source)
    elif kind == "arrow":
        with (
            pa.OSFile(source, "wb") as sink,
            pa.ipc.new_file(sink, (t := pa.table(table)).schema) as to,
        ):
            to.write_table(t)
    before = read_scans(source, cache="c.npy").images.copy()
    np.testing.assert_array_equal(before, [first, second])
    np.testing.assert_array_equal(read_scans(source, cache="c.npy").images, before)
    Path("p.png").write_bytes(png(other))
    np.testing.assert_array_equal(read_scans(source, cache="c.npy").images, [other, second])


def test_a_cache_knows_when_a_picture_in_memory_has_changed(tmp_path):
    image = pytest.importorskip("PIL.Image")
    first, second = pictures(2)
    held = [image.fromarray(first), image.fromarray(second)]
    table, cache = pd.DataFrame({"image": held, "label": ["a", "b"]}), tmp_path / "c.npy"
    read_scans(table, cache=cache)
    held[0].paste(held[1])
    np.testing.assert_array_equal(read_scans(table, cache=cache).images, [second, second])


def test_data_beside_other_pictures_is_said(tmp_path):
    class_tree(tmp_path, names=("a", "b"))
    class_tree(tmp_path / "data", names=("c", "d"), seed=1)
    with pytest.warns(UserWarning, match="data/ was read, and not the pictures in a, b$"):
        assert read_scans(tmp_path).class_names == ("c", "d")


def test_a_class_may_be_called_phantom(tmp_path):
    class_tree(tmp_path, names=("human", "phantom", "animal"))
    assert read_scans(tmp_path).class_names == ("animal", "human", "phantom")


def test_one_split_in_two_spellings_is_named_twice(tmp_path):
    class_tree(tmp_path / "train")
    with pytest.raises(ValueError, match="several different ones"):
        read_scans(tmp_path, split=("train", "Training"))


@pytest.mark.skipif(os.name != "posix" or os.geteuid() != 0, reason="others are locked out anyway")
def test_a_folder_that_cannot_be_read_hides_no_slices(tmp_path):
    class_tree(tmp_path / "set", names=("a", "b"))
    deeper = tmp_path / "set" / "a" / "more"
    deeper.mkdir()
    (deeper / "x.png").write_bytes(png(pictures(1)[0]))
    code = (
        "import os, sys; from mri.data.scans import read_scans\n"
        "from mri.data.decode import DataError\n"
        "os.seteuid(65534)\n"
        "try: read_scans('set'); sys.exit('read')\n"
        "except DataError as error: print(error)"
    )
    for path in [tmp_path, *tmp_path.parents][:3]:
        path.chmod(0o755)
    deeper.chmod(0)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert "more: cannot be read" in done.stdout, done.stdout + done.stderr


CELLS = {
    "an array with a gap": "[[null, 1], [2, 3]]",
    "an array of text": '[["a", "b"], ["c", "d"]]',
    "two values": "b'abc', 1",
    "too deep": "[" * 6000,
}


@pytest.mark.parametrize("cell", CELLS.values(), ids=list(CELLS))
def test_a_strange_cell_costs_its_row_alone(cell):
    text = base64.b64encode(png(pictures(1)[0])).decode()
    table = pd.DataFrame({"image": [text, cell, text], "label": ["a", "a", "b"]})
    with pytest.warns(UserWarning, match="1 of 3 rows rejected"):
        assert read_scans(table, on_error="skip").rejected["row"].tolist() == [1]
    with pytest.raises(DataError, match="row 1: "):
        read_scans(table)


def test_records_whose_fields_are_of_other_kinds():
    blob = png(pictures(1)[0])
    plain = pd.DataFrame({"image": [{"bytes": np.frombuffer(blob, np.uint8)}], "label": ["a"]})
    np.testing.assert_array_equal(read_scans(plain).images, [decoded(blob)])
    numbers = pa.array([{"bytes": blob, "path": 3}, {"bytes": None, "path": 4}])
    table = pa.table({"image": numbers, "label": ["a", "b"]})
    with pytest.raises(DataError, match="row 1: the image is null"):
        read_scans(table)
    coded = pa.DictionaryArray.from_arrays(pa.array([0, 0, 1]), numbers)
    with pytest.raises(DataError, match="row 2: the image is null"):
        read_scans(pa.table({"image": coded, "label": ["a", "b", "b"]}))
    with pytest.raises(DataError, match="mixes types"):
        read_scans(pd.DataFrame({"image": [blob], "label": [2**70]}))


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("state.json", "{}"),
        ("state.json", '{"_data_files": [3]}'),
        ("state.json", "[" * 100_000),
        ("dataset_dict.json", '{"splits": null}'),
    ],
)
def test_a_broken_file_of_a_saved_data_set_is_named(tmp_path, name, text):
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=r"save (it|the data set) again"):
        read_scans(tmp_path)


def test_a_saved_data_set_whose_files_differ_is_refused(tmp_path):
    folder = tmp_path / "saved"
    save_to_disk(folder, pictures(4), [0, 1, 0, 1], ["a", "b"])
    file = sorted(folder.glob("*.arrow"))[1]
    table = pa.table({"image": [b"x"], "label": ["a"]})
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as to:
        to.write_table(table)
    with pytest.raises(DataError, match="its files differ"):
        read_scans(folder)
