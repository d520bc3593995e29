"""Each sampler's step against its closed form in float64, and against diffusers."""

from pathlib import Path

import numpy as np
import pytest
from keras import ops

from keras_vqdit.diffusion import (
    SAMPLERS,
    GaussianDiffusion,
    RectifiedFlow,
    ddim_step,
    ddpm_step,
    dpmpp_2m_step,
    euler_step,
    heun_step,
    sample,
    samplers,
    standard_normal,
)
from tests.diffusion.problems import LEVELS, PROCESSES, levels

ORACLE = np.load(Path(__file__).parents[1] / "oracles" / "fixtures" / "diffusion_samplers.npz")
X = np.random.default_rng(3).normal(size=(3, 4, 2)).astype("float32")
SEED = (5, 8)
Z = np.asarray(standard_normal(X.shape, SEED), "float64")  # the noise of a stochastic step

every_process = pytest.mark.parametrize("name", LEVELS)
# Middle, from pure noise, to the clean example, and both.
every_step = pytest.mark.parametrize("t, s", [(0.6, 0.45), (1.0, 0.8), (0.02, 0.0), (1.0, 0.0)])


def clean_at(x, t):
    """Some clean estimate, in NumPy."""
    return np.sin(2 * np.asarray(x, "float64") + t)


def denoise(x, t):
    return ops.sin(2 * x + t), None


def ddim_closed_form(process, x, clean, t, s):
    (a, b), (c, d) = levels(process, t), levels(process, s)
    return c * clean + d * (x - a * clean) / b


# === Closed forms ===


@every_process
@every_step
@pytest.mark.parametrize("eta", [0.0, 0.4, 1.0])
def test_ddim(name, t, s, eta):
    process = PROCESSES[name]()
    (a, b), (c, d) = levels(process, t), levels(process, s)
    clean = clean_at(X, t)
    # Eq. 16, of alpha-bar where variance is preserved; its general form is eta sqrt(small).
    std = eta * d / b * np.sqrt(b**2 - (a / c * d) ** 2)
    if name != "flow":
        paper = np.sqrt((1 - c**2) / (1 - a**2)) * np.sqrt(1 - a**2 / c**2)
        np.testing.assert_allclose(std, eta * paper, rtol=1e-6)
    expected = c * clean + np.sqrt(np.maximum(d**2 - std**2, 0)) * (X - a * clean) / b + std * Z
    y, estimate, memory = ddim_step(denoise, process, X, t, s, None, SEED, eta=eta)
    np.testing.assert_allclose(y, expected, atol=1e-5)
    np.testing.assert_allclose(estimate, clean, atol=1e-6)
    assert memory is None


@every_process
@every_step
@pytest.mark.parametrize("variance", ["small", "large", 0.3, 1.2])
def test_ddpm(name, t, s, variance):
    """Mean and variance of the posterior by Bayes' rule; a number is a learned fraction, which may leave [0, 1]."""
    process = PROCESSES[name]()
    (a, b), (c, d) = levels(process, t), levels(process, s)
    step, noise_variance = a / c, b**2 - (a / c * d) ** 2
    gain = d**2 * step / b**2
    clean = clean_at(X, t)
    mean = c * clean + gain * (X - a * clean)
    small, large = d**2 * (1 - gain * step), noise_variance
    if isinstance(variance, str):
        y, _, _ = ddpm_step(denoise, process, X, t, s, None, SEED, variance=variance)
        expected = {"small": small, "large": large}[variance]
    else:
        y, _, _ = ddpm_step(
            lambda x, t: (ops.sin(2 * x + t), variance * ops.ones_like(x)), process, X, t, s, None, SEED
        )
        expected = large**variance * small ** (1 - variance) if s else 0.0
    np.testing.assert_allclose(y, mean + (np.sqrt(expected) * Z if s else 0), atol=1e-5)


@every_process
def test_dpmpp_2m(name):
    """Four steps over an uneven grid, the formula with its exponentials in float64; then the step to the clean example."""
    process = PROCESSES[name]()
    grid = [0.97, 0.8, 0.55, 0.45, 0.1, 0.0]
    x, y, memory, last = X.astype("float64"), X, None, None
    for t, s in zip(grid, grid[1:]):
        (a, b), (c, d) = levels(process, t), levels(process, s)
        clean = clean_at(x, t)
        if s == 0:
            x = clean
        else:
            h = np.log(c / d) - np.log(a / b)
            extrapolated = clean
            if last is not None:
                r = (np.log(a / b) - last[0]) / h
                extrapolated = (1 + 1 / (2 * r)) * clean - 1 / (2 * r) * last[1]
            x = d / b * x - c * (np.exp(-h) - 1) * extrapolated
        last = (np.log(a / b), clean)
        y, _, memory = dpmpp_2m_step(denoise, process, y, t, s, memory)
        np.testing.assert_allclose(y, x, atol=3e-5)


