"""Ways in which people hold slices: each is read rightly, warned of, or refused with the reason."""

import base64
import io
import json

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from mri.data.decode import DataError
from mri.data.scans import read_scans
from mri.data.sources import find_data

N = 8
IMAGES = np.stack([
    cv2.resize(x, (20, 24), interpolation=cv2.INTER_CUBIC)
    for x in np.random.default_rng(3).integers(0, 256, (N, 5, 5), dtype=np.uint8)
])  # fmt: skip
BLOBS = [cv2.imencode(".png", x)[1].tobytes() for x in IMAGES]
LABELS = ["well", "sick"] * 4
SIDES = ["train", "train", "train", "train", "test", "test", "train", "train"]


def frame(**columns):
    return pd.DataFrame({"image": pd.Series(BLOBS, dtype=object), "label": LABELS, **columns})


def right(scans, sides=None):
    """The slices as made, in their order, with their labels and parts."""
    np.testing.assert_array_equal(scans.images, IMAGES)
    assert [scans.class_names[label] for label in scans.labels] == LABELS
    assert scans.splits.tolist() == (sides or [""] * N)


def picture(path, i=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(BLOBS[i])


# The column that divides --------------------------------------------------------------------------


NAMES = ["Split", "SPLIT", "split ", "subset", "Set", "partition", "phase", "dataset", "usage"]
NAMES += ["data_split", "train_test"]


@pytest.mark.parametrize(
    ("name", "form"),
    [
        *((name, "frame") for name in NAMES),
        ("Split", "parquet"),
        ("Set", "csv"),
        ("SPLIT", "table"),
    ],
)
def test_a_column_divides_however_it_is_called(tmp_path, name, form):
    source = divided = frame(**{name: SIDES})
    if form == "parquet":
        divided.to_parquet(source := tmp_path / "a.parquet")
    elif form == "csv":
        texts = [base64.b64encode(blob).decode() for blob in BLOBS]
        divided.assign(image=texts).to_csv(source := tmp_path / "a.csv", index=False)
    elif form == "table":
        source = pa.Table.from_pandas(divided)
    right(read_scans(source), SIDES)
    assert len(read_scans(source, split="test")) == 2


@pytest.mark.parametrize(
    ("name", "cells", "found"),
    [
        ("fold", [0, 1] * 4, "'fold' is '?0'?"),
        ("is_train", [True, False] * 4, "'is_train' is '?True'?"),
        ("usage", ["Training", "PublicTest"] * 4, "'usage' is 'PublicTest'"),
    ],
)
def test_a_column_that_seems_to_divide_and_does_not_is_told(name, cells, found):
    for source in (frame(**{name: cells}), pa.Table.from_pandas(frame(**{name: cells}))):
        with pytest.warns(UserWarning, match=f"column {found}, expected .*, so it divides no rows"):
            right(read_scans(source))


def test_columns_that_cannot_both_be_right_are_refused():
    with pytest.raises(DataError, match="columns 'split' and 'subset' divide the rows differently"):
        read_scans(frame(split=SIDES, subset=SIDES[::-1]))
    right(read_scans(frame(split=SIDES, subset=SIDES)), SIDES)
    for source in (frame(Split=[True, False] * 4), pa.Table.from_pandas(frame(Split=[1, 0] * 4))):
        with pytest.raises(
            DataError, match=r"row 0: column 'Split' is .*, expected train, test or"
        ):
            read_scans(source)


def test_a_train_file_may_set_rows_aside_and_a_test_file_may_not(tmp_path):
    sides = [side.replace("test", "val") for side in SIDES]
    frame(split=sides).to_parquet(tmp_path / "train.parquet")
    right(read_scans(tmp_path), [side.replace("val", "validation") for side in sides])
    for name in ("test.parquet", "train.parquet"):
        frame(split=SIDES).to_parquet(tmp_path / name)
        with pytest.raises(DataError, match=r"its name says \w+, but it holds \['test', 'train'\]"):
            read_scans(tmp_path / name)


def test_what_is_divided_itself_is_not_given_as_one_part():
    told = r"the table: has parts of its own, \['test', 'train'\], but was given as 'train' alone"
    with pytest.raises(DataError, match=told):
        read_scans({"train": frame(split=SIDES), "test": frame()})


def test_a_mapping_of_misspelt_or_doubled_parts_is_refused():
    for keys in (["tarin", "test"], ["train", "Training"], ["train", "test", "extra"]):
        with pytest.raises(
            DataError, match=r"parts \[.*\], expected one each of train, test and val"
        ):
            read_scans({key: frame() for key in keys})
    assert read_scans({"a": frame(), "b": frame()}).splits.tolist() == ["a"] * N + ["b"] * N


def test_a_file_of_no_part_beside_train_and_test_is_refused(tmp_path):
    """Its slices would be read a second time."""
    train = np.array(SIDES) == "train"
    for name, rows in (("all", train | True), ("train", train), ("test", ~train)):
        frame()[rows].to_parquet(tmp_path / f"{name}.parquet")
    with pytest.raises(DataError, match=r"all\.parquet: is of no part, but others beside it are"):
        find_data(tmp_path)


def test_arrow_files_are_of_the_part_that_they_are_named_after(tmp_path):
    for side in ("test", "train"):
        table = pa.Table.from_pandas(frame()[np.array(SIDES) == side], preserve_index=False)
        with (
            pa.OSFile(str(tmp_path / f"{side}.arrow"), "wb") as sink,
            pa.ipc.new_stream(sink, table.schema) as writer,
        ):
            writer.write_table(table)
    scans = read_scans([tmp_path / "test.arrow", tmp_path / "train.arrow"])
    assert scans.splits.tolist() == ["test"] * 2 + ["train"] * 6


# The columns of slices and labels -----------------------------------------------------------------


def test_columns_are_read_however_they_are_spelt(tmp_path):
    named = frame().rename(columns={"image": "Image", "label": "LABEL "})
    named.to_parquet(tmp_path / "a.parquet")
    sources = [named, tmp_path, pa.Table.from_pandas(named), named.to_dict("list")]
    for source in (*sources, named.to_dict("records"), {"IMAGE": IMAGES, "label": LABELS}):
        right(read_scans(source))
    right(read_scans(named.rename(columns={"Image": "The scan"}), image="the_scan"))
    # What is spelt as it should be comes first; of two others neither does.
    right(read_scans(frame(Image=BLOBS[::-1], LABEL=LABELS[::-1])))
    with pytest.raises(DataError, match=r"columns \['Image', 'IMAGE', 'label'\], expected one 'im"):
        read_scans(pd.DataFrame({"Image": BLOBS, "IMAGE": BLOBS, "label": LABELS}))


def test_columns_of_different_lengths_are_refused():
    with pytest.raises(ValueError, match="same length"):
        read_scans({"image": IMAGES, "label": LABELS[:-1]})


def test_labels_of_a_csv_are_what_stands_there(tmp_path):
    """Grades with a point, zeros in front and truth values are no numbers."""
    texts = [base64.b64encode(blob).decode() for blob in BLOBS]
    for labels in (["0", "0.5", "1", "2"], ["TRUE", "FALSE"] * 2, ["0.0", "0.5", "1.0", "2.0"]):
        cells = pd.DataFrame({"image": texts[:4], "label": labels})
        cells.to_csv(tmp_path / "a.csv", index=False)
        scans = read_scans(tmp_path / "a.csv")
        assert [scans.class_names[label] for label in scans.labels] == labels


def test_paths_of_a_table_are_all_of_one_folder(tmp_path, monkeypatch):
    """A picture that is missing beside the table is not taken from another data set."""
    for i in range(N):
        picture(tmp_path / f"here/{i}.png", i)
    for i in range(N - 1):
        picture(tmp_path / f"other/here/{i}.png", i)
    paths = [f"here/{i}.png" for i in range(N)]
    pd.DataFrame({"image": paths, "label": LABELS}).to_csv(tmp_path / "other/a.csv", index=False)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"row 7: only paths are stored here, and 'here/7\.png' is"):
        read_scans("other/a.csv")
    picture(tmp_path / f"other/here/{N - 1}.png", N - 1)
    right(read_scans("other/a.csv"))


