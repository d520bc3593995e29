"""Masked diffusion against what can be enumerated: the bound, the process and its samplers."""

import itertools
import math

import numpy as np
import pytest
from keras import ops

from keras_vqdit.diffusion import MaskedDiffusion, confidence_step, fill_in
from keras_vqdit.diffusion.masked import SCHEDULES
from keras_vqdit.diffusion.unmasking import SAMPLERS, draw, nucleus
from keras_vqdit.training import compile_function

LENGTH, CODES = 3, 3
MASK = CODES
EVERY = np.array(list(itertools.product(range(CODES), repeat=LENGTH)))  # (27, 3)
STATES = list(itertools.product(range(CODES + 1), repeat=LENGTH))  # with masks


def index(x):
    """The row of a state in STATES."""
    return sum(x[..., i] * (CODES + 1) ** (LENGTH - 1 - i) for i in range(LENGTH))


@pytest.fixture(scope="module")
def distribution():
    return np.random.default_rng(0).dirichlet(np.full(len(EVERY), 0.5))


@pytest.fixture(scope="module")
def exact(distribution):
    """The exact network: log p(x_i | the codes that are not masked), (64, 3, 3)."""
    table = np.zeros((len(STATES), LENGTH, CODES))
    for row, state in enumerate(STATES):
        fits = np.all((EVERY == state) | (np.array(state) == MASK), axis=1)
        for i, code in itertools.product(range(LENGTH), range(CODES)):
            table[row, i, code] = distribution[fits & (EVERY[:, i] == code)].sum() / distribution[fits].sum()
    return np.log(np.maximum(table, 1e-30))


