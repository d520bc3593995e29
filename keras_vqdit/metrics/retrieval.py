"""How well scores find the right candidates: recall among the first k, and the median rank."""

import numpy as np

from keras_vqdit.checks import positive_integer


def retrieval_ranks(scores, targets=None):
    """The place of each query's best right candidate, from 1 on.

    A wrong candidate with the same score comes first, so that scores which tell nothing find nothing.

    Args:
        scores: array `(queries, candidates)`, larger for better matches.
        targets: the right candidates: integers `(queries,)`; or, where a query may have several, a list of integers for each
            query, or a bool array `(queries, candidates)`. Default: `None`, candidate i for query i.

    Returns:
        int64 NumPy array `(queries,)`.

    Raises:
        ValueError: if `scores` is no such array, holds NaN, or `targets` does not fit it.

    Example:

    >>> scores = np.array([[0.9, 0.1, 0.3], [0.2, 0.4, 0.4]])
    >>> retrieval_ranks(scores)
    array([1, 2])
    >>> retrieval_ranks(scores, [[0], [1, 2]])
    array([1, 1])
    """
    scores = np.asarray(scores)
    if scores.ndim != 2 or not scores.size or scores.dtype.kind not in "fiu":
        raise ValueError(
            f"`scores` must be numbers (queries, candidates). Received: {scores.dtype}, shape={scores.shape}"
        )
    if np.isnan(scores).any():
        raise ValueError(f"`scores` must not hold NaN. Received: {int(np.isnan(scores).sum())} of them")
    right = _right_candidates(targets, scores.shape)
    if scores.dtype.kind != "f":
        scores = scores.astype("float64")
    best = np.max(np.where(right, scores, -np.inf), axis=1, keepdims=True)
    return 1 + np.sum((scores >= best) & ~right, axis=1)


def recall_at_k(scores, k, targets=None):
    """The fraction of the queries that have a right candidate among the k best.

    Args:
        scores: array `(queries, candidates)`, larger for better matches.
        k: how many candidates count, a positive integer. Chance is k / candidates where one of them is right.
        targets: the right candidates, as in `retrieval_ranks`. Default: candidate i for query i.

    Returns:
        float from 0 to 1.

    Raises:
        ValueError: if an argument has an impossible value.

    Example:

    >>> scores = np.array([[0.9, 0.1, 0.3], [0.2, 0.4, 0.6]])
    >>> recall_at_k(scores, 1), recall_at_k(scores, 2)
    (0.5, 1.0)
    """
    k = positive_integer("k", k)
    return float(np.mean(retrieval_ranks(scores, targets) <= k))


def median_rank(scores, targets=None):
    """The median over the queries of the place of the best right candidate, from 1 on.

    Args:
        scores: array `(queries, candidates)`, larger for better matches.
        targets: the right candidates, as in `retrieval_ranks`. Default: candidate i for query i.

    Returns:
        float of at least 1, the mean of the two middle ranks where the number of queries is even.

    Raises:
        ValueError: if an argument has an impossible value.

    Example:

    >>> median_rank(np.array([[0.9, 0.1, 0.3], [0.2, 0.4, 0.6]]))
    1.5
    """
    return float(np.median(retrieval_ranks(scores, targets)))


def _right_candidates(targets, shape):
    """Bool `(queries, candidates)`."""
    queries, candidates = shape
    if targets is None:
        if queries > candidates:
            raise ValueError(f"`targets` must be given for more queries than candidates. Received: scores of {shape}")
        return np.eye(queries, candidates, dtype=bool)
    if not hasattr(targets, "__len__") or len(targets) != queries:
        received = len(targets) if hasattr(targets, "__len__") else repr(targets)
        raise ValueError(f"`targets` must be one entry for each of {queries} queries. Received: {received}")
    if np.asarray(targets[0]).dtype == bool:
        right = np.asarray(targets)
        if right.shape != shape or right.dtype != bool:
            raise ValueError(f"`targets` of bools must be of shape {shape}. Received: {right.dtype} of {right.shape}")
    else:
        right = np.zeros(shape, bool)
        for query, several in enumerate(targets):
            several = np.asarray(several).reshape(-1)
            if several.size and (several.dtype.kind not in "iu" or several.min() < 0 or several.max() >= candidates):
                raise ValueError(
                    f"`targets` must be integers from 0 to {candidates - 1}. Received: {targets[query]} for query {query}"
                )
            right[query, several.astype("int64")] = True
    if not right.any(axis=1).all():
        raise ValueError(
            f"`targets` must name at least one candidate a query. Received: none for query {right.any(axis=1).argmin()}"
        )
    return right
