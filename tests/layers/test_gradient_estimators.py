"""The value is the code to the last bit; the gradient is the one that was promised."""

import numpy as np
import pytest
import tensorflow as tf

from keras_vqdit.layers.gradient_estimators import rotation_trick, straight_through


def value_and_gradients(estimator, z, q, g):
    z, q = tf.constant(z, "float32"), tf.constant(q, "float32")
    with tf.GradientTape() as tape:
        tape.watch([z, q])
        output = estimator(z, q)
        loss = tf.reduce_sum(output * tf.constant(g, "float32"))
    return output.numpy(), *tape.gradient(loss, [z, q])


def vectors(seed, shape=(40, 6)):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=shape) * rng.lognormal(size=(*shape[:-1], 1))).astype("float32")


def rotation(z, q):
    """λR in float64: the rotation in the plane of z and q that turns the one into the other, scaled."""
    z, q = z.astype("float64"), q.astype("float64")
    z_norm, q_norm = np.linalg.norm(z), np.linalg.norm(q)
    z_hat, q_hat = z / z_norm, q / q_norm
    r = (z_hat + q_hat) / np.linalg.norm(z_hat + q_hat)
    return q_norm / z_norm * (np.eye(len(z)) - 2 * np.outer(r, r) + 2 * np.outer(q_hat, z_hat))


@pytest.mark.parametrize("estimator", [straight_through, rotation_trick])
def test_the_value_is_the_code_to_the_last_bit(estimator):
    z, q = vectors(0), vectors(1)
    output, _, q_gradient = value_and_gradients(estimator, z, q, vectors(2))
    np.testing.assert_array_equal(output, q)
    assert np.any(z + (q - z) != q)  # which the usual form would not give
    assert q_gradient is None


def test_straight_through_hands_the_gradient_on():
    g = vectors(2)
    _, gradient, _ = value_and_gradients(straight_through, vectors(0), vectors(1), g)
    np.testing.assert_array_equal(gradient, g)


def test_rotation_turns_the_gradient_back():
    z, q, g = vectors(3), vectors(4), vectors(5)
    matrices = np.stack([rotation(a, b) for a, b in zip(z, q)])
    np.testing.assert_allclose(np.einsum("nij,nj->ni", matrices, z), q, rtol=1e-5)  # the oracle itself: λRz = q
    _, gradient, _ = value_and_gradients(rotation_trick, z, q, g)
    np.testing.assert_allclose(gradient, np.einsum("nji,nj->ni", matrices, g), rtol=1e-4, atol=1e-4)


def test_rotation_keeps_the_angle_between_gradient_and_code():
    z, q, g = vectors(6), vectors(7), vectors(8)
    _, gradient, _ = value_and_gradients(rotation_trick, z, q, g)

    def cosine(a, b):
        return (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)

    np.testing.assert_allclose(cosine(np.asarray(gradient), z), cosine(g, q), atol=1e-5)


@pytest.mark.parametrize(
    ("z", "q"),
    [
        ([0.0, 0.0], [1.0, 2.0]),
        ([1.0, 2.0], [0.0, 0.0]),
        ([1.0, -2.0], [-2.0, 4.0]),
        ([1e-8, 0.0], [1.0, 0.0]),
    ],
    ids=["zero vector", "zero code", "opposite", "tiny vector"],
)
def test_rotation_falls_back_to_straight_through(z, q):
    output, gradient, _ = value_and_gradients(rotation_trick, [z], [q], [[3.0, -5.0]])
    np.testing.assert_array_equal(output, [q])
    np.testing.assert_array_equal(gradient, [[3.0, -5.0]])
