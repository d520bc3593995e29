"""Sampling as one compiled program: its arguments count, chunks join without a seam, noise belongs to seed and step."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import ops

from keras_vqdit.diffusion import SAMPLERS, GaussianDiffusion, RectifiedFlow, sample, standard_normal
from keras_vqdit.diffusion.samplers import start

X = standard_normal((3, 4, 2), seed=5)
LENGTH = 32
RUNS = [*((name, {}) for name in SAMPLERS), ("ddim", {"eta": 0.7})]
PROCESSES = {
    "gaussian": GaussianDiffusion("cosine", "v", zero_terminal_snr=True),
    "flow": RectifiedFlow(shift=2.0),
}


def denoise(x, t):
    return ops.sin(2 * x + t), None


def padded(times):
    """What follows the last time must not be read: it is nonsense here."""
    return tf.constant(np.pad(times, (0, LENGTH - len(times)), constant_values=np.nan))


def compiled(sampler, process, denoise=denoise, **options):
    @tf.function(jit_compile=True)
    def run(x, times, first, last, memory, seed):
        return sample(
            sampler, denoise, process, x, times, first=first, last=last, memory=memory, seed=seed, **options
        )  # fmt: skip

    return lambda x, times, first, last, memory, seed: run(
        x, times, tf.constant(first), tf.constant(last), memory, tf.constant(seed)
    ), run


@pytest.mark.parametrize(
    "sampler, options, process",
    [*((*run, "gaussian") for run in RUNS), ("dpmpp_2m", {}, "flow"), ("heun", {}, "flow")],
)
def test_one_program_serves_all_schedules_seeds_and_chunks(sampler, options, process):
    process = PROCESSES[process]
    run, program = compiled(sampler, process, **options)
    for num_steps, seed in ((7, 1), (20, 2)):
        times = process.times(num_steps)
        eager, eager_clean, _ = sample(sampler, denoise, process, X, times, seed=seed, **options)
        whole, clean, _ = run(X, padded(times), 0, num_steps, start(X), seed)
        np.testing.assert_allclose(whole, eager, atol=1e-5)
        np.testing.assert_allclose(clean, eager_clean, atol=1e-5)
        x, memory = X, start(X)
        for first, last in ((0, 1), (1, 4), (4, 4), (4, num_steps)):
            x, clean, memory = run(x, padded(times), first, last, memory, seed)
        np.testing.assert_array_equal(x, whole)
    assert program.experimental_get_tracing_count() == 1


@pytest.mark.parametrize("sampler, options", RUNS)
def test_chunks_in_python_too(sampler, options):
    process = RectifiedFlow()
    times = process.times(6)
    whole, _, _ = sample(sampler, denoise, process, X, times, seed=3, **options)
    x, memory = X, None
    for first, last in ((0, 2), (2, 3), (3, 6)):
        x, _, memory = sample(
            sampler, denoise, process, x, times, first=first, last=last, memory=memory, seed=3, **options
        )  # fmt: skip
    np.testing.assert_array_equal(x, whole)


def test_memory_matters():
    """What the tests of chunks rest upon: without its memory a chunk of a multistep method goes elsewhere."""
    process = RectifiedFlow()
    times = process.times(6)
    x, _, memory = sample("dpmpp_2m", denoise, process, X, times, last=3)
    with_memory = sample("dpmpp_2m", denoise, process, x, times, first=3, memory=memory)[0]
    assert np.abs(with_memory - sample("dpmpp_2m", denoise, process, x, times, first=3)[0]).max() > 1e-3


def test_callback_sees_every_step():
    process, seen = RectifiedFlow(), []
    times = process.times(5)
    x, clean, _ = sample("heun", denoise, process, X, times, first=1, callback=seen.append)
    assert [state["i"] for state in seen] == [1, 2, 3, 4]
    np.testing.assert_allclose([[state["t"], state["s"]] for state in seen], list(zip(times[1:], times[2:])))
    np.testing.assert_array_equal(seen[-1]["x"], x)
    np.testing.assert_array_equal(seen[-1]["clean"], clean)
    np.testing.assert_allclose(sample("heun", denoise, process, X, times, first=1)[0], x, atol=1e-6)


# === Seeds ===


@pytest.mark.parametrize("sampler, options", [("ddpm", {}), ("ddim", {"eta": 1.0})])
def test_seed_decides_the_noise(sampler, options):
    process = RectifiedFlow()
    draw = lambda seed: np.asarray(sample(sampler, denoise, process, X, process.times(4)[:-1], seed=seed, **options)[0])  # noqa: E731
    np.testing.assert_array_equal(draw(1), draw(1))
    np.testing.assert_array_equal(draw(1), draw(tf.constant(1)))
    assert np.abs(draw(1) - draw(2)).min() > 1e-5
    generator = keras.random.SeedGenerator(1)
    first, second = draw(generator), draw(generator)
    assert np.abs(first - second).min() > 1e-5
    np.testing.assert_array_equal(first, draw(keras.random.SeedGenerator(1)))
    assert np.abs(draw(None) - draw(None)).min() > 1e-5
    keras.utils.set_random_seed(4)
    again = draw(None)
    keras.utils.set_random_seed(4)
    np.testing.assert_array_equal(again, draw(None))


def test_deterministic_samplers_ignore_the_seed():
    process = RectifiedFlow()
    for sampler in ("ddim", "dpmpp_2m", "euler", "heun"):
        a, b = (sample(sampler, denoise, process, X, process.times(4), seed=seed)[0] for seed in (1, 2))
        np.testing.assert_array_equal(a, b)


def test_steps_draw_different_noise():
    """A denoiser that says 0 leaves sums of the steps' noises: they are as large as independent ones."""
    process = RectifiedFlow()
    x = ops.zeros((20_000,))
    times = np.array([1.0, 0.9, 0.8, 0.7, 0.6], "float32")
    states = []
    sample("ddpm", lambda x, t: (0 * x, None), process, x, times, seed=0, callback=lambda s: states.append(s["x"]))
    noises = [np.asarray(states[0])]
    for i in range(1, 4):
        gain = ((1 - times[i]) / (1 - times[i + 1])) * times[i + 1] ** 2 / times[i] ** 2
        noises.append(np.asarray(states[i]) - gain * np.asarray(states[i - 1]))
    correlation = np.corrcoef(noises) - np.eye(4)
    assert np.abs(correlation).max() < 4.5 / np.sqrt(20_000)


