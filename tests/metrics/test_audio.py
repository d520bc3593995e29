"""Measures of sound against closed forms in float64, and Griffin-Lim."""

import numpy as np
import pytest

from keras_vqdit.metrics.audio import griffin_lim, log_spectral_distance, si_sdr, spectral_convergence
from tests.layers.test_spectrogram import reference, sound


def test_si_sdr_is_the_ratio_to_what_is_orthogonal():
    x, noise = sound(3, 500).astype("float64"), sound(3, 500, seed=1).astype("float64")
    noise -= x * np.sum(x * noise, axis=1, keepdims=True) / np.sum(x * x, axis=1, keepdims=True)
    noise *= np.sqrt(np.sum(x * x, axis=1, keepdims=True) / np.sum(noise**2, axis=1, keepdims=True))
    for decibels in (-20.0, 0.0, 30.0):
        y = x + 10 ** (-decibels / 20) * noise
        for scale in (1.0, 0.01, -3.0):  # no volume matters, nor the sign
            np.testing.assert_allclose(si_sdr(x, scale * y), decibels, atol=1e-9)
    np.testing.assert_allclose(si_sdr(x[..., None], y[..., None]), si_sdr(x, y))


def test_si_sdr_of_copies_and_silence_is_finite():
    x = sound(2, 64)
    assert np.all(si_sdr(x, x) == 100.0)
    assert np.all(si_sdr(x, 0 * x) == -100.0)
    assert np.all(si_sdr(0 * x, x) == -100.0)


def test_spectral_convergence_is_that_of_numpy():
    x, y = sound(2, 256), sound(2, 256, seed=1)
    s, t = np.abs(reference(x, 32, 8)), np.abs(reference(y, 32, 8))
    expected = 20 * np.log10([np.linalg.norm(a - b) / np.linalg.norm(a) for a, b in zip(s, t, strict=True)])
    np.testing.assert_allclose(spectral_convergence(x, y, window_size=32, hop=8), expected, atol=1e-4)
    np.testing.assert_allclose(spectral_convergence(x, 0.9 * x), -20.0, atol=1e-3)
    np.testing.assert_allclose(spectral_convergence(x, 0 * x), 0.0, atol=1e-6)
    assert np.all(spectral_convergence(x, x) == -100.0)


def test_log_spectral_distance_is_that_of_numpy():
    x, y = sound(2, 256), sound(2, 256, seed=1)
    s, t = (20 * np.log10(np.sqrt(np.abs(reference(z, 32, 8)) ** 2 + 1e-4)) for z in (x, y))
    expected = np.sqrt(((s - t) ** 2).mean(-1)).mean(-1)
    np.testing.assert_allclose(log_spectral_distance(x, y, window_size=32, hop=8), expected, rtol=1e-4)
    assert np.all(log_spectral_distance(x, x) == 0.0)


def test_griffin_lim_restores_the_magnitudes():
    x = np.sin(2 * np.pi * np.arange(1024)[None] * np.array([[0.05], [0.11]]))
    size = np.abs(reference(x, 64, 16))
    y = griffin_lim(size, window_size=64, hop=16)
    assert y.shape == (2, 1024, 1)
    assert np.all(spectral_convergence(x, y[..., 0], window_size=64, hop=16) < -15.0)
    np.testing.assert_array_equal(y, griffin_lim(size, window_size=64, hop=16))
    assert not np.array_equal(y, griffin_lim(size, window_size=64, hop=16, seed=1))


def test_griffin_lim_of_silence_is_silence():
    np.testing.assert_array_equal(griffin_lim(np.zeros((1, 4, 17)), window_size=32, hop=8, num_iterations=2), 0.0)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: si_sdr(sound(2, 8), sound(2, 9)), "must have one shape"),
        (lambda: spectral_convergence(sound(2, 8, 2), sound(2, 8, 2)), r"\(B, T\) or \(B, T, 1\)"),
        (lambda: griffin_lim(np.ones((2, 4, 16)), window_size=32, hop=8), r"must be \(B, frames, 17\)"),
        (lambda: griffin_lim(np.ones((2, 4, 17)), window_size=32, hop=8, momentum=1), "`momentum` must be"),
    ],
)
def test_errors(call, message):
    with pytest.raises(ValueError, match=message):
        call()
