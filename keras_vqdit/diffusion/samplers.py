"""Samplers: plain functions on a process's signal and noise levels (alpha, sigma), so each works for every process.

A step takes x at time t to the cleaner time s:

    x, clean, memory = step(denoise, process, x, t, s, memory, seed, **options)

    denoise   function of (x, t) that returns (clean, variance_fraction or None), see `DiffusionProcess.denoised`.
    process   only its `alpha_sigma(t)` is used.
    t, s      float32 scalars, t > s; alpha(t) = 0 and sigma(s) = 0 are fine.
    memory    dict of tensors that a multistep method hands to its next step, see `start`.
    seed      see `standard_normal`; deterministic steps ignore it.
    clip      option of all steps: the range (low, high) of the clean estimate. The noise estimate follows from it.

The step into s = 0 returns the clean estimate itself. `sample` runs many steps, eagerly or inside a compiled program.
"""

import random

import keras
import numpy as np
from keras import ops

from keras_vqdit.checks import fits, known_values
from keras_vqdit.diffusion.gaussian import learned_log_variance
from keras_vqdit.diffusion.noise import standard_normal
from keras_vqdit.diffusion.process import posterior


def start(x):
    """What a multistep sampler remembers before its first step: nothing, said as an estimate at log-SNR -inf."""
    return {"clean": ops.zeros_like(x), "lambda": ops.convert_to_tensor(-np.inf, dtype="float32")}


def estimate(denoise, x, t, clip=None):
    """The network's clean estimate, in float32 and clipped, and its variance fraction."""
    estimates = denoise(x, t)
    if not isinstance(estimates, (tuple, list)):
        raise TypeError(
            f"`denoise` must return a tuple (clean, variance_fraction or None). Received: {type(estimates).__name__}"
        )
    clean, fraction = estimates
    if not fits(clean.shape, x.shape):
        raise ValueError(
            f"`denoise` must return an estimate of the shape of x, {tuple(x.shape)}. Received: {tuple(clean.shape)}"
        )
    clean = ops.cast(clean, "float32")
    return (clean if clip is None else ops.clip(clean, *clip)), fraction


# === The steps ===


def ddpm_step(denoise, process, x, t, s, memory=None, seed=None, *, variance="small", clip=None):
    """Ancestral step of DDPM (2006.11239), algorithm 2: a draw from the posterior of the clean estimate.

    `variance` is `"small"` (beta tilde) or `"large"` (beta); not used where `denoise` returns a learned fraction.
    """
    if variance not in ("small", "large"):
        raise ValueError(f"`variance` must be 'small' or 'large'. Received: variance={variance!r}")
    (alpha_t, sigma_t), (alpha_s, sigma_s) = process.alpha_sigma(t), process.alpha_sigma(s)
    clean, fraction = estimate(denoise, x, t, clip)
    q = posterior(alpha_t, sigma_t, alpha_s, sigma_s)
    if fraction is None:
        std = ops.sqrt(getattr(q, variance))
    else:
        log_variance = learned_log_variance(ops.cast(fraction, "float32"), ops.log(q.small), ops.log(q.large))
        std = ops.exp(0.5 * log_variance)
    std = ops.where(sigma_s > 0, std, 0.0)  # no noise in the last step
    x = q.from_x * x + q.from_clean * clean + std * standard_normal(ops.shape(x), seed)
    return x, clean, memory


def ddim_step(denoise, process, x, t, s, memory=None, seed=None, *, eta=0.0, clip=None):
    """DDIM (2010.02502), eq. 12: along the same noise for `eta` 0, an ancestral step for `eta` 1."""
    if not 0 <= eta <= 1:
        raise ValueError(f"`eta` must be a number from 0 to 1. Received: eta={eta}")
    (alpha_t, sigma_t), (alpha_s, sigma_s) = process.alpha_sigma(t), process.alpha_sigma(s)
    clean, _ = estimate(denoise, x, t, clip)
    noise = (x - alpha_t * clean) / sigma_t
    q = posterior(alpha_t, sigma_t, alpha_s, sigma_s)
    std = eta * ops.sqrt(q.small)  # eq. 16
    # sqrt(sigma_s^2 - std^2), as a sum: the difference vanishes for eta = 1 from pure noise.
    kept = ops.sqrt((1 - eta**2) * sigma_s**2 + (eta * q.from_x * sigma_t) ** 2)
    x = alpha_s * clean + kept * noise
    if eta > 0:
        x = x + std * standard_normal(ops.shape(x), seed)
    return x, clean, memory