# === Precision ===


@pytest.mark.parametrize("sampler, dtype", [*((name, "bfloat16") for name in SAMPLERS), ("dpmpp_2m", "float16")])
def test_half_precision_network_keeps_a_float32_state(sampler, dtype):
    """The loop's carry does not change its type, and the state is as exact as the estimates are."""

    def half(x, t):
        clean = ops.cast(denoise(ops.cast(x, dtype), ops.cast(t, dtype))[0], dtype)
        return clean, ops.full_like(clean, 0.25) if sampler == "ddpm" else None

    def full(x, t):
        clean, fraction = half(x, t)
        return ops.cast(clean, "float32"), None if fraction is None else ops.cast(fraction, "float32")

    process = RectifiedFlow()
    run = tf.function(lambda d, x, times: sample(sampler, d, process, x, times, seed=1))
    x, clean, memory = run(half, ops.cast(X, dtype), tf.constant(process.times(5)))
    assert x.dtype == clean.dtype == memory["clean"].dtype == tf.float32
    exact, _, _ = run(full, ops.cast(ops.cast(X, dtype), "float32"), tf.constant(process.times(5)))
    np.testing.assert_allclose(x, exact, atol=1e-6)


def test_a_model_in_mixed_precision_denoises():
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        network = keras.Sequential([keras.Input((4, 2)), keras.layers.Dense(8, "tanh"), keras.layers.Dense(4)])
    finally:
        keras.config.set_dtype_policy("float32")
    process = GaussianDiffusion("linear", "v", learn_variance=True)
    run, _ = compiled("ddpm", process, lambda x, t: process.denoised(x, network(x), t))
    x, _, _ = run(X, padded(process.times(6)), 0, 6, start(X), 1)
    assert x.dtype == tf.float32 and np.isfinite(x).all()
