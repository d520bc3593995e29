"""Posterior and learned range against closed forms in float64."""

import math

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_vqdit.diffusion import GaussianDiffusion
from keras_vqdit.diffusion.process import posterior

RNG = np.random.default_rng(1)
X0 = np.clip(RNG.normal(size=(5, 4, 3)), -1, 1)
X0[:, 0], X0[:, 1] = -1, 1  # both tails
NOISE = RNG.normal(size=X0.shape)
T = np.array([0.001, 0.002, 0.3, 0.9, 1.0])
erf = np.vectorize(math.erf)


def test_posterior_equals_ddpm():
    """Eq. 7 of DDPM in terms of alpha-bar and beta, at every step."""
    process = GaussianDiffusion("linear")
    bar, before = process.alpha_bar[1:], process.alpha_bar[:-1]
    beta = 1 - bar / before
    q = posterior(np.sqrt(bar), np.sqrt(1 - bar), np.sqrt(before), np.sqrt(1 - before))
    np.testing.assert_allclose(q.from_clean, np.sqrt(before) * beta / (1 - bar), rtol=1e-9)
    np.testing.assert_allclose(q.from_x, np.sqrt(1 - beta) * (1 - before) / (1 - bar), rtol=1e-9)
    np.testing.assert_allclose(q.small, beta * (1 - before) / (1 - bar), rtol=1e-9)
    np.testing.assert_allclose(q.large, beta, rtol=1e-9)


def test_posterior_without_signal_is_the_clean_examples_own():
    """From alpha = 0 the noisy input says nothing: mean alpha_s x0, variance sigma_s^2, nothing divided by zero."""
    with np.errstate(all="raise"):
        q = posterior(np.float64(0.0), np.float64(1.0), np.float64(0.6), np.float64(0.8))
    np.testing.assert_allclose(q, (0.0, 0.6, 0.64, 1.0))


def test_posterior_is_bayes_rule():
    """Also for a flow, whose levels are not variance-preserving: moments of q(x_s | x_t, x0) by conditioning x_s on x_t."""
    (alpha_t, sigma_t), (alpha_s, sigma_s), x0, x_t = (0.3, 0.7), (0.6, 0.4), 1.3, -0.2
    step = alpha_t / alpha_s
    prior_mean, prior_variance = alpha_s * x0, sigma_s**2
    noise_variance = sigma_t**2 - step**2 * sigma_s**2  # x_t = step x_s + noise
    gain = prior_variance * step / (step**2 * prior_variance + noise_variance)
    q = posterior(alpha_t, sigma_t, alpha_s, sigma_s)
    np.testing.assert_allclose(q.from_x * x_t + q.from_clean * x0, prior_mean + gain * (x_t - step * prior_mean))
    np.testing.assert_allclose(q.small, prior_variance * (1 - gain * step))
    np.testing.assert_allclose(q.large, noise_variance)


def expected_bound(process, mean_prediction, v):
    """The bound's terms, in float64, written out of beta and alpha-bar as in the papers."""
    alpha_bar = process.alpha_bar
    index = np.round(T * process.num_timesteps).astype(int)
    terms = []
    for i, k in enumerate(index):
        bar, before = alpha_bar[k], alpha_bar[k - 1]
        beta = 1 - bar / before
        tilde = [(1 - alpha_bar[j - 1]) / (1 - alpha_bar[j]) * (1 - alpha_bar[j] / alpha_bar[j - 1]) for j in (k, 2)]
        log_tilde = np.log(tilde[0] if k > 1 else tilde[1])
        f = (v[i] + 1) / 2
        log_variance = f * np.log(beta) + (1 - f) * log_tilde
        x_t = np.sqrt(bar) * X0[i] + np.sqrt(1 - bar) * NOISE[i]
        a, s = np.sqrt(bar), np.sqrt(1 - bar)
        p = mean_prediction[i]
        clean = {"noise": (x_t - s * p) / max(a, 1e-9), "clean": p, "v": a * x_t - s * p}[process.prediction]
        c0, ct = np.sqrt(before) * beta / (1 - bar), np.sqrt(1 - beta) * (1 - before) / (1 - bar)
        mean, true_mean = c0 * clean + ct * x_t, c0 * X0[i] + ct * x_t
        if k > 1:
            term = 0.5 * (
                log_variance
                - log_tilde
                - 1
                + np.exp(log_tilde - log_variance)
                + (mean - true_mean) ** 2 * np.exp(-log_variance)
            )
        else:
            cdf = lambda x: 0.5 * (1 + erf((x - mean) * np.exp(-0.5 * log_variance) / np.sqrt(2)))  # noqa: B023, E731
            upper = np.where(X0[i] > 0.999, 1, cdf(X0[i] + 1 / 255))
            lower = np.where(X0[i] < -0.999, 0, cdf(X0[i] - 1 / 255))
            term = -np.log(np.maximum(upper - lower, 1e-12))
        terms.append(term.mean() / np.log(2))
    return np.array(terms)


