"""The decoder on files built here: every kind of good row, bad row and wrong file."""

import dataclasses
import io
import json
import os
import re
import struct
import subprocess
import sys
import threading
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mri.data.decode import DataError, column_views, dict_to_image
from mri.data.parquet import CLASS_NAMES, PHANTOM_KEY, SCHEMA
from mri.data.phantom import write_phantom
from mri.data.scans import Scans, iter_batches, read_scans
from mri.data.sources import Slices, find_data

H, W = 24, 20


def pictures(n, h=H, w=W, seed=0):
    """Smooth random gray images, all different."""
    coarse = np.random.default_rng(seed).integers(0, 256, (n, 4, 4), dtype=np.uint8)
    return np.stack([cv2.resize(c, (w, h), interpolation=cv2.INTER_CUBIC) for c in coarse])


def jpeg(image, *options):
    return cv2.imencode(".jpg", image, options)[1].tobytes()


def png(image):
    return cv2.imencode(".png", image)[1].tobytes()


def raw_png(h, w, depth, colour, rows, *chunks):
    """Spell out a PNG chunk by chunk (PNG specification, 3rd edition, section 5)."""
    header = struct.pack(">IIBBBBB", w, h, depth, colour, 0, 0, 0)
    idat = zlib.compress(b"".join(b"\0" + bytes(row) for row in rows))
    parts = [(b"IHDR", header), *chunks, (b"IDAT", idat), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    )


def jpeg_header(h, w):
    """Spell out a JPEG that ends after its frame header (ITU-T T.81, B.2.2)."""
    return b"\xff\xd8\xff\xc0" + struct.pack(">HBHHB", 11, 8, h, w, 1) + b"\x01\x11\0" + b"\0" * 64


def metadata(names):
    features = {"label": {"names": names, "_type": "ClassLabel"}}
    return {"huggingface": json.dumps({"info": {"features": features}})}


def image_column(blobs, kind="struct"):
    inner = {
        "large": pa.large_binary(),
        "struct of large": pa.large_binary(),
        "view": pa.binary_view(),
    }
    column = pa.array(blobs, inner.get(kind, pa.binary()))
    if "dictionary" in kind:
        column = column.dictionary_encode()
    if "struct" not in kind:
        return column
    paths = pa.array([f"{i}.jpg" for i in range(len(blobs))])
    return pa.StructArray.from_arrays([paths, column], ["path", "bytes"])


NAMED = SCHEMA.metadata


def write(path, blobs, labels=None, *, kind="struct", meta=NAMED, label_type=None, **options):
    """Write a file of images, encoded or null, with labels 0, 1, 2, 3, 0, ... by default."""
    labels = pa.array([i % 4 for i in range(len(blobs))] if labels is None else labels, label_type)
    table = pa.table({"image": image_column(blobs, kind), "label": labels}).replace_schema_metadata(
        meta
    )
    pq.write_table(table, path, **options)
    return path


def slow_decode(blob):
    """Decode in another way: Pillow where it is installed, else OpenCV in full colour."""
    try:
        from PIL import Image
    except ImportError:
        return cv2.cvtColor(
            cv2.imdecode(np.frombuffer(blob, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2GRAY
        )
    return np.asarray(Image.open(io.BytesIO(blob)))


def exactly(text):
    return re.escape(str(text))


@pytest.fixture
def file(tmp_path):
    """30 rows in row groups of 8: JPEG and PNG in turn."""
    blobs = [png(x) if i % 2 else jpeg(x) for i, x in enumerate(pictures(30))]
    return write(tmp_path / "train.parquet", blobs, row_group_size=8)


# One record ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("wrap", [lambda b: b, lambda b: {"bytes": b, "path": None}, memoryview])
def test_a_record_may_be_a_mapping_or_bytes(wrap):
    image = pictures(1)[0]
    decoded = dict_to_image(wrap(png(image)))
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, image)


def test_gray_jpeg_equals_an_independent_decoder():
    for options in [(), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1), (cv2.IMWRITE_JPEG_RST_INTERVAL, 1)]:
        blob = jpeg(pictures(1, 37, 41)[0], *options)
        np.testing.assert_array_equal(dict_to_image(blob), slow_decode(blob))


@pytest.mark.parametrize("colour", [(255, 0, 0), (0, 255, 0), (0, 0, 255), (200, 100, 50)])
def test_colour_becomes_luma_of_bt601(colour):
    image = np.full((16, 16, 3), colour[::-1], np.uint8)  # OpenCV writes blue first.
    luma = np.dot(colour, (0.299, 0.587, 0.114))
    np.testing.assert_allclose(dict_to_image(png(image)), luma, atol=1)
    np.testing.assert_allclose(dict_to_image(jpeg(image)), luma, atol=2)


def test_palette_png():
    palette = bytes([10, 10, 10, 90, 90, 90, 250, 250, 250])
    blob = raw_png(2, 3, 8, 3, [[0, 1, 2], [2, 0, 1]], (b"PLTE", palette))
    np.testing.assert_allclose(dict_to_image(blob), [[10, 90, 250], [250, 10, 90]], atol=1)


def test_16_bit_png_keeps_the_upper_8():
    values = np.array([[0, 255, 256, 1000], [32768, 40000, 65279, 65535]], ">u2")
    blob = raw_png(2, 4, 16, 0, [row.tobytes() for row in values])
    np.testing.assert_allclose(dict_to_image(blob), values / 257, atol=1)


