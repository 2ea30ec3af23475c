import json
import os
import re

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mri.data import phantom as phantom
from mri.data.parquet import CLASS_NAMES, SCHEMA
from mri.data.phantom import SHORTCUT, Phantoms, make_phantoms, write_phantom
from mri.data.scans import read_scans

MILD, MODERATE, NON, VERY_MILD = range(4)


@pytest.fixture(scope="module")
def many():
    """As many subjects as in the public set, small."""
    return make_phantoms(200, 3, size=64)


@pytest.fixture(scope="module")
def few():
    return make_phantoms(10, 4, seed=7)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    return write_phantom(tmp_path_factory.mktemp("written"), subjects=10, slices=6, seed=3)


def dark_share(images, rows, columns):
    """Share of dark pixels in a window given as fractions of the size."""
    n = images.shape[1]
    window = images[
        :, int(rows[0] * n) : int(rows[1] * n), int(columns[0] * n) : int(columns[1] * n)
    ]
    return (window < 75).mean((1, 2))


def by_subject(phantoms, values):
    return np.array([values[phantoms.subjects == s].mean() for s in np.unique(phantoms.subjects)])


def subject_labels(phantoms):
    return np.array(
        [phantoms.labels[phantoms.subjects == s][0] for s in np.unique(phantoms.subjects)]
    )


def auc(score, positive):
    """Probability that a positive scores above a negative, by looking at every pair."""
    return np.mean(score[positive][:, None] > score[~positive][None, :])


def correlation_gap(phantoms):
    """Return the lowest best-same-subject and the highest different-subject correlation."""
    r = np.corrcoef(phantoms.images.reshape(len(phantoms.images), -1).astype(np.float32))
    np.fill_diagonal(r, -1)
    same = phantoms.subjects[:, None] == phantoms.subjects
    return np.where(same, r, -1).max(1).min(), np.where(same, -1, r).max()


def rows_of(path):
    return pq.read_table(path).to_pylist()


def decode(row):
    return cv2.imdecode(np.frombuffer(row["image"]["bytes"], np.uint8), cv2.IMREAD_GRAYSCALE)


def test_shapes_types_and_order(few):
    assert few.images.shape == few.masks.shape == (40, 128, 128)
    assert (few.images.dtype, few.masks.dtype) == (np.uint8, bool)
    assert (few.labels.dtype, few.subjects.dtype, few.z.dtype) == (np.int64, np.int64, np.float32)
    np.testing.assert_array_equal(few.subjects, np.repeat(np.arange(10), 4))
    np.testing.assert_array_equal(few.labels.reshape(10, 4), few.labels[::4, None].repeat(4, 1))


@pytest.mark.parametrize(
    ("subjects", "expected"),
    [
        (4, (1, 1, 1, 1)),
        (7, (1, 1, 3, 2)),
        (8, (2, 2, 2, 2)),
        (40, (5, 2, 19, 14)),
    ],
)
def test_class_shares(subjects, expected):
    labels = make_phantoms(subjects, 1, size=64).labels
    assert tuple(np.bincount(labels, minlength=4)) == expected


@pytest.mark.slow
def test_class_shares_of_the_public_set(many):
    assert tuple(np.bincount(subject_labels(many))) == (28, 2, 100, 70)


def test_subject_numbers_say_nothing_of_the_class(many):
    labels = subject_labels(many)
    assert (np.diff(labels) != 0).sum() > 80  # Sorted labels change 3 times.


@pytest.mark.parametrize("slices", [1, 2, 7, 32])
def test_spacing_does_not_depend_on_the_number_of_slices(slices):
    z = make_phantoms(4, slices, size=64).z[:slices]
    np.testing.assert_allclose(np.diff(z), 1 / 31, atol=1e-6)
    np.testing.assert_allclose(z[0] + z[-1], 1, atol=1e-6)
    if slices == 32:
        np.testing.assert_allclose(z[[0, -1]], [0, 1], atol=1e-6)


