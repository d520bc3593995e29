"""Discrete-time Gaussian diffusion: DDPM and what was learned since."""

import math

import keras
import numpy as np
from keras import ops

from keras_vqdit.checks import number, one_of
from keras_vqdit.diffusion.process import DiffusionProcess, expand_like, mean_per_example, posterior
from keras_vqdit.diffusion.schedules import SCHEDULES, SPACINGS, min_snr_weight
from keras_vqdit.diffusion.schedules import zero_terminal_snr as rescale_to_zero_terminal_snr

PREDICTIONS = {"noise": "noise", "eps": "noise", "clean": "clean", "x0": "clean", "v": "v"}


@keras.saving.register_keras_serializable("keras_vqdit")
class GaussianDiffusion(DiffusionProcess):
    """Variance-preserving diffusion over a table of noise levels, as a layer that noises its input.

    The time t in [0, 1] stands for entry `k = round(t T)` of the table: entry 0 is the clean example, entries 1 to T
    are the official code's steps 0 to T - 1.

    Args:
        schedule: `"linear"`, `"cosine"` or `"sigmoid"`.
        prediction: what the network predicts, `"noise"` (or `"eps"`), `"clean"` (or `"x0"`) or `"v"`.
        num_timesteps: T, the number of steps. Defaults to 1000.
        zero_terminal_snr: rescale the schedule so that t = 1 is pure noise; not for noise prediction, which says
            nothing there. Defaults to `False`.
        min_snr_gamma: cap of the signal-to-noise ratio in the loss weight, 5 in the paper. Defaults to `None`, no
            weights.
        learn_variance: let the network return twice the channels, of which the second half interpolates the logarithm
            of the reverse variance; adds the variational bound to the loss. Defaults to `False`.
        seed: integer for the random times and the noise. Defaults to `None`.

    Raises:
        ValueError: for a name or a number that is not one of the above.

    Example:

    ```python
    import numpy as np
    from keras_vqdit.diffusion import GaussianDiffusion

    process = GaussianDiffusion("cosine", "v", seed=0)
    x0 = np.zeros((8, 28, 28, 1), "float32")
    x_t, noise, t = process(x0)
    loss = process.loss(process.target(x0, noise, t), x0, noise, t)  # (8,), all 0
    ```

    References:
        - [Denoising Diffusion Probabilistic Models](https://arxiv.org/abs/2006.11239)
        - [Improved DDPM](https://arxiv.org/abs/2102.09672) (cosine, learned variance)
        - [Progressive Distillation](https://arxiv.org/abs/2202.00512) (v)
        - [Common Diffusion Noise Schedules and Sample Steps Are Flawed](https://arxiv.org/abs/2305.08891)
        - [Efficient Diffusion Training via Min-SNR Weighting](https://arxiv.org/abs/2303.09556)
    """

    def __init__(
        self,
        schedule="linear",
        prediction="noise",
        *,
        num_timesteps=1000,
        zero_terminal_snr=False,
        min_snr_gamma=None,
        learn_variance=False,
        seed=None,
        **kwargs,
    ):
        super().__init__(seed=seed, **kwargs)
        one_of("schedule", schedule, SCHEDULES)
        one_of("prediction", prediction, PREDICTIONS)
        if not isinstance(num_timesteps, (int, np.integer)) or isinstance(num_timesteps, bool) or num_timesteps < 2:
            raise ValueError(
                f"`num_timesteps` must be an integer of at least 2. Received: num_timesteps={num_timesteps}"
            )
        if min_snr_gamma is not None:
            number("min_snr_gamma", min_snr_gamma, above=0)
        if zero_terminal_snr and PREDICTIONS[prediction] == "noise":
            raise ValueError(
                "`prediction` must be 'v' or 'clean' where `zero_terminal_snr` is on: at t = 1 the noise tells nothing "
                f"about the clean example. Received: prediction={prediction!r}"
            )
        self.schedule = schedule
        self.prediction = PREDICTIONS[prediction]
        self.num_timesteps = int(num_timesteps)
        self.zero_terminal_snr = zero_terminal_snr
        self.min_snr_gamma = min_snr_gamma
        self.learn_variance = learn_variance
        self._make_tables()

    def _make_tables(self):
        """The float64 tables of T + 1 entries: noise levels, posterior, loss weights."""
        betas = SCHEDULES[self.schedule](self.num_timesteps)
        if self.zero_terminal_snr:
            betas = rescale_to_zero_terminal_snr(betas)
        self.alpha_bar = np.concatenate([[1.0], np.cumprod(1 - betas)])
        self.alphas, self.sigmas = np.sqrt(self.alpha_bar), np.sqrt(1 - self.alpha_bar)
        q = posterior(self.alphas[1:], self.sigmas[1:], self.alphas[:-1], self.sigmas[:-1])
        self.from_clean = np.concatenate([[1.0], q.from_clean])
        # The posterior of the first step has no variance: it takes the second one's. Entry 0 is never used.
        self.log_small = np.log(np.concatenate([q.small[[1, 1]], q.small[1:]]))
        self.log_large = np.log(np.concatenate([q.large[:1], q.large]))
        self.loss_weights = np.ones_like(self.alpha_bar)
        if self.min_snr_gamma is not None:
            self.loss_weights = min_snr_weight(self.alpha_bar, self.min_snr_gamma, self.prediction)

    # === Times ===

    def table_index(self, t):
        """Entry of the tables for times in [0, 1]: int32 of the shape of t."""
        k = ops.round(ops.cast(t, "float32") * self.num_timesteps)
        return ops.cast(ops.clip(k, 0, self.num_timesteps), "int32")

    def network_time(self, t):
        """`(k - 1) / T`: times a thousand it is the step 0 to 999 that the official networks are told."""
        k = ops.cast(self.table_index(t), "float32")
        return ops.maximum(k - 1, 0) / self.num_timesteps

    def sample_times(self, batch_size):
        k = keras.random.randint((batch_size,), 1, self.num_timesteps + 1, seed=self.seed_generator)
        return ops.cast(k, "float32") / self.num_timesteps

    def times(self, num_steps, spacing="trailing"):
        """Times of a sampler with `num_steps` steps.

        Args:
            num_steps: from 1 to `num_timesteps`.
            spacing: `"trailing"` (starts at t = 1), `"linspace"` (starts at t = 1 and visits entry 1) or `"leading"`
                (as the first DDIM code; starts below t = 1, hence not with `zero_terminal_snr`).

        Returns:
            Decreasing float32 NumPy array (num_steps + 1,), whose last element is 0.

        Raises:
            ValueError: for another spacing or number of steps.
        """
        one_of("spacing", spacing, SPACINGS)
        if not 1 <= num_steps <= self.num_timesteps or num_steps != int(num_steps):
            raise ValueError(
                f"`num_steps` must be an integer from 1 to num_timesteps={self.num_timesteps}. "
                f"Received: num_steps={num_steps}"
            )
        if spacing == "leading" and self.zero_terminal_snr:
            raise ValueError(
                "`spacing` must be 'trailing' or 'linspace' where `zero_terminal_snr` is on: 'leading' does not start "
                "at t = 1. Received: spacing='leading'"
            )
        indices = SPACINGS[spacing](int(num_steps), self.num_timesteps)
        return (np.append(indices, 0) / self.num_timesteps).astype("float32")

    # === Levels, targets ===

    def alpha_sigma(self, t):
        k = self.table_index(t)
        return _take(self.alphas, k), _take(self.sigmas, k)

    def weight(self, t):
        return _take(self.loss_weights, self.table_index(t))

    def target(self, x0, noise, t):
        x0, noise = ops.cast(x0, "float32"), ops.cast(noise, "float32")
        alpha, sigma = self.levels(x0, t)
        return {"noise": noise, "clean": x0, "v": alpha * noise - sigma * x0}[self.prediction]

    def to_clean(self, x_t, prediction, t):
        x, prediction = ops.cast(x_t, "float32"), ops.cast(prediction, "float32")
        alpha, sigma = self.levels(x, t)
        if self.prediction == "clean":
            return prediction
        return alpha * x - sigma * prediction if self.prediction == "v" else (x - sigma * prediction) / alpha

    def to_noise(self, x_t, prediction, t):
        x, prediction = ops.cast(x_t, "float32"), ops.cast(prediction, "float32")
        alpha, sigma = self.levels(x, t)
        if self.prediction == "noise":
            return prediction
        if self.prediction == "v":
            return alpha * prediction + sigma * x
        return (x - alpha * prediction) / ops.where(sigma > 0, sigma, 1.0)  # at t = 0 there is no noise to tell

    # === Learned variance (2102.09672), section 3.1 ===

    def prediction_channels(self, channels):
        return 2 * channels if self.learn_variance else channels

    def split_prediction(self, prediction):
        prediction = ops.cast(prediction, "float32")
        if not self.learn_variance:
            return prediction, None
        if prediction.shape[-1] % 2:
            raise ValueError(
                "`prediction` must have an even number of channels where `learn_variance` is on, the second half for "
                f"the variance. Received: prediction.shape={tuple(prediction.shape)}"
            )
        prediction, v = ops.split(prediction, 2, axis=-1)
        return prediction, (v + 1) / 2

    def loss(self, prediction, x0, noise, t):
        loss = super().loss(prediction, x0, noise, t)
        if not self.learn_variance:
            return loss
        # (2102.09672) eq. 16: 0.001 of the bound, which is a sum over all steps; one step's term stands for all of them.
        return loss + self.num_timesteps / 1000 * self.variational_bound(prediction, x0, noise, t)

    def variational_bound(self, prediction, x0, noise, t):
        """One term of the variational bound, which teaches the variance alone: the mean's gradient is stopped.

        The divergence of the model's reverse step from the posterior for k > 1, and the negative log-likelihood of
        `x0` on 256 levels in [-1, 1] for k = 1.

        Returns:
            float32 (B,), in bits a dimension.
        """
        prediction, fraction = self.split_prediction(prediction)
        x0 = ops.cast(x0, "float32")
        clean = self.to_clean(self.add_noise(x0, t, noise), ops.stop_gradient(prediction), t)
        k = self.table_index(t)

        def read(table):
            return expand_like(_take(table, k), x0)

        log_small = read(self.log_small)
        log_variance = learned_log_variance(fraction, log_small, read(self.log_large))
        # Both means hold the same share of x_t, so they differ by what differs in the clean example.
        divergence = normal_kl(read(self.from_clean) * (x0 - clean), log_small, log_variance)
        likelihood = discretized_log_likelihood(x0, clean, log_variance)  # at k = 1 the mean is the clean example
        bound = ops.where(expand_like(k, x0) <= 1, -likelihood, divergence)
        return mean_per_example(bound) / math.log(2)

    def get_config(self):
        return {
            **super().get_config(),
            "schedule": self.schedule,
            "prediction": self.prediction,
            "num_timesteps": self.num_timesteps,
            "zero_terminal_snr": self.zero_terminal_snr,
            "min_snr_gamma": self.min_snr_gamma,
            "learn_variance": self.learn_variance,
        }


