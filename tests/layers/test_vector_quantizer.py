"""What one call of the quantizer gives: codes, losses, gradients, shapes, masks, errors."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from keras_vqdit.layers.vector_quantizer import VectorQuantizer
from tests.contract import run_contract

VARIANTS = pytest.mark.parametrize(
    "options",
    [
        {},
        {"codebook": "gradient"},
        {"distance": "cosine"},
        {"gradient": "rotation"},
        {"gradient": "straight_through"},
        {"codebook": "gradient", "distance": "cosine", "gradient": "rotation", "kmeans_init": False},
    ],
    ids=lambda o: "-".join(map(str, o.values())) or "defaults",
)


def numpy(x):
    return ops.convert_to_numpy(x)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def quantizer(codes, **options):
    """A quantizer with these codes, which no k-means or restart replaces."""
    num_codes, dim = codes.shape
    vq = VectorQuantizer(num_codes, dim, kmeans_init=False, restart_threshold=None, **options)
    vq.build((None, dim))
    if vq.codebook_type == "gradient":
        vq.embeddings.assign(codes)
    else:
        vq.total.assign(codes)
    return vq


def normalise(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def nearest(z, codes):
    return np.argmin(((z.astype("float64")[..., None, :] - codes) ** 2).sum(axis=-1), axis=-1)


# === The layer's contract ===


@VARIANTS
def test_contract(options, tmp_path):
    run_contract(
        lambda **kwargs: VectorQuantizer(16, 4, seed=1, **options, **kwargs),
        normal(3, 5, 2, 4),
        tmp_path=tmp_path,
    )


@pytest.mark.parametrize("grid", [(), (7,), (3, 5), (2, 3, 4)])
def test_any_number_of_grid_axes(grid):
    vq, z = quantizer(normal(8, 4, seed=1)), normal(6, *grid, 4)
    quantized, loss = vq(z)
    indices = vq.encode(z)
    assert quantized.shape == z.shape
    assert loss.shape == (6,)
    assert indices.shape == (6, *grid) and keras.backend.standardize_dtype(indices.dtype) == "int32"
    assert vq.decode(indices).shape == z.shape
    np.testing.assert_array_equal(numpy(indices), nearest(z, normal(8, 4, seed=1)))


def test_unknown_sizes_stay_unknown_until_they_are_known():
    inputs = keras.Input((None, None, 4))
    quantized, loss = VectorQuantizer(8, 4, dtype="mixed_float16")(inputs)
    assert quantized.shape == (None, None, None, 4) and quantized.dtype == "float16"
    assert loss.shape == (None,) and loss.dtype == "float32"
    model = keras.Model(inputs, [quantized, loss])
    for shape in ((2, 3, 5, 4), (1, 6, 2, 4)):
        assert model(normal(*shape))[0].shape == shape


@pytest.mark.parametrize(
    ("options", "dtype"),
    [({}, "float32"), ({"codebook": "gradient"}, "mixed_bfloat16"), ({"distance": "cosine"}, "float32")],
    ids=["ema", "gradient bfloat16", "cosine"],
)
def test_decoding_the_codes_is_the_output_to_the_last_bit(options, dtype):
    vq, z = VectorQuantizer(16, 4, dtype=dtype, **options), normal(4, 30, 4)
    for _ in range(3):
        vq(z, training=True)
    calls = (lambda z: vq(z)[0]), vq.encode, vq.decode
    modes = [calls, [tf.function(f) for f in calls], [tf.function(f, jit_compile=True) for f in calls]]
    for call, encode, decode in modes:
        np.testing.assert_array_equal(
            numpy(ops.cast(decode(encode(z)), "float32")), numpy(ops.cast(call(z), "float32"))
        )


def test_low_precision_vectors_are_quantized_in_float32():
    # In float16 the squared distances of these codes overflow, and 300.25 is rounded to 300.2.
    codes = np.array([[300.0, 0.0], [300.25, 0.0], [-300.0, 300.0]], "float32")
    vq = quantizer(codes, dtype="mixed_float16")
    z = np.array([[300.15, 0.0], [300.1, 0.0]], "float32")
    np.testing.assert_array_equal(numpy(vq.encode(z)), [1, 0])
    quantized, loss = vq(z)
    assert quantized.dtype == "float16" and loss.dtype == "float32"
    np.testing.assert_allclose(loss, 0.25 * np.array([0.1**2, 0.1**2]) / 2, rtol=1e-2)
    assert {w.dtype for w in (vq.count, vq.total, vq.batch_counts, vq.codebook)} == {"float32", tf.float32}


# === Losses and their gradients ===


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("codebook", ["ema", "gradient"])
def test_loss_of_each_example(codebook, distance):
    z, codes = normal(3, 4, 5, 6), normal(10, 6, seed=1)
    _, loss = quantizer(codes, codebook=codebook, distance=distance, commitment_cost=0.7)(z)
    if distance == "cosine":
        z, codes = normalise(z), normalise(codes)
    error = ((z - codes[nearest(z, codes)]) ** 2).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(loss, (1.7 if codebook == "gradient" else 0.7) * error, rtol=1e-5)


def test_both_gradients_of_both_terms():
    z, codes, beta = normal(3, 4, 6), normal(5, 6, seed=1), 0.25
    vq = quantizer(codes, codebook="gradient", commitment_cost=beta)
    with tf.GradientTape() as tape:
        x = tf.constant(z)
        tape.watch(x)
        _, loss = vq(x)
        loss = tf.reduce_sum(loss)
    z_gradient, code_gradient = tape.gradient(loss, [x, vq.embeddings.value])
    indices, size = nearest(z, codes), 4 * 6  # each example's mean is over 4 positions of 6 dimensions
    difference = z - codes[indices]
    expected = np.zeros(codes.shape)
    np.add.at(expected, indices.reshape(-1), (-2 * difference / size).reshape(-1, 6))
    np.testing.assert_allclose(z_gradient, beta * 2 * difference / size, rtol=1e-4, atol=1e-7)
    np.testing.assert_allclose(tf.convert_to_tensor(code_gradient), expected, rtol=1e-4, atol=1e-7)


def test_the_commitment_gradient_of_the_moving_codebook():
    z, codes = normal(3, 4, 6), normal(5, 6, seed=1)
    vq = quantizer(codes, commitment_cost=0.4)
    assert vq.trainable_variables == []
    with tf.GradientTape() as tape:
        x = tf.constant(z)
        tape.watch(x)
        loss = tf.reduce_sum(vq(x, training=True)[1])
    np.testing.assert_allclose(
        tape.gradient(loss, x), 0.4 * 2 * (z - codes[nearest(z, codes)]) / 24, rtol=1e-4, atol=1e-7
    )


def test_the_gradient_through_the_cosine_normalisation():
    z, codes, g = normal(2, 3, 4), normal(5, 4, seed=1), normal(2, 3, 4, seed=2)
    vq = quantizer(codes, distance="cosine", gradient="straight_through")
    with tf.GradientTape() as tape:
        x = tf.constant(z)
        tape.watch(x)
        quantized, _ = vq(x)
        value = tf.reduce_sum(quantized * g)
    z_hat, codes = normalise(z), normalise(codes)
    np.testing.assert_allclose(quantized, codes[nearest(z_hat, codes)], rtol=1e-5)
    expected = (g - z_hat * (g * z_hat).sum(-1, keepdims=True)) / np.linalg.norm(z, axis=-1, keepdims=True)
    np.testing.assert_allclose(tape.gradient(value, x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("codebook", ["ema", "gradient"])
@pytest.mark.parametrize("gradient", ["straight_through", "rotation"])
def test_the_output_hands_its_gradient_to_the_vectors_only(codebook, gradient):
    z, codes, g = normal(3, 4, 6), normal(5, 6, seed=1), normal(3, 4, 6, seed=2)
    vq = quantizer(codes, codebook=codebook, gradient=gradient)
    with tf.GradientTape() as tape:
        x = tf.constant(z)
        tape.watch(x)
        value = tf.reduce_sum(vq(x)[0] * g)
    z_gradient, *others = tape.gradient(value, [x, *(v.value for v in vq.trainable_variables)])
    assert others == [None] * len(others)
    q = codes[nearest(z, codes)]
    if gradient == "straight_through":
        np.testing.assert_array_equal(z_gradient, g)
    else:  # the rotation: only lengths here, the directions in test_gradient_estimators.py
        ratio = np.linalg.norm(q, axis=-1) / np.linalg.norm(z, axis=-1)
        np.testing.assert_allclose(np.linalg.norm(z_gradient, axis=-1), ratio * np.linalg.norm(g, axis=-1), rtol=1e-4)


# === Masks ===


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("codebook", ["ema", "gradient"])
def test_padding_counts_for_nothing(codebook, distance):
    z, codes = normal(3, 4, 5, 6), normal(10, 6, seed=1)
    mask = np.random.default_rng(2).random((3, 4, 5)) < 0.6
    mask[1] = False  # an example of padding only
    z[~mask] = np.nan
    vq = quantizer(codes, codebook=codebook, distance=distance, decay=0.9)
    with tf.GradientTape() as tape:
        x = tf.constant(z)
        tape.watch(x)
        quantized, loss = vq(x, mask=mask, training=True)
        value = tf.reduce_sum(loss) + tf.reduce_sum(quantized)
    gradient = tape.gradient(value, x).numpy()

    valid, table = (normalise(z[mask]), normalise(codes)) if distance == "cosine" else (z[mask], codes)
    indices = nearest(valid, table)
    np.testing.assert_array_equal(numpy(quantized)[~mask], 0.0)
    np.testing.assert_allclose(numpy(quantized)[mask], table[indices], rtol=1e-5)
    np.testing.assert_array_equal(gradient[~mask], 0.0)
    assert np.all(np.isfinite(gradient)) and np.any(gradient[mask] != 0)
    error = np.zeros(mask.shape)
    error[mask] = (0.25 + (codebook == "gradient")) * ((valid - table[indices]) ** 2).mean(axis=-1)
    np.testing.assert_allclose(loss, error.sum((1, 2)) / np.maximum(mask.sum((1, 2)), 1), rtol=1e-5)
    counts = np.bincount(indices, minlength=10)
    np.testing.assert_array_equal(numpy(vq.batch_counts), counts)
    np.testing.assert_allclose(numpy(vq.count), 0.9 + 0.1 * counts, rtol=1e-5)


def test_codes_of_padding():
    vq, z = quantizer(normal(5, 3, seed=1)), normal(2, 4, 3)
    mask = np.array([[1, 0, 1, 1], [0, 0, 1, 0]], bool)
    indices = numpy(vq.encode(z, mask=mask))
    np.testing.assert_array_equal(indices == -1, ~mask)
    np.testing.assert_array_equal(numpy(vq.decode(indices)), numpy(vq(z, mask=mask)[0]))


def test_the_mask_of_an_embedding_arrives_and_travels_on():
    embedding = keras.layers.Embedding(7, 3, mask_zero=True)
    vq = quantizer(normal(5, 3, seed=1))
    quantized, _ = vq(embedding(np.array([[1, 2, 0], [3, 0, 0]])))
    assert np.all(numpy(quantized)[[0, 1, 1], [2, 1, 2]] == 0)
    np.testing.assert_array_equal(quantized._keras_mask, [[True, True, False], [True, False, False]])


# === Codes ===


def test_decoding_what_is_no_code_gives_zeros():
    codes = normal(4, 3)
    decoded = numpy(quantizer(codes, codebook="gradient").decode(np.array([[3, -1, 0], [4, -7, 2**30]])))
    np.testing.assert_array_equal(decoded[0], [codes[3], np.zeros(3), codes[0]])
    np.testing.assert_array_equal(decoded[1], np.zeros((3, 3)))


def test_every_call_reports_its_counts():
    vq = quantizer(np.arange(4.0, dtype="float32")[:, None])
    vq(np.array([[[0.1], [3.0], [2.9]]]))
    np.testing.assert_array_equal(numpy(vq.batch_counts), [1, 0, 0, 2])
    vq(np.array([[[1.1], [0.0]]]), training=True)
    np.testing.assert_array_equal(numpy(vq.batch_counts), [1, 1, 0, 0])


def test_the_codebook_can_be_used_before_the_first_call():
    vq = VectorQuantizer(6, 3)
    assert vq.codebook.shape == (6, 3)
    z = normal(2, 5, 3)
    np.testing.assert_array_equal(numpy(vq.decode(vq.encode(z))), numpy(vq(z)[0]))
    assert sum(w.path.endswith("/total") for w in vq.weights) == 1  # built once


# === Errors ===


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"num_embeddings": 0},
            ValueError,
            "`num_embeddings` must be a positive integer. Received: num_embeddings=0",
        ),
        (
            {"num_embeddings": 2.5},
            ValueError,
            "`num_embeddings` must be a positive integer. Received: num_embeddings=2.5",
        ),
        (
            {"embedding_dim": -1},
            ValueError,
            "`embedding_dim` must be a positive integer. Received: embedding_dim=-1",
        ),
        (
            {"codebook": "emma"},
            ValueError,
            "`codebook` must be one of 'ema', 'gradient'. Received: codebook='emma'",
        ),
        (
            {"gradient": "ste"},
            ValueError,
            "`gradient` must be one of 'straight_through', 'rotation'. Received: gradient='ste'",
        ),
        (
            {"distance": "l2"},
            ValueError,
            "`distance` must be one of 'euclidean', 'cosine'. Received: distance='l2'",
        ),
        (
            {"commitment_cost": -0.1},
            ValueError,
            "`commitment_cost` must be a finite number, at least 0. Received: commitment_cost=-0.1",
        ),
        (
            {"decay": 1.5},
            ValueError,
            "`decay` must be a finite number, at least 0 and less than 1. Received: decay=1.5",
        ),
        ({"epsilon": 0}, ValueError, "`epsilon` must be a finite number, more than 0. Received: epsilon=0"),
        (
            {"restart_threshold": 2},
            ValueError,
            "`restart_threshold` must be a finite number, at least 0 and less than 1",
        ),
    ],
    ids=lambda a: next(iter(a)) if isinstance(a, dict) else "",
)
def test_wrong_arguments_are_named_at_construction(arguments, error, message):
    with pytest.raises(error, match=message):
        VectorQuantizer(**{"num_embeddings": 8, "embedding_dim": 4, **arguments})


@pytest.mark.parametrize("shape", [(3, 5), (3, 7, 5), (4,)])
@pytest.mark.parametrize("method", ["__call__", "encode"])
def test_vectors_of_another_length_are_refused(method, shape):
    vq = VectorQuantizer(8, 4)
    message = r"`z` must be of shape \(batch, ..., embedding_dim=4\). Received: z.shape="
    with pytest.raises(ValueError, match=message):
        getattr(vq, method)(np.zeros(shape))
    vq(np.zeros((2, 4)))
    with pytest.raises(ValueError, match=message):
        getattr(vq, method)(np.zeros(shape))
    with pytest.raises(ValueError, match=message):
        VectorQuantizer(8, 4)(keras.Input(shape[1:]))


def test_a_mask_of_another_shape_is_refused():
    with pytest.raises(
        ValueError, match=r"`mask` must have the shape of `z` without its last axis. Received: mask.shape"
    ):
        VectorQuantizer(8, 4)(np.zeros((2, 3, 5, 4)), mask=np.ones((2, 3), bool))
