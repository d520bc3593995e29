"""How close sound is to its original, to the sample and to the ear; and sound from magnitudes alone."""

import numpy as np
from keras import ops

from keras_vqdit.checks import integer, number
from keras_vqdit.layers import spectrogram

# Magnitude below which nothing is told apart in decibels; a full tone has one of 64 in a window of 256 samples.
FLOOR = 1e-2


def si_sdr(reference, estimate):
    """Scale-invariant signal-to-distortion ratio in decibels: how much of an estimate is the reference, at any volume.

    With the part a·x of the estimate y that lies along the reference x, a = ⟨x, y⟩/⟨x, x⟩, it is 10·log₁₀(‖a·x‖²/‖a·x − y‖²).
    It compares samples, so a shift in phase that no ear notices counts as distortion.

    Args:
        reference: floats `(B, T)` or `(B, T, 1)`.
        estimate: floats of the same shape.

    Returns:
        float64 `(B,)`, from -100 to 100 dB; -100 where either is silent.

    Raises:
        ValueError: if the shapes differ.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(1, 1000))
        >>> si_sdr(x, 0.5 * x).round(1)
        array([100.])

    References:
        - Le Roux et al., [SDR: half-baked or well done?](https://arxiv.org/abs/1811.02508), eq. 3
    """
    x, y = _sounds(reference, estimate)
    inner, energy = np.sum(x * y, axis=1), np.sum(x * x, axis=1)
    wanted = np.divide(inner, energy, out=np.zeros_like(inner), where=energy > 0)[:, None] * x
    ratio = np.sum(wanted**2, axis=1), np.sum((wanted - y) ** 2, axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        decibels = 10.0 * (np.log10(ratio[0]) - np.log10(ratio[1]))
    return np.clip(np.where(ratio[0] > 0, decibels, -100.0), -100.0, 100.0)


def spectral_convergence(reference, estimate, *, window_size=256, hop=64):
    """Spectral convergence in decibels: 20·log₁₀(‖S − Ŝ‖/‖S‖) of the magnitudes of the spectrograms. Less is better.

    Args:
        reference: floats `(B, T)` or `(B, T, 1)`.
        estimate: floats of the same shape.
        window_size, hop: in samples, see `layers.stft`. Default to 256 and 64.

    Returns:
        float64 `(B,)`, from -100 to 100 dB: 0 for silence in place of the reference, -100 for an exact copy.

    Raises:
        ValueError: if the shapes differ.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(1, 6144))
        >>> spectral_convergence(x, 0.9 * x).round(1)
        array([-20.])

    References:
        - Sturmel and Daudet, [Signal reconstruction from STFT magnitude: a state of the
          art](https://recherche.ircam.fr/anasyn/roebel/paper/DAFx2011/Papers/27_e.pdf)
    """
    s, t = (_magnitudes(sound, window_size, hop) for sound in _sounds(reference, estimate))
    error, size = (np.sqrt(np.sum(value**2, axis=(1, 2))) for value in (s - t, s))
    return np.clip(20.0 * np.log10(np.maximum(error, 1e-30) / np.maximum(size, 1e-30)), -100.0, 100.0)


def log_spectral_distance(reference, estimate, *, window_size=256, hop=64):
    """Log-spectral distance in decibels: the root of the mean squared difference of the levels, a frame, then the mean.

    Args:
        reference: floats `(B, T)` or `(B, T, 1)` in [-1, 1].
        estimate: floats of the same shape.
        window_size, hop: in samples, see `layers.stft`. Default to 256 and 64.

    Returns:
        float64 `(B,)`, 0 for an exact copy.

    Raises:
        ValueError: if the shapes differ.

    Example:
        >>> x = np.random.default_rng(0).normal(size=(1, 6144))
        >>> bool(abs(log_spectral_distance(x, 0.5 * x)[0] - 6.02) < 0.05)
        True

    References:
        - Gray and Markel, [Distance measures for speech processing](https://doi.org/10.1109/TASSP.1976.1162849)
    """
    s, t = (
        20.0 * np.log10(np.sqrt(_magnitudes(sound, window_size, hop) ** 2 + FLOOR**2))
        for sound in _sounds(reference, estimate)
    )
    return np.sqrt(np.mean((s - t) ** 2, axis=2)).mean(axis=1)


def griffin_lim(magnitude, *, window_size=256, hop=64, num_iterations=64, momentum=0.99, seed=0):
    """Sound from the magnitudes of its spectrogram, with phases from alternating projections that start at random ones.

    Args:
        magnitude: floats `(B, frames, window_size // 2 + 1)`.
        window_size, hop: in samples, those of the spectrogram. Default to 256 and 64.
        num_iterations: rounds of projections. Defaults to 64.
        momentum: 0 for the plain algorithm, 0.99 (default) for the fast one.
        seed: integer: of the phases at the start.

    Returns:
        float32 `(B, frames * hop, 1)`.

    Raises:
        ValueError: if the magnitudes have another shape.

    Example:
        >>> griffin_lim(np.ones((2, 96, 129)), num_iterations=2).shape
        (2, 6144, 1)

    References:
        - Perraudin et al., [A fast Griffin-Lim algorithm](https://doi.org/10.1109/WASPAA.2013.6701851)
    """
    spectrogram.check_window(window_size, hop)
    magnitude = np.asarray(ops.convert_to_numpy(magnitude), "float32")
    if magnitude.ndim != 3 or magnitude.shape[2] != window_size // 2 + 1:
        raise ValueError(f"`magnitude` must be (B, frames, {window_size // 2 + 1}). Received: shape={magnitude.shape}")
    phase = np.random.default_rng(integer("seed", seed)).uniform(-np.pi, np.pi, magnitude.shape)
    sound = spectrogram.griffin_lim(
        magnitude,
        phase,
        window_size,
        hop,
        num_iterations=integer("num_iterations", num_iterations),
        momentum=number("momentum", momentum, 0, below=1),
    )
    return ops.convert_to_numpy(sound)[..., None]


def _magnitudes(sound, window_size, hop):
    real, imaginary = spectrogram.stft(sound, window_size, hop)
    return np.hypot(*(np.asarray(ops.convert_to_numpy(part), "float64") for part in (real, imaginary)))


def _sounds(reference, estimate):
    """Both as float64 `(B, T)`."""
    sounds = [np.asarray(ops.convert_to_numpy(sound), "float64") for sound in (reference, estimate)]
    shapes = [sound.shape for sound in sounds]
    if shapes[0] != shapes[1] or not (len(shapes[0]) == 2 or len(shapes[0]) == 3 and shapes[0][2] == 1):
        raise ValueError(
            "`reference` and `estimate` must have one shape, (B, T) or (B, T, 1). "
            f"Received: reference.shape={shapes[0]}, estimate.shape={shapes[1]}"
        )
    return [sound.reshape(shapes[0][:2]) for sound in sounds]