def learned_log_variance(fraction, log_small, log_large):
    """Log-variance between posterior variance (fraction 0) and beta (fraction 1) (2102.09672), eq. 15."""
    return fraction * log_large + (1 - fraction) * log_small


def normal_kl(difference, log_variance, other_log_variance):
    """KL(N(m, v) || N(m', v')) in nats of two normal distributions with `difference = m - m'`."""
    ratio = log_variance - other_log_variance
    return 0.5 * (ops.expm1(ratio) - ratio + ops.square(difference) * ops.exp(-other_log_variance))


def discretized_log_likelihood(x, mean, log_variance):
    """Log-probability in nats of x in [-1, 1] on 256 levels under a normal distribution (2006.11239), eq. 13.

    A level reaches 1/255 to both sides, the outermost ones (beyond +-0.999) to infinity.
    """

    def cdf(edge):
        return 0.5 * (1 + ops.erf((edge - mean) * ops.exp(-0.5 * log_variance) / math.sqrt(2)))

    upper = ops.where(x > 0.999, 1.0, cdf(x + 1 / 255))
    lower = ops.where(x < -0.999, 0.0, cdf(x - 1 / 255))
    return ops.log(ops.maximum(upper - lower, 1e-12))


def _take(table, index):
    return ops.take(ops.convert_to_tensor(table.astype("float32")), index, axis=0)