def test_text_in_parquet_may_be_pictures(tmp_path):
    texts = [base64.b64encode(blob).decode() for blob in BLOBS]
    for begin in ("", "data:image/png;base64,"):
        pd.DataFrame({"image": [begin + text for text in texts], "label": LABELS}).to_parquet(
            tmp_path / "a.parquet"
        )
        right(read_scans(tmp_path))


def test_a_record_without_bytes_or_path_says_so():
    with pytest.raises(DataError, match="row 0: a dict is no image, expected bytes, pixels or a p"):
        read_scans(frame(image=[{"content": blob} for blob in BLOBS]))


# Folders ------------------------------------------------------------------------------------------


def test_an_empty_folder_of_a_class_or_a_part_is_told(tmp_path):
    picture(tmp_path / "train/sick/0.png")
    picture(tmp_path / "train/well/1.png", 1)
    (tmp_path / "train/mild/deeper").mkdir(parents=True)
    (tmp_path / "train/moderate").mkdir()
    with pytest.warns(UserWarning, match="images in mild, moderate, so these are no classes"):
        assert len(read_scans(tmp_path)) == 2
    (tmp_path / "train/mild/deeper").rmdir()
    for name in ("mild", "moderate"):
        (tmp_path / "train" / name).rmdir()
    (tmp_path / "test").mkdir()
    with pytest.warns(UserWarning, match="no JPEG or PNG images in test, so these parts are empty"):
        assert len(read_scans(tmp_path)) == 2


