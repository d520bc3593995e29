"""Noise schedules, spacings and weights: closed forms, and what diffusers computes."""

from pathlib import Path

import numpy as np
import pytest

from keras_vqdit.diffusion import GaussianDiffusion, RectifiedFlow, schedules

ORACLE = np.load(Path(__file__).parents[1] / "oracles" / "fixtures" / "diffusion_schedules.npz")


@pytest.mark.parametrize("name", ["linear", "cosine", "sigmoid"])
@pytest.mark.parametrize("zero", [False, True])
def test_alpha_bar_equals_diffusers(name, zero):
    process = GaussianDiffusion(name, "v", zero_terminal_snr=zero)
    theirs = ORACLE[f"alpha_bar/{name}/{zero}"]
    assert process.alpha_bar.dtype == np.float64 and process.alpha_bar.shape == (1001,)
    assert process.alpha_bar[0] == 1
    np.testing.assert_allclose(process.alpha_bar[1:], theirs, atol=1e-5)
    if not zero:  # small values too; theirs are products in float32
        np.testing.assert_allclose(process.alpha_bar[1:], theirs, rtol=2e-4)


def test_betas_closed_forms():
    betas = schedules.linear_betas(1000)
    np.testing.assert_allclose(betas, 1e-4 + np.arange(1000) / 999 * (0.02 - 1e-4), rtol=1e-12)
    f = lambda i: np.cos((i / 1000 + 0.008) / 1.008 * np.pi / 2) ** 2  # noqa: E731
    betas = schedules.cosine_betas(1000)
    np.testing.assert_allclose(np.cumprod(1 - betas)[:900], [f(i + 1) / f(0) for i in range(900)], rtol=1e-9)
    assert betas.max() == betas[-1] == 0.999
    betas = schedules.sigmoid_betas(1001)
    np.testing.assert_allclose(betas[500], 1000 / 1001 * (1e-4 + 0.02) / 2, rtol=1e-12)


