"""Residual quantization against plain NumPy, level by level."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

import keras_vqdit as kv
from keras_vqdit.layers import ResidualQuantizer
from keras_vqdit.metrics import CodebookPerplexity, CodebookUsage
from tests.contract import run_contract

RNG = np.random.default_rng(0)
Z = RNG.normal(size=(6, 5, 4)).astype("float32")


def started(**options):
    """A quantizer with codes, whose first call has learned."""
    rvq = ResidualQuantizer(3, 8, 4, seed=1, **options)
    rvq(Z, training=True)
    return rvq


def by_hand(rvq, z):
    residual, indices, total = np.float64(z), [], 0.0
    for codes in np.float64(rvq.codebook):
        distance = ((residual[..., None, :] - codes) ** 2).sum(-1)
        indices.append(distance.argmin(-1))
        total = total + codes[indices[-1]]
        residual = residual - codes[indices[-1]]
    return np.stack(indices, -1), total


def test_levels_by_hand():
    rvq = started()
    indices, total = by_hand(rvq, Z)
    np.testing.assert_array_equal(rvq.encode(Z), indices)
    quantized, _ = rvq(Z)
    np.testing.assert_allclose(quantized, total, atol=1e-5)
    np.testing.assert_allclose(rvq.decode(rvq.encode(Z)), quantized, atol=1e-6)
    counts = np.array([np.bincount(indices[..., i].ravel(), minlength=8) for i in range(3)])
    np.testing.assert_array_equal(rvq.batch_counts, counts)


def test_more_levels_are_closer():
    rvq = started()
    indices = rvq.encode(Z)
    errors = [np.mean((np.array(rvq.decode(indices[..., :n])) - Z) ** 2) for n in (1, 2, 3)]
    assert errors[0] > 1.5 * errors[1] > 1.5 * 1.5 * errors[2]


@pytest.mark.parametrize("gradient", ["straight_through", "rotation"])
@pytest.mark.parametrize("codebook", ["ema", "gradient"])
def test_gradients_by_hand(gradient, codebook):
    """The output's gradient passes once, and every level holds the encoder to what it leaves over."""
    rvq = started(gradient=gradient, codebook=codebook)
    z, w = tf.constant(Z), RNG.normal(size=Z.shape).astype("float32")
    with tf.GradientTape(persistent=True) as tape:
        tape.watch(z)
        quantized, loss = rvq(z)
        passed, penalty = tf.reduce_sum(quantized * w), tf.reduce_sum(loss)
    found = np.array(tape.gradient(passed, z))
    if gradient == "straight_through":
        np.testing.assert_allclose(found, w, atol=1e-6)
    else:
        scale = np.linalg.norm(by_hand(rvq, Z)[1], axis=-1) / np.linalg.norm(Z, axis=-1)
        np.testing.assert_allclose(np.linalg.norm(found, axis=-1), scale * np.linalg.norm(w, axis=-1), rtol=1e-4)
    residual, expected, value = np.float64(Z), 0.0, 0.0
    indices, _ = by_hand(rvq, Z)
    for i, codes in enumerate(np.float64(rvq.codebook)):
        residual = residual - codes[indices[..., i]]
        expected = expected + 0.25 * 2 * residual / (5 * 4)
        value = value + (0.25 + (codebook == "gradient")) * (residual**2).mean((1, 2))
    np.testing.assert_allclose(tape.gradient(penalty, z), expected, atol=1e-6)
    np.testing.assert_allclose(loss, value, rtol=1e-5)
    if codebook == "gradient":
        for i, level in enumerate(rvq.levels):
            table = np.zeros((8, 4))
            rest = np.float64(Z) - sum(np.float64(rvq.codebook)[j][indices[..., j]] for j in range(i + 1))
            np.add.at(table, indices[..., i].ravel(), -2 * rest.reshape(-1, 4) / (5 * 4))
            np.testing.assert_allclose(tape.gradient(penalty, level.embeddings), table, atol=1e-6)


def test_masks():
    rvq = started()
    mask = RNG.random((6, 5)) < 0.6
    mask[0] = False
    padded = np.where(mask[..., None], Z, np.nan).astype("float32")
    quantized, loss = rvq(padded, mask=mask)
    plain, _ = rvq(Z)
    np.testing.assert_allclose(quantized, np.where(mask[..., None], plain, 0), atol=1e-6)
    assert np.all(np.isfinite(loss)) and float(loss[0]) == 0
    assert np.all(np.array(rvq.encode(Z, mask))[~mask] == -1)


def test_learning_fits_the_vectors():
    centres = RNG.normal(size=(4, 4)) * 3
    fine = RNG.normal(size=(4, 4)) * 0.3
    z = (centres[RNG.integers(0, 4, 4000)] + fine[RNG.integers(0, 4, 4000)]).astype("float32")[:, None]
    rvq = ResidualQuantizer(2, 4, 4, seed=0, decay=0.8)
    for _ in range(30):
        rvq(z, training=True)
    assert np.mean((np.array(rvq(z)[0]) - z) ** 2) < 0.02  # where one level leaves 0.09


def test_contract(tmp_path):
    run_contract(
        lambda **options: ResidualQuantizer(2, 8, 4, seed=1, **options),
        Z,
        tmp_path=tmp_path,
        policies=("mixed_bfloat16",),
    )


def test_metrics_of_levels():
    counts = np.array([[4.0, 4.0, 0.0, 0.0], [2.0, 2.0, 2.0, 2.0]])
    usage, perplexity = CodebookUsage(4, 2), CodebookPerplexity(4, 2)
    usage.update_state(counts)
    perplexity.update_state(counts)
    assert float(usage.result()) == 0.75
    assert float(perplexity.result()) == pytest.approx(np.sqrt(2 * 4), rel=1e-5)
    with pytest.raises(ValueError, match=r"`counts` must be of shape \(2, 4\)"):
        usage.update_state(counts[0])


def test_in_a_tokenizer(tmp_path):
    keras.utils.set_random_seed(0)
    sound = np.sin(RNG.uniform(0.05, 0.5, (32, 1, 1)) * np.arange(64)[None, :, None]).astype("float32")
    options = {"filters": (8, 8), "factors": 4, "num_residual_blocks": 0}
    model = kv.VQVAE(
        kv.models.build_encoder((64, 1), 4, **options),
        kv.models.build_decoder((64, 1), 4, **options),
        16, 4, quantizer=ResidualQuantizer(3, 16, 4), modality="audio",
    )  # fmt: skip
    model.compile("adam")
    history = model.fit(sound, epochs=3, batch_size=16, verbose=0).history
    assert history["loss"][-1] < history["loss"][0] and 0 < history["codebook_usage"][-1] <= 1
    codes = model.encode(sound)
    assert tuple(codes.shape[1:]) == model.code_shape == (4, 3)
    np.testing.assert_allclose(model.decode(codes), model(sound)[0], atol=1e-6)
    model.save_to_preset(tmp_path / "preset")
    np.testing.assert_array_equal(kv.VQVAE.from_preset(tmp_path / "preset").encode(sound), codes)


def test_errors():
    with pytest.raises(ValueError, match="`num_levels` must be a positive integer"):
        ResidualQuantizer(0, 8, 4)
    rvq = started()
    with pytest.raises(ValueError, match="with 1 to 3 levels"):
        rvq.decode(ops.zeros((2, 4), "int32"))
    with pytest.raises(ValueError, match="`z` must be of shape"):
        rvq(np.zeros((2, 5), "float32"))
