"""Samplers of masked diffusion: plain functions that fill in masked codes, a few in each step."""

import math

import numpy as np
from keras import ops

from keras_vqdit.checks import one_of
from keras_vqdit.diffusion.noise import gumbel, uniform

# A step is a function
#   x = step(logits, x, mask_code, process, t, s, i, num_steps, unknown, seed, num_levels=None, **options)
# where
#   logits     (B, N, K), of the network for x
#   x          codes int32 (B, N), some of them `mask_code`; the others stay
#   t, s       the times before and after, scalars
#   i          number of the step, from 0 to num_steps - 1
#   unknown    (B,) how many codes were masked at the start
#   seed       pair: see `standard_normal`
#   num_levels number L of levels of residual codes, which are in the order (position, level); None without


def draw(logits, seed, temperature=1.0, top_p=1.0):
    """Draw a code from each distribution, by the Gumbel-max trick in float32.

    Args:
        logits: `(B, N, K)`.
        seed: as of `standard_normal`.
        temperature: above 0; lower is less random, and 0 takes the likeliest code. A number or a scalar tensor.
        top_p: only the likeliest codes that together have this probability are drawn. Defaults to 1, all.

    Returns:
        Tuple of the codes, int32 `(B, N)`, and the logarithm of their probabilities at temperature 1, float32 `(B, N)`.
    """
    log_p = log_softmax(logits)
    allowed = log_p if isinstance(top_p, (int, float)) and top_p >= 1 else nucleus(log_p, top_p)
    codes = ops.argmax(allowed + temperature * gumbel(ops.shape(log_p), seed), axis=-1)
    return ops.cast(codes, "int32"), ops.take_along_axis(log_p, codes[..., None], axis=-1)[..., 0]


def log_softmax(logits):
    """Logarithms of probabilities, float32."""
    return ops.log_softmax(ops.cast(logits, "float32"), axis=-1)


def nucleus(log_p, top_p):
    """Set to -inf what is not among the likeliest codes whose probabilities add up to `top_p`; the likeliest one stays."""
    ordered = -ops.sort(-log_p, axis=-1)  # the likeliest first
    before = ops.cumsum(ops.exp(ordered), axis=-1) - ops.exp(ordered)  # the probability of those before
    kept = ops.where(before < top_p, ordered, float("inf"))
    lowest = ops.minimum(ops.min(kept, axis=-1, keepdims=True), ordered[..., :1])
    return ops.where(log_p >= lowest, log_p, float("-inf"))


