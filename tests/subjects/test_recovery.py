"""Subjects from pixels, against the truth and brute force; splits that keep them apart."""

import sys
import time
import tracemalloc
import warnings
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from sklearn.metrics import adjusted_rand_score

from mri.data.phantom import make_phantoms
from mri.data.scans import read_scans
from mri.subjects.identity import Patterns, folding_patterns, without_common_anatomy
from mri.subjects.linking import UnclearSubjectsError
from mri.subjects.pose import Pose
from mri.subjects.recovery import order_slices, recover_subjects
from mri.subjects.splits import DataLeakageError, Split, check_disjoint, image_split, subject_split

SUBJECTS, SLICES = 12, 16


@pytest.fixture(scope="module")
def phantoms():
    return make_phantoms(SUBJECTS, SLICES, seed=11)


@pytest.fixture(scope="module")
def shuffled(phantoms):
    """Rows of the phantoms in random order."""
    return np.random.default_rng(3).permutation(SUBJECTS * SLICES)


@pytest.fixture(scope="module")
def recovered(phantoms, shuffled):
    return recover_subjects(phantoms.images[shuffled], phantoms.labels[shuffled])


def same_partition(a, b):
    """Whether two numberings group alike: the pairs of numbers are then one-to-one."""
    pairs = set(zip(np.asarray(a).tolist(), np.asarray(b).tolist(), strict=True))
    return len(pairs) == len(set(a.tolist())) == len(set(b.tolist()))


def single_linkage(features):
    """Correlations at which SciPy joins clusters, descending, and its clustering."""
    distance = 1 - np.clip(features.astype(float), -1, 1)
    distance = (distance + distance.T) / 2
    np.fill_diagonal(distance, 0)
    tree = linkage(squareform(distance, checks=False), "single")
    return 1 - tree[:, 2], tree


def features_of(images):
    """Likeness of all pairs as the linking sees it."""
    pose, rows = Pose.learn(images), np.arange(len(images))
    halves = folding_patterns(pose.draw(images), pose.outline is not None)
    own = without_common_anatomy(Patterns.whole(halves), rows, 0)[0]
    return own.between(rows, rows)


# --- who is who ---


def test_same_partition_knows_a_renumbering_from_another_partition():
    a = np.array([0, 0, 1, 1])
    assert same_partition(a, np.array([5, 5, 2, 2]))
    assert not same_partition(a, np.array([0, 1, 1, 1]))
    assert not same_partition(a, np.array([0, 0, 0, 0]))


def test_subjects_of_shuffled_phantoms_are_exactly_the_truth(phantoms, shuffled, recovered):
    assert same_partition(recovered.groups, phantoms.subjects[shuffled])
    assert recovered.groups.dtype == np.int64
    assert recovered.contradictory == ()
    assert recovered.margin > 0.2


def test_groups_are_numbered_by_first_appearance(recovered):
    _, first = np.unique(recovered.groups, return_index=True)
    assert (np.diff(first) > 0).all()


def test_the_partition_does_not_depend_on_order_or_seed(phantoms, shuffled, recovered):
    again = recover_subjects(phantoms.images, seed=5)
    assert same_partition(again.groups[shuffled], recovered.groups)
    assert again.threshold == pytest.approx(recovered.threshold, abs=0.05)


def test_the_same_seed_gives_the_same_correlations_to_the_bit(phantoms):
    images = phantoms.images[: 8 * SLICES]
    one, two = recover_subjects(images, seed=3), recover_subjects(images, seed=3)
    np.testing.assert_array_equal(one.same, two.same)
    np.testing.assert_array_equal(one.different, two.different)
    other = recover_subjects(images, seed=4)
    assert not np.array_equal(one.different, other.different), "the seed is of no use"


def test_slices_that_are_not_finite_are_listed(phantoms):
    images = phantoms.images[:9].astype(float)
    images[[3, 5], 7, 7] = np.nan, np.inf
    message = r"^Pixels must be finite\. Received: slices=array\(\[3, 5\]\)$"
    with pytest.raises(ValueError, match=message):
        recover_subjects(images)


def test_subjects_survive_jpeg_and_brightness(phantoms, shuffled):
    gain = np.random.default_rng(0).uniform(0.95, 1.05, len(shuffled))
    images = [
        cv2.imdecode(cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, 60))[1], 0)
        for image in phantoms.images[shuffled]
    ]
    found = recover_subjects(np.stack(images))
    assert same_partition(found.groups, phantoms.subjects[shuffled])
    found = recover_subjects(phantoms.images[shuffled] * gain[:, None, None])
    assert same_partition(found.groups, phantoms.subjects[shuffled])


