"""Who is who: subjects recovered from pixels, and splits that keep a subject on one side."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from mri._arguments import integers, require


class UnclearSubjectsError(ValueError):
    """The pixels do not say who is who: no clear gap between same and different subjects."""


@dataclass(frozen=True, eq=False)
class Subjects:
    """Subjects found in a set of slices.

    Attributes
    ----------
    groups : ndarray of int64, shape (n,)
        Subject of each slice, numbered by first appearance.
    threshold : float
        Correlation above which two slices are linked: the middle of the gap.
    same : ndarray of float64
        Correlations of the links that join slices of one subject, ascending.
    different : ndarray of float64
        Strongest correlations between subjects, ascending.
    contradictory : tuple of int
        Groups whose slices carry more than one label (empty where no labels were given).
    """

    groups: np.ndarray
    threshold: float
    same: np.ndarray
    different: np.ndarray
    contradictory: tuple[int, ...] = ()

    @property
    def margin(self) -> float:
        """Weakest link within a subject minus strongest correlation between two subjects."""
        return float(self.same[0] - self.different[-1])

    def __repr__(self) -> str:
        sizes = np.bincount(self.groups)
        return (
            f"Subjects({len(sizes)} subjects of {sizes.min()} to {sizes.max()} slices, "
            f"same ≥ {self.same[0]:.3f}, different ≤ {self.different[-1]:.3f}, "
            f"{len(self.contradictory)} with contradictory labels)"
        )


def recover_subjects(
    images: np.ndarray,
    labels: np.ndarray | None = None,
    *,
    min_margin: float = 0.1,
    seed: int = 0,
) -> Subjects:
    """Group slices by subject from their pixels alone.

    Neighbouring slices of one head share its folding pattern, slices of two heads do not. The
    coarse brightness that all heads have in common is removed by a high-pass filter, their common
    anatomy with the leading principal components; nearest neighbours (searched in the components
    that follow, then correlated exactly) are joined to a spanning tree, and the tree is cut at the
    largest gap between its correlations. That gap is
    chosen from the data; if it is narrow, or lies where it would link what hardly correlates or
    leave most slices alone, the function refuses. Few people of whom slices are missing can still
    be misjudged: compare the group sizes with what you expect.

    Parameters
    ----------
    images : ndarray of uint8 or float, shape (n, h, w)
        Slices in any order, roughly aligned.
    labels : ndarray of int, shape (n,), optional
        Only used to report groups with more than one label.
    min_margin : float
        Smallest gap of correlations that counts as clear.
    seed : int
        Of the randomised principal component analysis.

    Returns
    -------
    Subjects

    Raises
    ------
    ValueError
        If `images` is not (n, h, w) with n ≥ 3, a pixel is not finite, a slice is constant, there
        are not as many labels, or `min_margin` is not between 0 and 2.
    UnclearSubjectsError
        If there is no clear gap; pass known subject ids to the splits instead.

    Examples
    --------
    >>> from mri.data import make_phantoms
    >>> phantoms = make_phantoms(4, 16, size=64)
    >>> found = recover_subjects(phantoms.images)
    >>> len(set(found.groups)), len(set(zip(found.groups, phantoms.subjects)))
    (4, 4)
    """
    images = np.asarray(images)
    fits = images.ndim == 3 and len(images) >= 3 and images.dtype.kind in "uif"
    expected = "images must be numbers (n, h, w) with n of at least 3."
    require(fits, expected, shape=images.shape, dtype=images.dtype)
    wrong = np.flatnonzero(~np.isfinite(images).all((1, 2)))[:5]
    require(not len(wrong), "Pixels must be finite.", slices=wrong)
    require(0 < min_margin < 2, "min_margin must be between 0 and 2.", min_margin=min_margin)
    labels = None if labels is None else integers("labels", labels, len(images))
    features, components = _without_common_anatomy(_folding_pattern(images), seed)
    neighbours, most = min(40, len(images) - 1), min(640, len(images) - 1)
    while True:
        rows, columns, similarity = _candidate_pairs(features, components, neighbours)
        # Distances must be positive: SciPy's sparse graphs take a zero for a missing edge.
        tree = minimum_spanning_tree(
            csr_matrix((2.0 - similarity, (rows, columns)), shape=(len(images),) * 2)
        ).tocoo()
        edges = np.sort(2.0 - tree.data)
        gaps = np.diff(edges)
        cut = int(gaps.argmax())
        threshold = float(edges[cut : cut + 2].mean())
        strong = 2.0 - tree.data > threshold
        count, groups = connected_components(
            csr_matrix((strong[strong], (tree.row[strong], tree.col[strong])), tree.shape)
        )
        # A slice sees its nearest stranger only if it has more neighbours than slices of its own.
        if np.bincount(groups).max() < neighbours or neighbours == most:
            break
        neighbours = min(2 * neighbours, most)
    if gaps[cut] < min_margin or threshold < 0.3 or count > len(images) / 2:
        raise UnclearSubjectsError(
            f"no clear gap between same and different subjects: the widest is {gaps[cut]:.3f} "
            f"(correlations {edges[cut]:.3f} to {edges[cut + 1]:.3f}, wanted {min_margin}), and "
            f"would make {count} groups of {len(images)} slices; slices may be missing between "
            "neighbours. Pass the subject ids if you know them"
        )
    mixed = _contradictory(groups, labels)
    return Subjects(groups.astype(np.int64), threshold, edges[cut + 1 :], edges[: cut + 1], mixed)


def _folding_pattern(images: np.ndarray) -> np.ndarray:
    """High-pass each slice at 64 pixels, and scale it so that dot products are correlations."""
    small = np.empty((len(images), 64 * 64), np.float32)
    for i, image in enumerate(images):
        image = cv2.resize(image.astype(np.float32), (64, 64), interpolation=cv2.INTER_AREA)
        small[i] = (image - cv2.GaussianBlur(image, (0, 0), 2)).ravel()
    small -= small.mean(axis=1, keepdims=True)
    norms = np.linalg.norm(small, axis=1, keepdims=True)
    flat = np.flatnonzero(norms < 1e-3)
    if len(flat):
        raise ValueError(
            f"{len(flat)} slices are constant, the first at index {flat[0]}; leave them out"
        )
    return small / norms


def _without_common_anatomy(features: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Remove the leading components, which tell where a slice lies, not whose it is.

    They are what strangers' slices of one height share; without them a slice is twice as far
    above its best stranger. Works in place; also returns the components that follow, to search in.
    """
    sample = features[np.random.default_rng(seed).permutation(len(features))[:5000]]
    common = min(30, len(features) // 50)
    pca = PCA(min(common + 128, *sample.shape), svd_solver="randomized", random_state=seed)
    basis = pca.fit(sample).components_[:common]
    for start in range(0, len(features), 1024):
        block = features[start : start + 1024]
        block -= pca.mean_
        block -= block @ basis.T @ basis
        block /= np.linalg.norm(block, axis=1, keepdims=True)
    return features, pca.components_[common:]


def _candidate_pairs(
    features: np.ndarray, components: np.ndarray, neighbours: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find each slice's nearest neighbours, and their exact correlations."""
    points = features @ components.T
    index = NearestNeighbors(n_neighbors=neighbours, algorithm="brute").fit(points)
    columns = index.kneighbors(return_distance=False)
    similarity = np.empty(columns.shape)
    for start in range(0, len(features), 256):
        block = slice(start, start + 256)
        similarity[block] = np.einsum("if,ijf->ij", features[block], features[columns[block]])
    rows = np.repeat(np.arange(len(features)), neighbours)
    return rows, columns.ravel(), similarity.ravel()


def _contradictory(groups: np.ndarray, labels: np.ndarray | None) -> tuple[int, ...]:
    if labels is None:
        return ()
    pairs = np.unique(np.stack([groups, labels]), axis=1)[0]
    return tuple(int(group) for group in np.flatnonzero(np.bincount(pairs) > 1))


def order_slices(images: np.ndarray) -> np.ndarray:
    """Return the order of one subject's slices along the head, from below upwards.

    Neighbouring slices are most alike, so the second eigenvector of the graph of their likeness
    puts them in line (spectral seriation; Atkins et al. 1998, doi:10.1137/S0097539795285771). Which
    end is below is told by the size of the brain, which shrinks towards the crown.

    Parameters
    ----------
    images : ndarray of uint8 or float, shape (n, h, w)
        Slices of one subject in any order.

    Returns
    -------
    ndarray of int64, shape (n,)
    """
    images = np.asarray(images)
    if images.ndim != 3:
        raise ValueError(f"images must be (n, h, w). Received: shape {images.shape}")
    if len(images) < 3:
        likeness = np.ones((len(images),) * 2)
    else:
        likeness = np.corrcoef(images.reshape(len(images), -1).astype(np.float32))
    # Far slices are all alike unlike; only near ones say where a slice lies.
    likeness = np.exp((np.nan_to_num(likeness) - 1) / 0.02)
    laplacian = np.diag(likeness.sum(1)) - likeness
    order = np.argsort(np.linalg.eigh(laplacian)[1][:, min(1, len(images) - 1)], kind="stable")
    size = np.array([np.count_nonzero(image > 20) for image in images])[order]
    half = len(order) // 2
    return order[::-1] if size[:half].sum() < size[len(order) - half :].sum() else order