def test_alpha_is_ignored():
    blob = raw_png(1, 2, 8, 4, [[77, 0, 200, 128]])
    np.testing.assert_array_equal(dict_to_image(blob), [[77, 200]])


def test_exif_rotation_is_applied():
    blob = jpeg(pictures(1)[0])
    # Little-endian TIFF with one entry: orientation (0x0112, short) 6, the top is on the right.
    exif = b"Exif\0\0II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x0112, 3, 1, 6, 0, 0)
    rotated = blob[:2] + b"\xff\xe1" + struct.pack(">H", len(exif) + 2) + exif + blob[2:]
    np.testing.assert_array_equal(dict_to_image(rotated), np.rot90(dict_to_image(blob), -1))


def test_comments_fill_bytes_and_trailing_bytes_are_no_fault():
    blob = jpeg(pictures(1)[0])
    # A comment that contains the marker of a frame of 65535 × 65535 pixels.
    comment = b"\xff\xff\xff\xfe" + struct.pack(">H", 14) + b"\xff\xc0\0\x11\x08" + b"\xff" * 7
    np.testing.assert_array_equal(
        dict_to_image(blob[:2] + comment + blob[2:] + b"\0" * 9), dict_to_image(blob)
    )


@pytest.mark.parametrize(
    ("size", "method"),
    [
        ((11, 7), cv2.INTER_AREA),
        ((60, 40), cv2.INTER_LINEAR),
        ((12, 40), cv2.INTER_LINEAR),
        ((H, W), None),
    ],
)
def test_resize(size, method):
    image = pictures(1)[0]
    expected = image if method is None else cv2.resize(image, size[::-1], interpolation=method)
    decoded = dict_to_image(png(image), size=size)
    assert decoded.shape == size
    np.testing.assert_array_equal(decoded, expected)


@pytest.mark.parametrize("size", [128, (128,), (0, 5), (5, 4097), (2.0, 2), "12", (1, 2, 3)])
def test_a_wrong_size_says_so(size, file):
    message = f"each 1 to 4096. Received: size={size!r}"
    with pytest.raises(ValueError, match=exactly(message)):
        dict_to_image(png(pictures(1)[0]), size=size)
    with pytest.raises(ValueError, match=exactly(message)):
        read_scans(file, size=size)
    with pytest.raises(ValueError, match=exactly(message)):
        iter_batches(file, size=size)


@pytest.mark.parametrize("record", [None, "slice.jpg", {"bytes": None, "path": "x"}, {}, 7])
def test_a_record_without_bytes_says_what_it_got(record):
    with pytest.raises(
        DataError,
        match=exactly(f"expected the bytes of a JPEG or PNG image. Received: record={record!r}"),
    ):
        dict_to_image(record)


GOOD = pictures(1, 16, 16, seed=5)[0]
GIF = b"GIF89a\x01\0\x01\0\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\x01\0\x01\0\0\x02\x02D\x01\0;"
BAD_BLOBS = {
    "zero bytes": (b"", "the image has zero bytes"),
    "truncated JPEG": (jpeg(GOOD)[:-40], "the image is truncated or corrupt"),
    "JPEG without its end": (jpeg(GOOD)[:-2], "the image is truncated or corrupt"),
    "JPEG cut in the header": (jpeg(GOOD)[:60], "the JPEG header is truncated or corrupt"),
    "JPEG cut in the frame header": (jpeg_header(16, 16)[:9], "the JPEG header is truncated"),
    "truncated PNG": (png(GOOD)[:-20], "the image is truncated or corrupt"),
    "PNG cut in the header": (png(GOOD)[:20], "not a JPEG or PNG image, it begins with"),
    "PNG with a flipped bit": (
        png(GOOD)[:60] + bytes([png(GOOD)[60] ^ 1]) + png(GOOD)[61:],
        "the image is truncated or corrupt",
    ),
    "text": (b"a slice of a brain", "not a JPEG or PNG image, it begins with b'a slice '"),
    "GIF": (GIF, "not a JPEG or PNG image, it begins with b'GIF89a"),
    "one byte": (b"\xff", "not a JPEG or PNG image"),
    "JPEG bomb": (jpeg_header(50_000, 50_001), "the header declares 50000 × 50001 pixels"),
    "JPEG bomb behind tables": (  # Huffman tables have a marker among those of the frames.
        b"\xff\xd8\xff\xc4" + struct.pack(">H", 20) + b"\1" * 18 + jpeg_header(50_000, 50_001)[2:],
        "the header declares 50000 × 50001 pixels",
    ),
    "JPEG bomb behind a bare marker": (  # Read as a length, its marker would skip the frame.
        b"\xff\xd8\xff\x01"
        + jpeg_header(30_000, 30_000)[2:].ljust(0xFFC0, b"\0")
        + jpeg_header(16, 16)[2:],
        "the JPEG header is truncated or corrupt",
    ),
    "PNG bomb behind another chunk": (
        png(GOOD)[:8] + raw_png(1, 1, 8, 0, [])[8:16].replace(b"IHDR", b"teXt") + png(GOOD)[16:],
        "not a JPEG or PNG image, it begins with",
    ),
    "PNG bomb": (
        raw_png(50_000, 50_001, 8, 0, [b""]),
        "the header declares 50000 × 50001 pixels, the limit is 4096 a side",
    ),
    "one side over the limit": (png(np.zeros((1, 4097), np.uint8)), "the header declares 1 × 4097"),
    "JPEG without a height": (jpeg_header(0, 16), "the header declares 0 × 16 pixels"),
}


