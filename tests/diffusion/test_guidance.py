"""Guidance in closed form."""

import keras
import numpy as np
import pytest
from keras import ops

from keras_vqdit.diffusion import (
    GaussianDiffusion,
    RectifiedFlow,
    classifier_free,
    guide,
    interval_scale,
    rescale,
)

RNG = np.random.default_rng(2)
C, U = RNG.normal(size=(2, 4, 3, 3, 6)).astype("float32")


def test_classifier_free():
    np.testing.assert_allclose(classifier_free(C, U, 3.0), U + 3.0 * (C.astype("float64") - U), atol=1e-5)
    np.testing.assert_allclose(classifier_free(C, U, 0.0), U, atol=1e-6)


def test_scale_one_is_off_bit_for_bit():
    np.testing.assert_array_equal(classifier_free(C, U, 1.0), C)


def test_scale_of_each_example():
    scale = np.array([0.0, 1.0, 2.0, 7.5], "float32")
    expected = U + scale[:, None, None, None] * (C.astype("float64") - U)
    np.testing.assert_allclose(classifier_free(C, U, scale), expected, atol=1e-5)


def test_interval():
    t = np.array([0.0, 0.19, 0.2, 0.5, 0.8, 0.81, 1.0], "float32")
    np.testing.assert_array_equal(interval_scale(4.0, t, (0.2, 0.8)), [1, 1, 4, 4, 4, 1, 1])
    np.testing.assert_array_equal(interval_scale(4.0, t), [4] * 7)
    assert float(interval_scale(ops.convert_to_tensor(4.0), 0.5, (0.2, 0.8))) == 4


@pytest.mark.parametrize("interval", [(0.8, 0.2), (-0.1, 1.0), (0.0, 1.5)])
def test_wrong_interval_is_told(interval):
    with pytest.raises(ValueError, match=r"`interval` must be \(low, high\) with 0 <= low <= high <= 1. Received: int"):
        interval_scale(2.0, 0.5, interval)


def test_rescale():
    """Eq. 15 and 16 of 2305.08891, with the spread of each example over all its other axes."""
    guided = (5 * C + 1).astype("float64")
    factor = C.astype("float64").std((1, 2, 3), keepdims=True) / guided.std((1, 2, 3), keepdims=True)
    np.testing.assert_allclose(rescale(guided, C, 1.0), guided * factor, rtol=1e-5)
    np.testing.assert_allclose(rescale(guided, C, 0.7), 0.7 * guided * factor + 0.3 * guided, rtol=1e-5)
    np.testing.assert_array_equal(rescale(guided, C, 0.0), guided.astype("float32"))
    assert np.isfinite(rescale(np.zeros_like(C), C, 0.7)).all()


@pytest.mark.parametrize("phi", [0.0, 0.7])
def test_guidance_acts_on_all_channels_of_the_prediction_and_not_on_the_variance(phi):
    process = GaussianDiffusion("linear", "noise", learn_variance=True)
    prediction, fraction = guide(process, C, U, 4.0, phi=phi)
    expected = U[..., :3] + 4.0 * (C[..., :3].astype("float64") - U[..., :3])
    factor = C[..., :3].std((1, 2, 3), keepdims=True) / expected.std((1, 2, 3), keepdims=True)
    np.testing.assert_allclose(prediction, expected * (phi * factor + 1 - phi), atol=1e-4)
    np.testing.assert_allclose(fraction, (C[..., 3:] + 1) / 2, atol=1e-6)

    prediction, fraction = guide(RectifiedFlow(), C, U, 4.0, phi=0.0)
    np.testing.assert_allclose(prediction, U + 4.0 * (C.astype("float64") - U), atol=1e-4)
    assert fraction is None


def test_guidance_of_half_precision_is_float32():
    c, u = ops.cast(C, "bfloat16"), ops.cast(U, "bfloat16")
    exact = ops.convert_to_numpy(ops.cast(u, "float32")) + 7.0 * (
        ops.convert_to_numpy(ops.cast(c, "float32")) - ops.convert_to_numpy(ops.cast(u, "float32"))
    )
    for guided in (classifier_free(c, u, 7.0), guide(RectifiedFlow(), c, u, 7.0)[0]):
        assert keras.backend.standardize_dtype(guided.dtype) == "float32"
        np.testing.assert_allclose(guided, exact, atol=1e-5)
