"""The mean and variance of latents, learned while a tokenizer trains: diffusion needs latents of unit scale."""

import keras
from keras import layers, ops

from keras_vqdit.checks import number


@keras.saving.register_keras_serializable("keras_vqdit")
class LatentStatistics(layers.Layer):
    """Normalise each channel to zero mean and unit variance, by statistics kept as weights.

    The statistics are moving averages of the mean and of the mean square, with bias correction: an average that has
    seen n batches is divided by `1 - decay**n`, so the first batch alone already gives its exact statistics. Until
    there are any statistics, the layer is the identity.

    Averages of the same batch on several replicas stay exact: the mean of the replicas' moments is the moment of all examples.

    Args:
        decay: decay of the moving averages a batch, from 0 to less than 1. Defaults to 0.99.
        epsilon: smallest variance, so that a constant channel is not blown up. Defaults to 1e-6.

    Call arguments:
        z: latents `(B, …, C)`.
        training: whether the statistics learn from `z`. Defaults to `False`.

    Returns:
        The normalised latents, float32, in the shape of `z`.

    Raises:
        ValueError: if an argument has an impossible value.

    Example:
    >>> import numpy as np
    >>> statistics = LatentStatistics()
    >>> z = np.random.default_rng(0).normal(3.0, 2.0, (64, 7, 7, 8))
    >>> float(keras.ops.std(statistics(z, training=True))).__round__(3)
    1.0

    References:
        - Rombach et al., [High-Resolution Image Synthesis with Latent Diffusion
          Models](https://arxiv.org/abs/2112.10752), section G: latents of unit variance
    """

    def __init__(self, *, decay=0.99, epsilon=1e-6, **kwargs):
        super().__init__(autocast=False, **kwargs)
        number("decay", decay, 0, below=1)
        number("epsilon", epsilon, above=0)
        self.decay, self.epsilon = decay, epsilon

    def build(self, input_shape):
        options = {
            "initializer": "zeros",
            "dtype": "float32",
            "autocast": False,
            "trainable": False,
            "aggregation": "mean",
        }
        self.moments = self.add_weight(shape=(2, input_shape[-1]), name="moments", **options)
        self.mass = self.add_weight(shape=(), name="mass", **options)
        self.built = True

    def call(self, z, training=False):
        if training:
            self.update(z)
        mean, deviation = self.mean_and_deviation()
        return (ops.cast(z, "float32") - mean) / deviation

    def update(self, z):
        """Let the moving averages learn from a batch."""
        z = ops.stop_gradient(ops.cast(z, "float32"))
        axes = list(range(len(z.shape) - 1))
        batch = ops.stack([ops.mean(z, axes), ops.mean(z * z, axes)])  # (2, C)
        finite = ops.all(ops.isfinite(batch))  # a moving average never forgets a NaN
        decay = ops.where(finite, self.decay, 1.0)
        self.moments.assign(decay * self.moments + (1 - decay) * ops.where(finite, batch, 0.0))
        self.mass.assign(decay * self.mass + (1 - decay))

    def set(self, mean, variance):
        """Set the statistics to exact ones, two arrays `(C,)`; further training moves on from them."""
        self.moments.assign(ops.stack([mean, variance + mean * mean]))
        self.mass.assign(1.0)

    def denormalize(self, z):
        """Normalised latents back to those of the encoder, float32."""
        mean, deviation = self.mean_and_deviation()
        return ops.cast(z, "float32") * deviation + mean

    def mean_and_deviation(self):
        """The mean and the standard deviation of each channel, two float32 tensors `(C,)`: 0 and 1 before any data."""
        mass = self.mass.value
        seen = mass > 0
        moments = self.moments.value / ops.where(seen, mass, 1.0)  # (2, C)
        mean, square = moments[0], moments[1]
        variance = ops.where(seen, square - mean * mean, 1.0)
        return mean, ops.sqrt(ops.maximum(variance, self.epsilon))

    def compute_output_spec(self, z, training=False):
        return keras.KerasTensor(z.shape, dtype="float32")

    def get_config(self):
        return {**super().get_config(), "decay": self.decay, "epsilon": self.epsilon}
