"""Spectrograms: the short-time Fourier transform and its inverse, and the layers that stand for them in networks of sound."""

import keras
import numpy as np
from keras import layers, ops

from keras_vqdit.checks import integer, number, positive_integer

MAX_ITERATIONS = 64  # each makes a network larger, and a file may ask for it
MAX_LOG_MAGNITUDE = 5.0  # a window of 256 samples of a full tone has a magnitude of 64, or e^4.2


def stft(x, window_size, hop):
    """Short-time Fourier transform with a periodic Hann window.

    Frame i is centred on the middle of samples i·hop to (i + 1)·hop, so that a signal of n·hop samples has n frames. Beyond
    its ends the signal is taken as zero.

    Args:
        x: floats `(..., T)`.
        window_size: samples of a window, an even multiple of `hop`.
        hop: samples from one frame to the next.

    Returns:
        Tuple of real and imaginary part, float32 `(..., ceil(T / hop), window_size // 2 + 1)`.

    Raises:
        ValueError: if `window_size` is no even multiple of `hop`.

    Example:
    >>> real, imaginary = stft(np.sin(np.arange(6144.0))[None], 256, 64)
    >>> tuple(real.shape)
    (1, 96, 129)

    References:
        - Griffin and Lim, [Signal Estimation from Modified Short-Time Fourier
          Transform](https://doi.org/10.1109/TASSP.1984.1164317)
    """
    overlap = check_window(window_size, hop)
    x = ops.cast(x, "float32")
    length, rank = x.shape[-1], len(x.shape)
    if not length:
        raise ValueError(f"`x` must have a known number of samples, at least one. Received: shape={tuple(x.shape)}")
    frames = -(-length // hop)
    before = (window_size - hop) // 2
    after = (frames + overlap - 1) * hop - before - length
    x = ops.pad(x, [(0, 0)] * (rank - 1) + [(before, after)])
    x = ops.reshape(x, (*ops.shape(x)[:-1], frames + overlap - 1, hop))
    x = ops.concatenate([x[..., i : i + frames, :] for i in range(overlap)], axis=-1)  # (..., frames, window_size)
    return ops.rfft(x * hann(window_size))


def istft(real, imaginary, window_size, hop):
    """Inverse of `stft`: the signal whose transform is closest to the given one, in the sense of least squares.

    Args:
        real, imaginary: floats `(..., frames, window_size // 2 + 1)`.
        window_size, hop: as of `stft`.

    Returns:
        Signal, float32 `(..., frames * hop)`.

    Raises:
        ValueError: if `window_size` is no even multiple of `hop`.

    Example:
    >>> x = np.sin(np.arange(6144.0))[None]
    >>> bool(np.allclose(istft(*stft(x, 256, 64), 256, 64), x, atol=1e-4))
    True

    References:
        - Griffin and Lim, [Signal Estimation from Modified Short-Time Fourier
          Transform](https://doi.org/10.1109/TASSP.1984.1164317), eq. 6
    """
    check_window(window_size, hop)
    frames = real.shape[-2]
    parts = ops.irfft((ops.cast(real, "float32"), ops.cast(imaginary, "float32")), window_size)
    squares = np.broadcast_to(hann(window_size) ** 2, (frames, window_size))
    return _overlap_add(parts * hann(window_size), hop) / _overlap_add(ops.convert_to_tensor(squares), hop)


def griffin_lim(size, phase, window_size, hop, *, num_iterations, momentum=0.0):
    """Waveform whose transform has about the given magnitudes, by alternating projections from the given phases.

    Not every array is the transform of a signal: of neighbouring frames, which share samples, the phases must agree. Each
    iteration takes the phases of the closest signal's transform, and the given magnitudes again.

    Args:
        size: magnitudes `(..., frames, window_size // 2 + 1)`.
        phase: in radians, of the same shape.
        window_size, hop: as of `stft`.
        num_iterations: how many rounds; with 0 the phases stay as they are.
        momentum: how far each round goes beyond the step of the one before, 0.99 for the fast variant. Defaults to 0.

    Returns:
        Waveform, float32 `(..., frames * hop)`.

    Raises:
        ValueError: if `window_size` is no even multiple of `hop`.

    References:
        - Griffin and Lim, [Signal Estimation from Modified Short-Time Fourier
          Transform](https://doi.org/10.1109/TASSP.1984.1164317)
        - Perraudin et al., [A fast Griffin-Lim algorithm](https://doi.org/10.1109/WASPAA.2013.6701851), algorithm 2
    """
    size, phase = ops.cast(size, "float32"), ops.cast(phase, "float32")
    y = istft(size * ops.cos(phase), size * ops.sin(phase), window_size, hop)
    before = None
    for _ in range(num_iterations):
        found = stft(y, window_size, hop)
        ahead = found
        if momentum and before is not None:
            ahead = [new + momentum * (new - old) for new, old in zip(found, before, strict=True)]
        before = found
        scale = size / magnitude(*ahead, 1e-6)
        y = istft(scale * ahead[0], scale * ahead[1], window_size, hop)
    return y


def magnitude(real, imaginary, epsilon=1e-12):
    """Square root of the power plus `epsilon`, whose gradient is finite at exact silence."""
    return ops.sqrt(real**2 + imaginary**2 + epsilon)


def hann(window_size):
    """Periodic Hann window, float32 `(window_size,)`."""
    return (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window_size) / window_size)).astype("float32")