@pytest.mark.parametrize("name", ["zero_snr", "flow"])
def test_dpmpp_2m_from_pure_noise(name):
    """The log-SNR at t = 1 is -inf: this step and the next one are of order 1, then it takes up speed."""
    process = PROCESSES[name]()
    y, clean, memory = dpmpp_2m_step(denoise, process, X, 1.0, 0.8)
    np.testing.assert_allclose(y, ddim_closed_form(process, X, clean_at(X, 1.0), 1.0, 0.8), atol=1e-6)
    x = np.asarray(y)
    y, clean, memory = dpmpp_2m_step(denoise, process, x, 0.8, 0.6, memory)
    np.testing.assert_allclose(y, ddim_closed_form(process, x, clean_at(x, 0.8), 0.8, 0.6), atol=1e-5)
    x = np.asarray(y)
    y, _, _ = dpmpp_2m_step(denoise, process, x, 0.6, 0.4, memory)
    assert np.abs(y - ddim_closed_form(process, x, clean_at(x, 0.6), 0.6, 0.4)).max() > 1e-3


@every_process
@every_step
def test_euler_and_heun(name, t, s):
    """In y = x / (alpha + sigma) and r = sigma / (alpha + sigma), with the derivative of y by r: noise - clean."""
    process = PROCESSES[name]()
    (a, b), (c, d) = levels(process, t), levels(process, s)
    r, r_next = b / (a + b), d / (c + d)
    if name == "flow":
        np.testing.assert_allclose((r, r_next), (t, s))

    def velocity(x, t):
        a, b = levels(process, t)
        return (x - a * clean_at(x, t)) / b - clean_at(x, t)

    y = X.astype("float64") / (a + b)
    euler = y + (r_next - r) * velocity(X.astype("float64"), t)
    np.testing.assert_allclose(euler_step(denoise, process, X, t, s)[0], euler * (c + d), atol=1e-5)
    heun = euler if s == 0 else y + (r_next - r) * (velocity(X, t) + velocity(euler * (c + d), s)) / 2
    np.testing.assert_allclose(heun_step(denoise, process, X, t, s)[0], heun * (c + d), atol=2e-5)


@every_process
@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("fraction", [None, 1.5])
def test_all_is_finite_and_ends_in_the_clean_estimate_bit_for_bit(name, sampler, fraction):
    """From alpha = 0 to sigma = 0, in one step and in four, with a learned variance that leaves its range too."""
    process = PROCESSES[name]()

    def learned(x, t):
        return ops.sin(2 * x + t), None if fraction is None else fraction * ops.ones_like(x)

    for num_steps in (1, 4):
        states = []
        sample(sampler, learned, process, X, process.times(num_steps), seed=1, callback=states.append)
        assert len(states) == num_steps
        assert all(np.isfinite(state["x"]).all() and np.isfinite(state["clean"]).all() for state in states)
        np.testing.assert_array_equal(states[-1]["x"], states[-1]["clean"])


@every_process
def test_equal_methods(name):
    """Euler in these coordinates is DDIM, a first step of DPM-Solver++(2M) too; DDIM with eta 1 is DDPM."""
    process = PROCESSES[name]()
    for t, s in ((1.0, 0.7), (0.7, 0.3), (0.3, 0.0)):
        ddim = ddim_step(denoise, process, X, t, s)[0]
        for step in (euler_step, dpmpp_2m_step):
            np.testing.assert_allclose(step(denoise, process, X, t, s)[0], ddim, atol=1e-5)
        np.testing.assert_allclose(
            ddim_step(denoise, process, X, t, s, None, SEED, eta=1.0)[0],
            ddpm_step(denoise, process, X, t, s, None, SEED)[0],
            atol=1e-5,
        )


@every_process
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_noise_follows_from_the_clipped_estimate(name, sampler):
    """Clipping in the step equals a denoiser that is clipped itself, and differs from one that is not."""
    process = PROCESSES[name]()
    run = lambda d, **options: sample(sampler, d, process, X, process.times(4)[:-1], seed=2, **options)[0]  # noqa: E731
    clipped = run(denoise, clip=(-0.5, 0.4))
    np.testing.assert_array_equal(clipped, run(lambda x, t: (ops.clip(denoise(x, t)[0], -0.5, 0.4), None)))
    assert np.abs(clipped - run(denoise)).max() > 0.01


EVALUATIONS = {"ddpm": 6, "ddim": 6, "dpmpp_2m": 6, "euler": 6, "heun": 2 * 6 - 1}  # of six steps


@pytest.mark.parametrize("sampler, expected", [(name, EVALUATIONS.get(name)) for name in SAMPLERS])
def test_number_of_network_evaluations(sampler, expected):
    calls = []

    def counted(x, t):
        calls.append(float(t))
        return denoise(x, t)

    process = RectifiedFlow()
    sample(sampler, counted, process, X, process.times(6), seed=0)
    assert len(calls) == expected
    assert min(calls) > 0  # the network never sees the clean end


# === diffusers ===


def network(x, tau):
    """The network of the stored trajectories."""
    return ops.tanh(3 * tau) * x + 0.2 * (1 - tau) * ops.sin(x)


