"""Rectified flow: straight lines from data to noise."""

import keras
import numpy as np
from keras import ops

from keras_vqdit.checks import number
from keras_vqdit.diffusion.process import DiffusionProcess, expand_like
from keras_vqdit.diffusion.schedules import shift_times


@keras.saving.register_keras_serializable("keras_vqdit")
class RectifiedFlow(DiffusionProcess):
    """`x_t = (1 - t) x0 + t noise` in continuous time, where the network predicts the velocity `noise - x0`.

    Training times are logit-normal, `t = sigmoid(location + scale n)`, then shifted,
    `t' = shift t / (1 + (shift - 1) t)`.

    Args:
        location: mean of the normal distribution behind the times; positive values train more on noise. Defaults to 0.
        scale: its standard deviation. Defaults to 1.
        shift: moves times, in training and in sampling, towards noise (> 1) or data (< 1). Defaults to 1, no shift.
        seed: integer for the random times and the noise. Defaults to `None`.

    Raises:
        ValueError: if `scale` or `shift` is not positive.

    Example:

    ```python
    import numpy as np
    from keras_vqdit.diffusion import RectifiedFlow

    process = RectifiedFlow(shift=3.0, seed=0)
    x_t, velocity, t = process(np.zeros((8, 7, 7, 16), "float32"))
    clean = process.to_clean(x_t, velocity, t)  # the velocity is the noise here, so this is 0
    ```

    References:
        - [Flow Straight and Fast](https://arxiv.org/abs/2209.03003)
        - [Scaling Rectified Flow Transformers](https://arxiv.org/abs/2403.03206) (logit-normal times, shift)
    """

    def __init__(self, *, location=0.0, scale=1.0, shift=1.0, seed=None, **kwargs):
        super().__init__(seed=seed, **kwargs)
        number("location", location)
        number("scale", scale, above=0)
        number("shift", shift, above=0)
        self.location, self.scale, self.shift = location, scale, shift

    def alpha_sigma(self, t):
        t = ops.cast(t, "float32")
        return 1 - t, t

    def target(self, x0, noise, t):
        return ops.cast(noise, "float32") - ops.cast(x0, "float32")

    def to_clean(self, x_t, prediction, t):
        return ops.cast(x_t, "float32") - expand_like(t, x_t) * ops.cast(prediction, "float32")

    def to_noise(self, x_t, prediction, t):
        return ops.cast(x_t, "float32") + (1 - expand_like(t, x_t)) * ops.cast(prediction, "float32")

    def sample_times(self, batch_size):
        n = keras.random.normal((batch_size,), dtype="float32", seed=self.seed_generator)
        return shift_times(ops.sigmoid(self.location + self.scale * n), self.shift)

    def times(self, num_steps, spacing="trailing"):
        """Times of a sampler with `num_steps` steps: evenly from 1 to 0, then shifted.

        Args:
            num_steps: a positive integer.
            spacing: `"trailing"` or `"linspace"`, which are the same in continuous time.

        Returns:
            Decreasing float32 NumPy array (num_steps + 1,) from 1 to 0.

        Raises:
            ValueError: for another spacing or number of steps.
        """
        if spacing not in ("trailing", "linspace"):
            raise ValueError(f"`spacing` must be 'trailing' or 'linspace' for a flow. Received: spacing={spacing!r}")
        if num_steps < 1 or num_steps != int(num_steps):
            raise ValueError(f"`num_steps` must be a positive integer. Received: num_steps={num_steps}")
        return shift_times(np.linspace(1.0, 0.0, int(num_steps) + 1), self.shift).astype("float32")

    def get_config(self):
        return {**super().get_config(), "location": self.location, "scale": self.scale, "shift": self.shift}