def check_window(window_size, hop):
    """How many hops a window takes.

    Raises:
        ValueError: if they are not positive integers, or the window is no even multiple of the hop.
    """
    positive_integer("window_size", window_size)
    if window_size % (2 * positive_integer("hop", hop)):
        raise ValueError(
            f"`window_size` must be an even multiple of `hop`. Received: window_size={window_size}, hop={hop}"
        )
    return window_size // hop


def _overlap_add(parts, hop):
    """Add frames `(..., frames, window)` up where they overlap, and cut what lies beyond the signal's ends."""
    *batch, frames, window_size = parts.shape
    overlap = window_size // hop
    leading = ops.shape(parts)[: len(batch)]
    parts = ops.reshape(parts, (*leading, frames, overlap, hop))
    total = 0.0
    for i in range(overlap):
        pad = [(0, 0)] * len(batch) + [(i, overlap - 1 - i), (0, 0)]
        total = total + ops.pad(parts[..., i, :], pad)  # (..., frames + overlap - 1, hop)
    total = ops.reshape(total, (*leading, (frames + overlap - 1) * hop))
    before = (window_size - hop) // 2
    return total[..., before : before + frames * hop]


class SpectralLayer(layers.Layer):
    """The arguments that the layers of this file share; they compute in float32 under every dtype policy.

    Args:
        window_size: samples of a window, an even multiple of `hop`.
        hop: samples from one frame of the transform to the next.
        fold: number of neighbouring frames that make one step of the network.
    """

    def __init__(self, window_size, hop, *, fold=1, **kwargs):
        super().__init__(autocast=False, **kwargs)
        check_window(window_size, hop)
        self.window_size, self.hop, self.fold = window_size, hop, positive_integer("fold", fold)

    @property
    def bins(self):
        return self.window_size // 2 + 1

    @property
    def factor(self):
        """Samples of one step."""
        return self.hop * self.fold

    def get_config(self):
        return {**super().get_config(), "window_size": self.window_size, "hop": self.hop, "fold": self.fold}


