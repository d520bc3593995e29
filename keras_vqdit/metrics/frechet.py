"""Distances between two sets of features, such as those of real and of generated images."""

import numpy as np
from keras import ops

from keras_vqdit.checks import positive_integer


def frechet_distance(features_a, features_b):
    """Fréchet distance of the Gaussians fitted to two sets of features, as in FID.

    In float64, by symmetric eigen-decompositions. It is biased upwards for few examples: compare distances of equally
    many, more than there are features.

    Args:
        features_a: array or tensor `(N, D)`, at least two examples.
        features_b: array or tensor `(M, D)`.

    Returns:
        Distance as a float, 0 for equal means and covariances; in squared units of the features.

    Example:
        >>> features = np.random.default_rng(0).normal(size=(100, 4))
        >>> round(frechet_distance(features, features + 3.0), 6)
        36.0

    References:
        - [GANs trained by a two time-scale update rule](https://arxiv.org/abs/1706.08500), eq. 6
    """
    features_a, features_b = _check(features_a, features_b)
    statistics = [(f.mean(axis=0), np.atleast_2d(np.cov(f, rowvar=False))) for f in (features_a, features_b)]
    return frechet_distance_of_gaussians(*statistics[0], *statistics[1])


def frechet_distance_of_gaussians(mean_a, covariance_a, mean_b, covariance_b):
    """Fréchet distance of two Gaussians: ‖μa − μb‖² + Tr(Σa + Σb − 2 (Σa Σb)^½).

    Args:
        mean_a, mean_b: arrays `(D,)`.
        covariance_a, covariance_b: symmetric positive semi-definite arrays `(D, D)`.

    Returns:
        Distance as a float.
    """
    difference = np.asarray(mean_a, "float64") - np.asarray(mean_b, "float64")
    covariance_a, covariance_b = np.asarray(covariance_a, "float64"), np.asarray(covariance_b, "float64")
    # The eigenvalues of Σa Σb are the squared singular values of Σa^½ Σb^½: no complex root, and no precision lost
    # where a covariance is singular.
    product = _symmetric_root(covariance_a) @ _symmetric_root(covariance_b)
    overlap = np.linalg.svd(product, compute_uv=False).sum()
    distance = difference @ difference + np.trace(covariance_a) + np.trace(covariance_b) - 2.0 * overlap
    return float(max(distance, 0.0))


def kernel_distance(features_a, features_b, *, degree=3, chunk_size=1024):
    """Kernel distance of two sets of features, as in KID: the unbiased squared maximum mean discrepancy.

    The kernel is (x·y / D + 1)^degree. Unlike the Fréchet distance it has no bias for few examples; it may be a little
    negative where the sets are alike. All pairs count, in chunks; no subsets are drawn.

    Args:
        features_a: array or tensor `(N, D)`, at least two examples.
        features_b: array or tensor `(M, D)`.
        degree: degree of the polynomial, default 3.
        chunk_size: rows of the kernel matrix in memory at a time.

    Returns:
        Distance as a float.

    References:
        - [Demystifying MMD GANs](https://arxiv.org/abs/1801.01401), eq. 4
    """
    a, b = _check(features_a, features_b)
    degree, chunk_size = positive_integer("degree", degree), positive_integer("chunk_size", chunk_size)

    def total(x, y):
        chunks = (x[i : i + chunk_size] for i in range(0, len(x), chunk_size))
        return sum(np.sum((chunk @ y.T / x.shape[1] + 1.0) ** degree) for chunk in chunks)

    def within(x):
        diagonal = np.sum((np.sum(x * x, axis=1) / x.shape[1] + 1.0) ** degree)
        return (total(x, x) - diagonal) / (len(x) * (len(x) - 1))

    return float(within(a) + within(b) - 2.0 * total(a, b) / (len(a) * len(b)))


def _symmetric_root(matrix):
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.maximum(values, 0.0))) @ vectors.T


def _check(features_a, features_b):
    arrays = [np.asarray(ops.convert_to_numpy(f), "float64") for f in (features_a, features_b)]
    shapes = [array.shape for array in arrays]
    if any(len(shape) != 2 or shape[0] < 2 for shape in shapes) or shapes[0][1] != shapes[1][1]:
        raise ValueError(f"Features must be (N, D) and (M, D), with N and M at least 2. Received: shapes {shapes}")
    if not all(np.all(np.isfinite(array)) for array in arrays):
        raise ValueError("Features must be finite. Received: NaN or infinite values")
    return arrays
