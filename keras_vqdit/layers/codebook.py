"""What happens to a codebook while it learns: statistics, moving averages, k-means, and drawing new codes."""

from keras import ops

from keras_vqdit.layers.nearest_code import nearest_codes


def unit(x):
    """Return the unit vectors along `x`, by its last axis; a zero vector stays zero."""
    return x / ops.sqrt(ops.maximum(ops.sum(x**2, axis=-1, keepdims=True), 1e-12))


def code_statistics(vectors, indices, weights, num_codes):
    """Count and add up the vectors of each code.

    Args:
        vectors: `(N, D)`.
        indices: int32 `(N,)`, the code of each vector.
        weights: `(N,)`, 1 for a vector that counts and 0 for padding (whose vector must be finite).
        num_codes: K.

    Returns:
        `(counts, sums)` of shapes `(K,)` and `(K, D)`.
    """
    counts = ops.segment_sum(weights, indices, num_codes)
    sums = ops.segment_sum(vectors * weights[:, None], indices, num_codes)
    return counts, sums


def moving_codebook(count, total, epsilon):
    """Derive the codes from the moving count `(K,)` and the moving sum `(K, D)` of their vectors.

    The count is smoothed so that an unused code divides by no zero; the smoothed count is never written back.
    """
    mass = ops.sum(count)
    smoothed = (count + epsilon) / (mass + count.shape[0] * epsilon) * mass  # Sonnet's Laplace smoothing
    # Before anything was counted the mass, and with it every smoothed count, is zero.
    return total / ops.maximum(smoothed, 1e-30)[:, None]


def draw_vectors(vectors, weights, wanted, noise):
    """Draw a vector of the batch for every code that wants one, no vector twice.

    The vectors that count are cut into as many strata as codes want one, and each of these codes gets a random
    vector of its own stratum. The strata start at a random place, so every vector is equally likely.

    Args:
        vectors: `(N, D)`.
        weights: `(N,)`, 1 for a vector that may be drawn and 0 for padding; None where all may.
        wanted: bool `(K,)`.
        noise: `(K + 1,)`, uniform in [0, 1).

    Returns:
        `(drawn, granted)`: vectors `(K, D)`, and bool `(K,)`, which codes got one of their own: all that want one,
        or the first of them where there are more than vectors. The others find a copy in `drawn`.
    """
    num_vectors = ops.shape(vectors)[0]
    num_valid = num_vectors if weights is None else ops.cast(ops.sum(weights), "int32")
    rank = ops.cumsum(ops.cast(wanted, "int32")) - 1  # (K,) which of the codes that want one
    share = ops.minimum(rank[-1] + 1, num_valid)
    stratum = num_valid // ops.maximum(share, 1)
    width = ops.cast(stratum, "float32")
    within = ops.minimum(ops.cast(noise[:-1] * width, "int32"), stratum - 1)
    start = ops.cast(noise[-1] * ops.cast(num_valid, "float32"), "int32")
    index = (start + rank * stratum + within) % ops.maximum(num_valid, 1)  # among the vectors that count
    if weights is not None:
        index = ops.searchsorted(ops.cumsum(ops.cast(weights, "int32")), index, side="right")
        index = ops.minimum(index, num_vectors - 1)
    return ops.take(vectors, index, axis=0), ops.logical_and(wanted, rank < share)


def kmeans(vectors, weights, centroids, *, rounds=10, spherical=False):
    """Move the centroids by k-means.

    Args:
        vectors: `(N, D)`, unit vectors where `spherical`.
        weights: `(N,)`, 1 for a vector that counts and 0 for padding.
        centroids: where to start `(K, D)`.
        rounds: number of rounds. Default: 10.
        spherical: bool, keep the centroids at unit length.

    Returns:
        `(centroids, counts)`: `(K, D)`, and how many vectors the last round gave each `(K,)`. A centroid that no
        vector is nearest to stays where it is.
    """

    def one_round(_, state):
        centroids, _ = state
        indices = nearest_codes(vectors, centroids)
        counts, sums = code_statistics(vectors, indices, weights, centroids.shape[0])
        means = sums / ops.maximum(counts, 1.0)[:, None]
        means = unit(means) if spherical else means
        return ops.where(counts[:, None] > 0, means, centroids), counts

    return ops.fori_loop(0, rounds, one_round, (centroids, ops.zeros_like(centroids[:, 0])))