def test_small_n_equals_single_linkage_of_the_exact_correlations(phantoms):
    images = phantoms.images[: 2 * SLICES]  # Every other slice is among the 40 neighbours.
    found = recover_subjects(images)
    joins, tree = single_linkage(features_of(images))
    ours = np.concatenate([found.different, found.same])
    np.testing.assert_allclose(ours, np.sort(joins), atol=1e-6)
    ascending = np.sort(joins)
    cut = np.argmax(np.diff(ascending))
    assert found.margin == pytest.approx(ascending[cut + 1] - ascending[cut], abs=1e-6)
    middle = (ascending[cut] + ascending[cut + 1]) / 2
    assert found.threshold == pytest.approx(middle, abs=1e-6)
    assert same_partition(found.groups, fcluster(tree, 1 - middle, "distance"))


def test_larger_n_finds_the_same_margin_among_the_nearest_neighbours(phantoms, recovered, shuffled):
    joins, tree = single_linkage(features_of(phantoms.images[shuffled]))
    ascending = np.sort(joins)
    cut = np.argmax(np.diff(ascending))
    assert recovered.same[0] == pytest.approx(ascending[cut + 1], abs=1e-5)
    assert recovered.different[-1] == pytest.approx(ascending[cut], abs=1e-5)
    assert len(recovered.same) == SUBJECTS * (SLICES - 1)
    assert same_partition(recovered.groups, fcluster(tree, 1 - recovered.threshold, "distance"))


@pytest.mark.slow
def test_subjects_with_more_slices_than_the_first_neighbour_search(phantoms):
    """Copies have distance 0, and 64 slices of one subject fill the first 40 neighbours."""
    copies = np.random.default_rng(1).permutation(np.repeat(np.arange(4 * SLICES), 4))
    found = recover_subjects(phantoms.images[copies])
    assert same_partition(found.groups, phantoms.subjects[copies])
    assert np.bincount(found.groups).tolist() == [4 * SLICES] * 4


# --- where pixels do not tell ---


def test_noise_is_refused(rng):
    with pytest.raises(UnclearSubjectsError, match=r"no clear gap.* Pass the subject ids"):
        recover_subjects(rng.integers(0, 256, (60, 64, 64), dtype=np.uint8))


def test_one_slice_a_subject_is_refused(phantoms):
    with pytest.raises(UnclearSubjectsError, match="no clear gap"):
        recover_subjects(phantoms.images[::SLICES])


@pytest.mark.slow
def test_slices_too_far_apart_are_refused():
    """Top and bottom slices alone correlate by height, not by subject."""
    heights = make_phantoms(24, 32, seed=5).images.reshape(24, 32, 128, 128)
    for far in (8, 16, 31):
        with pytest.raises(UnclearSubjectsError, match="slices may be missing"):
            recover_subjects(heights[:, ::far].reshape(-1, 128, 128))


def test_the_margin_asked_for_is_kept(phantoms, shuffled, recovered):
    images = phantoms.images[shuffled]
    assert recover_subjects(images, min_margin=recovered.margin - 1e-4).margin > 0
    wanted = recovered.margin + 1e-3
    with pytest.raises(UnclearSubjectsError, match=f"the widest is .*wanted {wanted}"):
        recover_subjects(images, min_margin=wanted)


def test_contradictory_labels_are_reported(phantoms, shuffled):
    labels = phantoms.labels[shuffled].copy()
    wrong = np.array([7, 50])
    labels[wrong] = (labels[wrong] + 1) % 4
    found = recover_subjects(phantoms.images[shuffled], labels)
    assert found.contradictory == tuple(sorted(set(found.groups[wrong].tolist())))
    assert f"{len(found.contradictory)} with contradictory labels" in repr(found)


def test_equal_pixels_with_different_labels_are_told(phantoms, shuffled):
    images, labels = phantoms.images[shuffled].copy(), phantoms.labels[shuffled].copy()
    images[5], labels[5] = images[2], (labels[2] + 1) % 4
    images[8], labels[8] = images[4], labels[4]
    with pytest.warns(UserWarning, match=r"^2 slices of equal pixels .* such as those at \[2, 5\]"):
        found = recover_subjects(images, labels)
    assert found.groups[2] == found.groups[5] and found.warnings == ()
    assert found.groups[2] in found.contradictory