@pytest.mark.parametrize("kind", BAD_BLOBS)
def test_bytes_that_are_no_image_say_why(kind):
    blob, cause = BAD_BLOBS[kind]
    with pytest.raises(DataError, match=exactly(cause)):
        dict_to_image(blob)


def test_a_side_at_the_limit_is_decoded():
    image = np.zeros((1, 4096), np.uint8)
    assert dict_to_image(png(image)).shape == (1, 4096)
    assert dict_to_image(jpeg(image.T)).shape == (4096, 1)


@pytest.mark.parametrize("encode", [jpeg, png])
def test_every_truncation_is_found(encode):
    blob = encode(GOOD)
    for length in range(len(blob)):
        with pytest.raises(DataError, match=r"zero bytes|begins with|truncated or corrupt"):
            dict_to_image(blob[:length])


# Whole files --------------------------------------------------------------------------------------


def test_read_scans_equals_an_independent_decoder(file):
    frame = pd.read_parquet(file)
    scans = read_scans(file)
    assert scans.images.dtype == np.uint8
    assert scans.labels.dtype == np.int64
    np.testing.assert_array_equal(scans.images, [slow_decode(r["bytes"]) for r in frame["image"]])
    np.testing.assert_array_equal(scans.labels, frame["label"])
    assert scans.class_names == CLASS_NAMES
    assert len(scans) == 30
    assert len(scans.rejected) == 0
    assert list(scans.rejected.columns) == ["file", "row", "cause"]
    assert not scans.synthetic


@pytest.mark.parametrize("threads", [1, 2, 3, 64])
def test_the_result_does_not_depend_on_threads(file, threads):
    assert read_scans(file, threads=threads).fingerprint() == read_scans(file).fingerprint()


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 7, 30, 1000])
def test_streaming_equals_bulk(file, batch_size, threads):
    batches = list(iter_batches(file, batch_size=batch_size, threads=threads))
    bulk = read_scans(file)
    assert [len(images) for images, _ in batches[:-1]] == [batch_size] * (len(batches) - 1)
    np.testing.assert_array_equal(np.concatenate([images for images, _ in batches]), bulk.images)
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in batches]), bulk.labels)


def test_batches_do_not_share_memory(file):
    first, second, *_ = (images for images, _ in iter_batches(file, batch_size=7))
    kept = first.copy()
    second[:] = 0
    np.testing.assert_array_equal(first, kept)


def test_a_file_of_more_rows_than_are_read_at_a_time(tmp_path):
    images = pictures(300, 6, 5)
    path = write(tmp_path / "a.parquet", [png(x) for x in images], row_group_size=130)
    for threads in (1, 2):  # Batches of 64 and 128 rows straddle the row groups.
        np.testing.assert_array_equal(read_scans(path, threads=threads).images, images)


def test_source_may_be_a_file_a_folder_a_pattern_or_a_list(tmp_path):
    images = pictures(9)
    parts = [
        write(tmp_path / f"train-{i}.parquet", [png(x) for x in images[3 * i : 3 * i + 3]])
        for i in range(3)
    ]
    (tmp_path / "notes.txt").write_text("not a shard")
    for source in (tmp_path, str(tmp_path), str(tmp_path / "train-*.parquet"), parts):
        np.testing.assert_array_equal(read_scans(source).images, images)
    np.testing.assert_array_equal(read_scans(parts[1]).images, images[3:6])
    # A list keeps its order, and brackets in a name that exists are no pattern.
    backwards = read_scans([str(parts[2]), parts[0]]).images
    np.testing.assert_array_equal(backwards, np.concatenate([images[6:], images[:3]]))
    odd = parts[0].rename(tmp_path / "train[1].parquet")
    np.testing.assert_array_equal(read_scans(odd).images, images[:3])


def test_split_knows_the_names_of_the_hub(tmp_path):
    names = [
        "test.parquet",
        "test-00000-of-00001-44110b9df98c5585.parquet",
        "testing.parquet",
        "train.parquet",
        "train-00000-of-00001-c08a401c53fe5312.parquet",
        "train_2.parquet",
        "training.parquet",
        "my-train.parquet",
    ]
    for i, name in enumerate(names):
        write(tmp_path / name, [png(pictures(1, seed=i)[0])])
    found = [Slices(tmp_path / name).splits for name in names]
    assert found == [["test"]] * 3 + [["train"]] * 4 + [[]]


def test_read_scans_and_iter_batches_take_the_split(tmp_path):
    for seed, name in enumerate(["train.parquet", "test.parquet"]):
        write(tmp_path / name, [png(pictures(1, seed=seed)[0])])
    for seed, name in enumerate(["train", "test"]):
        ((streamed, _),) = iter_batches(tmp_path, split=name)
        np.testing.assert_array_equal(streamed, pictures(1, seed=seed))
        np.testing.assert_array_equal(read_scans(tmp_path, split=name).images, streamed)


@pytest.mark.parametrize("source", ["nowhere", "nowhere/*.parquet", []])
def test_no_file_says_which_to_put_where(source, tmp_path):
    source = source and str(tmp_path / source)
    message = exactly(f"{source}: no parquet file found. Put train-00000-of-00001-c08a401c53fe5312")
    with pytest.raises(DataError, match=message):
        read_scans(source)


def test_no_file_of_a_split(file):
    told = "no parquet file whose name begins with 'test' found, there are ['train']"
    with pytest.raises(DataError, match=exactly(told)):
        read_scans(file.parent, split="test")