def dpmpp_2m_step(denoise, process, x, t, s, memory=None, seed=None, *, clip=None):
    """DPM-Solver++(2M) (2211.01095), algorithm 2: the clean estimate is extrapolated from the last two.

    The first step is of order 1, as are those from alpha = 0, after it, and to sigma = 0: the log-SNR is infinite there.
    """
    memory = memory or start(x)
    (alpha_t, sigma_t), (alpha_s, sigma_s) = process.alpha_sigma(t), process.alpha_sigma(s)
    lambda_t, lambda_s = ops.log(alpha_t) - ops.log(sigma_t), ops.log(alpha_s) - ops.log(sigma_s)
    clean, _ = estimate(denoise, x, t, clip)
    h, h_last = lambda_s - lambda_t, lambda_t - memory["lambda"]
    extra = ops.where(ops.isfinite(h), h / (2 * h_last), 0.0)  # 1 / (2 r), and 0 where h_last is infinite
    extrapolated = (1 + extra) * clean - extra * memory["clean"]
    # -alpha_s (exp(-h) - 1) without the exponential.
    x = sigma_s / sigma_t * x + (alpha_s - alpha_t * sigma_s / sigma_t) * extrapolated
    return x, clean, {"clean": clean, "lambda": lambda_t}


def euler_step(denoise, process, x, t, s, memory=None, seed=None, *, clip=None):
    """Euler step of the probability flow, in the coordinates of the rectified flow. Equals DDIM with `eta` 0."""
    (r, scale), (r_next, scale_next) = flow_coordinates(process, t), flow_coordinates(process, s)
    clean, _ = estimate(denoise, x, t, clip)
    y = straight_line(x / scale, clean, r, r_next)
    return scale_next * y, clean, memory


def heun_step(denoise, process, x, t, s, memory=None, seed=None, *, clip=None):
    """Heun step of the probability flow (2206.00364), algorithm 1, in the coordinates of the rectified flow.

    Evaluates the network twice, in the last step (to sigma = 0) once: N steps cost 2N - 1 evaluations.
    """
    (r, scale), (r_next, scale_next) = flow_coordinates(process, t), flow_coordinates(process, s)
    clean, _ = estimate(denoise, x, t, clip)
    y = x / scale
    y_euler = straight_line(y, clean, r, r_next)

    def correct():
        clean_next, _ = estimate(denoise, scale_next * y_euler, s, clip)
        velocity, velocity_next = (y - clean) / r, (y_euler - clean_next) / r_next
        return y + (r_next - r) * (velocity + velocity_next) / 2

    y = ops.cond(r_next > 0, correct, lambda: y_euler)
    return scale_next * y, clean, memory


SAMPLERS = {
    "ddpm": ddpm_step,
    "ddim": ddim_step,
    "dpmpp_2m": dpmpp_2m_step,
    "euler": euler_step,
    "heun": heun_step,
}
"""The samplers by name, as `sample` and `LatentDiffusion.generate` take them."""


def flow_coordinates(process, t):
    """Time r and scale in which any process is a rectified flow: y = x / scale = (1 - r) x0 + r noise."""
    alpha, sigma = process.alpha_sigma(t)
    return sigma / (alpha + sigma), alpha + sigma


def straight_line(y, clean, r, r_next):
    """`y + (r_next - r) velocity` with velocity = (y - clean) / r, exactly `clean` at r_next = 0."""
    return clean + r_next / r * (y - clean)


# === Many steps ===


