"""SpectralLoss: how far waveforms are from each other to the ear, by their spectrograms."""

import keras
from keras import ops

from keras_vqdit.checks import number, positive_integer
from keras_vqdit.layers.spectrogram import magnitude, stft


@keras.saving.register_keras_serializable("keras_vqdit")
class SpectralLoss(keras.losses.Loss):
    r"""Distance of waveforms by their spectrograms at several resolutions, one value an example.

    With the magnitudes S of the true and Ŝ of the given waveform, the mean over the window sizes of

        ‖S − Ŝ‖ / ‖S‖ + mean |log S − log Ŝ|,

    the spectral convergence and the distance of the log-magnitudes, plus the weighted mean absolute difference of the
    samples. Silence has finite values and gradients.

    Args:
        window_sizes: tuple of integers, each a multiple of 8; frames are a quarter of it apart. Defaults to
            `(64, 128, 256, 512)`.
        waveform_weight: weight of the samples' own difference. Defaults to 0.1: large weights make what can not be told quiet.
        floor: magnitude below which nothing is told apart, relative to the norm of the window. Defaults to 1e-3.
        **kwargs: of `keras.losses.Loss`.

    Call arguments:
        y_true, y_pred: waveforms `(B, T, 1)`.

    Returns:
        Float32 `(B,)` before the reduction.

    Raises:
        ValueError: if there is no window size, or one is no multiple of 8.

    Example:
    >>> x = np.random.default_rng(0).uniform(-1, 1, (2, 6144, 1))
    >>> round(float(SpectralLoss()(x, x)), 4)
    0.0

    References:
        - Yamamoto et al., [Parallel WaveGAN](https://arxiv.org/abs/1910.11480), section 2.2
    """

    def __init__(
        self, window_sizes=(64, 128, 256, 512), *, waveform_weight=0.1, floor=1e-3, name="spectral_loss", **kwargs
    ):
        super().__init__(name=name, **kwargs)
        self.window_sizes = tuple(positive_integer("window_sizes", size) for size in window_sizes)
        if not self.window_sizes or any(size % 8 for size in self.window_sizes):
            raise ValueError(f"`window_sizes` must be multiples of 8. Received: window_sizes={window_sizes}")
        self.waveform_weight = number("waveform_weight", waveform_weight, 0)
        self.floor = number("floor", floor, above=0)

    def call(self, y_true, y_pred):
        x, y = (ops.cast(value, "float32")[..., 0] for value in (y_true, y_pred))  # (B, T)
        total = self.waveform_weight * ops.mean(ops.abs(x - y), axis=-1)
        for size in self.window_sizes:
            # The norm of the Hann window, by which white noise has the same magnitude at every size.
            norm = (3 * size / 8) ** 0.5
            s, t = (magnitude(*stft(value, size, size // 4), (self.floor * norm) ** 2) / norm for value in (x, y))
            convergence = _norm(s - t) / _norm(s)
            total = total + (convergence + ops.mean(ops.abs(ops.log(s) - ops.log(t)), axis=(1, 2))) / len(
                self.window_sizes
            )
        return total  # (B,)

    def get_config(self):
        return {
            **super().get_config(),
            "window_sizes": list(self.window_sizes),
            "waveform_weight": self.waveform_weight,
            "floor": self.floor,
        }


def _norm(x):
    """Root of the sum of squares of each example, with a finite gradient at 0."""
    return ops.sqrt(ops.sum(x**2, axis=(1, 2)) + 1e-12)