@pytest.mark.parametrize("schedule", ["linear", "cosine", "sigmoid"])
@pytest.mark.parametrize("prediction", ["noise", "clean", "v"])
def test_loss_is_mse_plus_bound(schedule, prediction):
    process = GaussianDiffusion(schedule, prediction, learn_variance=True, min_snr_gamma=5.0)
    target = np.asarray(process.target(X0, NOISE, T), "float64")
    mean_prediction = target + 0.05 * RNG.normal(size=X0.shape)
    v = RNG.uniform(-1.2, 1.2, size=X0.shape)  # nothing keeps the network within [-1, 1]
    output = np.concatenate([mean_prediction, v], -1)
    bound = process.variational_bound(output, X0, NOISE, T)
    np.testing.assert_allclose(bound, expected_bound(process, mean_prediction, v), rtol=2e-3, atol=2e-5)
    error = ((mean_prediction - target) ** 2).mean((1, 2))
    np.testing.assert_allclose(
        process.loss(output, X0, NOISE, T) - process.num_timesteps / 1000 * bound,
        np.asarray(process.weight(T)) * error,
        rtol=1e-3,
        atol=1e-5,
    )


def test_bound_with_zero_terminal_snr_is_finite():
    process = GaussianDiffusion("cosine", "v", learn_variance=True, zero_terminal_snr=True)
    v = RNG.uniform(-1, 1, size=X0.shape)
    output = np.concatenate([np.asarray(process.target(X0, NOISE, T)) + 0.05, v], -1)
    np.testing.assert_allclose(
        process.variational_bound(output, X0, NOISE, T),
        expected_bound(process, output[..., :3], v),
        rtol=2e-3,
        atol=1e-7,
    )


def test_perfect_prediction_and_posterior_variance_have_no_divergence():
    process = GaussianDiffusion("linear", "noise", learn_variance=True)
    output = np.concatenate([NOISE, -np.ones_like(NOISE)], -1)
    np.testing.assert_allclose(process.variational_bound(output, X0, NOISE, T)[1:], 0, atol=1e-6)


@pytest.mark.parametrize("prediction", ["noise", "clean", "v"])
def test_bound_teaches_the_variance_alone(prediction):
    process = GaussianDiffusion("cosine", prediction, learn_variance=True)
    output = tf.Variable(RNG.normal(size=(5, 4, 6)).astype("float32"))
    with tf.GradientTape(persistent=True) as tape:
        bound, loss = process.variational_bound(output, X0, NOISE, T), process.loss(output, X0, NOISE, T)
    of_bound, of_loss = np.asarray(tape.gradient(bound, output)), np.asarray(tape.gradient(loss, output))
    assert (of_bound[..., :3] == 0).all() and (np.abs(of_bound[1:, ..., 3:]) > 0).mean() > 0.9
    error_gradient = 2 * (output.numpy()[..., :3] - np.asarray(process.target(X0, NOISE, T))) / 12
    np.testing.assert_allclose(of_loss[..., :3], error_gradient, rtol=1e-4, atol=1e-6)


def test_split():
    process = GaussianDiffusion(learn_variance=True)
    assert process.prediction_channels(3) == 6
    output = RNG.normal(size=(5, 4, 6)).astype("float32")
    prediction, fraction = process.split_prediction(output)
    np.testing.assert_array_equal(prediction, output[..., :3])
    np.testing.assert_allclose(fraction, (output[..., 3:] + 1) / 2, atol=1e-7)
    clean, fraction = process.denoised(X0, output, T)
    np.testing.assert_array_equal(clean, process.to_clean(X0, output[..., :3], T))
    for x in (prediction, fraction, clean):
        assert keras.backend.standardize_dtype(x.dtype) == "float32"


def test_wrong_channels_are_told():
    process = GaussianDiffusion(learn_variance=True)
    with pytest.raises(ValueError, match=r"`prediction` must have shape \(5, 4, 6\) for examples of shape \(5, 4, 3\)"):
        process.loss(NOISE, X0, NOISE, T)
    with pytest.raises(ValueError, match="even number of channels where `learn_variance` is on"):
        process.split_prediction(NOISE)