def test_a_missing_file_of_a_list(file, tmp_path):
    with pytest.raises(DataError, match=exactly(f"{tmp_path / 'x.parquet'}: no such file. Put tr")):
        read_scans([file, tmp_path / "x.parquet"])


@pytest.mark.parametrize(
    "kind", ["struct", "plain", "large", "struct of large", "view", "dictionary"]
)
def test_every_type_of_bytes_column(tmp_path, kind):
    images = pictures(7)
    images[6] = images[2]
    blobs = [*map(png, images[:3]), None, *map(png, images[3:])]
    path = write(tmp_path / "a.parquet", blobs, kind=kind, row_group_size=5)
    with pytest.warns(UserWarning, match="1 of 8 rows rejected"):
        scans = read_scans(path, on_error="skip")
    np.testing.assert_array_equal(scans.images, images)
    assert scans.rejected["row"].tolist() == [3]


@pytest.mark.parametrize("bits", [8, 16, 32, 64])
@pytest.mark.parametrize("sign", ["int", "uint"])
def test_every_integer_label(tmp_path, sign, bits):
    kind = getattr(pa, f"{sign}{bits}")()
    path = write(tmp_path / "a.parquet", [png(GOOD)] * 4, [3, 0, 2, 1], label_type=kind)
    labels = read_scans(path).labels
    assert labels.dtype == np.int64
    np.testing.assert_array_equal(labels, [3, 0, 2, 1])


def test_a_label_too_large_for_int64(tmp_path):
    path = write(tmp_path / "a.parquet", [png(GOOD)] * 2, [0, 2**63], label_type=pa.uint64())
    with pytest.raises(DataError, match=exactly(f"{path}, row 1: label {2**63} is outside the 4")):
        read_scans(path)


def test_class_names_come_from_the_metadata(tmp_path):
    path = write(tmp_path / "a.parquet", [png(GOOD)] * 3, [0, 1, 1], meta=metadata(["no", "yes"]))
    assert read_scans(path).class_names == ("no", "yes")
    write(path, [png(GOOD)] * 3, [0, 1, 2], meta=metadata(["no", "yes"]))
    with pytest.raises(DataError, match=exactly("label 2 is outside the 2 classes ('no', 'yes')")):
        read_scans(path)


@pytest.mark.parametrize("meta", [None, {"huggingface": "{}"}, {"pandas": "{}"}])
def test_without_names_the_documented_four_serve(tmp_path, meta):
    path = write(tmp_path / "a.parquet", [png(GOOD)], meta=meta)
    told = "no class names in the data, assumed: 0 = Mild_Demented, 1 = Moderate_Demented, 2 = Non"
    with pytest.warns(UserWarning, match=exactly(f"{path}: {told}")) as caught:
        assert read_scans(path).class_names == CLASS_NAMES
    assert len(caught) == 1 and caught[0].filename == __file__


def test_the_schema_constant_holds_the_names_and_can_be_written(tmp_path):
    table = pa.table({"image": [{"bytes": png(GOOD), "path": "a"}], "label": [1]}, schema=SCHEMA)
    pq.write_table(table, tmp_path / "a.parquet")
    assert read_scans(tmp_path).class_names == CLASS_NAMES
    names = json.loads(SCHEMA.metadata[b"huggingface"])["info"]["features"]["label"]["names"]
    assert tuple(names) == CLASS_NAMES
    assert len(CLASS_NAMES) == 4


def test_synthetic_files_say_so(tmp_path):
    path = write(tmp_path / "a.parquet", [png(GOOD)], meta={**NAMED, PHANTOM_KEY: b"{}"})
    scans = read_scans(path)
    assert scans.synthetic
    assert scans.origin == "synthetic phantom slices"
    assert repr(scans) == "Scans(1 synthetic phantom slices of 16 × 16, 0 rows rejected)"
    write(path, [png(GOOD)])
    assert read_scans(path).origin == "MRI slices"


def test_extra_columns_are_ignored(tmp_path):
    image = image_column([png(GOOD)] * 2)
    extra = pa.array(["a", None])
    table = pa.table({"age": [71, 80], "label": [2, 3], "image_id": extra, "image": image})
    pq.write_table(table.replace_schema_metadata(NAMED), tmp_path / "a.parquet")
    np.testing.assert_array_equal(read_scans(tmp_path).labels, [2, 3])


# Wrong files --------------------------------------------------------------------------------------

TEXT = pa.array(["a", "b"])
BYTES = pa.array([png(GOOD)] * 2)
LABELS = pa.array([0, 1])
WRONG_TABLES = {
    "no label": ([("image", BYTES), ("y", LABELS)], "columns ['image', 'y'], expected one 'image'"),
    "no image": ([("img", BYTES), ("label", LABELS)], "columns ['img', 'label'], expected one"),
    "two images": (
        [("image", BYTES), ("image", BYTES), ("label", LABELS)],
        "columns ['image', 'image', 'label'], expected one 'image' and one 'label'",
    ),
    "image is text": (
        [("image", TEXT), ("label", LABELS)],
        "only paths are stored here, and 'a' is no file in",
    ),
    "image is pixels": (
        [("image", pa.array([[1, 2], [3]])), ("label", LABELS)],
        "column 'image' is list<element: int64>, expected struct<bytes: binary, path: string>",
    ),
    "struct without bytes": (
        [("image", pa.StructArray.from_arrays([TEXT], ["path"])), ("label", LABELS)],
        "only paths are stored here, and 'a' is no file in",
    ),
    "struct of text": (
        [("image", pa.StructArray.from_arrays([TEXT], ["bytes"])), ("label", LABELS)],
        "column 'image' is struct<bytes: string>, expected",
    ),
    "struct of dictionary": (  # Arrow cannot read it where a batch spans row groups.
        [
            ("image", pa.StructArray.from_arrays([BYTES.dictionary_encode()], ["bytes"])),
            ("label", LABELS),
        ],
        "column 'image' is struct<bytes: dictionary<values=binary, indices=int32, ordered=0>>, exp",
    ),
    "dictionary of text": (
        [("image", TEXT.dictionary_encode()), ("label", LABELS)],
        "only paths are stored here, and 'a' is no file in",
    ),
    "label is a fraction": (
        [("image", BYTES), ("label", pa.array([0.0, 0.5]))],
        "labels must be whole numbers or names. Received: 0.5; write grades",
    ),
    "label is a flag": (
        [("image", BYTES), ("label", pa.array([True, False]))],
        "column 'label' is bool, expected an integer class index",
    ),
}


