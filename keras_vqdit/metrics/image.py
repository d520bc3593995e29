"""How close images are to their originals."""

import keras
from keras import ops

from keras_vqdit.checks import fits, number


@keras.saving.register_keras_serializable("keras_vqdit")
class PSNR(keras.metrics.Mean):
    """Measure the peak signal-to-noise ratio in decibels: the mean over images of 10·log₁₀(max_range² / MSE).

    The MSE is taken per image and the decibels are averaged, as image compression and restoration report it (and
    `tf.image.psnr` gives it); the ratio of the total MSE would be lower, and ruled by the worst images. An image
    that is reproduced exactly counts 100 dB rather than infinity.

    Args:
        max_range: the difference of the largest and the smallest possible value. Default: 2, images in [-1, 1].
        name: Default: `"psnr"`.
        dtype: of the mean.

    Example:

    >>> metric = PSNR()
    >>> metric.update_state(np.zeros((1, 4, 4, 1)), np.full((1, 4, 4, 1), 0.2))
    >>> round(float(metric.result()), 4)
    20.0
    """

    def __init__(self, max_range=2.0, *, name="psnr", dtype=None):
        super().__init__(name=name, dtype=dtype)
        self.max_range = number("max_range", max_range, above=0)

    def update_state(self, y_true, y_pred, sample_weight=None):
        """Add images `y_true` and `y_pred` of equal shape `(B, ...)`, weighted by `sample_weight` `(B,)`."""
        y_true, y_pred = ops.convert_to_tensor(y_true), ops.convert_to_tensor(y_pred)
        if not fits(y_true.shape, y_pred.shape):
            raise ValueError(
                "`y_true` and `y_pred` must have one shape. "
                f"Received: y_true.shape={tuple(y_true.shape)}, y_pred.shape={tuple(y_pred.shape)}"
            )
        difference = ops.cast(y_true, "float32") - ops.cast(y_pred, "float32")
        mse = ops.mean(difference**2, axis=tuple(range(1, len(difference.shape))))  # (B,)
        decibels = 10.0 * ops.log10(self.max_range**2 / ops.maximum(mse, 1e-10 * self.max_range**2))
        return super().update_state(decibels, sample_weight=sample_weight)

    def get_config(self):
        return {**super().get_config(), "max_range": self.max_range}
