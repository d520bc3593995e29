"""How the quantizer's codebook learns over steps: moving averages, k-means start, restarts, and inside `fit`."""

import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from keras_vqdit.layers.vector_quantizer import RESTART_COUNT, VectorQuantizer
from keras_vqdit.metrics.codebook import CodebookPerplexity, CodebookUsage

STILL = 1 - 1e-9  # a decay that is 1 in float32: the moving averages do not move


def numpy(x):
    return ops.convert_to_numpy(x)


def normal(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype("float32")


def nearest(z, codes):
    return np.argmin(((z.astype("float64")[..., None, :] - codes) ** 2).sum(axis=-1), axis=-1)


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def state(vq):
    return {w.path.split("/")[-1]: numpy(w) for w in vq.weights}


def training_step(vq, jit_compile):
    """A function of (z, mask) that makes one training step, eagerly or compiled."""

    def step(z, mask=None):
        return vq(z, mask=mask, training=True)

    return tf.function(step, jit_compile=True) if jit_compile else step


COMPILED = pytest.mark.parametrize("jit_compile", [False, True])


# === Moving averages ===


@COMPILED
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_five_steps_of_moving_averages(distance, jit_compile):
    decay, epsilon, codes = 0.8, 1e-2, normal(7, 3)
    vq = VectorQuantizer(
        7, 3, decay=decay, epsilon=epsilon, distance=distance, kmeans_init=False, restart_threshold=None
    )
    vq.build((None, 3))
    vq.total.assign(codes)
    step = training_step(vq, jit_compile)
    n, m = np.ones(7), codes.astype("float64")
    for i in range(5):
        e = m / ((n + epsilon) / (n.sum() + 7 * epsilon) * n.sum())[:, None]  # the table before the update
        z = normal(40, 3, seed=10 + i)
        if distance == "cosine":
            z, e = unit(z), unit(e)
        indices = nearest(z, e)
        quantized, _ = step(3.0 * z if distance == "cosine" else z)
        np.testing.assert_allclose(numpy(quantized), e[indices], rtol=1e-4, atol=1e-5)
        sums = np.zeros((7, 3))
        np.add.at(sums, indices, z)
        n = decay * n + (1 - decay) * np.bincount(indices, minlength=7)
        m = decay * m + (1 - decay) * sums
        np.testing.assert_allclose(numpy(vq.count), n, rtol=1e-5)
        np.testing.assert_allclose(numpy(vq.total), m, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("codebook", ["ema", "gradient"])
@pytest.mark.parametrize("how", ["inference", "frozen", "all padding"])
def test_nothing_is_learned_when_nothing_should_be(how, codebook):
    vq, z = VectorQuantizer(6, 3, codebook=codebook), normal(4, 20, 3)
    vq.build((None, 3))
    before = state(vq)
    if how == "inference":
        vq(z)
        vq(z, training=False)
    elif how == "frozen":
        vq.trainable = False
        vq(z, training=True)
    else:
        vq(z, mask=np.zeros((4, 20), bool), training=True)
    after = state(vq)
    for name in before.keys() - {"batch_counts", "seed_generator_state"}:
        np.testing.assert_array_equal(after[name], before[name], err_msg=name)
    vq.trainable = True
    vq(z, training=True)  # which shows that something would have been
    assert state(vq)["initialized"] == 1 and np.any(state(vq)["count"] != before["count"])


# === K-means start ===


@COMPILED
@pytest.mark.parametrize("codebook", ["ema", "gradient"])
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_the_codes_start_at_kmeans_of_the_first_batch(distance, codebook, jit_compile):
    vq = VectorQuantizer(8, 3, codebook=codebook, distance=distance, decay=STILL, restart_threshold=None, seed=2)
    z = normal(4, 100, 3) + 2.0
    mask = np.random.default_rng(1).random((4, 100)) < 0.7
    z[~mask] = 1e6
    vq.build(z.shape)
    step = training_step(vq, jit_compile)
    step(z, np.zeros_like(mask))  # a batch of padding is not the first
    assert numpy(vq.initialized) == 0
    step(z, mask)
    assert numpy(vq.initialized) == 1

    codes, valid = numpy(vq.codebook).astype("float64"), z[mask].astype("float64")
    valid = unit(valid) if distance == "cosine" else valid
    assert numpy(vq.count).sum() == mask.sum()  # n = count of the last round
    if codebook == "ema":  # m = centroid·count
        np.testing.assert_allclose(numpy(vq.total) / numpy(vq.count)[:, None], codes, rtol=1e-4)

    def error(codes):
        return ((valid - codes[nearest(valid, codes)]) ** 2).sum(axis=-1).mean()

    # Ten rounds come within a fifth of what a hundred more give; the vectors drawn to start from do not.
    refined = codes
    for _ in range(100):
        indices = nearest(valid, refined)
        refined = np.stack([valid[indices == k].mean(axis=0) for k in range(8)])
        refined = unit(refined) if distance == "cosine" else refined
    drawn = np.mean([error(valid[np.random.default_rng(i).permutation(len(valid))[:8]]) for i in range(5)])
    assert error(codes) < 1.2 * error(refined) < drawn

    before = state(vq)
    step(normal(4, 100, 3, seed=5), mask)  # no second start
    for name in ("count", "total" if codebook == "ema" else "origin"):
        np.testing.assert_array_equal(state(vq)[name], before[name])


def test_kmeans_of_fewer_vectors_than_codes_keeps_every_code_at_a_vector():
    vq = VectorQuantizer(16, 2, decay=STILL, restart_threshold=None)
    z = np.array([[5.0, 5.0], [6.0, -4.0], [-3.0, 7.0]])
    vq(z, training=True)
    distances = np.linalg.norm(numpy(vq.codebook)[:, None] - z, axis=-1)
    np.testing.assert_allclose(distances.min(axis=1), 0.0, atol=1e-4)  # no code at the origin
    np.testing.assert_allclose(distances.min(axis=0), 0.0, atol=1e-4)


# === Restarts ===


@COMPILED
@pytest.mark.parametrize("codebook", ["ema", "gradient"])
def test_dead_codes_become_vectors_of_the_batch(codebook, jit_compile):
    vq = VectorQuantizer(8, 3, codebook=codebook, decay=STILL, kmeans_init=False, restart_threshold=0.1)
    z, codes = normal(2, 30, 3, seed=1), 5 * normal(8, 3)
    mask = np.random.default_rng(2).random((2, 30)) < 0.5
    z[~mask] = 1e6
    count = np.array([10.0, 0.5, 4.0, 0.0, 20.0, 0.3, 3.4, 1.8], "float32")  # the mean is 5: dead below 0.5
    vq.build(z.shape)
    vq.count.assign(count)
    if codebook == "ema":
        vq.total.assign(codes * count[:, None])
    else:
        vq.embeddings.assign(codes)
    codes, alive, dead = numpy(vq.codebook), [0, 1, 2, 4, 6, 7], [3, 5]  # 0.5 is not below 0.5
    training_step(vq, jit_compile)(z, mask)
    after, n = numpy(vq.codebook), numpy(vq.count)
    np.testing.assert_array_equal(n[alive], count[alive])
    np.testing.assert_allclose(after[alive], codes[alive], rtol=1e-4)
    valid = z[mask]
    for k in dead:
        assert np.linalg.norm(after[k] - valid, axis=-1).min() < 1e-3  # smoothing is what is left
        np.testing.assert_allclose(n[k], RESTART_COUNT * 5.0, rtol=1e-5)
        if codebook == "ema":  # n and m both: else the next step would move the code back or to the origin
            np.testing.assert_allclose(numpy(vq.total)[k] / n[k], after[k], rtol=1e-3)


def test_dead_codes_never_share_a_vector():
    vq = VectorQuantizer(64, 3, decay=STILL, kmeans_init=False)
    z = normal(2, 40, 3, seed=1)
    vq.build(z.shape)
    count = np.where(np.arange(64) % 2 == 0, 10.0, 0.0)
    vq.count.assign(count)
    vq(z, training=True)
    drawn = numpy(vq.codebook)[1::2]
    assert len(np.unique(nearest(drawn, z.reshape(-1, 3)))) == 32


def test_restarts_can_be_off():
    vq, z = (
        VectorQuantizer(8, 3, kmeans_init=False, restart_threshold=None, decay=0.5),
        normal(2, 30, 3, seed=1),
    )
    vq.build(z.shape)
    vq.total.assign(np.where(np.arange(8)[:, None] < 2, normal(8, 3), 100.0))
    for _ in range(8):
        vq(z, training=True)
    assert np.all(numpy(vq.count)[2:] < 0.01)


def test_the_same_seed_gives_the_same_codes():
    def learn(seed, seed_of_everything_else):
        keras.utils.set_random_seed(seed_of_everything_else)
        vq = VectorQuantizer(16, 3, seed=seed)
        for i in range(4):
            vq(normal(4, 20, 3, seed=i), training=True)
        return numpy(vq.codebook)

    np.testing.assert_array_equal(learn(3, 1), learn(3, 2))
    assert np.any(learn(3, 1) != learn(4, 1))


# === Inside fit ===


class Autoencoder(keras.Model):
    """A small model that follows the contract: the usage metrics read `batch_counts` in `compute_loss`."""

    def __init__(self, **options):
        super().__init__()
        self.encoder, self.decoder = keras.layers.Dense(4), keras.layers.Dense(2)
        self.vq = VectorQuantizer(16, 4, **options)
        self.usage, self.perplexity = CodebookUsage(16), CodebookPerplexity(16)

    def call(self, x, training=None):
        quantized, loss = self.vq(self.encoder(x), training=training)
        self.add_loss(ops.mean(loss))
        return self.decoder(quantized)

    def compute_loss(self, *args, **kwargs):
        self.usage.update_state(self.vq.batch_counts)
        self.perplexity.update_state(self.vq.batch_counts)
        return super().compute_loss(*args, **kwargs)


@pytest.mark.parametrize(
    ("options", "jit_compile"),
    [({}, False), ({}, True), ({"codebook": "gradient", "distance": "cosine"}, True)],
    ids=["plain", "compiled", "gradient cosine compiled"],
)
def test_fit_and_the_usage_of_the_epoch(options, jit_compile):
    x = np.random.default_rng(0).uniform(-1, 1, (96, 10, 2)).astype("float32")
    model = Autoencoder(**options)
    model.compile(keras.optimizers.Adam(1e-2), "mse", jit_compile=jit_compile)
    history = model.fit(x, x, batch_size=36, epochs=12, verbose=0).history  # the last batch is smaller
    assert history["loss"][-1] < 0.8 * history["loss"][0]
    assert numpy(model.vq.initialized) == 1
    logs = model.evaluate(x, x, batch_size=36, verbose=0, return_dict=True)
    counts = np.bincount(numpy(model.vq.encode(model.encoder(x))).reshape(-1), minlength=16)
    p = counts / counts.sum()
    np.testing.assert_allclose(logs["codebook_usage"], np.mean(counts > 0))
    np.testing.assert_allclose(logs["codebook_perplexity"], np.exp(-np.sum(p * np.log(p + 1e-10))), rtol=1e-4)


def test_fit_in_mixed_precision():
    x = np.random.default_rng(0).uniform(-1, 1, (64, 10, 2)).astype("float32")
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = Autoencoder()
        model.compile(keras.optimizers.Adam(1e-2), "mse", jit_compile=True)
        history = model.fit(x, x, batch_size=32, epochs=12, verbose=0).history
    finally:
        keras.config.set_dtype_policy("float32")
    assert history["loss"][-1] < 0.8 * history["loss"][0]
    assert keras.backend.standardize_dtype(model.vq.codebook.dtype) == "float32"


def test_restarts_keep_the_codebook_in_use():
    """The vectors move away from all codes but one: without restarts that one would serve them all."""

    def usage(restart_threshold):
        vq = VectorQuantizer(32, 2, restart_threshold=restart_threshold, seed=0)
        step = tf.function(lambda z: vq(z, training=True))
        for i in range(120):
            step(normal(1, 128, 2, seed=i) + (0.0 if i == 0 else 20.0))
        return np.mean(numpy(vq.batch_counts) > 0)

    assert usage(None) < 0.2
    assert usage(0.1) > 0.8


def test_a_trained_codebook_survives_saving(tmp_path):
    inputs = keras.Input((10, 4))
    model = keras.Model(inputs, VectorQuantizer(16, 4, codebook="gradient")(inputs))
    z = normal(8, 10, 4)
    model(z, training=True)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    for ours, theirs in zip(model(z), loaded(z)):
        np.testing.assert_array_equal(ours, theirs)
    assert numpy(loaded.layers[-1].initialized) == 1  # k-means will not start again


# === Another backend ===

JAX_PROGRAM = """
import keras
import numpy as np
from keras import ops
from tests.layers.test_codebook_learning import Autoencoder, VectorQuantizer, nearest, normal

assert keras.backend.backend() == "jax"

# One step of moving averages, with padding.
codes, z = normal(7, 3), normal(4, 10, 3, seed=1)
mask = np.random.default_rng(2).random((4, 10)) < 0.5
vq = VectorQuantizer(7, 3, decay=0.8, kmeans_init=False, restart_threshold=None)
vq.build((None, 3))
vq.total.assign(codes)
quantized, loss = vq(z, mask=mask, training=True)
indices = nearest(z[mask], codes)
sums = np.zeros((7, 3))
np.add.at(sums, indices, z[mask])
np.testing.assert_allclose(np.asarray(quantized)[mask], codes[indices], rtol=1e-4)
np.testing.assert_allclose(vq.count, 0.8 + 0.2 * np.bincount(indices, minlength=7), rtol=1e-5)
np.testing.assert_allclose(vq.total, 0.8 * codes + 0.2 * sums, rtol=1e-4, atol=1e-5)

# What call assigns must outlive Keras's stateless trainer: k-means start, restarts, counts.
x = np.random.default_rng(0).uniform(-1, 1, (96, 10, 2)).astype("float32")
keras.utils.set_random_seed(0)
model = Autoencoder(codebook="gradient", distance="cosine", decay=0.5, restart_threshold=0.5)
model.compile(keras.optimizers.Adam(1e-2), "mse", jit_compile=True)
history = model.fit(x, x, batch_size=36, epochs=12, verbose=0).history
assert history["loss"][-1] < 0.8 * history["loss"][0], history
assert float(ops.convert_to_numpy(model.vq.initialized)) == 1.0
assert np.any(ops.convert_to_numpy(model.vq.origin) != 0.0)
logs = model.evaluate(x, x, batch_size=36, verbose=0, return_dict=True)
counts = np.bincount(np.asarray(model.vq.encode(model.encoder(x))).reshape(-1), minlength=16)
p = counts / counts.sum()
np.testing.assert_allclose(logs["codebook_usage"], np.mean(counts > 0))
np.testing.assert_allclose(logs["codebook_perplexity"], np.exp(-np.sum(p * np.log(p + 1e-10))), rtol=1e-4)
"""


def test_the_jax_backend():
    pytest.importorskip("jax")
    run = subprocess.run(
        [sys.executable, "-c", JAX_PROGRAM],
        env={**os.environ, "KERAS_BACKEND": "jax"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