@keras.saving.register_keras_serializable("keras_vqdit")
class LogSpectrogram(SpectralLayer):
    """Half the logarithm of the magnitudes of the short-time Fourier transform, plus 1: from about -1 to 3.

    Args:
        window_size: samples of a window, an even multiple of `hop`.
        hop: samples from one frame of the transform to the next.
        fold: number of neighbouring frames that are put beside each other as channels of one step. Defaults to 1.
        floor: magnitude that is added in squares, below which nothing is told apart. Defaults to 0.01, as samples are in
            [-1, 1] about 80 dB below the loudest.
        **kwargs: of `keras.layers.Layer`.

    Call arguments:
        x: waveform `(B, T, 1)`; T a multiple of `fold * hop`.

    Returns:
        Tensor `(B, T / (fold * hop), fold * (window_size // 2 + 1))`.

    Raises:
        ValueError: if `window_size` is no even multiple of `hop`, or the waveform of another shape.

    Example:
    >>> tuple(LogSpectrogram(256, 64, fold=2)(np.zeros((1, 6144, 1))).shape)
    (1, 48, 258)
    """

    def __init__(self, window_size, hop, *, fold=1, floor=0.01, **kwargs):
        super().__init__(window_size, hop, fold=fold, **kwargs)
        self.floor = number("floor", floor, above=0)

    def build(self, input_shape):
        self.check_input(input_shape)
        self.built = True

    def check_input(self, shape):
        if len(shape) != 3 or shape[2] != 1 or shape[1] is None or shape[1] % self.factor:
            raise ValueError(
                f"{type(self).__name__} expects waveforms (batch, samples, 1), with a multiple of {self.factor} samples. "
                f"Received: input_shape={tuple(shape)}"
            )

    def call(self, x):
        size = magnitude(*stft(x[..., 0], self.window_size, self.hop), self.floor**2)
        features = 0.5 * ops.log(size) + 1.0
        return ops.cast(ops.reshape(features, (-1, *self.compute_output_shape(x.shape)[1:])), self.compute_dtype)

    def compute_output_shape(self, input_shape):
        return (input_shape[0], input_shape[1] // self.factor, self.fold * self.bins)

    def get_config(self):
        return {**super().get_config(), "floor": self.floor}


@keras.saving.register_keras_serializable("keras_vqdit")
class InverseSpectrogram(SpectralLayer):
    """Waveform from predicted log-magnitudes and phases, by the inverse short-time Fourier transform.

    A few rounds of `griffin_lim` make the phases agree, so that the network need not know them exactly, which no code of few
    bits could tell it.

    Args:
        window_size: samples of a window, an even multiple of `hop`.
        hop: samples from one frame of the transform to the next.
        fold: number of frames that the channels of one step hold. Defaults to 1.
        num_iterations: rounds of `griffin_lim`, through which the gradient passes, too. Defaults to 4.
        **kwargs: of `keras.layers.Layer`.

    Call arguments:
        x: floats `(B, steps, fold * 2 * (window_size // 2 + 1))`: for each frame the log-magnitudes, then the phases in
            radians.

    Returns:
        Waveform `(B, steps * fold * hop, 1)`, float32.

    Raises:
        ValueError: if `window_size` is no even multiple of `hop`, the channels are not as many, or `num_iterations` not in
            0 to 64.

    Example:
    >>> tuple(InverseSpectrogram(256, 64, fold=2)(np.zeros((1, 48, 516))).shape)
    (1, 6144, 1)

    References:
        - Siuzdak, [Vocos: Closing the gap between time-domain and Fourier-based neural
          vocoders](https://arxiv.org/abs/2306.00814), section 3.2
    """

    def __init__(self, window_size, hop, *, fold=1, num_iterations=4, **kwargs):
        super().__init__(window_size, hop, fold=fold, **kwargs)
        self.num_iterations = integer("num_iterations", num_iterations)
        if not 0 <= self.num_iterations <= MAX_ITERATIONS:
            raise ValueError(
                f"`num_iterations` must be from 0 to {MAX_ITERATIONS}. Received: num_iterations={num_iterations}"
            )

    def build(self, input_shape):
        if len(input_shape) != 3 or input_shape[1] is None or input_shape[2] != self.fold * 2 * self.bins:
            raise ValueError(
                f"{type(self).__name__} expects inputs (batch, steps, {self.fold * 2 * self.bins}). "
                f"Received: input_shape={tuple(input_shape)}"
            )
        self.built = True

    def call(self, x):
        x = ops.reshape(ops.cast(x, "float32"), (-1, x.shape[1] * self.fold, 2, self.bins))
        size = ops.exp(ops.minimum(x[:, :, 0], MAX_LOG_MAGNITUDE))
        y = griffin_lim(size, x[:, :, 1], self.window_size, self.hop, num_iterations=self.num_iterations)
        return y[..., None]

    def get_config(self):
        return {**super().get_config(), "num_iterations": self.num_iterations}

    def compute_output_spec(self, x):
        return keras.KerasTensor((x.shape[0], x.shape[1] * self.factor, 1), "float32")

    def compute_output_shape(self, input_shape):
        return (input_shape[0], input_shape[1] * self.factor, 1)
