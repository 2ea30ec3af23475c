"""Slices that are not meant as they stand: nearly black, of one value, masks, false colours."""

import re

import cv2
import numpy as np
import pandas as pd
import pytest

from mri.data.decode import DataError
from mri.data.one_slice import read_slice
from mri.data.scans import iter_batches, read_scans


def heads(n=5, side=40):
    """Discs on black, of 200 gray values each, the brightest 255."""
    rows, columns = np.mgrid[:side, :side] - (side - 1) / 2
    inside = rows**2 + columns**2 < (0.4 * side) ** 2
    values = np.random.default_rng(0).integers(56, 256, (n, side, side))
    values[:, side // 2, side // 2] = 255
    return np.where(inside, values, 0)


def table(images, encode=None):
    cells = [cv2.imencode(".png", x)[1].tobytes() for x in images] if encode else list(images)
    labels = ["a", "b"] * len(images)
    return pd.DataFrame({"image": pd.Series(cells, dtype=object), "label": labels[: len(images)]})


def deep(images, bits):
    return (images * 2**bits // 256).astype(np.uint16)


def test_usual_slices_are_not_warned_of():
    scans = read_scans(table(heads().astype(np.uint8)))
    assert scans.images.max() == 255
    read_scans(table(np.stack([heads().astype(np.uint8)] * 3, -1), encode=True))
    read_scans(table((heads() * 257).astype(np.uint16), encode=True))


@pytest.mark.parametrize("bits", [8, 10, 12])
def test_few_bits_in_pictures_of_16_are_told_by_name(bits):
    source = table(deep(heads(), bits), encode=True)
    told = (
        "5 of 5 slices show next to nothing: all gray values of the table, row 0 are within 16 of "
        "256; a PNG of 16 bits, of which the upper 8 are read; scale the values to 0 to 255"
    )
    with pytest.warns(UserWarning, match=told):
        assert read_scans(source).images.max() == 2**bits // 256 - 1
    with pytest.warns(UserWarning, match=told):
        assert sum(len(labels) for _, labels in iter_batches(source, batch_size=2)) == 5


@pytest.mark.parametrize(("bits", "brightest"), [(13, 31), (14, 63), (15, 127)])
def test_a_dim_set_is_told_its_brightest_pixel(bits, brightest):
    told = f"the brightest pixel of all 5 slices is {brightest} of 255; a PNG of 16 bits"
    with pytest.warns(UserWarning, match=told):
        read_scans(table(deep(heads(), bits), encode=True))


@pytest.mark.parametrize(
    "change",
    [
        lambda x: (x > 0).astype(np.uint8),
        lambda x: np.full_like(x, 255, np.uint8),
        lambda x: np.zeros_like(x, np.uint8),
        lambda x: (250 + x // 64).astype(np.uint8),
    ],
    ids=["0 to 1", "white", "black", "washed out"],
)
def test_slices_that_show_nothing_are_counted_and_the_first_is_named(change, tmp_path):
    images = heads().astype(np.uint8)
    images[2:4] = change(images[2:4])
    told = "2 of 5 slices show next to nothing: all gray values of {} are within 16 of 256; scale"
    with pytest.warns(UserWarning, match=told.format("the table, row 2")):
        read_scans(table(images), cache=tmp_path / "a.npy")
    with pytest.warns(UserWarning, match=told.format("the table, row 2")):  # From the cache.
        read_scans(table(images), cache=tmp_path / "a.npy")


@pytest.mark.parametrize("dim", [4, 20])
def test_a_dim_part_beside_a_bright_one_is_told(dim):
    images = heads(n=40).astype(np.uint8)
    images[-dim:] = images[-dim:] // 2
    told = f"{dim} of 40 slices are dimmer than the others, .* 128 or more; the .* row {40 - dim};"
    with pytest.warns(UserWarning, match=told):
        read_scans(table(images))


def test_a_single_dim_slice_is_not_warned_of():
    images = heads(n=40).astype(np.uint8)
    images[-1] //= 2
    read_scans(table(images))


def test_a_dark_line_alone_is_no_dark_slice():
    images = heads().astype(np.uint8)
    images[:, 18:23] = 0
    assert len(read_scans(table(images))) == 5


def test_masks_and_false_colours_are_told():
    with pytest.warns(UserWarning, match="the first slices have 2 gray values in all; masks"):
        read_scans(table((heads() > 0).astype(np.uint8) * 255))
    coloured = [cv2.applyColorMap(x, cv2.COLORMAP_JET) for x in heads().astype(np.uint8)]
    with pytest.warns(UserWarning, match="row 0 is in colours; only its brightness was read"):
        read_scans(table(coloured, encode=True))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda x: cv2.applyColorMap(x, cv2.COLORMAP_JET), r"row \d+ is in colours; only its"),
        (
            lambda x: (x > 0).astype(np.uint8) * 255,
            r"such as the table, row \d{3,4} have 2 gray values",
        ),
    ],
    ids=["colours", "masks"],
)
def test_what_is_odd_in_a_later_class_alone_is_told_and_by_the_cache_too(change, told, tmp_path):
    one = heads().astype(np.uint8)
    images = [one[i % 5] for i in range(600)]
    source = table([*images, *(change(image) for image in images)], encode=True)
    for options in ({}, {"cache": tmp_path / "a.npy"}, {"cache": tmp_path / "a.npy"}):
        with pytest.warns(UserWarning, match=told):
            read_scans(source, threads=1, **options)
    with pytest.warns(UserWarning, match=told):
        assert sum(len(labels) for _, labels in iter_batches(source, batch_size=50)) == 1200


def test_a_class_that_skipping_costs_is_named_by_the_cache_too(tmp_path):
    source = table(heads().astype(np.uint8), encode=True)
    source.loc[[0, 2, 4], "image"] = b"broken"
    for _ in range(2):
        with pytest.warns(UserWarning, match="3 of 5 rows rejected, no slice is left of a"):
            read_scans(source, on_error="skip", cache=tmp_path / "a.npy")


def test_one_picture_of_few_bits_is_no_segmentation(tmp_path):
    """It has as few gray values as one, which was named as the cause."""
    cv2.imwrite(str(tmp_path / "a.png"), deep(heads(1, 128), 12)[0])
    (tmp_path / "a.csv").write_text("image,label\na.png,x\n")
    for name, row in (("a.png", ""), ("a.csv", ", row 0")):
        told = f"{name}{row} are within 16 of 256; a PNG of 16 bits"
        with pytest.raises(DataError, match=re.escape(told)):
            read_slice(tmp_path / name)


def test_a_class_that_skipping_costs_is_named(tmp_path):
    source = table(heads().astype(np.uint8), encode=True)
    source.loc[[0, 2, 4], "image"] = b"broken"
    with pytest.warns(UserWarning, match="3 of 5 rows rejected, no slice is left of a"):
        read_scans(source, on_error="skip")
    source.loc[0, "image"] = source.loc[1, "image"]
    with pytest.warns(UserWarning, match="2 of 5 rows rejected$"):
        read_scans(source, on_error="skip")
