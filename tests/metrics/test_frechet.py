"""Fréchet and kernel distances against closed forms."""

import numpy as np
import pytest
from keras import ops

from keras_vqdit.metrics.frechet import frechet_distance, frechet_distance_of_gaussians, kernel_distance


def exactly(mean, covariance, count=50, seed=0):
    """Features whose empirical mean and covariance are exactly these."""
    noise = np.random.default_rng(seed).normal(size=(count, len(mean)))
    noise -= noise.mean(axis=0)
    white = noise @ np.linalg.inv(np.linalg.cholesky(np.atleast_2d(np.cov(noise, rowvar=False)))).T
    return mean + white @ np.linalg.cholesky(covariance).T


def rotation(angle):
    return np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])


def test_equal_features_have_distance_zero():
    features = np.random.default_rng(0).normal(size=(30, 64))  # fewer than dimensions: a singular covariance
    assert frechet_distance(features, features) < 1e-10


def test_a_shift_counts_squared():
    features = np.random.default_rng(0).normal(size=(100, 3))
    np.testing.assert_allclose(frechet_distance(features, features + [1.0, 2.0, -2.0]), 9.0, rtol=1e-10)


def test_covariances_that_commute():
    # Σ (σa − σb)², whatever the common axes are.
    a, b, turn = np.array([4.0, 1.0]), np.array([1.0, 9.0]), rotation(0.7)
    distance = frechet_distance(
        exactly(np.zeros(2), turn @ np.diag(a) @ turn.T),
        exactly(np.ones(2), turn @ np.diag(b) @ turn.T, seed=1),
    )
    np.testing.assert_allclose(distance, 2.0 + (2 - 1) ** 2 + (1 - 3) ** 2, rtol=1e-10)


def test_covariances_that_do_not_commute():
    # In two dimensions Tr (AB)^½ = sqrt(Tr AB + 2 sqrt(det AB)).
    turn = rotation(0.5)
    a, b = np.diag([4.0, 1.0]), turn @ np.diag([3.0, 0.5]) @ turn.T
    root = np.sqrt(np.trace(a @ b) + 2.0 * np.sqrt(np.linalg.det(a @ b)))
    expected = np.trace(a) + np.trace(b) - 2.0 * root
    zero = np.zeros(2)
    np.testing.assert_allclose(frechet_distance_of_gaussians(zero, a, zero, b), expected, rtol=1e-12)
    np.testing.assert_allclose(frechet_distance(exactly(zero, a), exactly(zero, b, seed=2)), expected, rtol=1e-9)


def test_one_dimension_tensors_and_symmetry():
    a, b = exactly(np.array([1.0]), np.array([[4.0]])), exactly(np.array([3.0]), np.array([[1.0]]), seed=1)
    np.testing.assert_allclose(frechet_distance(a, b), 4.0 + 1.0, rtol=1e-10)
    tensors = ops.convert_to_tensor(b, "float32"), ops.convert_to_tensor(a, "float32")
    np.testing.assert_allclose(frechet_distance(*tensors), 5.0, rtol=1e-5)


def test_large_means_lose_nothing():
    features = np.random.default_rng(0).normal(size=(100, 3)).astype("float32") * 1e-3 + np.float32(100.0)
    assert frechet_distance(features, features) < 1e-12


def naive_kernel_distance(a, b):
    def k(x, y):
        return (x @ y / len(x) + 1.0) ** 3

    def within(x):
        return np.mean([k(x[i], x[j]) for i in range(len(x)) for j in range(len(x)) if i != j])

    return within(a) + within(b) - 2.0 * np.mean([[k(x, y) for y in b] for x in a])


@pytest.mark.parametrize("chunk_size", [3, 1024])
def test_kernel_distance_is_the_unbiased_estimate(chunk_size):
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(10, 4)), rng.normal(1.0, 2.0, size=(7, 4))
    np.testing.assert_allclose(kernel_distance(a, b, chunk_size=chunk_size), naive_kernel_distance(a, b), rtol=1e-12)


def test_kernel_distance_has_no_bias():
    # Two samples of one distribution: the mean over 200 pairs is within 4 standard errors of 0; the biased estimate is not.
    rng = np.random.default_rng(0)
    values = [kernel_distance(rng.normal(size=(20, 4)), rng.normal(size=(20, 4))) for _ in range(200)]
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(200)
    assert kernel_distance(rng.normal(size=(200, 4)), rng.normal(1.0, 1.0, size=(200, 4))) > 1.0


@pytest.mark.parametrize("distance", [frechet_distance, kernel_distance])
@pytest.mark.parametrize(
    "a, b, message",
    [
        (np.zeros((5, 3)), np.zeros((5, 4)), "Features must be"),
        (np.zeros((1, 3)), np.zeros((5, 3)), "at least 2"),
        (np.zeros(5), np.zeros(5), "Features must be"),
        (np.full((5, 3), np.nan), np.zeros((5, 3)), "finite"),
    ],
)
def test_wrong_features_are_refused(distance, a, b, message):
    with pytest.raises(ValueError, match=message):
        distance(a, b)