def test_repr_says_the_sizes_and_the_gap(recovered):
    assert repr(recovered) == (
        f"Subjects({SUBJECTS} subjects of {SLICES} to {SLICES} slices, same ≥ "
        f"{recovered.same.min():.3f}, different ≤ {recovered.different.max():.3f}, "
        "0 with contradictory labels)"
    )


@pytest.mark.parametrize("shape", [(8, 8), (2, 8, 8), (5, 8, 8, 1), (0, 8, 8)])
def test_wrong_shapes_are_refused(shape):
    with pytest.raises(ValueError, match=r"images must be numbers \(n, h, w\).*Received: shape=\("):
        recover_subjects(np.zeros(shape))


@pytest.mark.parametrize("value", [0, 1, 100, 255, 0.3])
def test_constant_slices_are_named(phantoms, value):
    images = phantoms.images[:6].astype(float)
    images[[2, 4]] = value
    with pytest.raises(ValueError, match="2 slices are constant, the first at index 2"):
        recover_subjects(images)


def test_labels_of_another_length_are_refused(phantoms):
    images = phantoms.images[: 2 * SLICES]
    with pytest.raises(
        ValueError, match=rf"labels must be {2 * SLICES} integers. Received: shape=\(3,\)"
    ):
        recover_subjects(images, np.zeros(3, int))


def test_pixels_on_disk_are_read_block_by_block(tmp_path, monkeypatch):
    phantoms = make_phantoms(6, 16, size=64, seed=3)
    images = np.lib.format.open_memmap(
        tmp_path / "slices.npy", "w+", np.float64, (6 * 16, 384, 384)
    )
    for out, image in zip(images, phantoms.images, strict=True):
        out[:] = cv2.resize(image, (384, 384))
    monkeypatch.setattr("mri.subjects.recovery._BYTES", 2**22)
    tracemalloc.start()
    found = recover_subjects(images)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert same_partition(found.groups, phantoms.subjects)
    assert peak < images.nbytes / 4, f"{peak / 1e6:.0f} of {images.nbytes / 1e6:.0f} MB"


def drawn_people(people, slices, side=64):
    """Each person's slices change step by step, as folds do: next neighbours correlate by 0.9."""
    rng = np.random.default_rng(0)

    def pattern():
        return cv2.GaussianBlur(rng.standard_normal((side, side), np.float32), (0, 0), 1)

    images = np.empty((people, slices, side, side), np.uint8)
    for person in images:
        one = pattern()
        for image in person:
            image[:] = (128 + 150 * one).clip(0, 255)
            one = 0.9 * one + np.sqrt(1 - 0.9**2) * pattern()
    return images.reshape(-1, side, side)


