"""Processes to test with, and problems whose exact denoiser is known: what a perfect network would return."""

import numpy as np
from keras import ops

from keras_vqdit.diffusion import GaussianDiffusion, RectifiedFlow

# One of each kind. With zero terminal SNR, as with the flow, t = 1 holds no signal at all.
PROCESSES = {
    "linear": lambda **kwargs: GaussianDiffusion("linear", "noise", **kwargs),
    "cosine": lambda **kwargs: GaussianDiffusion("cosine", "clean", **kwargs),
    "sigmoid": lambda **kwargs: GaussianDiffusion("sigmoid", "v", **kwargs),
    "zero_snr": lambda **kwargs: GaussianDiffusion("linear", "v", zero_terminal_snr=True, **kwargs),
    "flow": lambda **kwargs: RectifiedFlow(**kwargs),
    "shifted": lambda **kwargs: RectifiedFlow(shift=3.0, **kwargs),
}
# A shift changes the times, not the levels: nothing new for a sampler that is given its times.
LEVELS = [name for name in PROCESSES if name != "shifted"]


def levels(process, t):
    """Signal and noise level in float64."""
    if isinstance(process, RectifiedFlow):
        t = np.asarray(t, "float64")
        return 1 - t, t
    k = np.round(np.asarray(t, "float64") * process.num_timesteps).astype(int)
    return np.sqrt(process.alpha_bar[k]), np.sqrt(1 - process.alpha_bar[k])


class Mixture:
    """A two-dimensional Gaussian mixture, with the exact E[x0 | x_t] for any process."""

    weights = np.array([0.5, 0.3, 0.2])
    means = np.array([[1.5, 0.5], [-1.5, 1.0], [0.0, -1.5]])
    factors = np.array([[[0.3, 0.0], [0.15, 0.2]], [[0.2, 0.0], [0.0, 0.4]], [[0.25, 0.0], [-0.1, 0.15]]])  # Cholesky

    def __init__(self):
        self.covariances = self.factors @ self.factors.transpose(0, 2, 1)
        self.eigenvalues, self.eigenvectors = np.linalg.eigh(self.covariances)

    def denoiser(self, process):
        means, vectors, values, weights = (
            ops.convert_to_tensor(a, "float32") for a in (self.means, self.eigenvectors, self.eigenvalues, self.weights)
        )

        def denoise(x, t):
            alpha, sigma = process.alpha_sigma(t)
            # In the axes of each component its noisy version has the variances alpha^2 values + sigma^2.
            offset = ops.einsum("bki,kij->bkj", x[:, None] - alpha * means, vectors)  # (B, K, 2)
            variance = alpha**2 * values + sigma**2  # (K, 2)
            log_likelihood = -0.5 * ops.sum(offset**2 / variance + ops.log(variance), -1)
            responsibility = ops.softmax(ops.log(weights) + log_likelihood, -1)  # (B, K)
            clean = means + ops.einsum("bkj,kij->bki", alpha * values / variance * offset, vectors)
            return ops.sum(responsibility[..., None] * clean, 1), None

        return denoise

    def draw(self, count, seed):
        rng = np.random.default_rng(seed)
        k = rng.choice(3, count, p=self.weights)
        return self.means[k] + np.einsum("bij,bj->bi", self.factors[k], rng.normal(size=(count, 2)))

    def errors(self, samples):
        """Largest errors of the weights, of the components' means, and of their covariances (relative)."""
        samples = np.asarray(samples, "float64")
        offset = samples[:, None] - self.means
        nearest = np.argmin(np.einsum("bki,kij,bkj->bk", offset, np.linalg.inv(self.covariances), offset), 1)
        parts = [samples[nearest == k] for k in range(3)]
        return {
            "weights": max(abs(len(p) / len(samples) - w) for p, w in zip(parts, self.weights)),
            "means": max(np.abs(p.mean(0) - m).max() for p, m in zip(parts, self.means)),
            "covariances": max(
                np.abs(np.cov(p.T) - c).max() / np.abs(c).max() for p, c in zip(parts, self.covariances)
            ),
        }


class Gaussian:
    """Independent normal data, for which the probability flow and the ancestral steps have closed forms."""

    mean = np.array([0.7, -0.4])
    std = np.array([0.5, 1.3])

    def denoiser(self, process, fraction=None):
        """`fraction` is a function of t that gives the learned variance fraction."""
        mean, variance = ops.convert_to_tensor(self.mean, "float32"), ops.convert_to_tensor(self.std**2, "float32")

        def denoise(x, t):
            alpha, sigma = process.alpha_sigma(t)
            clean = mean + alpha * variance / (alpha**2 * variance + sigma**2) * (x - alpha * mean)
            return clean, None if fraction is None else fraction(t) * ops.ones_like(x)

        return denoise

    def flow(self, x, process, t, s):
        """The exact solution of the probability flow from t to s, in float64."""
        (alpha_t, sigma_t), (alpha_s, sigma_s) = levels(process, t), levels(process, s)
        std_t, std_s = np.hypot(alpha_t * self.std, sigma_t), np.hypot(alpha_s * self.std, sigma_s)
        return alpha_s * self.mean + std_s / std_t * (np.asarray(x, "float64") - alpha_t * self.mean)