def denoiser(process):
    return lambda x, t: process.denoised(x, network(x, process.network_time(t)), t)


def close(actual, theirs):
    """To 1e-5 of their size; both are float32, theirs with alpha-bar as float32 products."""
    np.testing.assert_allclose(actual, theirs, atol=1e-5 * max(1, np.abs(theirs).max()))


@pytest.mark.parametrize("variance", ["fixed_small", "fixed_large", "learned_range"])
@pytest.mark.parametrize("clip", [False, True])
def test_ddpm_equals_diffusers(variance, clip, monkeypatch):
    monkeypatch.setattr(samplers, "standard_normal", lambda shape, seed: ORACLE["ddpm/noise"])
    process = GaussianDiffusion(learn_variance=variance == "learned_range")
    raw, keys = ORACLE["ddpm/raw"], [k for k in ORACLE if k.startswith(f"ddpm/{variance}/{clip}/")]
    assert len(keys) == 7
    for key in keys:
        num_steps, k = map(int, key.split("/")[-2:])
        times = process.times(num_steps)
        i = int(np.argmin(np.abs(times - (k + 1) / 1000)))
        output = raw if process.learn_variance else raw[..., :3]
        y, _, _ = ddpm_step(
            lambda x, t: process.denoised(x, output, t),  # noqa: B023
            process,
            ORACLE["x"],
            times[i],
            times[i + 1],
            variance="large" if variance == "fixed_large" else "small",
            clip=(-1, 1) if clip else None,
        )
        close(y, ORACLE[key])


def test_ddim_equals_diffusers(monkeypatch):
    noises = ops.convert_to_tensor(ORACLE["ddim/noises"])
    monkeypatch.setattr(samplers, "standard_normal", lambda shape, seed: noises[seed[1] - 1])
    keys = [k for k in ORACLE if k.startswith("ddim/") and k != "ddim/noises"]
    assert len(keys) == 21
    for key in keys:
        schedule, prediction, eta, clip = key.split("/")[1:]
        process = GaussianDiffusion(schedule, prediction)
        y, _, _ = sample(
            "ddim",
            denoiser(process),
            process,
            ORACLE["x"],
            process.times(10),
            eta=float(eta),
            clip=(-1, 1) if clip == "True" else None,
            seed=0,
        )
        close(y, ORACLE[key])


def test_dpmpp_2m_equals_diffusers():
    keys = [k for k in ORACLE if k.startswith("dpmpp_2m/")]
    assert len(keys) == 10
    for key in keys:
        schedule, prediction, num_steps = key.split("/")[1:]
        process = GaussianDiffusion(schedule, prediction)
        y, _, _ = sample("dpmpp_2m", denoiser(process), process, ORACLE["x"], process.times(int(num_steps)))
        close(y, ORACLE[key])


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_samplers_equal_diffusers(shift):
    process = RectifiedFlow(shift=shift)
    y, _, _ = sample("euler", denoiser(process), process, ORACLE["x"], process.times(12))
    close(y, ORACLE[f"flow/euler/{shift}"])
    y, _, _ = sample("heun", denoiser(process), process, ORACLE["x"], ORACLE[f"flow/heun_times/{shift}"])
    close(y, ORACLE[f"flow/heun/{shift}"])


# === Errors ===


@pytest.mark.parametrize(
    "arguments, options, error, message",
    [
        (
            ("plms", denoise),
            {},
            ValueError,
            "`sampler` must be a step function or one of 'ddpm', 'ddim', 'dpmpp_2m', 'eu",
        ),
        (("ddim", denoise), {"eta": 1.5}, ValueError, "`eta` must be a number from 0 to 1. Received: eta=1.5"),
        (
            ("ddpm", denoise),
            {"variance": "tiny"},
            ValueError,
            "`variance` must be 'small' or 'large'. Received: variance",
        ),
        (("euler", denoise), {"eta": 1.0}, TypeError, "unexpected keyword argument 'eta'"),
        (("euler", lambda x, t: x), {}, TypeError, "`denoise` must return a tuple (clean, variance_fraction or None)"),
        (
            ("euler", denoise),
            {"last": 6},
            ValueError,
            "`first` and `last` must satisfy 0 <= first <= last <= len(times)",
        ),
        (("euler", denoise), {"first": 3, "last": 2}, ValueError, "Received: first=3, last=2, len(times)=6"),
        (("euler", denoise), {"first": -1}, ValueError, "Received: first=-1, last=5"),
        (("euler", denoise), {"times": [0.0, 0.5, 1.0]}, ValueError, "`times` must decrease strictly within [0, 1]"),
        (("euler", denoise), {"times": [999, 500, 0]}, ValueError, "Received: times=[999, 500, 0]"),
    ],
)
def test_wrong_arguments_are_told(arguments, options, error, message):
    times = options.pop("times", RectifiedFlow().times(5))
    with pytest.raises(error) as raised:
        sample(*arguments, RectifiedFlow(), X, times, seed=0, **options)
    assert message in str(raised.value)