def test_background_is_black_and_head_fills_the_middle(few):
    assert few.images[:, :6].max() <= 2 and few.images[:, -6:].max() <= 2
    assert few.images[:, :, :6].max() <= 2 and few.images[:, :, -6:].max() <= 2
    assert 0.4 < (few.images > 20).mean() < 0.6
    assert np.median(few.images[few.images > 20]) > 110


def test_ventricles_and_sulci_grow_with_the_class(many):
    labels = subject_labels(many)
    windows = {"ventricles": ((0.3, 0.7), (0.37, 0.62)), "sulci": ((0.5, 0.85), (0.1, 0.28))}
    for rows, columns in windows.values():
        share = by_subject(many, dark_share(many.images, rows, columns))
        means = [share[labels == c].mean() for c in (NON, VERY_MILD, MILD, MODERATE)]
        assert np.all(np.diff(means) > 0), means


def test_classes_overlap_but_can_be_told(many):
    share = by_subject(many, dark_share(many.images, (0.3, 0.7), (0.37, 0.62)))
    assert 0.8 < auc(share, subject_labels(many) != NON) < 0.95


def test_hippocampus_shrinks_in_the_lowest_slices(monkeypatch):
    monkeypatch.setattr(phantom, "_EFFECT", np.array([0.0, 0.0, 1.5]))
    p = make_phantoms(8, 32, seed=2)
    hit = p.masks[p.labels == MODERATE].reshape(-1, 32, 128, 128).any(0)
    assert hit[:6].any((1, 2)).all() and not hit[16:].any()
    rows, columns = np.nonzero(hit.any(0))
    assert 36 < rows.min() and rows.max() < 58 and np.all(np.abs(columns - 63.5) < 26)


def test_mask_is_empty_without_disease_and_grows_with_the_class(many):
    share = by_subject(many, many.masks.mean((1, 2)))
    labels = subject_labels(many)
    assert share[labels == NON].max() == 0
    assert share[labels != NON].min() > 0
    means = [share[labels == c].mean() for c in (VERY_MILD, MILD, MODERATE)]
    assert np.all(np.diff(means) > 0), means


def test_mask_is_where_the_same_subject_without_disease_differs(few, monkeypatch):
    monkeypatch.setattr(phantom, "_SEVERITY", (0.0, 0.0, 0.0, 0.0))
    healthy = make_phantoms(10, 4, seed=7)
    assert not healthy.masks.any()
    np.testing.assert_array_equal(few.images[few.labels == NON], healthy.images[few.labels == NON])
    demented = few.labels != NON
    change = np.abs(few.images[demented].astype(int) - healthy.images[demented])
    mask = few.masks[demented]
    # Noise and JPEG blur the truth a little.
    assert mask[change > 45].mean() > 0.99
    assert (change[~mask] < 30).mean() > 0.999
    assert np.median(change[mask]) > 15 > 3 > np.median(change[~mask])


def test_mask_threshold_is_twelve_gray_levels_before_noise(monkeypatch):
    drawn = []
    render = phantom._Artist.render
    monkeypatch.setattr(os, "cpu_count", lambda: 1)
    monkeypatch.setattr(
        phantom._Artist, "render", lambda *a: drawn.append(render(*a).copy()) or drawn[-1]
    )
    p = make_phantoms(4, 2, seed=5)
    healthy, image = (np.concatenate(drawn[first::2]) for first in (0, 1))
    change = np.abs(image - healthy)
    inside = cv2.erode((p.images > 20).transpose(1, 2, 0).astype(np.uint8), np.ones((5, 5))) > 0
    inside = inside.transpose(2, 0, 1) & (np.abs(change - 12) > 1e-3)
    assert inside.mean() > 0.3 and 0.02 < p.masks[inside].mean() < 0.5
    np.testing.assert_array_equal(p.masks[inside], (change > 12)[inside])


@pytest.mark.parametrize(("subjects", "slices"), [(12, 32), (40, 3)])
def test_correlation_separates_subjects(subjects, slices):
    same, different = correlation_gap(make_phantoms(subjects, slices, seed=11))
    assert same - different > 0.02
    # The threshold that suits the public set suits the phantoms.
    assert different < 0.956 < 0.972 < same


