"""Masked (absorbing-state) diffusion of codes: a code is kept or masked, and a network fills in what is masked."""

import math

import keras
import numpy as np
from keras import layers, ops

from keras_vqdit.checks import fits, number, one_of
from keras_vqdit.diffusion.noise import uniform
from keras_vqdit.diffusion.process import call_times, expand_like

HALF_PI = math.pi / 2
# name: the probability p(t) that a code is masked at time t, p(0) = 0 and p(1) = 1, and p'(t) / p(t)
SCHEDULES = {
    "linear": (lambda t: t, lambda t: 1 / t),
    "quadratic": (lambda t: t * t, lambda t: 2 / t),
    "cosine": (lambda t: ops.sin(HALF_PI * t), lambda t: HALF_PI / ops.tan(HALF_PI * t)),
}
WEIGHTINGS = ("bound", "masked")


@keras.saving.register_keras_serializable("keras_vqdit")
class MaskedDiffusion(layers.Layer):
    """Absorbing-state diffusion: at time t each code is masked with probability p(t), by itself; at t = 1 all are.

    The network sees the codes that are left and predicts each masked one. The weighted cross entropy of the masked codes
    bounds the negative log-likelihood, and for every schedule alike: with a network of any kind it is the expected
    likelihood of filling in the codes one at a time in a random order.

    A tensor of codes may be one of several modalities, each of which has times of its own: t = 0 gives a modality to the
    network as a condition, t = 1 hides it. A network trained on independent times knows every conditional, every marginal
    and the joint distribution.

    Args:
        schedule: `"linear"`, p = t; `"cosine"`, p = sin(π t / 2); `"quadratic"`, p = t². Defaults to `"linear"`.
        min_time: the smallest time in training, where the weight is largest. Defaults to 1e-3.
        weighting: of the loss in training: `"bound"`, p' / p; or `"masked"`, 1 / p, the mean cross entropy of the masked codes.
            With the cosine schedule that dwells on many masks, where drawing begins, as MaskGIT does; with the linear one both
            are the same. Defaults to `"bound"`.
        seed: integer for the random times and masks. Defaults to `None`.

    Call arguments:
        codes: integers `(B, …)`.
        t: times `(B,)` in [0, 1]. Defaults to `sample_times(B)`.
        noise: uniform noise in (0, 1) of the shape of `codes`; a code is masked where it is below p(t). Defaults to
            random noise.
        mask_code: the integer that stands for a mask, usually the number of codes.
        num_levels: number L of levels, where the last axis of `codes` is that of residual codes, level 0 the coarsest.
            Defaults to `None`, codes that are alike.

    Returns:
        Tuple `(masked_codes, masked, t)`: int32 `(B, …)`, bool `(B, …)` and float32 `(B,)`.

    Raises:
        ValueError: if an argument has an impossible value, or shapes do not fit.

    Example:

    ```python
    import numpy as np
    from keras_vqdit.diffusion import MaskedDiffusion

    process = MaskedDiffusion("cosine", seed=0)
    codes = np.random.default_rng(0).integers(0, 512, (8, 7, 7))
    masked_codes, masked, t = process(codes, mask_code=512)
    logits = np.zeros((8, 7, 7, 512), "float32")  # of a network that has learned nothing
    process.loss(logits, codes, masked, t)  # (8,), on average log 512 nats a code
    ```

    References:
        - [Simplified and Generalized Masked Diffusion for Discrete Data](https://arxiv.org/abs/2406.04329)
        - [Simple and Effective Masked Diffusion Language Models](https://arxiv.org/abs/2406.07524)
        - [SoundStorm: Efficient Parallel Audio Generation](https://arxiv.org/abs/2305.09636), of levels
        - [Structured Denoising Diffusion Models in Discrete State-Spaces](https://arxiv.org/abs/2107.03006)
    """

    def __init__(self, schedule="linear", *, min_time=1e-3, weighting="bound", seed=None, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.schedule = one_of("schedule", schedule, SCHEDULES)
        number("min_time", min_time, above=0, below=1)
        self.weighting = one_of("weighting", weighting, WEIGHTINGS)
        self.min_time, self.seed = min_time, seed
        self.seed_generator = keras.random.SeedGenerator(seed)
        self.built = True

    # === Schedule ===

    def mask_probability(self, t):
        """The probability p(t) that a code is masked, float32."""
        return SCHEDULES[self.schedule][0](ops.cast(t, "float32"))

    def weight(self, t, weighting="bound"):
        """The weight of the cross entropy of masked codes, p'(t) / p(t) or 1 / p(t), float32; 0 at t = 0, where none is."""
        t = ops.cast(t, "float32")
        later = ops.maximum(t, 1e-12)
        weight = SCHEDULES[self.schedule][1](later) if weighting == "bound" else 1 / self.mask_probability(later)
        return ops.where(t > 0, weight, 0.0)

    def unmask_probability(self, t, s):
        """The probability that a code which is masked at t is not at s < t: 1 - p(s) / p(t); 0 where none is masked at t."""
        p_t = self.mask_probability(t)
        return ops.where(p_t > 0, 1 - self.mask_probability(s) / ops.maximum(p_t, 1e-30), 0.0)

    def level_times(self, t, num_levels):
        """The time of each level of residual codes, and its share of the bound.

        Args:
            t: times of any shape.
            num_levels: number L of levels.

        Returns:
            Tuple of the levels' times `(…, L)` in [0, 1], from 0 to 1 one after another, the finest (last) level first, and the
            derivative `(…, L)` of each by t, which is L where the level is on its way, else 0.
        """
        before = np.arange(num_levels - 1, -1, -1, dtype="float32")  # how many levels are finer
        own = num_levels * ops.cast(t, "float32")[..., None] - before
        own = ops.where((own > 0) & (own < self.min_time), self.min_time, own)
        return ops.clip(own, 0.0, 1.0), ops.where((own > 0) & (own <= 1), float(num_levels), 0.0)

    def sample_times(self, batch_size):
        """Random training times, float32 (B,): one in each B-th part of [min_time, 1], in random order.

        Spreading the times over the batch lowers the variance of the loss; the random order makes the times of several
        modalities independent.
        """
        offset = uniform((1,), self.seed_generator)
        t = ops.mod((ops.cast(ops.arange(batch_size), "float32") + offset) / ops.cast(batch_size, "float32"), 1.0)
        order = ops.argsort(uniform((batch_size,), self.seed_generator))
        return self.min_time + (1 - self.min_time) * ops.take(t, order, axis=0)

    # === Training ===

    def call(self, codes, t=None, noise=None, *, mask_code, num_levels=None):
        codes = ops.cast(codes, "int32")
        t = call_times(self, t, ops.shape(codes)[0])
        if noise is None:
            noise = uniform(ops.shape(codes), self.seed_generator)
        elif not fits(noise.shape, codes.shape):
            raise ValueError(
                f"`noise` must have the shape of the codes, {tuple(codes.shape)}. Received: shape={tuple(noise.shape)}"
            )
        _check_levels(codes, num_levels)
        own = t if num_levels is None else self.level_times(t, num_levels)[0]
        masked = ops.cast(noise, "float32") < _expand(self.mask_probability(own), codes, num_levels)
        return ops.where(masked, ops.cast(mask_code, "int32"), codes), masked, t

    def loss(self, logits, codes, masked, t, *, num_levels=None, weighting=None):
        """weight(t) Σ_masked cross entropy / number of codes: a bound of the negative log-likelihood, in nats a code.

        Args:
            logits: `(B, …, K)` of any float dtype, for the masked codes; those of others are not read.
            codes: the codes as they were, integers `(B, …)` below K.
            masked: bool `(B, …)`.
            t: times `(B,)`.
            num_levels: as in the call.
            weighting: as in the constructor, and by default that. A bound it is with `"bound"` alone.

        Returns:
            float32 `(B,)`.

        Raises:
            ValueError: if shapes do not fit, or there is no such weighting.
        """
        _check_levels(codes, num_levels)
        if not fits(logits.shape[:-1], codes.shape):
            raise ValueError(
                f"`logits` must be of shape {(*codes.shape, 'K')} for codes of shape {tuple(codes.shape)}. "
                f"Received: shape={tuple(logits.shape)}"
            )
        entropy = cross_entropy(logits, codes)
        axes = tuple(range(1, len(codes.shape)))
        count = math.prod(codes.shape[1:])
        weighting = self.weighting if weighting is None else one_of("weighting", weighting, WEIGHTINGS)
        weight = self.weight(t, weighting)
        if num_levels is not None:
            own, share = self.level_times(t, num_levels)
            weight = share * self.weight(own, weighting)
        return ops.sum(ops.where(masked, _expand(weight, codes, num_levels) * entropy, 0.0), axis=axes) / count

    def compute_output_spec(self, codes, t=None, noise=None, *, mask_code, num_levels=None):
        return (
            keras.KerasTensor(codes.shape, "int32"),
            keras.KerasTensor(codes.shape, "bool"),
            keras.KerasTensor(codes.shape[:1], "float32"),
        )

    def get_config(self):
        return {
            **super().get_config(),
            "schedule": self.schedule,
            "min_time": self.min_time,
            "weighting": self.weighting,
            "seed": self.seed,
        }


def _expand(values, codes, num_levels):
    """Values `(B,)`, or `(B, L)` of levels, with axes for the rest of the codes `(B, …)`, or `(B, …, L)`."""
    if num_levels is None:
        return expand_like(values, codes)
    return ops.reshape(values, (-1, *(1,) * (len(codes.shape) - 2), num_levels))


def _check_levels(codes, num_levels):
    if num_levels is not None and (len(codes.shape) < 2 or codes.shape[-1] != num_levels):
        raise ValueError(
            f"`codes` must be of shape (B, …, num_levels={num_levels}). Received: shape={tuple(codes.shape)}"
        )


def cross_entropy(logits, codes):
    """Cross entropy in nats of integer codes `(…)`, from logits `(…, K)`, in float32."""
    logits = ops.cast(logits, "float32")
    chosen = ops.take_along_axis(logits, ops.cast(codes, "int32")[..., None], axis=-1)[..., 0]
    return ops.logsumexp(logits, axis=-1) - chosen
