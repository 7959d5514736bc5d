"""Groups of labels that belong together: K-way normalised cut of a graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from functools import partial

import numpy as np

from coterie.labels.objectives import Floats, Labels, normalized_cut, normalized_cut_cost
from coterie.labels.search import search

STARTS, KICKS = 64, 200
BOUNDED_STARTS = 16  # of those that are brought within bounds, the best; and as many at random
PAPER_RESTARTS = 16
MOST_EXACT = 1000  # classes; of more, not all eigenvectors are computed
KRYLOV_EXTRA, KRYLOV_STEPS = 10, 16  # with these, eigenvalues agree to 1e-5 and mostly to rounding
PAPER_INITS = 50  # k-means runs in a restart: with 10, one in a hundred scores above the published groups


def lowest_normalized_cut(
    affinity: Floats, k: int, seed: int, bounds: tuple[int, int] | None = None
) -> Labels:
    """Labels [C] of the lowest N-cut found: k-means on the spectral embedding, then moves and swaps.

    `bounds`: smallest and largest size of a group, which leave room for groups of equal sizes.
    """

    def cut(affinity: Floats) -> Labels:
        rng = np.random.default_rng(seed)
        embedding = spectral_embedding(affinity, k)
        starts = _k_means(embedding, k, rng.integers(2**31, size=STARTS).tolist(), 1)
        sizes = (1, len(affinity))
        if bounds is not None:
            # classes without weight come later, each into the smallest group
            sizes = (min(bounds[0], len(affinity) // k), bounds[1])
            starts = sorted((within(start, affinity, sizes) for start in starts), key=partial(_cut, affinity))
            shuffled = [rng.permutation(np.arange(len(affinity)) % k) for _ in range(BOUNDED_STARTS)]
            starts = starts[:BOUNDED_STARTS] + shuffled
        return search(affinity, starts, normalized_cut_cost, sizes, KICKS, rng)

    return _cut_linked(affinity, k, cut)


def near_equal_sizes(c: int, k: int) -> tuple[int, int]:
    """Smallest and largest size of a group when C classes make K: a quarter less and more than C / K."""
    return max(1, 3 * c // (4 * k)), -(-5 * c // (4 * k))


def within(start: Labels, affinity: Floats, sizes: tuple[int, int]) -> Labels:
    """`start` [C] with all groups brought within `sizes`: from the largest to the smallest goes the class
    that gains most links by it, and so on.
    """
    (low, high), k = sizes, int(start.max()) + 1
    labels = start.copy()
    links = affinity @ np.eye(k)[labels]  # [C, K]: weight from a class to a group
    while True:
        count = np.bincount(labels, minlength=k)
        largest, smallest = int(count.argmax()), int(count.argmin())
        if count[largest] <= high and count[smallest] >= low:
            return labels
        inside = np.flatnonzero(labels == largest)
        moved = inside[(links[inside, smallest] - links[inside, largest]).argmax()]
        links[:, largest] -= affinity[moved]
        links[:, smallest] += affinity[moved]
        labels[moved] = smallest


def paper_cut(affinity: Floats, features: Floats, k: int) -> Labels:
    """Labels [C] of the published construction: of 16 restarts of spectral clustering of `affinity` [C, C],
    the one of the highest Calinski-Harabasz score on the rows of `features` [C, D].

    The restarts are seeded 0 to 15 whatever the seed of the caller: that gives the published groups.
    """

    def cut(affinity: Floats) -> Labels:
        from sklearn.metrics import calinski_harabasz_score

        embedding = spectral_embedding(affinity, k)
        restarts = _k_means(embedding, k, range(PAPER_RESTARTS), PAPER_INITS)
        return max(restarts, key=lambda labels: float(calinski_harabasz_score(rows, labels)))

    rows = features[affinity.sum(axis=1) > 0]
    return _cut_linked(affinity, k, cut)


def spectral_embedding(affinity: Floats, k: int) -> Floats:
    """[C, K]: the relaxed N-cut, the first K solutions of the generalised problem (D - S) x = lambda D x.

    Every class must have weight. From: Shi and Malik, "Normalized Cuts and Image Segmentation", 2000.
    """
    scale = 1 / np.sqrt(affinity.sum(axis=1, keepdims=True))
    return np.asarray(_top_eigenvectors(affinity * scale * scale.T, k) * scale)


def _top_eigenvectors(matrix: Floats, k: int) -> Floats:
    """[C, K]: the eigenvectors of the K largest eigenvalues of a symmetric `matrix` [C, C].

    Of a large one by a block Krylov method: Lanczos' misses eigenvalues that are there several times, as 1 is
    for a graph in several parts. From: Musco and Musco, "Randomized Block Krylov Methods", 2015.
    """
    c, width = len(matrix), k + KRYLOV_EXTRA
    if c <= MOST_EXACT or width * (KRYLOV_STEPS + 1) > c:
        return np.asarray(np.linalg.eigh(matrix)[1][:, -k:])
    blocks = [np.linalg.qr(np.random.default_rng(0).standard_normal((c, width)))[0]]
    for _ in range(KRYLOV_STEPS):
        blocks.append(np.linalg.qr(matrix @ blocks[-1])[0])
    basis = np.linalg.qr(np.concatenate(blocks, axis=1))[0]
    return np.asarray(basis @ np.linalg.eigh(basis.T @ (matrix @ basis))[1][:, -k:])


def _cut_linked(affinity: Floats, k: int, cut: Callable[[Floats], Labels]) -> Labels:
    """`cut` on the classes that have weight; each of the others joins the smallest group.

    A class without weight belongs nowhere and costs nothing anywhere. Left in, such classes would take groups
    for themselves, in which there is nothing to learn together.
    """
    linked = np.flatnonzero(affinity.sum(axis=1) > 0)
    labels = np.full(len(affinity), -1)
    labels[linked] = cut(affinity[np.ix_(linked, linked)]) if len(linked) > k else np.arange(len(linked))
    for i in np.flatnonzero(labels < 0):
        labels[i] = np.bincount(labels[labels >= 0], minlength=k).argmin()
    return labels


def _cut(affinity: Floats, labels: Labels) -> float:
    groups = [np.flatnonzero(labels == group).tolist() for group in range(labels.max() + 1)]
    return normalized_cut(affinity, groups)


def _k_means(rows: Floats, k: int, seeds: Iterable[int], inits: int) -> list[Labels]:
    """For each seed the labels [C] of the tightest of `inits` k-means runs; every group has a class."""
    # here, not above: half a second that the command line need not wait
    from sklearn.cluster import k_means
    from threadpoolctl import threadpool_limits

    # one thread: the caller's limit has not reached what scikit-learn loaded just now
    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # fewer distinct rows than groups: the empty groups are filled below
        found = [k_means(rows, k, random_state=seed, n_init=inits)[1].astype(np.int64) for seed in seeds]
    for labels in found:
        for group in range(k):
            count = np.bincount(labels, minlength=k)
            if not count[group]:
                labels[np.flatnonzero(labels == count.argmax())[-1]] = group
    return found