@pytest.mark.parametrize(
    "places", [["a/0.png", "a/test/1.png", "b/0.png"], ["my_train/0.png", "my_test/0.png"]]
)
def test_parts_below_classes_or_in_their_place_are_refused(tmp_path, places):
    """The pictures would be read undivided, or the parts as classes."""
    for i, place in enumerate(places):
        picture(tmp_path / place, i)
    with pytest.raises(DataError, match="is named after a part, but stands for a class or inside"):
        read_scans(tmp_path)


def test_classes_that_are_divided_below_say_what_to_do(tmp_path):
    for i, place in enumerate(["a/train/0", "a/test/0", "b/train/0", "b/test/0"]):
        picture(tmp_path / f"{place}.png", i)
    told = "each has test, train; give one of them, or put train/ and test/ above the class folders"
    with pytest.raises(DataError, match=told):
        read_scans(tmp_path)


def test_pictures_of_other_kinds_are_to_be_converted(tmp_path):
    picture(tmp_path / "a/0.png")
    (tmp_path / "b").mkdir()
    (tmp_path / "b/0.jp2").write_bytes(b"\0\0\0\x0cjP  ")
    with pytest.raises(
        DataError, match=r"0\.jp2: not a JPEG or PNG image, .*.*; convert other kinds to PNG"
    ):
        read_scans(tmp_path)


def test_a_class_of_the_test_part_that_train_lacks_is_told(tmp_path):
    for i, place in enumerate(["train/a b/0", "train/c/0", "test/a_b/0", "test/see/0"]):
        picture(tmp_path / f"{place}.png", i)
    told = "the test part has see, of which the train part has no slice; is it another spelling?"
    with pytest.warns(UserWarning, match=told):
        scans = read_scans(tmp_path)
    assert len(scans.class_names) == 3


@pytest.mark.parametrize(
    ("places", "told"),
    [
        (["binary/AD", "binary/CN", "four/Mild", "four/Moderate"], "binary"),
        (["augmented/MildDemented", "augmented/NonDemented", "NonDemented"], "augmented"),
        (["figures", "dataset/0 normal", "dataset/1 mild impairment"], "dataset"),
    ],
)
def test_a_data_set_in_the_place_of_a_class_is_refused(tmp_path, places, told):
    """Of two sets with other names, and of one beside pictures, each set was a class."""
    for i, place in enumerate(places):
        picture(tmp_path / f"{place}/{i}.png", i)
    with pytest.raises(DataError, match=f"{told}: stands for a class, but holds .* give the"):
        read_scans(tmp_path)


def test_people_and_kinds_below_a_class_may_be_named_after_it(tmp_path):
    places = [
        "AD/AD mild/0",
        "AD/AD moderate/1",
        "mild/mild_01/2",
        "mild/mild_02/3",
        "CN/normal 1/4",
    ]
    for i, place in enumerate([*places, "CN/normal 2/5"]):
        picture(tmp_path / f"{place}.png", i)
    assert read_scans(tmp_path).labels.tolist() == [0, 0, 1, 1, 2, 2]


def test_a_part_without_class_folders_is_not_left_out(tmp_path):
    """As the test part of a contest, whose labels are secret: the train part would be all."""
    for i, place in enumerate(["train/a/0", "train/b/1", "test/2"]):
        picture(tmp_path / f"{place}.png", i)
    with pytest.raises(DataError, match="the pictures in test are in no class folders; give a tab"):
        read_scans(tmp_path)


