"""The noise: a published generator, the same numbers however it is run."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from keras_vqdit.diffusion import standard_normal
from keras_vqdit.diffusion.noise import _fraction, _key, threefry


@pytest.mark.parametrize(
    "key, counter, expected",
    [
        # Random123's kat_vectors for threefry2x32 with 20 rounds.
        ((0, 0), (0, 0), (0x6B200159, 0x99BA4EFE)),
        ((0xFFFFFFFF, 0xFFFFFFFF), (0xFFFFFFFF, 0xFFFFFFFF), (0x1CB996FC, 0xBB002BE7)),
        ((0x13198A2E, 0x03707344), (0x243F6A88, 0x85A308D3), (0xC4923A9C, 0x483DF7A0)),
    ],
)
def test_threefry_gives_its_authors_known_answers(key, counter, expected):
    counter = tuple(ops.reshape(c, (1,)) for c in _key(counter))
    assert tuple(int(word[0]) & 0xFFFFFFFF for word in threefry(_key(key), counter)) == expected


def test_normal_moments_and_independence():
    """200,000 numbers: each statistic within 4.5 standard errors of that of the normal distribution."""
    x = ops.convert_to_numpy(standard_normal((100_000, 2), 3)).astype("float64")
    n = x.size
    assert abs(x.mean()) < 4.5 / np.sqrt(n)
    assert abs(x.var() - 1) < 4.5 * np.sqrt(2 / n)
    assert abs((x**4).mean() - 3) < 4.5 * np.sqrt(96 / n)
    # Both numbers of a pair, and neighbouring pairs, are independent, also in their squares.
    for a, b in ((x[:, 0], x[:, 1]), (x[1:, 0], x[:-1, 1]), (x[:, 0] ** 2, x[:, 1] ** 2)):
        assert abs(np.corrcoef(a, b)[0, 1]) < 4.5 / np.sqrt(len(a))
    assert 4 < np.abs(x).max() < 6.5


def test_seeds_and_steps_are_unrelated():
    draws = [
        ops.convert_to_numpy(standard_normal((20_000,), seed)) for seed in (0, 1, (0, 1), (1, 1), (0, 2), -1, 2**31)
    ]
    correlation = np.corrcoef(draws) - np.eye(len(draws))
    assert np.abs(correlation).max() < 4.5 / np.sqrt(20_000)


def test_noise_of_an_example_does_not_depend_on_the_batch():
    few, many = standard_normal((3, 5, 7), 9), standard_normal((8, 5, 7), 9)
    np.testing.assert_allclose(few, many[:3], atol=1e-6)  # the last bit may differ: vectorised code ends elsewhere


@pytest.mark.parametrize("shape", [(8, 5, 7), (8, 3, 4), (8,)])
@pytest.mark.parametrize("first", [0, 2, 3])
def test_a_part_of_a_batch_gets_the_noise_of_the_whole(shape, first):
    whole = standard_normal(shape, (9, 4))
    for start in (first, tf.constant(first)):
        part = standard_normal((5, *shape[1:]), (9, 4, start))
        np.testing.assert_allclose(part, whole[first : first + 5], atol=1e-6)


def test_same_numbers_eagerly_and_compiled_and_of_any_kind_of_seed():
    expected = standard_normal((4, 33), (7, 0))
    for seed in (7, tf.constant(7), tf.constant(7, tf.int64), tf.constant([7, 0]), keras.random.SeedGenerator(7)):
        np.testing.assert_array_equal(standard_normal((4, 33), seed), expected)
    for jit in (False, True):
        compiled = tf.function(lambda seed: standard_normal((4, 33), seed), jit_compile=jit)
        np.testing.assert_allclose(compiled(tf.constant(7)), expected, atol=1e-6)


def test_dynamic_shape():
    draw = tf.function(lambda x: standard_normal(ops.shape(x), 7), input_signature=[tf.TensorSpec((None, 5))])
    np.testing.assert_array_equal(draw(np.zeros((3, 5), "float32")), standard_normal((3, 5), 7))


def test_a_seed_generator_moves_on():
    seed = keras.random.SeedGenerator(7)
    first, second = standard_normal((5,), seed), standard_normal((5,), seed)
    assert np.abs(first - second).min() > 0


def test_no_bits_make_0_or_1():
    """Of either a Gumbel variable, or the logarithm of Box and Muller, would be infinite."""
    fractions = np.array(_fraction(np.array([0, 1 << 8, -1, -256, 2**31 - 1], "int32")))
    np.testing.assert_array_equal(fractions, np.float32([2**-25, 1.5 * 2**-24, 1 - 2**-24, 1 - 2**-24, 0.5 - 2**-25]))
    assert np.isfinite(-np.log(-np.log(fractions))).all()