@pytest.mark.parametrize("betas", schedules.SCHEDULES.values())
def test_schedules_with_few_steps_end_alike(betas):
    """A table of 100 or of 4,000 steps spans the noise levels of one of 1,000, and beta never reaches 1."""
    levels = [np.cumprod(1 - betas(n)) for n in (100, 1000, 4000)]
    for level in levels:
        assert level[-1] < 1e-4 and level[0] > 0.99
        np.testing.assert_allclose(level[len(level) // 2 - 1], levels[1][499], rtol=0.2)
    for n in (2, 3, 10):
        assert 0 < betas(n).min() and betas(n).max() < 1


@pytest.mark.parametrize("name", ["linear", "cosine", "sigmoid"])
def test_zero_terminal_snr(name):
    betas = schedules.SCHEDULES[name](1000)
    before, after = np.cumprod(1 - betas), np.cumprod(1 - schedules.zero_terminal_snr(betas))
    assert after[-1] == 0
    np.testing.assert_allclose(after[0], before[0], rtol=1e-12)
    root = np.sqrt(before)
    expected = (root - root[-1]) * root[0] / (root[0] - root[-1])
    np.testing.assert_allclose(np.sqrt(after[:-1]), expected[:-1], rtol=1e-9)


# === Weights ===


def test_min_snr_weights():
    alpha_bar = np.array([0.0, 1e-9, 0.1, 0.5, 5 / 6, 0.9, 1 - 1e-9])
    snr = alpha_bar / (1 - alpha_bar)
    with np.errstate(all="raise"):
        weight = {p: schedules.min_snr_weight(alpha_bar, 5.0, p) for p in ("clean", "noise", "v")}
    np.testing.assert_allclose(weight["clean"], np.minimum(snr, 5), rtol=1e-12)
    np.testing.assert_allclose(weight["noise"][1:], np.minimum(snr, 5)[1:] / snr[1:], rtol=1e-9)
    np.testing.assert_allclose(weight["v"], np.minimum(snr, 5) / (snr + 1), rtol=1e-7, atol=1e-15)
    for w in weight.values():
        assert w[0] == 0


def test_min_snr_weights_of_a_clean_example_are_finite():
    with np.errstate(all="raise"):
        weights = [float(schedules.min_snr_weight(np.array([1.0]), 5.0, p)[0]) for p in ("clean", "noise", "v")]
    assert weights == [5.0, 0.0, 0.0]


@pytest.mark.parametrize("prediction", ["noise", "clean", "v"])
def test_weight_is_read_at_the_time(prediction):
    process = GaussianDiffusion("cosine", prediction, min_snr_gamma=5.0)
    t = np.array([0.001, 0.25, 0.5, 1.0], "float32")
    expected = schedules.min_snr_weight(process.alpha_bar[[1, 250, 500, 1000]], 5.0, prediction)
    np.testing.assert_allclose(process.weight(t), expected, rtol=1e-6)
    np.testing.assert_array_equal(GaussianDiffusion().weight(t), np.ones(4))
    np.testing.assert_array_equal(RectifiedFlow().weight(t), np.ones(4))


def test_no_weight_without_signal():
    process = GaussianDiffusion("linear", "v", zero_terminal_snr=True, min_snr_gamma=5.0)
    assert float(process.weight(1.0)) == 0


# === Times ===


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_spacings_equal_diffusers(spacing):
    for num_steps in (1, 2, 3, 7, 10, 20, 50, 64, 250, 999, 1000):
        if (spacing, num_steps) == ("linspace", 1):
            continue  # theirs starts from the clean example
        times = GaussianDiffusion().times(num_steps, spacing)
        assert times.dtype == np.float32 and times.shape == (num_steps + 1,) and times[-1] == 0
        index = np.round(times * 1000).astype(int)
        np.testing.assert_array_equal(index[:-1] - 1, ORACLE[f"timesteps/{spacing}/{num_steps}"])


@pytest.mark.parametrize("num_timesteps", [10, 1000, 4000])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_times_decrease_and_hit_the_table(num_timesteps, spacing):
    process = GaussianDiffusion(num_timesteps=num_timesteps)
    for num_steps in {1, 2, 3, 7, 10, num_timesteps // 2 + 1, num_timesteps - 1, num_timesteps}:
        times = process.times(num_steps, spacing)
        index = np.asarray(process.table_index(times))
        np.testing.assert_allclose(times * num_timesteps, index, atol=1e-3)
        assert (np.diff(index) < 0).all() and index[-1] == 0 and index[-2] >= 1
        if spacing != "leading":
            assert times[0] == 1


def test_flow_times():
    np.testing.assert_allclose(RectifiedFlow().times(4), [1, 0.75, 0.5, 0.25, 0])
    np.testing.assert_allclose(RectifiedFlow(shift=3.0).times(4), [1, 2.25 / 2.5, 1.5 / 2, 0.75 / 1.5, 0])
    for shift in (1.0, 3.0):
        np.testing.assert_allclose(RectifiedFlow(shift=shift).times(12), ORACLE[f"flow_times/{shift}"], atol=1e-6)


def test_shift_times():
    t = np.linspace(0, 1, 11)
    np.testing.assert_allclose(schedules.shift_times(t, 3.0), 3 * t / (1 + 2 * t))
    np.testing.assert_array_equal(schedules.shift_times(t, 1.0), t)
    np.testing.assert_allclose(schedules.shift_times(schedules.shift_times(t, 3.0), 1 / 3), t)


@pytest.mark.parametrize(
    "process, arguments, message",
    [
        (GaussianDiffusion(), (10, "even"), "`spacing` must be one of 'leading', 'trailing', 'linspace'. Received"),
        (
            GaussianDiffusion(),
            (0,),
            "`num_steps` must be an integer from 1 to num_timesteps=1000. Received: num_steps=0",
        ),
        (GaussianDiffusion(), (1001,), "Received: num_steps=1001"),
        (GaussianDiffusion(), (2.5,), "Received: num_steps=2.5"),
        (GaussianDiffusion("linear", "v", zero_terminal_snr=True), (10, "leading"), "`spacing` must be 'trailing'"),
        (RectifiedFlow(), (10, "leading"), "`spacing` must be 'trailing' or 'linspace' for a flow"),
        (RectifiedFlow(), (0,), "`num_steps` must be a positive integer. Received: num_steps=0"),
    ],
)
def test_wrong_times_are_told(process, arguments, message):
    with pytest.raises(ValueError) as error:
        process.times(*arguments)
    assert message in str(error.value)
