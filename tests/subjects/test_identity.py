"""People found again in changed, copied, mixed and thinned slices, or a refusal, or a warning."""

import importlib
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from scipy.ndimage import gaussian_filter
from sklearn.metrics import adjusted_rand_score

from mri.data.phantom import make_phantoms
from mri.data.scans import read_scans
from mri.subjects.heights import heights, low_detail
from mri.subjects.identity import Patterns, folding_patterns, unequal, without_common_anatomy
from mri.subjects.linking import UnclearSubjectsError, why_unclear, widest_gap
from mri.subjects.pose import Pose
from mri.subjects.recovery import order_slices, recover_subjects


@pytest.fixture(scope="module")
def phantoms():
    return make_phantoms(8, 24, seed=3)


def warp(image, angle=0.0, zoom=1.0, shift=(0, 0)):
    height, width = image.shape
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, zoom)
    matrix[:, 2] += shift
    return cv2.warpAffine(np.ascontiguousarray(image), matrix, (width, height))


def any_pose(images, rng):
    """Every slice mirrored or not, turned, zoomed and shifted by itself."""
    return np.stack(
        [
            warp(
                image[:, ::-1] if rng.random() < 0.5 else image,
                rng.uniform(-10, 10),
                rng.uniform(0.9, 1.1),
                rng.uniform(-3, 3, 2),
            )
            for image in images
        ]
    )


def agreement(images, truth):
    order = np.random.default_rng(1).permutation(len(images))
    return adjusted_rand_score(truth[order], recover_subjects(images[order]).groups)


def flawless(images, truth):
    """Whether the answer is right, or refused, or a warning names groups."""
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        try:
            figure = agreement(images, truth)
        except UnclearSubjectsError as error:
            return "wanted" in str(error)
    return figure > 0.999 or any("group" in str(warning.message) for warning in heard)


# --- pose and patterns ---


def upright(images):
    """Slices in canonical pose, and whether they had outlines to go by."""
    pose = Pose.learn(images)
    return pose.draw(images), pose.outline is not None


def test_a_posed_copy_lies_on_its_original(phantoms, rng):
    images = phantoms.images[:24]
    canonical, posed = upright(np.concatenate([images, any_pose(images, rng)]))
    patterns = Patterns.whole(folding_patterns(canonical, posed))
    likeness = patterns.likeness(np.arange(24), np.arange(24, 48)[:, None])[:, 0]
    assert posed
    assert likeness.min() > 0.85


def test_the_pose_of_a_mirror_image_is_the_mirrored_pose(phantoms):
    images = phantoms.images[:24]
    canonical, _ = upright(np.concatenate([images, images[:, :, ::-1]]))
    difference = np.abs(canonical[24:] - canonical[:24, :, ::-1]).mean()
    assert difference < 0.03 * canonical.std()


def test_slices_without_an_outline_are_only_resized(rng):
    images = rng.integers(0, 256, (5, 128, 128), dtype=np.uint8)
    canonical, posed = upright(images)
    assert not posed
    np.testing.assert_allclose(canonical, images.reshape(5, 64, 2, 64, 2).mean((2, 4)), atol=1e-3)


def test_patterns_are_correlations_of_what_a_blur_takes_away(rng):
    images = rng.integers(0, 256, (6, 64, 64)).astype(np.float32)
    sharp = np.stack([image - gaussian_filter(image, 2, mode="mirror") for image in images])
    plain = np.corrcoef(sharp.reshape(6, -1))
    turned = np.corrcoef(sharp.reshape(6, -1), sharp[:, :, ::-1].reshape(6, -1))[:6, 6:]
    found = Patterns.whole(folding_patterns(images, False)).between(np.arange(6), np.arange(6))
    np.testing.assert_allclose(found, np.maximum(plain, turned), atol=2e-4)


def test_patterns_ignore_brightness_and_contrast_and_leave_slices_as_they_were(phantoms):
    images = upright(phantoms.images[:5])[0]
    before = images.copy()
    one, two = folding_patterns(images, True), folding_patterns(0.37 * images + 21.5, True)
    np.testing.assert_allclose(one, two, atol=1e-5)
    np.testing.assert_array_equal(images, before)


