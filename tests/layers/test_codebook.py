"""Moving averages, k-means and draws of a codebook, against float64 NumPy."""

import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from keras_vqdit.layers.codebook import code_statistics, draw_vectors, kmeans, moving_codebook, unit


def array(x):
    return ops.convert_to_tensor(np.asarray(x, "float32"))


def arrays(values):
    return [ops.convert_to_numpy(v) for v in values]


def test_unit_vectors_and_a_zero_that_stays():
    x = np.array([[3.0, 4.0], [0.0, 0.0], [-1e-3, 0.0]])
    np.testing.assert_allclose(unit(array(x)), [[0.6, 0.8], [0.0, 0.0], [-1.0, 0.0]], rtol=1e-6)


def test_statistics_count_and_add_what_counts():
    z = np.arange(12.0).reshape(6, 2)
    counts, sums = arrays(code_statistics(array(z), ops.array([2, 0, 2, 2, 0, 1]), array([1, 1, 1, 0, 1, 0]), 4))
    np.testing.assert_array_equal(counts, [2, 0, 2, 0])
    np.testing.assert_array_equal(sums, [z[1] + z[4], [0, 0], z[0] + z[2], [0, 0]])


def test_the_moving_codebook_is_smoothed():
    count, total = np.array([10.0, 0.5, 0.0]), np.array([[20.0, -10.0], [1.0, 1.0], [0.0, 0.0]])
    for epsilon in (1e-5, 0.5):
        smoothed = (count + epsilon) / (count.sum() + 3 * epsilon) * count.sum()
        codes = moving_codebook(array(count), array(total), epsilon)
        np.testing.assert_allclose(codes, total / smoothed[:, None], rtol=1e-6)
    np.testing.assert_array_equal(moving_codebook(array([0.0, 0.0]), array(np.zeros((2, 3))), 1e-5), np.zeros((2, 3)))


# === K-means ===


def numpy_kmeans(z, weights, centroids, rounds, spherical):
    z, centroids = z[weights > 0], centroids.copy()
    for _ in range(rounds):
        indices = np.argmin(((z[:, None] - centroids) ** 2).sum(-1), axis=1)
        counts = np.bincount(indices, minlength=len(centroids))
        for k in np.flatnonzero(counts):
            centroids[k] = z[indices == k].mean(axis=0)
            if spherical:
                centroids[k] /= np.linalg.norm(centroids[k])
    return centroids, counts


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("spherical", [False, True])
def test_ten_rounds_of_kmeans(masked, spherical):
    rng = np.random.default_rng(0)
    z = rng.normal(size=(1500, 4))
    weights = (rng.random(1500) < 0.6) if masked else np.ones(1500)
    starts = rng.normal(size=(19, 4))
    if spherical:
        z, starts = (x / np.linalg.norm(x, axis=-1, keepdims=True) for x in (z, starts))
    starts[7] = [50.0, 0.0, 0.0, 0.0]  # nearest to nothing
    expected, counts = numpy_kmeans(z, weights, starts, 10, spherical)
    assert not np.allclose(expected, numpy_kmeans(z, weights, starts, 9, spherical)[0])  # the number of rounds matters
    found, found_counts = arrays(kmeans(array(z), array(weights), array(starts), spherical=spherical))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(found_counts, counts)
    np.testing.assert_array_equal(found[7], starts[7])
    assert found_counts[7] == 0


# === Draws ===


def draw(num_valid, wanted, seed=0, num_vectors=None):
    """Indices of the vectors that were drawn, and who was granted one."""
    rng = np.random.default_rng(seed)
    num_vectors = num_vectors or num_valid
    weights = None
    if num_vectors > num_valid:
        weights = np.zeros(num_vectors)
        weights[rng.permutation(num_vectors)[:num_valid]] = 1
    z = np.arange(float(num_vectors))[:, None]
    noise = array(rng.random(len(wanted) + 1))
    drawn, granted = arrays(
        draw_vectors(array(z), None if weights is None else array(weights), ops.array(wanted), noise)
    )
    return drawn[:, 0].astype(int), granted, weights


@pytest.mark.parametrize("num_vectors", [20, 50])
@pytest.mark.parametrize("num_wanted", [0, 1, 7, 20])
def test_no_vector_is_drawn_twice(num_vectors, num_wanted):
    for seed in range(5):
        wanted = np.zeros(32, bool)
        wanted[np.random.default_rng(seed).permutation(32)[:num_wanted]] = True
        drawn, granted, weights = draw(20, wanted, seed, num_vectors)
        np.testing.assert_array_equal(granted, wanted)
        assert len(set(drawn[granted])) == num_wanted
        if weights is not None:
            assert np.all(weights[drawn[granted]] == 1)


@pytest.mark.parametrize("num_vectors", [5, 30])
def test_the_first_codes_are_served_where_vectors_are_few(num_vectors):
    drawn, granted, weights = draw(5, np.array([False, True] * 8), num_vectors=num_vectors)
    np.testing.assert_array_equal(np.flatnonzero(granted), [1, 3, 5, 7, 9])
    valid = np.arange(5) if weights is None else np.flatnonzero(weights)
    assert set(drawn[granted]) == set(valid)
    assert set(drawn) <= set(valid)  # k-means starts from copies rather than from padding


def test_nothing_is_granted_where_nothing_counts():
    _, granted = draw_vectors(array(np.ones((4, 2))), array(np.zeros(4)), ops.ones(3, "bool"), array(np.full(4, 0.5)))
    assert not np.any(granted)


def test_every_vector_is_equally_likely():
    # 400 draws of 5 from 7 valid: each is drawn 285.7 times in the mean. Draws without replacement vary less than
    # binomial ones, so five of their standard deviations (9.0) are a wide bound; the seed is fixed.
    counts = np.zeros(7)
    weights = tf.constant([0, 1, 1, 0, 1, 1, 1, 1, 0, 1], "float32")
    z, wanted = tf.range(10, dtype="float32")[:, None], tf.constant([True, False, True, True, True, True])
    function = tf.function(lambda noise: draw_vectors(z, weights, wanted, noise))
    rng = np.random.default_rng(0)
    for _ in range(400):
        drawn, granted = arrays(function(array(rng.random(7))))
        assert len(set(drawn[granted, 0])) == 5
        counts += np.bincount(drawn[granted, 0].astype(int), minlength=10)[weights.numpy() > 0]
    assert np.all(np.abs(counts - 400 * 5 / 7) < 45)


@pytest.mark.parametrize("noise", [0.0, 0.99999994])
def test_noise_at_its_ends(noise):
    wanted = np.ones(16, bool)
    drawn, _ = arrays(
        draw_vectors(array(np.arange(100.0)[:, None]), None, ops.array(wanted), array(np.full(17, noise)))
    )
    assert len(set(drawn[:, 0])) == 16
    assert drawn.min() >= 0 and drawn.max() <= 99