def ancestral_step(
    logits, x, mask_code, process, t, s, i, num_steps, unknown, seed, *, num_levels=None, temperature=1.0, top_p=1.0
):
    """Every masked code is filled in by itself with probability 1 - p(s) / p(t): the exact reverse of the process.

    Drawing a code and drawing whether it is filled in are independent, so that many steps give the distribution that
    the network has learned.
    """
    codes, _ = draw(logits, _stream(seed, 0), temperature, top_p)
    chance = uniform(ops.shape(x), _stream(seed, 1))
    if num_levels is not None:
        t, s = (process.level_times(time, num_levels)[0] for time in (t, s))  # (L,)
    share = process.unmask_probability(t, s)
    if num_levels is not None:
        share = ops.tile(share, x.shape[1] // num_levels)  # (N,)
    filled = (x == mask_code) & (chance < share)
    return ops.where(filled, codes, x)


def confidence_step(
    logits,
    x,
    mask_code,
    process,
    t,
    s,
    i,
    num_steps,
    unknown,
    seed,
    *,
    num_levels=None,
    temperature=1.0,
    top_p=1.0,
    noise=4.5,
):
    """The codes that the network is surest of are filled in; how many, the cosine schedule of MaskGIT (2202.04200) says.

    After step k of n, floor(n₀ cos(π k / 2 n)) of the n₀ codes that were unknown at the start are still masked, at least
    one and at most all but one of those that were masked before it; none after the last step. Of residual codes a coarser
    level comes first, whatever the confidence.

    Args:
        noise: scale of the Gumbel noise on the log-probabilities, which falls to 0 linearly over the steps. Defaults to 4.5.
    """
    codes, log_p = draw(logits, _stream(seed, 0), temperature, top_p)
    masked = x == mask_code
    progress = ops.cast(i + 1, "float32") / ops.cast(num_steps, "float32")
    rank = _rank(log_p + noise * (1 - progress) * gumbel(ops.shape(x), _stream(seed, 1)))
    if num_levels is not None:
        rank = rank - x.shape[1] * np.tile(np.arange(num_levels, dtype="int32"), x.shape[1] // num_levels)
    rank = _rank(ops.where(masked, rank, ops.shape(x)[1]))  # 0: the least sure of those that are masked
    count = ops.sum(ops.cast(masked, "int32"), axis=1)  # (B,)
    left = ops.cast(ops.floor(ops.cast(unknown, "float32") * ops.cos(math.pi / 2 * progress)), "int32")
    left = ops.where(i + 1 < num_steps, ops.clip(left, 1, ops.maximum(count - 1, 1)), 0)
    return ops.where(masked & (rank >= left[:, None]), codes, x)


SAMPLERS = {"ancestral": ancestral_step, "confidence": confidence_step}


def fill_in(sampler, predict, process, codes, mask_codes, num_steps, *, seed, first_example=0, levels=None, **options):
    """Fill in what is masked, in several modalities at once. Codes that are not masked never change.

    It may stand inside a compiled function that takes `num_steps` and `seed` as arguments.

    Args:
        sampler: a name in `SAMPLERS`, or a step function.
        predict: function of the codes, a dict, that returns a dict of logits `(B, N, K)` for each modality that shall be
            filled in.
        process: a `MaskedDiffusion`.
        codes: dict of modalities, int32 `(B, N)`, of which some are the modality's mask code.
        mask_codes: dict of the mask codes of the modalities that shall be filled in; those of others stay masked.
        num_steps: number of steps, a positive integer or a scalar tensor.
        seed: integer or scalar integer tensor.
        first_example: number of the first example among all that are drawn with this seed. Defaults to 0.
        levels: dict of modalities and their numbers L of levels, for residual codes: N is then positions times levels, in this
            order. Defaults to `None`, none.
        **options: of the step: `temperature`, `top_p`, and `noise` of the confidence sampler.

    Returns:
        Dict of all modalities, int32 `(B, N)`.

    Raises:
        ValueError: if the sampler's name is unknown.

    Example:

    ```python
    import numpy as np
    from keras_vqdit.diffusion import MaskedDiffusion, fill_in

    network = lambda codes: {"text": np.zeros((2, 5, 26), "float32")}  # any network
    masked = {"text": np.full((2, 5), 26)}
    letters = fill_in("confidence", network, MaskedDiffusion(), masked, {"text": 26}, num_steps=3, seed=0)["text"]
    ```
    """
    step = sampler if callable(sampler) else SAMPLERS[one_of("sampler", sampler, SAMPLERS)]
    codes = {name: ops.convert_to_tensor(one, "int32") for name, one in codes.items()}
    unknown = {name: ops.sum(ops.cast(codes[name] == mask, "int32"), axis=1) for name, mask in mask_codes.items()}
    steps = ops.cast(num_steps, "float32")
    numbers = {name: number for number, name in enumerate(codes)}  # what is drawn does not depend on what else is

    def body(i, codes):
        logits = predict(codes)
        t, s = 1 - ops.cast(i, "float32") / steps, 1 - ops.cast(i + 1, "float32") / steps
        filled = dict(codes)
        for name, mask in mask_codes.items():
            filled[name] = step(
                logits[name], codes[name], mask, process, t, s, i, num_steps, unknown[name],
                (seed, (i + 1) * len(numbers) + numbers[name], first_example),
                num_levels=(levels or {}).get(name), **options,
            )  # fmt: skip
        return filled

    return ops.fori_loop(0, num_steps, body, codes)


def _stream(seed, number):
    """One of the two streams of random numbers of a step."""
    return (seed[0], 2 * seed[1] + number, *seed[2:])


def _rank(values):
    """The place of each value along the last axis in ascending order."""
    return ops.cast(ops.argsort(ops.argsort(values, axis=-1), axis=-1), "int32")