def test_without_common_anatomy_is_a_correlation_of_what_is_left(phantoms):
    patterns = Patterns.whole(folding_patterns(*upright(phantoms.images)))
    rows = np.arange(len(patterns))
    before = np.concatenate(patterns.halves, axis=1).astype(float)
    own, (even, odd) = without_common_anatomy(patterns, rows, 0)
    found = own.between(rows, rows)
    np.testing.assert_allclose(np.diag(found), 1, atol=1e-4)
    np.testing.assert_allclose(own.pairs(rows, rows[::-1]), np.diag(found[:, ::-1]), atol=1e-5)
    assert ((even**2).sum(1) + (odd**2).sum(1) < 1 + 1e-5).all()
    # The same by taking leading components of slices and mirror images out, one after the other.
    half = before.shape[1] // 2
    even, odd = before[:, :half] - before[:, :half].mean(0), before[:, half:]
    parts = [np.linalg.svd(part, full_matrices=False) for part in (even, odd)]
    least = np.sort(np.concatenate([part[1] for part in parts]))[-(len(rows) // 25)]
    left = [x @ (np.eye(half) - v[s >= least].T @ v[s >= least])
            for x, (_, s, v) in zip((even, odd), parts, strict=True)]  # fmt: skip
    norms = np.sqrt((left[0] ** 2).sum(1) + (left[1] ** 2).sum(1))
    expected = left[0] @ left[0].T + np.abs(left[1] @ left[1].T)
    np.testing.assert_allclose(found, expected / np.outer(norms, norms), atol=0.02)


def test_whole_numbers_give_the_likeness_of_fractions(phantoms, monkeypatch):
    """As many slices need them; the disc that is compared is the same here."""
    monkeypatch.setattr("mri.subjects.identity._SHORT_REACH", 30)
    canonical, posed = upright(phantoms.images)
    rows = np.arange(len(canonical))
    columns = np.stack([np.roll(rows, 1), np.roll(rows, 24), rows[::-1]], axis=1)
    columns[:, 2] += columns[:, 2] == rows
    found = []
    for many in (False, True):
        halves = folding_patterns(canonical, posed, many)
        assert halves[0].dtype == (np.int16 if many else np.float32)
        own, _ = without_common_anatomy(Patterns.whole(halves), rows, 0)
        found.append(own.likeness(rows, columns))
        pairs = [own.pairs(rows, column) for column in columns.T]
        np.testing.assert_allclose(np.stack(pairs, axis=1), found[-1], atol=1e-5)
    np.testing.assert_allclose(*found, atol=2e-4)


@pytest.mark.slow
def test_people_of_many_slices_are_those_of_few(phantoms, monkeypatch):
    monkeypatch.setattr("mri.subjects.recovery._MANY", 100)
    assert agreement(phantoms.images, phantoms.subjects) == 1


def test_equal_slices_are_counted_once(rng):
    images = rng.integers(0, 256, (6, 8, 8), dtype=np.uint8)[[0, 1, 0, 2, 1, 3]]
    first, which = unequal(images)
    assert first.tolist() == [0, 1, 3, 5]
    assert which.tolist() == [0, 1, 0, 2, 1, 3]


# --- heights ---


def test_heights_are_those_of_the_phantoms(phantoms):
    low = low_detail(upright(phantoms.images)[0])
    steps = np.tile(np.arange(24.0), 8)
    flip = np.repeat(np.random.default_rng(0).random(8) < 0.5, 24)
    found, trust = heights(low, np.where(flip, -steps, steps), phantoms.subjects)
    assert trust > 0.9
    assert abs(np.corrcoef(found, phantoms.z)[0, 1]) > 0.9


# --- conditions in words ---


@pytest.mark.parametrize(
    ("edges", "text"),
    [
        ([0.1, 0.35, 0.40, 0.9], None),
        ([0.30, 0.38, 0.44, 0.5], r"the widest is 0.080, wanted 0.1"),
        ([0.60, 0.61, 0.9], r"different subjects would correlate by up to 0.610, wanted at most"),
        ([0.05, 0.06, 0.3], r"the gap is centred at 0.180, wanted at least 0.3"),
    ],
)
def test_a_refusal_names_the_condition_found_and_wanted(edges, text):
    edges = np.array(edges)
    answer = why_unclear(edges, widest_gap(edges), 0.1, 2, 10)
    assert answer is None if text is None else answer.startswith(text)


def test_most_alone_is_refused():
    assert "wanted two a subject" in why_unclear(np.array([0.1, 0.9]), 0, 0.1, 6, 10)


# --- whole answers ---


def test_mirrored_copies_of_all_are_the_same_people(phantoms):
    both = np.concatenate([phantoms.images, phantoms.images[:, :, ::-1]])
    assert agreement(both, np.tile(phantoms.subjects, 2)) == 1


def test_posed_copies_of_all_are_the_same_people(phantoms, rng):
    both = np.concatenate([phantoms.images, any_pose(phantoms.images, rng)])
    assert agreement(both, np.tile(phantoms.subjects, 2)) == 1


def test_negatives_of_all_are_the_same_people(phantoms):
    both = np.concatenate([phantoms.images, 255 - phantoms.images])
    assert agreement(both, np.tile(phantoms.subjects, 2)) == 1


def test_fifty_copies_of_one_person_change_nothing(phantoms):
    rows = np.r_[np.arange(192), np.repeat(np.flatnonzero(phantoms.subjects == 2), 50)]
    assert agreement(phantoms.images[rows], phantoms.subjects[rows]) == 1


@pytest.mark.parametrize(("first", "size"), [(9, 6), (4, 5), (15, 5)])
@pytest.mark.parametrize("everyone", [False, True])
def test_a_gap_is_never_silent(phantoms, first, size, everyone):
    height = np.tile(np.arange(24), 8)
    hit = (height >= first) & (height < first + size) & (everyone | (phantoms.subjects == 3))
    assert flawless(phantoms.images[~hit], phantoms.subjects[~hit])


@pytest.mark.parametrize("step", [2, 3, 4, 24])
def test_thinned_slices_are_never_silently_wrong(phantoms, step):
    rows = np.flatnonzero(np.tile(np.arange(24), 8) % step == 0)
    assert flawless(phantoms.images[rows], phantoms.subjects[rows])


@pytest.mark.parametrize("share", [0.02, 0.5])
def test_sums_of_two_people_are_never_silent(phantoms, share, rng):
    n = int(share * 192)
    one, other, part = rng.integers(0, 192, n), rng.integers(0, 192, n), rng.uniform(0, 1, n)
    mixed = part[:, None, None] * phantoms.images[one]
    mixed += (1 - part)[:, None, None] * phantoms.images[other]
    owner = np.where(part >= 0.5, phantoms.subjects[one], phantoms.subjects[other])
    images = np.concatenate([phantoms.images, np.round(mixed).astype(np.uint8)])
    assert flawless(images, np.concatenate([phantoms.subjects, owner]))


def test_warnings_are_kept_in_the_answer(phantoms):
    height = np.tile(np.arange(24), 8)
    hit = (height >= 9) & (height < 15) & (phantoms.subjects == 3)
    with pytest.warns(UserWarning, match="groups cover only part of the heights") as heard:
        found = recover_subjects(phantoms.images[~hit])
    assert [str(w.message) for w in heard] == list(found.warnings)


@pytest.mark.real_data
def test_real_people_are_found_in_any_pose(real_data, rng):
    scans = read_scans(real_data, split="train") + read_scans(real_data, split="test")
    if scans.synthetic:
        pytest.skip("these are phantoms")
    truth = recover_subjects(scans.images).groups
    assert np.bincount(truth).tolist() == [32] * 200
    rows = np.flatnonzero(truth < 20)
    both = np.concatenate([scans.images[rows], any_pose(scans.images[rows], rng)])
    assert agreement(both, np.tile(truth[rows], 2)) == 1
    torn = [
        r[order_slices(scans.images[r])] for r in (np.flatnonzero(truth == k) for k in range(9))
    ]
    torn[4] = np.delete(torn[4], np.s_[12:17])
    rows = np.concatenate(torn)
    assert flawless(scans.images[rows], truth[rows])


@pytest.mark.real_data
@pytest.mark.parametrize("case", ["case 310", "case 425"])
def test_heads_torn_alike_are_never_silent(real_data, case, monkeypatch):
    """Random cases that were silent once: pairs of copies, and a gap in all.

    All groups had one size there, so that none seemed to be a part of another.
    """
    monkeypatch.setenv("MRI_DATA", str(real_data))
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")
    identity = importlib.import_module("identity")
    made = {(name, column): make for name, column, make in identity.cases(*identity.real_slices())}
    rng = np.random.default_rng(zlib.crc32(f"{case}/randomised".encode()))
    found = identity.judged(*made[case, "randomised"](rng), rng)
    assert found["verdict"] in ("refused", "warned")