@pytest.mark.parametrize("kind", WRONG_TABLES)
def test_a_wrong_schema_names_file_and_type_before_any_decoding(kind, file, tmp_path):
    columns, message = WRONG_TABLES[kind]
    path = tmp_path / "z.parquet"
    pq.write_table(pa.Table.from_arrays([c for _, c in columns], [n for n, _ in columns]), path)
    for read in (read_scans, iter_batches):  # The latter at the call, not at the first batch.
        with pytest.raises(DataError, match=exactly(f"{path}: {message}")):
            read([file, path])


@pytest.mark.parametrize(
    ("meta", "message"),
    [
        ({"huggingface": "{not json"}, "unreadable 'huggingface' metadata"),
        ({"huggingface": b"\xff\xfe"}, "unreadable 'huggingface' metadata"),
        ({"huggingface": "[]"}, "unreadable 'huggingface' metadata"),
        (metadata("AB"), "class names 'AB' in its metadata, expected a list of names"),
        (metadata([1, 2]), "class names [1, 2] in its metadata, expected a list of names"),
    ],
)
def test_damaged_metadata(tmp_path, meta, message):
    path = write(tmp_path / "a.parquet", [png(GOOD)], meta=meta)
    with pytest.raises(DataError, match=exactly(f"{path}: {message}")):
        read_scans(path)


@pytest.mark.parametrize("other", [metadata(["a", "b", "c", "d"]), {PHANTOM_KEY: b"{}"}])
def test_shards_of_different_kind_are_not_mixed(tmp_path, other):
    first = write(tmp_path / "a.parquet", [png(GOOD)])
    second = write(tmp_path / "b.parquet", [png(GOOD)], meta=other)
    with pytest.raises(DataError, match=f"{exactly(second)}: has .*, but {exactly(first)} has "):
        read_scans(tmp_path)


@pytest.mark.parametrize("content", [b"", b"not parquet at all", b"PAR1" + b"\xa5" * 200 + b"PAR1"])
def test_what_is_not_parquet_says_so(tmp_path, content):
    path = tmp_path / "a.parquet"
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{exactly(path)}: not a readable parquet file .*fetch it"):
        read_scans(path)


def test_a_folder_in_a_list_is_not_parquet(tmp_path):
    with pytest.raises(DataError, match=exactly(f"{tmp_path}: it is no regular file; give fi")):
        read_scans([tmp_path])


def test_a_truncated_file_says_so(file):
    whole = file.read_bytes()
    for part in (0.1, 0.5, 0.99):
        file.write_bytes(whole[: int(part * len(whole))])
        with pytest.raises(DataError, match=f"{exactly(file)}: not a readable parquet file"):
            read_scans(file)


def test_damaged_pages_are_found(tmp_path):
    """A changed byte in a JPEG may decode to wrong pixels; the checksum of the page tells."""
    path = tmp_path / "a.parquet"
    blobs = [jpeg(x) for x in pictures(12)]
    options = {"write_page_checksum": True, "compression": "none"}
    write(path, blobs, row_group_size=4, **options)
    content = bytearray(path.read_bytes())
    content[content.index(blobs[9]) + len(blobs[9]) - 20] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=f"{exactly(path)}, at or after row 8: damaged parquet"):
        list(iter_batches(path, batch_size=1))
    with pytest.raises(DataError, match=f"{exactly(path)}, at or after row 0: damaged parquet"):
        read_scans(path)


def test_random_damage_never_raises_anything_else(tmp_path):
    path = write(tmp_path / "a.parquet", [png(x) for x in pictures(6)], write_page_checksum=True)
    whole, expected = np.fromfile(path, np.uint8), read_scans(path).images
    rng, found = np.random.default_rng(0), 0
    for _ in range(150):
        damaged = whole.copy()
        damaged[rng.integers(len(whole), size=3)] = rng.integers(256, size=3)
        damaged.tofile(path)
        try:
            with warnings.catch_warnings(action="ignore"):
                np.testing.assert_array_equal(read_scans(path).images, expected)
        except DataError as error:
            assert str(path) in str(error)
            found += 1
    assert 50 < found < 150  # The statistics and the unused path column take the rest.