def test_what_lies_beside_the_slices_of_a_class_is_no_slice(tmp_path):
    """Masks and small copies, and what a network drive adds to each folder."""
    for i, place in enumerate(["sick/0", "well/1", "well/@eaDir/1.png/THUMB", "$RECYCLE.BIN/2"]):
        picture(tmp_path / f"{place}.png", i)
    assert read_scans(tmp_path).labels.tolist() == [0, 1]
    for name in ("thumbnails", "Masks"):
        picture(tmp_path / f"well/{name}/1.png")
        with pytest.raises(DataError, match=f"the folder 'well/{name}' is no class; move it away"):
            read_scans(tmp_path)
        (tmp_path / f"well/{name}/1.png").unlink()


@pytest.mark.parametrize("copy", ["sick - Copy", "Sick (1)", "sick_aug", "augmented sick"])
def test_a_class_that_looks_like_a_copy_is_told(tmp_path, copy):
    for i, place in enumerate(["sick", copy, "well"]):
        picture(tmp_path / f"{place}/{i}.png", i)
    with pytest.warns(UserWarning, match=r"is the class '.*' a copy of 'sick'\? Merge the two"):
        assert len(read_scans(tmp_path).class_names) == 3


# What is given for the names of classes -----------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [{"well", "sick"}, {"sick": 0, "well": 1}, (name for name in "ab"), "ab", [], [0, 1], {0: 1}],
    ids=["set", "from name to label", "generator", "text", "none", "numbers", "number to number"],
)
def test_class_names_without_an_order_are_refused(names):
    with pytest.raises(ValueError, match="To name classes, pass class_names=: the names in label"):
        read_scans({"image": IMAGES, "label": [1, 0] * 4}, class_names=names)


def test_numbers_as_text_name_numbers():
    """As in the configurations that JSON keeps."""
    right(
        read_scans({"image": IMAGES, "label": [1, 0] * 4}, class_names={"0": "sick", "1": "well"})
    )
    names = np.array(["sick", "well"])
    right(read_scans({"image": IMAGES, "label": [1, 0] * 4}, class_names=names))


def test_a_number_may_name_a_grade_that_is_text():
    source = {"image": IMAGES, "label": ["0.5", "0.0"] * 4}
    for names in ({0.5: "well", 0: "sick"}, {"0.5": "well", "0": "sick"}):
        right(read_scans(source, class_names=names))


def test_two_spellings_of_a_grade_are_one():
    """As where one part of a study has whole grades only."""
    source = {"image": IMAGES, "label": ["0", "0.5", "0.0", "1", "0.50", "2", "0.5", "10"]}
    scans = read_scans(source)
    assert [scans.class_names[label] for label in scans.labels] == [
        "0", "0.5", "0", "1", "0.5", "2", "0.5", "10",
    ]  # fmt: skip


def test_a_dict_that_contradicts_the_names_in_the_data_is_refused():
    """A list of names is an order; a dict from label to name would have swapped the classes."""
    meta = {"info": {"features": {"label": {"names": ["sick", "well"], "_type": "ClassLabel"}}}}
    table = pa.table({"image": BLOBS, "label": [1, 0] * 4})
    table = table.replace_schema_metadata({"huggingface": json.dumps(meta)})
    with pytest.raises(
        DataError, match=r"its classes are .*, but class_names calls label 0 'well'"
    ):
        read_scans(table, class_names={0: "well", 1: "sick"})
    for names in (["well", "sick"], {0: "sick", 1: "well"}, {"Well": "well", "SICK": "sick"}):
        right(read_scans(table, class_names=names))
    for names in ({0: "sick", 1: "sick"}, {"sick": "sick", "well": "sick"}, {0: "x", 1: "x"}):
        assert read_scans(table, class_names=names).labels.tolist() == [0] * N


def test_labels_from_one_are_told_where_only_the_caller_names_them():
    source = {"image": IMAGES[:2], "label": [1, 2]}
    with pytest.warns(UserWarning, match="labels 1 to 2 occur, taken to count from 0; pass class_"):
        assert read_scans(source, class_names=["a", "b", "c"]).labels.tolist() == [1, 2]


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["Non_Demented", "NonDementd"], "nondementd.* are nearly the same; a typo"),
        (["Mild Demented", "Mild Demeted"], "are nearly the same"),
        (["Demented", "Non_Demented"], None),
        (["Converted to Dementia", "Not Converted to Dementia"], None),
        (["Patient_group_1", "Patient_group_2"], None),
        (["AD", "CN"], None),
    ],
)
def test_a_class_that_looks_like_a_typo_is_told(names, told):
    source = frame(label=names * 4)
    if told:
        with pytest.warns(UserWarning, match=told):
            read_scans(source)
        read_scans(source, class_names=names)  # Who names them means them.
    else:
        read_scans(source)