def test_deterministic_for_any_number_of_threads(few, monkeypatch):
    for processors in (1, 3):
        monkeypatch.setattr(os, "cpu_count", lambda n=processors: n)
        again = make_phantoms(10, 4, seed=7)
        for name in ("images", "labels", "subjects", "z", "masks"):
            np.testing.assert_array_equal(getattr(again, name), getattr(few, name))


def test_seeds_and_subjects_differ(few):
    other = make_phantoms(10, 4, seed=8)
    for a, b in [(few.images, other.images), (few.images[:20], few.images[20:])]:
        assert (a != b).mean((1, 2)).min() > 0.3
    assert not np.array_equal(few.labels, other.labels)


def test_size_is_resolution_only(few):
    small = make_phantoms(10, 4, size=64, seed=7)
    assert small.images.shape == (40, 64, 64)
    halved = few.images.reshape(40, 64, 2, 64, 2).mean((2, 4))
    for a, b in zip(small.images, halved, strict=True):
        assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.97
    np.testing.assert_allclose(small.masks.mean(), few.masks.mean(), rtol=0.1)


def test_shortcut_marks_the_demented_and_changes_nothing_else(few):
    marked = make_phantoms(10, 4, seed=7, shortcut=True)
    demented = few.labels != NON
    corner = (slice(None), *SHORTCUT)
    assert (marked.images[corner][demented] == 255).all()
    assert marked.images[corner][~demented].max() == few.images[corner].max() <= 2
    restored = marked.images.copy()
    restored[corner] = few.images[corner]
    np.testing.assert_array_equal(restored, few.images)
    np.testing.assert_array_equal(marked.masks, few.masks)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("subjects", 3),
        ("subjects", 8.0),
        ("slices", 0),
        ("slices", 33),
        ("size", 63),
        ("size", "128"),
        ("seed", -1),
        ("seed", None),
    ],
)
def test_argument_errors(name, value, tmp_path):
    arguments = {"subjects": 4, "slices": 1, name: value}
    message = rf"{name} must be an integer from \d+ to \d+\. Received: {name}={value!r}$"
    with pytest.raises(ValueError, match=message):
        make_phantoms(**arguments)
    if name != "size":
        with pytest.raises(ValueError, match=message):
            write_phantom(tmp_path / "new", **arguments)
        assert not (tmp_path / "new").exists()


def test_files_have_the_schema_and_say_that_they_are_synthetic(written):
    assert sorted(p.name for p in written.iterdir()) == ["test.parquet", "train.parquet"]
    for path in written.iterdir():
        schema = pq.read_schema(path)
        assert schema.equals(SCHEMA)
        features = json.loads(schema.metadata[b"huggingface"])["info"]["features"]
        assert tuple(features["label"]["names"]) == CLASS_NAMES
        stamp = json.loads(schema.metadata[b"mri_phantom"])
        assert stamp == {"seed": 3, "subjects": 10, "slices": 6, "version": phantom._VERSION}
        assert read_scans(path).synthetic


def test_files_hold_the_phantoms_once_each_split_by_image(written):
    truth = make_phantoms(10, 6, seed=3)
    index = {image.tobytes(): i for i, image in enumerate(truth.images)}
    found = {}
    for name in ("train", "test"):
        rows = rows_of(written / f"{name}.parquet")
        found[name] = np.array([index[decode(row).tobytes()] for row in rows])
        np.testing.assert_array_equal([r["label"] for r in rows], truth.labels[found[name]])
        # Shuffled: neither in the order of the subjects nor in that of the slices.
        assert 0.2 < np.mean(np.diff(found[name]) > 0) < 0.8
    both = np.concatenate([found["train"], found["test"]])
    np.testing.assert_array_equal(np.sort(both), np.arange(60))
    for label, total in enumerate(np.bincount(truth.labels)):
        assert (truth.labels[found["test"]] == label).sum() == round(0.2 * total)
    assert len(np.intersect1d(*(truth.subjects[i] for i in found.values()))) >= 7