def test_zero_rows(tmp_path):
    path = write(tmp_path / "a.parquet", [], label_type=pa.int64())
    for read in (read_scans, lambda source: list(iter_batches(source))):
        with pytest.raises(DataError, match=exactly(f"{path}: no usable row among 0; the files a")):
            read(path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"on_error": "ignore"}, "on_error must be 'raise' or 'skip'. Received: on_error='ignore'"),
        ({"threads": 0}, "threads must be an integer of at least 1. Received: threads=0"),
        ({"threads": 2.0}, "threads must be an integer of at least 1. Received: threads=2.0"),
    ],
)
def test_wrong_options(file, options, message):
    for read in (read_scans, iter_batches):
        with pytest.raises(ValueError, match=exactly(message)):
            read(file, **options)


def test_wrong_batch_size(file):
    with pytest.raises(ValueError, match=r"at least 1\. Received: batch_size=0"):
        iter_batches(file, batch_size=0)
    with pytest.raises(ValueError, match="batch_size must be an integer of at least 1"):
        iter_batches(file, batch_size=2.5)


# Bad rows -----------------------------------------------------------------------------------------

BAD_ROWS = {
    "null struct": ("null", 1, "the image is null"),
    "null bytes": (None, 1, "the image is null"),
    "label below": (png(GOOD), -1, "label -1 is outside the 4 classes ('Mild_Demented', "),
    "label above": (png(GOOD), 4, "label 4 is outside the 4 classes ('Mild_Demented', "),
    "label null": (png(GOOD), None, "the label is null"),
    "both wrong": (b"", 9, "the image has zero bytes"),
    **{kind: (blob, 1, cause) for kind, (blob, cause) in BAD_BLOBS.items()},
}


@pytest.fixture(params=BAD_ROWS)
def shards(request, tmp_path):
    """Two shards of 8 rows in row groups of 3, with a bad row 5 in the second: row 13 of all."""
    blob, label, cause = BAD_ROWS[request.param]
    images = pictures(16, 16, 16)
    blobs, labels = [jpeg(x) for x in images], [i % 4 for i in range(16)]
    if blob == "null":
        null = np.arange(8) == 5
    else:
        null, blobs[13] = None, blob
    labels[13] = label
    write(tmp_path / "a.parquet", blobs[:8], labels[:8], row_group_size=3)
    struct_ = image_column(blobs[8:])
    struct_ = pa.StructArray.from_arrays(
        struct_.flatten(), ["path", "bytes"], mask=None if null is None else pa.array(null)
    )
    table = pa.table({"image": struct_, "label": labels[8:]}).replace_schema_metadata(NAMED)
    pq.write_table(table, tmp_path / "b.parquet", row_group_size=3)
    expected = np.stack([slow_decode(jpeg(x)) for i, x in enumerate(images) if i != 13])
    return tmp_path, cause, expected, [label for i, label in enumerate(labels) if i != 13]


def test_a_bad_row_raises_with_file_row_and_cause(shards):
    folder, cause, *_ = shards
    message = f"{folder / 'b.parquet'}, row 5: {cause}"
    for read in (read_scans, lambda source: list(iter_batches(source, batch_size=4))):
        # Leaving out the rows of a label that is no class would cost one.
        remedy = "pass class_names=" if cause.startswith("label 4") else "pass on_error='skip'"
        with pytest.raises(DataError, match=f"{exactly(message)}.*; {remedy}"):
            read(folder)


def test_all_batches_before_a_bad_row_are_given_first(tmp_path):
    """Although the next batch is decoded while one is in use."""
    blobs = [png(x) for x in pictures(40)]
    blobs[20] = b"no picture"
    path = write(tmp_path / "a.parquet", blobs)
    for batch_size, whole in ((1, 20), (5, 4), (7, 2), (21, 0)):
        seen = 0
        with pytest.raises(DataError, match="row 20: "):
            for _ in iter_batches(path, batch_size=batch_size):
                seen += 1
        assert seen == whole


def test_a_stream_that_is_left_early_ends_its_threads_and_closes_its_file(tmp_path):
    path = write(tmp_path / "a.parquet", [png(x) for x in pictures(40)])
    before = threading.active_count()
    stream = iter_batches(path, batch_size=3)
    next(stream)
    assert threading.active_count() > before
    stream.close()
    assert threading.active_count() == before
    if (held := Path("/proc/self/fd")).exists():
        names = [os.readlink(of) for of in held.iterdir() if of.is_symlink()]
        assert str(path) not in names


def test_a_bad_row_is_skipped_listed_and_counted(shards):
    folder, cause, expected, labels = shards
    with pytest.warns(UserWarning, match="^1 of 16 rows rejected$") as caught:
        scans = read_scans(folder, on_error="skip")
    assert caught[0].filename == __file__
    np.testing.assert_array_equal(scans.images, expected)
    np.testing.assert_array_equal(scans.labels, labels)
    assert len(scans) + len(scans.rejected) == 16
    (row,) = scans.rejected.itertuples(index=False)
    assert (row.file, row.row) == (str(folder / "b.parquet"), 5)
    assert row.cause.startswith(cause)


@pytest.mark.parametrize("batch_size", [1, 7, 16])
def test_a_bad_row_is_skipped_in_a_stream(shards, batch_size):
    folder, _, expected, labels = shards
    with pytest.warns(UserWarning, match="^1 of 16 rows rejected$") as caught:
        batches = list(iter_batches(folder, batch_size=batch_size, on_error="skip"))
    assert caught[0].filename == __file__
    assert all(len(images) == len(labels) > 0 for images, labels in batches)
    np.testing.assert_array_equal(np.concatenate([images for images, _ in batches]), expected)
    np.testing.assert_array_equal(np.concatenate([labels for _, labels in batches]), labels)


