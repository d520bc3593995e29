"""Spectrograms: the transform is NumPy's, its inverse comes back, and silence has gradients."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_vqdit.layers.spectrogram import InverseSpectrogram, LogSpectrogram, griffin_lim, istft, magnitude, stft
from tests.contract import run_contract


def sound(*shape, seed=0):
    return np.random.default_rng(seed).normal(0, 0.3, shape).astype("float32")


def reference(x, window_size, hop):
    """In float64, frame by frame."""
    before, frames = (window_size - hop) // 2, -(-x.shape[-1] // hop)
    padded = np.pad(x.astype("float64"), [(0, 0)] * (x.ndim - 1) + [(before, window_size)])
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window_size) / window_size)
    return np.stack(
        [np.fft.rfft(padded[..., i * hop : i * hop + window_size] * window) for i in range(frames)], axis=-2
    )


@pytest.mark.parametrize("shape", [(2, 96), (2, 3, 96), (1, 90), (96,)])
@pytest.mark.parametrize("window_size, hop", [(32, 8), (16, 8), (32, 16)])
def test_the_transform_is_that_of_numpy(shape, window_size, hop):
    x = sound(*shape)
    real, imaginary = stft(x, window_size, hop)
    expected = reference(x, window_size, hop)
    np.testing.assert_allclose(real, expected.real, atol=1e-5)
    np.testing.assert_allclose(imaginary, expected.imag, atol=1e-5)


@pytest.mark.parametrize("window_size, hop", [(32, 8), (32, 16), (64, 8)])
def test_the_inverse_comes_back_up_to_the_ends(window_size, hop):
    x = sound(3, 128)
    y = istft(*stft(x, window_size, hop), window_size, hop)
    np.testing.assert_allclose(y, x, atol=1e-5)


def test_the_inverse_is_that_of_least_squares():
    # What is no transform of any signal: the error of the closest one is orthogonal to all transforms.
    real, imaginary = sound(1, 12, 17), sound(1, 12, 17, seed=1)
    y = istft(real, imaginary, 32, 8)
    found = stft(y, 32, 8)
    other = stft(sound(1, 96, seed=2), 32, 8)
    weight = np.full(17, 2.0)
    weight[[0, -1]] = 1.0  # the other frequencies stand for their negative ones, too
    imaginary[..., [0, -1]] = 0.0
    product = sum(
        np.sum(weight * (np.asarray(f, "float64") - g) * np.asarray(o))
        for f, g, o in zip(found, (real, imaginary), other, strict=True)
    )
    scale = np.sqrt(np.sum(real**2) * sum(np.sum(np.asarray(o) ** 2) for o in other))
    assert abs(product) / scale < 1e-5


def test_a_tone_lies_at_its_frequency():
    x = np.sin(2 * np.pi * 1000.0 * np.arange(2048) / 8000.0)[None]
    size = np.asarray(magnitude(*stft(x, 256, 64)))[0, 16]
    assert np.argmax(size) == 32  # 1000 Hz of 31.25 Hz a bin
    np.testing.assert_allclose(size[32], 64.0, rtol=1e-3)


@pytest.mark.parametrize("momentum", [0.0, 0.99])
def test_griffin_lim_brings_the_magnitudes_closer(momentum):
    x = sound(1, 512)
    size = np.asarray(magnitude(*stft(x, 64, 16)))
    phase = np.random.default_rng(1).uniform(-3, 3, size.shape)
    errors = []
    for rounds in (0, 4, 32):
        y = griffin_lim(size, phase, 64, 16, num_iterations=rounds, momentum=momentum)
        errors.append(np.linalg.norm(np.asarray(magnitude(*stft(y, 64, 16))) - size) / np.linalg.norm(size))
    assert errors[0] > 1.3 * errors[1] > 1.3 * errors[2]


def test_griffin_lim_keeps_phases_that_agree():
    x = sound(1, 256)
    real, imaginary = (np.asarray(part) for part in stft(x, 32, 8))
    y = griffin_lim(np.hypot(real, imaginary), np.arctan2(imaginary, real), 32, 8, num_iterations=3)
    np.testing.assert_allclose(y, x, atol=1e-3)


@pytest.mark.parametrize("jit", [True, False])
def test_gradients_are_finite_at_silence(jit):
    layer, inverse = LogSpectrogram(32, 8), InverseSpectrogram(32, 8, num_iterations=2)

    @tf.function(jit_compile=jit)
    def gradient(x, z):
        with tf.GradientTape() as tape:
            tape.watch([x, z])
            total = tf.reduce_sum(layer(x) ** 2) + tf.reduce_sum(inverse(z) ** 2)
        return tape.gradient(total, [x, z])

    z = np.zeros((1, 8, 34), "float32")
    z[..., :17] = -100.0
    for value in gradient(tf.zeros((1, 64, 1)), tf.constant(z)):
        assert np.all(np.isfinite(value))


def test_log_spectrogram_contract(tmp_path):
    layer = run_contract(lambda **k: LogSpectrogram(32, 8, fold=2, **k), sound(2, 64, 1), tmp_path=tmp_path)
    x = sound(2, 64, 1)
    expected = np.log(np.abs(reference(x[..., 0], 32, 8)) ** 2 + 1e-4) / 4 + 1.0
    np.testing.assert_allclose(layer(x), expected.reshape(2, 4, 34), atol=1e-4)


def test_inverse_spectrogram_contract(tmp_path):
    inputs = sound(2, 4, 68)
    run_contract(lambda **k: InverseSpectrogram(32, 8, fold=2, **k), inputs, tmp_path=tmp_path)


def test_inverse_spectrogram_undoes_a_spectrogram():
    x = sound(2, 64)
    transform = reference(x, 32, 8)
    z = np.concatenate([np.log(np.abs(transform) + 1e-12), np.angle(transform)], axis=-1).reshape(2, 4, 68)
    for rounds in (0, 2):
        y = InverseSpectrogram(32, 8, fold=2, num_iterations=rounds)(z.astype("float32"))
        np.testing.assert_allclose(np.asarray(y)[..., 0], x, atol=1e-3)


@pytest.mark.parametrize(
    "call, message",
    [
        (
            lambda: stft(sound(2, 64), 24, 8),
            "`window_size` must be an even multiple of `hop`. Received: window_size=24",
        ),
        (lambda: stft(sound(2, 64), 0, 8), "`window_size` must be a positive integer"),
        (lambda: stft(sound(2, 0), 32, 8), "known number of samples"),
        (lambda: LogSpectrogram(32, 8, floor=0), "`floor` must be"),
        (lambda: LogSpectrogram(32, 8, fold=2)(sound(2, 72, 1)), "multiple of 16 samples"),
        (lambda: LogSpectrogram(32, 8)(sound(2, 64, 2)), r"waveforms \(batch, samples, 1\)"),
        (lambda: InverseSpectrogram(32, 8)(sound(2, 4, 30)), r"expects inputs \(batch, steps, 34\)"),
        (lambda: InverseSpectrogram(32, 8, num_iterations=65), "must be from 0 to 64. Received: num_iterations=65"),
        (lambda: LogSpectrogram(32, 8)(keras.KerasTensor((None, None, 1))), "multiple of 8 samples"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
