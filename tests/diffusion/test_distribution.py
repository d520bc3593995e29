"""With an exact denoiser every sampler draws from the right distribution, at its order of convergence."""

import numpy as np
import pytest
import tensorflow as tf

from keras_vqdit.diffusion import SAMPLERS, ddpm_step, sample, standard_normal
from tests.diffusion.problems import LEVELS, PROCESSES, Gaussian, Mixture, levels

every_process = pytest.mark.parametrize("name", LEVELS)

# Statistical tolerances for 10,000 samples, at 4.5 standard errors: 0.0225 for a weight of 0.5; 0.042 for the mean of the
# smallest component (2,000 samples, deviation up to 0.42); 4.5 sqrt(2 / 2000) = 14 % for its covariance. The samplers' own error
# comes on top, which the numbers of steps below keep near 0.015 in the means and 5 % in the covariances.
COUNT = 10_000
TOLERANCE = {"weights": 0.025, "means": 0.055, "covariances": 0.18}
# (number of steps, options) of the runs of every sampler, and the range of its order of convergence where it is deterministic.
RUNS = {
    "ddpm": [(100, {}), (100, {"variance": "large"})],
    "ddim": [(70, {}), (90, {"eta": 0.5})],
    "dpmpp_2m": [(30, {})],
    "euler": [(70, {})],
    "heun": [(25, {})],
}
ORDERS = {"ddpm": None, "ddim": (0.96, 1.02), "dpmpp_2m": (1.8, 2.2), "euler": (0.96, 1.02), "heun": (1.95, 2.1)}


def quadratic_times(num_steps):
    """Steps that shrink towards the data, where the components have to be told apart; on the table of 1,000 entries."""
    index = np.unique(np.round(1000 * np.linspace(0, 1, num_steps + 1) ** 2))
    return (index[::-1] / 1000).astype("float32")


def test_every_sampler_is_put_to_the_test():
    assert set(RUNS) == set(ORDERS) == set(SAMPLERS)


def test_tolerances_fit_the_number_of_samples():
    """Exact draws pass; draws 5 % too far out, with a little noise, or short of some of a component do not."""
    mixture = Mixture()
    exact = mixture.draw(COUNT, seed=0)
    assert all(mixture.errors(exact)[key] < TOLERANCE[key] for key in TOLERANCE)
    assert mixture.errors(1.05 * exact)["means"] > TOLERANCE["means"]
    noisy = exact + 0.13 * np.random.default_rng(1).normal(size=exact.shape)
    assert mixture.errors(noisy)["covariances"] > TOLERANCE["covariances"]
    assert mixture.errors(exact[(exact[:, 0] < 0.7) | (np.arange(COUNT) % 9 > 0)])["weights"] > TOLERANCE["weights"]


@every_process
@pytest.mark.parametrize("sampler, num_steps, options", [(name, *run) for name, runs in RUNS.items() for run in runs])
def test_mixture(name, sampler, num_steps, options):
    mixture, process = Mixture(), PROCESSES[name]()
    denoise = mixture.denoiser(process)
    x = standard_normal((COUNT, 2), seed=11)
    run = tf.function(lambda x, times: sample(sampler, denoise, process, x, times, seed=1, **options)[0])
    errors = mixture.errors(run(x, tf.constant(quadratic_times(num_steps))))
    assert all(errors[key] < TOLERANCE[key] for key in TOLERANCE), errors


@every_process
@pytest.mark.parametrize("sampler, order", [(name, order) for name, order in ORDERS.items() if order])
def test_order_of_convergence(name, sampler, order):
    """From N = 20 to 160 steps the error falls as N^-1 or N^-2; measured against the flow's exact solution on normal data.

    Between t = 0.9 and 0.1, where the levels are smooth and the steps fall on the table's entries.
    """
    problem, process = Gaussian(), PROCESSES[name]()
    denoise = problem.denoiser(process)
    x = standard_normal((256, 2), seed=11)
    exact = problem.flow(x, process, 0.9, 0.1)
    run = tf.function(lambda x, times: sample(sampler, denoise, process, x, times)[0], reduce_retracing=True)
    errors = []
    for num_steps in (20, 160):
        y = run(x, tf.constant(np.linspace(0.9, 0.1, num_steps + 1), tf.float32))
        errors.append(np.sqrt(np.mean((y - exact) ** 2)))
    measured = np.log(errors[0] / errors[1]) / np.log(8)
    assert order[0] < measured < order[1], (measured, errors)


@every_process
def test_second_order_pays(name):
    """Twenty steps of DPM-Solver++(2M) from pure noise to the data beat forty of Euler, though both end in a step of order 1."""
    problem, process = Gaussian(), PROCESSES[name]()
    denoise = problem.denoiser(process)
    x = standard_normal((256, 2), seed=11)
    exact = problem.flow(x, process, 1.0, 0.0)

    def error(sampler, num_steps):
        y = sample(sampler, denoise, process, x, quadratic_times(num_steps))[0]
        return np.sqrt(np.mean((y - exact) ** 2))

    assert error("dpmpp_2m", 20) < 0.8 * error("euler", 40)


@every_process
def test_ddpm_variance_on_normal_data(name):
    """Five coarse steps with the exact denoiser.

    With the reverse variance that a network should learn, small + from_clean^2 Var(x0 | x_t), every state has the exact mean
    and variance, however few the steps. The small variance gives less and the large one more or less, by a recursion known
    in closed form. 40,000 samples: a variance within 4.5 standard errors of sqrt(2 / 40000), a mean of 1 / sqrt(40000).
    """
    problem, process = Gaussian(), PROCESSES[name]()
    times = np.array([1.0, 0.8, 0.55, 0.3, 0.1], "float32")
    for variance in ("learned", "small", "large"):
        x = standard_normal((40_000, 2), seed=12)
        v = np.ones(2)
        m = np.zeros(2)
        for i, (t, s) in enumerate(zip(times, times[1:])):
            (a, b), (c, d) = levels(process, t), levels(process, s)
            large = b**2 - (a / c * d) ** 2
            small, from_x, from_clean = large * d**2 / b**2, a / c * d**2 / b**2, c * large / b**2
            total = a**2 * problem.std**2 + b**2
            slope, rest = a * problem.std**2 / total, problem.std**2 * b**2 / total  # of E[x0 | x_t], and Var(x0 | x_t)
            learned = small + from_clean**2 * rest
            fraction = (np.log(learned) - np.log(small)) / (np.log(large) - np.log(small))
            denoise = problem.denoiser(process, None if variance != "learned" else lambda t: fraction)  # noqa: B023
            x, _, _ = ddpm_step(
                denoise, process, x, t, s, None, (3, i), variance=variance if variance != "learned" else "small"
            )
            used = {"learned": learned, "small": small, "large": large}[variance]
            v = (from_x + from_clean * slope) ** 2 * v + used
            m = (from_x + from_clean * slope) * m + from_clean * problem.mean * (1 - a * slope)
            np.testing.assert_allclose(np.var(x, 0), v, rtol=4.5 * np.sqrt(2 / 40_000))
            np.testing.assert_allclose(np.mean(x, 0), m, atol=4.5 * np.sqrt(v.max() / 40_000))
        exact = c**2 * problem.std**2 + d**2
        if variance == "learned":
            # The walk starts from N(0, 1), which is the noised data at t = 1 up to alpha = 0.006.
            np.testing.assert_allclose(v, exact, rtol=1e-3)
        elif variance == "small":
            assert (v < exact).all()