@pytest.mark.parametrize("gap", ["nan", "<NA>", "N/A", "?"])
def test_a_gap_that_became_text_is_told(gap):
    """As `astype(str)` writes it."""
    with pytest.warns(UserWarning, match="is taken for a class; if it is a gap, leave the cell em"):
        read_scans(frame(label=[gap, *LABELS[1:]]))
    read_scans(frame(label=["None", *LABELS[1:]]))


def test_a_folder_for_each_person_and_none_for_the_classes_is_told(tmp_path):
    for i in range(20):
        picture(tmp_path / f"OAS1_{i:04}/{i}.png", i % N)
    with pytest.warns(
        UserWarning, match="20 classes, such as 'OAS1_0000' and 'OAS1_0001'; are they"
    ):
        assert len(read_scans(tmp_path)) == 20


# Pictures of Pillow, and CSV as programs write it -------------------------------------------------


def test_pictures_of_pillow_are_read_as_their_files_are_or_refused():
    image = pytest.importorskip("PIL.Image")
    exif = image.Exif()
    exif[274] = 6  # Orientation: the top is on the right.
    image.fromarray(IMAGES[0]).save(file := io.BytesIO(), "PNG", exif=exif)
    opened = image.open(io.BytesIO(file.getvalue()))
    assert read_scans(frame(image=[file.getvalue()] * N)).images.shape == (N, 20, 24), "turned"
    with pytest.raises(DataError, match="row 0: its EXIF data turn the picture; apply"):
        read_scans(frame(image=[opened] * N))
    for mode in ("LA", "P", "CMYK", "RGBA", "I", "F"):
        cells = [image.fromarray(x) for x in IMAGES]
        via = [x.convert("RGB").convert(mode) if mode == "CMYK" else x.convert(mode) for x in cells]
        right(read_scans(frame(image=via)))
    cut = image.open(io.BytesIO(BLOBS[0][:200]))
    with pytest.raises(
        DataError, match=r"row 0: the image is truncated or corrupt \(image file is"
    ):
        read_scans(frame(image=[cut] * N))


@pytest.mark.parametrize(
    ("head", "line", "end"),
    [
        ("image, label", " {} , {} ", "\n"),
        ('"image","label"', '"{}","{}"', "\r\n\r\n"),
        ("\ufeffImage;Label", "{};{}", "\n"),
        ("index,image,label", "7,{},{}", "\n"),
        ("image;label;age", "{};{};72,5", "\n"),
        ("image\tlabel\tage", "{}\t{}\t72,5", "\n"),
    ],
)
def test_csv_as_programs_write_it(tmp_path, head, line, end):
    for i in range(N):
        picture(tmp_path / f"a b/{i}.png", i)
    lines = [line.format(f"a b/{i}.png", label) for i, label in enumerate(LABELS)]
    (tmp_path / "a.csv").write_bytes(end.join([head, *lines]).encode())
    right(read_scans(tmp_path / "a.csv"))


@pytest.mark.parametrize("encoding", ["utf-16", "cp1250"])
def test_csv_of_another_encoding_says_so(tmp_path, encoding):
    (tmp_path / "a.csv").write_bytes("image,label\n0.png,Mírná\n".encode(encoding))
    with pytest.raises(DataError, match=r"not a readable CSV file \(.*\); save it as UTF-8"):
        read_scans(tmp_path / "a.csv")


def test_a_link_inside_of_a_class_is_followed_and_one_to_above_is_not(tmp_path):
    picture(tmp_path / "set/a/0.png")
    picture(tmp_path / "set/b/1.png", 1)
    picture(tmp_path / "other/2.png", 2)
    (tmp_path / "set/a/more").symlink_to(tmp_path / "other")
    (tmp_path / "set/a/round").symlink_to(tmp_path / "set")
    (tmp_path / "other/back").symlink_to(tmp_path / "set/a")
    assert read_scans(tmp_path / "set").labels.tolist() == [0, 0, 1]


def test_transparent_pictures_are_told():
    alpha = np.full_like(IMAGES, 255)
    cells = [cv2.imencode(".png", np.dstack([x, x, x, a]))[1].tobytes()
             for x, a in zip(IMAGES, alpha, strict=True)]  # fmt: skip
    right(read_scans(frame(image=cells)))
    alpha[0, :5] = 0
    cells[0] = cv2.imencode(".png", np.dstack([*[IMAGES[0]] * 3, alpha[0]]))[1].tobytes()
    with pytest.warns(UserWarning, match="the table, row 0 is transparent in part"):
        read_scans(frame(image=cells))