def test_many_bad_rows_in_all_places(tmp_path, rng):
    """Whole batches of bad rows too, first and last, so that sizes are learnt late."""
    images = pictures(400, 6, 5)
    good = rng.random(400) < 0.7
    good[:70] = good[200:270] = good[-70:] = False
    blobs = [png(image) if ok else b"no" for image, ok in zip(images, good, strict=True)]
    path = write(tmp_path / "a.parquet", blobs, row_group_size=90)
    for threads in (1, 2):
        with pytest.warns(UserWarning, match=f"{400 - good.sum()} of 400 rows rejected"):
            scans = read_scans(path, on_error="skip", threads=threads)
        np.testing.assert_array_equal(scans.images, images[good])
        np.testing.assert_array_equal(scans.labels, np.flatnonzero(good) % 4)
        np.testing.assert_array_equal(scans.rejected["row"], np.flatnonzero(~good))
    with pytest.raises(DataError, match=f"{exactly(path)}, row 0: not a JPEG or PNG image"):
        read_scans(path)


def test_rejected_rows_carry_their_own_file(tmp_path):
    for name in "ab":
        write(tmp_path / f"{name}.parquet", [png(GOOD), b"", png(GOOD), f"?{name}".encode()])
    with pytest.warns(UserWarning, match="4 of 8 rows rejected"):
        rejected = read_scans(tmp_path, on_error="skip").rejected
    assert [Path(name).stem for name in rejected["file"]] == ["a", "a", "b", "b"]
    assert rejected["row"].tolist() == [1, 3, 1, 3]


@pytest.mark.parametrize("on_error", ["raise", "skip"])
def test_all_rows_bad(tmp_path, on_error):
    path = write(tmp_path / "a.parquet", [b"", None, b""])
    cause = "row 0: the image has" if on_error == "raise" else "no usable row among 3; the last: "
    for read in (read_scans, lambda *args, **options: list(iter_batches(*args, **options))):
        with pytest.raises(DataError, match=f"{exactly(path)}.*{cause}.*zero bytes"):
            read(path, on_error=on_error)


@pytest.mark.parametrize("on_error", ["raise", "skip"])
@pytest.mark.parametrize("read", [read_scans, lambda *a, **o: list(iter_batches(*a, **o))])
def test_mixed_sizes_name_the_row_and_the_way_out(tmp_path, on_error, read):
    images = [*pictures(5), *pictures(1, 30, 10), *pictures(1)]
    path = write(tmp_path / "a.parquet", [png(x) for x in images], row_group_size=4)
    message = f"{path}, row 5: size (30, 10) differs from (24, 20) of the first slice; pass size="
    with pytest.raises(DataError, match=exactly(message)):
        read(path, on_error=on_error)


def test_size_brings_mixed_sizes_to_one(tmp_path):
    images = [*pictures(2), *pictures(2, 30, 10), *pictures(1, 10, 8)]
    path = write(tmp_path / "a.parquet", [png(x) for x in images])
    expected = [
        cv2.resize(x, (8, 10), interpolation=cv2.INTER_AREA) if x.shape != (10, 8) else x
        for x in images
    ]
    np.testing.assert_array_equal(read_scans(path, size=(10, 8)).images, expected)
    ((streamed, _),) = iter_batches(path, size=[10, 8])
    np.testing.assert_array_equal(streamed, expected)


# Arrow below --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["struct", "plain", "large", "dictionary", "view"])
def test_views_of_sliced_arrays(kind):
    blobs = [b"a", None, b"", b"bcd", b"ef", None, b"g"]
    column = image_column(blobs, kind)
    if kind == "struct":
        column = pa.StructArray.from_arrays([column.field("bytes")], ["bytes"])
    for start in range(len(blobs)):
        for stop in range(start, len(blobs) + 1):
            views = column_views(column[start:stop])
            assert [None if v is None else v.tobytes() for v in views] == blobs[start:stop]


def test_bytes_below_a_null_struct_are_not_read():
    null = pa.array([False, True, False])
    column = pa.StructArray.from_arrays([pa.array([b"a", b"b", b"c"])], ["bytes"], mask=null)
    assert [None if v is None else v.tobytes() for v in column_views(column)] == [b"a", None, b"c"]
    assert column_views(column[1:])[0] is None


def test_views_copy_nothing():
    column = pa.array([b"abc", b"defg"])
    views = column_views(column)
    address = column.buffers()[2].address
    assert [view.ctypes.data for view in views] == [address, address + 3]


# What Scans offers --------------------------------------------------------------------------------


def test_to_frame(file):
    scans = read_scans(file)
    frame = scans.to_frame()
    assert list(frame.columns) == ["label", "img_arr"]
    np.testing.assert_array_equal(frame["label"], scans.labels)
    np.testing.assert_array_equal(np.stack(frame["img_arr"]), scans.images)
    assert all(np.shares_memory(image, scans.images) for image in frame["img_arr"])


def test_fingerprint_changes_with_every_part(file):
    scans = read_scans(file)
    pixel, label = scans.images.copy(), scans.labels.copy()
    pixel[3, 2, 1] ^= 1
    label[-1] = 0
    others = [
        {"images": pixel},
        {"labels": label},
        {"images": scans.images.reshape(30, W, H)},
        {"class_names": (*CLASS_NAMES[:3], "other")},
    ]
    prints = {dataclasses.replace(scans, **other).fingerprint() for other in [{}, *others]}
    assert len(prints) == 5
    assert prints >= {scans.fingerprint()}
    assert re.fullmatch("[0-9a-f]{64}", scans.fingerprint())