def sample(
    sampler,
    denoise,
    process,
    x,
    times,
    *,
    first=0,
    last=None,
    memory=None,
    seed=None,
    first_example=0,
    callback=None,
    **options,
):
    """Run the steps `times[first] -> ... -> times[last]` of a sampler.

    Without a callback the steps are one `keras.ops.fori_loop`, so the call may stand inside a compiled function that
    takes `times`, `first`, `last` and `seed` as arguments: with times padded to a fixed length, one program serves
    every number of steps. A run in chunks, each given the `x` and `memory` of the one before, equals the run in one
    piece, also where noise is drawn: that depends on `seed`, the number of the step and that of the example alone.

    Args:
        sampler: a name in `SAMPLERS`, or a step function.
        denoise: function of x (B, ...) and the scalar time t that returns `(clean, variance_fraction or None)`.
        process: the diffusion process, a `DiffusionProcess`.
        x: where to start: standard normal noise for t = 1. (B, ...).
        times: decreasing times (N + 1,) or longer, see `process.times`; what follows `times[last]` is not read.
        first: number of the first step. Defaults to 0.
        last: where to stop, exclusive. Defaults to N, the length of `times` less 1.
        memory: what the chunk before returned. Defaults to `None`, a fresh start.
        seed: integer, scalar integer tensor or `keras.random.SeedGenerator`. Defaults to `None`, a random one (drawn
            when a compiled function is traced, so give one there).
        first_example: number of the first example of `x` among all that are drawn with this seed, an integer or scalar
            tensor. Parts of a batch then get the noise that they get in the whole. Defaults to 0.
        callback: function of a dict `{"i", "t", "s", "x", "clean"}`, called after every step; makes the loop a
            Python one.
        **options: options of the step, such as `eta` or `clip`.

    Returns:
        Tuple `(x, clean, memory)`: x at `times[last]`, the last clean estimate (zeros if there was no step), and what
        the next chunk needs.

    Raises:
        ValueError: if the sampler's name is unknown, the steps lie outside `times`, or `times` do not decrease.

    Example:

    ```python
    import keras
    from keras_vqdit.diffusion import RectifiedFlow, sample

    process = RectifiedFlow()
    network = lambda x, t: x - 0.5  # any network that predicts a velocity
    denoise = lambda x, t: process.denoised(x, network(x, process.network_time(t)), t)
    noise = keras.random.normal((4, 2), seed=0)
    x, clean, memory = sample("heun", denoise, process, noise, process.times(20))
    ```
    """
    step = _get_step(sampler)
    first, last = _index(first), len(times) - 1 if last is None else _index(last)
    _check_times(times, first, last)
    x, times = ops.cast(x, "float32"), ops.convert_to_tensor(times, "float32")
    seed = _base_seed(seed)

    def body(i, state):
        x, _, memory = state
        t, s = ops.take(times, i, axis=0), ops.take(times, i + 1, axis=0)
        return step(denoise, process, x, t, s, memory, (seed, i + 1, first_example), **options)

    state = (x, ops.zeros_like(x), start(x) if memory is None else memory)
    if callback is None:
        return ops.fori_loop(first, last, body, state)
    for i in range(int(first), int(last)):
        state = body(i, state)
        callback({"i": i, "t": float(times[i]), "s": float(times[i + 1]), "x": state[0], "clean": state[1]})
    return state


def _index(i):
    return int(i) if isinstance(i, (int, np.integer)) else ops.cast(i, "int32")


def _base_seed(seed):
    if seed is None:
        return random.randint(1, 10**9)  # as a SeedGenerator without a seed; follows keras.utils.set_random_seed
    if isinstance(seed, keras.random.SeedGenerator):
        return keras.random.randint((), 0, 2**31 - 1, seed=seed)
    return seed


def _get_step(sampler):
    if callable(sampler):
        return sampler
    if sampler not in SAMPLERS:
        raise ValueError(
            f"`sampler` must be a step function or one of {', '.join(map(repr, SAMPLERS))}. "
            f"Received: sampler={sampler!r}"
        )
    return SAMPLERS[sampler]


def _check_times(times, first, last):
    """Check what is known before the program runs."""
    if not (isinstance(first, int) and isinstance(last, int)):
        return
    if not 0 <= first <= last <= len(times) - 1:
        raise ValueError(
            f"`first` and `last` must satisfy 0 <= first <= last <= len(times) - 1. "
            f"Received: first={first}, last={last}, len(times)={len(times)}"
        )
    values = known_values(times)
    if values is not None:
        used = values[first : last + 1]
        if not (np.all(np.diff(used) < 0) and np.all((used >= 0) & (used <= 1))):
            raise ValueError(f"`times` must decrease strictly within [0, 1]. Received: times={times}")