def test_every_subject_stands_in_both_files_by_default(tmp_path, monkeypatch):
    people = make_phantoms(40, 1, size=64)
    everything = Phantoms(
        people.images, people.labels.repeat(32), people.subjects.repeat(32), people.z, people.masks
    )
    numbers = [str(i).encode() for i in range(1280)]
    monkeypatch.setattr(phantom, "_draw", lambda *arguments: (everything, numbers))
    write_phantom(tmp_path)
    for name, expected in {"train": 1024, "test": 256}.items():
        rows = [int(row["image"]["bytes"]) for row in rows_of(tmp_path / f"{name}.parquet")]
        assert set(everything.subjects[rows]) == set(range(40))
        assert abs(len(rows) - expected) <= 2


def test_paths_carry_neither_class_nor_subject(written):
    rows = rows_of(written / "train.parquet") + rows_of(written / "test.parquet")
    paths = [row["image"]["path"] for row in rows]
    assert all(re.fullmatch(r"phantom_\d{5}\.jpg", path) for path in paths)
    assert len(set(paths)) == 60
    index = {im.tobytes(): i for i, im in enumerate(make_phantoms(10, 6, seed=3).images)}
    number = [int(path[8:13]) for path in paths]
    drawn = [index[decode(row).tobytes()] for row in rows]
    assert abs(np.corrcoef(number, drawn)[0, 1]) < 0.3


def test_writing_again_does_nothing_and_other_parameters_replace(tmp_path, written):
    folder = tmp_path / "a" / "b"
    assert write_phantom(folder, subjects=4, slices=2) == folder
    before = {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in folder.iterdir()}
    write_phantom(str(folder), subjects=np.int64(4), slices=2)
    assert {p: (p.stat().st_mtime_ns, p.stat().st_ino) for p in folder.iterdir()} == before
    content = (folder / "test.parquet").read_bytes()
    (folder / "test.parquet").unlink()
    write_phantom(folder, subjects=4, slices=2)
    assert (folder / "test.parquet").read_bytes() == content
    write_phantom(folder, subjects=4, slices=2, seed=1)
    assert (
        json.loads(pq.read_schema(folder / "train.parquet").metadata[b"mri_phantom"])["seed"] == 1
    )


@pytest.mark.parametrize("kind", ["real", "bare", "broken"])
def test_other_data_are_never_overwritten(tmp_path, kind):
    path = tmp_path / "train.parquet"
    if kind == "broken":
        path.write_bytes(b"no parquet")
    else:
        schema = SCHEMA if kind == "real" else SCHEMA.remove_metadata()
        pq.write_table(schema.empty_table(), path)
    before = path.read_bytes()
    with pytest.raises(FileExistsError, match=r"train\.parquet is not a phantom file"):
        write_phantom(tmp_path, subjects=4, slices=1)
    assert path.read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_interrupted_write_leaves_no_half_file(tmp_path, monkeypatch):
    def fail(table, where):
        where.write_bytes(b"half")
        raise pa.ArrowIOError("disk full")

    monkeypatch.setattr(phantom.pq, "write_table", fail)
    with pytest.raises(OSError, match="disk full"):
        write_phantom(tmp_path, subjects=4, slices=1)
    assert not list(tmp_path.glob("*.parquet"))


def test_phantoms_are_scans_as_those_of_a_file_are(tmp_path):
    phantoms = make_phantoms(8, 4, seed=2)
    scans = phantoms.scans
    read = read_scans(write_phantom(tmp_path, subjects=8, slices=4, seed=2), split="train")
    assert scans.synthetic and scans.class_names == read.class_names
    assert (scans.origin, list(scans.rejected)) == (read.origin, list(read.rejected))
    pairs = zip(scans.images, scans.labels, strict=True)
    known = {image.tobytes(): label for image, label in pairs}
    assert [known[image.tobytes()] for image in read.images] == read.labels.tolist()


def test_some_of_the_phantoms_keep_their_truth():
    phantoms = make_phantoms(8, 4, seed=2)
    for rows in (np.array([5, 3]), phantoms.labels == 0):
        some = phantoms.take(rows)
        for name in ("images", "labels", "subjects", "z", "masks"):
            np.testing.assert_array_equal(getattr(some, name), getattr(phantoms, name)[rows])