def test_scans_are_frozen(file):
    with pytest.raises(dataclasses.FrozenInstanceError, match="labels"):
        read_scans(file).labels = None
    assert isinstance(read_scans(file), Scans)


def test_find_data(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MRI_DATA", raising=False)
    assert find_data() is None
    Path("data").mkdir()
    write("data/train-00000-of-00001.parquet", [png(np.zeros((2, 2)))])
    half = r"data: train-00000-of-00001.parquet is there, but no test file beside it\. Put"
    with pytest.raises(DataError, match=half):
        find_data()
    Path("data/test.parquet").touch()
    with pytest.raises(DataError, match=r"test\.parquet: not a readable parquet file"):
        find_data()
    write("data/test.parquet", [png(np.zeros((2, 2)))])
    assert find_data() == Path("data")
    monkeypatch.setenv("MRI_DATA", "")
    assert find_data() == Path("data"), "an empty variable is no variable"
    monkeypatch.setenv("MRI_DATA", str(tmp_path / "elsewhere"))
    with pytest.raises(DataError, match=r"elsewhere: no parquet file found\. Put"):
        find_data()
    Path("data").rename("elsewhere")
    assert find_data() == tmp_path / "elsewhere"
    assert find_data("elsewhere") == Path("elsewhere")
    with pytest.raises(DataError, match=r"data: no parquet file found\. Put"):
        find_data("data")


# Memory -------------------------------------------------------------------------------------------


def peak_growth(statement):
    """Return the growth of resident memory in bytes from before `statement` to its peak."""
    if not Path("/proc/self/status").exists():
        pytest.skip("resident memory is read from /proc")
    script = f"""
from mri.data.scans import iter_batches, read_scans

def resident(key):
    with open("/proc/self/status") as status:
        return next(1024 * int(line.split()[1]) for line in status if line.startswith(key))

before = resident("VmRSS")
{statement}
print(resident("VmHWM") - before)
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@pytest.mark.slow
@pytest.mark.parametrize("rows_a_group", [500, 10_000])
def test_memory_of_a_stream_does_not_grow_with_the_file(tmp_path, rows_a_group, rng):
    """Noise makes the files large: 9 MB, then 96 MB of bytes and 92 MB of pixels."""
    blobs = [jpeg(x) for x in rng.integers(0, 256, (500, 96, 96), np.uint8)]
    growths = []
    for times in (2, 20):
        path = tmp_path / f"{times}.parquet"
        write(path, blobs * times, use_dictionary=False, row_group_size=rows_a_group)
        statement = f"for batch in iter_batches({str(path)!r}, threads=2): pass"
        growths.append(peak_growth(statement))
    few, many = growths
    # The allocator keeps some freed pages, at most about 40 MB however long the file.
    assert path.stat().st_size > 90e6
    assert many - few < 45e6


# The real slices ----------------------------------------------------------------------------------

COUNTS = {"train": (724, 49, 2566, 1781), "test": (172, 15, 634, 459)}


@pytest.mark.real_data
@pytest.mark.parametrize("split", COUNTS)
def test_real_slices(real_data, split):
    scans = read_scans(real_data, split=split)
    assert scans.images.shape == (sum(COUNTS[split]), 128, 128)
    assert tuple(np.bincount(scans.labels)) == COUNTS[split]
    assert scans.class_names == CLASS_NAMES
    assert len(scans.rejected) == 0
    frame = pd.concat(map(pd.read_parquet, real_data.glob(f"{split}*.parquet")))
    np.testing.assert_array_equal(scans.labels, frame["label"])
    for i in np.random.default_rng(0).choice(len(frame), 100, replace=False):
        blob = frame["image"].iloc[i]["bytes"]
        np.testing.assert_array_equal(scans.images[i], slow_decode(blob))


@pytest.mark.real_data
def test_real_slices_stream_as_they_read(real_data):
    scans = read_scans(real_data, split="test")
    images, labels = zip(*iter_batches(real_data, split="test", batch_size=300), strict=True)
    np.testing.assert_array_equal(np.concatenate(images), scans.images)
    np.testing.assert_array_equal(np.concatenate(labels), scans.labels)


@pytest.mark.real_data
def test_peak_memory_is_file_and_array_and_a_fifth(real_data):
    size = sum(file.stat().st_size for file in real_data.glob("train*.parquet"))
    source = str(real_data.resolve())
    growth = peak_growth(f"scans = read_scans({source!r}, split='train', threads=2)")
    array = sum(COUNTS["train"]) * 128 * 128
    assert array < growth < 1.2 * (size + array)


def test_slices_mapped_from_a_file_are_joined_without_memory(tmp_path):
    folder = write_phantom(tmp_path / "data", subjects=8, slices=3)
    whole = read_scans(folder, split=("train", "test"), cache=tmp_path / "slices.npy")
    train, test = whole.part("train"), whole.part("test")
    again, turned = train + test, test + train
    in_memory = dataclasses.replace(train, images=np.array(train.images))
    for found, parts in (
        (again, (train, test)),
        (turned, (test, train)),
        (test + in_memory, (test, in_memory)),
    ):
        assert isinstance(found.images, np.memmap) and not found.images.flags.writeable
        np.testing.assert_array_equal(found.images, np.concatenate([of.images for of in parts]))
        np.testing.assert_array_equal(found.labels, np.concatenate([of.labels for of in parts]))
    assert np.shares_memory(again.images, whole.images), "they stand one behind the other"
    assert not np.shares_memory(turned.images, whole.images)