def any_order(table, x):
    """-log-likelihood of filling in x one code at a time, on average over all orders."""
    total = 0.0
    for order in itertools.permutations(range(LENGTH)):
        state = np.full(LENGTH, MASK)
        for i in order:
            logits = table[index(state), i]
            total -= logits[x[i]] - np.log(np.exp(logits).sum())
            state[i] = x[i]
    return total / math.factorial(LENGTH)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_bound_is_the_likelihood_in_any_order(schedule):
    """For any network, not for the exact one alone: integrated over all times and masks, to 1e-6."""
    table = np.random.default_rng(1).normal(size=(len(STATES), LENGTH, CODES))
    process = MaskedDiffusion(schedule)
    nodes, weights = np.polynomial.legendre.leggauss(40)
    nodes, weights = (nodes + 1) / 2, weights / 2
    masks = np.array(list(itertools.product([False, True], repeat=LENGTH)))  # (8, 3)
    p = np.float64(process.mask_probability(nodes))
    chance = np.prod(np.where(masks[None], p[:, None, None], 1 - p[:, None, None]), axis=-1)  # (40, 8)
    t, masked = np.repeat(nodes, 8), np.tile(masks, (40, 1))
    for x in EVERY[::5]:
        codes = np.broadcast_to(x, masked.shape)
        given, found, _ = process(codes, t, np.where(masked, 1e-9, 1 - 1e-7).astype("float32"), mask_code=MASK)
        np.testing.assert_array_equal(found, masked)
        loss = np.float64(process.loss(table[index(np.array(given))].astype("float32"), codes, found, t))
        bound = np.sum(weights * np.sum(chance * loss.reshape(40, 8), axis=1)) * LENGTH
        assert bound == pytest.approx(any_order(table, x), rel=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_bound_of_levels_is_the_likelihood_from_coarse_to_fine(schedule):
    """Two positions of two levels: the coarse codes in any order, then the fine ones; for any network, to 1e-6."""
    states = 4 * (CODES + 1,)
    table = np.random.default_rng(1).normal(size=(*states, 4, CODES))
    process = MaskedDiffusion(schedule, min_time=1e-9)
    nodes, weights = np.polynomial.legendre.leggauss(20)
    nodes, weights = np.concatenate([(nodes + 1) / 4, (nodes + 3) / 4]), np.tile(weights / 4, 2)  # of both halves
    masks = np.array(list(itertools.product([False, True], repeat=4)))  # (16, 4)
    own, share = (np.float64(one) for one in process.level_times(nodes, 2))
    np.testing.assert_allclose(own[:, 0], np.clip(2 * nodes - 1, 0, 1), atol=1e-6)
    np.testing.assert_allclose(own[:, 1], np.clip(2 * nodes, 0, 1), atol=1e-6)
    np.testing.assert_array_equal(share, np.where(nodes[:, None] > 0.5, [2, 0], [0, 2]))
    p = np.tile(np.float64(process.mask_probability(own)), 2)  # (40, 4)
    chance = np.prod(np.where(masks[None], p[:, None], 1 - p[:, None]), axis=-1)  # (40, 16)
    t, masked = np.repeat(nodes, 16), np.tile(masks, (40, 1)).reshape(-1, 2, 2)

    def in_order(x, order):
        state, total = np.full(4, MASK), 0.0
        for i in order:
            logits = table[tuple(state)][i]
            total -= logits[x[i]] - np.log(np.exp(logits).sum())
            state[i] = x[i]
        return total

    for x in np.random.default_rng(2).integers(0, CODES, (3, 4)):
        codes = np.broadcast_to(x.reshape(2, 2), masked.shape)
        given = np.where(masked, MASK, codes).reshape(-1, 4)
        logits = table[tuple(given.T)].reshape(-1, 2, 2, CODES).astype("float32")
        loss = np.float64(process.loss(logits, codes, masked, t, num_levels=2))
        bound = np.sum(weights * np.sum(chance * loss.reshape(40, 16), axis=1)) * 4
        orders = [a + b for a in [(0, 2), (2, 0)] for b in [(1, 3), (3, 1)]]
        assert bound == pytest.approx(np.mean([in_order(x, order) for order in orders]), rel=1e-6)


def test_levels_are_masked_and_filled_in_one_after_another():
    process = MaskedDiffusion(seed=0)
    codes = np.zeros((4, 20_000, 2), "int32")
    given, masked, _ = process(codes, np.array([0.1, 0.5, 0.75, 1.0]), mask_code=7, num_levels=2)
    np.testing.assert_allclose(np.array(masked).mean(axis=1), [[0, 0.2], [0, 1], [0.5, 1], [1, 1]], atol=0.02)
    with pytest.raises(ValueError, match=r"`codes` must be of shape \(B, …, num_levels=3\)"):
        process(codes, mask_code=7, num_levels=3)

    for sampler, number in (("ancestral", 8), ("confidence", 8)):
        start = {"a": np.full((64, 12), 6)}
        filled = fill_in(sampler, uniform_network, process, start, {"a": 6}, number, seed=1, levels={"a": 2})
        assert np.all(np.array(filled["a"]) < 6)
        x = ops.full((64, 12), 6, "int32")
        for i in range(number):
            times = (1 - i / number, 1 - (i + 1) / number)
            unknown, logits = ops.full((64,), 12), ops.zeros((64, 12, 6))
            x = SAMPLERS[sampler](logits, x, 6, process, *times, i, number, unknown, (1, i, 0), num_levels=2)
            coarse, fine = np.moveaxis(np.array(x).reshape(64, 6, 2) == 6, -1, 0)
            assert np.all(fine.sum(1)[coarse.any(1)] == 6)
        assert not coarse.any() and not fine.any()


def test_schedules():
    t = np.linspace(0.001, 1, 50)
    for name in SCHEDULES:
        process = MaskedDiffusion(name)
        p = np.float64(process.mask_probability(t))
        assert float(process.mask_probability(0.0)) == 0 and p[-1] == pytest.approx(1) and np.all(np.diff(p) > 0)
        slope = {"linear": 1 + 0 * t, "quadratic": 2 * t, "cosine": np.pi / 2 * np.cos(np.pi / 2 * t)}[name]
        np.testing.assert_allclose(process.weight(t), slope / p, rtol=1e-5, atol=1e-6)
        assert float(process.weight(0.0)) == 0
        np.testing.assert_allclose(process.weight(t, "masked"), 1 / p, rtol=1e-5)
        assert float(process.weight(0.0, "masked")) == 0
        np.testing.assert_allclose(process.unmask_probability(t[1:], t[:-1]), 1 - p[:-1] / p[1:], rtol=1e-4, atol=1e-6)
        assert float(process.unmask_probability(0.1, 0.0)) == 1


def test_times_are_spread_and_independent():
    process = MaskedDiffusion(seed=0, min_time=1e-3)
    times = np.array([process.sample_times(64) for _ in range(200)])
    assert times.min() >= 1e-3 and times.max() <= 1
    spread = np.sort(times, axis=1)
    np.testing.assert_allclose(np.diff(spread, axis=1), 0.999 / 64, atol=1e-4)  # one in each part
    a, b = times[::2].ravel(), times[1::2].ravel()
    assert abs(np.corrcoef(a, b)[0, 1]) < 4.5 / np.sqrt(a.size)  # two modalities
    assert len({tuple(np.argsort(row)) for row in times}) == 200


def test_masks_are_drawn_with_their_probability():
    process = MaskedDiffusion("cosine", seed=0)
    codes = np.zeros((4, 50_000), "int32")
    t = np.array([0.0, 0.2, 0.7, 1.0], "float32")
    given, masked, _ = process(codes, t, mask_code=7)
    share, p = np.array(masked).mean(axis=1), np.sin(np.pi / 2 * t)
    assert share[0] == 0 and share[3] == 1
    assert np.all(np.abs(share - p) < 4.5 * np.sqrt(p * (1 - p) / 50_000) + 1e-9)
    np.testing.assert_array_equal(given, np.where(masked, 7, 0))


def test_loss_by_hand_and_at_time_zero():
    rng = np.random.default_rng(0)
    process = MaskedDiffusion()
    logits, codes = rng.normal(size=(5, 2, 4, 6)).astype("float32"), rng.integers(0, 6, (5, 2, 4))
    t = np.array([0.0, 0.1, 0.5, 0.9, 1.0], "float32")
    _, masked, _ = process(codes, t, mask_code=6)
    log_p = logits - np.log(np.exp(np.float64(logits)).sum(-1, keepdims=True))
    entropy = -np.take_along_axis(log_p, codes[..., None], -1)[..., 0] * np.array(masked)
    expected = entropy.sum((1, 2)) / np.maximum(t, 1e-9) / 8
    np.testing.assert_allclose(process.loss(logits, codes, masked, t), expected, rtol=1e-5)
    np.testing.assert_allclose(
        process.loss(ops.zeros((1, 8, 27)), np.ones((1, 8)), np.ones((1, 8), bool), np.ones(1)), np.log(27), rtol=1e-6
    )


@pytest.mark.parametrize("num_levels", [None, 4])
def test_the_loss_may_be_the_mean_of_the_masked_codes(num_levels):
    """Of all of them, or of those of the level that is on its way, times the share of the time that it is."""
    rng = np.random.default_rng(1)
    process = MaskedDiffusion("cosine", weighting="masked", seed=0)
    logits, codes = rng.normal(size=(8, 5000, 4, 3)).astype("float32"), rng.integers(0, 3, (8, 5000, 4))
    _, masked, t = process(codes, mask_code=3, num_levels=num_levels)
    loss = process.loss(logits, codes, masked, t, num_levels=num_levels)
    log_p = logits - np.log(np.exp(np.float64(logits)).sum(-1, keepdims=True))
    entropy, masked = -np.take_along_axis(log_p, codes[..., None], -1)[..., 0], np.array(masked)
    if num_levels is not None:
        level = 3 - np.floor(np.array(t) * 4).astype(int)  # the coarsest, 0, goes last
        masked = masked & (np.arange(4) == level[:, None])[:, None]
    expected = (entropy * masked).sum((1, 2)) / np.maximum(masked.sum((1, 2)), 1)
    np.testing.assert_allclose(loss, expected, rtol=0.1)  # as many are masked as should be, on average
    assert (
        np.abs(loss / process.loss(logits, codes, masked, t, num_levels=num_levels, weighting="bound") - 1).max() > 0.3
    )


def test_ancestral_sampling_reproduces_the_distribution(distribution, exact):
    count = 20_000
    table = ops.convert_to_tensor(exact, "float32")

    def network(codes):
        return {"x": ops.take(table, index(codes["x"]), axis=0)}

    for schedule in ("linear", "cosine"):
        process = MaskedDiffusion(schedule)
        run = compile_function(
            lambda x, steps, process=process: fill_in(
                "ancestral", network, process, {"x": x}, {"x": MASK}, steps, seed=3
            )["x"],
            jit_compile=True,
        )
        drawn = np.array(run(ops.full((count, LENGTH), MASK), ops.convert_to_tensor(400)))
        counts = np.bincount(drawn @ [9, 3, 1], minlength=27)
        expected = distribution * count
        many = expected > 5
        chi_squared = np.sum((counts - expected)[many] ** 2 / expected[many])
        # 99.99 % of a chi-squared variable with many.sum() degrees of freedom, by Wilson and Hilferty
        n = many.sum()
        assert chi_squared < n * (1 - 2 / (9 * n) + 3.72 * np.sqrt(2 / (9 * n))) ** 3


def uniform_network(codes):
    return {name: ops.zeros((*ops.shape(one), 6)) for name, one in codes.items()}


@pytest.mark.parametrize("sampler", ["ancestral", "confidence"])
@pytest.mark.parametrize("num_steps", [1, 2, 5, 40])
def test_known_codes_stay_and_no_mask_is_left(sampler, num_steps):
    rng = np.random.default_rng(0)
    codes = {name: rng.integers(0, 6, (9, n)) for name, n in (("a", 12), ("b", 5), ("c", 4))}
    codes = {name: np.where(rng.random(one.shape) < 0.6, 6, one) for name, one in codes.items()}
    codes["a"][0], codes["a"][1] = 6, 2  # all masked, and none
    filled = fill_in(sampler, uniform_network, MaskedDiffusion(), codes, {"a": 6, "b": 6}, num_steps, seed=0)
    for name, before in codes.items():
        after = np.array(filled[name])
        np.testing.assert_array_equal(after[before != 6], before[before != 6])
        assert np.all(after < 6) if name != "c" else np.array_equal(after, before)


def test_the_confidence_sampler_follows_its_schedule():
    x = before = ops.convert_to_tensor([[6] * 16, [6] * 10 + [1] * 6])
    left = []
    for i in range(8):
        left.append(np.sum(np.array(x) == 6, axis=1))
        unknown = ops.sum(ops.cast(before == 6, "int32"), axis=1)
        x = confidence_step(ops.zeros((2, 16, 6)), x, 6, MaskedDiffusion(), 0.0, 0.0, i, 8, unknown, (0, i, 0))
    for row, n in enumerate((16, 10)):
        expected = [n]
        for k in range(1, 8):
            expected.append(min(max(math.floor(n * math.cos(math.pi / 2 * k / 8)), 1), max(expected[-1] - 1, 1)))
        assert [one[row] for one in left] == expected


def test_the_surest_codes_come_first_but_coarse_levels_before_fine_ones():
    logits = np.zeros((1, 4, 6), "float32")
    logits[0, :, 2] = [1.0, 4.0, 3.0, 2.0]

    def after(num_levels=None):
        """What is masked after each step."""
        x, states = ops.full((1, 4), 6, "int32"), []
        for i in range(4):
            states.append(tuple(np.flatnonzero(np.array(x)[0] == 6)))
            x = confidence_step(
                logits, x, 6, MaskedDiffusion(), 0.0, 0.0, i, 4, ops.full((1,), 4), (0, i, 0),
                temperature=0.0, noise=0.0, num_levels=num_levels,
            )  # fmt: skip
        return states

    assert after() == [(0, 1, 2, 3), (0, 2, 3), (0, 3), (0,)]
    assert after(2) == [(0, 1, 2, 3), (0, 1, 3), (1, 3), (3,)]


@pytest.mark.parametrize("i", [0, 1])
def test_the_noise_of_confidence_falls_over_the_steps(i):
    """Of two codes the surer one comes first by the logistic function of the difference over the noise (Gumbel-max)."""
    logits = np.zeros((20_000, 2, 6), "float32")
    logits[:, :, 2] = [2.0, 4.0]
    x = ops.full((20_000, 2), 6, "int32")
    x = confidence_step(
        logits, x, 6, MaskedDiffusion(), 0.0, 0.0, i, 4, ops.full((20_000,), 2), (0, i, 0), temperature=0.0, noise=3.0
    )
    log_p = np.array([2.0, 4.0]) - np.log(np.exp([2.0, 4.0]) + 5)
    expected = 1 / (1 + np.exp(-(log_p[1] - log_p[0]) / (3.0 * (1 - (i + 1) / 4))))
    first, second = np.mean(np.array(x) == 2, axis=0)
    assert first + second == 1 and abs(second - expected) < 4.5 * 0.5 / np.sqrt(20_000)


def test_draw_temperature_and_nucleus():
    p = np.array([0.5, 0.3, 0.15, 0.05])
    logits = np.broadcast_to(np.log(p) + 3.0, (1, 100_000, 4)).astype("float32")
    for temperature, top_p, expected in [
        (1.0, 1.0, p),
        (0.5, 1.0, p**2 / (p**2).sum()),
        (1.0, 0.79, [0.625, 0.375, 0, 0]),
        (1.0, 0.81, np.array([0.5, 0.3, 0.15, 0]) / 0.95),
        (1.0, 0.1, [1, 0, 0, 0]),
        (0.0, 1.0, [1, 0, 0, 0]),
        (0.5, 0.81, np.array([0.25, 0.09, 0.0225, 0]) / 0.3625),  # what is allowed does not depend on the temperature
    ]:
        codes, log_p = draw(logits, (0, 1), temperature, top_p)
        share = np.bincount(np.array(codes)[0], minlength=4) / 100_000
        np.testing.assert_allclose(share, expected, atol=0.007)
        np.testing.assert_allclose(np.array(log_p), np.log(p)[np.array(codes)], atol=1e-5)
    kept = np.isfinite(np.array(nucleus(np.log(p).astype("float32")[None, None], 0.49)))
    assert kept.tolist() == [[[True, False, False, False]]]


@pytest.mark.parametrize("sampler", ["ancestral", "confidence"])
def test_parts_of_a_batch_get_the_codes_of_the_whole(sampler):
    def run(count, first):
        start = {"a": np.full((count, 7), 6)}
        options = {"seed": 5, "first_example": first}
        return np.array(fill_in(sampler, uniform_network, MaskedDiffusion(), start, {"a": 6}, 4, **options)["a"])

    whole = run(6, 0)
    np.testing.assert_array_equal(run(4, 2), whole[2:])
    assert len(np.unique(whole, axis=0)) == 6


@pytest.mark.parametrize("sampler", ["ancestral", "confidence"])
def test_one_program_serves_every_number_of_steps(sampler):
    tf = pytest.importorskip("tensorflow")
    process, start = MaskedDiffusion(), np.full((3, 7), 6, "int32")

    @tf.function(jit_compile=True)
    def program(codes, num_steps, seed):
        return fill_in(sampler, uniform_network, process, {"a": codes}, {"a": 6}, num_steps, seed=seed)["a"]

    for steps in (1, 6):
        expected = fill_in(sampler, uniform_network, process, {"a": start}, {"a": 6}, steps, seed=2)["a"]
        np.testing.assert_array_equal(program(start, tf.constant(steps), tf.constant(2)), expected)
    assert program.experimental_get_tracing_count() == 1


def test_errors_and_config():
    with pytest.raises(ValueError, match="`schedule` must be one of 'linear'"):
        MaskedDiffusion("steep")
    with pytest.raises(ValueError, match="min_time"):
        MaskedDiffusion(min_time=0)
    with pytest.raises(ValueError, match="`weighting` must be one of 'bound', 'masked'"):
        MaskedDiffusion(weighting="all")
    process = MaskedDiffusion("quadratic", min_time=0.01, weighting="masked", seed=3)
    again = MaskedDiffusion.from_config(process.get_config())
    assert again.get_config() == process.get_config()
    with pytest.raises(ValueError, match="`noise` must have the shape of the codes"):
        process(np.zeros((2, 3), "int32"), noise=np.zeros((2, 4), "float32"), mask_code=6)
    with pytest.raises(ValueError, match="`logits` must be of shape"):
        process.loss(np.zeros((2, 4, 6)), np.zeros((2, 3)), np.zeros((2, 3), bool), np.ones(2))
    with pytest.raises(ValueError, match="`sampler` must be one of 'ancestral', 'confidence'"):
        fill_in("magic", None, process, {}, {}, 3, seed=0)
