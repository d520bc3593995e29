"""The nearest code is the same, and the memory bounded, whichever way the table of scores is cut."""

import resource

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from keras_vqdit.layers import nearest_code
from keras_vqdit.layers.nearest_code import nearest_codes


def brute_force(z, codebook):
    z, codebook = np.asarray(z, "float64"), np.asarray(codebook, "float64")
    return np.argmin(((z[..., None, :] - codebook) ** 2).sum(axis=-1), axis=-1)


def run(z, codebook, mode, **options):
    """Look up eagerly, in a graph of unknown batch size, or compiled by XLA."""
    z, codebook = ops.convert_to_tensor(z), ops.convert_to_tensor(codebook)
    if mode == "eager":
        return ops.convert_to_numpy(nearest_codes(z, codebook, **options))
    spec = tf.TensorSpec([None, *z.shape[1:]], z.dtype)
    function = tf.function(
        lambda z: nearest_codes(z, codebook, **options), jit_compile=mode == "xla", input_signature=[spec]
    )
    return function(z).numpy()


MODES = pytest.mark.parametrize("mode", ["eager", "graph", "xla"])


@MODES
@pytest.mark.parametrize("chunk_size", [None, 1, 16, 37, 50, 1000])
def test_it_is_the_nearest_whatever_the_chunks(mode, chunk_size):
    rng = np.random.default_rng(0)
    z, codebook = rng.normal(size=(50, 5)).astype("float32"), rng.normal(size=(19, 5)).astype("float32")
    found = run(z, codebook, mode, chunk_size=chunk_size)
    assert found.dtype == "int32"
    np.testing.assert_array_equal(found, brute_force(z, codebook))


@MODES
def test_it_is_the_nearest_when_the_codes_are_cut_too(mode, monkeypatch):
    monkeypatch.setattr(nearest_code, "TILE_CODES", 8)
    rng = np.random.default_rng(1)
    z, codebook = rng.normal(size=(30, 3)).astype("float32"), rng.normal(size=(21, 3)).astype("float32")
    np.testing.assert_array_equal(run(z, codebook, mode, chunk_size=7), brute_force(z, codebook))


@MODES
def test_ties_go_to_the_lowest_index(mode, monkeypatch):
    monkeypatch.setattr(nearest_code, "TILE_CODES", 4)
    codebook = np.array([[3.0], [-1.0], [1.0], [1.0], [3.0], [-1.0], [1.0], [0.5], [-0.5], [1.0]], "float32")
    z = np.array([[1.0], [-1.0], [3.0], [0.0], [2.0]], "float32")
    np.testing.assert_array_equal(run(z, codebook, mode, chunk_size=2), [2, 1, 0, 7, 0])


def test_a_negative_zero_ties_with_zero():
    # The scores are 0.0 and -0.0, which Keras's own argmin tells apart.
    z, codebook = np.array([[1.0, 0.0]], "float32"), np.array([[0.0, 0.0], [0.0, -0.0]], "float32")
    np.testing.assert_array_equal(run(z, codebook, "eager"), [0])
    scores = ops.convert_to_tensor(np.array([[0.0, -0.0]], "float32"))
    np.testing.assert_array_equal(ops.convert_to_numpy(nearest_code._search_tile(*tile_with(scores))[1]), [0])


def tile_with(scores):
    """Arguments of `_search_tile` that make it see these scores: zero vectors, and half norms to order."""
    return ops.zeros((1, 2)), ops.zeros((scores.shape[1], 2)), scores[0]


@pytest.mark.parametrize("shape", [(), (0,), (6,), (2, 3), (2, 3, 4, 5)])
def test_leading_axes_stay(shape):
    rng = np.random.default_rng(2)
    z, codebook = rng.normal(size=(*shape, 3)), rng.normal(size=(7, 3))
    found = nearest_codes(z, codebook, chunk_size=4)
    assert found.shape == shape
    np.testing.assert_array_equal(ops.convert_to_numpy(found), brute_force(z, codebook))


def test_low_precision_is_compared_in_float32():
    # 2048 + 1 is 2048 in float16: squares of these codes would tie, or overflow beyond 65,504.
    codebook = ops.cast(np.array([[300.0, 1.0], [300.0, 2.0]]), "float16")
    z = ops.cast(np.array([[300.0, 1.75], [300.0, 1.25]]), "float16")
    np.testing.assert_array_equal(ops.convert_to_numpy(nearest_codes(z, codebook)), [1, 0])


@MODES
def test_not_a_number_gives_a_valid_index(mode):
    z = np.array([[np.nan, 1.0], [1.0, 1.0]], "float32")
    found = run(z, np.array([[5.0, 5.0], [1.0, 1.0]], "float32"), mode)
    np.testing.assert_array_equal(found, [0, 1])


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_gradient_can_be_taken_around_it(jit_compile):
    codebook = ops.convert_to_tensor(np.random.default_rng(3).normal(size=(9, 2)).astype("float32"))

    @tf.function(jit_compile=jit_compile)
    def gradient(z):
        with tf.GradientTape() as tape:
            tape.watch(z)
            y = tf.reduce_sum(z * tf.gather(codebook, nearest_codes(z, codebook, chunk_size=3)))
        return tape.gradient(y, z)

    z = np.random.default_rng(4).normal(size=(8, 2)).astype("float32")
    expected = ops.convert_to_numpy(codebook)[brute_force(z, codebook)]
    np.testing.assert_array_equal(gradient(tf.constant(z)).numpy(), expected)


@pytest.mark.parametrize("mode", ["graph", "xla"])
def test_a_codebook_of_262144_needs_bounded_memory(mode):
    rng = np.random.default_rng(5)
    codebook = rng.normal(size=(262_144, 4)).astype("float32")
    chosen = rng.integers(0, 262_144, size=2048)
    z = codebook[chosen] * np.float32(1 + 1e-5)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = run(z, codebook, mode)
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024  # MiB
    np.testing.assert_array_equal(found[:16], brute_force(z[:16], codebook))
    assert grown < 512  # the whole table would be 2 GiB


@pytest.mark.parametrize(
    ("z", "codebook", "options", "message"),
    [
        ((4, 3), (5, 2), {}, r"`z` must be of shape .* Received: z.shape=\(4, 3\), codebook.shape=\(5, 2\)"),
        ((4, 3), (3,), {}, "`codebook` of shape"),
        (
            (4, 3),
            (5, 3),
            {"chunk_size": 0},
            "`chunk_size` must be a positive integer or None. Received: chunk_size=0",
        ),
    ],
)
def test_wrong_arguments_are_named(z, codebook, options, message):
    with pytest.raises(ValueError, match=message):
        nearest_codes(np.zeros(z), np.zeros(codebook), **options)


def test_it_is_the_same_in_a_functional_model():
    codebook = np.random.default_rng(6).normal(size=(11, 3)).astype("float32")
    inputs = keras.Input((4, 3))
    model = keras.Model(inputs, keras.layers.Lambda(lambda z: nearest_codes(z, codebook))(inputs))
    z = np.random.default_rng(7).normal(size=(5, 4, 3)).astype("float32")
    np.testing.assert_array_equal(ops.convert_to_numpy(model(z)), brute_force(z, codebook))
