"""What all diffusion processes share: `x_t = alpha(t) x0 + sigma(t) noise`, where t = 0 is data and t = 1 is noise."""

from typing import NamedTuple

import keras
from keras import ops

from keras_vqdit.checks import check_times, fits
from keras_vqdit.diffusion.noise import standard_normal


def expand_like(values, x):
    """Give `values` (B,) or () trailing axes, so that they broadcast against `x` (B, ...) from the left."""
    values = ops.cast(values, "float32")
    if len(values.shape) == 0:
        return values
    for _ in range(len(x.shape) - len(values.shape)):
        values = ops.expand_dims(values, -1)
    return values


def call_times(process, t, batch_size):
    """The times (B,) of a process's call, float32: those that were given, or random ones."""
    if t is None:
        t = process.sample_times(batch_size)
    else:
        check_times(t)
    return ops.broadcast_to(ops.cast(t, "float32"), (batch_size,))


def mean_per_example(x):
    """Mean over all axes but the first: (B, ...) to (B,)."""
    return ops.mean(x, axis=tuple(range(1, len(x.shape)))) if len(x.shape) > 1 else x


class Posterior(NamedTuple):
    """q(x_s | x_t, x0) = N(from_x x_t + from_clean x0, small), and `large`, the variance of q(x_t | x_s)."""

    from_x: object
    from_clean: object
    small: object
    large: object


def posterior(alpha_t, sigma_t, alpha_s, sigma_s):
    """Posterior of the noisier time t over the cleaner time s, for any process (2107.00630), appendix A.

    For neighbouring steps of a variance-preserving process these are DDPM's (2006.11239) eq. 6 and 7: `large` is beta
    and `small` is beta tilde. Holds for NumPy arrays and for tensors alike.

    Args:
        alpha_t, sigma_t: signal and noise level at t; `alpha_t` may be 0.
        alpha_s, sigma_s: signal and noise level at s < t; `sigma_s` may be 0.

    Returns:
        A `Posterior`.
    """
    alpha_ts = alpha_t / alpha_s
    large = (sigma_t - alpha_ts * sigma_s) * (sigma_t + alpha_ts * sigma_s)
    return Posterior(
        from_x=alpha_ts * sigma_s**2 / sigma_t**2,
        from_clean=alpha_s * large / sigma_t**2,
        small=large * sigma_s**2 / sigma_t**2,
        large=large,
    )


class DiffusionProcess(keras.layers.Layer):
    """Base class of the processes: a layer that noises its input, and the mathematics around it.

    A subclass defines `alpha_sigma`, `target`, `to_clean`, `to_noise`, `sample_times` and `times`. It has no trainable
    weights, and works in float32 under every dtype policy. Times `t` are float tensors in [0, 1] of shape (B,) or (),
    and broadcast against examples (B, ...) from the left.

    Args:
        seed: integer for the random times and the noise. Defaults to `None`, a random one.

    Call arguments:
        x0: clean examples (B, ...).
        t: times (B,) or (). Defaults to `sample_times(B)`.
        noise: standard normal noise of the shape of `x0`. Drawn if not given.

    Returns:
        Tuple `(x_t, noise, t)` of float32 tensors (B, ...), (B, ...) and (B,).
    """

    def __init__(self, *, seed=None, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.seed = seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.built = True

    # === To be defined by the subclass ===

    def alpha_sigma(self, t):
        """Signal and noise level at t: `(alpha, sigma)`, float32 of the shape of t."""
        raise NotImplementedError

    def target(self, x0, noise, t):
        """What the network shall predict."""
        raise NotImplementedError

    def to_clean(self, x_t, prediction, t):
        """The clean example that a prediction implies."""
        raise NotImplementedError

    def to_noise(self, x_t, prediction, t):
        """The noise that a prediction implies."""
        raise NotImplementedError

    def sample_times(self, batch_size):
        """Random training times, float32 (B,)."""
        raise NotImplementedError

    def times(self, num_steps, spacing="trailing"):
        """Times of a sampler with `num_steps` steps: decreasing float32 NumPy array (num_steps + 1,) that ends in 0."""
        raise NotImplementedError

    # === Common to all processes ===

    def add_noise(self, x0, t, noise):
        """`alpha(t) x0 + sigma(t) noise`."""
        alpha, sigma = self.levels(x0, t)
        return alpha * ops.cast(x0, "float32") + sigma * ops.cast(noise, "float32")

    def levels(self, x, t):
        """`alpha_sigma(t)` with the trailing axes of x."""
        alpha, sigma = self.alpha_sigma(t)
        return expand_like(alpha, x), expand_like(sigma, x)

    def weight(self, t):
        """Weight of the squared error at t: float32 of the shape of t."""
        return ops.ones_like(ops.cast(t, "float32"))

    def network_time(self, t):
        """The time in [0, 1] that the network is told."""
        return ops.cast(t, "float32")

    def prediction_channels(self, channels):
        """Number of channels that the network returns for examples of `channels` channels."""
        return channels

    def split_prediction(self, prediction):
        """Split what the network returns into `(prediction, variance_fraction)`, the latter `None` if not learned."""
        return ops.cast(prediction, "float32"), None

    def denoised(self, x_t, prediction, t):
        """What a sampler's `denoise` returns, out of what the network returns: `(clean, variance_fraction)`."""
        prediction, fraction = self.split_prediction(prediction)
        return self.to_clean(x_t, prediction, t), fraction

    def loss(self, prediction, x0, noise, t):
        """Weighted loss of what the network returned for `add_noise(x0, t, noise)`.

        Args:
            prediction: (B, ..., prediction_channels(C)), in any dtype.
            x0: clean examples (B, ..., C).
            noise: the noise that was added (B, ..., C).
            t: the times (B,).

        Returns:
            float32 (B,): `weight(t)` times the mean squared error, plus the variational bound where the variance is
            learned.
        """
        self._check_prediction(prediction, x0)
        self._check_noise(noise, x0)
        prediction, _ = self.split_prediction(prediction)
        return self.weight(t) * mean_per_example(ops.square(prediction - self.target(x0, noise, t)))

    def call(self, x0, t=None, noise=None):
        x0 = ops.cast(x0, "float32")
        t = call_times(self, t, ops.shape(x0)[0])
        if noise is None:
            noise = standard_normal(ops.shape(x0), self.seed_generator)
        self._check_noise(noise, x0)
        noise = ops.cast(noise, "float32")
        return self.add_noise(x0, t, noise), noise, t

    def compute_output_spec(self, x0, t=None, noise=None):
        example = keras.KerasTensor(x0.shape, dtype="float32")
        return example, example, keras.KerasTensor(x0.shape[:1], dtype="float32")

    def get_config(self):
        return {**super().get_config(), "seed": self.seed}

    def _check_noise(self, noise, x0):
        if not fits(noise.shape, x0.shape):
            raise ValueError(
                f"`noise` must have the shape of the examples, {tuple(x0.shape)}. Received: noise.shape={tuple(noise.shape)}"
            )

    def _check_prediction(self, prediction, x0):
        expected = (*x0.shape[:-1], self.prediction_channels(x0.shape[-1]))
        if not fits(prediction.shape, expected):
            raise ValueError(
                f"`prediction` must have shape {expected} for examples of shape {tuple(x0.shape)}. "
                f"Received: prediction.shape={tuple(prediction.shape)}"
            )
