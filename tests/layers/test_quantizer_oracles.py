"""The quantizer against vector-quantize-pytorch, whose results tests/oracles/make_quantizer_fixtures.py wrote."""

from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from keras_vqdit.layers.codebook import kmeans, unit
from keras_vqdit.layers.gradient_estimators import rotation_trick
from keras_vqdit.layers.nearest_code import nearest_codes
from keras_vqdit.layers.vector_quantizer import VectorQuantizer


@pytest.fixture(scope="module")
def oracle():
    with np.load(Path(__file__).parents[1] / "oracles" / "fixtures" / "quantizer.npz") as arrays:
        return dict(arrays)


def numpy(x):
    return ops.convert_to_numpy(x)


@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
@pytest.mark.parametrize("table", ["small", "wide"])
def test_the_same_indices(oracle, table, distance):
    z, codebook = (ops.convert_to_tensor(oracle[f"lookup/{table}/{name}"]) for name in ("z", "codebook"))
    if distance == "cosine":
        z, codebook = unit(z), unit(codebook)
    for chunk_size in (None, 7):
        found = nearest_codes(z, codebook, chunk_size=chunk_size)
        np.testing.assert_array_equal(numpy(found), oracle[f"lookup/{table}/{distance}"])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("distance", ["euclidean", "cosine"])
def test_five_training_steps(oracle, distance, masked):
    expected = {k.split("/")[-1]: v for k, v in oracle.items() if k.startswith(f"{distance}/{masked}/")}
    num_codes, dim = expected["start"].shape
    vq = VectorQuantizer(
        num_codes,
        dim,
        decay=0.9,
        distance=distance,
        kmeans_init=False,
        restart_threshold=None,
        commitment_cost=0.25,
    )
    vq.build((None, dim))
    vq.total.assign(expected["start"])
    for i, z in enumerate(expected["z"]):
        mask = expected["mask"][i] if masked else None
        np.testing.assert_array_equal(numpy(vq.encode(z, mask=mask)), expected[f"indices{i}"])
        _, loss = vq(z, mask=mask, training=True)
        # Theirs is one mean over all that counts; ours one over each example.
        weights = mask.sum(axis=-1) if masked else np.ones(len(z))
        if not (masked and distance == "cosine"):  # theirs then compares with the vector before its normalisation
            np.testing.assert_allclose(np.average(numpy(loss), weights=weights), expected[f"loss{i}"], rtol=1e-5)
        np.testing.assert_allclose(numpy(vq.count), expected[f"count{i}"], rtol=1e-5)
        np.testing.assert_allclose(numpy(vq.total), expected[f"total{i}"], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(numpy(vq.codebook), expected[f"codebook{i}"], rtol=1e-4, atol=1e-5)


def test_kmeans(oracle):
    z, starts = oracle["kmeans/z"], oracle["kmeans/starts"]
    means, counts = kmeans(ops.convert_to_tensor(z), ops.ones(len(z)), ops.convert_to_tensor(starts))
    np.testing.assert_allclose(numpy(means), oracle["kmeans/means"], rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(numpy(counts), oracle["kmeans/counts"])


def test_rotation_gradient(oracle):
    z, q, g = (tf.constant(oracle[f"rotation/{name}"]) for name in "zqg")
    with tf.GradientTape() as tape:
        tape.watch(z)
        loss = tf.reduce_sum(rotation_trick(z, q) * g)
    np.testing.assert_allclose(tape.gradient(loss, z), oracle["rotation/gradient"], rtol=1e-4, atol=1e-4)