@pytest.mark.stress
@pytest.mark.filterwarnings("ignore:faiss is not installed", "ignore:the heights of the slices")
@pytest.mark.parametrize("people", [312, 937, 3125])
def test_up_to_a_hundred_thousand_slices_in_any_order(people):
    order = np.random.default_rng(1).permutation(people * 32)
    images = drawn_people(people, 32)[order]
    begin, busy = time.perf_counter(), time.process_time()
    found = recover_subjects(images)
    seconds = time.perf_counter() - begin, time.process_time() - busy
    print(f"{len(order)} slices: {found}, {seconds[0]:.0f} s, {seconds[1]:.0f} s of processor time")
    assert same_partition(found.groups, order // 32)


class Cells:
    """The inverted file of faiss in NumPy: a point is compared with those of the nearest cells."""

    def __init__(self, quantizer, wide, cells, metric):
        self.cells, self.nprobe, self.cp = cells, 1, SimpleNamespace(niter=0)

    def train(self, points):
        self.middles = points[np.random.default_rng(0).permutation(len(points))[: self.cells]]
        for _ in range(8):
            cell = (points @ self.middles.T).argmax(1)
            sums = np.zeros_like(self.middles)
            np.add.at(sums, cell, points)
            length = np.linalg.norm(sums, axis=1, keepdims=True)
            self.middles = np.where(length > 0, sums / np.maximum(length, 1e-6), self.middles)

    def add(self, points):
        self.points, self.cell = points, (points @ self.middles.T).argmax(1)

    def search(self, asked, wanted):
        near = np.argsort(-(asked @ self.middles.T), axis=1)[:, : self.nprobe]
        like = asked @ self.points.T
        like[~(self.cell[None, :, None] == near[:, None]).any(2)] = -np.inf
        rows = np.argsort(-like, axis=1)[:, :wanted]
        like = np.take_along_axis(like, rows, axis=1)
        return like, np.where(np.isfinite(like), rows, -1)


@pytest.fixture(params=["faiss", "in NumPy"])
def index(request, monkeypatch):
    """An index for few slices: of faiss where it is installed, and one like it."""
    if request.param == "faiss":
        pytest.importorskip("faiss")
    else:
        like = {"IndexIVFFlat": Cells, "IndexFlatIP": int, "METRIC_INNER_PRODUCT": 0}
        like |= {"omp_set_num_threads": int}
        monkeypatch.setitem(sys.modules, "faiss", SimpleNamespace(**like))
        monkeypatch.setattr("mri.subjects.neighbours.find_spec", lambda name: name)
    monkeypatch.setattr("mri.subjects.neighbours._INDEXED", 200)
    return monkeypatch


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the heights of the slices")
def test_an_index_finds_the_people_that_all_pairs_give(index):
    order = np.random.default_rng(1).permutation(15 * 16)
    images = drawn_people(15, 16)[order]
    index.setattr("mri.subjects.neighbours._IN_A_CELL", 20)
    found = recover_subjects(images)
    assert same_partition(found.groups, order // 16)
    index.setattr("mri.subjects.neighbours._INDEXED", 10**6)
    exact = recover_subjects(images)
    np.testing.assert_array_equal(found.groups, exact.groups)
    np.testing.assert_allclose(found.same, exact.same, atol=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:the heights of the slices")
def test_people_that_an_index_tears_are_mended(index):
    """It looks in one cell of 30 here: parts of a person in two cells do not see each other."""
    for name, value in (("_IN_A_CELL", 40), ("_PROBED", 1)):
        index.setattr(f"mri.subjects.neighbours.{name}", value)
    order = np.random.default_rng(1).permutation(50 * 24)
    images = drawn_people(50, 24)[order]
    assert same_partition(recover_subjects(images).groups, order // 24)
    index.setattr("mri.subjects.linking.looked_further", lambda *parts: None)
    with pytest.raises(UnclearSubjectsError, match=r"groups (have|fall)"):
        recover_subjects(images)


@pytest.mark.filterwarnings("ignore:the heights of the slices")
def test_links_that_an_index_missed_are_found_where_the_gap_is_not_clear(index):
    """Of two people it shows the halves to each other by weak links only."""
    people, slices = 20, 24
    order = np.random.default_rng(1).permutation(people * slices)
    images = drawn_people(people, slices)[order]
    clear = recover_subjects(images).same.min()
    place = np.argsort(order).reshape(people, slices)
    hidden = np.zeros((len(order),) * 2, bool)
    for of, apart in zip(place, (5, 4), strict=False):
        for i, j in np.ndindex(slices, slices):
            hidden[of[i], of[j]] = (i < 12) != (j < 12) and abs(i - j) < apart

    def damaged(halves, neighbours):
        even, odd = halves
        like = even @ even.T + np.abs(odd @ odd.T)
        like[hidden] = like[np.diag_indices_from(like)] = -np.inf
        return np.argsort(-like, axis=1)[:, :neighbours].astype(np.int32)

    index.setattr("mri.subjects.neighbours._by_index", damaged)
    found = recover_subjects(images, min_margin=0.25)
    assert same_partition(found.groups, order // slices)
    assert found.different.max() + 0.4 < found.same.min() <= clear
    index.setattr("mri.subjects.linking._WEAKEST", 0)
    with pytest.raises(UnclearSubjectsError, match=r"the widest is 0\.\d+, wanted 0\.25"):
        recover_subjects(images, min_margin=0.25)


@pytest.mark.filterwarnings("ignore:the heights of the slices")
def test_without_an_index_one_line_says_so_and_all_pairs_are_compared(monkeypatch):
    monkeypatch.setattr("mri.subjects.neighbours._INDEXED", 100)
    monkeypatch.setattr("mri.subjects.neighbours.find_spec", lambda name: None)
    with pytest.warns(RuntimeWarning, match="faiss is not installed: 240 slices .*faiss-cpu"):
        found = recover_subjects(drawn_people(10, 24))
    assert same_partition(found.groups, np.arange(240) // 24)


@pytest.mark.real_data
def test_real_slices_are_200_subjects_of_32(real_data):
    from mri.data.scans import read_scans

    scans = read_scans(real_data, split="train") + read_scans(real_data, split="test")
    if scans.synthetic:
        pytest.skip("these are phantoms")
    order = np.random.default_rng(9).permutation(len(scans))
    tracemalloc.start()
    start = time.process_time()
    found = recover_subjects(scans.images[order], scans.labels[order])
    seconds, peak = time.process_time() - start, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    print(f"\n{found}\n{seconds:.1f} s of the processor, {peak / 1e6:.0f} MB beside the slices")
    assert np.bincount(found.groups).tolist() == [32] * 200
    assert found.contradictory == ()
    assert found.margin > 0.2
    assert seconds <= 30 and peak <= 2e9
    _, first = np.unique(found.groups, return_index=True)
    people = np.bincount(scans.labels[order][first])
    assert dict(zip(scans.class_names, people.tolist(), strict=True)) == {
        "Mild_Demented": 28,
        "Moderate_Demented": 2,
        "Non_Demented": 100,
        "Very_Mild_Demented": 70,
    }


def seriated(images, groups):
    """Rows of each group in anatomical order: along the Fiedler vector of their correlations."""
    for group in range(groups.max() + 1):
        rows = np.flatnonzero(groups == group)
        weight = np.exp((np.corrcoef(images[rows].reshape(len(rows), -1)) - 1) / 0.01)
        laplacian = np.diag(weight.sum(1)) - weight
        yield rows[np.argsort(np.linalg.eigh(laplacian)[1][:, 1])]


@pytest.mark.real_data
@pytest.mark.stress
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_damaged_and_thinned_real_slices_give_the_same_people_or_a_refusal(real_data):
    """Never another partition, but for slices of groups that a warning names."""
    from mri.data.scans import read_scans

    scans = read_scans(real_data, split="train") + read_scans(real_data, split="test")
    if scans.synthetic:
        pytest.skip("these are phantoms")
    images, rng = scans.images, np.random.default_rng(0)
    truth = recover_subjects(images).groups
    lines = list(seriated(images, truth))
    everything = np.arange(len(images))

    def jpeg(quality):
        options = [cv2.IMWRITE_JPEG_QUALITY, quality]
        return np.stack([cv2.imdecode(cv2.imencode(".jpg", x, options)[1], 0) for x in images])

    def clipped(values):
        return np.clip(values, 0, 255).astype(np.uint8)

    def gain(share):
        return clipped(images * rng.uniform(1 - share, 1 + share, (len(images), 1, 1)))

    def noise(deviation):
        return clipped(images + rng.normal(0, deviation, images.shape))

    def drawn(share):
        return rng.choice(everything, int(share * len(images)), replace=False)

    cases = [(f"JPEG quality {q}", jpeg(q), everything, True) for q in (60, 5)]
    cases += [(f"brightness ±{d:.0%}", gain(d), everything, True) for d in (0.05, 0.5)]
    cases += [(f"noise, sd {d}", noise(d), everything, d <= 10) for d in (10, 20, 40, 80)]
    for step in (2, 3, 4, 8):
        kept = np.concatenate([line[::step] for line in lines])
        cases.append((f"every slice number {step}", images, kept, False))
    cases += [(f"random {f:.0%}", images, drawn(f), False) for f in (0.95, 0.75, 0.5, 0.25)]
    for name, changed, rows, holds in cases:
        rows = rng.permutation(rows)
        try:
            found = recover_subjects(changed[rows])
        except UnclearSubjectsError as refusal:
            assert not holds, name
            print(f"\n{name}: refused, {str(refusal)[:110]}", end="")
            continue
        print(f"\n{name}: {found}", end="")
        if not found.warnings:
            assert same_partition(found.groups, truth[rows]), name
        elif holds:
            assert adjusted_rand_score(truth[rows], found.groups) > 0.999, name


# --- splits ---

COUNTS = np.array([28, 2, 100, 70])


@pytest.fixture(scope="module")
def cohort():
    """Labels and subject numbers of 200 subjects of 8 slices, as in the public set, shuffled."""
    rng = np.random.default_rng(2)
    diagnosis = rng.permutation(np.repeat(np.arange(4), COUNTS))
    groups = rng.permutation(np.repeat(np.arange(200), 8))
    return diagnosis[groups], groups


@pytest.fixture(scope="module")
def folds(cohort):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [subject_split(*cohort, fold=fold) for fold in range(5)]


def parts(split):
    return [split.train, split.validation, split.test]


def test_folds_are_disjoint_and_complete(cohort, folds):
    labels, groups = cohort
    for fold, split in enumerate(folds):
        assert (split.protocol, split.fold, split.folds) == ("subject", fold, 5)
        np.testing.assert_array_equal(np.sort(np.concatenate(parts(split))), np.arange(len(labels)))
        people = [set(groups[part]) for part in parts(split)]
        assert sum(map(len, people)) == len(set.union(*people)) == 200


def test_every_subject_is_tested_once(cohort, folds):
    tested = np.concatenate([np.unique(cohort[1][split.test]) for split in folds])
    np.testing.assert_array_equal(np.sort(tested), np.arange(200))


def test_class_shares_are_near_the_whole(cohort, folds):
    labels, _ = cohort
    for split in folds:
        sizes = np.array([len(part) for part in parts(split)]) / len(labels)
        np.testing.assert_allclose(sizes, [0.7, 0.1, 0.2], atol=0.02)
        for part, share in zip(parts(split), (0.7, 0.1, 0.2), strict=True):
            people = np.bincount(labels[part], minlength=4) / 8
            assert (np.abs(people - share * COUNTS) <= [1.5, 1.5, 2, 2]).all(), people


def test_seeds_give_other_folds_and_the_same_seed_the_same(cohort):
    with pytest.warns(UserWarning, match="fewer subjects"):
        splits = [subject_split(*cohort, seed=seed) for seed in (0, 0, 1)]
    for one, two, other in zip(*map(parts, splits), strict=True):
        np.testing.assert_array_equal(one, two)
        assert set(one) != set(other)


def test_rare_classes_are_named(cohort):
    with pytest.warns(UserWarning, match=r"^fewer subjects than the 5 folds \(class 1: 2\)$"):
        subject_split(*cohort)
    with pytest.warns(UserWarning, match=r"the 40 folds \(class 0: 28, class 1: 2\)"):
        subject_split(*cohort, folds=40)


def test_common_classes_warn_of_nothing(cohort):
    labels, groups = cohort
    subject_split(np.where(labels == 1, 0, labels), groups)  # A warning would be an error.


@pytest.mark.parametrize("count", [5, 6, 9])
def test_few_subjects_still_make_three_parts(count):
    groups = np.repeat(np.arange(count), 3)
    split = subject_split(np.zeros(3 * count, int), groups)
    assert all(len(part) for part in parts(split))
    assert sum(len(set(groups[part])) for part in parts(split)) == count


@pytest.mark.parametrize("fold", [-1, 5])
def test_folds_out_of_range_are_refused(cohort, fold):
    with pytest.raises(ValueError, match=f"fold must be 0 to 4. Received: fold={fold}"):
        subject_split(*cohort, fold=fold)


def test_one_fold_is_none():
    with pytest.raises(ValueError, match=r"^folds must be at least 2\. Received: folds=1$"):
        subject_split(np.zeros(9, int), np.repeat([0, 1, 2], 3), folds=1)


def test_fewer_subjects_than_folds_are_refused():
    with pytest.raises(ValueError, match=r"need at least 5 subjects\. Received: subjects=3"):
        subject_split(np.zeros(9, int), np.repeat([0, 1, 2], 3))


def test_an_image_level_split_keeps_the_published_test_rows_and_leaks(cohort):
    labels, groups = cohort
    published = np.random.default_rng(4).permutation(len(labels))[:320]
    split = image_split(labels, published, seed=3)
    assert (split.protocol, split.fold, split.folds, split.seed) == ("image", -1, 1, 3)
    np.testing.assert_array_equal(split.test, np.sort(published))
    np.testing.assert_array_equal(np.sort(np.concatenate(parts(split))), np.arange(1600))
    assert len(split.validation) == pytest.approx(0.1 * 1280, abs=1)
    shares = np.bincount(labels[split.validation], minlength=4) / len(split.validation)
    np.testing.assert_allclose(shares, COUNTS / 200, atol=0.02)

    tested, trained = set(groups[split.test]), set(groups[split.train])
    shared = tested & trained
    message = (
        f"^{len(shared)} of {len(tested)} subjects of the test part are also in the train part, "
        rf"for example subject {min(shared)}\. Split with subject_split\.$"
    )
    with pytest.raises(DataLeakageError, match=message):
        check_disjoint(split, groups)
    other = image_split(labels, published, seed=4)
    assert set(other.validation) != set(split.validation)


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ([0, 1600], r"test must be from 0 to 1599. Received: outside=array\(\[1600\]\)"),
        ([-1, 2], r"test must be from 0 to 1599. Received: outside=array\(\[-1\]\)"),
        ([3, 3], "test must hold different rows. Received: repeats=1"),
        (np.ones(1600, bool), r"test must be integers. Received: .*dtype\('bool'\)"),
        (np.arange(1600), "test must leave 10 rows of some class to train on. Received: most=0"),
    ],
)
def test_test_rows_that_are_none_are_refused(cohort, test, message):
    with pytest.raises(ValueError, match=message):
        image_split(cohort[0], test)


@pytest.mark.parametrize("sides", [("train", "test"), ("train", "validation"), ("validation",) * 2])
def test_one_shared_subject_is_leakage(sides):
    groups = np.array([0, 0, 1, 1, 2, 2])
    rows = {"train": [0, 1], "validation": [2, 3], "test": [4, 5]}
    if sides == ("train", "test"):
        rows["train"], rows["test"] = [0, 1, 4], [5]
    elif sides == ("train", "validation"):
        rows["train"], rows["validation"] = [0, 1, 2], [3]
    else:
        rows["validation"], rows["test"] = [2, 3, 4], [5]
    split = Split("subject", *(np.array(rows[side]) for side in ("train", "validation", "test")))
    with pytest.raises(DataLeakageError, match=r"^1 of [12] subjects of the"):
        check_disjoint(split, groups)


def test_subjects_kept_apart_are_no_leakage(cohort, folds):
    for split in folds:
        check_disjoint(split, cohort[1])


def test_leakage_makes_a_nearest_neighbour_look_perfect(phantoms):
    """It knows nothing of disease: image-level it is right by recognising people."""
    pixels = phantoms.images.reshape(SUBJECTS * SLICES, -1).astype(float)

    def accuracy(split):
        distance = (
            (pixels[split.test] ** 2).sum(1)[:, None]
            - 2 * pixels[split.test] @ pixels[split.train].T
            + (pixels[split.train] ** 2).sum(1)
        )
        nearest = split.train[distance.argmin(1)]
        return (phantoms.labels[nearest] == phantoms.labels[split.test]).mean()

    published = np.random.default_rng(0).permutation(len(pixels))[: len(pixels) // 5]
    leaky = accuracy(image_split(phantoms.labels, published))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        splits = [subject_split(phantoms.labels, phantoms.subjects, fold=k) for k in range(5)]
    honest = np.mean([accuracy(split) for split in splits])
    print(f"\n1-NN: image-level {leaky:.2f}, subject-wise {honest:.2f}")
    assert leaky > 0.97
    assert honest < leaky - 0.3


# --- along the head ---


def test_slices_of_a_person_are_put_in_order_from_below():
    phantoms = make_phantoms(6, 32, seed=1)
    rng = np.random.default_rng(0)
    for subject in range(6):
        rows = rng.permutation(np.flatnonzero(phantoms.subjects == subject))
        found = rows[order_slices(phantoms.images[rows])]
        assert (np.diff(phantoms.z[found]) > 0).all()


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_slices_have_an_order_too(n):
    phantoms = make_phantoms(4, 12, seed=1)
    found = order_slices(phantoms.images[:n][::-1])
    assert sorted(found) == list(range(n))
    if n == 3:
        np.testing.assert_array_equal(found, [2, 1, 0])


def test_order_wants_a_stack():
    with pytest.raises(ValueError, match=r"images must be \(n, h, w\). Received: shape=\(4, 4\)"):
        order_slices(np.zeros((4, 4)))


@pytest.mark.real_data
def test_real_slices_in_order_change_little_by_little(real_data):
    """Next neighbours are more alike than those two apart, all along every head tried."""
    scans = read_scans(real_data, split="train") + read_scans(real_data, split="test")
    groups = recover_subjects(scans.images).groups
    for subject in range(40):
        rows = np.flatnonzero(groups == subject)
        images = scans.images[rows[order_slices(scans.images[rows])]]
        likeness = np.corrcoef(images.reshape(len(images), -1))
        near, far = np.diag(likeness, 1), np.diag(likeness, 2)
        assert (np.minimum(near[:-1], near[1:]) > far - 0.002).all()
