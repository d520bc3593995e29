"""PSNR is the mean of the images' decibels, with a maximal range of 2."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_vqdit.metrics.image import PSNR


def images(seed, shape=(6, 8, 5, 3)):
    return np.random.default_rng(seed).uniform(-1, 1, shape).astype("float32")


def test_the_mean_of_the_decibels_of_each_image():
    x = images(0)
    y = x + np.linspace(0.01, 0.5, 6, dtype="float32")[:, None, None, None] * images(1)
    metric = PSNR()
    metric.update_state(x[:4], y[:4])
    metric.update_state(x[4:], y[4:])
    mse = ((x.astype("float64") - y) ** 2).mean(axis=(1, 2, 3))
    decibels = 10 * np.log10(4 / mse)
    assert float(metric.result()) == pytest.approx(decibels.mean(), rel=1e-5)
    assert float(metric.result()) == pytest.approx(float(tf.reduce_mean(tf.image.psnr(x, y, 2.0))), rel=1e-5)
    assert abs(10 * np.log10(4 / mse.mean()) - decibels.mean()) > 1  # the other convention


def test_other_ranges_and_weights():
    x, y = images(0), images(1)
    metric = PSNR(255.0, name="quality")
    metric.update_state(x, y, sample_weight=[1, 0, 0, 0, 0, 3])
    decibels = 10 * np.log10(255.0**2 / ((x - y) ** 2).mean(axis=(1, 2, 3)))
    assert float(metric.result()) == pytest.approx((decibels[0] + 3 * decibels[5]) / 4, rel=1e-5)
    clone = keras.metrics.deserialize(keras.metrics.serialize(metric))
    assert clone.max_range == 255.0 and clone.name == "quality"


def test_an_exact_copy_counts_a_hundred_decibels():
    metric = PSNR()
    metric.update_state(images(0), images(0))
    assert float(metric.result()) == pytest.approx(100.0)


def test_low_precision_is_compared_in_float32():
    x = tf.cast(images(0, (1, 64, 64, 3)), "float16")
    y = x + tf.cast(0.002, "float16") * tf.cast(images(1, (1, 64, 64, 3)), "float16")  # its squares underflow
    mse = np.mean((x.numpy().astype("float64") - y.numpy()) ** 2)
    metric = PSNR()
    metric.update_state(x, y)
    assert float(metric.result()) == pytest.approx(10 * np.log10(4 / mse), rel=1e-4)


def test_errors():
    with pytest.raises(ValueError, match="`max_range` must be a finite number, more than 0. Received: max_range=0"):
        PSNR(0)
